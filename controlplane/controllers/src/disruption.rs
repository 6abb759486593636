//! The disruption controller: how many pods of a PodDisruptionBudget may be evicted now. The counting is pure.

use crate::{
    cluster::Cluster,
    kinds::{BudgetStatus, Condition, Pod, PodDisruptionBudget, condition},
    runtime::{
        Error, Key, Next, WorkQueue, error::gone_is_fine, object::Kind, run_workers, selector,
    },
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::{apis::meta::v1::Time, util::intstr::IntOrString};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// Budgets worked on at one time.
const WORKERS: usize = 2;
/// An eviction that was granted but not followed by a deletion counts no longer after this (Kubernetes: 2 min).
const GRANTED_MAX: i64 = 120;

/// Registers the handlers and gives the work to be run.
pub(crate) fn start(cluster: &Arc<Cluster>) -> impl Future<Output = ()> + use<> {
    let queue = WorkQueue::new();
    let q = Arc::clone(&queue);
    cluster.budgets.on_change(move |change| {
        if let Some(budget) = &change.new {
            q.add(budget.key());
        }
    });
    let q = Arc::clone(&queue);
    let budgets = Arc::clone(&cluster.budgets);
    cluster.pods.on_change(move |change| {
        let Some(pod) = change.latest() else { return };
        for budget in budgets.in_namespace(pod.namespace()) {
            if change.both().any(|p| covers(&budget, p)) {
                q.add(budget.key());
            }
        }
    });
    let q = Arc::clone(&queue);
    let budgets = Arc::clone(&cluster.budgets);
    cluster.deployments.on_change(move |change| {
        if let Some(d) = change.latest() {
            budgets.in_namespace(d.namespace()).iter().for_each(|b| q.add(b.key()));
        }
    });
    let cluster = Arc::clone(cluster);
    run_workers("disruption-controller", queue, WORKERS, move |key| {
        let cluster = Arc::clone(&cluster);
        async move { reconcile(&cluster, &key).await }
    })
}

fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    budget.spec.selector.as_ref().is_some_and(|s| selector::matches(s, pod.labels()))
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Result<Next, Error> {
    let Some(budget) = cluster.budgets.get(key) else { return Ok(Next::Done) };
    let pods: Vec<Arc<Pod>> = cluster
        .pods
        .in_namespace(&key.namespace)
        .into_iter()
        .filter(|p| covers(&budget, p) && !p.is_finished())
        .collect();
    let scale = expected_by_owners(cluster, &pods);
    let status = plan_status(&budget, &pods, scale, cluster.now());
    let next = if status.disrupted_pods.is_empty() {
        Next::Done
    } else {
        Next::After(Duration::from_secs(u64::try_from(GRANTED_MAX).unwrap_or(0)))
    };
    if status == budget.status {
        return Ok(next);
    }
    let mut disrupted = json!(status.disrupted_pods);
    for gone in budget.status.disrupted_pods.keys() {
        if !status.disrupted_pods.contains_key(gone) {
            disrupted[gone] = serde_json::Value::Null;
        }
    }
    let patch = json!({
        "observedGeneration": status.observed_generation, "disruptedPods": disrupted,
        "disruptionsAllowed": status.disruptions_allowed, "currentHealthy": status.current_healthy,
        "desiredHealthy": status.desired_healthy, "expectedPods": status.expected_pods,
        "conditions": status.conditions,
    });
    gone_is_fine(cluster.budgets.patch_status(&budget.metadata, patch).await)?;
    Ok(next)
}

/// How many pods the owners of these pods want; a pod without a scalable owner counts as itself.
fn expected_by_owners(cluster: &Cluster, pods: &[Arc<Pod>]) -> i32 {
    let mut owners: BTreeSet<String> = BTreeSet::new();
    let mut total = 0;
    for pod in pods {
        let owner = pod.controller().filter(|o| o.kind == "ReplicaSet");
        let set = owner.and_then(|o| cluster.replica_sets.get(&Key::new(pod.namespace(), &o.name)));
        let Some(set) = set else {
            total += 1;
            continue;
        };
        let above = set.controller().filter(|o| o.kind == "Deployment");
        let above =
            above.and_then(|o| cluster.deployments.get(&Key::new(set.namespace(), &o.name)));
        let (uid, wanted) = match above {
            Some(d) => (d.uid().to_owned(), d.spec.replicas.unwrap_or(1)),
            None => (set.uid().to_owned(), set.wanted()),
        };
        if owners.insert(uid) {
            total += wanted;
        }
    }
    total
}

fn share(value: &IntOrString, total: i32) -> i32 {
    match value {
        IntOrString::Int(n) => *n,
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            i32::try_from((i64::from(total) * percent + 99).div_euclid(100)).unwrap_or(i32::MAX)
        }
    }
}

fn plan_status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    scale: i32,
    now: Timestamp,
) -> BudgetStatus {
    let count = i32::try_from(pods.len()).unwrap_or(i32::MAX);
    let (expected, desired) = match (&budget.spec.max_unavailable, &budget.spec.min_available) {
        (Some(max), _) => (scale, (scale - share(max, scale)).max(0)),
        (None, Some(IntOrString::Int(min))) => (count, *min),
        (None, Some(min)) => (scale, share(min, scale)),
        (None, None) => (count, 0),
    };
    let granted: BTreeMap<String, Time> = budget
        .status
        .disrupted_pods
        .iter()
        .filter(|(name, at)| {
            let waits = pods.iter().any(|p| p.name() == *name && !p.is_deleting());
            waits && now.as_second() - at.0.as_second() < GRANTED_MAX
        })
        .map(|(name, at)| (name.clone(), at.clone()))
        .collect();
    let counts =
        |p: &&Arc<Pod>| !p.is_deleting() && p.is_ready() && !granted.contains_key(p.name());
    let healthy = i32::try_from(pods.iter().filter(counts).count()).unwrap_or(i32::MAX);
    let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
    let (state, reason) =
        if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let old = condition(&budget.status.conditions, "DisruptionAllowed");
    let since = old.filter(|c| c.status == state).and_then(|c| c.last_transition_time.clone());
    let mut conditions: Vec<Condition> = budget
        .status
        .conditions
        .iter()
        .filter(|c| c.kind != "DisruptionAllowed")
        .cloned()
        .collect();
    conditions.push(Condition {
        kind: "DisruptionAllowed".into(),
        status: state.into(),
        reason: Some(reason.into()),
        message: Some(String::new()),
        observed_generation: Some(budget.generation()),
        last_transition_time: since.or(Some(Time(now))),
        ..Condition::default()
    });
    BudgetStatus {
        observed_generation: budget.generation(),
        disrupted_pods: granted,
        disruptions_allowed: allowed,
        current_healthy: healthy,
        desired_healthy: desired,
        expected_pods: expected,
        conditions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disruptions() {
        let now = Timestamp::from_second(1000).unwrap();
        let pod = |name: &str, ready: bool| {
            let ready = if ready { "True" } else { "False" };
            let status = json!({"conditions": [{"type": "Ready", "status": ready}]});
            Arc::new(
                serde_json::from_value::<Pod>(
                    json!({"metadata": {"name": name}, "spec": {}, "status": status}),
                )
                .unwrap(),
            )
        };
        let three = [pod("a", true), pod("b", true), pod("c", false)];
        for (spec, granted, expected) in [
            (json!({"minAvailable": 1}), json!({}), "1 of 2 healthy, 1 wanted"),
            (json!({"minAvailable": 2}), json!({}), "0 of 2 healthy, 2 wanted"),
            (json!({"minAvailable": "50%"}), json!({}), "0 of 2 healthy, 2 wanted"),
            (json!({"maxUnavailable": 1}), json!({}), "0 of 2 healthy, 2 wanted"),
            (json!({"maxUnavailable": "100%"}), json!({}), "2 of 2 healthy, 0 wanted"),
            (
                json!({"minAvailable": 1}),
                json!({"a": "1970-01-01T00:16:00Z"}),
                "0 of 1 healthy, 1 wanted",
            ),
            (
                json!({"minAvailable": 1}),
                json!({"a": "1970-01-01T00:10:00Z"}),
                "1 of 2 healthy, 1 wanted",
            ),
        ] {
            let budget: PodDisruptionBudget = serde_json::from_value(
                json!({"metadata": {"name": "b"}, "spec": spec, "status": {"disruptedPods": granted}}),
            )
            .unwrap();
            let s = plan_status(&budget, &three, 3, now);
            let text = format!(
                "{} of {} healthy, {} wanted",
                s.disruptions_allowed, s.current_healthy, s.desired_healthy
            );
            assert_eq!(text, expected, "{:?}", budget.spec);
        }
    }
}
