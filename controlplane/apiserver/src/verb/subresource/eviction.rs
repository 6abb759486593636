//! `eviction`: a delete that asks the pod's disruption budget first (Kubernetes 1.36, `EvictionREST`).
//! Must not delete what the budget forbids.

use std::sync::Arc;

use apimachinery::{
    gvk::GroupVersionKind,
    object,
    selector::LabelSelector,
    status::{ApiError, Cause, Details, Reason},
};
use http::Response;
use jiff::Timestamp;
use serde_json::{Value, json};
use store::{Entry, KeyRange, Range};

use super::created;
use crate::{
    admit::{self, Operation},
    body::Body,
    key,
    registry::{self, Alongside, Outcome},
    rules, stored,
    verb::{
        Call,
        delete::{self, DeleteOptions},
        write,
    },
};

const EVICTION: GroupVersionKind<'static> = GroupVersionKind::new("policy", "v1", "Eviction");
/// Kubernetes 1.36: evictions that a budget's controller has not seen happen yet.
const DISRUPTED_PODS_MAX: usize = 2000;
const RETRY_AFTER_SECONDS: u32 = 10;
const ATTEMPTS_MAX: usize = 16;

pub(super) async fn run(call: &Call, body: Body) -> Result<Response<Body>, ApiError> {
    let rules::Decoded { object: mut eviction, .. } =
        write::read_kind(call, body, EVICTION).await?;
    write::check_namespace(call, &mut eviction)?;
    let given = object::name(&eviction);
    if !given.is_empty() && given != call.name() {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    admit::mutate(call, Operation::Create, &mut eviction, None).await?;
    let mut options = DeleteOptions::of_object(&eviction["deleteOptions"], &call.query)?;
    let entry = call.server.registry().get(&call.resource, call.namespace(), call.name())?;
    let pod = stored::decode(&entry)?;
    delete::check_preconditions(&call.resource, &options, &pod)?;
    if !ignores_budgets(&pod) && !is_released(call, &pod, options.dry).await? {
        return Err(ApiError::modified(registry::group_resource(&call.resource), call.name()));
    }
    if !options.dry {
        let version = mark(call, &options).await?;
        options.follow(&version);
    }
    delete::delete(call, call.namespace(), call.name(), &options).await?;
    Ok(created(call))
}

/// A pod that doesn't run disrupts nothing.
fn ignores_budgets(pod: &Value) -> bool {
    let phase = object::text(pod, &["status", "phase"]);
    matches!(phase, "Succeeded" | "Failed" | "Pending") || object::is_terminating(pod)
}

/// Takes one disruption from the pod's budget. `false`: the budget kept changing.
async fn is_released(call: &Call, pod: &Value, dry: bool) -> Result<bool, ApiError> {
    for _ in 0..ATTEMPTS_MAX {
        let Some((entry, budget)) = budget_of(call, pod)? else { return Ok(true) };
        let Some(spent) = plan(&budget, pod, Timestamp::now())? else { return Ok(true) };
        if dry {
            return Ok(true);
        }
        let registry = call.server.registry();
        if let Outcome::Done(_) = registry.replace(&entry, &spent, Alongside::default()).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn budget_of(call: &Call, pod: &Value) -> Result<Option<(Arc<Entry>, Value)>, ApiError> {
    let row = call.server.row("policy", "poddisruptionbudgets")?;
    let range = Range::all(KeyRange::Prefix(key::collection(&row, call.namespace())));
    let found = call.server.registry().store().range(&range).map_err(registry::read_error)?;
    let labels = object::labels(pod);
    let mut matching = Vec::new();
    for entry in found.entries {
        let budget = stored::decode(&entry)?;
        let selector = LabelSelector::from_object(object::at(&budget, &["spec", "selector"]));
        if selector.is_ok_and(|s| s.matches(&labels)) {
            matching.push((entry, budget));
        }
    }
    if matching.len() > 1 {
        return Err(ApiError::internal(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        ));
    }
    Ok(matching.pop())
}

/// The budget after the eviction; `None` when it need not change.
fn plan(budget: &Value, pod: &Value, now: Timestamp) -> Result<Option<Value>, ApiError> {
    let status = |key: &str| budget["status"][key].as_i64().unwrap_or_default();
    let name = object::name(budget);
    if !is_ready(pod) {
        let always = object::text(budget, &["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow";
        let healthy =
            status("currentHealthy") >= status("desiredHealthy") && status("desiredHealthy") > 0;
        if always || healthy {
            return Ok(None);
        }
    }
    if status("observedGeneration") < object::generation(budget) {
        return Err(refused(format!(
            "The disruption budget {name} is still being processed by the server."
        )));
    }
    let disrupted = budget["status"]["disruptedPods"].as_object().map_or(0, serde_json::Map::len);
    if disrupted > DISRUPTED_PODS_MAX {
        return Err(forbidden(
            name,
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        ));
    }
    let allowed = status("disruptionsAllowed");
    if allowed < 0 {
        return Err(forbidden(name, "pdb disruptions allowed is negative"));
    }
    if allowed == 0 {
        return Err(refused(format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            status("desiredHealthy"),
            status("currentHealthy")
        )));
    }
    let mut spent = budget.clone();
    *object::at_mut(&mut spent, &["status", "disruptionsAllowed"]) = (allowed - 1).into();
    let at = object::time(now);
    *object::at_mut(&mut spent, &["status", "disruptedPods", object::name(pod)]) = at.into();
    Ok(Some(spent))
}

fn is_ready(pod: &Value) -> bool {
    object::list(pod, &["status", "conditions"])
        .any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn refused(why: String) -> ApiError {
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    let cause = Cause { reason: "DisruptionBudget".into(), message: why, ..Cause::default() };
    ApiError {
        details: Some(Box::new(Details {
            causes: vec![cause],
            retry_after_seconds: RETRY_AFTER_SECONDS,
            ..Details::default()
        })),
        ..ApiError::new(429, Reason::TooManyRequests, message)
    }
}

fn forbidden(name: &str, why: &str) -> ApiError {
    ApiError::forbidden(
        apimachinery::gvk::GroupResource::new("policy", "poddisruptionbudgets"),
        name,
        why,
    )
}

/// Says on the pod why it goes; the pod's version then.
async fn mark(call: &Call, options: &DeleteOptions) -> Result<String, ApiError> {
    for _ in 0..ATTEMPTS_MAX {
        let entry = call.server.registry().get(&call.resource, call.namespace(), call.name())?;
        let mut pod = stored::decode(&entry)?;
        delete::check_preconditions(&call.resource, options, &pod)?;
        if object::is_terminating(&pod) {
            return Ok(object::resource_version(&pod).to_owned());
        }
        let condition = json!({"type": "DisruptionTarget", "status": "True",
            "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
            "lastProbeTime": null, "lastTransitionTime": object::time(Timestamp::now())});
        let conditions = object::at_mut(&mut pod, &["status", "conditions"]);
        match conditions.as_array_mut() {
            Some(list) => {
                list.retain(|c| c["type"] != "DisruptionTarget");
                list.push(condition);
            }
            None => *conditions = json!([condition]),
        }
        let registry = call.server.registry();
        if let Outcome::Done(entry) = registry.replace(&entry, &pod, Alongside::default()).await? {
            return Ok(entry.mod_revision.to_string());
        }
    }
    Err(ApiError::modified(registry::group_resource(&call.resource), call.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_spent_and_then_refuses() {
        let now: Timestamp = "2026-11-20T15:54:17Z".parse().unwrap();
        let ready = json!({"metadata": {"name": "p"}, "status": {"phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}]}});
        let unready = json!({"metadata": {"name": "p"}, "status": {"phase": "Running"}});
        let budget = json!({"metadata": {"name": "b", "generation": 1}, "spec": {}, "status": {
            "observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 3, "desiredHealthy": 2}});
        let spent = plan(&budget, &ready, now).unwrap().unwrap();
        assert_eq!(spent["status"]["disruptionsAllowed"], 0);
        assert_eq!(spent["status"]["disruptedPods"]["p"], "2026-11-20T15:54:17Z");
        let error = plan(&spent, &ready, now).unwrap_err();
        assert_eq!((error.code, error.reason.as_str()), (429, "TooManyRequests"));
        let causes = &error.to_status()["details"]["causes"];
        assert_eq!(
            causes[0]["message"],
            "The disruption budget b needs 2 healthy pods and has 3 currently"
        );
        assert_eq!(
            plan(&spent, &unready, now).unwrap(),
            None,
            "an unhealthy pod over a healthy budget"
        );
        let mut stale = budget;
        stale["metadata"]["generation"] = json!(2);
        assert_eq!(plan(&stale, &ready, now).unwrap_err().code, 429);
    }
}
