//! The node lifecycle controller: which nodes are alive, their taints, and what happens to the pods of dead ones.
//!
//! Liveness is judged by when *we* saw a lease or a Ready condition change, on the monotonic clock; no node's clock and
//! no wall clock is believed. A master that hears no node at all assumes that it is the island: it marks, but neither
//! taints NoExecute nor evicts, and when a node comes back every grace period starts anew.

mod plan;

use crate::{
    cluster::{Cluster, NODE_LEASES},
    kinds::{Node, Pod, condition},
    runtime::{
        Error, Key,
        error::gone_is_fine,
        events::Tone,
        object::Kind,
        write::{Deletion, Format},
    },
};
use futures::{StreamExt, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use plan::Health;
use serde_json::json;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

const COMPONENT: &str = "node-controller";
/// Writes in flight at one time.
const WRITES_MAX: usize = 16;
/// A node that never reported is given this long (Kubernetes: node-startup-grace-period).
const STARTUP_GRACE: Duration = Duration::from_secs(60);

/// What was last seen of a node, and when.
struct Seen {
    renewed: Option<MicroTime>,
    ready: Option<(String, Option<jiff::Timestamp>)>,
    /// Begin of the grace period.
    at: Instant,
    /// When there was a sign of life; a node found Unknown at our start has given none.
    heard: Option<Instant>,
}

#[derive(Default)]
struct Watcher {
    seen: HashMap<String, Seen>,
    /// When a NoExecute taint was first seen, by node and taint key.
    tainted_since: HashMap<(String, String), Instant>,
    was_island: bool,
    marked: HashSet<String>,
}

/// Registers the handlers and gives the work to be run.
pub(crate) fn start(cluster: &Arc<Cluster>) -> impl Future<Output = ()> + use<> {
    let wake = Arc::new(Notify::new());
    let w = Arc::clone(&wake);
    cluster.nodes.on_change(move |_| w.notify_one());
    let cluster = Arc::clone(cluster);
    async move {
        let mut watcher = Watcher::default();
        loop {
            watcher.pass(&cluster).await;
            tokio::select! {
                () = wake.notified() => {}
                () = tokio::time::sleep(cluster.config.node_monitor_period) => {}
            }
        }
    }
}

impl Watcher {
    async fn pass(&mut self, cluster: &Cluster) {
        let nodes = cluster.nodes.list();
        let names: HashSet<&str> = nodes.iter().map(|n| n.name()).collect();
        self.seen.retain(|name, _| names.contains(name.as_str()));
        self.marked.retain(|name| names.contains(name.as_str()));
        for node in &nodes {
            self.observe(cluster, node);
        }
        let island = self.is_island(cluster);
        if self.was_island && !island {
            tracing::info!("a node is heard again; grace periods start anew");
            let now = Instant::now();
            self.seen.values_mut().for_each(|s| s.at = now);
            self.tainted_since.values_mut().for_each(|t| *t = now);
        } else if island && !self.was_island {
            tracing::warn!("no node is heard: this master may be the island; nothing is evicted");
        }
        self.was_island = island;
        let work: Vec<Job> = nodes.iter().map(|n| self.judge(cluster, n, island)).collect();
        let apply = |job: Job| async move {
            let result = job.apply(cluster).await;
            (job, result)
        };
        let done: Vec<(Job, Result<(), Error>)> =
            stream::iter(work).map(apply).buffer_unordered(WRITES_MAX).collect().await;
        for (job, result) in done {
            self.conclude(&job, result);
        }
        if !island {
            self.evict(cluster, &nodes).await;
        }
    }

    fn conclude(&mut self, job: &Job, result: Result<(), Error>) {
        let node = job.node.name();
        match result {
            Err(error) if error.is_expected() => {
                tracing::debug!(node, %error, "node changed meanwhile");
            }
            Err(error) => tracing::warn!(node, %error, "node lifecycle write failed"),
            Ok(()) if job.health == Health::Ready => {
                self.marked.remove(node);
            }
            Ok(()) if job.mark_pods => {
                self.marked.insert(node.to_owned());
            }
            Ok(()) => {}
        }
    }

    fn observe(&mut self, cluster: &Cluster, node: &Node) {
        let lease = cluster.node_leases.get(&Key::new(NODE_LEASES, node.name()));
        let renewed = lease.and_then(|l| l.spec.renew_time.clone());
        let ready = condition(&node.status.conditions, "Ready")
            // What we wrote ourselves is no sign of life.
            .filter(|c| c.status != "Unknown")
            .map(|c| (c.status.clone(), c.last_heartbeat_time.as_ref().map(|t| t.0)));
        let now = Instant::now();
        match self.seen.get_mut(node.name()) {
            None => {
                let unknown = plan::health(node) == Health::Unknown;
                let heard = (!unknown).then_some(now);
                self.seen.insert(node.name().to_owned(), Seen { renewed, ready, at: now, heard });
            }
            Some(seen) => {
                if seen.renewed != renewed || ready.is_some() && seen.ready != ready {
                    seen.at = now;
                    seen.heard = Some(now);
                    seen.renewed = renewed;
                    seen.ready = ready;
                }
            }
        }
    }

    /// No node at all was heard for half the grace period, in which a living one renews its lease twice.
    fn is_island(&self, cluster: &Cluster) -> bool {
        let limit = cluster.config.node_monitor_grace / 2;
        let silent = |s: &Seen| s.heard.is_none_or(|at| at.elapsed() > limit);
        !self.seen.is_empty() && self.seen.values().all(silent)
    }

    fn judge(&self, cluster: &Cluster, node: &Arc<Node>, island: bool) -> Job {
        let silent = self.seen.get(node.name()).map_or(Duration::ZERO, |s| s.at.elapsed());
        let never_reported = condition(&node.status.conditions, "Ready").is_none();
        let grace = if never_reported {
            STARTUP_GRACE.max(cluster.config.node_monitor_grace)
        } else {
            cluster.config.node_monitor_grace
        };
        let lost = silent > grace;
        let health = if lost { Health::Unknown } else { plan::health(node) };
        Job {
            node: Arc::clone(node),
            health,
            lost,
            island,
            mark_pods: health != Health::Ready && !island && !self.marked.contains(node.name()),
        }
    }

    async fn evict(&mut self, cluster: &Cluster, nodes: &[Arc<Node>]) {
        let mut current = HashSet::new();
        let mut tainted = HashMap::new();
        for node in nodes {
            let hard: Vec<_> =
                node.spec.taints.iter().filter(|t| t.effect == "NoExecute").cloned().collect();
            for taint in &hard {
                let key = (node.name().to_owned(), taint.key.clone());
                self.tainted_since.entry(key.clone()).or_insert_with(Instant::now);
                current.insert(key);
            }
            if !hard.is_empty() {
                tainted.insert(node.name().to_owned(), hard);
            }
        }
        self.tainted_since.retain(|key, _| current.contains(key));
        if tainted.is_empty() {
            return;
        }
        for pod in cluster.pods.list() {
            let Some(taints) = tainted.get(pod.node()) else { continue };
            if pod.is_deleting() || pod.is_finished() {
                continue;
            }
            let since = |key: &str| {
                let key = (pod.node().to_owned(), key.to_owned());
                self.tainted_since.get(&key).map_or(Duration::ZERO, Instant::elapsed)
            };
            if plan::must_go(&pod, taints, &since)
                && let Err(error) = evict_pod(cluster, &pod).await
            {
                tracing::warn!(pod = %pod.key(), %error, "eviction failed; trying again");
            }
        }
    }
}

async fn evict_pod(cluster: &Cluster, pod: &Pod) -> Result<(), Error> {
    let message = format!("Marking for deletion Pod {}", pod.key());
    cluster.events.tell(
        "taint-eviction-controller",
        pod,
        Tone::Normal,
        ("TaintManagerEviction", message),
    );
    let patch = json!({"status": {"conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
        "message": "Taint manager: deleting due to NoExecute taint",
        "lastTransitionTime": plan::stamp(cluster.now()),
    }]}});
    let marked = cluster.pods.patch(&pod.metadata, Some("status"), Format::Strategic, patch).await;
    if let Err(error) = gone_is_fine(marked)
        && !error.is_conflict()
    {
        return Err(error);
    }
    cluster.pods.delete(&pod.metadata, Deletion::default()).await
}

struct Job {
    node: Arc<Node>,
    health: Health,
    lost: bool,
    island: bool,
    mark_pods: bool,
}

impl Job {
    async fn apply(&self, cluster: &Cluster) -> Result<(), Error> {
        let mut node = Arc::clone(&self.node);
        let now = cluster.now();
        if self.lost
            && let Some(conditions) = plan::unknown_conditions(&node.status.conditions, now)
        {
            tracing::info!(node = %node.name(), "not heard within the grace period");
            let patch = json!({"status": {"conditions": conditions}});
            node = cluster
                .nodes
                .patch(&node.metadata, Some("status"), Format::Strategic, patch)
                .await?;
            let message = format!("Node {} status is now: NodeNotReady", node.name());
            cluster.events.tell(COMPONENT, &*node, Tone::Normal, ("NodeNotReady", message));
        }
        if let Some(taints) = plan::taints(&node, self.health, self.island, now) {
            let patch = json!({"spec": {"taints": taints}});
            cluster.nodes.patch_object(&node.metadata, patch).await?;
        }
        if self.mark_pods {
            mark_pods_not_ready(cluster, node.name()).await?;
        }
        Ok(())
    }
}

/// So that the endpoints of a dead node leave in seconds, not when its pods are evicted.
async fn mark_pods_not_ready(cluster: &Cluster, node: &str) -> Result<(), Error> {
    let now = cluster.now();
    for pod in cluster.pods.list().iter().filter(|p| p.node() == node && p.is_ready()) {
        let patch = json!({"status": {"conditions": [
            {"type": "Ready", "status": "False", "lastTransitionTime": plan::stamp(now)}
        ]}});
        let result =
            cluster.pods.patch(&pod.metadata, Some("status"), Format::Strategic, patch).await;
        gone_is_fine(result)?;
        let message = "Node is not ready".to_owned();
        cluster.events.tell(COMPONENT, &**pod, Tone::Warning, ("NodeNotReady", message));
    }
    Ok(())
}
