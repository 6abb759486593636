//! Projections of workloads: apps, batch, policy.

use super::Condition;
use crate::runtime::object::{or_default, projection, slim_meta};
use k8s_openapi::apimachinery::pkg::{
    apis::meta::v1::{LabelSelector, ObjectMeta, Time},
    util::intstr::IntOrString,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

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
