//! Roles and bindings (`pkg/apis/rbac/validation`).

use serde_json::Value;

use super::meta::label_selector;
use super::text::{dns1123_subdomain, path_segment_name};
use super::view::{filled, get, invalid, items, shown, sub, text};
use crate::field::{FieldError, FieldErrors, Path};

const GROUP: &str = "rbac.authorization.k8s.io";

/// A kind of rbac.authorization.k8s.io/v1.
pub(super) fn validate(errors: &mut FieldErrors, kind: &str, object: &Value) {
    match kind {
        "Role" => rules(errors, object, true),
        "ClusterRole" => {
            rules(errors, object, false);
            if let Some(aggregation) = get(object, "aggregationRule") {
                let root = Path::new("aggregationRule");
                let path = root.child("clusterRoleSelectors");
                if !filled(aggregation, "clusterRoleSelectors") {
                    let why =
                        "at least one clusterRoleSelector required if aggregationRule is non-nil";
                    errors.push(FieldError::required(&path, why));
                }
                for (index, one) in items(aggregation, "clusterRoleSelectors").iter().enumerate() {
                    label_selector(errors, one, &path.index(index));
                }
            }
        }
        "RoleBinding" | "ClusterRoleBinding" => binding(errors, kind, object),
        _ => {}
    }
}

fn rules(errors: &mut FieldErrors, object: &Value, namespaced: bool) {
    let root = Path::new("rules");
    for (index, rule) in items(object, "rules").iter().enumerate() {
        let path = root.index(index);
        if !filled(rule, "verbs") {
            let why = "verbs must contain at least one value";
            errors.push(FieldError::required(&path.child("verbs"), why));
        }
        if filled(rule, "nonResourceURLs") {
            let (path, urls) = (path.child("nonResourceURLs"), shown(rule, "nonResourceURLs"));
            if namespaced {
                let why = "namespaced rules cannot apply to non-resource URLs";
                errors.push(FieldError::invalid(&path, urls.clone(), why));
            }
            if ["apiGroups", "resources", "resourceNames"].iter().any(|key| filled(rule, key)) {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(FieldError::invalid(&path, urls, why));
            }
            continue;
        }
        for (key, why) in [
            ("apiGroups", "resource rules must supply at least one api group"),
            ("resources", "resource rules must supply at least one resource"),
        ] {
            if !filled(rule, key) {
                errors.push(FieldError::required(&path.child(key), why));
            }
        }
    }
}

fn binding(errors: &mut FieldErrors, kind: &str, object: &Value) {
    let (reference, path) = (sub(object, "roleRef"), Path::new("roleRef"));
    let group = text(reference, "apiGroup");
    if group != GROUP {
        errors.push(FieldError::not_supported(&path.child("apiGroup"), group, &[GROUP]));
    }
    let known: &[&str] =
        if kind == "RoleBinding" { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    let referred = text(reference, "kind");
    if !known.contains(&referred) {
        errors.push(FieldError::not_supported(&path.child("kind"), referred, known));
    }
    let name = text(reference, "name");
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("name"), ""));
    } else {
        invalid(errors, &path.child("name"), name, path_segment_name(name));
    }
    let root = Path::new("subjects");
    for (index, subject) in items(object, "subjects").iter().enumerate() {
        validate_subject(errors, subject, kind, &root.index(index));
    }
}

fn validate_subject(errors: &mut FieldErrors, subject: &Value, kind: &str, path: &Path<'_>) {
    let (name, group) = (text(subject, "name"), text(subject, "apiGroup"));
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("name"), ""));
    }
    match text(subject, "kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                invalid(errors, &path.child("name"), name, dns1123_subdomain(name));
            }
            if !group.is_empty() {
                errors.push(FieldError::not_supported(&path.child("apiGroup"), group, &[""]));
            }
            if kind == "ClusterRoleBinding" && text(subject, "namespace").is_empty() {
                errors.push(FieldError::required(&path.child("namespace"), ""));
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errors.push(FieldError::not_supported(&path.child("apiGroup"), group, &[GROUP]));
            }
        }
        other => {
            let known = ["ServiceAccount", "User", "Group"];
            errors.push(FieldError::not_supported(&path.child("kind"), other, &known));
        }
    }
}

/// A binding keeps its role.
pub(super) fn update(errors: &mut FieldErrors, kind: &str, (object, old): (&Value, &Value)) {
    let is_binding = matches!(kind, "RoleBinding" | "ClusterRoleBinding");
    if is_binding && get(object, "roleRef") != get(old, "roleRef") {
        let (path, value) = (Path::new("roleRef"), shown(object, "roleRef"));
        errors.push(FieldError::invalid(&path, value, "cannot change roleRef"));
    }
}
