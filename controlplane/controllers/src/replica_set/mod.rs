//! The ReplicaSet controller: as many pods of a template as are wanted.
//! Owns adoption, creation and deletion of the pods and the status; what to do is decided in [`plan`].

mod plan;

use crate::{
    claim,
    cluster::Cluster,
    kinds::{Pod, ReplicaSet},
    runtime::{
        Error, Key, Next, WorkQueue,
        error::gone_is_fine,
        events::Tone,
        object::Kind,
        run_workers, selector, template,
        write::{Deletion, without_zeros},
    },
};
use futures::future::join_all;
use serde_json::Value;
use std::sync::Arc;

const COMPONENT: &str = "replicaset-controller";
/// ReplicaSets worked on at one time.
const WORKERS: usize = 4;
/// Pods created or deleted in one reconcile (Kubernetes: 500).
const BURST_MAX: usize = 500;
/// First batch of creations; each success doubles it, a failure ends the round (Kubernetes: 1).
const BATCH_FIRST: usize = 1;
/// Creations in flight at one time.
const BATCH_MAX: usize = 64;

/// Registers the handlers and gives the work to be run.
pub(crate) fn start(cluster: &Arc<Cluster>) -> impl Future<Output = ()> + use<> {
    let queue = WorkQueue::new();
    let q = Arc::clone(&queue);
    cluster.replica_sets.on_change(move |change| {
        if let Some(set) = change.latest() {
            q.add(set.key());
        }
    });
    let q = Arc::clone(&queue);
    let sets = Arc::clone(&cluster.replica_sets);
    cluster.pods.on_change(move |change| {
        for pod in change.both() {
            match pod.controller() {
                Some(owner) if owner.kind == "ReplicaSet" => {
                    q.add(Key::new(pod.namespace(), &owner.name));
                }
                Some(_) => {}
                None => sets
                    .in_namespace(pod.namespace())
                    .iter()
                    .filter(|s| selector::matches(&s.spec.selector, pod.labels()))
                    .for_each(|s| q.add(s.key())),
            }
        }
    });
    let cluster = Arc::clone(cluster);
    run_workers(COMPONENT, queue, WORKERS, move |key| {
        let cluster = Arc::clone(&cluster);
        async move { reconcile(&cluster, &key).await }
    })
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Result<Next, Error> {
    let Some(set) = cluster.replica_sets.get(key) else { return Ok(Next::Done) };
    if selector::is_empty(&set.spec.selector) {
        return Ok(Next::Done);
    }
    let pods = claim::pods(cluster, &cluster.replica_sets, &*set, &set.spec.selector).await?;
    let (active, others): (Vec<_>, Vec<_>) =
        pods.into_iter().partition(|p| !p.is_finished() && !p.is_deleting());
    let terminating = others.iter().filter(|p| p.is_deleting() && !p.is_finished()).count();
    let outcome = if set.is_deleting() { Ok(()) } else { manage(cluster, &set, &active).await };
    // What was created or deleted just now counts from the next reconcile on, as upstream.
    let failure = outcome.as_ref().err().map(|f| (f.reason, f.error.to_string()));
    let now = cluster.now();
    let status = plan::status(&set, &active, terminating, (failure, now));
    if let Some(patch) = plan::status_patch(&set, &status) {
        let patch = without_zeros(patch, &["replicas", "terminatingReplicas"]);
        gone_is_fine(cluster.replica_sets.patch_status(&set.metadata, patch).await)?;
    }
    match outcome {
        Err(failure) if !failure.error.is_namespace_terminating() => Err(failure.error),
        _ => Ok(plan::next_availability(&set, &active, now).map_or(Next::Done, Next::After)),
    }
}

struct Failure {
    reason: &'static str,
    error: Error,
}

async fn manage(
    cluster: &Cluster,
    set: &Arc<ReplicaSet>,
    active: &[Arc<Pod>],
) -> Result<(), Failure> {
    let wanted = usize::try_from(set.wanted()).unwrap_or(0);
    if active.len() < wanted {
        create(cluster, set, (wanted - active.len()).min(BURST_MAX))
            .await
            .map_err(|error| Failure { reason: "FailedCreate", error })
    } else {
        let surplus = (active.len() - wanted).min(BURST_MAX);
        if surplus == 0 {
            return Ok(());
        }
        let related = related_pods(cluster, set);
        let doomed = plan::pods_to_delete(active, &related, surplus, cluster.now());
        delete(cluster, set, doomed)
            .await
            .map_err(|error| Failure { reason: "FailedDelete", error })
    }
}

/// Pods of all sets with the same owner: a node that holds many of them gives one up first.
fn related_pods(cluster: &Cluster, set: &ReplicaSet) -> Vec<Arc<Pod>> {
    let Some(owner) = set.controller() else { return cluster.pods.owned_by(set.uid()) };
    let siblings = cluster.replica_sets.owned_by(&owner.uid);
    siblings.iter().flat_map(|s| cluster.pods.owned_by(s.uid())).collect()
}

async fn create(cluster: &Cluster, set: &Arc<ReplicaSet>, count: usize) -> Result<(), Error> {
    let body = template::pod(&**set, &set.spec.template);
    let mut left = count;
    let mut batch = BATCH_FIRST;
    while left > 0 {
        let now = batch.min(left);
        let made = join_all((0..now).map(|_| cluster.pods.create(set.namespace(), &body))).await;
        let mut failed = None;
        for result in made {
            match result {
                Ok(pod) => {
                    let message = format!("Created pod: {}", pod.name());
                    tell(cluster, set, Tone::Normal, ("SuccessfulCreate", message));
                }
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            if !error.is_namespace_terminating() {
                let message = format!("Error creating: {}", text(&error));
                tell(cluster, set, Tone::Warning, ("FailedCreate", message));
            }
            return Err(error);
        }
        left -= now;
        batch = (batch * 2).min(BATCH_MAX);
    }
    Ok(())
}

async fn delete(cluster: &Cluster, set: &ReplicaSet, doomed: Vec<Arc<Pod>>) -> Result<(), Error> {
    let mut first_error = None;
    for batch in doomed.chunks(BATCH_MAX) {
        let gone = batch.iter().map(|p| cluster.pods.delete(&p.metadata, Deletion::default()));
        for (pod, result) in batch.iter().zip(join_all(gone).await) {
            match result {
                Ok(()) => {
                    let message = format!("Deleted pod: {}", pod.name());
                    tell(cluster, set, Tone::Normal, ("SuccessfulDelete", message));
                }
                Err(error) => {
                    let message = format!("Error deleting: {}", text(&error));
                    tell(cluster, set, Tone::Warning, ("FailedDelete", message));
                    first_error.get_or_insert(error);
                }
            }
        }
    }
    first_error.map_or(Ok(()), Err)
}

fn text(error: &Error) -> String {
    match error {
        Error::Api(kube::Error::Api(status)) => status.message.clone(),
        other => other.to_string(),
    }
}

fn tell(cluster: &Cluster, set: &ReplicaSet, tone: Tone, what: (&str, String)) {
    cluster.events.tell(COMPONENT, set, tone, what);
}

/// Labels of a template's metadata.
pub(crate) fn template_labels(template: &Value) -> Value {
    template["metadata"]["labels"].clone()
}
