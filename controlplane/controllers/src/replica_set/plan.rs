//! Which pods to make or delete, and the status. Pure.

use crate::{
    kinds::{Condition, Pod, ReplicaSet, ReplicaSetStatus, condition},
    runtime::{object::Kind, selector, template::until_available},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use std::{cmp::Reverse, collections::HashMap, sync::Arc, time::Duration};

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The `surplus` pods that are the least loss, in upstream's order: unassigned, not running, not ready, cheap, doubled up
/// on a node, ready for a short time, restarted often, young.
pub(super) fn pods_to_delete(
    active: &[Arc<Pod>],
    related: &[Arc<Pod>],
    surplus: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|p| !p.is_finished() && !p.is_deleting()) {
        *on_node.entry(pod.node()).or_default() += 1;
    }
    let mut ranked = active.to_vec();
    ranked.sort_by_cached_key(|pod| {
        let phase = match pod.status.phase.as_deref() {
            Some("Running") => 2,
            Some("Unknown") => 1,
            _ => 0,
        };
        let ready = condition(&pod.status.conditions, "Ready").filter(|c| c.status == "True");
        let ready_since = ready.and_then(|c| c.last_transition_time.as_ref());
        let restarts = pod.status.container_statuses.iter().map(|c| c.restart_count).max();
        let cost: i32 =
            pod.annotations().get(DELETION_COST).and_then(|c| c.parse().ok()).unwrap_or(0);
        (
            (!pod.node().is_empty(), phase, pod.is_ready(), cost),
            Reverse(on_node.get(pod.node()).copied().unwrap_or(0)),
            age_bucket(ready_since, now),
            Reverse(restarts.unwrap_or(0)),
            age_bucket(pod.metadata.creation_timestamp.as_ref(), now),
            pod.uid().to_owned(),
        )
    });
    ranked.truncate(surplus);
    ranked
}

/// Logarithm of the age, so that pods of about the same age are equal and the UID (random) decides.
fn age_bucket(since: Option<&Time>, now: Timestamp) -> u32 {
    let seconds = since.map_or(0, |t| (now.as_second() - t.0.as_second()).max(0));
    i64::BITS - seconds.leading_zeros()
}

/// When the next ready pod becomes available.
pub(super) fn next_availability(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    now: Timestamp,
) -> Option<Duration> {
    active.iter().filter_map(|p| until_available(p, set.spec.min_ready_seconds, now)).min()
}

/// The status that the pods make; `failure` is the reason and text of a create or delete that failed.
pub(super) fn status(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    terminating: usize,
    (failure, now): (Option<(&'static str, String)>, Timestamp),
) -> ReplicaSetStatus {
    let labels: Option<std::collections::BTreeMap<String, String>> =
        serde_json::from_value(super::template_labels(&set.spec.template)).ok();
    let ready: Vec<_> = active.iter().filter(|p| p.is_ready()).collect();
    let available = |p: &&&Arc<Pod>| until_available(p, set.spec.min_ready_seconds, now).is_none();
    let old = condition(&set.status.conditions, "ReplicaFailure");
    let mut conditions: Vec<Condition> =
        set.status.conditions.iter().filter(|c| c.kind != "ReplicaFailure").cloned().collect();
    match (failure, old) {
        (Some(_), Some(old)) => conditions.push(old.clone()),
        (Some((reason, message)), None) => conditions.push(Condition {
            kind: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
            ..Condition::default()
        }),
        (None, _) => {}
    }
    ReplicaSetStatus {
        replicas: count(active.len()),
        fully_labeled_replicas: count(
            active.iter().filter(|p| selector::matches_map(labels.as_ref(), p.labels())).count(),
        ),
        ready_replicas: count(ready.len()),
        available_replicas: count(ready.iter().filter(available).count()),
        terminating_replicas: Some(count(terminating)),
        observed_generation: set.generation(),
        conditions,
    }
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// The patch that makes the status so; `None` when it is so already.
pub(super) fn status_patch(set: &ReplicaSet, status: &ReplicaSetStatus) -> Option<Value> {
    if set.status == *status {
        return None;
    }
    Some(json!({
        "replicas": status.replicas,
        "fullyLabeledReplicas": status.fully_labeled_replicas,
        "readyReplicas": status.ready_replicas,
        "availableReplicas": status.available_replicas,
        "terminatingReplicas": status.terminating_replicas,
        "observedGeneration": status.observed_generation,
        "conditions": status.conditions,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(text: &str) -> Arc<Pod> {
        // name node phase ready(seconds ago or -) restarts cost
        let f: Vec<&str> = text.split_whitespace().collect();
        let now = Timestamp::from_second(10_000).unwrap();
        let at =
            |ago: &str| (now - jiff::SignedDuration::from_secs(ago.parse().unwrap())).to_string();
        let conditions = if f[3] == "-" {
            json!([])
        } else {
            json!([{"type": "Ready", "status": "True", "lastTransitionTime": at(f[3])}])
        };
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": f[0], "namespace": "d", "uid": f[0], "creationTimestamp": at("1000"),
                    "annotations": {DELETION_COST: f[5]}},
                "spec": {"nodeName": if f[1] == "-" { "" } else { f[1] }},
                "status": {"phase": f[2], "conditions": conditions,
                    "containerStatuses": [{"restartCount": f[4].parse::<i32>().unwrap()}]},
            }))
            .unwrap(),
        )
    }

    #[test]
    fn the_least_loss_goes_first() {
        let pods: Vec<_> = [
            "old n1 Running 900 0 0",
            "restarted n2 Running 900 5 0",
            "fresh n2 Running 3 0 0",
            "crowded n3 Running 900 0 0",
            "crowded2 n3 Running 900 0 0",
            "crowded3 n3 Running 900 0 0",
            "dear n3 Running 3 9 100",
            "notready n1 Running - 0 0",
            "pending n1 Pending - 0 0",
            "unassigned - Pending - 0 0",
        ]
        .map(pod)
        .into();
        let now = Timestamp::from_second(10_000).unwrap();
        let order = pods_to_delete(&pods, &pods, pods.len(), now);
        let names: Vec<_> = order.iter().map(|p| p.name().to_owned()).collect();
        assert_eq!(
            names.join(" "),
            "unassigned pending notready crowded crowded2 crowded3 old fresh restarted dear"
        );
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let now = Timestamp::from_second(10_000).unwrap();
        let p = pod("a n Running 4 0 0");
        assert_eq!(until_available(&p, 10, now), Some(Duration::from_secs(6)));
        assert_eq!(until_available(&p, 4, now), None);
        assert_eq!(until_available(&p, 0, now), None);
    }
}
