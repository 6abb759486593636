//! Whether a stored bootstrap object lacks something, and what it becomes.
//!
//! Pure. Adds missing rules, subjects, labels, annotations and selectors; removes nothing (Kubernetes 1.36,
//! `pkg/registry/rbac/reconciliation`). A binding to another role is replaced, since `roleRef` can't change.

use super::spec::AUTOUPDATE;
use crate::authz::Rule;
use crate::authz::rules::uncovered;
use serde_json::{Value, json};

/// The repaired object, or `None` when there is nothing to repair.
pub(super) fn plan_repair(stored: &Value, wanted: &Value) -> Option<Value> {
    let kind = wanted["kind"].as_str().unwrap_or_default();
    if !matches!(kind, "ClusterRole" | "Role" | "ClusterRoleBinding" | "RoleBinding") {
        return None;
    }
    if stored["metadata"]["annotations"][AUTOUPDATE] == "false" {
        return None;
    }
    let mut repaired = stored.clone();
    add_members(&mut repaired["metadata"], &wanted["metadata"], "labels");
    add_members(&mut repaired["metadata"], &wanted["metadata"], "annotations");
    if kind.ends_with("Role") {
        repair_rules(&mut repaired, wanted);
        if let Some(selectors) = wanted.pointer("/aggregationRule/clusterRoleSelectors") {
            add_items(&mut repaired["aggregationRule"], "clusterRoleSelectors", selectors);
        }
    } else {
        repaired["roleRef"] = wanted["roleRef"].clone();
        if let Some(subjects) = wanted.get("subjects") {
            add_items(&mut repaired, "subjects", subjects);
        }
    }
    let changed = without_nulls(&repaired) != without_nulls(stored);
    changed.then_some(repaired)
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, member)| !member.is_null())
            .map(|(name, member)| (name.clone(), without_nulls(member)))
            .collect(),
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

fn add_members(into: &mut Value, wanted: &Value, member: &str) {
    let Some(wanted) = wanted[member].as_object() else { return };
    if !into[member].is_object() {
        into[member] = json!({});
    }
    for (key, value) in wanted {
        if into[member].get(key).is_none() {
            into[member][key] = value.clone();
        }
    }
}

fn add_items(into: &mut Value, member: &str, wanted: &Value) {
    if !into[member].is_array() {
        into[member] = json!([]);
    }
    let Some(items) = into[member].as_array_mut() else { return };
    for item in wanted.as_array().into_iter().flatten() {
        if !items.contains(item) {
            items.push(item.clone());
        }
    }
}

fn repair_rules(role: &mut Value, wanted: &Value) {
    let read = |value: &Value| -> Vec<Rule> {
        let items = value["rules"].as_array().into_iter().flatten();
        items.filter_map(|rule| serde_json::from_value(without_nulls(rule)).ok()).collect()
    };
    for rule in uncovered(&read(role), &read(wanted)) {
        if !role["rules"].is_array() {
            role["rules"] = json!([]);
        }
        if let Some(rules) = role["rules"].as_array_mut() {
            rules.push(json!(rule));
        }
    }
}
