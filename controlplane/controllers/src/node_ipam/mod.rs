//! Node IPAM: every node gets its own part of the cluster's pod ranges. The choice is pure in [`plan`].
//! One worker only: two nodes never get the same part from one controller, and the write is guarded by the version.

mod plan;

use crate::{
    cluster::Cluster,
    runtime::{Error, Key, Next, WorkQueue, events::Tone, object::Kind, run_workers},
};
use serde_json::json;
use std::sync::{Arc, Mutex, PoisonError};

const COMPONENT: &str = "cidrAllocator";

/// Registers the handlers and gives the work to be run.
pub(crate) fn start(cluster: &Arc<Cluster>) -> impl Future<Output = ()> + use<> {
    let queue = WorkQueue::new();
    let q = Arc::clone(&queue);
    cluster.nodes.on_change(move |change| {
        if let Some(node) = &change.new
            && node.spec.pod_cidrs.is_empty()
        {
            q.add(node.key());
        }
    });
    let cluster = Arc::clone(cluster);
    // Ranges that were just freed are handed out last: their old routes and connections have time to go.
    let cursors = Arc::new(Mutex::new(vec![0u128; cluster.config.cluster_cidrs.len()]));
    run_workers(COMPONENT, queue, 1, move |key| {
        let (cluster, cursors) = (Arc::clone(&cluster), Arc::clone(&cursors));
        async move { reconcile(&cluster, &cursors, &key).await }
    })
}

async fn reconcile(
    cluster: &Cluster,
    cursors: &Mutex<Vec<u128>>,
    key: &Key,
) -> Result<Next, Error> {
    let Some(node) = cluster.nodes.get(key) else { return Ok(Next::Done) };
    if !node.spec.pod_cidrs.is_empty()
        || node.is_deleting()
        || cluster.config.cluster_cidrs.is_empty()
    {
        return Ok(Next::Done);
    }
    let used = cluster.nodes.list();
    let used: Vec<_> = used
        .iter()
        .flat_map(|n| n.spec.pod_cidrs.iter().chain(&n.spec.pod_cidr))
        .filter_map(|c| c.parse().ok())
        .collect();
    let chosen = {
        let mut cursors = cursors.lock().unwrap_or_else(PoisonError::into_inner);
        let ranges = cluster.config.cluster_cidrs.iter().zip(cursors.iter_mut());
        let pick = ranges.map(|(range, cursor)| {
            let config = &cluster.config;
            let mask =
                if range.addr().is_ipv4() { config.node_mask_ipv4 } else { config.node_mask_ipv6 };
            plan::next_free(range, mask, &used, cursor)
        });
        pick.collect::<Option<Vec<_>>>()
    };
    let Some(chosen) = chosen else {
        let message = format!("Node {} status is now: CIDRNotAvailable", node.name());
        cluster.events.tell(COMPONENT, &*node, Tone::Normal, ("CIDRNotAvailable", message));
        return Err(Error::Malformed {
            kind: "Node",
            name: node.name().into(),
            what: "no free pod CIDR is left in the cluster's ranges; enlarge them or remove nodes"
                .into(),
        });
    };
    let patch = json!({"spec": {"podCIDR": chosen[0], "podCIDRs": chosen}});
    cluster.nodes.patch_object(&node.metadata, patch).await?;
    tracing::info!(node = %key, cidrs = ?chosen, "pod CIDR allocated");
    Ok(Next::Done)
}
