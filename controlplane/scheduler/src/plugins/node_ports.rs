//! NodePorts: a host port can be held by one pod per node.

use crate::{
    node::NodeInfo,
    plugin::{Check, ClusterEvent, Plugin, Reason},
    pod::{HostPort, PodInfo},
    snapshot::Snapshot,
};

#[derive(Debug)]
pub(crate) struct NodePorts;

struct Prepared<'a>(&'a [HostPort]);

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }
    fn prepare<'a>(&self, _: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Check + 'a>> {
        let ports = &pod.needs.ports;
        (!ports.is_empty()).then(|| Box::new(Prepared(ports)) as Box<dyn Check>)
    }
    fn wakes(&self, event: ClusterEvent) -> bool {
        matches!(event, ClusterEvent::NodeAdded | ClusterEvent::PodGone)
    }
}

impl Check for Prepared<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Vec<Reason>> {
        if self.0.iter().any(|p| node.port_taken(p)) {
            return Err(vec!["node(s) didn't have free ports for the requested pod ports".into()]);
        }
        Ok(())
    }
}
