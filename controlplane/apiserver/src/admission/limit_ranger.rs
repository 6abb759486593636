//! LimitRanger: defaults and bounds of resources for containers, pods and claims of a namespace.
//!
//! Kubernetes 1.36 (`plugin/pkg/admission/limitranger`). A pod's resources change by its
//! creation and by `resize`; a claim may grow.

use super::pod_usage::{self, Amounts, Side, amounts};
use super::{AdmissionRequest, Operation, unreadable};
use crate::lookup::{Lookup, Meta, prefix};
use apimachinery::quantity::Quantity;
use apimachinery::status::ApiError;
use serde::Deserialize;
use serde_json::{Value, json};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LimitRange {
    metadata: Meta,
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    limits: Vec<Item>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Item {
    #[serde(rename = "type")]
    kind: String,
    max: Value,
    min: Value,
    default: Value,
    default_request: Value,
    max_limit_request_ratio: Value,
}

fn ranges(lookup: &Lookup, request: &AdmissionRequest<'_>) -> Result<Vec<LimitRange>, ApiError> {
    let pods = (request.operation == Operation::Create && request.is("", "pods"))
        || (request.operation == Operation::Update && request.is_part("", "pods", "resize"));
    let claims = request.writes() && request.is("", "persistentvolumeclaims");
    if !pods && !claims {
        return Ok(Vec::new());
    }
    lookup.list(prefix::LIMIT_RANGES, Some(request.namespace)).map_err(|error| unreadable(&error))
}

pub(super) fn admit(
    lookup: &Lookup,
    request: &AdmissionRequest<'_>,
    object: &mut Value,
) -> Result<(), ApiError> {
    if request.resource.plural != "pods" || request.operation != Operation::Create {
        return Ok(());
    }
    for range in ranges(lookup, request)? {
        tracing::debug!(range = range.metadata.name, "limit range gives defaults");
        set_defaults(&range.spec.limits, object);
    }
    Ok(())
}

/// Gives containers the default limits and requests they lack, and says so in an annotation.
fn set_defaults(items: &[Item], pod: &mut Value) {
    let of_containers = || items.iter().filter(|item| item.kind == "Container");
    let mut told = Vec::new();
    for (list, word) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for item in of_containers() {
                let sides = [("limits", &item.default), ("requests", &item.default_request)];
                let set = sides.map(|(side, wanted)| fill(container, side, wanted));
                if !set[1].is_empty() {
                    told.push(format!("{} request for {word} {name}", set[1].join(", ")));
                }
                if !set[0].is_empty() {
                    told.push(format!("{} limit for {word} {name}", set[0].join(", ")));
                }
            }
        }
    }
    if !told.is_empty() {
        let text = format!("LimitRanger plugin set: {}", told.join("; "));
        pod["metadata"]["annotations"][ANNOTATION] = json!(text);
    }
}

/// Adds what is missing; the names of what was added, sorted.
fn fill(container: &mut Value, side: &str, wanted: &Value) -> Vec<String> {
    let mut set = Vec::new();
    for (name, amount) in wanted.as_object().into_iter().flatten() {
        if container["resources"][side].get(name).is_none() {
            container["resources"][side][name] = amount.clone();
            set.push(name.clone());
        }
    }
    set.sort();
    set
}

pub(super) fn validate(
    lookup: &Lookup,
    request: &AdmissionRequest<'_>,
    object: &Value,
) -> Result<(), ApiError> {
    let mut problems = Vec::new();
    for range in ranges(lookup, request)? {
        for item in &range.spec.limits {
            check(item, request, object, &mut problems);
        }
    }
    match problems.as_slice() {
        [] => Ok(()),
        [one] => Err(request.forbidden(object, one)),
        many => Err(request.forbidden(object, format!("[{}]", many.join(", ")))),
    }
}

fn check(item: &Item, request: &AdmissionRequest<'_>, object: &Value, problems: &mut Vec<String>) {
    let pods = request.resource.plural == "pods";
    match item.kind.as_str() {
        "Container" if pods => {
            for list in ["containers", "initContainers"] {
                for container in object["spec"][list].as_array().into_iter().flatten() {
                    let resources = &container["resources"];
                    let asked = (amounts(&resources["requests"]), amounts(&resources["limits"]));
                    bounds(item, &asked, problems);
                }
            }
        }
        "Pod" if pods => {
            let of = |side| pod_usage::of_pod(object, side);
            bounds(item, &(of(Side::Requests), of(Side::Limits)), problems);
        }
        "PersistentVolumeClaim" if !pods => {
            let requests = amounts(&object["spec"]["resources"]["requests"]);
            claim_bounds(item, &requests, problems);
        }
        _ => {}
    }
}

fn bounds(item: &Item, (requests, limits): &(Amounts, Amounts), problems: &mut Vec<String>) {
    let kind = &item.kind;
    for (name, bound) in amounts(&item.min) {
        let head = format!("minimum {name} usage per {kind} is {bound}");
        match (requests.get(&name), limits.get(&name)) {
            (None, _) => problems.push(format!("{head}.  No request is specified")),
            (Some(request), _) if *request < bound => {
                problems.push(format!("{head}, but request is {request}"));
            }
            (_, Some(limit)) if *limit < bound => {
                problems.push(format!("{head}, but limit is {limit}"));
            }
            _ => {}
        }
    }
    for (name, bound) in amounts(&item.max) {
        let head = format!("maximum {name} usage per {kind} is {bound}");
        match (requests.get(&name), limits.get(&name)) {
            (_, None) => problems.push(format!("{head}.  No limit is specified")),
            (_, Some(limit)) if *limit > bound => {
                problems.push(format!("{head}, but limit is {limit}"));
            }
            (Some(request), _) if *request > bound => {
                problems.push(format!("{head}, but request is {request}"));
            }
            _ => {}
        }
    }
    for (name, bound) in amounts(&item.max_limit_request_ratio) {
        let head = format!("{name} max limit to request ratio per {kind} is {bound}");
        let positive = |amount: &&Quantity| !amount.is_zero();
        match (requests.get(&name).filter(positive), limits.get(&name).filter(positive)) {
            (None, _) => {
                problems.push(format!("{head}, but no request is specified or request is 0"))
            }
            (_, None) => {
                problems.push(format!("{head}, but no limit is specified or limit is 0"));
            }
            (Some(request), Some(limit)) => {
                let ratio = ratio(*limit, *request);
                if ratio > ratio_of(bound) {
                    problems.push(format!("{head}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "upstream compares ratios as floating-point numbers")]
fn ratio(limit: Quantity, request: Quantity) -> f64 {
    limit.milli_value() as f64 / request.milli_value() as f64
}

#[allow(clippy::cast_precision_loss, reason = "upstream compares ratios as floating-point numbers")]
fn ratio_of(bound: Quantity) -> f64 {
    bound.milli_value() as f64 / 1000.0
}

fn claim_bounds(item: &Item, requests: &Amounts, problems: &mut Vec<String>) {
    let kind = &item.kind;
    for (name, bound) in amounts(&item.min) {
        match requests.get(&name) {
            None => problems.push(format!(
                "minimum {name} usage per {kind} is {bound}.  No request is specified"
            )),
            Some(request) if *request < bound => problems.push(format!(
                "minimum {name} usage per {kind} is {bound}, but request is {request}"
            )),
            Some(_) => {}
        }
    }
    for (name, bound) in amounts(&item.max) {
        match requests.get(&name) {
            None => problems.push(format!(
                "maximum {name} usage per {kind} is {bound}.  No request is specified"
            )),
            Some(request) if *request > bound => problems.push(format!(
                "maximum {name} usage per {kind} is {bound}, but request is {request}"
            )),
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(text: Value) -> Item {
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn defaults_fill_gaps_and_are_told() {
        let item = item(json!({"type": "Container", "default": {"cpu": "1", "memory": "1Gi"},
            "defaultRequest": {"cpu": "100m"}}));
        let mut pod = json!({"metadata": {}, "spec": {"containers": [
            {"name": "a", "resources": {"limits": {"cpu": "2"}}}]}});
        set_defaults(&[item], &mut pod);
        let resources = &pod["spec"]["containers"][0]["resources"];
        assert_eq!(resources["limits"], json!({"cpu": "2", "memory": "1Gi"}));
        assert_eq!(resources["requests"], json!({"cpu": "100m"}));
        let text =
            "LimitRanger plugin set: cpu request for container a; memory limit for container a";
        assert_eq!(pod["metadata"]["annotations"][ANNOTATION], text);
        assert!(pod["spec"].get("initContainers").is_none());
    }

    #[test]
    fn bounds_speak_as_upstream() {
        let item = item(json!({"type": "Container", "min": {"cpu": "100m"},
            "max": {"memory": "1Gi"}, "maxLimitRequestRatio": {"cpu": "2"}}));
        let mut problems = Vec::new();
        let asked = |requests: Value, limits: Value| (amounts(&requests), amounts(&limits));
        bounds(&item, &asked(json!({"cpu": "50m"}), json!({"cpu": "200m"})), &mut problems);
        assert_eq!(
            problems,
            [
                "minimum cpu usage per Container is 100m, but request is 50m",
                "maximum memory usage per Container is 1Gi.  No limit is specified",
                "cpu max limit to request ratio per Container is 2, but provided ratio is 4.000000",
            ]
        );
        problems.clear();
        let fine = asked(json!({"cpu": "1"}), json!({"cpu": "2", "memory": "1Gi"}));
        bounds(&item, &fine, &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
    }
}
