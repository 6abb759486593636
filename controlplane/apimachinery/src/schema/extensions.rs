//! What upstream's types say beyond their shapes: list types, map keys, patch strategies and merge keys.
//! Only the table and its notation; `schema` reads it. Sorted by type, then by field; `TYPE` stands for the type itself.

use super::{Extension, ListType, MapType};

/// The entry of the type itself.
pub(super) const TYPE: &str = "";

const NONE: Extension = Extension {
    list_type: None,
    map_keys: &[],
    merge_key: None,
    merge: false,
    retain_keys: false,
    replace: false,
    map_type: None,
};
const ATOMIC: Extension = Extension { list_type: Some(ListType::Atomic), ..NONE };
const SET: Extension = Extension { list_type: Some(ListType::Set), ..NONE };
const SET_MERGE: Extension = Extension { merge: true, ..SET };
const MAP_ATOMIC: Extension = Extension { map_type: Some(MapType::Atomic), ..NONE };
const MAP_GRANULAR: Extension = Extension { map_type: Some(MapType::Granular), ..NONE };
const RETAIN_KEYS: Extension = Extension { retain_keys: true, ..NONE };
const REPLACE: Extension = Extension { replace: true, ..NONE };

const fn map(map_keys: &'static [&'static str]) -> Extension {
    Extension { list_type: Some(ListType::Map), map_keys, ..NONE }
}

const fn merged(map_keys: &'static [&'static str], merge_key: &'static str) -> Extension {
    Extension { merge_key: Some(merge_key), merge: true, ..map(map_keys) }
}

const fn merged_retaining(map_keys: &'static [&'static str], merge_key: &'static str) -> Extension {
    Extension { retain_keys: true, ..merged(map_keys, merge_key) }
}

const fn atomic_merge(merge_key: &'static str) -> Extension {
    Extension { merge_key: Some(merge_key), merge: true, ..ATOMIC }
}

type Row = (&'static str, &'static [(&'static str, Extension)]);

/// The fields of one type, sorted by name.
pub(super) fn of(type_name: &str) -> &'static [(&'static str, Extension)] {
    match TABLE.binary_search_by(|(name, _)| (*name).cmp(type_name)) {
        Ok(at) => TABLE[at].1,
        Err(_) => &[],
    }
}

#[rustfmt::skip]
pub(super) const TABLE: &[Row] = &[
    ("io.k8s.api.admissionregistration.v1.MatchResources", &[(TYPE, MAP_ATOMIC), ("excludeResourceRules", ATOMIC), ("resourceRules", ATOMIC)]),
    ("io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicySpec", &[("matchConditions", merged(&["name"], "name")), ("mutations", ATOMIC), ("variables", ATOMIC)]),
    ("io.k8s.api.admissionregistration.v1.MutatingWebhook", &[("admissionReviewVersions", ATOMIC), ("matchConditions", merged(&["name"], "name")), ("rules", ATOMIC)]),
    ("io.k8s.api.admissionregistration.v1.MutatingWebhookConfiguration", &[("webhooks", merged(&["name"], "name"))]),
    ("io.k8s.api.admissionregistration.v1.NamedRuleWithOperations", &[(TYPE, MAP_ATOMIC), ("apiGroups", ATOMIC), ("apiVersions", ATOMIC), ("operations", ATOMIC), ("resourceNames", ATOMIC), ("resources", ATOMIC)]),
    ("io.k8s.api.admissionregistration.v1.ParamKind", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.api.admissionregistration.v1.ParamRef", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.api.admissionregistration.v1.RuleWithOperations", &[("apiGroups", ATOMIC), ("apiVersions", ATOMIC), ("operations", ATOMIC), ("resources", ATOMIC)]),
    ("io.k8s.api.admissionregistration.v1.TypeChecking", &[("expressionWarnings", ATOMIC)]),
    ("io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicyBindingSpec", &[("validationActions", SET)]),
    ("io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicySpec", &[("auditAnnotations", ATOMIC), ("matchConditions", merged(&["name"], "name")), ("validations", ATOMIC), ("variables", merged(&["name"], "name"))]),
    ("io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicyStatus", &[("conditions", map(&["type"]))]),
    ("io.k8s.api.admissionregistration.v1.ValidatingWebhook", &[("admissionReviewVersions", ATOMIC), ("matchConditions", merged(&["name"], "name")), ("rules", ATOMIC)]),
    ("io.k8s.api.admissionregistration.v1.ValidatingWebhookConfiguration", &[("webhooks", merged(&["name"], "name"))]),
    ("io.k8s.api.admissionregistration.v1.Variable", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.api.apps.v1.DaemonSetStatus", &[("conditions", merged(&["type"], "type"))]),
    ("io.k8s.api.apps.v1.DeploymentSpec", &[("strategy", RETAIN_KEYS)]),
    ("io.k8s.api.apps.v1.DeploymentStatus", &[("conditions", merged(&["type"], "type"))]),
    ("io.k8s.api.apps.v1.ReplicaSetStatus", &[("conditions", merged(&["type"], "type"))]),
    ("io.k8s.api.apps.v1.StatefulSetSpec", &[("volumeClaimTemplates", ATOMIC)]),
    ("io.k8s.api.apps.v1.StatefulSetStatus", &[("conditions", merged(&["type"], "type"))]),
    ("io.k8s.api.authentication.v1.TokenRequestSpec", &[("audiences", ATOMIC)]),
    ("io.k8s.api.authentication.v1.TokenReviewSpec", &[("audiences", ATOMIC)]),
    ("io.k8s.api.authentication.v1.TokenReviewStatus", &[("audiences", ATOMIC)]),
    ("io.k8s.api.authentication.v1.UserInfo", &[("groups", ATOMIC)]),
    ("io.k8s.api.authorization.v1.FieldSelectorAttributes", &[("requirements", ATOMIC)]),
    ("io.k8s.api.authorization.v1.LabelSelectorAttributes", &[("requirements", ATOMIC)]),
    ("io.k8s.api.authorization.v1.NonResourceRule", &[("nonResourceURLs", ATOMIC), ("verbs", ATOMIC)]),
    ("io.k8s.api.authorization.v1.ResourceRule", &[("apiGroups", ATOMIC), ("resourceNames", ATOMIC), ("resources", ATOMIC), ("verbs", ATOMIC)]),
    ("io.k8s.api.authorization.v1.SubjectAccessReviewSpec", &[("groups", ATOMIC)]),
    ("io.k8s.api.authorization.v1.SubjectRulesReviewStatus", &[("nonResourceRules", ATOMIC), ("resourceRules", ATOMIC)]),
    ("io.k8s.api.autoscaling.v1.CrossVersionObjectReference", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.api.autoscaling.v2.HPAScalingRules", &[("policies", ATOMIC)]),
    ("io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec", &[("metrics", ATOMIC)]),
    ("io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerStatus", &[("conditions", merged(&["type"], "type")), ("currentMetrics", ATOMIC)]),
    ("io.k8s.api.batch.v1.CronJobStatus", &[("active", ATOMIC)]),
    ("io.k8s.api.batch.v1.JobStatus", &[("conditions", atomic_merge("type"))]),
    ("io.k8s.api.batch.v1.PodFailurePolicy", &[("rules", ATOMIC)]),
    ("io.k8s.api.batch.v1.PodFailurePolicyOnExitCodesRequirement", &[("values", SET)]),
    ("io.k8s.api.batch.v1.PodFailurePolicyRule", &[("onPodConditions", ATOMIC)]),
    ("io.k8s.api.batch.v1.SuccessPolicy", &[("rules", ATOMIC)]),
    ("io.k8s.api.batch.v1.UncountedTerminatedPods", &[("failed", SET), ("succeeded", SET)]),
    ("io.k8s.api.certificates.v1.CertificateSigningRequestSpec", &[("groups", ATOMIC), ("usages", ATOMIC)]),
    ("io.k8s.api.certificates.v1.CertificateSigningRequestStatus", &[("conditions", map(&["type"]))]),
    ("io.k8s.api.core.v1.Capabilities", &[("add", ATOMIC), ("drop", ATOMIC)]),
    ("io.k8s.api.core.v1.CephFSPersistentVolumeSource", &[("monitors", ATOMIC)]),
    ("io.k8s.api.core.v1.CephFSVolumeSource", &[("monitors", ATOMIC)]),
    ("io.k8s.api.core.v1.ComponentStatus", &[("conditions", merged(&["type"], "type"))]),
    ("io.k8s.api.core.v1.ConfigMapKeySelector", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.api.core.v1.ConfigMapProjection", &[("items", ATOMIC)]),
    ("io.k8s.api.core.v1.ConfigMapVolumeSource", &[("items", ATOMIC)]),
    ("io.k8s.api.core.v1.Container", &[("args", ATOMIC), ("command", ATOMIC), ("env", merged(&["name"], "name")), ("envFrom", ATOMIC), ("ports", merged(&["containerPort", "protocol"], "containerPort")), ("resizePolicy", ATOMIC), ("restartPolicyRules", ATOMIC), ("volumeDevices", merged(&["devicePath"], "devicePath")), ("volumeMounts", merged(&["mountPath"], "mountPath"))]),
    ("io.k8s.api.core.v1.ContainerImage", &[("names", ATOMIC)]),
    ("io.k8s.api.core.v1.ContainerRestartRuleOnExitCodes", &[("values", SET)]),
    ("io.k8s.api.core.v1.ContainerStatus", &[("allocatedResourcesStatus", merged(&["name"], "name")), ("volumeMounts", merged(&["mountPath"], "mountPath"))]),
    ("io.k8s.api.core.v1.DownwardAPIProjection", &[("items", ATOMIC)]),
    ("io.k8s.api.core.v1.DownwardAPIVolumeSource", &[("items", ATOMIC)]),
    ("io.k8s.api.core.v1.EndpointAddress", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.api.core.v1.EndpointPort", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.api.core.v1.EndpointSubset", &[("addresses", ATOMIC), ("notReadyAddresses", ATOMIC), ("ports", ATOMIC)]),
    ("io.k8s.api.core.v1.Endpoints", &[("subsets", ATOMIC)]),
    ("io.k8s.api.core.v1.EphemeralContainer", &[("args", ATOMIC), ("command", ATOMIC), ("env", merged(&["name"], "name")), ("envFrom", ATOMIC), ("ports", merged(&["containerPort", "protocol"], "containerPort")), ("resizePolicy", ATOMIC), ("restartPolicyRules", ATOMIC), ("volumeDevices", merged(&["devicePath"], "devicePath")), ("volumeMounts", merged(&["mountPath"], "mountPath"))]),
    ("io.k8s.api.core.v1.ExecAction", &[("command", ATOMIC)]),
    ("io.k8s.api.core.v1.FCVolumeSource", &[("targetWWNs", ATOMIC), ("wwids", ATOMIC)]),
    ("io.k8s.api.core.v1.FileKeySelector", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.api.core.v1.HTTPGetAction", &[("httpHeaders", ATOMIC)]),
    ("io.k8s.api.core.v1.HostAlias", &[("hostnames", ATOMIC)]),
    ("io.k8s.api.core.v1.ISCSIPersistentVolumeSource", &[("portals", ATOMIC)]),
    ("io.k8s.api.core.v1.ISCSIVolumeSource", &[("portals", ATOMIC)]),
    ("io.k8s.api.core.v1.LimitRangeSpec", &[("limits", ATOMIC)]),
    ("io.k8s.api.core.v1.LinuxContainerUser", &[("supplementalGroups", ATOMIC)]),
    ("io.k8s.api.core.v1.LoadBalancerIngress", &[("ports", ATOMIC)]),
    ("io.k8s.api.core.v1.LoadBalancerStatus", &[("ingress", ATOMIC)]),
    ("io.k8s.api.core.v1.LocalObjectReference", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.api.core.v1.NamespaceSpec", &[("finalizers", ATOMIC)]),
    ("io.k8s.api.core.v1.NamespaceStatus", &[("conditions", merged(&["type"], "type"))]),
    ("io.k8s.api.core.v1.NodeAffinity", &[("preferredDuringSchedulingIgnoredDuringExecution", ATOMIC)]),
    ("io.k8s.api.core.v1.NodeAllocatableResourceClaimStatus", &[("containers", SET)]),
    ("io.k8s.api.core.v1.NodeSelector", &[(TYPE, MAP_ATOMIC), ("nodeSelectorTerms", ATOMIC)]),
    ("io.k8s.api.core.v1.NodeSelectorRequirement", &[("values", ATOMIC)]),
    ("io.k8s.api.core.v1.NodeSelectorTerm", &[(TYPE, MAP_ATOMIC), ("matchExpressions", ATOMIC), ("matchFields", ATOMIC)]),
    ("io.k8s.api.core.v1.NodeSpec", &[("podCIDRs", SET_MERGE), ("taints", ATOMIC)]),
    ("io.k8s.api.core.v1.NodeStatus", &[("addresses", merged(&["type"], "type")), ("conditions", merged(&["type"], "type")), ("declaredFeatures", ATOMIC), ("images", ATOMIC), ("runtimeHandlers", ATOMIC), ("volumesAttached", ATOMIC), ("volumesInUse", ATOMIC)]),
    ("io.k8s.api.core.v1.ObjectFieldSelector", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.api.core.v1.ObjectReference", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.api.core.v1.PersistentVolumeClaimSpec", &[("accessModes", ATOMIC)]),
    ("io.k8s.api.core.v1.PersistentVolumeClaimStatus", &[("accessModes", ATOMIC), ("allocatedResourceStatuses", MAP_GRANULAR), ("conditions", merged(&["type"], "type"))]),
    ("io.k8s.api.core.v1.PersistentVolumeSpec", &[("accessModes", ATOMIC), ("claimRef", MAP_GRANULAR), ("mountOptions", ATOMIC)]),
    ("io.k8s.api.core.v1.PodAffinity", &[("preferredDuringSchedulingIgnoredDuringExecution", ATOMIC), ("requiredDuringSchedulingIgnoredDuringExecution", ATOMIC)]),
    ("io.k8s.api.core.v1.PodAffinityTerm", &[("matchLabelKeys", ATOMIC), ("mismatchLabelKeys", ATOMIC), ("namespaces", ATOMIC)]),
    ("io.k8s.api.core.v1.PodAntiAffinity", &[("preferredDuringSchedulingIgnoredDuringExecution", ATOMIC), ("requiredDuringSchedulingIgnoredDuringExecution", ATOMIC)]),
    ("io.k8s.api.core.v1.PodDNSConfig", &[("nameservers", ATOMIC), ("options", ATOMIC), ("searches", ATOMIC)]),
    ("io.k8s.api.core.v1.PodExtendedResourceClaimStatus", &[("requestMappings", ATOMIC)]),
    ("io.k8s.api.core.v1.PodSecurityContext", &[("supplementalGroups", ATOMIC), ("sysctls", ATOMIC)]),
    ("io.k8s.api.core.v1.PodSpec", &[("containers", merged(&["name"], "name")), ("ephemeralContainers", merged(&["name"], "name")), ("hostAliases", merged(&["ip"], "ip")), ("imagePullSecrets", merged(&["name"], "name")), ("initContainers", merged(&["name"], "name")), ("nodeSelector", MAP_ATOMIC), ("readinessGates", ATOMIC), ("resourceClaims", merged_retaining(&["name"], "name")), ("schedulingGates", merged(&["name"], "name")), ("tolerations", ATOMIC), ("topologySpreadConstraints", merged(&["topologyKey", "whenUnsatisfiable"], "topologyKey")), ("volumes", merged_retaining(&["name"], "name"))]),
    ("io.k8s.api.core.v1.PodStatus", &[("conditions", merged(&["type"], "type")), ("containerStatuses", ATOMIC), ("ephemeralContainerStatuses", ATOMIC), ("hostIPs", atomic_merge("ip")), ("initContainerStatuses", ATOMIC), ("nodeAllocatableResourceClaimStatuses", ATOMIC), ("podIPs", merged(&["ip"], "ip")), ("resourceClaimStatuses", merged_retaining(&["name"], "name"))]),
    ("io.k8s.api.core.v1.ProjectedVolumeSource", &[("sources", ATOMIC)]),
    ("io.k8s.api.core.v1.RBDPersistentVolumeSource", &[("monitors", ATOMIC)]),
    ("io.k8s.api.core.v1.RBDVolumeSource", &[("monitors", ATOMIC)]),
    ("io.k8s.api.core.v1.ReplicationControllerSpec", &[("selector", MAP_ATOMIC)]),
    ("io.k8s.api.core.v1.ReplicationControllerStatus", &[("conditions", merged(&["type"], "type"))]),
    ("io.k8s.api.core.v1.ResourceFieldSelector", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.api.core.v1.ResourceQuotaSpec", &[("scopes", ATOMIC)]),
    ("io.k8s.api.core.v1.ResourceRequirements", &[("claims", map(&["name"]))]),
    ("io.k8s.api.core.v1.ResourceStatus", &[("resources", map(&["resourceID"]))]),
    ("io.k8s.api.core.v1.ScopeSelector", &[(TYPE, MAP_ATOMIC), ("matchExpressions", ATOMIC)]),
    ("io.k8s.api.core.v1.ScopedResourceSelectorRequirement", &[("values", ATOMIC)]),
    ("io.k8s.api.core.v1.SecretKeySelector", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.api.core.v1.SecretProjection", &[("items", ATOMIC)]),
    ("io.k8s.api.core.v1.SecretReference", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.api.core.v1.SecretVolumeSource", &[("items", ATOMIC)]),
    ("io.k8s.api.core.v1.ServiceAccount", &[("imagePullSecrets", ATOMIC), ("secrets", merged(&["name"], "name"))]),
    ("io.k8s.api.core.v1.ServiceSpec", &[("clusterIPs", ATOMIC), ("externalIPs", ATOMIC), ("ipFamilies", ATOMIC), ("loadBalancerSourceRanges", ATOMIC), ("ports", merged(&["port", "protocol"], "port")), ("selector", MAP_ATOMIC)]),
    ("io.k8s.api.core.v1.ServiceStatus", &[("conditions", merged(&["type"], "type"))]),
    ("io.k8s.api.core.v1.TopologySelectorLabelRequirement", &[("values", ATOMIC)]),
    ("io.k8s.api.core.v1.TopologySelectorTerm", &[(TYPE, MAP_ATOMIC), ("matchLabelExpressions", ATOMIC)]),
    ("io.k8s.api.core.v1.TopologySpreadConstraint", &[("matchLabelKeys", ATOMIC)]),
    ("io.k8s.api.core.v1.TypedLocalObjectReference", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.api.discovery.v1.Endpoint", &[("addresses", SET)]),
    ("io.k8s.api.discovery.v1.EndpointHints", &[("forNodes", ATOMIC), ("forZones", ATOMIC)]),
    ("io.k8s.api.discovery.v1.EndpointPort", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.api.discovery.v1.EndpointSlice", &[("endpoints", ATOMIC), ("ports", ATOMIC)]),
    ("io.k8s.api.flowcontrol.v1.FlowSchemaSpec", &[("rules", ATOMIC)]),
    ("io.k8s.api.flowcontrol.v1.FlowSchemaStatus", &[("conditions", merged(&["type"], "type"))]),
    ("io.k8s.api.flowcontrol.v1.NonResourcePolicyRule", &[("nonResourceURLs", SET), ("verbs", SET)]),
    ("io.k8s.api.flowcontrol.v1.PolicyRulesWithSubjects", &[("nonResourceRules", ATOMIC), ("resourceRules", ATOMIC), ("subjects", ATOMIC)]),
    ("io.k8s.api.flowcontrol.v1.PriorityLevelConfigurationStatus", &[("conditions", merged(&["type"], "type"))]),
    ("io.k8s.api.flowcontrol.v1.ResourcePolicyRule", &[("apiGroups", SET), ("namespaces", SET), ("resources", SET), ("verbs", SET)]),
    ("io.k8s.api.networking.v1.HTTPIngressRuleValue", &[("paths", ATOMIC)]),
    ("io.k8s.api.networking.v1.IPBlock", &[("except", ATOMIC)]),
    ("io.k8s.api.networking.v1.IngressLoadBalancerIngress", &[("ports", ATOMIC)]),
    ("io.k8s.api.networking.v1.IngressLoadBalancerStatus", &[("ingress", ATOMIC)]),
    ("io.k8s.api.networking.v1.IngressSpec", &[("rules", ATOMIC), ("tls", ATOMIC)]),
    ("io.k8s.api.networking.v1.IngressTLS", &[("hosts", ATOMIC)]),
    ("io.k8s.api.networking.v1.NetworkPolicyEgressRule", &[("ports", ATOMIC), ("to", ATOMIC)]),
    ("io.k8s.api.networking.v1.NetworkPolicyIngressRule", &[("from", ATOMIC), ("ports", ATOMIC)]),
    ("io.k8s.api.networking.v1.NetworkPolicySpec", &[("egress", ATOMIC), ("ingress", ATOMIC), ("policyTypes", ATOMIC)]),
    ("io.k8s.api.networking.v1.ServiceBackendPort", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.api.networking.v1.ServiceCIDRSpec", &[("cidrs", ATOMIC)]),
    ("io.k8s.api.networking.v1.ServiceCIDRStatus", &[("conditions", merged(&["type"], "type"))]),
    ("io.k8s.api.node.v1.Scheduling", &[("nodeSelector", MAP_ATOMIC), ("tolerations", ATOMIC)]),
    ("io.k8s.api.policy.v1.PodDisruptionBudgetSpec", &[("selector", REPLACE)]),
    ("io.k8s.api.policy.v1.PodDisruptionBudgetStatus", &[("conditions", merged(&["type"], "type"))]),
    ("io.k8s.api.rbac.v1.AggregationRule", &[("clusterRoleSelectors", ATOMIC)]),
    ("io.k8s.api.rbac.v1.ClusterRole", &[("rules", ATOMIC)]),
    ("io.k8s.api.rbac.v1.ClusterRoleBinding", &[("subjects", ATOMIC)]),
    ("io.k8s.api.rbac.v1.PolicyRule", &[("apiGroups", ATOMIC), ("nonResourceURLs", ATOMIC), ("resourceNames", ATOMIC), ("resources", ATOMIC), ("verbs", ATOMIC)]),
    ("io.k8s.api.rbac.v1.Role", &[("rules", ATOMIC)]),
    ("io.k8s.api.rbac.v1.RoleBinding", &[("subjects", ATOMIC)]),
    ("io.k8s.api.rbac.v1.RoleRef", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.api.rbac.v1.Subject", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.api.storage.v1.CSIDriverSpec", &[("tokenRequests", ATOMIC), ("volumeLifecycleModes", SET)]),
    ("io.k8s.api.storage.v1.CSINodeDriver", &[("topologyKeys", ATOMIC)]),
    ("io.k8s.api.storage.v1.CSINodeSpec", &[("drivers", merged(&["name"], "name"))]),
    ("io.k8s.api.storage.v1.StorageClass", &[("allowedTopologies", ATOMIC), ("mountOptions", ATOMIC)]),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionNames", &[("categories", ATOMIC), ("shortNames", ATOMIC)]),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionSpec", &[("versions", ATOMIC)]),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionStatus", &[("conditions", map(&["type"])), ("storedVersions", ATOMIC)]),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionVersion", &[("additionalPrinterColumns", ATOMIC), ("selectableFields", ATOMIC)]),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps", &[("allOf", ATOMIC), ("anyOf", ATOMIC), ("enum", ATOMIC), ("oneOf", ATOMIC), ("required", ATOMIC), ("x-kubernetes-list-map-keys", ATOMIC), ("x-kubernetes-validations", merged(&["rule"], "rule"))]),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.WebhookConversion", &[("conversionReviewVersions", ATOMIC)]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.APIGroup", &[("serverAddressByClientCIDRs", ATOMIC), ("versions", ATOMIC)]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.APIGroupList", &[("groups", ATOMIC)]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.APIResource", &[("categories", ATOMIC), ("shortNames", ATOMIC)]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList", &[("resources", ATOMIC)]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.APIVersions", &[("serverAddressByClientCIDRs", ATOMIC), ("versions", ATOMIC)]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions", &[("dryRun", ATOMIC)]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.FieldSelectorRequirement", &[("values", ATOMIC)]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector", &[(TYPE, MAP_ATOMIC), ("matchExpressions", ATOMIC)]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelectorRequirement", &[("values", ATOMIC)]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", &[("finalizers", SET_MERGE), ("managedFields", ATOMIC), ("ownerReferences", merged(&["uid"], "uid"))]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference", &[(TYPE, MAP_ATOMIC)]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.StatusDetails", &[("causes", ATOMIC)]),
    ("io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIServiceSpec", &[("caBundle", ATOMIC)]),
    ("io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIServiceStatus", &[("conditions", merged(&["type"], "type"))]),
];
