//! The Job controller: runs pods until enough of them succeeded, or too many failed.
//! Owns these pods and the status; what to do is decided in [`plan`].
//!
//! Each pod carries a finalizer until its end is counted, so that none is counted twice or lost: ended pods are first
//! noted in `status.uncountedTerminatedPods`, then lose the finalizer, then become part of the counts.
//! Not built: `completionMode: Indexed`, `podFailurePolicy`, `successPolicy`, `podReplacementPolicy`.

mod plan;

use crate::{
    cluster::Cluster,
    kinds::{Job, Pod},
    runtime::{
        Error, Key, Next, WorkQueue,
        error::gone_is_fine,
        events::Tone,
        object::Kind,
        run_workers,
        write::{Deletion, without_zeros},
    },
};
use futures::future::join_all;
use plan::{FINALIZER, Plan};
use serde_json::json;
use std::{sync::Arc, time::Duration};

const COMPONENT: &str = "job-controller";
/// Jobs worked on at one time.
const WORKERS: usize = 2;
/// Creations or deletions in flight at one time.
const BATCH_MAX: usize = 32;

/// Registers the handlers and gives the work to be run.
pub(crate) fn start(cluster: &Arc<Cluster>) -> impl Future<Output = ()> + use<> {
    let queue = WorkQueue::new();
    let q = Arc::clone(&queue);
    cluster.jobs.on_change(move |change| {
        if let Some(job) = change.latest() {
            q.add(job.key());
        }
    });
    let q = Arc::clone(&queue);
    cluster.pods.on_change(move |change| {
        for pod in change.both() {
            if let Some(owner) = pod.controller().filter(|o| o.kind == "Job") {
                q.add(Key::new(pod.namespace(), &owner.name));
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
    let Some(job) = cluster.jobs.get(key) else { return Ok(Next::Done) };
    let pods = cluster.pods.owned_by(job.uid());
    if job.is_deleting() || plan::is_over(&job) {
        release(cluster, &pods).await?;
        return retire(cluster, &job).await;
    }
    if job.spec.completion_mode.as_deref() == Some("Indexed") {
        let message = "completionMode Indexed is not supported by this cluster".to_owned();
        cluster.events.tell(
            COMPONENT,
            &*job,
            Tone::Warning,
            ("UnsupportedCompletionMode", message),
        );
        return Ok(Next::Done);
    }
    let job = count_ended(cluster, job, &pods).await?;
    let pods = cluster.pods.owned_by(job.uid());
    let plan = plan::plan(&job, &pods, cluster.now());
    apply(cluster, &job, plan).await
}

/// Counts the pods that ended, each exactly once.
async fn count_ended(
    cluster: &Cluster,
    job: Arc<Job>,
    pods: &[Arc<Pod>],
) -> Result<Arc<Job>, Error> {
    let mut job = job;
    if let Some(noted) = plan::newly_ended(&job, pods) {
        let patch = json!({ "uncountedTerminatedPods": noted });
        job = cluster.jobs.patch_status(&job.metadata, patch).await?;
    }
    let noted = &job.status.uncounted_terminated_pods;
    if noted.succeeded.is_empty() && noted.failed.is_empty() {
        return Ok(job);
    }
    let ended: Vec<Arc<Pod>> = pods
        .iter()
        .filter(|p| noted.succeeded.iter().chain(&noted.failed).any(|u| u == p.uid()))
        .cloned()
        .collect();
    release(cluster, &ended).await?;
    let patch = json!({
        "succeeded": job.status.succeeded + plan::count(noted.succeeded.len()),
        "failed": job.status.failed + plan::count(noted.failed.len()),
        "uncountedTerminatedPods": {"succeeded": null, "failed": null},
    });
    cluster.jobs.patch_status(&job.metadata, without_zeros(patch, &[])).await
}

/// Takes our finalizer off.
async fn release(cluster: &Cluster, pods: &[Arc<Pod>]) -> Result<(), Error> {
    for pod in pods.iter().filter(|p| plan::is_tracked(p)) {
        let left: Vec<&String> =
            pod.metadata.finalizers.iter().flatten().filter(|f| *f != FINALIZER).collect();
        let patch = json!({"metadata": {"finalizers": left}});
        gone_is_fine(cluster.pods.patch_object(&pod.metadata, patch).await)?;
    }
    Ok(())
}

/// A finished Job with a time to live is deleted after it.
async fn retire(cluster: &Cluster, job: &Job) -> Result<Next, Error> {
    match plan::until_retired(job, cluster.now()).filter(|_| !job.is_deleting()) {
        None => Ok(Next::Done),
        Some(wait) if wait.is_zero() => {
            let how = Deletion { same_version: true, ..Deletion::default() };
            cluster.jobs.delete(&job.metadata, how).await.map(|()| Next::Done)
        }
        Some(wait) => Ok(Next::After(wait)),
    }
}

async fn apply(cluster: &Cluster, job: &Arc<Job>, plan: Plan) -> Result<Next, Error> {
    for batch in plan.delete.chunks(BATCH_MAX) {
        let gone = batch.iter().map(|p| cluster.pods.delete(&p.metadata, Deletion::default()));
        for (pod, result) in batch.iter().zip(join_all(gone).await) {
            result?;
            let what = ("SuccessfulDelete", format!("Deleted pod: {}", pod.name()));
            cluster.events.tell(COMPONENT, &**job, Tone::Normal, what);
        }
    }
    let body = plan::pod(job);
    let mut left = plan.create;
    while left > 0 {
        let now = left.min(BATCH_MAX);
        for made in join_all((0..now).map(|_| cluster.pods.create(job.namespace(), &body))).await {
            match made {
                Ok(pod) => {
                    let what = ("SuccessfulCreate", format!("Created pod: {}", pod.name()));
                    cluster.events.tell(COMPONENT, &**job, Tone::Normal, what);
                }
                Err(error) if error.is_namespace_terminating() => return Ok(Next::Done),
                Err(error) => {
                    let what = ("FailedCreate", format!("Error creating: {error}"));
                    cluster.events.tell(COMPONENT, &**job, Tone::Warning, what);
                    return Err(error);
                }
            }
        }
        left -= now;
    }
    if let Some((tone, reason, message)) = plan.event {
        cluster.events.tell(COMPONENT, &**job, tone, (reason, message));
    }
    if let Some(patch) = plan.status {
        let kept = ["terminating", "ready"];
        let patch = without_zeros(patch, &kept);
        gone_is_fine(cluster.jobs.patch_status(&job.metadata, patch).await)?;
    }
    Ok(plan.look_again.map_or(Next::Done, |wait| Next::After(wait.max(Duration::from_millis(100)))))
}
