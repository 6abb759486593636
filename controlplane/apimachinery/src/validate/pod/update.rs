//! What of a pod may change: little of its spec, most of its status.

use serde_json::Value;

use super::super::schedule;
use super::super::semantic::{same, written};
use super::super::text::{dns1123_subdomain, in_range};
use super::super::view::{IMMUTABLE, entries, get, int, invalid, items, shown, sub, text};
use super::container::image_of_pod;
use crate::field::{FieldError, FieldErrors, Path};
use crate::object::{Object, map_mut};
use crate::patch::merge;

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
const SPEC: Path<'static> = Path::new("spec");

/// A changed pod; its metadata and spec were checked by themselves before.
pub(in super::super) fn update(errors: &mut FieldErrors, (object, old): (&Value, &Value)) {
    mirror_annotation(errors, object, old);
    let (new, before) = (sub(object, "spec"), sub(old, "spec"));
    for list in ["containers", "initContainers"] {
        let path = SPEC.child(list);
        let containers = items(new, list);
        if containers.len() != items(before, list).len() {
            let why = "pod updates may not add or remove containers";
            return errors.push(FieldError::forbidden(&path, why));
        }
        for (index, container) in containers.iter().enumerate() {
            let path = path.index(index);
            if text(container, "image").is_empty() {
                errors.push(FieldError::required(&path.child("image"), ""));
            }
            image_of_pod(errors, container, &path);
        }
    }
    if !deadline(errors, new, before) {
        return;
    }
    added_tolerations(errors, new, before);
    let gates = SPEC.child("schedulingGates");
    for (index, gate) in items(new, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        if items(before, "schedulingGates").iter().all(|one| text(one, "name") != name) {
            let path = gates.index(index);
            let why = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.push(FieldError::forbidden(&path.child("name"), why));
        }
    }
    fixed(errors, new.clone(), before);
}

fn mirror_annotation(errors: &mut FieldErrors, object: &Value, old: &Value) {
    const MIRROR: &str = "kubernetes.io/config.mirror";
    let annotation = |object: &Value| crate::object::annotation(object, MIRROR).map(str::to_owned);
    let (new, before) = (annotation(object), annotation(old));
    if new == before {
        return;
    }
    let metadata = Path::new("metadata");
    let path = metadata.child("annotations");
    let why = match before {
        Some(_) => "may not remove or update mirror pod annotation",
        None => "may not add mirror pod annotation",
    };
    errors.push(FieldError::forbidden(&path.key(MIRROR), why));
}

/// False when upstream stops there.
fn deadline(errors: &mut FieldErrors, new: &Value, before: &Value) -> bool {
    let path = SPEC.child("activeDeadlineSeconds");
    match (int(new, "activeDeadlineSeconds"), int(before, "activeDeadlineSeconds")) {
        (Some(seconds), old) => {
            let high = i64::from(i32::MAX);
            let mut wrong = in_range(seconds, 0, high);
            if wrong.is_empty() && old.is_some_and(|old| old < seconds) {
                wrong.push("must be less than or equal to previous value".to_owned());
            }
            for why in &wrong {
                errors.push(FieldError::invalid(&path, seconds, why));
            }
            wrong.is_empty()
        }
        (None, Some(_)) => {
            let why = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid(&path, Value::Null, why));
            true
        }
        (None, None) => true,
    }
}

fn added_tolerations(errors: &mut FieldErrors, new: &Value, before: &Value) {
    let path = SPEC.child("tolerations");
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        map_mut(&mut toleration).remove("tolerationSeconds");
        toleration
    };
    let have: Vec<Value> = items(new, "tolerations").iter().map(without_seconds).collect();
    let kept =
        items(before, "tolerations").iter().map(without_seconds).all(|one| have.contains(&one));
    if !kept {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        return errors.push(FieldError::forbidden(&path, why));
    }
    schedule::tolerations(errors, items(new, "tolerations"), &path);
}

/// Whatever is left must be as it was.
fn fixed(errors: &mut FieldErrors, mut new: Value, before: &Value) {
    let gated = !items(before, "schedulingGates").is_empty();
    let munged = map_mut(&mut new);
    for list in ["containers", "initContainers"] {
        let containers = munged.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (container, old) in containers.zip(items(before, list)) {
            copy(map_mut(container), old, "image");
        }
    }
    for key in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        copy(munged, before, key);
    }
    let grace = "terminationGracePeriodSeconds";
    let was_negative = int(before, grace).is_some_and(|seconds| seconds < 0);
    if was_negative && munged.get(grace).and_then(Value::as_i64) == Some(1) {
        copy(munged, before, grace);
    }
    if gated {
        node_selector(errors, munged, before);
        let affinity = munged.get("affinity").cloned().unwrap_or_default();
        if super::super::view::get(&affinity, "nodeAffinity").is_some() {
            gated_affinity(munged, before);
        }
    }
    if !same(Some(&new), Some(before)) {
        let changes = merge::diff(&written(before), &written(&new));
        let why = format!("pod updates may not change fields other than {UPDATABLE}\n{changes}");
        errors.push(FieldError::forbidden(&SPEC, why));
    }
}

fn copy(map: &mut Object, from: &Value, key: &str) {
    match from.get(key) {
        Some(value) => drop(map.insert(key.to_owned(), value.clone())),
        None => drop(map.remove(key)),
    }
}

/// While a pod is gated, its node selector may grow.
fn node_selector(errors: &mut FieldErrors, munged: &mut Object, before: &Value) {
    let new = munged.get("nodeSelector").cloned().unwrap_or_default();
    let kept = entries(before, "nodeSelector").all(|(key, value)| new.get(key) == Some(value));
    if !kept {
        let path = SPEC.child("nodeSelector");
        let why = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.push(FieldError::invalid(&path, new, why));
    }
    copy(munged, before, "nodeSelector");
}

/// While a pod is gated, its node affinity may be narrowed; the rest of its affinity stays.
fn gated_affinity(munged: &mut Object, before: &Value) {
    let old = shown(before, "affinity");
    let affinity = map_mut(munged.entry("affinity").or_insert(Value::Null));
    copy(affinity, &old, "nodeAffinity");
    if affinity.is_empty() && get(before, "affinity").is_none() {
        munged.remove("affinity");
    }
}

/// A changed status.
pub(in super::super) fn update_status(errors: &mut FieldErrors, (object, old): (&Value, &Value)) {
    let path = Path::new("status");
    let (spec, old_spec) = (sub(object, "spec"), sub(old, "spec"));
    if text(spec, "nodeName") != text(old_spec, "nodeName") {
        let why = "may not be changed directly";
        errors.push(FieldError::forbidden(&path.child("nodeName"), why));
    }
    let (status, before) = (sub(object, "status"), sub(old, "status"));
    let nominated = text(status, "nominatedNodeName");
    if !nominated.is_empty() && nominated != text(before, "nominatedNodeName") {
        let path = path.child("nominatedNodeName");
        invalid(errors, &path, nominated, dns1123_subdomain(nominated));
    }
    if get(status, "qosClass") != get(before, "qosClass") && get(before, "qosClass").is_some() {
        let value = shown(status, "qosClass");
        errors.push(FieldError::invalid(&path.child("qosClass"), value, IMMUTABLE));
    }
    let policy = text(old_spec, "restartPolicy");
    for list in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        let policy = if list == "ephemeralContainerStatuses" { "Never" } else { policy };
        if policy != "Always" {
            transitions(errors, (status, before), old_spec, (list, policy));
        }
    }
}

/// A container that will not be started again must not leave the terminated state.
fn transitions(
    errors: &mut FieldErrors,
    (status, before): (&Value, &Value),
    spec: &Value,
    (list, policy): (&str, &str),
) {
    let parent = Path::new("status");
    let path = parent.child(list);
    for (index, old) in items(before, list).iter().enumerate() {
        let Some(terminated) = get(sub(old, "state"), "terminated").cloned() else { continue };
        if policy == "OnFailure" && int(&terminated, "exitCode").unwrap_or_default() != 0 {
            continue;
        }
        let name = text(old, "name");
        let restartable = items(spec, "initContainers")
            .iter()
            .chain(items(spec, "containers"))
            .any(|one| text(one, "name") == name && !text(one, "restartPolicy").is_empty());
        let left = items(status, list)
            .iter()
            .any(|new| text(new, "name") == name && get(sub(new, "state"), "terminated").is_none());
        if left && !restartable {
            let path = path.index(index);
            let why = "may not be transitioned to non-terminated state";
            errors.push(FieldError::forbidden(&path.child("state"), why));
        }
    }
}
