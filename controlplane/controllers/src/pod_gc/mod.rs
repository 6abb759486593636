//! Pod garbage collection: pods of nodes that are gone, unscheduled pods in deletion, finished pods above the limit.
//! Decided in [`plan`] over the whole cache every few seconds.

mod plan;

use crate::{
    cluster::Cluster,
    kinds::Pod,
    runtime::{
        Error, Key,
        error::gone_is_fine,
        object::Kind,
        write::{Deletion, Format},
    },
};
use plan::Reason;
use serde_json::json;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// How often pods are looked at (Kubernetes: 20 s).
const PERIOD: Duration = Duration::from_secs(20);
/// A node must be missing this long before its pods go (Kubernetes: 40 s).
const QUARANTINE: Duration = Duration::from_secs(40);

/// Gives the work to be run.
pub(crate) fn start(cluster: &Arc<Cluster>) -> impl Future<Output = ()> + use<> {
    let cluster = Arc::clone(cluster);
    async move {
        let mut missing = HashMap::new();
        loop {
            pass(&cluster, &mut missing).await;
            tokio::time::sleep(PERIOD).await;
        }
    }
}

async fn pass(cluster: &Cluster, missing: &mut HashMap<String, Instant>) {
    let pods = cluster.pods.list();
    let known = |node: &str| cluster.nodes.get(&Key::new("", node)).is_some();
    let absent: Vec<String> = plan::absent_nodes(&pods, &known);
    missing.retain(|node, _| absent.contains(node));
    let mut gone = Vec::new();
    for node in absent {
        let since = *missing.entry(node.clone()).or_insert_with(Instant::now);
        if since.elapsed() < QUARANTINE {
            continue;
        }
        // The cache may lack a node that was just made; only the API server's word counts.
        match cluster.nodes.live(&Key::new("", &node)).await {
            Ok(None) => gone.push(node),
            Ok(Some(_)) => {}
            Err(error) => tracing::warn!(%node, %error, "cannot look for a node"),
        }
    }
    for (pod, reason) in plan::doomed(&pods, &gone, cluster.config.terminated_pods_max) {
        tracing::info!(pod = %pod.key(), ?reason, "pod garbage collected");
        if let Err(error) = collect(cluster, &pod, reason).await {
            tracing::warn!(pod = %pod.key(), %error, "pod not collected; trying again");
        }
    }
}

async fn collect(cluster: &Cluster, pod: &Pod, reason: Reason) -> Result<(), Error> {
    if !pod.is_finished() {
        let mut status = json!({"phase": "Failed"});
        if reason == Reason::NodeGone {
            status["conditions"] = json!([{
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                "message": "PodGC: node no longer exists",
                "lastTransitionTime": cluster.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            }]);
        }
        let patch = json!({ "status": status });
        let marked =
            cluster.pods.patch(&pod.metadata, Some("status"), Format::Strategic, patch).await;
        gone_is_fine(marked)?;
    }
    let how = Deletion { grace_seconds: Some(0), ..Deletion::default() };
    cluster.pods.delete(&pod.metadata, how).await
}
