//! The DaemonSet controller: one pod on every node that its template fits.
//! Owns these pods, their revisions and the status; where pods belong is decided in [`plan`].
//!
//! Not built: `maxSurge`. A rolling update always frees a node's old pod before it makes the new one.

mod plan;

use crate::{
    claim,
    cluster::Cluster,
    history,
    kinds::{DaemonSet, Pod},
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
use plan::Fit;
use serde_json::json;
use std::{collections::HashSet, sync::Arc, time::Duration};

const COMPONENT: &str = "daemonset-controller";
/// Counts that a status always shows.
const STATUS_ZEROS: [&str; 4] =
    ["currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"];
/// DaemonSets worked on at one time.
const WORKERS: usize = 2;
/// Creations or deletions in flight at one time.
const BATCH_MAX: usize = 32;
/// A failed pod is looked at for so long before it is replaced, so that a node that refuses it is not flooded.
const FAILED_GRACE: Duration = Duration::from_secs(10);

/// Registers the handlers and gives the work to be run.
pub(crate) fn start(cluster: &Arc<Cluster>) -> impl Future<Output = ()> + use<> {
    let queue = WorkQueue::new();
    let q = Arc::clone(&queue);
    cluster.daemon_sets.on_change(move |change| {
        if let Some(set) = change.latest() {
            q.add(set.key());
        }
    });
    let q = Arc::clone(&queue);
    let sets = Arc::clone(&cluster.daemon_sets);
    cluster.pods.on_change(move |change| {
        for pod in change.both() {
            match pod.controller() {
                Some(owner) if owner.kind == "DaemonSet" => {
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
    let q = Arc::clone(&queue);
    let sets = Arc::clone(&cluster.daemon_sets);
    cluster.nodes.on_change(move |change| {
        let facts = |n: &Arc<crate::kinds::Node>| (n.labels().clone(), n.spec.taints.clone());
        if change.old.as_ref().map(facts) != change.new.as_ref().map(facts) {
            sets.list().iter().for_each(|s| q.add(s.key()));
        }
    });
    let cluster = Arc::clone(cluster);
    run_workers(COMPONENT, queue, WORKERS, move |key| {
        let cluster = Arc::clone(&cluster);
        async move { reconcile(&cluster, &key).await }
    })
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Result<Next, Error> {
    let Some(set) = cluster.daemon_sets.get(key) else { return Ok(Next::Done) };
    if set.is_deleting() || selector::is_empty(&set.spec.selector) {
        return Ok(Next::Done);
    }
    let fit = Fit::read(&set.spec.template);
    let hash = history::ensure(cluster, &*set, &set.spec.template).await?;
    let nodes = cluster.nodes.list();
    let mut next = Next::Done;
    let claimed = claim::pods(cluster, &cluster.daemon_sets, &*set, &set.spec.selector).await?;
    let acts = plan::acts(&set, &nodes, (&fit, &hash), (&claimed, cluster.now()));
    if acts.wait_for_failed {
        next = Next::After(FAILED_GRACE);
    }
    let result = apply(cluster, &set, &hash, acts).await;
    let pods = cluster.pods.owned_by(set.uid());
    let status = plan::status(&set, &nodes, (&fit, &hash), (&pods, cluster.now()));
    if status != set.status {
        let patch = without_zeros(json!(status), &STATUS_ZEROS);
        gone_is_fine(cluster.daemon_sets.patch_status(&set.metadata, patch).await)?;
    }
    result?;
    let live: HashSet<String> =
        pods.iter().filter_map(|p| p.labels().get(history::HASH).cloned()).chain([hash]).collect();
    history::prune(cluster, set.uid(), &live, set.spec.revision_history_limit).await?;
    Ok(next)
}

async fn apply(
    cluster: &Cluster,
    set: &Arc<DaemonSet>,
    hash: &str,
    acts: plan::Acts,
) -> Result<(), Error> {
    for pod in &acts.failed {
        let message = format!(
            "Found failed daemon pod {} on node {}, will try to kill it",
            pod.key(),
            pod.node()
        );
        cluster.events.tell(COMPONENT, &**set, Tone::Warning, ("FailedDaemonPod", message));
    }
    let doomed: Vec<&Arc<Pod>> = acts.failed.iter().chain(&acts.delete).collect();
    for batch in doomed.chunks(BATCH_MAX) {
        let gone = batch.iter().map(|p| cluster.pods.delete(&p.metadata, Deletion::default()));
        for (pod, result) in batch.iter().zip(join_all(gone).await) {
            result?;
            let message = format!("Deleted pod: {}", pod.name());
            cluster.events.tell(COMPONENT, &**set, Tone::Normal, ("SuccessfulDelete", message));
        }
    }
    let bodies: Vec<_> = acts.create.iter().map(|node| plan::pod(set, node, hash)).collect();
    for batch in bodies.chunks(BATCH_MAX) {
        let made = batch.iter().map(|body| cluster.pods.create(set.namespace(), body));
        for result in join_all(made).await {
            match result {
                Ok(pod) => {
                    let message = format!("Created pod: {}", pod.name());
                    let what = ("SuccessfulCreate", message);
                    cluster.events.tell(COMPONENT, &**set, Tone::Normal, what);
                }
                Err(error) if error.is_namespace_terminating() => return Ok(()),
                Err(error) => {
                    let what = ("FailedCreate", format!("Error creating: {error}"));
                    cluster.events.tell(COMPONENT, &**set, Tone::Warning, what);
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// The body of a pod of the template.
fn body(set: &DaemonSet) -> serde_json::Value {
    template::pod(set, &set.spec.template)
}
