//! Subresources that change or show a part of an object, and the resources that are answered without being stored.
//! Streams toward nodes are `stream`'s.

mod approval;
mod binding;
mod eviction;
mod pod;
mod review;
mod scale;
mod token;

use apimachinery::{object, status::ApiError};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{
    Call, get, patch,
    update::{self, Part},
};
use crate::{body::Body, registry, respond};

pub(crate) async fn run(call: &Call, body: Body) -> Result<Response<Body>, ApiError> {
    let verb = call.info.verb.as_str();
    let part = match (call.resource.plural.as_str(), call.info.subresource.as_str()) {
        (_, "scale") => return Box::pin(scale::run(call, body)).await,
        ("pods", "binding") => return Box::pin(binding::run(call, body)).await,
        ("pods", "eviction") => return Box::pin(eviction::run(call, body)).await,
        ("serviceaccounts", "token") => return token::run(call, body).await,
        ("certificatesigningrequests", "approval") => approval::APPROVAL,
        ("certificatesigningrequests", "status") => approval::STATUS,
        ("pods", "ephemeralcontainers") => pod::EPHEMERAL_CONTAINERS,
        ("pods", "resize") => pod::RESIZE,
        ("namespaces", "finalize") => Part { isolate: keep_but_finalizers, ..Part::STATUS },
        (_, "status") => Part::STATUS,
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

/// Reviews, bindings and component statuses.
pub(crate) async fn virtual_resource(call: &Call, body: Body) -> Result<Response<Body>, ApiError> {
    match call.resource.plural.as_str() {
        "bindings" => Box::pin(binding::run(call, body)).await,
        "componentstatuses" => component_statuses(call),
        _ if call.resource.group.starts_with("auth") => review::run(call, body).await,
        _ => Err(unsupported(call)),
    }
}

/// `finalize` of a namespace changes `spec.finalizers` alone.
fn keep_but_finalizers(object: &mut Value, old: &Value) {
    let finalizers = object::at_mut(object, &["spec", "finalizers"]).take();
    let version = object::resource_version(object).to_owned();
    *object = old.clone();
    *object::at_mut(object, &["spec", "finalizers"]) = finalizers;
    *object::at_mut(object, &["metadata", "resourceVersion"]) = version.into();
}

/// The one component behind this API that is not a pod: the store, under its old name.
fn component_statuses(call: &Call) -> Result<Response<Body>, ApiError> {
    let etcd = json!({"apiVersion": "v1", "kind": "ComponentStatus", "metadata": {"name": "etcd-0"},
        "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}]});
    match call.name() {
        "" => {
            let view = crate::view::View { resource: call.resource.clone(), form: call.form };
            let list = view.list_of(vec![etcd], &json!({}));
            Ok(respond::value(&call.answer, StatusCode::OK, &list))
        }
        "etcd-0" => Ok(respond::object(call, StatusCode::OK, etcd)),
        name => Err(ApiError::not_found(registry::group_resource(&call.resource), name)),
    }
}

/// `{"kind": "Status", "status": "Success"}` with the status of something created.
fn created(call: &Call) -> Response<Body> {
    let success = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "code": StatusCode::CREATED.as_u16()});
    respond::value(&call.answer, StatusCode::CREATED, &success)
}
