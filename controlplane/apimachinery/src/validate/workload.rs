//! Deployments, ReplicaSets, StatefulSets, DaemonSets, ReplicationControllers (`pkg/apis/apps/validation`).

use serde_json::Value;

use super::meta::{is_empty_selector, label_selector};
use super::pod;
use super::semantic::same;
use super::text::percent;
use super::view::{NEGATIVE, filled, get, has, int, invalid, not_negative, shown, sub, text};
use crate::field::{FieldError, FieldErrors, Path};
use crate::object::{Object, map_mut};
use crate::selector::LabelSelector;

const SPEC: Path<'static> = Path::new("spec");
const MISMATCH: &str = "`selector` does not match template `labels`";

/// A kind of apps/v1.
pub(super) fn validate(errors: &mut FieldErrors, kind: &str, object: &Value) {
    let spec = sub(object, "spec");
    match kind {
        "Deployment" => deployment(errors, spec),
        "ReplicaSet" => {
            not_negative(errors, spec, &["replicas", "minReadySeconds"], &SPEC);
            selector(errors, spec, "empty selector is invalid for deployment");
            replica_template(errors, spec, "activeDeadlineSeconds in ReplicaSet is not Supported");
        }
        "StatefulSet" => stateful_set(errors, spec),
        "DaemonSet" => daemon_set(errors, spec),
        "ControllerRevision" => {
            if !has(object, "data") {
                errors.push(FieldError::required(&Path::new("data"), "data is mandatory"));
            }
            if let Some(revision) = int(object, "revision").filter(|revision| *revision < 0) {
                errors.push(FieldError::invalid(&Path::new("revision"), revision, NEGATIVE));
            }
        }
        _ => {}
    }
}

fn selector(errors: &mut FieldErrors, spec: &Value, empty: &str) {
    let path = SPEC.child("selector");
    match get(spec, "selector") {
        None => errors.push(FieldError::required(&path, "")),
        Some(selector) => {
            label_selector(errors, selector, &path);
            if is_empty_selector(selector) {
                errors.push(FieldError::invalid(&path, selector.clone(), empty));
            }
        }
    }
}

/// Pushes when the selector, if it can be read and isn't empty, misses the template's labels.
fn match_template(errors: &mut FieldErrors, spec: &Value, read: &LabelSelector) {
    let labels = template_labels(spec);
    let object = labels.as_object();
    if !read.is_everything() && !read.matches(&object) {
        let (template, shown) = (SPEC.child("template"), labels.clone());
        let metadata = template.child("metadata");
        errors.push(FieldError::invalid(&metadata.child("labels"), shown, MISMATCH));
    }
}

fn template_labels(spec: &Value) -> Value {
    let metadata = sub(sub(spec, "template"), "metadata");
    get(metadata, "labels").cloned().unwrap_or_default()
}

fn always_restarts(errors: &mut FieldErrors, spec: &Value) {
    let policy = shown(sub(sub(spec, "template"), "spec"), "restartPolicy");
    if policy.as_str() != Some("Always") {
        let template = SPEC.child("template");
        let pod = template.child("spec");
        errors.push(FieldError::not_supported(&pod.child("restartPolicy"), policy, &["Always"]));
    }
}

fn no_deadline(errors: &mut FieldErrors, spec: &Value, why: &str) {
    if has(sub(sub(spec, "template"), "spec"), "activeDeadlineSeconds") {
        let template = SPEC.child("template");
        let pod = template.child("spec");
        errors.push(FieldError::forbidden(&pod.child("activeDeadlineSeconds"), why));
    }
}

fn replica_template(errors: &mut FieldErrors, spec: &Value, deadline: &str) {
    match LabelSelector::from_object(get(spec, "selector")) {
        Ok(read) if has(spec, "selector") => match_template(errors, spec, &read),
        Ok(_) => {}
        Err(_) => {
            let path = SPEC.child("selector");
            let value = shown(spec, "selector");
            errors.push(FieldError::invalid(&path, value, "invalid label selector"));
        }
    }
    pod::template(errors, sub(spec, "template"), &SPEC.child("template"));
    always_restarts(errors, spec);
    no_deadline(errors, spec, deadline);
}

fn deployment(errors: &mut FieldErrors, spec: &Value) {
    not_negative(errors, spec, &["replicas"], &SPEC);
    selector(errors, spec, "empty selector is invalid for deployment");
    replica_template(errors, spec, "activeDeadlineSeconds in ReplicaSet is not Supported");
    strategy(errors, sub(spec, "strategy"), &SPEC.child("strategy"));
    not_negative(errors, spec, &["minReadySeconds", "revisionHistoryLimit"], &SPEC);
    if let Some(deadline) = int(spec, "progressDeadlineSeconds") {
        not_negative(errors, spec, &["progressDeadlineSeconds"], &SPEC);
        if deadline <= int(spec, "minReadySeconds").unwrap_or_default() {
            let path = SPEC.child("progressDeadlineSeconds");
            let why = "must be greater than minReadySeconds";
            errors.push(FieldError::invalid(&path, deadline, why));
        }
    }
}

fn strategy(errors: &mut FieldErrors, strategy: &Value, path: &Path<'_>) {
    let rolling_path = path.child("rollingUpdate");
    match (text(strategy, "type"), get(strategy, "rollingUpdate")) {
        ("Recreate", Some(_)) => {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(FieldError::forbidden(&rolling_path, why));
        }
        ("Recreate", None) => {}
        ("RollingUpdate", None) => {
            let why = "this should be defaulted and never be nil";
            errors.push(FieldError::required(&rolling_path, why));
        }
        ("RollingUpdate", Some(rolling)) => {
            int_or_percent(errors, rolling, "maxUnavailable", &rolling_path);
            int_or_percent(errors, rolling, "maxSurge", &rolling_path);
            if is_zero(rolling, "maxUnavailable") && is_zero(rolling, "maxSurge") {
                let why = "may not be 0 when `maxSurge` is 0";
                let value = shown(rolling, "maxUnavailable");
                errors.push(FieldError::invalid(&rolling_path.child("maxUnavailable"), value, why));
            }
            at_most_all(errors, rolling, "maxUnavailable", &rolling_path);
        }
        (other, _) => {
            let known = ["Recreate", "RollingUpdate"];
            errors.push(FieldError::not_supported(&path.child("type"), other, &known));
        }
    }
}

/// A number that isn't negative, or a percentage.
pub(super) fn int_or_percent(errors: &mut FieldErrors, value: &Value, key: &str, path: &Path<'_>) {
    match value.get(key) {
        Some(Value::String(text)) => invalid(errors, &path.child(key), text, percent(text)),
        _ => not_negative(errors, value, &[key], path),
    }
}

fn is_zero(value: &Value, key: &str) -> bool {
    match value.get(key) {
        Some(Value::String(text)) => {
            text.strip_suffix('%').and_then(|number| number.parse::<u64>().ok()) == Some(0)
        }
        Some(number) => number.as_i64() == Some(0),
        None => true,
    }
}

/// A percentage of at most a hundred.
pub(super) fn at_most_all(errors: &mut FieldErrors, value: &Value, key: &str, path: &Path<'_>) {
    let number = text(value, key).strip_suffix('%').and_then(|number| number.parse::<u64>().ok());
    if number.is_some_and(|number| number > 100) {
        let why = "must not be greater than 100%";
        errors.push(FieldError::invalid(&path.child(key), shown(value, key), why));
    }
}

fn stateful_set(errors: &mut FieldErrors, spec: &Value) {
    match text(spec, "podManagementPolicy") {
        "OrderedReady" | "Parallel" => {}
        "" => errors.push(FieldError::required(&SPEC.child("podManagementPolicy"), "")),
        other => {
            let why = "must be 'OrderedReady' or 'Parallel'";
            errors.push(FieldError::invalid(&SPEC.child("podManagementPolicy"), other, why));
        }
    }
    let strategy = sub(spec, "updateStrategy");
    let path = SPEC.child("updateStrategy");
    let rolling_path = path.child("rollingUpdate");
    match (text(strategy, "type"), get(strategy, "rollingUpdate")) {
        ("", _) => errors.push(FieldError::required(&path, "")),
        ("OnDelete", Some(rolling)) => {
            let why = "only allowed for updateStrategy 'RollingUpdate'";
            errors.push(FieldError::invalid(&rolling_path, rolling.clone(), why));
        }
        ("OnDelete", None) | ("RollingUpdate", None) => {}
        ("RollingUpdate", Some(rolling)) => {
            not_negative(errors, rolling, &["partition"], &rolling_path);
            if has(rolling, "maxUnavailable") {
                int_or_percent(errors, rolling, "maxUnavailable", &rolling_path);
                at_most_all(errors, rolling, "maxUnavailable", &rolling_path);
            }
        }
        (_, _) => {
            let why = "must be 'RollingUpdate' or 'OnDelete'";
            errors.push(FieldError::invalid(&path, strategy.clone(), why));
        }
    }
    retention(errors, spec);
    not_negative(errors, spec, &["replicas", "minReadySeconds"], &SPEC);
    let ordinals = shown(spec, "ordinals");
    not_negative(errors, &ordinals, &["start"], &SPEC.child("ordinals"));
    selector(errors, spec, "empty selector is invalid for statefulset");
    match LabelSelector::from_object(get(spec, "selector")) {
        Ok(read) if has(spec, "selector") => match_template(errors, spec, &read),
        Ok(_) => {}
        Err(_) => {
            let value = shown(spec, "selector");
            errors.push(FieldError::invalid(&SPEC.child("selector"), value, ""));
        }
    }
    // The template's volumes are completed by the claim templates, so only its metadata can be looked at here.
    pod::template_metadata(errors, sub(spec, "template"), &SPEC.child("template"));
    always_restarts(errors, spec);
    no_deadline(errors, spec, "activeDeadlineSeconds in StatefulSet is not Supported");
}

fn retention(errors: &mut FieldErrors, spec: &Value) {
    if let Some(policy) = get(spec, "persistentVolumeClaimRetentionPolicy") {
        let path = SPEC.child("persistentVolumeClaimRetentionPolicy");
        for key in ["whenDeleted", "whenScaled"] {
            let value = text(policy, key);
            if !["Retain", "Delete"].contains(&value) {
                let known = ["Retain", "Delete"];
                errors.push(FieldError::not_supported(&path.child(key), value, &known));
            }
        }
    }
}

fn daemon_set(errors: &mut FieldErrors, spec: &Value) {
    let path = SPEC.child("selector");
    let selector = sub(spec, "selector");
    label_selector(errors, selector, &path);
    if let Ok(read) = LabelSelector::from_object(get(spec, "selector")) {
        let labels = template_labels(spec);
        if !read.matches(&labels.as_object()) {
            let template = SPEC.child("template");
            let metadata = template.child("metadata");
            errors.push(FieldError::invalid(&metadata.child("labels"), labels, MISMATCH));
        }
    }
    if has(spec, "selector") && is_empty_selector(selector) {
        let why = "empty selector is invalid for daemonset";
        errors.push(FieldError::invalid(&path, selector.clone(), why));
    }
    pod::template(errors, sub(spec, "template"), &SPEC.child("template"));
    always_restarts(errors, spec);
    no_deadline(errors, spec, "activeDeadlineSeconds in DaemonSet is not Supported");
    not_negative(errors, spec, &["minReadySeconds"], &SPEC);
    let (strategy, path) = (sub(spec, "updateStrategy"), SPEC.child("updateStrategy"));
    let rolling_path = path.child("rollingUpdate");
    match (text(strategy, "type"), get(strategy, "rollingUpdate")) {
        ("OnDelete", _) => {}
        ("RollingUpdate", None) => errors.push(FieldError::required(&rolling_path, "")),
        ("RollingUpdate", Some(rolling)) => daemon_rolling(errors, rolling, &rolling_path),
        (other, _) => {
            let known = ["RollingUpdate", "OnDelete"];
            errors.push(FieldError::not_supported(&path, other, &known));
        }
    }
    not_negative(errors, spec, &["revisionHistoryLimit"], &SPEC);
}

fn daemon_rolling(errors: &mut FieldErrors, rolling: &Value, path: &Path<'_>) {
    for key in ["maxUnavailable", "maxSurge"] {
        int_or_percent(errors, rolling, key, path);
        at_most_all(errors, rolling, key, path);
    }
    match (is_zero(rolling, "maxUnavailable"), is_zero(rolling, "maxSurge")) {
        (false, false) => {
            let why = "may not be set when maxUnavailable is non-zero";
            let value = shown(rolling, "maxSurge");
            errors.push(FieldError::invalid(&path.child("maxSurge"), value, why));
        }
        (true, true) => {
            let why = "cannot be 0 when maxSurge is 0";
            errors.push(FieldError::required(&path.child("maxUnavailable"), why));
        }
        _ => {}
    }
}

/// A ReplicationController.
pub(super) fn replication_controller(errors: &mut FieldErrors, object: &Value) {
    let spec = sub(object, "spec");
    not_negative(errors, spec, &["minReadySeconds"], &SPEC);
    if !filled(spec, "selector") {
        errors.push(FieldError::required(&SPEC.child("selector"), ""));
    }
    not_negative(errors, spec, &["replicas"], &SPEC);
    if !has(spec, "template") {
        return errors.push(FieldError::required(&SPEC.child("template"), ""));
    }
    if filled(spec, "selector") {
        match_template(errors, spec, &LabelSelector::from_map(get(spec, "selector")));
    }
    pod::template(errors, sub(spec, "template"), &SPEC.child("template"));
    always_restarts(errors, spec);
    no_deadline(errors, spec, "activeDeadlineSeconds in ReplicationController is not Supported");
}

const STATEFUL_UPDATABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

/// What of these kinds must not change.
pub(super) fn update(errors: &mut FieldErrors, kind: &str, (object, old): (&Value, &Value)) {
    let (mut spec, mut before) = (shown(object, "spec"), shown(old, "spec"));
    match kind {
        "Deployment" | "ReplicaSet" | "DaemonSet" => {
            super::view::immutable(errors, (&spec, &before), "selector", &SPEC);
        }
        "StatefulSet" => {
            strip(map_mut(&mut spec));
            strip(map_mut(&mut before));
            if !same(Some(&spec), Some(&before)) {
                let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
                errors.push(FieldError::forbidden(&SPEC, why));
            }
        }
        "ControllerRevision" if get(object, "data") != get(old, "data") => {
            let why = super::view::IMMUTABLE;
            errors.push(FieldError::invalid(&Path::new("data"), shown(object, "data"), why));
        }
        _ => {}
    }
}

fn strip(spec: &mut Object) {
    for key in STATEFUL_UPDATABLE {
        spec.remove(key);
    }
    // What the server writes into claim templates is no change of theirs.
    for claim in
        spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut).into_iter().flatten()
    {
        map_mut(claim).remove("status");
    }
}

/// The counts in a status.
pub(super) fn status(errors: &mut FieldErrors, object: &Value) {
    let (status, path) = (sub(object, "status"), Path::new("status"));
    let counts =
        ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas", "observedGeneration"];
    not_negative(errors, status, &counts, &path);
    let Some(replicas) = int(status, "replicas") else { return };
    for key in ["updatedReplicas", "readyReplicas", "availableReplicas", "fullyLabeledReplicas"] {
        if let Some(count) = int(status, key).filter(|count| *count > replicas) {
            let why = "cannot be greater than status.replicas";
            errors.push(FieldError::invalid(&path.child(key), count, why));
        }
    }
    let ready = int(status, "readyReplicas").unwrap_or_default();
    if let Some(count) = int(status, "availableReplicas").filter(|count| *count > ready) {
        let why = "cannot be greater than readyReplicas";
        errors.push(FieldError::invalid(&path.child("availableReplicas"), count, why));
    }
}
