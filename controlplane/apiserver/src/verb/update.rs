//! `update`, and the loop that every change of an existing object goes through: read, propose, prepare, validate, compare and
//! swap. Must not write without having compared.

use std::sync::Arc;

use apimachinery::{
    field::{FieldError, FieldErrors, Path},
    gvk::GroupKind,
    object,
    status::ApiError,
};
use http::{Response, StatusCode};
use serde_json::Value;
use store::Entry;

use super::{
    Call,
    create::{self, Stored},
    write,
};
use crate::{
    Resource,
    admit::{self, Operation},
    allocate,
    body::Body,
    guard,
    registry::{self, Outcome},
    rules::{self, Decoded},
    stored,
};

/// Kubernetes 1.36, `MaxRetryWhenPatchConflicts`: so often a change without a version is tried again.
const ATTEMPTS_MAX: usize = 5;

/// Which part of an object a request may change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    /// Puts everything else back to what it was.
    pub(crate) isolate: fn(&mut Value, &Value),
    /// What this part's own rules say about the change, after defaults.
    pub(crate) settle: fn(&Value, &Value) -> Result<(), ApiError>,
    /// What is wrong with the object as it is to be stored.
    pub(crate) validate: fn(&Resource, &Value, &Value) -> Result<(), ApiError>,
    /// Whether the strategy of whole-object updates applies.
    pub(crate) whole: bool,
}

impl Part {
    /// The object but for its status.
    pub(crate) const WHOLE: Self = Self {
        isolate: |_, _| {},
        settle: |_, _| Ok(()),
        validate: rules::validate_update,
        whole: true,
    };
    /// The status.
    pub(crate) const STATUS: Self = Self {
        isolate: write::isolate_status,
        settle: |_, _| Ok(()),
        validate: rules::validate_status,
        whole: false,
    };
}

/// Whether a change is tried again on a newer object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// When the proposal comes without a `resourceVersion`.
    IfUnversioned,
    /// The proposal is made of whatever object is there.
    Always,
}

pub(crate) async fn run(call: &Call, body: Body, part: Part) -> Result<Response<Body>, ApiError> {
    let Decoded { mut object, warnings } = write::read_object(call, body).await?;
    check_path(call, &mut object)?;
    let resource = &call.resource;
    if let Some(convert) = resource.convert {
        (convert.to_stored)(&mut object);
    }
    let missing = call.server.registry().find(resource, call.namespace(), call.name()).is_none();
    if missing && part.whole && resource.strategy.create_on_update {
        object::metadata_mut(&mut object).remove("resourceVersion");
        guard::authorize_verb(&call.server, &call.info, &call.user, "create")?;
        let stored = create::create(call, object).await?;
        return stored.respond(call, StatusCode::CREATED, &warnings);
    }
    let stored = change(call, part, Retry::IfUnversioned, |_| Ok(object.clone())).await?;
    stored.respond(call, StatusCode::OK, &warnings)
}

/// Name and namespace in the object are the path's.
pub(crate) fn check_path(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    write::check_namespace(call, object)?;
    let name = object::name(object);
    if name.is_empty() {
        object::metadata_mut(object).insert("name".to_owned(), call.name().into());
    } else if name != call.name() {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.name()
        )));
    }
    Ok(())
}

/// Changes the object that the path names. `propose` makes the new object of the current one (both in the stored form, with
/// `resourceVersion`); it is asked again when somebody else was quicker and the proposal names no version.
pub(crate) async fn change(
    call: &Call,
    part: Part,
    retry: Retry,
    mut propose: impl FnMut(&Value) -> Result<Value, ApiError>,
) -> Result<Stored, ApiError> {
    let dry = call.query.dry_run()?;
    for _ in 0..ATTEMPTS_MAX {
        let entry = call.server.registry().get(&call.resource, call.namespace(), call.name())?;
        let current = stored::decode(&entry)?;
        let mut object = propose(&current)?;
        let named = check_version(&call.resource, part, &object, &current)?;
        write::check_uid(&call.resource, object::uid(&object), &current)?;
        prepare(call, part, &mut object, &current).await?;
        let attempt = Attempt { call, part, entry: &entry, current: &current, dry };
        match attempt.store(object).await? {
            Some(stored) => return Ok(stored),
            None if named && retry == Retry::IfUnversioned => break,
            None => {}
        }
    }
    Err(ApiError::modified(registry::group_resource(&call.resource), call.name()))
}

/// Whether the proposal names a version; an error when it is not the current one.
fn check_version(
    resource: &Resource,
    part: Part,
    object: &Value,
    current: &Value,
) -> Result<bool, ApiError> {
    let given = object::resource_version(object);
    if matches!(given, "" | "0") {
        if part.whole && !resource.strategy.unconditional_update {
            let metadata = Path::new("metadata");
            let path = metadata.child("resourceVersion");
            let error = FieldError::invalid_text(&path, "0x0", "must be specified for an update");
            let kind = GroupKind::new(&resource.group, &resource.kind);
            let name = object::name(object);
            return Err(ApiError::invalid(kind, name, &FieldErrors::from(error)));
        }
        return Ok(false);
    }
    if given != object::resource_version(current) {
        let name = object::name(current);
        return Err(ApiError::modified(registry::group_resource(resource), name));
    }
    Ok(true)
}

async fn prepare(
    call: &Call,
    part: Part,
    object: &mut Value,
    current: &Value,
) -> Result<(), ApiError> {
    let resource = &*call.resource;
    (part.isolate)(object, current);
    write::carry_metadata(object, current);
    if part.whole {
        keep_status(resource, object, current);
        (resource.strategy.prepare_update)(object, current);
    }
    rules::default(object);
    (part.settle)(object, current)?;
    admit::mutate(call, Operation::Update, object, Some(current)).await?;
    write::carry_metadata(object, current);
    write::raise_generation(resource, object, current);
    Ok(())
}

fn keep_status(resource: &Resource, object: &mut Value, current: &Value) {
    if resource.subresource("status").is_none() {
        return;
    }
    let Some(map) = object.as_object_mut() else { return };
    match current.get("status") {
        Some(status) => map.insert("status".to_owned(), status.clone()),
        None => map.remove("status"),
    };
}

struct Attempt<'a> {
    call: &'a Call,
    part: Part,
    entry: &'a Arc<Entry>,
    current: &'a Value,
    dry: bool,
}

impl Attempt<'_> {
    /// Stores the prepared object; `None` when somebody was quicker.
    async fn store(&self, mut object: Value) -> Result<Option<Stored>, ApiError> {
        let (call, current) = (self.call, self.current);
        let resource = &*call.resource;
        check_finalizers(resource, &object, current)?;
        let mut alongside = allocate::on_update(&call.server, resource, &mut object, current)?;
        (self.part.validate)(resource, &object, current)?;
        admit::validate(call, Operation::Update, Some(&object), Some(current)).await?;
        if self.dry {
            return Ok(Some(Stored::Dry(object)));
        }
        if stored::encode(&object) == self.entry.value {
            return Ok(Some(Stored::Entry(Arc::clone(self.entry))));
        }
        let registry = call.server.registry();
        if is_finished(&object) {
            alongside.merge(allocate::on_delete(&call.server, resource, current));
            return Ok(match registry.remove(self.entry, alongside).await? {
                Outcome::Done(entry) => {
                    stored::set_revision(&mut object, entry.mod_revision);
                    Some(Stored::Dry(object))
                }
                Outcome::Lost => None,
            });
        }
        let lease = call.server.expiry().lease(resource).await?;
        alongside.lease = lease;
        Ok(match registry.replace(self.entry, &object, alongside).await? {
            Outcome::Done(entry) => Some(Stored::Entry(entry)),
            Outcome::Lost => {
                call.server.expiry().lost(lease);
                None
            }
        })
    }
}

/// Whether a terminating object has nothing left that it waits for.
pub(crate) fn is_finished(object: &Value) -> bool {
    object::is_terminating(object)
        && object::finalizers(object).next().is_none()
        && object::deletion_grace_period_seconds(object).unwrap_or_default() == 0
        && object::list(object, &["spec", "finalizers"]).next().is_none()
}

/// A terminating object gets no new finalizers.
fn check_finalizers(resource: &Resource, object: &Value, old: &Value) -> Result<(), ApiError> {
    if !object::is_terminating(old) {
        return Ok(());
    }
    let known: Vec<&str> = object::finalizers(old).collect();
    let new: Vec<String> = object::finalizers(object)
        .filter(|f| !known.contains(f))
        .map(|f| format!("\"{f}\""))
        .collect();
    if new.is_empty() {
        return Ok(());
    }
    let metadata = Path::new("metadata");
    let path = metadata.child("finalizers");
    let error = FieldError::forbidden(
        &path,
        format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            new.join(", ")
        ),
    );
    let kind = GroupKind::new(&resource.group, &resource.kind);
    Err(ApiError::invalid(kind, object::name(object), &FieldErrors::from(error)))
}
