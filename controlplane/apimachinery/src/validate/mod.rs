//! What is valid: names, labels, ports, addresses, metadata, and then kind by kind, in upstream's words and order.
//! Must not change what it looks at. Objects are conformed to their schema and defaulted before.

mod batch;
mod config;
mod meta;
mod network;
mod node;
mod pod;
mod policy;
mod rbac;
mod resources;
mod schedule;
mod semantic;
mod service;
mod text;
mod view;
mod volume;
mod workload;

use serde_json::Value;

pub use meta::{is_namespaced, object_name};
pub use text::*;

use crate::field::FieldErrors;
use crate::gvk::GroupVersionKind;

/// What is wrong with a new object: metadata, then the kind's own rules.
pub fn validate_create(gvk: GroupVersionKind<'_>, object: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    meta::create(&mut errors, gvk, object);
    kind(&mut errors, gvk, object);
    if (gvk.group, gvk.kind) == ("", "Pod") {
        pod::create(&mut errors, object);
    }
    errors
}

/// What is wrong with a changed object: metadata, what must not change, then the kind's own rules.
pub fn validate_update(gvk: GroupVersionKind<'_>, object: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    meta::update(&mut errors, object, old);
    let pair = (object, old);
    match (gvk.group, gvk.kind) {
        ("", "Pod") => {
            kind(&mut errors, gvk, object);
            pod::update(&mut errors, pair);
            return errors;
        }
        ("", "Service") => service::update(&mut errors, pair),
        ("", "Secret" | "ConfigMap") => config::update(&mut errors, gvk.kind, pair),
        ("", "Node") => node::update(&mut errors, pair),
        ("", "PersistentVolume") => volume::update_volume(&mut errors, pair),
        ("", "PersistentVolumeClaim") => volume::update_claim(&mut errors, pair),
        ("apps", _) => workload::update(&mut errors, gvk.kind, pair),
        ("batch", "Job") => batch::update_job(&mut errors, pair),
        ("rbac.authorization.k8s.io", _) => rbac::update(&mut errors, gvk.kind, pair),
        ("discovery.k8s.io", "EndpointSlice") => network::update_slice(&mut errors, pair),
        (group, kind) => policy::update(&mut errors, (group, kind), pair),
    }
    kind(&mut errors, gvk, object);
    errors
}

/// What is wrong with a change of the status alone.
pub fn validate_status_update(
    gvk: GroupVersionKind<'_>,
    object: &Value,
    old: &Value,
) -> FieldErrors {
    let mut errors = FieldErrors::new();
    meta::update(&mut errors, object, old);
    match (gvk.group, gvk.kind) {
        ("", "Pod") => pod::update_status(&mut errors, (object, old)),
        ("", "Node") => node::resources(&mut errors, object),
        ("apps", _) => workload::status(&mut errors, object),
        _ => {}
    }
    errors
}

/// What is wrong with metadata, and the kind's own rules: for subresources that change a part of the spec and say themselves what of
/// it may change (a pod's resize and ephemeral containers).
pub fn validate_part(gvk: GroupVersionKind<'_>, object: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    meta::update(&mut errors, object, old);
    kind(&mut errors, gvk, object);
    errors
}

fn kind(errors: &mut FieldErrors, gvk: GroupVersionKind<'_>, object: &Value) {
    match (gvk.group, gvk.kind) {
        ("", "Pod") => pod::pod(errors, object),
        ("", "PodTemplate") => {
            let template = view::shown(object, "template");
            pod::template(errors, &template, &crate::field::Path::new("template"));
        }
        ("", "Service") => service::service(errors, object),
        ("", "ReplicationController") => workload::replication_controller(errors, object),
        ("", "ConfigMap" | "Secret" | "Event" | "Binding") => {
            config::validate(errors, gvk.kind, object);
        }
        ("", "Node") => node::node(errors, object),
        ("", "Endpoints") => network::endpoints(errors, object),
        ("", "PersistentVolume") => volume::volume(errors, object),
        ("", "PersistentVolumeClaim") => volume::claim(errors, object),
        ("", "LimitRange") => resources::limit_range(errors, object),
        ("", "ResourceQuota") => resources::quota(errors, object),
        ("apps", kind) => workload::validate(errors, kind, object),
        ("batch", "Job") => batch::job(errors, object),
        ("batch", "CronJob") => batch::cron_job(errors, object),
        ("networking.k8s.io", kind) => network::validate(errors, kind, object),
        ("discovery.k8s.io", "EndpointSlice") => network::slice(errors, object),
        ("rbac.authorization.k8s.io", kind) => rbac::validate(errors, kind, object),
        (group, kind) => policy::validate(errors, (group, kind), object),
    }
}

#[cfg(test)]
mod tests;
