//! NodeName: a pod that asks for a node by `metadata.name` through nodeName gets no other.
//!
//! A pod with `spec.nodeName` never reaches the queue, so this only guards a pod bound by somebody else meanwhile.

use crate::{
    node::NodeInfo,
    plugin::{Check, ClusterEvent, Plugin, Reason},
    pod::PodInfo,
    snapshot::Snapshot,
};

#[derive(Debug)]
pub(crate) struct NodeName;

struct Prepared<'a>(&'a str);

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }
    fn prepare<'a>(&self, _: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Check + 'a>> {
        Some(Box::new(Prepared(pod.node.as_deref()?)))
    }
    fn wakes(&self, event: ClusterEvent) -> bool {
        event == ClusterEvent::NodeAdded
    }
}

impl Check for Prepared<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Vec<Reason>> {
        if *node.name != *self.0 {
            return Err(vec!["node(s) didn't match the requested node name".into()]);
        }
        Ok(())
    }
}
