//! What the scheduler keeps of a pod: the fields that placement depends on. Pure; no whole typed pods.

use crate::{quantity, selector::Labels};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Affinity, Toleration, TopologySpreadConstraint},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};
use serde::{Deserialize, Deserializer};
use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

/// CPU a container without a request counts for when nodes are compared (Kubernetes: 100m).
const CPU_MILLI_ASSUMED: i64 = 100;
/// Memory a container without a request counts for when nodes are compared (Kubernetes: 200 MB).
const MEMORY_ASSUMED: i64 = 200 * 1024 * 1024;

/// `metadata` without managed fields and annotations, which are most of its bytes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimMeta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<Labels>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    owner_references: Option<Vec<OwnerReference>>,
}

/// Reads `metadata`, leaving out what placement does not use.
pub(crate) fn slim_meta<'de, D: Deserializer<'de>>(from: D) -> Result<ObjectMeta, D::Error> {
    let m = SlimMeta::deserialize(from)?;
    Ok(ObjectMeta {
        name: m.name,
        namespace: m.namespace,
        uid: m.uid,
        resource_version: m.resource_version,
        labels: m.labels,
        creation_timestamp: m.creation_timestamp,
        deletion_timestamp: m.deletion_timestamp,
        owner_references: m.owner_references,
        ..ObjectMeta::default()
    })
}

/// An explicit null is as good as absent, as everywhere in Kubernetes.
pub(crate) fn or_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Implements `kube::Resource` for a projection.
macro_rules! projection {
    ($name:ident, $scope:ty, $kind:literal, $plural:literal) => {
        impl kube::Resource for $name {
            type DynamicType = ();
            type Scope = $scope;
            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }
            fn group((): &()) -> Cow<'_, str> {
                "".into()
            }
            fn version((): &()) -> Cow<'_, str> {
                "v1".into()
            }
            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}
pub(crate) use projection;

/// A pod as it comes over the wire.
#[derive(Debug, Clone, Deserialize)]
pub struct PodObject {
    #[serde(deserialize_with = "slim_meta")]
    metadata: ObjectMeta,
    spec: Spec,
    #[serde(default, deserialize_with = "or_default")]
    status: Status,
}
projection!(PodObject, NamespaceResourceScope, "Pod", "pods");

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
    scheduler_name: Option<String>,
    priority: Option<i32>,
    #[serde(default, deserialize_with = "or_default")]
    containers: Vec<Container>,
    #[serde(default, deserialize_with = "or_default")]
    init_containers: Vec<Container>,
    overhead: Option<BTreeMap<String, String>>,
    resources: Option<Requirements>,
    node_selector: Option<Labels>,
    affinity: Option<Box<Affinity>>,
    #[serde(default, deserialize_with = "or_default")]
    tolerations: Vec<Toleration>,
    #[serde(default, deserialize_with = "or_default")]
    topology_spread_constraints: Vec<TopologySpreadConstraint>,
    #[serde(default, deserialize_with = "or_default")]
    scheduling_gates: Vec<serde::de::IgnoredAny>,
    host_network: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    image: Option<String>,
    resources: Option<Requirements>,
    restart_policy: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    ports: Vec<Port>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Requirements {
    requests: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    host_port: Option<i32>,
    container_port: Option<i32>,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
    protocol: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Status {
    phase: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Deserialize)]
struct Condition {
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    kind: String,
    #[serde(default, deserialize_with = "or_default")]
    status: String,
    message: Option<String>,
}

/// Amounts of resources.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    /// Everything else, by name.
    pub extended: BTreeMap<String, i64>,
}

/// More than any node has, and a thousand times as much still counts without overflow.
const AMOUNT_MAX: i64 = 1 << 53;

impl Resources {
    /// Reads a resource list; entries that are no quantities count as zero (the API server refuses them).
    #[must_use]
    pub fn from_list(list: &BTreeMap<String, String>) -> Self {
        let mut all = Self::default();
        for (name, text) in list {
            let units = || quantity::parse_units(text).unwrap_or(0).min(AMOUNT_MAX);
            match name.as_str() {
                "cpu" => all.cpu_milli = quantity::parse_milli(text).unwrap_or(0).min(AMOUNT_MAX),
                "memory" => all.memory = units(),
                "ephemeral-storage" => all.ephemeral_storage = units(),
                "pods" => {}
                _ => {
                    all.extended.insert(name.clone(), units());
                }
            }
        }
        all
    }

    /// Adds `other` `sign` times.
    pub fn add(&mut self, other: &Self, sign: i64) {
        self.cpu_milli += sign * other.cpu_milli;
        self.memory += sign * other.memory;
        self.ephemeral_storage += sign * other.ephemeral_storage;
        for (name, amount) in &other.extended {
            *self.extended.entry(name.clone()).or_default() += sign * amount;
        }
    }

    fn raise_to(&mut self, other: &Self) {
        self.cpu_milli = self.cpu_milli.max(other.cpu_milli);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        for (name, amount) in &other.extended {
            let mine = self.extended.entry(name.clone()).or_default();
            *mine = (*mine).max(*amount);
        }
    }
}

/// A port of the host that a pod occupies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// `0.0.0.0` for every address.
    pub ip: String,
    /// TCP, UDP or SCTP.
    pub protocol: String,
    /// Port number.
    pub port: i32,
}

/// What placement depends on: pods of one template have equal needs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Needs {
    /// Requests as the kubelet will account them.
    pub requests: Resources,
    /// CPU with the assumption for containers that request none.
    pub cpu_milli_assumed: i64,
    /// Memory with the assumption for containers that request none.
    pub memory_assumed: i64,
    /// Host ports.
    pub ports: Vec<HostPort>,
    /// `spec.nodeSelector`.
    pub node_selector: Labels,
    /// `spec.affinity`.
    pub affinity: Option<Box<Affinity>>,
    /// `spec.tolerations`.
    pub tolerations: Vec<Toleration>,
    /// `spec.topologySpreadConstraints`.
    pub spread: Vec<TopologySpreadConstraint>,
    /// Images of all containers.
    pub images: Vec<String>,
}

/// A pod in the scheduler's eyes.
#[derive(Debug, Clone, Default)]
pub struct PodInfo {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID: the identity everywhere in this crate.
    pub uid: Arc<str>,
    /// Version of the object this was read from.
    pub resource_version: String,
    /// Labels.
    pub labels: Labels,
    /// UID of the controlling owner: its pods are replicas of each other.
    pub owner: Option<Arc<str>>,
    /// `spec.nodeName`, when bound.
    pub node: Option<Arc<str>>,
    /// `spec.schedulerName`.
    pub scheduler_name: String,
    /// `spec.priority`.
    pub priority: i32,
    /// Has scheduling gates.
    pub gated: bool,
    /// Is being deleted.
    pub terminating: bool,
    /// Succeeded or Failed.
    pub finished: bool,
    /// Text of the PodScheduled=False condition, when there is one.
    pub unschedulable_message: Option<String>,
    /// What placement depends on.
    pub needs: Needs,
}

impl From<PodObject> for PodInfo {
    fn from(pod: PodObject) -> Self {
        let needs = needs(&pod.spec);
        let PodObject { metadata, spec, status } = pod;
        let owner = metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true));
        let scheduled = status.conditions.into_iter().find(|c| c.kind == "PodScheduled");
        Self {
            owner: owner.map(|o| o.uid.as_str().into()),
            namespace: metadata.namespace.unwrap_or_default(),
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default().into(),
            resource_version: metadata.resource_version.unwrap_or_default(),
            labels: metadata.labels.unwrap_or_default(),
            node: spec.node_name.filter(|n| !n.is_empty()).map(Into::into),
            scheduler_name: spec.scheduler_name.unwrap_or_else(|| "default-scheduler".into()),
            priority: spec.priority.unwrap_or(0),
            gated: !spec.scheduling_gates.is_empty(),
            terminating: metadata.deletion_timestamp.is_some(),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            unschedulable_message: scheduled
                .filter(|c| c.status == "False")
                .map(|c| c.message.unwrap_or_default()),
            needs,
        }
    }
}

fn needs(spec: &Spec) -> Needs {
    let (requests, cpu_milli_assumed, memory_assumed) = pod_requests(spec);
    let everything = || spec.containers.iter().chain(&spec.init_containers);
    let host_network = spec.host_network == Some(true);
    Needs {
        requests,
        cpu_milli_assumed,
        memory_assumed,
        ports: everything()
            .filter(|c| spec.containers.iter().any(|m| std::ptr::eq(m, *c)) || is_sidecar(c))
            .flat_map(|c| &c.ports)
            .filter_map(|p| host_port(p, host_network))
            .collect(),
        node_selector: spec.node_selector.clone().unwrap_or_default(),
        affinity: spec.affinity.clone(),
        tolerations: spec.tolerations.clone(),
        spread: spec.topology_spread_constraints.clone(),
        images: everything().filter_map(|c| c.image.clone()).collect(),
    }
}

fn host_port(port: &Port, host_network: bool) -> Option<HostPort> {
    let number = port.host_port.or(port.container_port.filter(|_| host_network))?;
    (number > 0).then(|| HostPort {
        ip: port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into()),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        port: number,
    })
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn container_requests(container: &Container) -> Resources {
    let list = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    list.map(Resources::from_list).unwrap_or_default()
}

fn assumed(container: &Container) -> Resources {
    let mut r = container_requests(container);
    if r.cpu_milli == 0 {
        r.cpu_milli = CPU_MILLI_ASSUMED;
    }
    if r.memory == 0 {
        r.memory = MEMORY_ASSUMED;
    }
    r
}

/// Containers and sidecars run together; an init container runs beside the sidecars started before it.
fn sum_requests(spec: &Spec, of: fn(&Container) -> Resources) -> Resources {
    let mut running = Resources::default();
    spec.containers.iter().for_each(|c| running.add(&of(c), 1));
    let mut sidecars = Resources::default();
    let mut peak = Resources::default();
    for container in &spec.init_containers {
        let mut during = of(container);
        if is_sidecar(container) {
            sidecars.add(&during, 1);
            peak.raise_to(&sidecars);
        } else {
            during.add(&sidecars, 1);
            peak.raise_to(&during);
        }
    }
    running.add(&sidecars, 1);
    running.raise_to(&peak);
    running
}

fn pod_requests(spec: &Spec) -> (Resources, i64, i64) {
    let mut requests = sum_requests(spec, container_requests);
    let mut assumed = sum_requests(spec, assumed);
    if let Some(list) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let pod = Resources::from_list(list);
        if list.contains_key("cpu") {
            requests.cpu_milli = pod.cpu_milli;
            assumed.cpu_milli = pod.cpu_milli;
        }
        if list.contains_key("memory") {
            requests.memory = pod.memory;
            assumed.memory = pod.memory;
        }
    }
    if let Some(overhead) = &spec.overhead {
        let overhead = Resources::from_list(overhead);
        requests.add(&overhead, 1);
        assumed.add(&overhead, 1);
    }
    (requests, assumed.cpu_milli, assumed.memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_containers_and_sidecars_count_as_upstream() {
        let pod: PodObject = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "managedFields": [{}]},
            "spec": {
                "containers": [{"resources": {"requests": {"cpu": "200m", "memory": "1Mi"}}}, {}],
                "initContainers": [
                    {"restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}},
                    {"resources": {"requests": {"cpu": "300m"}}},
                ],
                "overhead": {"cpu": "1m"},
            },
        }))
        .unwrap();
        let info = PodInfo::from(pod);
        assert_eq!(info.needs.requests.cpu_milli, 351);
        assert_eq!(info.needs.requests.memory, 1 << 20);
        assert_eq!(info.needs.cpu_milli_assumed, 351);
        assert_eq!(info.needs.memory_assumed, 600 * 1024 * 1024 + (1 << 20) - MEMORY_ASSUMED);
    }
}
