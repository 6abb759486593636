//! RuntimeClass: a pod's overhead and scheduling constraints come from its runtime class.

use super::{AdmissionRequest, Operation, unreadable};
use crate::lookup::{Lookup, prefix};
use apimachinery::field::quote;
use apimachinery::status::ApiError;
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Class {
    overhead: Option<Overhead>,
    scheduling: Option<Scheduling>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Overhead {
    pod_fixed: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Scheduling {
    node_selector: Map<String, Value>,
    tolerations: Vec<Value>,
}

pub(super) fn admit(
    lookup: &Lookup,
    request: &AdmissionRequest<'_>,
    pod: &mut Value,
) -> Result<(), ApiError> {
    if request.operation != Operation::Create || !request.is("", "pods") {
        return Ok(());
    }
    let class = match pod["spec"]["runtimeClassName"].as_str() {
        None => Class::default(),
        Some(name) => lookup
            .get(prefix::RUNTIME_CLASSES, None, name)
            .map_err(|error| unreadable(&error))?
            .ok_or_else(|| {
                let why = format!("pod rejected: RuntimeClass {} not found", quote(name));
                request.forbidden(pod, why)
            })?,
    };
    set_overhead(request, pod, class.overhead)?;
    match class.scheduling {
        Some(scheduling) => schedule(request, pod, scheduling),
        None => Ok(()),
    }
}

fn set_overhead(
    request: &AdmissionRequest<'_>,
    pod: &mut Value,
    overhead: Option<Overhead>,
) -> Result<(), ApiError> {
    let given = pod["spec"].get("overhead").filter(|given| !given.is_null());
    let why = match (given, overhead) {
        (None, None) => return Ok(()),
        (None, Some(overhead)) => {
            pod["spec"]["overhead"] = overhead.pod_fixed;
            return Ok(());
        }
        (Some(given), Some(overhead)) if *given == overhead.pod_fixed => return Ok(()),
        (Some(_), Some(_)) => {
            "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"
        }
        (Some(_), None) => {
            "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"
        }
    };
    Err(request.forbidden(pod, why))
}

fn schedule(
    request: &AdmissionRequest<'_>,
    pod: &mut Value,
    scheduling: Scheduling,
) -> Result<(), ApiError> {
    for (key, value) in scheduling.node_selector {
        let have = &pod["spec"]["nodeSelector"][&key];
        if !have.is_null() && *have != value {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let why = format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                text(&value),
                text(have)
            );
            return Err(request.forbidden(pod, why));
        }
        pod["spec"]["nodeSelector"][key] = value;
    }
    if scheduling.tolerations.is_empty() {
        return Ok(());
    }
    if !pod["spec"]["tolerations"].is_array() {
        pod["spec"]["tolerations"] = json!([]);
    }
    let Some(tolerations) = pod["spec"]["tolerations"].as_array_mut() else { return Ok(()) };
    for toleration in scheduling.tolerations {
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
    Ok(())
}
