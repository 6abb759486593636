//! `ephemeralcontainers` and `resize` of a pod: the two ways in which the spec of a running pod may change.
//! Must not let anything else of the spec through.

use apimachinery::{
    field::{FieldError, FieldErrors, Path},
    gvk::GroupKind,
    object,
    status::ApiError,
};
use serde_json::Value;

use crate::{resource, rules, verb::update::Part};

pub(super) const EPHEMERAL_CONTAINERS: Part = Part {
    isolate: keep_but_ephemeral,
    settle: check_ephemeral,
    validate: rules::validate_part,
    whole: false,
};

pub(super) const RESIZE: Part = Part {
    isolate: keep_but_resources,
    settle: check_resize,
    validate: rules::validate_part,
    whole: false,
};

fn restore(object: &mut Value, old: &Value) {
    let version = object::resource_version(object).to_owned();
    *object = old.clone();
    *object::at_mut(object, &["metadata", "resourceVersion"]) = version.into();
}

fn keep_but_ephemeral(object: &mut Value, old: &Value) {
    let wanted = object::at_mut(object, &["spec", "ephemeralContainers"]).take();
    restore(object, old);
    let spec = object::map_mut(object::at_mut(object, &["spec"]));
    if wanted.is_array() {
        spec.insert("ephemeralContainers".to_owned(), wanted);
    } else {
        spec.remove("ephemeralContainers");
    }
}

fn refused(object: &Value, error: FieldError) -> ApiError {
    ApiError::invalid(GroupKind::new("", "Pod"), object::name(object), &FieldErrors::from(error))
}

/// Ephemeral containers are added, never changed or taken away.
fn check_ephemeral(object: &Value, old: &Value) -> Result<(), ApiError> {
    let spec = Path::new("spec");
    let path = spec.child("ephemeralContainers");
    let named = |o: &Value, name: &str| {
        object::list(o, &["spec", "ephemeralContainers"])
            .find(|c| object::text(c, &["name"]) == name)
            .cloned()
    };
    for before in object::list(old, &["spec", "ephemeralContainers"]) {
        let name = object::text(before, &["name"]);
        let why = match named(object, name) {
            Some(now) if now == *before => continue,
            Some(_) => format!("existing ephemeral containers \"{name}\" may not be changed\n"),
            None => format!("existing ephemeral containers \"{name}\" may not be removed\n"),
        };
        return Err(refused(object, FieldError::forbidden(&path, why)));
    }
    let mut names: Vec<&str> = ["containers", "initContainers", "ephemeralContainers"]
        .iter()
        .flat_map(|field| object::list(object, &["spec", field]))
        .map(|c| object::text(c, &["name"]))
        .collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair.first() == pair.last()) {
        let twice = pair.first().copied().unwrap_or_default();
        return Err(refused(object, FieldError::duplicate_text(&path, twice)));
    }
    Ok(())
}

fn keep_but_resources(object: &mut Value, old: &Value) {
    let wanted: Vec<(&str, String, Value, Value)> = ["containers", "initContainers"]
        .iter()
        .flat_map(|field| object::list(object, &["spec", field]).map(move |c| (*field, c)))
        .map(|(field, c)| {
            let name = object::text(c, &["name"]).to_owned();
            (field, name, c["resources"].clone(), c["resizePolicy"].clone())
        })
        .collect();
    restore(object, old);
    for (field, name, resources, policy) in wanted {
        let list = object::at_mut(object, &["spec", field]);
        for container in list.as_array_mut().into_iter().flatten() {
            if object::text(container, &["name"]) != name {
                continue;
            }
            let container = object::map_mut(container);
            for (key, value) in [("resources", &resources), ("resizePolicy", &policy)] {
                if value.is_null() {
                    container.remove(key);
                } else {
                    container.insert(key.to_owned(), value.clone());
                }
            }
        }
    }
}

/// Kubernetes 1.36, `ValidatePodResize`: cpu and memory of containers change, and none is taken away; those of init containers that
/// end stay.
fn check_resize(object: &Value, old: &Value) -> Result<(), ApiError> {
    let spec = Path::new("spec");
    let class = |o: &Value| resource::pod_qos_class(&o["spec"]);
    if class(object) != class(old) {
        let why = "Pod QOS Class may not change as a result of resizing";
        return Err(refused(object, FieldError::invalid_text(&spec, class(object), why)));
    }
    for field in ["containers", "initContainers"] {
        let pairs = object::list(object, &["spec", field]).zip(object::list(old, &["spec", field]));
        for (index, (new, before)) in pairs.enumerate() {
            let list = spec.child(field);
            let path = list.index(index);
            let path = path.child("resources");
            for side in ["requests", "limits"] {
                let now = amounts(new, side);
                if amounts(before, side).keys().any(|name| !now.contains_key(name)) {
                    let why = format!("resource {side} cannot be removed");
                    return Err(refused(object, FieldError::forbidden(&path.child(side), why)));
                }
            }
            let runs_on = field == "containers" || before["restartPolicy"] == "Always";
            let differ = |side: &&str| amounts(new, side) != amounts(before, side);
            if !runs_on && ["requests", "limits"].iter().any(differ) {
                let why = "resources for non-sidecar init containers are immutable";
                return Err(refused(object, FieldError::forbidden(&path, why)));
            }
            if but_cpu_and_memory(new) != but_cpu_and_memory(before) {
                let why = "only cpu and memory resources are mutable";
                return Err(refused(object, FieldError::forbidden(&spec, why)));
            }
        }
    }
    Ok(())
}

fn amounts(container: &Value, side: &str) -> object::Object {
    container["resources"][side].as_object().cloned().unwrap_or_default()
}

fn but_cpu_and_memory(container: &Value) -> Value {
    let mut container = container.clone();
    let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) else {
        return container;
    };
    for side in ["requests", "limits"] {
        let rest = resources.get_mut(side).and_then(Value::as_object_mut).map(|amounts| {
            amounts.retain(|name, _| !matches!(name.as_str(), "cpu" | "memory"));
            amounts.len()
        });
        if rest == Some(0) {
            resources.remove(side);
        }
    }
    if resources.is_empty() {
        object::map_mut(&mut container).remove("resources");
    }
    container
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ephemeral_containers_are_only_added() {
        let old = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}],
            "ephemeralContainers": [{"name": "d", "image": "i"}]}});
        let mut new = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "evil"}],
            "ephemeralContainers": [{"name": "d", "image": "i"}, {"name": "e"}]}});
        keep_but_ephemeral(&mut new, &old);
        assert_eq!(new["spec"]["containers"], old["spec"]["containers"]);
        assert!(check_ephemeral(&new, &old).is_ok());
        assert_eq!(check_ephemeral(&old, &new).unwrap_err().code, 422);
        let mut twice = new.clone();
        twice["spec"]["ephemeralContainers"][1]["name"] = json!("c");
        assert_eq!(check_ephemeral(&twice, &old).unwrap_err().code, 422);
    }

    #[test]
    fn a_resize_changes_resources_alone_and_keeps_the_class() {
        let old = json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}]}});
        let mut new = json!({"spec": {"containers": [
            {"name": "c", "image": "j", "resources": {"requests": {"cpu": "2"}}}]}});
        keep_but_resources(&mut new, &old);
        assert_eq!(
            new["spec"]["containers"][0],
            json!(
            {"name": "c", "image": "i", "resources": {"requests": {"cpu": "2"}}})
        );
        assert!(check_resize(&new, &old).is_ok());
        let mut none = json!({"spec": {"containers": [{"name": "c", "image": "i"}]}});
        keep_but_resources(&mut none, &old);
        assert_eq!(check_resize(&none, &old).unwrap_err().code, 422);
    }

    #[test]
    fn a_resize_changes_cpu_and_memory_alone() {
        let old = json!({"spec": {"initContainers": [{"name": "i", "resources": {"requests": {"cpu": "1"}}}],
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "ephemeral-storage": "1Gi"}}}]}});
        let with = |pointer: &str, value: Value| {
            let mut new = old.clone();
            *new.pointer_mut(pointer).unwrap() = value;
            check_resize(&new, &old).map_err(|error| error.message)
        };
        let requests = "/spec/containers/0/resources/requests";
        with(requests, json!({"cpu": "2", "ephemeral-storage": "1Gi", "memory": "1Gi"})).unwrap();
        for (pointer, value, want) in [
            (requests, json!({"cpu": "1", "ephemeral-storage": "2Gi"}), "only cpu and memory"),
            (requests, json!({"ephemeral-storage": "1Gi"}), "resource requests cannot be removed"),
            ("/spec/initContainers/0/resources/requests/cpu", json!("2"), "non-sidecar init"),
        ] {
            let error = with(pointer, value).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
