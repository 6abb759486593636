//! The Deployment controller: rolls ReplicaSets of successive templates over.
//! Owns the ReplicaSets of a Deployment and its status; what to do is decided in [`plan`], [`scale`] and [`status`].

mod plan;
mod scale;
mod status;

use crate::{
    cluster::{Cluster, may_adopt},
    kinds::{Deployment, ReplicaSet},
    runtime::{
        Error, Key, Next, WorkQueue,
        error::gone_is_fine,
        events::Tone,
        object::Kind,
        run_workers, selector, template,
        write::{Deletion, without_zeros},
    },
};
use plan::{Fleet, Step};
use serde_json::json;
use std::sync::Arc;

const COMPONENT: &str = "deployment-controller";
/// Deployments worked on at one time.
const WORKERS: usize = 4;
/// Steps of one reconcile; a rollout needs at most three between two changes of its pods.
const STEPS_MAX: usize = 8;

/// Registers the handlers and gives the work to be run.
pub(crate) fn start(cluster: &Arc<Cluster>) -> impl Future<Output = ()> + use<> {
    let queue = WorkQueue::new();
    let q = Arc::clone(&queue);
    cluster.deployments.on_change(move |change| {
        if let Some(deployment) = change.latest() {
            q.add(deployment.key());
        }
    });
    let q = Arc::clone(&queue);
    let deployments = Arc::clone(&cluster.deployments);
    cluster.replica_sets.on_change(move |change| {
        for set in change.both() {
            match set.controller() {
                Some(owner) if owner.kind == "Deployment" => {
                    q.add(Key::new(set.namespace(), &owner.name));
                }
                Some(_) => {}
                None => deployments
                    .in_namespace(set.namespace())
                    .iter()
                    .filter(|d| selector::matches(&d.spec.selector, set.labels()))
                    .for_each(|d| q.add(d.key())),
            }
        }
    });
    // Recreate waits until the old pods are gone, which no ReplicaSet status tells.
    let q = Arc::clone(&queue);
    let sets = Arc::clone(&cluster.replica_sets);
    cluster.pods.on_change(move |change| {
        let Some(pod) = change.old.as_ref().filter(|_| change.new.is_none()) else { return };
        let set = pod.controller().and_then(|o| sets.get(&Key::new(pod.namespace(), &o.name)));
        if let Some(owner) = set.as_ref().and_then(|s| s.controller()) {
            q.add(Key::new(pod.namespace(), &owner.name));
        }
    });
    let cluster = Arc::clone(cluster);
    run_workers(COMPONENT, queue, WORKERS, move |key| {
        let cluster = Arc::clone(&cluster);
        async move { reconcile(&cluster, &key).await }
    })
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Result<Next, Error> {
    for _ in 0..STEPS_MAX {
        let Some(deployment) = cluster.deployments.get(key) else { return Ok(Next::Done) };
        if selector::is_empty(&deployment.spec.selector) {
            let message =
                "This deployment is selecting all pods. A non-empty selector is required.";
            tell(cluster, &deployment, Tone::Warning, ("SelectingAll", message.into()));
            return Ok(Next::Done);
        }
        let sets = claim(cluster, &deployment).await?;
        let old_pods_run =
            |set: &ReplicaSet| cluster.pods.owned_by(set.uid()).iter().any(|p| !p.is_finished());
        let fleet = Fleet::new(&deployment, sets, &old_pods_run);
        let steps = if deployment.is_deleting() { Vec::new() } else { plan::steps(&fleet) };
        tracing::debug!(deployment = %key, ?steps, "plan");
        if steps.is_empty() {
            return write_status(cluster, &fleet).await;
        }
        for step in steps {
            apply(cluster, &fleet, step).await?;
        }
    }
    Ok(Next::After(std::time::Duration::from_secs(1)))
}

async fn claim(cluster: &Cluster, owner: &Arc<Deployment>) -> Result<Vec<Arc<ReplicaSet>>, Error> {
    let mut claimed = Vec::new();
    for set in cluster.replica_sets.owned_by(owner.uid()) {
        if selector::matches(&owner.spec.selector, set.labels()) {
            claimed.push(set);
        } else if !owner.is_deleting() && !set.is_deleting() {
            let others: Vec<_> = set
                .metadata
                .owner_references
                .iter()
                .flatten()
                .filter(|o| o.uid != owner.uid())
                .collect();
            let patch = json!({"metadata": {"ownerReferences": others}});
            gone_is_fine(cluster.replica_sets.patch_object(&set.metadata, patch).await)?;
        }
    }
    if owner.is_deleting() {
        return Ok(claimed);
    }
    let fits = |s: &Arc<ReplicaSet>| {
        !s.is_deleting() && selector::matches(&owner.spec.selector, s.labels())
    };
    let orphans: Vec<_> =
        cluster.replica_sets.orphans_in(owner.namespace()).into_iter().filter(fits).collect();
    if orphans.is_empty() || !may_adopt(&cluster.deployments, owner).await? {
        return Ok(claimed);
    }
    for orphan in orphans {
        let mut owners = json!(orphan.metadata.owner_references.clone().unwrap_or_default());
        if let Some(owners) = owners.as_array_mut() {
            owners.push(owner.as_controller());
        }
        let patch = json!({"metadata": {"ownerReferences": owners}});
        claimed.push(cluster.replica_sets.patch_object(&orphan.metadata, patch).await?);
    }
    Ok(claimed)
}

async fn apply(cluster: &Cluster, fleet: &Fleet, step: Step) -> Result<(), Error> {
    let deployment = &fleet.deployment;
    match step {
        Step::Create { name, body } => create(cluster, fleet, name, body).await,
        Step::Annotate { set, patch } => {
            cluster.replica_sets.patch_object(&set.metadata, patch).await.map(drop)
        }
        Step::AnnotateDeployment(patch) => {
            cluster.deployments.patch_object(&deployment.metadata, patch).await.map(drop)
        }
        Step::Condition(condition) => {
            let conditions = status::with_condition(&deployment.status.conditions, condition);
            let patch = json!({ "conditions": status::stamped(conditions, cluster.now()) });
            cluster.deployments.patch_status(&deployment.metadata, patch).await.map(drop)
        }
        Step::Scale { set, to } => {
            let before = set.wanted();
            let patch = plan::scale_patch(deployment, to);
            cluster.replica_sets.patch_object(&set.metadata, patch).await?;
            if before != to {
                let direction = if to > before { "up" } else { "down" };
                let message =
                    format!("Scaled {direction} replica set {} from {before} to {to}", set.name());
                tell(cluster, deployment, Tone::Normal, ("ScalingReplicaSet", message));
            }
            Ok(())
        }
        Step::Delete { set } => {
            let how = Deletion { same_version: true, ..Deletion::default() };
            cluster.replica_sets.delete(&set.metadata, how).await
        }
    }
}

async fn create(
    cluster: &Cluster,
    fleet: &Fleet,
    name: String,
    body: serde_json::Value,
) -> Result<(), Error> {
    let deployment = &fleet.deployment;
    match cluster.replica_sets.create(deployment.namespace(), &body).await {
        Ok(set) => {
            let to = set.wanted();
            if to > 0 {
                let message = format!("Scaled up replica set {} from 0 to {to}", set.name());
                tell(cluster, deployment, Tone::Normal, ("ScalingReplicaSet", message));
            }
            let reason = ("NewReplicaSetCreated", format!("Created new replica set \"{name}\""));
            progress(cluster, fleet, "True", reason).await
        }
        Err(error) if error.is_already_exists() => {
            let key = Key::new(deployment.namespace(), &name);
            let there = cluster.replica_sets.live(&key).await?;
            let ours = there.as_ref().is_some_and(|s| {
                s.controller().is_some_and(|o| o.uid == deployment.uid())
                    && template::same(&s.spec.template, &deployment.spec.template)
            });
            if let (true, Some(set)) = (ours, there) {
                cluster.replica_sets.observe_write(set);
                return Ok(());
            }
            let collisions = deployment.status.collision_count.unwrap_or(0) + 1;
            let patch = json!({ "collisionCount": collisions });
            cluster.deployments.patch_status(&deployment.metadata, patch).await.map(drop)
        }
        Err(error) if error.is_namespace_terminating() => Err(error),
        Err(error) => {
            let message = format!("Failed to create new replica set \"{name}\": {error}");
            tell(cluster, deployment, Tone::Warning, ("ReplicaSetCreateError", message.clone()));
            progress(cluster, fleet, "False", ("ReplicaSetCreateError", message)).await?;
            Err(error)
        }
    }
}

async fn progress(
    cluster: &Cluster,
    fleet: &Fleet,
    value: &str,
    (reason, message): (&str, String),
) -> Result<(), Error> {
    if fleet.progress_deadline().is_none() {
        return Ok(());
    }
    // The patch needs the version of now: a create of ours does not change it, a patch does.
    let Some(latest) = cluster.deployments.get(&fleet.deployment.key()) else { return Ok(()) };
    let condition = status::condition("Progressing", value, reason, message);
    let conditions = status::with_condition(&latest.status.conditions, condition);
    let patch = json!({ "conditions": status::stamped(conditions, cluster.now()) });
    cluster.deployments.patch_status(&latest.metadata, patch).await.map(drop)
}

async fn write_status(cluster: &Cluster, fleet: &Fleet) -> Result<Next, Error> {
    let deployment = &fleet.deployment;
    let outcome = status::plan(fleet, cluster.now());
    if outcome.status != deployment.status {
        let patch = without_zeros(json!(outcome.status), &["terminatingReplicas"]);
        gone_is_fine(cluster.deployments.patch_status(&deployment.metadata, patch).await)?;
    }
    Ok(outcome.look_again.map_or(Next::Done, Next::After))
}

fn tell(cluster: &Cluster, deployment: &Deployment, tone: Tone, what: (&str, String)) {
    cluster.events.tell(COMPONENT, deployment, tone, what);
}
