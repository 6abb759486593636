//! The one place where writes meet apimachinery's schemas: decoding with `fieldValidation`, defaults, validation.
//! Must not touch the store.

use apimachinery::{
    default::apply_defaults,
    field::FieldErrors,
    gvk::{GroupKind, GroupVersionKind},
    negotiate::Format,
    object,
    schema::{Schemas, Type},
    status::ApiError,
    strict::{self, conform},
    validate,
};
use serde_json::Value;
use std::sync::Arc;

pub(crate) use apimachinery::strict::FieldValidation;

use crate::{Resource, query::Query};

/// An object as a client sent it, with what it is to be warned of.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) object: Value,
    pub(crate) warnings: Vec<String>,
}

/// The `fieldValidation` that the query asks for.
pub(crate) fn field_validation(query: &Query, options: &str) -> Result<FieldValidation, ApiError> {
    FieldValidation::parse(query.find("fieldValidation")).map_err(|error| {
        let kind = GroupKind::new("meta.k8s.io", options);
        ApiError::invalid(kind, "", &FieldErrors::from(error))
    })
}

fn schema(gvk: GroupVersionKind<'_>) -> Result<Arc<Type>, ApiError> {
    Schemas::builtin().of(gvk).ok_or_else(|| ApiError::internal(format!("no schema for {gvk}")))
}

/// Reads a body of one kind.
pub(crate) fn decode(
    gvk: GroupVersionKind<'_>,
    bytes: &[u8],
    format: Format,
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    let decoded = strict::decode(bytes, format, gvk, &*schema(gvk)?)?;
    let (object, warnings) = decoded.settle(validation, gvk)?;
    Ok(Decoded { object, warnings })
}

/// Bytes as a tree of no particular kind: a patch, options.
pub(crate) fn parse(bytes: &[u8], format: Format) -> Result<Value, ApiError> {
    strict::read(bytes, format)
        .map(|read| read.value)
        .map_err(|e| ApiError::bad_request(format!("error decoding the request's body: {e}")))
}

/// Fills in what is left out.
pub(crate) fn default(object: &mut Value) {
    let (api_version, kind) =
        (object::api_version(object).to_owned(), object::kind(object).to_owned());
    apply_defaults(GroupVersionKind::from_api_version(&api_version, &kind), object);
}

/// What is wrong with a new object.
pub(crate) fn validate_create(resource: &Resource, object: &Value) -> Result<(), ApiError> {
    outcome(resource, object, &validate::validate_create(object::gvk(object), object))
}

/// What is wrong with a change.
pub(crate) fn validate_update(
    resource: &Resource,
    object: &Value,
    old: &Value,
) -> Result<(), ApiError> {
    outcome(resource, object, &validate::validate_update(object::gvk(object), object, old))
}

/// What is wrong with a change of the status.
pub(crate) fn validate_status(
    resource: &Resource,
    object: &Value,
    old: &Value,
) -> Result<(), ApiError> {
    outcome(resource, object, &validate::validate_status_update(object::gvk(object), object, old))
}

/// What is wrong with a change of a part of the spec that has rules of its own for what may change.
pub(crate) fn validate_part(
    resource: &Resource,
    object: &Value,
    old: &Value,
) -> Result<(), ApiError> {
    outcome(resource, object, &validate::validate_part(object::gvk(object), object, old))
}

fn outcome(resource: &Resource, object: &Value, errors: &FieldErrors) -> Result<(), ApiError> {
    if errors.is_empty() {
        return Ok(());
    }
    let kind = GroupKind::new(&resource.group, &resource.kind);
    Err(ApiError::invalid(kind, object::name(object), errors))
}

/// Checks a patched object as if it had been sent; what it is to be warned of.
pub(crate) fn check(
    gvk: GroupVersionKind<'_>,
    object: &mut Value,
    validation: FieldValidation,
) -> Result<Vec<String>, ApiError> {
    let problems = conform(object, &*schema(gvk)?).map_err(|why| {
        let (kind, version) = (gvk.kind, gvk.version);
        ApiError::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"
        ))
    })?;
    let decoded = strict::Decoded { object: Value::Null, problems };
    Ok(decoded.settle(validation, gvk)?.1)
}

/// Applies a strategic merge patch.
pub(crate) fn strategic(
    gvk: GroupVersionKind<'_>,
    object: &mut Value,
    patch: &Value,
) -> Result<(), ApiError> {
    Ok(apimachinery::patch::strategic::apply(object, patch, &*schema(gvk)?)?)
}
