//! Affinity, tolerations, taints and topology spread: what tells the scheduler where pods may go.

use std::collections::BTreeSet;

use serde_json::Value;

use super::meta::label_selector;
use super::text::{dns1123_label, dns1123_subdomain, label_value, qualified_name};
use super::view::{get, has, int, invalid, items, shown, sub, text, texts};
use crate::field::{FieldError, FieldErrors, Path};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// `spec.affinity`
pub(super) fn affinity(errors: &mut FieldErrors, affinity: &Value, path: &Path<'_>) {
    if let Some(node) = get(affinity, "nodeAffinity") {
        node_affinity(errors, node, &path.child("nodeAffinity"));
    }
    for name in ["podAffinity", "podAntiAffinity"] {
        if let Some(pods) = get(affinity, name) {
            pod_affinity(errors, pods, &path.child(name));
        }
    }
}

fn weight(errors: &mut FieldErrors, term: &Value, path: &Path<'_>) {
    let weight = int(term, "weight").unwrap_or_default();
    if !(1..=100).contains(&weight) {
        let why = "must be in the range 1-100";
        errors.push(FieldError::invalid(&path.child("weight"), weight, why));
    }
}

fn node_affinity(errors: &mut FieldErrors, affinity: &Value, path: &Path<'_>) {
    if let Some(selector) = get(affinity, REQUIRED) {
        node_selector(errors, selector, &path.child(REQUIRED));
    }
    let preferred = path.child(PREFERRED);
    for (index, term) in items(affinity, PREFERRED).iter().enumerate() {
        let path = preferred.index(index);
        weight(errors, term, &path);
        node_term(errors, sub(term, "preference"), &path.child("preference"));
    }
}

/// A `NodeSelector`, as in node affinity and persistent volumes.
pub(super) fn node_selector(errors: &mut FieldErrors, selector: &Value, path: &Path<'_>) {
    let path = path.child("nodeSelectorTerms");
    let terms = items(selector, "nodeSelectorTerms");
    if terms.is_empty() {
        let why = "must have at least one node selector term";
        errors.push(FieldError::required(&path, why));
    }
    for (index, term) in terms.iter().enumerate() {
        node_term(errors, term, &path.index(index));
    }
}

fn node_term(errors: &mut FieldErrors, term: &Value, path: &Path<'_>) {
    let expressions = path.child("matchExpressions");
    for (index, requirement) in items(term, "matchExpressions").iter().enumerate() {
        node_expression(errors, requirement, &expressions.index(index));
    }
    let fields = path.child("matchFields");
    for (index, requirement) in items(term, "matchFields").iter().enumerate() {
        let path = fields.index(index);
        match text(requirement, "operator") {
            "In" | "NotIn" if items(requirement, "values").len() != 1 => {
                let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.push(FieldError::required(&path.child("values"), why));
            }
            "In" | "NotIn" => {}
            other => {
                let why = "not a valid selector operator";
                errors.push(FieldError::invalid(&path.child("operator"), other, why));
            }
        }
        let key = text(requirement, "key");
        if key != "metadata.name" {
            let why = "not a valid field selector key";
            errors.push(FieldError::invalid(&path.child("key"), key, why));
            continue;
        }
        let values = path.child("values");
        for (index, name) in texts(requirement, "values").enumerate() {
            invalid(errors, &values.index(index), name, dns1123_subdomain(name));
        }
    }
}

fn node_expression(errors: &mut FieldErrors, requirement: &Value, path: &Path<'_>) {
    let (count, values) = (items(requirement, "values").len(), path.child("values"));
    match text(requirement, "operator") {
        "In" | "NotIn" if count == 0 => {
            let why = "must be specified when `operator` is 'In' or 'NotIn'";
            errors.push(FieldError::required(&values, why));
        }
        "Exists" | "DoesNotExist" if count > 0 => {
            let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(FieldError::forbidden(&values, why));
        }
        "Gt" | "Lt" if count != 1 => {
            let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            errors.push(FieldError::required(&values, why));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => {
            let why = "not a valid selector operator";
            errors.push(FieldError::invalid(&path.child("operator"), other, why));
        }
    }
    let key = text(requirement, "key");
    invalid(errors, &path.child("key"), key, qualified_name(key));
    for (index, value) in texts(requirement, "values").enumerate() {
        invalid(errors, &values.index(index), value, label_value(value));
    }
}

fn pod_affinity(errors: &mut FieldErrors, affinity: &Value, path: &Path<'_>) {
    let required = path.child(REQUIRED);
    for (index, term) in items(affinity, REQUIRED).iter().enumerate() {
        pod_term(errors, term, &required.index(index));
    }
    let preferred = path.child(PREFERRED);
    for (index, term) in items(affinity, PREFERRED).iter().enumerate() {
        let path = preferred.index(index);
        weight(errors, term, &path);
        pod_term(errors, sub(term, "podAffinityTerm"), &path.child("podAffinityTerm"));
    }
}

fn pod_term(errors: &mut FieldErrors, term: &Value, path: &Path<'_>) {
    for key in ["labelSelector", "namespaceSelector"] {
        if let Some(selector) = get(term, key) {
            label_selector(errors, selector, &path.child(key));
        }
    }
    for name in texts(term, "namespaces") {
        invalid(errors, &path.child("namespace"), name, dns1123_label(name));
    }
    label_keys(errors, term, path);
    let (key, path) = (text(term, "topologyKey"), path.child("topologyKey"));
    if key.is_empty() {
        errors.push(FieldError::required(&path, "can not be empty"));
    }
    invalid(errors, &path, key, qualified_name(key));
}

fn label_keys(errors: &mut FieldErrors, term: &Value, path: &Path<'_>) {
    for list in ["matchLabelKeys", "mismatchLabelKeys"] {
        let path = path.child(list);
        if !items(term, list).is_empty() && !has(term, "labelSelector") {
            let why = "must not be specified when labelSelector is not set";
            errors.push(FieldError::forbidden(&path, why));
        }
        for (index, key) in texts(term, list).enumerate() {
            invalid(errors, &path.index(index), key, qualified_name(key));
        }
    }
    let path = path.child("matchLabelKeys");
    for (index, key) in texts(term, "matchLabelKeys").enumerate() {
        if texts(term, "mismatchLabelKeys").any(|other| other == key) {
            let why = "exists in both matchLabelKeys and mismatchLabelKeys";
            errors.push(FieldError::invalid(&path.index(index), key, why));
        }
    }
}

/// `spec.tolerations`
pub(super) fn tolerations(errors: &mut FieldErrors, tolerations: &[Value], path: &Path<'_>) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = path.index(index);
        let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
        let (value, effect) = (text(toleration, "value"), text(toleration, "effect"));
        let operator_path = path.child("operator");
        if !key.is_empty() {
            invalid(errors, &path.child("key"), key, qualified_name(key));
        } else if operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(&operator_path, operator, why));
        }
        if has(toleration, "tolerationSeconds") && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(&path.child("effect"), effect, why));
        }
        match operator {
            "" | "Equal" => {
                let wrong = label_value(value);
                if !wrong.is_empty() {
                    errors.push(FieldError::invalid(&operator_path, value, wrong.join(";")));
                }
            }
            "Exists" if !value.is_empty() => {
                let why = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(&operator_path, value, why));
            }
            "Exists" => {}
            other => {
                let known = ["Equal", "Exists"];
                errors.push(FieldError::not_supported(&operator_path, other, &known));
            }
        }
        if !effect.is_empty() {
            check_effect(errors, effect, &path.child("effect"));
        }
    }
}

fn check_effect(errors: &mut FieldErrors, effect: &str, path: &Path<'_>) {
    if effect.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if !EFFECTS.contains(&effect) {
        errors.push(FieldError::not_supported(path, effect, &EFFECTS));
    }
}

/// A node's taints.
pub(super) fn taints(errors: &mut FieldErrors, taints: &[Value], path: &Path<'_>) {
    let mut seen = BTreeSet::new();
    for (index, taint) in taints.iter().enumerate() {
        let path = path.index(index);
        let (key, value, effect) =
            (text(taint, "key"), text(taint, "value"), text(taint, "effect"));
        invalid(errors, &path.child("key"), key, qualified_name(key));
        let wrong = label_value(value);
        if !wrong.is_empty() {
            errors.push(FieldError::invalid(&path.child("value"), value, wrong.join(";")));
        }
        check_effect(errors, effect, &path.child("effect"));
        if !seen.insert((key, effect)) {
            let shown = format!(
                "{}: taints must be unique by key and effect pair",
                serde_json::json!({"Key": key, "Value": value, "Effect": effect, "TimeAdded": shown(taint, "timeAdded")})
            );
            errors.push(FieldError::duplicate_text(&path, &shown));
        }
    }
}

/// `spec.topologySpreadConstraints`
pub(super) fn spread(errors: &mut FieldErrors, constraints: &[Value], path: &Path<'_>) {
    let mut seen = BTreeSet::new();
    for (index, constraint) in constraints.iter().enumerate() {
        let path = path.index(index);
        let skew = int(constraint, "maxSkew").unwrap_or_default();
        if skew <= 0 {
            let why = "must be greater than zero";
            errors.push(FieldError::invalid(&path.child("maxSkew"), skew, why));
        }
        let (key, key_path) = (text(constraint, "topologyKey"), path.child("topologyKey"));
        if key.is_empty() {
            errors.push(FieldError::required(&key_path, "can not be empty"));
        } else {
            invalid(errors, &key_path, key, qualified_name(key));
        }
        let action = text(constraint, "whenUnsatisfiable");
        let actions = ["DoNotSchedule", "ScheduleAnyway"];
        if !actions.contains(&action) {
            let path = path.child("whenUnsatisfiable");
            errors.push(FieldError::not_supported(&path, action, &actions));
        }
        if !seen.insert((key, action)) {
            let pair = format!("{{{key}, {action}}}");
            let path = path.child("{topologyKey, whenUnsatisfiable}");
            errors.push(FieldError::duplicate(&path, pair));
        }
        min_domains(errors, constraint, action, &path);
        for key in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            super::view::one_of_if_there(errors, constraint, key, &["Honor", "Ignore"], &path);
        }
        label_keys(errors, constraint, &path);
        if let Some(selector) = get(constraint, "labelSelector") {
            label_selector(errors, selector, &path.child("labelSelector"));
        }
    }
}

fn min_domains(errors: &mut FieldErrors, constraint: &Value, action: &str, path: &Path<'_>) {
    let Some(domains) = int(constraint, "minDomains") else { return };
    let path = path.child("minDomains");
    if domains <= 0 {
        errors.push(FieldError::invalid(&path, domains, "must be greater than zero"));
    }
    if action != "DoNotSchedule" {
        let why = "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway";
        errors.push(FieldError::invalid(&path, domains, why));
    }
}
