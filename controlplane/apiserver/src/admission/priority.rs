//! Priority: a pod's priority class becomes its number and its preemption policy.

use super::{AdmissionRequest, Operation, unreadable};
use crate::lookup::{Lookup, Meta, prefix};
use apimachinery::status::ApiError;
use serde::Deserialize;
use serde_json::{Value, json};

const DEFAULT_POLICY: &str = "PreemptLowerPriority";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Class {
    metadata: Meta,
    value: i64,
    global_default: bool,
    preemption_policy: Option<String>,
}

pub(super) fn admit(
    lookup: &Lookup,
    request: &AdmissionRequest<'_>,
    object: &mut Value,
) -> Result<(), ApiError> {
    match request.operation {
        Operation::Create if request.is("", "pods") => resolve(lookup, request, object),
        Operation::Update if request.is("", "pods") => {
            keep(request.old, object);
            Ok(())
        }
        Operation::Create | Operation::Update
            if request.is("scheduling.k8s.io", "priorityclasses") =>
        {
            one_default(lookup, request, object)
        }
        _ => Ok(()),
    }
}

/// A client that sends no priority on an update means "unchanged".
fn keep(old: Option<&Value>, pod: &mut Value) {
    let Some(old) = old else { return };
    for member in ["priority", "preemptionPolicy"] {
        if pod["spec"][member].is_null() && !old["spec"][member].is_null() {
            pod["spec"][member] = old["spec"][member].clone();
        }
    }
}

fn resolve(
    lookup: &Lookup,
    request: &AdmissionRequest<'_>,
    pod: &mut Value,
) -> Result<(), ApiError> {
    let name = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let class = match name.as_str() {
        "" => default_class(lookup)?,
        name => Some(named(lookup, request, pod, name)?),
    };
    let value = class.as_ref().map_or(0, |class| class.value);
    let policy = class.as_ref().and_then(|class| class.preemption_policy.as_deref());
    let policy = policy.unwrap_or(DEFAULT_POLICY);
    let given = &pod["spec"]["priority"];
    if !given.is_null() && given.as_i64() != Some(value) {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(request.forbidden(pod, why));
    }
    let given = pod["spec"]["preemptionPolicy"].as_str();
    if let Some(given) = given.filter(|given| *given != policy) {
        let why = format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        );
        return Err(request.forbidden(pod, why));
    }
    if let (true, Some(class)) = (name.is_empty(), &class) {
        pod["spec"]["priorityClassName"] = json!(class.metadata.name);
    }
    pod["spec"]["priority"] = json!(value);
    pod["spec"]["preemptionPolicy"] = json!(policy);
    Ok(())
}

fn named(
    lookup: &Lookup,
    request: &AdmissionRequest<'_>,
    pod: &Value,
    name: &str,
) -> Result<Class, ApiError> {
    lookup
        .get(prefix::PRIORITY_CLASSES, None, name)
        .map_err(|error| unreadable(&error))?
        .ok_or_else(|| {
            request.forbidden(pod, format!("no PriorityClass with name {name} was found"))
        })
}

/// The default class with the lowest value, as upstream takes it when there are several.
fn default_class(lookup: &Lookup) -> Result<Option<Class>, ApiError> {
    let classes: Vec<Class> =
        lookup.list(prefix::PRIORITY_CLASSES, None).map_err(|error| unreadable(&error))?;
    Ok(classes.into_iter().filter(|class| class.global_default).min_by_key(|class| class.value))
}

fn one_default(
    lookup: &Lookup,
    request: &AdmissionRequest<'_>,
    class: &Value,
) -> Result<(), ApiError> {
    if class["globalDefault"] != true {
        return Ok(());
    }
    match default_class(lookup)? {
        Some(other) if class["metadata"]["name"] != other.metadata.name => {
            let why = format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                other.metadata.name
            );
            Err(request.forbidden(class, why))
        }
        _ => Ok(()),
    }
}
