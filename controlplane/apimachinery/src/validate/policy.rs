//! The smaller groups: disruption budgets, leases, storage classes, priority and runtime classes, autoscalers, signing requests.

use serde_json::Value;

use super::meta::label_selector;
use super::text::{dns1123_label, qualified_name};
use super::view::{
    IMMUTABLE, filled, get, has, immutable, int, invalid, one_of_if_there, shown, sub, text, texts,
};
use super::workload::{at_most_all, int_or_percent};
use crate::field::{FieldError, FieldErrors, Path};
use crate::object;

const SPEC: Path<'static> = Path::new("spec");
/// Higher priorities are the system's.
const USER_PRIORITY_MAX: i64 = 1_000_000_000;
const SYSTEM_PRIORITIES: [(&str, i64); 2] =
    [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

/// One of these kinds; unknown ones pass.
pub(super) fn validate(errors: &mut FieldErrors, (group, kind): (&str, &str), object: &Value) {
    let spec = sub(object, "spec");
    match (group, kind) {
        ("policy", "PodDisruptionBudget") => disruption_budget(errors, spec),
        ("coordination.k8s.io", "Lease") => {
            let rules = [
                ("leaseDurationSeconds", 1, "must be greater than 0"),
                ("leaseTransitions", 0, super::view::NEGATIVE),
            ];
            for (key, low, why) in rules {
                if let Some(number) = int(spec, key).filter(|number| *number < low) {
                    errors.push(FieldError::invalid(&SPEC.child(key), number, why));
                }
            }
        }
        ("storage.k8s.io", "StorageClass") => storage_class(errors, object),
        ("scheduling.k8s.io", "PriorityClass") => priority_class(errors, object),
        ("node.k8s.io", "RuntimeClass") => {
            let handler = text(object, "handler");
            invalid(errors, &Path::new("handler"), handler, dns1123_label(handler));
        }
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaler(errors, spec),
        ("certificates.k8s.io", "CertificateSigningRequest") => signing_request(errors, spec),
        _ => {}
    }
}

fn disruption_budget(errors: &mut FieldErrors, spec: &Value) {
    if has(spec, "minAvailable") && has(spec, "maxUnavailable") {
        let why = "minAvailable and maxUnavailable cannot be both set";
        errors.push(FieldError::invalid(&SPEC, spec.clone(), why));
    }
    for key in ["minAvailable", "maxUnavailable"] {
        if has(spec, key) {
            int_or_percent(errors, spec, key, &SPEC);
            at_most_all(errors, spec, key, &SPEC);
        }
    }
    if let Some(selector) = get(spec, "selector") {
        label_selector(errors, selector, &SPEC.child("selector"));
    }
    let policies = ["AlwaysAllow", "IfHealthyBudget"];
    one_of_if_there(errors, spec, "unhealthyPodEvictionPolicy", &policies, &SPEC);
}

fn top(errors: &mut FieldErrors, object: &Value, key: &str, known: &[&str]) {
    let path = Path::new(key);
    match text(object, key) {
        "" => errors.push(FieldError::required(&path, "")),
        value if known.contains(&value) => {}
        value => errors.push(FieldError::not_supported(&path, value, known)),
    }
}

fn storage_class(errors: &mut FieldErrors, object: &Value) {
    let provisioner = text(object, "provisioner");
    let path = Path::new("provisioner");
    if provisioner.is_empty() {
        errors.push(FieldError::required(&path, ""));
    } else {
        invalid(errors, &path, provisioner, qualified_name(&provisioner.to_lowercase()));
    }
    if has(object, "reclaimPolicy") {
        top(errors, object, "reclaimPolicy", &["Delete", "Retain"]);
    }
    top(errors, object, "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]);
}

fn priority_class(errors: &mut FieldErrors, object: &Value) {
    let (name, value) = (object::name(object), int(object, "value").unwrap_or_default());
    if name.starts_with("system-") {
        let known = SYSTEM_PRIORITIES.iter().find(|(known, _)| *known == name);
        let why = match known {
            Some((_, wanted)) if *wanted == value => None,
            Some((_, wanted)) => Some(format!("value of {name} PriorityClass must be {wanted}")),
            None => Some(format!("{name} is not a known system priority class")),
        };
        if let Some(why) = why {
            let metadata = Path::new("metadata");
            let why = format!(
                "priority class names with 'system-' prefix are reserved for system use only. error: {why}"
            );
            errors.push(FieldError::forbidden(&metadata.child("name"), why));
        }
    } else if value > USER_PRIORITY_MAX {
        let why =
            format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}");
        errors.push(FieldError::forbidden(&Path::new("value"), why));
    }
    if has(object, "preemptionPolicy") {
        top(errors, object, "preemptionPolicy", &["PreemptLowerPriority", "Never"]);
    }
}

fn autoscaler(errors: &mut FieldErrors, spec: &Value) {
    let (low, high) = (int(spec, "minReplicas"), int(spec, "maxReplicas").unwrap_or_default());
    if let Some(low) = low.filter(|low| *low < 1) {
        let why = "must be greater than or equal to 1";
        errors.push(FieldError::invalid(&SPEC.child("minReplicas"), low, why));
    }
    let path = SPEC.child("maxReplicas");
    if high < 1 {
        errors.push(FieldError::invalid(&path, high, "must be greater than 0"));
    }
    if low.is_some_and(|low| high < low) {
        errors.push(FieldError::invalid(
            &path,
            high,
            "must be greater than or equal to `minReplicas`",
        ));
    }
    let (target, path) = (sub(spec, "scaleTargetRef"), SPEC.child("scaleTargetRef"));
    for key in ["kind", "name"] {
        match text(target, key) {
            "" => errors.push(FieldError::required(&path.child(key), "")),
            value => {
                let wrong = super::text::path_segment_name(value);
                invalid(errors, &path.child(key), value, wrong);
            }
        }
    }
}

fn signing_request(errors: &mut FieldErrors, spec: &Value) {
    if !filled(spec, "usages") {
        let why = "usages must contain at least one value";
        errors.push(FieldError::required(&SPEC.child("usages"), why));
    }
    for key in ["request", "signerName"].into_iter().filter(|key| !filled(spec, key)) {
        errors.push(FieldError::required(&SPEC.child(key), ""));
    }
    let signer = text(spec, "signerName");
    let fits =
        signer.split_once('/').is_some_and(|(host, name)| host.contains('.') && !name.is_empty());
    if !signer.is_empty() && !fits {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.push(FieldError::invalid(&SPEC.child("signerName"), signer, why));
    }
    let path = SPEC.child("expirationSeconds");
    if let Some(seconds) = int(spec, "expirationSeconds").filter(|seconds| *seconds < 600) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(FieldError::invalid(&path, seconds, why));
    }
    let mut seen = std::collections::BTreeSet::new();
    let usages = SPEC.child("usages");
    for (index, usage) in texts(spec, "usages").enumerate() {
        if !seen.insert(usage) {
            errors.push(FieldError::duplicate(&usages.index(index), usage));
        }
    }
}

/// What of these kinds must not change.
pub(super) fn update(
    errors: &mut FieldErrors,
    (group, kind): (&str, &str),
    (object, old): (&Value, &Value),
) {
    let fixed = |errors: &mut FieldErrors, key: &str| {
        if get(object, key) != get(old, key) {
            errors.push(FieldError::invalid(&Path::new(key), shown(object, key), IMMUTABLE));
        }
    };
    let forbidden = |errors: &mut FieldErrors, key: &str, why: &str| {
        if get(object, key) != get(old, key) {
            errors.push(FieldError::forbidden(&Path::new(key), why));
        }
    };
    match (group, kind) {
        ("storage.k8s.io", "StorageClass") => {
            forbidden(errors, "parameters", "updates to parameters are forbidden.");
            forbidden(errors, "provisioner", "updates to provisioner are forbidden.");
            forbidden(errors, "reclaimPolicy", "updates to reclaimPolicy are forbidden.");
            fixed(errors, "volumeBindingMode");
        }
        ("scheduling.k8s.io", "PriorityClass") => {
            forbidden(errors, "value", "may not be changed in an update.");
            fixed(errors, "preemptionPolicy");
        }
        ("node.k8s.io", "RuntimeClass") => fixed(errors, "handler"),
        ("networking.k8s.io", "IngressClass") => {
            let pair = (sub(object, "spec"), sub(old, "spec"));
            immutable(errors, pair, "controller", &SPEC);
        }
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            let pair = (sub(object, "spec"), sub(old, "spec"));
            immutable(errors, pair, "request", &SPEC);
            immutable(errors, pair, "signerName", &SPEC);
        }
        _ => {}
    }
}
