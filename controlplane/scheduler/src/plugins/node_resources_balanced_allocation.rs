//! NodeResourcesBalancedAllocation: prefers nodes whose CPU and memory fill up evenly.

use crate::{
    node::NodeInfo,
    plugin::{Check, ClusterEvent, Plugin, SCORE_MAX},
    pod::{PodInfo, Resources},
    snapshot::Snapshot,
};

#[derive(Debug)]
pub(crate) struct NodeResourcesBalancedAllocation;

struct Prepared<'a>(&'a Resources);

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }
    fn prepare<'a>(&self, _: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Check + 'a>> {
        // A pod without requests leaves every node as balanced as it was.
        let wanted = &pod.needs.requests;
        (wanted.cpu_milli > 0 || wanted.memory > 0)
            .then(|| Box::new(Prepared(wanted)) as Box<dyn Check>)
    }
    fn wakes(&self, _: ClusterEvent) -> bool {
        false
    }
}

impl Check for Prepared<'_> {
    fn scores(&self) -> bool {
        true
    }
    fn score(&self, node: &NodeInfo) -> i64 {
        let cpu = filled(node.requested.cpu_milli + self.0.cpu_milli, node.allocatable.cpu_milli);
        let memory = filled(node.requested.memory + self.0.memory, node.allocatable.memory);
        // The standard deviation of two values is half their difference.
        let apart = cpu.abs_diff(memory) / 2;
        i64::try_from((PARTS - apart) * SCORE_MAX.unsigned_abs() / PARTS).unwrap_or(0)
    }
}

/// A whole, in the parts that shares are counted in.
const PARTS: u64 = 1_000_000;

fn filled(used: i64, all: i64) -> u64 {
    if all <= 0 {
        return PARTS;
    }
    let parts = i128::from(used.max(0)) * i128::from(PARTS) / i128::from(all);
    u64::try_from(parts).unwrap_or(PARTS).min(PARTS)
}
