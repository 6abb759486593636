//! NodeResourcesFit: requests must fit into what is allocatable; emptier nodes score higher (LeastAllocated).

use crate::{
    node::NodeInfo,
    plugin::{Check, ClusterEvent, Plugin, Reason, SCORE_MAX},
    pod::{Needs, PodInfo},
    snapshot::Snapshot,
};

#[derive(Debug)]
pub(crate) struct NodeResourcesFit;

struct Prepared<'a>(&'a Needs);

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }
    fn prepare<'a>(&self, _: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Check + 'a>> {
        Some(Box::new(Prepared(&pod.needs)))
    }
    fn wakes(&self, event: ClusterEvent) -> bool {
        matches!(event, ClusterEvent::NodeAdded | ClusterEvent::NodeUpdated | ClusterEvent::PodGone)
    }
}

impl Check for Prepared<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Vec<Reason>> {
        let mut reasons: Vec<Reason> = Vec::new();
        if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) + 1 > node.pods_max {
            reasons.push("Too many pods".into());
        }
        let (wanted, used, all) = (&self.0.requests, &node.requested, &node.allocatable);
        for (name, wanted, used, all) in [
            ("Insufficient cpu", wanted.cpu_milli, used.cpu_milli, all.cpu_milli),
            ("Insufficient memory", wanted.memory, used.memory, all.memory),
            (
                "Insufficient ephemeral-storage",
                wanted.ephemeral_storage,
                used.ephemeral_storage,
                all.ephemeral_storage,
            ),
        ] {
            if wanted > 0 && wanted > all - used {
                reasons.push(name.into());
            }
        }
        for (name, wanted) in &wanted.extended {
            let left = all.extended.get(name).unwrap_or(&0) - used.extended.get(name).unwrap_or(&0);
            if *wanted > 0 && *wanted > left {
                reasons.push(format!("Insufficient {name}").into());
            }
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }
    fn scores(&self) -> bool {
        true
    }
    fn score(&self, node: &NodeInfo) -> i64 {
        let cpu = free_share(
            node.allocatable.cpu_milli,
            node.cpu_milli_assumed + self.0.cpu_milli_assumed,
        );
        let memory =
            free_share(node.allocatable.memory, node.memory_assumed + self.0.memory_assumed);
        i64::midpoint(cpu, memory)
    }
}

fn free_share(all: i64, used: i64) -> i64 {
    if all == 0 || used > all {
        return 0;
    }
    i64::try_from(i128::from(all - used) * i128::from(SCORE_MAX) / i128::from(all)).unwrap_or(0)
}
