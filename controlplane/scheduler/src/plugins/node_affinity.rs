//! NodeAffinity: nodeSelector and required node affinity reject, preferred terms add score.

use crate::{
    node::NodeInfo,
    plugin::{Check, ClusterEvent, Plugin, Reason, normalize_by_max},
    pod::PodInfo,
    selector::{matches_node_term, matches_node_terms},
    snapshot::Snapshot,
};
use k8s_openapi::api::core::v1::{NodeAffinity as Terms, PreferredSchedulingTerm};

#[derive(Debug)]
pub(crate) struct NodeAffinity;

struct Prepared<'a> {
    pod: &'a PodInfo,
    preferred: &'a [PreferredSchedulingTerm],
}

fn terms(pod: &PodInfo) -> Option<&Terms> {
    pod.needs.affinity.as_ref()?.node_affinity.as_ref()
}

/// Whether the node satisfies the pod's node selector and required node affinity.
pub(crate) fn admits(pod: &PodInfo, node: &NodeInfo) -> bool {
    if pod.needs.node_selector.iter().any(|(k, v)| node.labels.get(k) != Some(v)) {
        return false;
    }
    let required =
        terms(pod).and_then(|t| t.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|r| matches_node_terms(&r.node_selector_terms, node))
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }
    fn weight(&self) -> i64 {
        2
    }
    fn prepare<'a>(&self, _: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Check + 'a>> {
        let preferred = terms(pod)
            .and_then(|t| t.preferred_during_scheduling_ignored_during_execution.as_deref())
            .unwrap_or_default();
        if pod.needs.node_selector.is_empty() && terms(pod).is_none() {
            return None;
        }
        Some(Box::new(Prepared { pod, preferred }))
    }
    fn wakes(&self, event: ClusterEvent) -> bool {
        matches!(event, ClusterEvent::NodeAdded | ClusterEvent::NodeUpdated)
    }
}

impl Check for Prepared<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Vec<Reason>> {
        if admits(self.pod, node) {
            return Ok(());
        }
        Err(vec!["node(s) didn't match Pod's node affinity/selector".into()])
    }
    fn scores(&self) -> bool {
        !self.preferred.is_empty()
    }
    fn score(&self, node: &NodeInfo) -> i64 {
        let liked = self.preferred.iter().filter(|t| matches_node_term(&t.preference, node));
        liked.map(|t| i64::from(t.weight)).sum()
    }
    fn normalize(&self, scores: &mut [i64]) {
        normalize_by_max(scores, false);
    }
}
