//! What the scheduler keeps of a node, and the sums over the pods on it. Pure.

use crate::{
    pod::{HostPort, PodInfo, Resources, or_default, projection, slim_meta},
    quantity,
    selector::Labels,
};
use k8s_openapi::{
    ClusterResourceScope, api::core::v1::Taint, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::Deserialize;
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// A node as it comes over the wire.
#[derive(Debug, Clone, Deserialize)]
pub struct NodeObject {
    #[serde(deserialize_with = "slim_meta")]
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "or_default")]
    spec: Spec,
    #[serde(default, deserialize_with = "or_default")]
    status: Status,
}
projection!(NodeObject, ClusterResourceScope, "Node", "nodes");

#[derive(Debug, Clone, Default, Deserialize)]
struct Spec {
    #[serde(default, deserialize_with = "or_default")]
    unschedulable: bool,
    #[serde(default, deserialize_with = "or_default")]
    taints: Vec<Taint>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Status {
    #[serde(default, deserialize_with = "or_default")]
    allocatable: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    capacity: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    images: Vec<Image>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Image {
    #[serde(default, deserialize_with = "or_default")]
    names: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    size_bytes: i64,
}

/// The part of a node that its owner sets; a change of it can make pods fit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeFacts {
    /// Labels.
    pub labels: Labels,
    /// `spec.taints`.
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// `status.allocatable`, or capacity where a node reports none.
    pub allocatable: Resources,
    /// Pods it can hold.
    pub pods_max: i64,
    /// Bytes of the images it has, by each of their names.
    pub images: BTreeMap<String, i64>,
}

/// A node with the pods on it, assumed ones included.
#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    /// Name.
    pub name: Arc<str>,
    /// False while only pods of it are known.
    pub known: bool,
    facts: NodeFacts,
    /// Sum of the pods' requests.
    pub requested: Resources,
    /// The same with the assumption for containers that request nothing.
    pub cpu_milli_assumed: i64,
    /// The same with the assumption for containers that request nothing.
    pub memory_assumed: i64,
    /// Pods by UID.
    pub pods: HashMap<Arc<str>, Arc<PodInfo>>,
    /// Running replicas by UID of their owner.
    pub replicas: HashMap<Arc<str>, i64>,
    ports: Vec<HostPort>,
}

impl std::ops::Deref for NodeInfo {
    type Target = NodeFacts;
    fn deref(&self) -> &NodeFacts {
        &self.facts
    }
}

impl NodeInfo {
    /// A node of which nothing but pods is known yet.
    #[must_use]
    pub fn unknown(name: Arc<str>) -> Self {
        Self { name, ..Self::default() }
    }

    /// Takes the facts over; true when they changed.
    pub fn observe(&mut self, facts: NodeFacts) -> bool {
        let changed = !self.known || self.facts != facts;
        self.known = true;
        self.facts = facts;
        changed
    }

    /// Counts a pod in.
    pub fn add(&mut self, pod: Arc<PodInfo>) {
        self.account(&pod, 1);
        self.ports.extend(pod.needs.ports.iter().cloned());
        self.pods.insert(Arc::clone(&pod.uid), pod);
    }

    /// Counts a pod out.
    pub fn remove(&mut self, uid: &str) {
        let Some(pod) = self.pods.remove(uid) else { return };
        self.account(&pod, -1);
        for port in &pod.needs.ports {
            if let Some(at) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(at);
            }
        }
    }

    fn account(&mut self, pod: &PodInfo, sign: i64) {
        self.requested.add(&pod.needs.requests, sign);
        self.cpu_milli_assumed += sign * pod.needs.cpu_milli_assumed;
        self.memory_assumed += sign * pod.needs.memory_assumed;
        let Some(owner) = pod.owner.as_ref().filter(|_| !pod.terminating) else { return };
        let count = self.replicas.entry(Arc::clone(owner)).or_default();
        *count += sign;
        if *count == 0 {
            self.replicas.remove(owner);
        }
    }

    /// Whether one of the node's pods holds a port that collides with `wanted`.
    #[must_use]
    pub fn port_taken(&self, wanted: &HostPort) -> bool {
        self.ports.iter().any(|p| {
            p.port == wanted.port
                && p.protocol == wanted.protocol
                && (p.ip == wanted.ip || p.ip == "0.0.0.0" || wanted.ip == "0.0.0.0")
        })
    }
}

impl NodeObject {
    /// Name and facts of the node.
    #[must_use]
    pub fn into_facts(self) -> (Arc<str>, NodeFacts) {
        let status = self.status;
        let list =
            if status.allocatable.is_empty() { &status.capacity } else { &status.allocatable };
        let named =
            |i: &Image| i.names.iter().map(|n| (n.clone(), i.size_bytes)).collect::<Vec<_>>();
        let facts = NodeFacts {
            labels: self.metadata.labels.unwrap_or_default(),
            taints: self.spec.taints,
            unschedulable: self.spec.unschedulable,
            pods_max: list.get("pods").and_then(|p| quantity::parse_units(p)).unwrap_or(0),
            allocatable: Resources::from_list(list),
            images: status.images.iter().flat_map(named).collect(),
        };
        (self.metadata.name.unwrap_or_default().into(), facts)
    }
}
