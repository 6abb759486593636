//! Subresources that change or show a part of an object, and the resources that are answered without being stored.
//! Streams toward nodes are `stream`'s.

use apimachinery::{gvk::GroupVersionKind, object, status::ApiError};
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::Value;

use super::{
    Call, get, patch,
    update::{self, Part},
    write,
};
use crate::{
    admit::{self, Operation},
    authz::reviews::Reviews,
    body::Body,
    registry, respond,
    rules::Decoded,
};

pub(crate) async fn run(call: &Call, body: Body) -> Result<Response<Body>, ApiError> {
    let verb = call.info.verb.as_str();
    let offered =
        call.resource.subresource(&call.info.subresource).is_some_and(|s| s.verbs.contains(&verb));
    let part = match (offered, call.info.subresource.as_str()) {
        (true, "status") => Part::STATUS,
        (true, "token") => return token(call, body).await,
        (true, "finalize") => Part { isolate: keep_but_finalizers, whole: false },
        _ => return Err(unsupported(call)),
    };
    match verb {
        "get" => get::run(call),
        "update" => update::run(call, body, part).await,
        "patch" => patch::run(call, body, part).await,
        _ => Err(unsupported(call)),
    }
}

fn unsupported(call: &Call) -> ApiError {
    ApiError::method_not_supported(registry::group_resource(&call.resource), &call.info.verb)
}

/// Reviews and bindings.
pub(crate) async fn virtual_resource(call: &Call, body: Body) -> Result<Response<Body>, ApiError> {
    if call.resource.group.starts_with("auth") {
        return review(call, body).await;
    }
    Err(unsupported(call))
}

/// A review is answered at once, by its own object with the status filled in.
async fn review(call: &Call, body: Body) -> Result<Response<Body>, ApiError> {
    let Decoded { mut object, warnings } = write::read_object(call, body).await?;
    let reviews = Reviews {
        authorizer: call.server.authorizer(),
        authenticator: call.server.authenticator(),
        user: &call.user,
        namespace: call.namespace(),
    };
    reviews
        .answer(&call.resource.kind, &mut object, Timestamp::now())
        .unwrap_or_else(|| Err(unsupported(call)))?;
    let mut response = respond::value(&call.answer, StatusCode::CREATED, &object);
    respond::warn(&mut response, &warnings);
    Ok(response)
}

/// `serviceaccounts/token`.
async fn token(call: &Call, body: Body) -> Result<Response<Body>, ApiError> {
    let gvk = GroupVersionKind::new("authentication.k8s.io", "v1", "TokenRequest");
    let Decoded { mut object, warnings } = write::read_kind(call, body, gvk).await?;
    admit::mutate(call, Operation::Create, &mut object, None).await?;
    let account = (call.namespace(), call.name());
    let now = Timestamp::now();
    let answer = call.server.authenticator().token_request(account, &object, now)?;
    let mut response = respond::value(&call.answer, StatusCode::CREATED, &answer);
    respond::warn(&mut response, &warnings);
    Ok(response)
}

/// `finalize` of a namespace changes `spec.finalizers` alone.
fn keep_but_finalizers(object: &mut Value, old: &Value) {
    let finalizers = object::at_mut(object, &["spec", "finalizers"]).take();
    *object = old.clone();
    *object::at_mut(object, &["spec", "finalizers"]) = finalizers;
}
