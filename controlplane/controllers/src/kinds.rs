//! The projections that the controllers share: of each kind the fields that some controller reads.

use crate::runtime::object::{or_default, projection, slim_meta};
use k8s_openapi::{
    api::core::v1::{NodeSelectorRequirement, Taint, Toleration},
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, MicroTime, ObjectMeta, Time},
        util::intstr::IntOrString,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// A condition of any kind, kept whole because patches replace the list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    pub(crate) kind: String,
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
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct PodIp {
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
pub(crate) struct ReplicaSet {
    #[serde(deserialize_with = "slim_meta")]
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: ReplicaSetSpec,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) status: ReplicaSetStatus,
}
projection!(ReplicaSet, NamespaceResourceScope, "apps", "v1", "ReplicaSet", "replicasets");

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReplicaSetSpec {
    pub(crate) replicas: Option<i32>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) min_ready_seconds: i32,
    pub(crate) selector: LabelSelector,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) template: Value,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ReplicaSetStatus {
    pub(crate) replicas: i32,
    pub(crate) fully_labeled_replicas: i32,
    pub(crate) ready_replicas: i32,
    pub(crate) available_replicas: i32,
    pub(crate) terminating_replicas: Option<i32>,
    pub(crate) observed_generation: i64,
    #[serde(deserialize_with = "or_default")]
    pub(crate) conditions: Vec<Condition>,
}

impl ReplicaSet {
    /// `spec.replicas`, defaulted.
    pub(crate) fn wanted(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Deployment {
    #[serde(deserialize_with = "slim_meta")]
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: DeploymentSpec,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) status: DeploymentStatus,
}
projection!(Deployment, NamespaceResourceScope, "apps", "v1", "Deployment", "deployments");

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeploymentSpec {
    pub(crate) replicas: Option<i32>,
    pub(crate) selector: LabelSelector,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) template: Value,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) strategy: DeploymentStrategy,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) min_ready_seconds: i32,
    pub(crate) revision_history_limit: Option<i32>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) paused: bool,
    pub(crate) progress_deadline_seconds: Option<i32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeploymentStrategy {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) rolling_update: Option<RollingUpdate>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RollingUpdate {
    pub(crate) max_unavailable: Option<IntOrString>,
    pub(crate) max_surge: Option<IntOrString>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DeploymentStatus {
    pub(crate) observed_generation: i64,
    pub(crate) replicas: i32,
    pub(crate) updated_replicas: i32,
    pub(crate) ready_replicas: i32,
    pub(crate) available_replicas: i32,
    pub(crate) unavailable_replicas: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) terminating_replicas: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) collision_count: Option<i32>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) conditions: Vec<Condition>,
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
pub(crate) struct Service {
    #[serde(deserialize_with = "slim_meta")]
    pub(crate) metadata: ObjectMeta,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) spec: ServiceSpec,
}
projection!(Service, NamespaceResourceScope, "", "v1", "Service", "services");

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceSpec {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) selector: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) ports: Vec<ServicePort>,
    #[serde(rename = "clusterIP")]
    pub(crate) cluster_ip: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) ip_families: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) publish_not_ready_addresses: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServicePort {
    pub(crate) name: Option<String>,
    pub(crate) port: i32,
    pub(crate) protocol: Option<String>,
    pub(crate) target_port: Option<IntOrString>,
    pub(crate) app_protocol: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointSlice {
    #[serde(deserialize_with = "slim_meta")]
    pub(crate) metadata: ObjectMeta,
    pub(crate) address_type: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) endpoints: Option<Vec<Endpoint>>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) ports: Option<Vec<EndpointPort>>,
}
projection!(
    EndpointSlice,
    NamespaceResourceScope,
    "discovery.k8s.io",
    "v1",
    "EndpointSlice",
    "endpointslices"
);

/// One endpoint of a slice, exactly as written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Endpoint {
    pub(crate) addresses: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) conditions: EndpointConditions,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hostname: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) zone: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) target_ref: Option<TargetRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hints: Option<Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct EndpointConditions {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ready: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) serving: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) terminating: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct TargetRef {
    pub(crate) kind: String,
    pub(crate) name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) namespace: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) uid: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointPort {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<i32>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) protocol: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) app_protocol: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Endpoints {
    #[serde(deserialize_with = "slim_meta")]
    pub(crate) metadata: ObjectMeta,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) subsets: Option<Value>,
}
projection!(Endpoints, NamespaceResourceScope, "", "v1", "Endpoints", "endpoints");

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

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ControllerRevision {
    #[serde(deserialize_with = "slim_meta")]
    pub(crate) metadata: ObjectMeta,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) data: Value,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) revision: i64,
}
projection!(
    ControllerRevision,
    NamespaceResourceScope,
    "apps",
    "v1",
    "ControllerRevision",
    "controllerrevisions"
);

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct DaemonSet {
    #[serde(deserialize_with = "slim_meta")]
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: DaemonSetSpec,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) status: DaemonSetStatus,
}
projection!(DaemonSet, NamespaceResourceScope, "apps", "v1", "DaemonSet", "daemonsets");

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DaemonSetSpec {
    pub(crate) selector: LabelSelector,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) template: Value,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) update_strategy: DeploymentStrategy,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) min_ready_seconds: i32,
    pub(crate) revision_history_limit: Option<i32>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DaemonSetStatus {
    pub(crate) current_number_scheduled: i32,
    pub(crate) number_misscheduled: i32,
    pub(crate) desired_number_scheduled: i32,
    pub(crate) number_ready: i32,
    pub(crate) observed_generation: i64,
    pub(crate) updated_number_scheduled: i32,
    pub(crate) number_available: i32,
    pub(crate) number_unavailable: i32,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct PodDisruptionBudget {
    #[serde(deserialize_with = "slim_meta")]
    pub(crate) metadata: ObjectMeta,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) spec: BudgetSpec,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) status: BudgetStatus,
}
projection!(
    PodDisruptionBudget,
    NamespaceResourceScope,
    "policy",
    "v1",
    "PodDisruptionBudget",
    "poddisruptionbudgets"
);

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BudgetSpec {
    pub(crate) min_available: Option<IntOrString>,
    pub(crate) max_unavailable: Option<IntOrString>,
    pub(crate) selector: Option<LabelSelector>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct BudgetStatus {
    pub(crate) observed_generation: i64,
    #[serde(deserialize_with = "or_default")]
    pub(crate) disrupted_pods: BTreeMap<String, Time>,
    pub(crate) disruptions_allowed: i32,
    pub(crate) current_healthy: i32,
    pub(crate) desired_healthy: i32,
    pub(crate) expected_pods: i32,
    #[serde(deserialize_with = "or_default")]
    pub(crate) conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Job {
    #[serde(deserialize_with = "slim_meta")]
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: JobSpec,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) status: JobStatus,
}
projection!(Job, NamespaceResourceScope, "batch", "v1", "Job", "jobs");

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JobSpec {
    pub(crate) parallelism: Option<i32>,
    pub(crate) completions: Option<i32>,
    pub(crate) completion_mode: Option<String>,
    pub(crate) backoff_limit: Option<i32>,
    pub(crate) active_deadline_seconds: Option<i64>,
    pub(crate) ttl_seconds_after_finished: Option<i32>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) suspend: bool,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) template: Value,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct JobStatus {
    pub(crate) active: i32,
    pub(crate) ready: Option<i32>,
    pub(crate) terminating: Option<i32>,
    pub(crate) succeeded: i32,
    pub(crate) failed: i32,
    pub(crate) start_time: Option<Time>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) uncounted_terminated_pods: Uncounted,
    #[serde(deserialize_with = "or_default")]
    pub(crate) conditions: Vec<Condition>,
}

/// Pods that ended and are not part of the counts yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Uncounted {
    #[serde(deserialize_with = "or_default")]
    pub(crate) succeeded: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) failed: Vec<String>,
}
