//! The cluster roles of controllers (`system:controller:*`) that a fresh cluster of Kubernetes 1.36 holds.
//!
//! A table; `spec` says how to read it.

use super::spec::{ROLE, RoleSpec, named, rule};

/// Cluster roles of controllers.
pub(super) const CONTROLLER_ROLES: &[RoleSpec] = &[
    RoleSpec {
        name: "system:controller:attachdetach-controller",
        rules: &[
            rule("list,watch", "", "persistentvolumeclaims,persistentvolumes"),
            rule("get,list,watch", "", "nodes"),
            rule("patch,update", "", "nodes/status"),
            rule("list,watch", "", "pods"),
            rule("create,patch,update", ",events.k8s.io", "events"),
            rule("create,delete,get,list,watch", "storage.k8s.io", "volumeattachments"),
            rule("get,list,watch", "storage.k8s.io", "csidrivers"),
            rule("get,list,watch", "storage.k8s.io", "csinodes"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:certificate-controller",
        rules: &[
            rule("delete,get,list,watch", "certificates.k8s.io", "certificatesigningrequests"),
            rule(
                "update",
                "certificates.k8s.io",
                "certificatesigningrequests/approval,certificatesigningrequests/status",
            ),
            named(
                "approve",
                "certificates.k8s.io",
                "signers",
                "kubernetes.io/kube-apiserver-client-kubelet",
            ),
            named(
                "sign",
                "certificates.k8s.io",
                "signers",
                "kubernetes.io/kube-apiserver-client,kubernetes.io/kube-apiserver-client-kubelet,kubernetes.io/kubelet-serving,kubernetes.io/legacy-unknown",
            ),
            rule("create", "authorization.k8s.io", "subjectaccessreviews"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:clusterrole-aggregation-controller",
        rules: &[rule(
            "escalate,get,list,patch,update,watch",
            "rbac.authorization.k8s.io",
            "clusterroles",
        )],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:cronjob-controller",
        rules: &[
            rule("get,list,update,watch", "batch", "cronjobs"),
            rule("create,delete,get,list,patch,update,watch", "batch", "jobs"),
            rule("update", "batch", "cronjobs/status"),
            rule("update", "batch", "cronjobs/finalizers"),
            rule("delete,list,watch", "", "pods"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:daemon-set-controller",
        rules: &[
            rule("get,list,watch", "apps,extensions", "daemonsets"),
            rule("update", "apps,extensions", "daemonsets/status"),
            rule("update", "apps,extensions", "daemonsets/finalizers"),
            rule("list,watch", "", "nodes"),
            rule("create,delete,list,patch,watch", "", "pods"),
            rule("create", "", "pods/binding"),
            rule("create,delete,get,list,patch,update,watch", "apps", "controllerrevisions"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:deployment-controller",
        rules: &[
            rule("get,list,update,watch", "apps,extensions", "deployments"),
            rule("update", "apps,extensions", "deployments/status"),
            rule("update", "apps,extensions", "deployments/finalizers"),
            rule("create,delete,get,list,patch,update,watch", "apps,extensions", "replicasets"),
            rule("get,list,update,watch", "", "pods"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:device-taint-eviction-controller",
        rules: &[
            rule("delete,get,list,watch", "", "pods"),
            rule("patch,update", "", "pods/status"),
            rule("get,list,watch", "resource.k8s.io", "resourceclaims"),
            rule("get,list,watch", "resource.k8s.io", "resourceslices"),
            rule("get,list,watch", "resource.k8s.io", "deviceclasses"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:disruption-controller",
        rules: &[
            rule("get,list,watch", "apps,extensions", "deployments"),
            rule("get,list,watch", "apps,extensions", "replicasets"),
            rule("get,list,watch", "", "replicationcontrollers"),
            rule("get,list,watch", "policy", "poddisruptionbudgets"),
            rule("get,list,watch", "apps", "statefulsets"),
            rule("update", "policy", "poddisruptionbudgets/status"),
            rule("patch,update", "", "pods/status"),
            rule("get", "*", "*/scale"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:endpoint-controller",
        rules: &[
            rule("get,list,watch", "", "pods,services"),
            rule("create,delete,get,list,update,watch", "", "endpoints"),
            rule("create", "", "endpoints/restricted"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:endpointslice-controller",
        rules: &[
            rule("get,list,watch", "", "nodes,pods,services"),
            rule("update", "", "services/finalizers"),
            rule("create,delete,get,list,update,watch", "discovery.k8s.io", "endpointslices"),
            rule("create", "discovery.k8s.io", "endpointslices/restricted"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:endpointslicemirroring-controller",
        rules: &[
            rule("get,list,watch", "", "endpoints,services"),
            rule("update", "", "services/finalizers"),
            rule("update", "", "endpoints/finalizers"),
            rule("create,delete,get,list,update,watch", "discovery.k8s.io", "endpointslices"),
            rule("create", "discovery.k8s.io", "endpointslices/restricted"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:ephemeral-volume-controller",
        rules: &[
            rule("get,list,watch", "", "pods"),
            rule("update", "", "pods/finalizers"),
            rule("create,get,list,watch", "", "persistentvolumeclaims"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:expand-controller",
        rules: &[
            rule("get,list,patch,update,watch", "", "persistentvolumes"),
            rule("patch,update", "", "persistentvolumeclaims/status"),
            rule("get,list,watch", "", "persistentvolumeclaims"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:generic-garbage-collector",
        rules: &[
            rule("delete,get,list,patch,update,watch", "*", "*"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:horizontal-pod-autoscaler",
        rules: &[
            rule("get,list,watch", "autoscaling", "horizontalpodautoscalers"),
            rule("update", "autoscaling", "horizontalpodautoscalers/status"),
            rule("get,update", "*", "*/scale"),
            rule("list,watch", "", "pods"),
            rule("list,watch", "metrics.k8s.io", "pods"),
            rule("get,list,watch", "custom.metrics.k8s.io", "*"),
            rule("get,list,watch", "external.metrics.k8s.io", "*"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:job-controller",
        rules: &[
            rule("get,list,patch,update,watch", "batch", "jobs"),
            rule("update", "batch", "jobs/status"),
            rule("update", "batch", "jobs/finalizers"),
            rule("create,delete,list,patch,watch", "", "pods"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:legacy-service-account-token-cleaner",
        rules: &[
            named("get", "", "configmaps", "kube-apiserver-legacy-service-account-token-tracking"),
            rule("delete,patch", "", "secrets"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:namespace-controller",
        rules: &[
            rule("delete,get,list,watch", "", "namespaces"),
            rule("update", "", "namespaces/finalize,namespaces/status"),
            rule("delete,deletecollection,get,list,watch", "*", "*"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:node-controller",
        rules: &[
            rule("delete,get,list,patch,update,watch", "", "nodes"),
            rule("patch,update", "", "nodes/status"),
            rule("patch,update", "", "pods/status"),
            rule("delete,get,list,watch", "", "pods"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:persistent-volume-binder",
        rules: &[
            rule("create,delete,get,list,update,watch", "", "persistentvolumes"),
            rule("update", "", "persistentvolumes/status"),
            rule("get,list,update,watch", "", "persistentvolumeclaims"),
            rule("update", "", "persistentvolumeclaims/status"),
            rule("create,delete,get,list,watch", "", "pods"),
            rule("get,list,watch", "storage.k8s.io", "storageclasses"),
            rule("list,watch", "", "nodes"),
            rule("create,patch,update", ",events.k8s.io", "events"),
            rule("watch", "", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:pod-garbage-collector",
        rules: &[
            rule("delete,list,watch", "", "pods"),
            rule("get,list,watch", "", "nodes"),
            rule("patch", "", "pods/status"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:pv-protection-controller",
        rules: &[
            rule("get,list,update,watch", "", "persistentvolumes"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:pvc-protection-controller",
        rules: &[
            rule("get,list,update,watch", "", "persistentvolumeclaims"),
            rule("update", "", "persistentvolumeclaims/status"),
            rule("get,list,watch", "", "pods"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:replicaset-controller",
        rules: &[
            rule("get,list,update,watch", "apps,extensions", "replicasets"),
            rule("update", "apps,extensions", "replicasets/status"),
            rule("update", "apps,extensions", "replicasets/finalizers"),
            rule("create,delete,list,patch,watch", "", "pods"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:replication-controller",
        rules: &[
            rule("get,list,update,watch", "", "replicationcontrollers"),
            rule("update", "", "replicationcontrollers/status"),
            rule("update", "", "replicationcontrollers/finalizers"),
            rule("create,delete,list,patch,watch", "", "pods"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:resource-claim-controller",
        rules: &[
            rule("get,list,watch", "", "pods"),
            rule("update", "", "pods/finalizers"),
            rule("create,delete,get,list,watch", "resource.k8s.io", "resourceclaims"),
            rule("patch,update", "resource.k8s.io", "resourceclaims,resourceclaims/status"),
            rule("patch,update", "", "pods/status"),
            rule("create,patch,update", ",events.k8s.io", "events"),
            rule("patch,update", "resource.k8s.io", "resourceclaims/binding"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:resourcequota-controller",
        rules: &[
            rule("list,watch", "*", "*"),
            rule("update", "", "resourcequotas/status"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:root-ca-cert-publisher",
        rules: &[
            rule("create,update", "", "configmaps"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:route-controller",
        rules: &[
            rule("list,watch", "", "nodes"),
            rule("patch", "", "nodes/status"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:selinux-warning-controller",
        rules: &[
            rule("create,patch,update", ",events.k8s.io", "events"),
            rule("get,list,watch", "", "persistentvolumes"),
            rule("get,list,watch", "", "persistentvolumeclaims"),
            rule("get,list,watch", "", "pods"),
            rule("get,list,watch", "storage.k8s.io", "csidrivers"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:service-account-controller",
        rules: &[
            rule("create", "", "serviceaccounts"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:service-ca-cert-publisher",
        rules: &[
            rule("create,update", "", "configmaps"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:service-cidrs-controller",
        rules: &[
            rule("get,list,patch,update,watch", "networking.k8s.io", "servicecidrs"),
            rule("patch,update", "networking.k8s.io", "servicecidrs/finalizers"),
            rule("patch,update", "networking.k8s.io", "servicecidrs/status"),
            rule("get,list,watch", "networking.k8s.io", "ipaddresses"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:service-controller",
        rules: &[
            rule("get,list,watch", "", "services"),
            rule("patch,update", "", "services/status"),
            rule("list,watch", "", "nodes"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:statefulset-controller",
        rules: &[
            rule("list,watch", "", "pods"),
            rule("get,list,watch", "apps", "statefulsets"),
            rule("update", "apps", "statefulsets/status"),
            rule("update", "apps", "statefulsets/finalizers"),
            rule("create,delete,get,patch,update", "", "pods"),
            rule("create,delete,get,list,patch,update,watch", "apps", "controllerrevisions"),
            rule("create,get,list,watch", "", "persistentvolumeclaims"),
            rule("delete,update", "", "persistentvolumeclaims"),
            rule("update", "", "pods/finalizers"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:ttl-after-finished-controller",
        rules: &[
            rule("delete,get,list,watch", "batch", "jobs"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:ttl-controller",
        rules: &[
            rule("list,patch,update,watch", "", "nodes"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:validatingadmissionpolicy-status-controller",
        rules: &[
            rule("get,list,watch", "admissionregistration.k8s.io", "validatingadmissionpolicies"),
            rule(
                "get,patch,update",
                "admissionregistration.k8s.io",
                "validatingadmissionpolicies/status",
            ),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        name: "system:controller:volumeattributesclass-protection-controller",
        rules: &[
            rule("get,list,watch", "", "persistentvolumeclaims"),
            rule("get,list,watch", "", "persistentvolumes"),
            rule("get,list,update,watch", "storage.k8s.io", "volumeattributesclasses"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
];
