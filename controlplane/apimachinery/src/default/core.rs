//! Defaults of the core group (`pkg/apis/core/v1/defaults.go`, Kubernetes 1.36); pods have a file of their own.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{child, each, empty, fill, is_empty, made, pod, round_resources, set, set_zero, text};
use crate::object::Object;

pub(super) fn apply(kind: &str, object: &mut Object) {
    match kind {
        "Pod" => pod::pod(object),
        "PodTemplate" => pod::template(made(object, "template")),
        "ReplicationController" => replication_controller(object),
        "Service" => service(object),
        "Secret" => secret(object),
        "Endpoints" => {
            for port in each(object, "subsets").flat_map(|subset| each(subset, "ports")) {
                set_zero(port, "protocol", "TCP");
            }
        }
        "PersistentVolume" => {
            let spec = made(object, "spec");
            set_zero(spec, "persistentVolumeReclaimPolicy", "Retain");
            set(spec, "volumeMode", "Filesystem");
            round_resources(spec, "capacity");
            pod::source(spec);
            set_zero(made(object, "status"), "phase", "Pending");
        }
        "PersistentVolumeClaim" => claim(object),
        "Namespace" => namespace(object),
        "Node" => {
            made(object, "spec");
            let status = made(object, "status");
            round_resources(status, "capacity");
            round_resources(status, "allocatable");
            if !is_empty(status, "capacity") && status.get("allocatable").is_none() {
                fill(status, "allocatable", "capacity");
            }
        }
        "LimitRange" => each(made(object, "spec"), "limits").for_each(limit),
        "ResourceQuota" => {
            round_resources(made(object, "spec"), "hard");
            let status = made(object, "status");
            round_resources(status, "hard");
            round_resources(status, "used");
        }
        _ => {}
    }
}

fn replication_controller(object: &mut Object) {
    let labels = template_labels(object);
    let spec = made(object, "spec");
    set(spec, "replicas", 1);
    if let Some(labels) = &labels
        && is_empty(spec, "selector")
    {
        spec.insert("selector".to_owned(), labels.clone());
    }
    if let Some(template) = child(spec, "template") {
        pod::template(template);
    }
    default_labels(object, labels);
    set(made(object, "status"), "replicas", 0);
}

/// The labels of the object's pod template.
pub(super) fn template_labels(object: &Object) -> Option<Value> {
    object.get("spec")?.get("template")?.get("metadata")?.get("labels").cloned()
}

/// Labels for an object that has none.
pub(super) fn default_labels(object: &mut Object, labels: Option<Value>) {
    let metadata = made(object, "metadata");
    if let Some(labels) = labels
        && is_empty(metadata, "labels")
    {
        metadata.insert("labels".to_owned(), labels);
    }
}

fn service(object: &mut Object) {
    let spec = made(object, "spec");
    set_zero(spec, "sessionAffinity", "None");
    match text(spec, "sessionAffinity") {
        "None" => drop(spec.remove("sessionAffinityConfig")),
        "ClientIP" => {
            let config = made(made(spec, "sessionAffinityConfig"), "clientIP");
            set(config, "timeoutSeconds", 10_800);
        }
        _ => {}
    }
    set_zero(spec, "type", "ClusterIP");
    for port in each(spec, "ports") {
        set_zero(port, "protocol", "TCP");
        let number = port.get("port").cloned().unwrap_or_else(|| 0.into());
        set_zero(port, "targetPort", number);
    }
    let kind = text(spec, "type").to_owned();
    let external_ips = kind == "ClusterIP" && !is_empty(spec, "externalIPs");
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") || external_ips {
        set_zero(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        set(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
    }
    let balancer = made(made(object, "status"), "loadBalancer");
    if kind == "LoadBalancer" {
        for ingress in each(balancer, "ingress").filter(|ingress| !is_empty(ingress, "ip")) {
            set(ingress, "ipMode", "VIP");
        }
    }
}

/// `stringData` is for writing only: it ends up in `data`.
fn secret(object: &mut Object) {
    set_zero(object, "type", "Opaque");
    if let Some(Value::Object(plain)) = object.remove("stringData") {
        for (key, value) in plain {
            let bytes = STANDARD.encode(value.as_str().unwrap_or_default());
            made(object, "data").insert(key, bytes.into());
        }
    }
}

/// Defaults of a claim.
pub(super) fn claim(object: &mut Object) {
    pod::claim_spec(made(object, "spec"));
    let status = made(object, "status");
    set_zero(status, "phase", "Pending");
    round_resources(status, "capacity");
    round_resources(status, "allocatedResources");
}

fn namespace(object: &mut Object) {
    let metadata = made(object, "metadata");
    let name = text(metadata, "name").to_owned();
    if !name.is_empty() {
        made(metadata, "labels").insert("kubernetes.io/metadata.name".to_owned(), name.into());
    }
    made(object, "spec");
    set_zero(made(object, "status"), "phase", "Active");
}

fn limit(limit: &mut Object) {
    let lists = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];
    for list in lists {
        round_resources(limit, list);
    }
    if text(limit, "type") == "Container" {
        fill(limit, "default", "max");
        fill(limit, "defaultRequest", "default");
        fill(limit, "defaultRequest", "min");
    }
}

/// A claim as Go writes it within a list of templates.
pub(super) fn claim_template(template: &mut Object) {
    set(template, "kind", "PersistentVolumeClaim");
    set(template, "apiVersion", json!("v1"));
    set(template, "metadata", empty());
    claim(template);
}
