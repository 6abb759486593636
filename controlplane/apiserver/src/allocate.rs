//! What is given out to objects in the same transaction as they are stored: a Service's cluster addresses and node ports, and
//! what quotas account.
//! Every address and every port in use has a key of its own, so two writers, even two masters, cannot give it out twice.
//! Must not write by itself.

mod addresses;
mod ports;
mod service;

pub(crate) use addresses::first;

use apimachinery::{object, status::ApiError};
use serde_json::Value;

use crate::{ApiServer, Resource, quota, registry::Alongside};

fn is_service(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.plural == "services"
}

/// Gives a new object what it needs; also what has to be stored with it.
pub(crate) fn on_create(
    server: &ApiServer,
    resource: &Resource,
    object: &mut Value,
) -> Result<Alongside, ApiError> {
    let mut alongside = quota::on_create(server, resource, object)?;
    if is_service(resource) {
        alongside.merge(service::Allocator::new(server, object).create(object)?);
    }
    Ok(alongside)
}

/// Gives a changed object what it needs, and takes back what it no longer uses.
pub(crate) fn on_update(
    server: &ApiServer,
    resource: &Resource,
    object: &mut Value,
    old: &Value,
) -> Result<Alongside, ApiError> {
    let mut alongside = quota::on_update(server, resource, object, old)?;
    if is_service(resource) {
        alongside.merge(service::Allocator::new(server, old).update(object, old)?);
    }
    Ok(alongside)
}

/// Takes back what a removed object had.
pub(crate) fn on_delete(server: &ApiServer, resource: &Resource, old: &Value) -> Alongside {
    let mut alongside = quota::on_delete(server, resource, old);
    if is_service(resource) {
        alongside.merge(service::Allocator::new(server, old).release(old));
    }
    alongside
}

/// The list of strings at a path.
fn strings(object: &Value, path: &[&str]) -> Vec<String> {
    object::list(object, path).filter_map(Value::as_str).map(str::to_owned).collect()
}
