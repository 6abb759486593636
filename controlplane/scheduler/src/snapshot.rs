//! The nodes and the pods on them, kept incrementally. Pure: no I/O, no clock.
//!
//! A pod is on at most one node; an assumed pod (decided, binding in flight) counts like a bound one.

use crate::{
    node::{NodeFacts, NodeInfo},
    pod::PodInfo,
    selector::Labels,
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// The state that placements are decided on.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    nodes: Vec<NodeInfo>,
    index: HashMap<Arc<str>, usize>,
    /// Node of each pod.
    pods: HashMap<Arc<str>, Arc<str>>,
    assumed: HashSet<Arc<str>>,
    /// Pods that have (anti-)affinity terms; while there are none, nobody has to look for them.
    pods_with_affinity: usize,
    /// Labels of namespaces, for terms with a namespace selector.
    pub namespaces: HashMap<String, Labels>,
}

impl Snapshot {
    /// Every known node.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.iter().filter(|n| n.known)
    }

    /// Whether some pod has inter-pod affinity or anti-affinity.
    #[must_use]
    pub fn has_affinity_pods(&self) -> bool {
        self.pods_with_affinity > 0
    }

    /// Takes a node's facts over; true when it is new or something that matters changed.
    pub fn set_node(&mut self, name: &Arc<str>, facts: NodeFacts) -> bool {
        self.entry(name).observe(facts)
    }

    /// Whether the node is known.
    #[must_use]
    pub fn has_node(&self, name: &str) -> bool {
        self.index.get(name).is_some_and(|at| self.nodes[*at].known)
    }

    /// Names of the known nodes.
    #[must_use]
    pub fn node_names(&self) -> HashSet<Arc<str>> {
        self.nodes().map(|n| Arc::clone(&n.name)).collect()
    }

    /// Forgets a node; pods still bound to it stay accounted under its name.
    pub fn remove_node(&mut self, name: &str) {
        let Some(at) = self.index.get(name).copied() else { return };
        if !self.nodes[at].pods.is_empty() {
            self.nodes[at].known = false;
            return;
        }
        self.drop_entry(at);
    }

    fn drop_entry(&mut self, at: usize) {
        let gone = self.nodes.swap_remove(at);
        self.index.remove(&gone.name);
        if let Some(moved) = self.nodes.get(at) {
            self.index.insert(Arc::clone(&moved.name), at);
        }
    }

    fn entry(&mut self, name: &Arc<str>) -> &mut NodeInfo {
        let at = *self.index.entry(Arc::clone(name)).or_insert_with(|| {
            self.nodes.push(NodeInfo::unknown(Arc::clone(name)));
            self.nodes.len() - 1
        });
        &mut self.nodes[at]
    }

    /// Puts a pod on a node as decided, before the API server knows.
    pub fn assume(&mut self, pod: &Arc<PodInfo>, node: &Arc<str>) {
        self.place(Arc::clone(pod), node);
        self.assumed.insert(Arc::clone(&pod.uid));
    }

    /// The API server says that the pod is on `node`; true when that is news.
    pub fn confirm(&mut self, pod: Arc<PodInfo>, node: &Arc<str>) -> bool {
        self.assumed.remove(&pod.uid);
        self.place(pod, node)
    }

    /// Undoes an assumption that is still unconfirmed; true when there was one.
    pub fn forget(&mut self, uid: &str) -> bool {
        self.assumed.contains(uid) && self.remove_pod(uid)
    }

    /// Whether the pod's binding is in flight.
    #[must_use]
    pub fn is_assumed(&self, uid: &str) -> bool {
        self.assumed.contains(uid)
    }

    /// UIDs of all pods that the API server confirmed on a node.
    #[must_use]
    pub fn confirmed_pods(&self) -> Vec<Arc<str>> {
        self.pods.keys().filter(|u| !self.assumed.contains(*u)).cloned().collect()
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: &Arc<str>) -> bool {
        let news = self.pods.get(&pod.uid) != Some(node);
        self.detach(&pod.uid);
        self.pods_with_affinity += usize::from(has_affinity(&pod));
        self.pods.insert(Arc::clone(&pod.uid), Arc::clone(node));
        self.entry(node).add(pod);
        news
    }

    /// Takes the pod off its node; true when it was on one.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        self.assumed.remove(uid);
        let Some(at) = self.detach(uid) else { return false };
        if !self.nodes[at].known && self.nodes[at].pods.is_empty() {
            self.drop_entry(at);
        }
        true
    }

    fn detach(&mut self, uid: &str) -> Option<usize> {
        let node = self.pods.remove(uid)?;
        let at = *self.index.get(&node)?;
        if self.nodes[at].pods.get(uid).is_some_and(|p| has_affinity(p)) {
            self.pods_with_affinity -= 1;
        }
        self.nodes[at].remove(uid);
        Some(at)
    }
}

fn has_affinity(pod: &PodInfo) -> bool {
    let affinity = pod.needs.affinity.as_ref();
    affinity.is_some_and(|a| a.pod_affinity.is_some() || a.pod_anti_affinity.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::{Needs, Resources};
    use proptest::prelude::*;

    fn pod(uid: u8, cpu: i64) -> Arc<PodInfo> {
        let requests = Resources { cpu_milli: cpu, ..Resources::default() };
        let needs = Needs { requests, ..Needs::default() };
        Arc::new(PodInfo {
            uid: uid.to_string().into(),
            owner: Some("o".into()),
            needs,
            ..PodInfo::default()
        })
    }

    proptest! {
        /// However pods come and go, a node's sums are the sums of its pods.
        #[test]
        fn sums_hold(steps in prop::collection::vec((0u8..4, 0u8..6, 0u8..3, 1i64..9), 0..60)) {
            let mut s = Snapshot::default();
            for (what, uid, node, cpu) in steps {
                let name: Arc<str> = node.to_string().into();
                match what {
                    0 => s.assume(&pod(uid, cpu), &name),
                    1 => { s.confirm(pod(uid, cpu), &name); }
                    2 => { s.remove_pod(&uid.to_string()); }
                    _ => { s.forget(&uid.to_string()); }
                }
                for n in &s.nodes {
                    let sum: i64 = n.pods.values().map(|p| p.needs.requests.cpu_milli).sum();
                    prop_assert_eq!(n.requested.cpu_milli, sum);
                    let count = i64::try_from(n.pods.len()).unwrap();
                    prop_assert_eq!(n.replicas.get("o").copied().unwrap_or(0), count);
                }
                let total: usize = s.nodes.iter().map(|n| n.pods.len()).sum();
                prop_assert_eq!(total, s.pods.len());
                prop_assert!(s.index.iter().all(|(n, at)| s.nodes[*at].name == *n));
            }
        }
    }
}
