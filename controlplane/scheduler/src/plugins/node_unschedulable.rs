//! NodeUnschedulable: cordoned nodes take only pods that tolerate the cordon.

use crate::{
    node::NodeInfo,
    plugin::{Check, ClusterEvent, Plugin, Reason},
    plugins::taint_toleration::tolerates,
    pod::PodInfo,
    snapshot::Snapshot,
};
use k8s_openapi::api::core::v1::Taint;

#[derive(Debug)]
pub(crate) struct NodeUnschedulable;

struct Prepared {
    tolerated: bool,
}

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }
    fn prepare<'a>(&self, _: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Check + 'a>> {
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        Some(Box::new(Prepared { tolerated: tolerates(&pod.needs.tolerations, &taint) }))
    }
    fn wakes(&self, event: ClusterEvent) -> bool {
        matches!(event, ClusterEvent::NodeAdded | ClusterEvent::NodeUpdated)
    }
}

impl Check for Prepared {
    fn filter(&self, node: &NodeInfo) -> Result<(), Vec<Reason>> {
        if node.unschedulable && !self.tolerated {
            return Err(vec!["node(s) were unschedulable".into()]);
        }
        Ok(())
    }
}
