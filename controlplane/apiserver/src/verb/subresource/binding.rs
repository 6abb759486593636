//! `binding`: a pod gets its node, once. Must not move a pod.

use apimachinery::{
    field::{FieldError, FieldErrors, Path},
    gvk::{GroupKind, GroupResource, GroupVersionKind},
    object,
    status::ApiError,
};
use http::Response;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::created;
use crate::{
    admit::{self, Operation},
    body::Body,
    registry::{Alongside, Outcome},
    rules, stored,
    verb::{Call, write},
};

const BINDING: GroupVersionKind<'static> = GroupVersionKind::new("", "v1", "Binding");
/// A binding meets other writers of the pod's status so often before it gives up.
const ATTEMPTS_MAX: usize = 16;

/// Both `pods/<name>/binding` and `bindings`.
pub(super) async fn run(call: &Call, body: Body) -> Result<Response<Body>, ApiError> {
    let rules::Decoded { object: mut binding, .. } = write::read_kind(call, body, BINDING).await?;
    write::check_namespace(call, &mut binding)?;
    let name = match call.name() {
        "" => object::name(&binding).to_owned(),
        name => name.to_owned(),
    };
    admit::mutate(call, Operation::Create, &mut binding, None).await?;
    check(&binding, &name)?;
    let dry = call.query.dry_run()?;
    let pods = call.server.row("", "pods")?;
    for _ in 0..ATTEMPTS_MAX {
        let entry = call.server.registry().get(&pods, call.namespace(), &name)?;
        let pod = stored::decode(&entry)?;
        let bound = plan(&pod, &binding, Timestamp::now())?;
        if dry {
            return Ok(created(call));
        }
        let registry = call.server.registry();
        if let Outcome::Done(_) = registry.replace(&entry, &bound, Alongside::default()).await? {
            return Ok(created(call));
        }
    }
    Err(ApiError::modified(GroupResource::new("", "pods/binding"), &name))
}

fn check(binding: &Value, name: &str) -> Result<(), ApiError> {
    let target = Path::new("target");
    let kind = object::text(binding, &["target", "kind"]);
    let mut errors = FieldErrors::default();
    if !matches!(kind, "" | "Node") {
        errors.push(FieldError::not_supported(&target.child("kind"), kind, &["Node", "<empty>"]));
    }
    if object::text(binding, &["target", "name"]).is_empty() {
        errors.push(FieldError::required(&target.child("name"), ""));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(GroupKind::new("", "Binding"), name, &errors))
}

/// Kubernetes 1.36, `BindingREST.setPodNodeAndMetadata`.
fn plan(pod: &Value, binding: &Value, now: Timestamp) -> Result<Value, ApiError> {
    let name = object::name(pod);
    let conflict =
        |why: String| ApiError::conflict(GroupResource::new("", "pods/binding"), name, why);
    let uid = object::uid(binding);
    if !uid.is_empty() && uid != object::uid(pod) {
        return Err(conflict(format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            object::uid(pod)
        )));
    }
    if object::is_terminating(pod) {
        return Err(conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
    }
    let assigned = object::text(pod, &["spec", "nodeName"]);
    if !assigned.is_empty() {
        return Err(conflict(format!("pod {name} is already assigned to node \"{assigned}\"")));
    }
    if object::list(pod, &["spec", "schedulingGates"]).next().is_some() {
        return Err(conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
    }
    let mut bound = pod.clone();
    let node = object::text(binding, &["target", "name"]);
    *object::at_mut(&mut bound, &["spec", "nodeName"]) = node.into();
    if let Some(annotations) = object::annotations(binding) {
        let all = object::map_mut(object::at_mut(&mut bound, &["metadata", "annotations"]));
        all.extend(annotations.clone());
    }
    set_scheduled(&mut bound, now);
    Ok(bound)
}

fn set_scheduled(pod: &mut Value, now: Timestamp) {
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null,
        "lastTransitionTime": object::time(now)});
    let conditions = object::at_mut(pod, &["status", "conditions"]);
    match conditions.as_array_mut() {
        Some(list) => {
            list.retain(|c| c["type"] != "PodScheduled");
            list.push(condition);
        }
        None => *conditions = json!([condition]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_bound_once() {
        let now: Timestamp = "2026-11-20T15:54:17Z".parse().unwrap();
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {}, "status": {"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}});
        let binding = json!({"metadata": {"annotations": {"a": "b"}}, "target": {"name": "n1"}});
        let bound = plan(&pod, &binding, now).unwrap();
        assert_eq!(bound["spec"]["nodeName"], "n1");
        assert_eq!(bound["metadata"]["annotations"]["a"], "b");
        assert_eq!(
            bound["status"]["conditions"],
            json!([{"type": "PodScheduled", "status": "True", "lastProbeTime": null,
                    "lastTransitionTime": "2026-11-20T15:54:17Z"}])
        );
        assert_eq!(
            plan(&bound, &binding, now).unwrap_err().message,
            "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\""
        );
        let other = json!({"metadata": {"uid": "v"}, "target": {"name": "n1"}});
        assert_eq!(plan(&pod, &other, now).unwrap_err().code, 409);
        assert_eq!(check(&json!({"target": {"kind": "Rack"}}), "p").unwrap_err().code, 422);
    }
}
