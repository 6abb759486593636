//! Resource names and amounts: of containers, pods, nodes, limit ranges and quotas.

use std::collections::BTreeSet;

use serde_json::Value;

use super::text::{Wrong, qualified_name};
use super::view::{NEGATIVE, entries, filled, has, invalid, items, shown, sub, text, texts};
use crate::field::{FieldError, FieldErrors, Path};
use crate::quantity::Quantity;

const CONTAINER: [&str; 3] = ["cpu", "ephemeral-storage", "memory"];
const STANDARD: [&str; 18] = [
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "storage",
];
const SERVICES: [&str; 2] = ["services.loadbalancers", "services.nodeports"];
const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];
/// Counted in whole numbers.
const WHOLE: [&str; 9] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];

fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && qualified_name(&format!("requests.{name}")).is_empty()
}

/// Whether requests may be lower than limits.
fn may_overcommit(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

fn resource_name(name: &str) -> Wrong {
    let wrong = qualified_name(name);
    let standard = STANDARD.contains(&name)
        || SERVICES.contains(&name)
        || is_huge_page(name)
        || name.strip_prefix("requests.").is_some_and(is_huge_page);
    if wrong.is_empty() && !name.contains('/') && !standard {
        return vec!["must be a standard resource type or fully qualified".to_owned()];
    }
    wrong
}

fn container_resource(name: &str) -> Wrong {
    let mut wrong = resource_name(name);
    if !name.contains('/') {
        if !CONTAINER.contains(&name) && !is_huge_page(name) {
            wrong.push("must be a standard resource for containers".to_owned());
        }
    } else if !is_native(name) && !is_extended(name) {
        wrong.push("doesn't follow extended resource name standard".to_owned());
    }
    wrong
}

fn quota_resource(name: &str) -> Wrong {
    let counted = name.strip_prefix("count/").is_some();
    let storage_class = name.contains(".storageclass.storage.k8s.io/");
    if counted || storage_class {
        return qualified_name(name);
    }
    let mut wrong = resource_name(name);
    if !name.contains('/') && (name == "storage") {
        wrong.push("must be a standard resource for quota".to_owned());
    }
    wrong
}

fn amount(value: &Value) -> Quantity {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// A quantity of a resource: not negative, whole where things are counted.
pub(super) fn quantity(errors: &mut FieldErrors, name: &str, value: &Value, path: &Path<'_>) {
    let amount = amount(value);
    if amount.sign() < 0 {
        errors.push(FieldError::invalid(path, value.clone(), NEGATIVE));
    }
    if (WHOLE.contains(&name) || is_extended(name)) && !amount.is_whole() {
        errors.push(FieldError::invalid(path, value.clone(), "must be an integer"));
    }
}

/// `resources` of a container.
pub(super) fn of_container(errors: &mut FieldErrors, resources: &Value, path: &Path<'_>) {
    requirements(errors, resources, container_resource, path);
}

/// `overhead` of a pod: read as limits.
pub(super) fn overhead(errors: &mut FieldErrors, overhead: &Value, path: &Path<'_>) {
    let limits = serde_json::json!({"limits": overhead});
    requirements(errors, &limits, container_resource, path);
}

/// `resources` of a whole pod.
pub(super) fn of_pod(errors: &mut FieldErrors, resources: &Value, path: &Path<'_>) {
    if has(resources, "claims") {
        let why = "claims cannot be set for Resources at pod-level";
        errors.push(FieldError::forbidden(&path.child("claims"), why));
    }
    for list in ["limits", "requests"] {
        let path = path.child(list);
        for (name, _) in entries(resources, list) {
            if resource_name(name).is_empty()
                && !matches!(name.as_str(), "cpu" | "memory")
                && !is_huge_page(name)
            {
                let known = ["cpu", "hugepages-", "memory"];
                errors.push(FieldError::not_supported(&path.key(name), name.as_str(), &known));
            }
        }
    }
    requirements(errors, resources, resource_name, path);
}

fn requirements(
    errors: &mut FieldErrors,
    resources: &Value,
    name_rule: fn(&str) -> Wrong,
    path: &Path<'_>,
) {
    let (limits, requests) = (path.child("limits"), path.child("requests"));
    for (name, value) in entries(resources, "limits") {
        let path = limits.key(name);
        invalid(errors, &path, name, name_rule(name));
        quantity(errors, name, value, &path);
        huge_page(errors, name, value, &path);
    }
    for (name, value) in entries(resources, "requests") {
        let path = requests.key(name);
        invalid(errors, &path, name, name_rule(name));
        quantity(errors, name, value, &path);
        let limit = shown(resources, "limits").get(name).cloned();
        match limit {
            Some(limit) => {
                let shown = limit.as_str().unwrap_or_default();
                if amount(value) != amount(&limit) && !may_overcommit(name) {
                    let why = format!("must be equal to {name} limit of {shown}");
                    errors.push(FieldError::invalid(&requests, value.clone(), why));
                } else if amount(value) > amount(&limit) {
                    let why = format!("must be less than or equal to {name} limit of {shown}");
                    errors.push(FieldError::invalid(&requests, value.clone(), why));
                }
            }
            None if !may_overcommit(name) => {
                let why = "Limit must be set for non overcommitable resources";
                errors.push(FieldError::required(&limits, why));
            }
            None => {}
        }
        huge_page(errors, name, value, &path);
    }
    let all: BTreeSet<&String> = ["limits", "requests"]
        .into_iter()
        .flat_map(|list| entries(resources, list).map(|(name, _)| name))
        .collect();
    let computing = all.iter().any(|name| matches!(name.as_str(), "cpu" | "memory"));
    if !computing && all.iter().any(|name| is_huge_page(name)) {
        errors.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
}

fn huge_page(errors: &mut FieldErrors, name: &str, value: &Value, path: &Path<'_>) {
    let Some(size) = name.strip_prefix("hugepages-") else { return };
    let size: Quantity = size.parse().unwrap_or_default();
    let divisible = size.value() > 0 && amount(value).value() % size.value() == 0;
    if !divisible {
        let shown = value.as_str().unwrap_or_default();
        let why = format!("{shown} is not positive integer multiple of {name}");
        errors.push(FieldError::invalid(path, shown, why));
    }
}

/// A LimitRange.
pub(super) fn limit_range(errors: &mut FieldErrors, object: &Value) {
    let (spec, root) = (sub(object, "spec"), Path::new("spec"));
    let path = root.child("limits");
    let mut kinds = BTreeSet::new();
    for (index, limit) in items(spec, "limits").iter().enumerate() {
        let path = path.index(index);
        let kind = text(limit, "type");
        let standard = ["Pod", "Container", "PersistentVolumeClaim"].contains(&kind);
        let mut wrong = qualified_name(kind);
        if wrong.is_empty() && !kind.contains('/') && !standard {
            wrong.push("must be a standard limit type or fully qualified".to_owned());
        }
        invalid(errors, &path.child("type"), kind, wrong);
        if !kinds.insert(kind) {
            errors.push(FieldError::duplicate(&path.child("type"), kind));
        }
        let rule =
            if matches!(kind, "Pod" | "Container") { container_resource } else { resource_name };
        for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            let path = path.child(list);
            if kind == "Pod" && list.starts_with("default") {
                if filled(limit, list) {
                    let why = "may not be specified when `type` is 'Pod'";
                    errors.push(FieldError::forbidden(&path, why));
                }
                continue;
            }
            for (name, _) in entries(limit, list) {
                invalid(errors, &path.key(name), name, rule(name));
            }
        }
        bounds(errors, limit, &path);
    }
}

fn bounds(errors: &mut FieldErrors, limit: &Value, path: &Path<'_>) {
    let rules = [
        ("min", "max", "min", "min value {a} is greater than max value {b}"),
        (
            "min",
            "defaultRequest",
            "defaultRequest",
            "min value {a} is greater than default request value {b}",
        ),
        (
            "defaultRequest",
            "max",
            "defaultRequest",
            "default request value {a} is greater than max value {b}",
        ),
        (
            "defaultRequest",
            "default",
            "defaultRequest",
            "default request value {a} is greater than default limit value {b}",
        ),
        ("min", "default", "default", "min value {a} is greater than default value {b}"),
        ("default", "max", "default", "default value {a} is greater than max value {b}"),
    ];
    for (low, high, at, why) in rules {
        let path = path.child(at);
        for (name, a) in entries(limit, low) {
            let Some(b) = shown(limit, high).get(name).cloned() else { continue };
            if amount(a) > amount(&b) {
                let (a, b) = (a.as_str().unwrap_or_default(), b.as_str().unwrap_or_default());
                let why = why.replace("{a}", a).replace("{b}", b);
                let value = shown(sub(limit, at), name);
                errors.push(FieldError::invalid(&path.key(name), value, why));
            }
        }
    }
}

/// A ResourceQuota.
pub(super) fn quota(errors: &mut FieldErrors, object: &Value) {
    let (spec, path) = (sub(object, "spec"), Path::new("spec"));
    let hard = path.child("hard");
    for (name, value) in entries(spec, "hard") {
        invalid(errors, &hard.key(name), name, quota_resource(name));
        quantity(errors, name, value, &hard.key(name));
    }
    let scopes = path.child("scopes");
    for _ in texts(spec, "scopes").filter(|scope| !SCOPES.contains(scope)) {
        errors.push(FieldError::invalid(&scopes, shown(spec, "scopes"), "unsupported scope"));
    }
    let all: BTreeSet<&str> = texts(spec, "scopes").collect();
    for (one, other) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if all.contains(one) && all.contains(other) {
            errors.push(FieldError::invalid(&scopes, shown(spec, "scopes"), "conflicting scopes"));
        }
    }
}
