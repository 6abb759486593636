//! The projections that the controllers share: of each kind the fields that some controller reads.

mod network;
mod workloads;

pub(crate) use network::*;
pub(crate) use workloads::*;

use crate::runtime::object::{or_default, projection, slim_meta};
use k8s_openapi::{
    api::core::v1::{NodeSelectorRequirement, Taint, Toleration},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A condition of any kind, kept whole because patches replace the list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Condition {
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    pub(crate) kind: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_transition_time: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_update_time: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_heartbeat_time: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_probe_time: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) observed_generation: Option<i64>,
}

/// The condition of that type.
pub(crate) fn condition<'a>(all: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    all.iter().find(|c| c.kind == kind)
}

/// Whether the condition of that type is True.
pub(crate) fn is_true(all: &[Condition], kind: &str) -> bool {
    condition(all, kind).is_some_and(|c| c.status == "True")
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Pod {
    #[serde(deserialize_with = "slim_meta")]
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: PodSpec,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) status: PodStatus,
}
projection!(Pod, NamespaceResourceScope, "", "v1", "Pod", "pods");

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodSpec {
    pub(crate) node_name: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) subdomain: Option<String>,
    pub(crate) affinity: Option<Box<PodAffinity>>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) containers: Vec<Container>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) init_containers: Vec<Container>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) tolerations: Vec<Toleration>,
}

/// Of an affinity only what names the node that a daemon pod waits for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodAffinity {
    node_affinity: Option<RequiredNodes>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct RequiredNodes {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    required: Option<NodeTerms>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeTerms {
    #[serde(default, deserialize_with = "or_default")]
    node_selector_terms: Vec<NodeTerm>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeTerm {
    #[serde(default, deserialize_with = "or_default")]
    match_fields: Vec<NodeSelectorRequirement>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Container {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) ports: Vec<ContainerPort>,
    pub(crate) restart_policy: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerPort {
    pub(crate) name: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) container_port: i32,
    pub(crate) protocol: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodStatus {
    pub(crate) phase: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) conditions: Vec<Condition>,
    #[serde(rename = "podIP")]
    pub(crate) pod_ip: Option<String>,
    #[serde(default, rename = "podIPs", deserialize_with = "or_default")]
    pub(crate) pod_ips: Vec<PodIp>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) container_statuses: Vec<ContainerStatus>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) init_container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct PodIp {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) ip: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerStatus {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) restart_count: i32,
}

impl Pod {
    /// Succeeded or Failed.
    pub(crate) fn is_finished(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// Whether the Ready condition is True.
    pub(crate) fn is_ready(&self) -> bool {
        is_true(&self.status.conditions, "Ready")
    }

    /// The node it is bound to, or that it is meant for by its name.
    pub(crate) fn target_node(&self) -> &str {
        let required = || {
            let terms = self.spec.affinity.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
            let mut fields = terms.node_selector_terms.iter().flat_map(|t| &t.match_fields);
            fields.find(|f| f.key == "metadata.name")?.values.as_ref()?.first()
        };
        match self.node() {
            "" => required().map(String::as_str).unwrap_or_default(),
            node => node,
        }
    }

    /// The node it is bound to, or "".
    pub(crate) fn node(&self) -> &str {
        self.spec.node_name.as_deref().unwrap_or_default()
    }
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Node {
    #[serde(deserialize_with = "slim_meta")]
    pub(crate) metadata: ObjectMeta,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) spec: NodeSpec,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) status: NodeStatus,
}
projection!(Node, ClusterResourceScope, "", "v1", "Node", "nodes");

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub(crate) pod_cidr: Option<String>,
    #[serde(default, rename = "podCIDRs", deserialize_with = "or_default")]
    pub(crate) pod_cidrs: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) taints: Vec<Taint>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) unschedulable: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct NodeStatus {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) conditions: Vec<Condition>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) addresses: Vec<NodeAddress>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct NodeAddress {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) address: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Lease {
    #[serde(deserialize_with = "slim_meta")]
    pub(crate) metadata: ObjectMeta,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) spec: LeaseSpec,
}
projection!(Lease, NamespaceResourceScope, "coordination.k8s.io", "v1", "Lease", "leases");

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LeaseSpec {
    pub(crate) renew_time: Option<MicroTime>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Namespace {
    #[serde(deserialize_with = "slim_meta")]
    pub(crate) metadata: ObjectMeta,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) spec: NamespaceSpec,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) status: NamespaceStatus,
}
projection!(Namespace, ClusterResourceScope, "", "v1", "Namespace", "namespaces");

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct NamespaceSpec {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) finalizers: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct NamespaceStatus {
    pub(crate) phase: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ServiceAccount {
    #[serde(deserialize_with = "slim_meta")]
    pub(crate) metadata: ObjectMeta,
}
projection!(ServiceAccount, NamespaceResourceScope, "", "v1", "ServiceAccount", "serviceaccounts");

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ConfigMap {
    #[serde(deserialize_with = "slim_meta")]
    pub(crate) metadata: ObjectMeta,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) data: BTreeMap<String, String>,
}
projection!(ConfigMap, NamespaceResourceScope, "", "v1", "ConfigMap", "configmaps");

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Secret {
    #[serde(deserialize_with = "slim_meta")]
    pub(crate) metadata: ObjectMeta,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) data: BTreeMap<String, String>,
}
projection!(Secret, NamespaceResourceScope, "", "v1", "Secret", "secrets");

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct CertificateSigningRequest {
    #[serde(deserialize_with = "slim_meta")]
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: CsrSpec,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) status: CsrStatus,
}
projection!(
    CertificateSigningRequest,
    ClusterResourceScope,
    "certificates.k8s.io",
    "v1",
    "CertificateSigningRequest",
    "certificatesigningrequests"
);

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CsrSpec {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) request: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) signer_name: String,
    pub(crate) expiration_seconds: Option<i64>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) usages: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) username: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) groups: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct CsrStatus {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) conditions: Vec<Condition>,
    pub(crate) certificate: Option<String>,
}
