//! `create`: a new object, with its name, its UID and what is allocated for it, in one transaction with its namespace's
//! being there. Must not overwrite.

use std::sync::Arc;

use apimachinery::{object, status::ApiError};
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::Value;
use store::{Compare, Entry};

use super::{Call, write};
use crate::{
    admit::{self, Operation},
    allocate,
    body::Body,
    key, random,
    registry::{self, Alongside, Outcome},
    resource::Resource,
    respond,
    rules::{self, Decoded},
};

/// Kubernetes 1.36: so many names are tried for one `generateName`.
const GENERATED_NAMES_MAX: usize = 8;
/// A create meets a change of its namespace or of an allocation so often before it gives up.
const ATTEMPTS_MAX: usize = 16;

/// What a write left behind.
#[derive(Debug)]
pub(crate) enum Stored {
    Entry(Arc<Entry>),
    /// A dry run: what would have been stored.
    Dry(Value),
}

impl Stored {
    pub(crate) fn respond(
        self,
        call: &Call,
        status: StatusCode,
        warnings: &[String],
    ) -> Result<Response<Body>, ApiError> {
        let mut response = match self {
            Self::Entry(entry) => respond::entry(call, status, &entry)?,
            Self::Dry(object) => respond::object(call, status, object),
        };
        respond::warn(&mut response, warnings);
        Ok(response)
    }
}

pub(crate) async fn run(call: &Call, body: Body) -> Result<Response<Body>, ApiError> {
    let Decoded { object, warnings } = write::read_object(call, body).await?;
    create(call, object).await?.respond(call, StatusCode::CREATED, &warnings)
}

/// Creates an object that came in the served version.
pub(crate) async fn create(call: &Call, mut object: Value) -> Result<Stored, ApiError> {
    if !object::resource_version(&object).is_empty() {
        return Err(ApiError::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    let dry = call.query.dry_run()?;
    write::check_namespace(call, &mut object)?;
    namespace_guard(call)?;
    let resource = &*call.resource;
    rules::default(&mut object);
    if let Some(convert) = resource.convert {
        (convert.to_stored)(&mut object);
    }
    admit::mutate(call, Operation::Create, &mut object, None).await?;
    note_requestor(call, &mut object);
    let generate = if object::name(&object).is_empty() {
        object::generate_name(&object).to_owned()
    } else {
        String::new()
    };
    let mut names_left = GENERATED_NAMES_MAX;
    for _ in 0..ATTEMPTS_MAX {
        if !generate.is_empty() {
            let name = object::generated_name(&generate, random::bytes());
            object::metadata_mut(&mut object).insert("name".to_owned(), name.into());
        }
        prepare(resource, &mut object);
        match attempt(call, &object, dry).await? {
            Some(stored) => return Ok(stored),
            None if exists(call, &object) => {
                names_left -= 1;
                let resource = registry::group_resource(resource);
                if generate.is_empty() {
                    return Err(ApiError::already_exists(resource, object::name(&object)));
                }
                if names_left == 0 {
                    let name = object::name(&object);
                    return Err(ApiError::generate_name_conflict(resource, name));
                }
            }
            None => {}
        }
    }
    Err(ApiError::timeout("the object's namespace or allocations kept changing", 1))
}

fn exists(call: &Call, object: &Value) -> bool {
    let name = object::name(object);
    call.server.registry().find(&call.resource, call.namespace(), name).is_some()
}

/// Sets what only the server sets, some of it from the name.
fn prepare(resource: &Resource, object: &mut Value) {
    write::fill_metadata(resource, object, Timestamp::now());
    if let Some(status) = resource.strategy.empty_status {
        object["status"] = status();
    }
    (resource.strategy.prepare_create)(object);
}

/// A signing request says who made it, whatever the client wrote (Kubernetes 1.36, csrStrategy).
fn note_requestor(call: &Call, object: &mut Value) {
    let resource = &call.resource;
    if resource.group != "certificates.k8s.io" || resource.plural != "certificatesigningrequests" {
        return;
    }
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for field in ["username", "uid", "groups", "extra"] {
        spec.remove(field);
    }
    spec.insert("username".to_owned(), call.user.name.clone().into());
    spec.insert("groups".to_owned(), call.user.groups.clone().into());
    if !call.user.uid.is_empty() {
        spec.insert("uid".to_owned(), call.user.uid.clone().into());
    }
    if !call.user.extra.is_empty() {
        let extra = call.user.extra.iter().map(|(key, all)| (key.clone(), all.clone().into()));
        spec.insert("extra".to_owned(), Value::Object(extra.collect()));
    }
}

async fn attempt(call: &Call, object: &Value, dry: bool) -> Result<Option<Stored>, ApiError> {
    write::check_name(&call.resource, object)?;
    let mut alongside = namespace_guard(call)?;
    // What is allocated may be different next time, so it goes into a copy.
    let mut object = object.clone();
    alongside.merge(allocate::on_create(&call.server, &call.resource, &mut object)?);
    rules::validate_create(&call.resource, &object)?;
    admit::validate(call, Operation::Create, Some(&object), None).await?;
    if dry {
        let taken = exists(call, &object);
        return Ok((!taken).then_some(Stored::Dry(object)));
    }
    let lease = call.server.expiry().lease(&call.resource).await?;
    alongside.lease = lease;
    let key = key::object(&call.resource, call.namespace(), object::name(&object));
    Ok(match call.server.registry().create(key, &object, alongside).await? {
        Outcome::Done(entry) => Some(Stored::Entry(entry)),
        Outcome::Lost => {
            call.server.expiry().lost(lease);
            None
        }
    })
}

/// The namespace has to be there and to stay; the transaction compares it.
fn namespace_guard(call: &Call) -> Result<Alongside, ApiError> {
    if !call.resource.is_namespaced() {
        return Ok(Alongside::default());
    }
    let name = call.namespace();
    let namespaces = call.server.row("", "namespaces")?;
    let entry = call.server.registry().get(&namespaces, "", name)?;
    let namespace = crate::stored::decode(&entry)?;
    if object::is_terminating(&namespace) {
        let resource = registry::group_resource(&call.resource);
        let why = format!(
            "unable to create new content in namespace {name} because it is being terminated"
        );
        return Err(ApiError::forbidden(resource, call.name(), why).with_cause(
            apimachinery::status::Cause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {name} is being terminated"),
                field: "metadata.namespace".into(),
            },
        ));
    }
    let compare = vec![Compare::unchanged(entry.key.to_vec(), entry.mod_revision)];
    Ok(Alongside { compare, ..Alongside::default() })
}
