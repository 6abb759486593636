//! Which objects a quota with scopes is about. Pure; Kubernetes 1.36. A quota with scopes is about pods alone.

use serde_json::Value;

use crate::{
    Resource,
    admission::pod_usage::{Side, of_pod},
};

/// Whether the quota counts the object.
pub(super) fn matches(quota: &Value, resource: &Resource, object: &Value) -> bool {
    let scopes = quota["spec"]["scopes"].as_array().into_iter().flatten();
    let terms = quota["spec"]["scopeSelector"]["matchExpressions"].as_array();
    let mut terms = terms.into_iter().flatten().peekable();
    let mut scopes = scopes.peekable();
    if scopes.peek().is_none() && terms.peek().is_none() {
        return true;
    }
    if !resource.group.is_empty() || resource.plural != "pods" {
        return false;
    }
    scopes.all(|scope| has_scope(scope.as_str().unwrap_or_default(), object))
        && terms.all(|term| has_term(term, object))
}

fn has_term(term: &Value, pod: &Value) -> bool {
    let text = |name: &str| term[name].as_str().unwrap_or_default();
    let (scope, operator) = (text("scopeName"), text("operator"));
    if scope != "PriorityClass" {
        return operator == "Exists" && has_scope(scope, pod);
    }
    let class = pod["spec"]["priorityClassName"].as_str().unwrap_or_default();
    let listed = term["values"].as_array().into_iter().flatten().any(|value| value == class);
    match operator {
        "In" => !class.is_empty() && listed,
        "NotIn" => !listed,
        "Exists" => !class.is_empty(),
        "DoesNotExist" => class.is_empty(),
        _ => false,
    }
}

fn has_scope(scope: &str, pod: &Value) -> bool {
    let deadline =
        pod["spec"]["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0);
    match scope {
        "Terminating" => deadline,
        "NotTerminating" => !deadline,
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => {
            pod["spec"]["priorityClassName"].as_str().is_some_and(|class| !class.is_empty())
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

/// Nothing is asked for and nothing is limited.
fn is_best_effort(pod: &Value) -> bool {
    [Side::Requests, Side::Limits].into_iter().all(|side| {
        let amounts = of_pod(pod, side);
        ["cpu", "memory"].iter().all(|name| amounts.get(*name).is_none_or(|a| a.is_zero()))
    })
}

fn crosses_namespaces(pod: &Value) -> bool {
    let terms = |kind: &str| {
        let affinity = &pod["spec"]["affinity"][kind];
        let required = affinity["requiredDuringSchedulingIgnoredDuringExecution"].as_array();
        let preferred = affinity["preferredDuringSchedulingIgnoredDuringExecution"].as_array();
        let preferred = preferred.into_iter().flatten().map(|term| &term["podAffinityTerm"]);
        required.into_iter().flatten().chain(preferred).cloned().collect::<Vec<_>>()
    };
    ["podAffinity", "podAntiAffinity"].iter().flat_map(|kind| terms(kind)).any(|term| {
        let named = term["namespaces"].as_array().is_some_and(|list| !list.is_empty());
        named || !term["namespaceSelector"].is_null()
    })
}
