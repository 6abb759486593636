//! Subresources that change or show a part of an object, and the resources that are answered without being stored.
//! Streams toward nodes are `stream`'s.

use apimachinery::{object, status::ApiError};
use http::Response;
use serde_json::Value;

use super::{
    Call, get, patch,
    update::{self, Part},
};
use crate::{body::Body, registry};

pub(crate) async fn run(call: &Call, body: Body) -> Result<Response<Body>, ApiError> {
    let verb = call.info.verb.as_str();
    let offered =
        call.resource.subresource(&call.info.subresource).is_some_and(|s| s.verbs.contains(&verb));
    let part = match (offered, call.info.subresource.as_str()) {
        (true, "status") => Part::STATUS,
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
pub(crate) async fn virtual_resource(call: &Call, _body: Body) -> Result<Response<Body>, ApiError> {
    Err(unsupported(call))
}

/// `finalize` of a namespace changes `spec.finalizers` alone.
fn keep_but_finalizers(object: &mut Value, old: &Value) {
    let finalizers = object::at_mut(object, &["spec", "finalizers"]).take();
    *object = old.clone();
    *object::at_mut(object, &["spec", "finalizers"]) = finalizers;
}
