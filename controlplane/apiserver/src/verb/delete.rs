//! `delete`: at once, gracefully, or when finalizers let go; by the caller's options and the resource's strategy.
//! Must not remove an object that something still waits for.

use std::sync::Arc;

use apimachinery::{
    field::{FieldError, FieldErrors, Path},
    gvk::GroupKind,
    object,
    status::{self, ApiError, Details},
};
use http::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use store::Entry;

use super::{Call, write};
use crate::{
    Resource,
    admit::{self, Operation},
    allocate,
    body::Body,
    query::Query,
    registry::{self, Outcome},
    respond, rules, stored,
};

/// A delete meets other writers so often before it gives up.
const ATTEMPTS_MAX: usize = 16;
const FINALIZER_ORPHAN: &str = "orphan";
const FINALIZER_FOREGROUND: &str = "foregroundDeletion";

/// What becomes of the objects that the deleted one owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// `metav1.DeleteOptions`.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteOptions {
    grace_seconds: Option<i64>,
    propagation: Option<Propagation>,
    /// `orphanDependents: false` asks for 202 where the object is not gone yet.
    accepted: bool,
    uid: String,
    resource_version: String,
    pub(crate) dry: bool,
}

impl DeleteOptions {
    /// Reads the options of the body, of the query where there is no body.
    pub(crate) async fn read(call: &Call, body: Body) -> Result<Self, ApiError> {
        let (bytes, format) = write::read_document(call, body).await?;
        if bytes.is_empty() {
            return Self::of_query(&call.query);
        }
        let options = rules::parse(&bytes, format)?;
        Self::of_object(&options, &call.query)
    }

    fn of_query(query: &Query) -> Result<Self, ApiError> {
        let propagation = propagation(query.get("propagationPolicy"))?;
        let orphan = query.find("orphanDependents").map(|_| query.flag("orphanDependents"));
        Ok(Self {
            grace_seconds: query.number("gracePeriodSeconds")?,
            propagation: propagation.or(orphan.map(of_orphan)),
            accepted: orphan == Some(false),
            dry: query.dry_run()?,
            ..Self::default()
        })
    }

    /// The version that they are for is now the one that an own write made of it.
    pub(crate) fn follow(&mut self, version: &str) {
        if !self.resource_version.is_empty() {
            version.clone_into(&mut self.resource_version);
        }
    }

    /// Reads a `DeleteOptions` object.
    pub(crate) fn of_object(options: &Value, query: &Query) -> Result<Self, ApiError> {
        let orphan = options["orphanDependents"].as_bool();
        let policy = propagation(object::text(options, &["propagationPolicy"]))?;
        if orphan.is_some() && policy.is_some() {
            let path = Path::new("propagationPolicy");
            let given = object::text(options, &["propagationPolicy"]);
            let why = "orphanDependents and deletionPropagation cannot be both set";
            return Err(invalid(FieldError::invalid(&path, given, why)));
        }
        let mut dry = query.dry_run()?;
        for value in object::list(options, &["dryRun"]) {
            if value != "All" {
                return Err(ApiError::bad_request(format!(
                    "dryRun: Unsupported value: {value}: supported values: \"All\""
                )));
            }
            dry = true;
        }
        Ok(Self {
            grace_seconds: options["gracePeriodSeconds"].as_i64(),
            propagation: policy.or(orphan.map(of_orphan)),
            accepted: orphan == Some(false),
            uid: object::text(options, &["preconditions", "uid"]).to_owned(),
            resource_version: object::text(options, &["preconditions", "resourceVersion"])
                .to_owned(),
            dry,
        })
    }
}

fn of_orphan(orphan: bool) -> Propagation {
    if orphan { Propagation::Orphan } else { Propagation::Background }
}

fn invalid(error: FieldError) -> ApiError {
    let kind = GroupKind::new("meta.k8s.io", "DeleteOptions");
    ApiError::invalid(kind, "", &FieldErrors::from(error))
}

fn propagation(text: &str) -> Result<Option<Propagation>, ApiError> {
    Ok(Some(match text {
        "" => return Ok(None),
        "Orphan" => Propagation::Orphan,
        "Background" => Propagation::Background,
        "Foreground" => Propagation::Foreground,
        other => {
            let path = Path::new("propagationPolicy");
            let known = ["Background", "Foreground", "Orphan", "nil"];
            return Err(invalid(FieldError::not_supported(&path, other, &known)));
        }
    }))
}

/// What a delete left behind.
#[derive(Debug)]
pub(crate) enum Deleted {
    /// The object is gone; as it was.
    Gone(Value),
    /// The object is terminating; as it is.
    Terminating(Value),
}

impl Deleted {
    /// The object, in the stored form.
    pub(crate) fn into_object(self) -> Value {
        match self {
            Self::Gone(object) | Self::Terminating(object) => object,
        }
    }
}

pub(crate) async fn run(call: &Call, body: Body) -> Result<Response<Body>, ApiError> {
    let options = DeleteOptions::read(call, body).await?;
    let resource = &*call.resource;
    Ok(match delete(call, call.namespace(), call.name(), &options).await? {
        Deleted::Gone(object) if !resource.strategy.returns_deleted => {
            let details = Details {
                name: object::name(&object).to_owned(),
                group: resource.group.clone(),
                kind: resource.plural.clone(),
                uid: object::uid(&object).to_owned(),
                ..Details::default()
            };
            respond::value(&call.answer, StatusCode::OK, &status::success(&details))
        }
        Deleted::Terminating(object) if options.accepted => {
            respond::object(call, StatusCode::ACCEPTED, object)
        }
        deleted => respond::object(call, StatusCode::OK, deleted.into_object()),
    })
}

/// Deletes one object of the call's resource.
pub(crate) async fn delete(
    call: &Call,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
) -> Result<Deleted, ApiError> {
    let resource = &*call.resource;
    for _ in 0..ATTEMPTS_MAX {
        let entry = call.server.registry().get(resource, namespace, name)?;
        let current = stored::decode(&entry)?;
        check_preconditions(resource, options, &current)?;
        admit::validate(call, Operation::Delete, None, Some(&current)).await?;
        let plan = plan(resource, options, &current, Timestamp::now())?;
        if options.dry {
            return Ok(match plan {
                Plan::Remove => Deleted::Gone(current),
                Plan::Mark(object) => Deleted::Terminating(object),
                Plan::Wait => Deleted::Terminating(current),
            });
        }
        if let Some(deleted) = apply(call, &entry, current, plan).await? {
            return Ok(deleted);
        }
    }
    Err(ApiError::modified(registry::group_resource(resource), name))
}

async fn apply(
    call: &Call,
    entry: &Arc<Entry>,
    current: Value,
    plan: Plan,
) -> Result<Option<Deleted>, ApiError> {
    let registry = call.server.registry();
    Ok(match plan {
        Plan::Wait => Some(Deleted::Terminating(current)),
        Plan::Remove => {
            let alongside = allocate::on_delete(&call.server, &call.resource, &current);
            match registry.remove(entry, alongside).await? {
                Outcome::Done(removed) => {
                    let mut object = current;
                    stored::set_revision(&mut object, removed.mod_revision);
                    Some(Deleted::Gone(object))
                }
                Outcome::Lost => None,
            }
        }
        Plan::Mark(object) => {
            match registry.replace(entry, &object, registry::Alongside::default()).await? {
                Outcome::Done(entry) => Some(Deleted::Terminating(stored::decode(&entry)?)),
                Outcome::Lost => None,
            }
        }
    })
}

/// Refuses what the options say is another object, or another version of it.
pub(crate) fn check_preconditions(
    resource: &Resource,
    options: &DeleteOptions,
    current: &Value,
) -> Result<(), ApiError> {
    write::check_uid(resource, &options.uid, current)?;
    let (wanted, is) = (&options.resource_version, object::resource_version(current));
    if wanted.is_empty() || wanted == is {
        return Ok(());
    }
    Err(ApiError::conflict(
        registry::group_resource(resource),
        object::name(current),
        format!(
            "Precondition failed: ResourceVersion in precondition: {wanted}, ResourceVersion in object meta: {is}"
        ),
    ))
}

/// What a delete does to an object.
#[derive(Debug, PartialEq)]
enum Plan {
    /// Out of the store.
    Remove,
    /// Store this: terminating, or terminating sooner.
    Mark(Value),
    /// It is terminating already and nothing changes.
    Wait,
}

/// Kubernetes 1.36, `rest.BeforeDelete` and the finalizers of propagation.
fn plan(
    resource: &Resource,
    options: &DeleteOptions,
    current: &Value,
    now: Timestamp,
) -> Result<Plan, ApiError> {
    if resource.plural == "namespaces" {
        return plan_namespace(resource, current, now);
    }
    let terminating = object::is_terminating(current);
    let grace = grace_seconds(resource, options, current);
    let finalizers = finalizers(resource, options, current);
    let held = !finalizers.is_empty();
    if terminating {
        let before = object::deletion_grace_period_seconds(current).unwrap_or_default();
        if before == 0 && !held {
            return Ok(Plan::Remove);
        }
        let shorter = options.grace_seconds.is_some() && grace < before;
        if !shorter {
            return Ok(with_finalizers(current, &finalizers));
        }
        if grace == 0 && !held {
            return Ok(Plan::Remove);
        }
        let since = object::deletion_timestamp(current)
            .and_then(|t| t.checked_sub(SignedDuration::from_secs(before)).ok());
        let object = mark(current, grace, since.unwrap_or(now));
        return Ok(Plan::Mark(set_finalizers(object, &finalizers)));
    }
    if grace == 0 && !held {
        return Ok(Plan::Remove);
    }
    Ok(Plan::Mark(set_finalizers(mark(current, grace, now), &finalizers)))
}

fn plan_namespace(resource: &Resource, current: &Value, now: Timestamp) -> Result<Plan, ApiError> {
    let waits = object::list(current, &["spec", "finalizers"]).next().is_some();
    if object::is_terminating(current) {
        if waits {
            return Err(ApiError::conflict(
                registry::group_resource(resource),
                object::name(current),
                "The system is ensuring all content is removed from this namespace.  Upon completion, \
                 this namespace will automatically be purged by the system.",
            ));
        }
        let held = object::finalizers(current).next().is_some();
        return Ok(if held { Plan::Wait } else { Plan::Remove });
    }
    let mut object = current.clone();
    *object::at_mut(&mut object, &["metadata", "deletionTimestamp"]) = object::time(now).into();
    *object::at_mut(&mut object, &["status", "phase"]) = "Terminating".into();
    Ok(Plan::Mark(object))
}

fn grace_seconds(resource: &Resource, options: &DeleteOptions, current: &Value) -> i64 {
    let Some(strategy) = resource.strategy.grace_seconds else { return 0 };
    match (strategy(current), options.grace_seconds) {
        // Nobody runs it, so nobody needs time.
        (0, None) => 0,
        (default, None) => default,
        (_, Some(0)) => 0,
        (0, Some(_)) if !is_running(current) => 0,
        // Kubernetes 1.36: a negative grace counts as one second.
        (_, Some(asked)) if asked < 0 => 1,
        (_, Some(asked)) => asked,
    }
}

fn is_running(pod: &Value) -> bool {
    let ended = matches!(object::text(pod, &["status", "phase"]), "Succeeded" | "Failed");
    !object::text(pod, &["spec", "nodeName"]).is_empty() && !ended
}

fn mark(current: &Value, grace: i64, since: Timestamp) -> Value {
    let mut object = current.clone();
    let at = since.checked_add(SignedDuration::from_secs(grace)).unwrap_or(since);
    let generation = object::generation(current);
    let metadata = object::metadata_mut(&mut object);
    metadata.insert("deletionTimestamp".to_owned(), object::time(at).into());
    metadata.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
    if generation > 0 {
        metadata.insert("generation".to_owned(), (generation + 1).into());
    }
    object
}

fn finalizers(resource: &Resource, options: &DeleteOptions, current: &Value) -> Vec<String> {
    let had: Vec<&str> = object::finalizers(current).collect();
    let add = match options.propagation {
        Some(Propagation::Orphan) => Some(FINALIZER_ORPHAN),
        Some(Propagation::Foreground) => Some(FINALIZER_FOREGROUND),
        Some(Propagation::Background) => None,
        // What an earlier delete or the creator asked for stays.
        None if had.contains(&FINALIZER_ORPHAN) => Some(FINALIZER_ORPHAN),
        None if had.contains(&FINALIZER_FOREGROUND) => Some(FINALIZER_FOREGROUND),
        None if resource.strategy.orphans_dependents => Some(FINALIZER_ORPHAN),
        None => None,
    };
    had.into_iter()
        .filter(|f| !matches!(*f, FINALIZER_ORPHAN | FINALIZER_FOREGROUND))
        .chain(add)
        .map(str::to_owned)
        .collect()
}

fn set_finalizers(mut object: Value, finalizers: &[String]) -> Value {
    let metadata = object::metadata_mut(&mut object);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".to_owned(), json!(finalizers));
    }
    object
}

fn with_finalizers(current: &Value, finalizers: &[String]) -> Plan {
    let object = set_finalizers(current.clone(), finalizers);
    if object == *current { Plan::Wait } else { Plan::Mark(object) }
}
