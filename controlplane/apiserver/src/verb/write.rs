//! What create, update and patch share: reading bodies, metadata that only the server sets, generation, preconditions.
//! Must not write to the store.

use std::time::Duration;

use apimachinery::{
    field::{FieldError, FieldErrors, Path},
    gvk::{GroupKind, GroupVersionKind},
    negotiate::{Format, body_format},
    object, protobuf,
    status::ApiError,
};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;

use super::Call;
use crate::{
    Resource,
    body::{self, Body, CollectError},
    random, registry,
    resource::strategy::Generation,
    rules::{self, Decoded},
};

/// Kubernetes 1.36: the largest body of a write.
const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// A client gets so long to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// A whole body, bounded in bytes and time.
pub(crate) async fn read_body(body: Body) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(BODY_TIMEOUT, body::collect(body, BODY_BYTES_MAX)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(CollectError::TooLong { bytes_max })) => {
            Err(ApiError::request_entity_too_large(format!("limit is {bytes_max}")))
        }
        Ok(Err(e)) => Err(ApiError::bad_request(format!("read the request's body: {e}"))),
        Err(_) => Err(ApiError::timeout("the request's body did not arrive in time", 0)),
    }
}

/// A whole body with its format; protobuf comes out as JSON.
pub(crate) async fn read_document(call: &Call, body: Body) -> Result<(Bytes, Format), ApiError> {
    let content_type = call.headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    if content_type.is_some_and(|t| t.split(';').next() == Some(protobuf::MEDIA_TYPE)) {
        let bytes = read_body(body).await?;
        if bytes.is_empty() {
            return Ok((bytes, Format::Json));
        }
        let object = protobuf::decode(&bytes).map_err(|e| ApiError::bad_request(e.to_string()))?;
        return Ok((object.to_string().into(), Format::Json));
    }
    let format = body_format(content_type)?;
    Ok((read_body(body).await?, format))
}

/// The object in a body, of the resource's own kind.
pub(crate) async fn read_object(call: &Call, body: Body) -> Result<Decoded, ApiError> {
    let r = &call.resource;
    read_kind(call, body, GroupVersionKind::new(&r.group, &r.version, &r.kind)).await
}

/// The object in a body, of the given group, version and kind.
pub(crate) async fn read_kind(
    call: &Call,
    body: Body,
    gvk: GroupVersionKind<'_>,
) -> Result<Decoded, ApiError> {
    let validation = rules::field_validation(&call.query, options(&call.info.verb))?;
    let (bytes, format) = read_document(call, body).await?;
    rules::decode(gvk, &bytes, format, validation)
}

/// The kind of a verb's options, for errors.
pub(crate) fn options(verb: &str) -> &'static str {
    match verb {
        "create" => "CreateOptions",
        "patch" => "PatchOptions",
        _ => "UpdateOptions",
    }
}

/// The namespace in the object must be the path's.
pub(crate) fn check_namespace(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    let given = object::namespace(object).to_owned();
    if !call.resource.is_namespaced() {
        object::metadata_mut(object).remove("namespace");
        return Ok(());
    }
    if !given.is_empty() && given != call.info.namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    object::metadata_mut(object)
        .insert("namespace".to_owned(), call.info.namespace.as_str().into());
    Ok(())
}

/// Sets the metadata of a new object.
pub(crate) fn fill_metadata(resource: &Resource, object: &mut Value, now: Timestamp) {
    let generation = resource.strategy.generation != Generation::None;
    let metadata = object::metadata_mut(object);
    for key in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "generation",
        "managedFields",
        "resourceVersion",
    ] {
        metadata.remove(key);
    }
    metadata.insert("uid".to_owned(), object::uid_from(random::bytes()).into());
    metadata.insert("creationTimestamp".to_owned(), object::time(now).into());
    if generation {
        metadata.insert("generation".to_owned(), 1.into());
    }
}

/// A name that can stand in a key. Everything else about names is validation's.
pub(crate) fn check_name(resource: &Resource, object: &Value) -> Result<(), ApiError> {
    let name = object::name(object);
    let metadata = Path::new("metadata");
    let path = metadata.child("name");
    let error = match name {
        "" => FieldError::required(&path, "name or generateName is required"),
        "." | ".." => FieldError::invalid(&path, name, format!("may not be '{name}'")),
        name if name.contains('/') => FieldError::invalid(&path, name, "may not contain '/'"),
        name if name.contains('%') => FieldError::invalid(&path, name, "may not contain '%'"),
        _ => return Ok(()),
    };
    let kind = GroupKind::new(&resource.group, &resource.kind);
    Err(ApiError::invalid(kind, name, &FieldErrors::from(error)))
}

/// Carries over what an update can't change.
pub(crate) fn carry_metadata(object: &mut Value, old: &Value) {
    let metadata = object::metadata_mut(object);
    for key in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
    ] {
        match old["metadata"].get(key) {
            Some(value) => metadata.insert(key.to_owned(), value.clone()),
            None => metadata.remove(key),
        };
    }
    metadata.remove("selfLink");
    metadata.remove("managedFields");
}

/// Raises the generation when the content that it counts has changed.
pub(crate) fn raise_generation(resource: &Resource, object: &mut Value, old: &Value) {
    let annotations =
        || object["metadata"].get("annotations") != old["metadata"].get("annotations");
    let raise = match resource.strategy.generation {
        Generation::None => false,
        Generation::Content => content_differs(object, old),
        Generation::ContentAndAnnotations => content_differs(object, old) || annotations(),
    };
    if raise {
        let next = object::generation(old) + 1;
        object::metadata_mut(object).insert("generation".to_owned(), next.into());
    }
}

fn content_differs(a: &Value, b: &Value) -> bool {
    let content = |key: &str| !matches!(key, "metadata" | "status" | "apiVersion" | "kind");
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a != b };
    a.keys().chain(b.keys()).any(|key| content(key) && a.get(key) != b.get(key))
}

/// Keeps everything but the status (and labels and annotations) as it was.
pub(crate) fn isolate_status(object: &mut Value, old: &Value) {
    let mut kept = old.clone();
    for key in ["labels", "annotations"] {
        match object["metadata"].get(key).cloned() {
            Some(value) => object::metadata_mut(&mut kept).insert(key.to_owned(), value),
            None => object::metadata_mut(&mut kept).remove(key),
        };
    }
    let status = object.get("status").cloned();
    if let Some(map) = kept.as_object_mut() {
        match status {
            Some(status) => map.insert("status".to_owned(), status),
            None => map.remove("status"),
        };
    }
    *object = kept;
}

/// The object's UID, where the client names one, must be the stored one's.
pub(crate) fn check_uid(
    resource: &Resource,
    wanted: &str,
    current: &Value,
) -> Result<(), ApiError> {
    let uid = object::uid(current);
    if wanted.is_empty() || wanted == uid {
        return Ok(());
    }
    Err(ApiError::conflict(
        registry::group_resource(resource),
        object::name(current),
        format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}"),
    ))
}
