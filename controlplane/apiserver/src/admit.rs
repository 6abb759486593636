//! Where writes meet admission. Must not decide anything itself.

use apimachinery::{object, status::ApiError};
use serde_json::Value;

use crate::{admission::AdmissionRequest, verb::Call};

pub(crate) use crate::admission::Operation;

fn request<'a>(
    call: &'a Call,
    operation: Operation,
    (name, namespace): (&'a str, &'a str),
    old: Option<&'a Value>,
) -> Result<AdmissionRequest<'a>, ApiError> {
    Ok(AdmissionRequest {
        user: &call.user,
        operation,
        resource: &call.resource,
        subresource: &call.info.subresource,
        namespace,
        name,
        old,
        dry_run: call.query.dry_run()?,
    })
}

/// A collection over all namespaces is deleted object by object, and what is posted to a subresource may name no namespace.
fn namespace<'a>(call: &'a Call, object: &'a Value) -> &'a str {
    match call.namespace() {
        "" => object::namespace(object),
        namespace => namespace,
    }
}

/// Mutating plugins, in order.
pub(crate) async fn mutate(
    call: &Call,
    operation: Operation,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    let namespace = namespace(call, old.unwrap_or(object)).to_owned();
    let request = request(call, operation, (call.name(), &namespace), old)?;
    call.server.admission().mutate(&request, object).await
}

/// Validating plugins, in order. A delete has no object to change, so that its mutating plugins only refuse.
pub(crate) async fn validate(
    call: &Call,
    operation: Operation,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    let chain = call.server.admission();
    let Some(object) = object.or(old) else { return Ok(()) };
    // A collection is deleted object by object: the name then stands in the object alone.
    let name = match call.name() {
        "" if operation == Operation::Delete => object::name(object),
        name => name,
    };
    let request = request(call, operation, (name, namespace(call, object)), old)?;
    if operation == Operation::Delete {
        chain.mutate(&request, &mut object.clone()).await?;
    }
    chain.validate(&request, object)
}
