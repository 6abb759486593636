//! The seam of a scheduling plugin: prepare once per pod, then filter and score node by node. Pure.

use crate::{node::NodeInfo, pod::PodInfo, snapshot::Snapshot};
use std::borrow::Cow;

/// Highest score of a node in one plugin after normalisation.
pub const SCORE_MAX: i64 = 100;

/// Something that happened in the cluster and may let a waiting pod fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterEvent {
    /// A node appeared.
    NodeAdded,
    /// Labels, taints, cordon or allocatable of a node changed.
    NodeUpdated,
    /// A node went away.
    NodeDeleted,
    /// A pod was bound or a bound pod's labels changed.
    PodAssigned,
    /// A bound pod went away or finished.
    PodGone,
}

/// Why a node is not feasible: upstream's text without the count.
pub type Reason = Cow<'static, str>;

/// One aspect of placement, under its upstream name.
pub trait Plugin: Sync {
    /// Upstream's name.
    fn name(&self) -> &'static str;
    /// Weight of its score in the sum.
    fn weight(&self) -> i64 {
        1
    }
    /// What can be computed once for the pod; `None` when the pod has nothing to do with the plugin.
    fn prepare<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Check + 'a>>;
    /// Whether the event may make a pod feasible that this plugin rejected.
    fn wakes(&self, event: ClusterEvent) -> bool;
}

/// A plugin prepared for one pod.
pub trait Check {
    /// Whether the pod may go to the node; every reason why not.
    fn filter(&self, _node: &NodeInfo) -> Result<(), Vec<Reason>> {
        Ok(())
    }
    /// Whether `score` says anything.
    fn scores(&self) -> bool {
        false
    }
    /// How well the node suits; higher is better unless `normalize` turns it around.
    fn score(&self, _node: &NodeInfo) -> i64 {
        0
    }
    /// Told the feasible nodes before any is scored.
    fn before_score(&mut self, _nodes: &[&NodeInfo]) {}
    /// Brings the scores of all feasible nodes to 0..=100.
    fn normalize(&self, _scores: &mut [i64]) {}
}

/// Scales to 0..=100 by the highest score; `reverse` makes the lowest the best (upstream's DefaultNormalizeScore).
pub(crate) fn normalize_by_max(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        if max == 0 {
            *score = if reverse { SCORE_MAX } else { *score };
            continue;
        }
        *score = SCORE_MAX * *score / max;
        if reverse {
            *score = SCORE_MAX - *score;
        }
    }
}
