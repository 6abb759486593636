//! The built-in kinds and where their shapes come from. Sorted by group, version, kind. Only the table.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::gvk::GroupVersionKind;

/// One built-in kind.
#[derive(Clone, Copy)]
pub struct Kind {
    /// What clients call it.
    pub gvk: GroupVersionKind<'static>,
    /// True when there is a list kind of it.
    pub listed: bool,
    type_name: fn() -> Cow<'static, str>,
    pub(super) generate: fn(&mut SchemaGenerator) -> Schema,
}

impl Kind {
    /// Upstream's definition name, such as `io.k8s.api.core.v1.Pod`.
    pub fn type_name(&self) -> Cow<'static, str> {
        (self.type_name)()
    }
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Kind").field(&self.gvk).finish()
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Listed {
    Yes,
    No,
}

const fn kind<T: JsonSchema>(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    listed: Listed,
) -> Kind {
    Kind {
        gvk: GroupVersionKind::new(group, version, kind),
        listed: matches!(listed, Listed::Yes),
        type_name: T::schema_name,
        generate: SchemaGenerator::subschema_for::<T>,
    }
}

/// The kind's row.
pub(super) fn find(gvk: GroupVersionKind<'_>) -> Option<&'static Kind> {
    // The order of the rows is that of the fields of a `GroupVersionKind`.
    KINDS.binary_search_by(|row| row.gvk.cmp(&gvk)).ok().map(|at| &KINDS[at])
}

/// Shapes that every group version speaks, besides its own kinds.
pub(super) const META: &[Kind] = &[
    kind::<meta::DeleteOptions>("", "v1", "DeleteOptions", Listed::No),
    kind::<meta::ListMeta>("", "v1", "ListMeta", Listed::No),
    kind::<meta::Patch>("", "v1", "Patch", Listed::No),
    kind::<meta::Status>("", "v1", "Status", Listed::No),
    kind::<meta::APIResourceList>("", "v1", "APIResourceList", Listed::No),
];

/// Every built-in kind.
#[rustfmt::skip]
pub(super) const KINDS: &[Kind] = &[
    kind::<k8s_openapi::api::core::v1::Binding>("", "v1", "Binding", Listed::No),
    kind::<k8s_openapi::api::core::v1::ComponentStatus>("", "v1", "ComponentStatus", Listed::Yes),
    kind::<k8s_openapi::api::core::v1::ConfigMap>("", "v1", "ConfigMap", Listed::Yes),
    kind::<k8s_openapi::api::core::v1::Endpoints>("", "v1", "Endpoints", Listed::Yes),
    kind::<k8s_openapi::api::core::v1::Event>("", "v1", "Event", Listed::Yes),
    kind::<k8s_openapi::api::core::v1::LimitRange>("", "v1", "LimitRange", Listed::Yes),
    kind::<k8s_openapi::api::core::v1::Namespace>("", "v1", "Namespace", Listed::Yes),
    kind::<k8s_openapi::api::core::v1::Node>("", "v1", "Node", Listed::Yes),
    kind::<k8s_openapi::api::core::v1::PersistentVolume>("", "v1", "PersistentVolume", Listed::Yes),
    kind::<k8s_openapi::api::core::v1::PersistentVolumeClaim>("", "v1", "PersistentVolumeClaim", Listed::Yes),
    kind::<k8s_openapi::api::core::v1::Pod>("", "v1", "Pod", Listed::Yes),
    kind::<k8s_openapi::api::core::v1::PodTemplate>("", "v1", "PodTemplate", Listed::Yes),
    kind::<k8s_openapi::api::core::v1::ReplicationController>("", "v1", "ReplicationController", Listed::Yes),
    kind::<k8s_openapi::api::core::v1::ResourceQuota>("", "v1", "ResourceQuota", Listed::Yes),
    kind::<k8s_openapi::api::core::v1::Secret>("", "v1", "Secret", Listed::Yes),
    kind::<k8s_openapi::api::core::v1::Service>("", "v1", "Service", Listed::Yes),
    kind::<k8s_openapi::api::core::v1::ServiceAccount>("", "v1", "ServiceAccount", Listed::Yes),
    kind::<k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicy>("admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicy", Listed::Yes),
    kind::<k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicyBinding>("admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicyBinding", Listed::Yes),
    kind::<k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration>("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration", Listed::Yes),
    kind::<k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy>("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy", Listed::Yes),
    kind::<k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding>("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicyBinding", Listed::Yes),
    kind::<k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration>("admissionregistration.k8s.io", "v1", "ValidatingWebhookConfiguration", Listed::Yes),
    kind::<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition>("apiextensions.k8s.io", "v1", "CustomResourceDefinition", Listed::Yes),
    kind::<k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService>("apiregistration.k8s.io", "v1", "APIService", Listed::Yes),
    kind::<k8s_openapi::api::apps::v1::ControllerRevision>("apps", "v1", "ControllerRevision", Listed::Yes),
    kind::<k8s_openapi::api::apps::v1::DaemonSet>("apps", "v1", "DaemonSet", Listed::Yes),
    kind::<k8s_openapi::api::apps::v1::Deployment>("apps", "v1", "Deployment", Listed::Yes),
    kind::<k8s_openapi::api::apps::v1::ReplicaSet>("apps", "v1", "ReplicaSet", Listed::Yes),
    kind::<k8s_openapi::api::apps::v1::StatefulSet>("apps", "v1", "StatefulSet", Listed::Yes),
    kind::<k8s_openapi::api::authentication::v1::SelfSubjectReview>("authentication.k8s.io", "v1", "SelfSubjectReview", Listed::No),
    kind::<k8s_openapi::api::authentication::v1::TokenRequest>("authentication.k8s.io", "v1", "TokenRequest", Listed::No),
    kind::<k8s_openapi::api::authentication::v1::TokenReview>("authentication.k8s.io", "v1", "TokenReview", Listed::No),
    kind::<k8s_openapi::api::authorization::v1::LocalSubjectAccessReview>("authorization.k8s.io", "v1", "LocalSubjectAccessReview", Listed::No),
    kind::<k8s_openapi::api::authorization::v1::SelfSubjectAccessReview>("authorization.k8s.io", "v1", "SelfSubjectAccessReview", Listed::No),
    kind::<k8s_openapi::api::authorization::v1::SelfSubjectRulesReview>("authorization.k8s.io", "v1", "SelfSubjectRulesReview", Listed::No),
    kind::<k8s_openapi::api::authorization::v1::SubjectAccessReview>("authorization.k8s.io", "v1", "SubjectAccessReview", Listed::No),
    kind::<k8s_openapi::api::autoscaling::v1::HorizontalPodAutoscaler>("autoscaling", "v1", "HorizontalPodAutoscaler", Listed::Yes),
    kind::<k8s_openapi::api::autoscaling::v1::Scale>("autoscaling", "v1", "Scale", Listed::No),
    kind::<k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler>("autoscaling", "v2", "HorizontalPodAutoscaler", Listed::Yes),
    kind::<k8s_openapi::api::batch::v1::CronJob>("batch", "v1", "CronJob", Listed::Yes),
    kind::<k8s_openapi::api::batch::v1::Job>("batch", "v1", "Job", Listed::Yes),
    kind::<k8s_openapi::api::certificates::v1::CertificateSigningRequest>("certificates.k8s.io", "v1", "CertificateSigningRequest", Listed::Yes),
    kind::<k8s_openapi::api::coordination::v1::Lease>("coordination.k8s.io", "v1", "Lease", Listed::Yes),
    kind::<k8s_openapi::api::discovery::v1::EndpointSlice>("discovery.k8s.io", "v1", "EndpointSlice", Listed::Yes),
    kind::<k8s_openapi::api::events::v1::Event>("events.k8s.io", "v1", "Event", Listed::Yes),
    kind::<k8s_openapi::api::flowcontrol::v1::FlowSchema>("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema", Listed::Yes),
    kind::<k8s_openapi::api::flowcontrol::v1::PriorityLevelConfiguration>("flowcontrol.apiserver.k8s.io", "v1", "PriorityLevelConfiguration", Listed::Yes),
    kind::<k8s_openapi::api::networking::v1::IPAddress>("networking.k8s.io", "v1", "IPAddress", Listed::Yes),
    kind::<k8s_openapi::api::networking::v1::Ingress>("networking.k8s.io", "v1", "Ingress", Listed::Yes),
    kind::<k8s_openapi::api::networking::v1::IngressClass>("networking.k8s.io", "v1", "IngressClass", Listed::Yes),
    kind::<k8s_openapi::api::networking::v1::NetworkPolicy>("networking.k8s.io", "v1", "NetworkPolicy", Listed::Yes),
    kind::<k8s_openapi::api::networking::v1::ServiceCIDR>("networking.k8s.io", "v1", "ServiceCIDR", Listed::Yes),
    kind::<k8s_openapi::api::node::v1::RuntimeClass>("node.k8s.io", "v1", "RuntimeClass", Listed::Yes),
    kind::<k8s_openapi::api::policy::v1::Eviction>("policy", "v1", "Eviction", Listed::No),
    kind::<k8s_openapi::api::policy::v1::PodDisruptionBudget>("policy", "v1", "PodDisruptionBudget", Listed::Yes),
    kind::<k8s_openapi::api::rbac::v1::ClusterRole>("rbac.authorization.k8s.io", "v1", "ClusterRole", Listed::Yes),
    kind::<k8s_openapi::api::rbac::v1::ClusterRoleBinding>("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", Listed::Yes),
    kind::<k8s_openapi::api::rbac::v1::Role>("rbac.authorization.k8s.io", "v1", "Role", Listed::Yes),
    kind::<k8s_openapi::api::rbac::v1::RoleBinding>("rbac.authorization.k8s.io", "v1", "RoleBinding", Listed::Yes),
    kind::<k8s_openapi::api::scheduling::v1::PriorityClass>("scheduling.k8s.io", "v1", "PriorityClass", Listed::Yes),
    kind::<k8s_openapi::api::storage::v1::CSIDriver>("storage.k8s.io", "v1", "CSIDriver", Listed::Yes),
    kind::<k8s_openapi::api::storage::v1::CSINode>("storage.k8s.io", "v1", "CSINode", Listed::Yes),
    kind::<k8s_openapi::api::storage::v1::CSIStorageCapacity>("storage.k8s.io", "v1", "CSIStorageCapacity", Listed::Yes),
    kind::<k8s_openapi::api::storage::v1::StorageClass>("storage.k8s.io", "v1", "StorageClass", Listed::Yes),
    kind::<k8s_openapi::api::storage::v1::VolumeAttachment>("storage.k8s.io", "v1", "VolumeAttachment", Listed::Yes),
    kind::<k8s_openapi::api::storage::v1::VolumeAttributesClass>("storage.k8s.io", "v1", "VolumeAttributesClass", Listed::Yes),
];
