//! Who is bound to the bootstrap roles, and the roles that live in namespaces.
//!
//! A table; `spec` says how to read it. The bindings of `system:controller:*` are derived, since each goes to the service
//! account of the controller's name.

use super::spec::{BINDING, BindingSpec, ROLE, RoleSpec, account, group, named, rule, user};

/// Bindings of the cluster.
pub(super) const CLUSTER_BINDINGS: &[BindingSpec] = &[
    BindingSpec {
        name: "cluster-admin",
        role: "cluster-admin",
        subjects: &[group("system:masters")],
        ..BINDING
    },
    BindingSpec {
        name: "system:basic-user",
        role: "system:basic-user",
        subjects: &[group("system:authenticated")],
        ..BINDING
    },
    BindingSpec {
        name: "system:discovery",
        role: "system:discovery",
        subjects: &[group("system:authenticated")],
        ..BINDING
    },
    BindingSpec {
        name: "system:kube-controller-manager",
        role: "system:kube-controller-manager",
        subjects: &[user("system:kube-controller-manager")],
        ..BINDING
    },
    BindingSpec {
        name: "system:kube-dns",
        role: "system:kube-dns",
        subjects: &[account("kube-system", "kube-dns")],
        ..BINDING
    },
    BindingSpec {
        name: "system:kube-scheduler",
        role: "system:kube-scheduler",
        subjects: &[user("system:kube-scheduler")],
        ..BINDING
    },
    BindingSpec {
        name: "system:monitoring",
        role: "system:monitoring",
        subjects: &[group("system:monitoring")],
        ..BINDING
    },
    BindingSpec { name: "system:node", role: "system:node", subjects: &[], ..BINDING },
    BindingSpec {
        name: "system:node-proxier",
        role: "system:node-proxier",
        subjects: &[user("system:kube-proxy")],
        ..BINDING
    },
    BindingSpec {
        name: "system:openshift:public-info-viewer",
        role: "system:openshift:public-info-viewer",
        subjects: &[group("system:authenticated"), group("system:unauthenticated")],
        ..BINDING
    },
    BindingSpec {
        name: "system:public-info-viewer",
        role: "system:public-info-viewer",
        subjects: &[group("system:authenticated"), group("system:unauthenticated")],
        ..BINDING
    },
    BindingSpec {
        name: "system:service-account-issuer-discovery",
        role: "system:service-account-issuer-discovery",
        subjects: &[group("system:serviceaccounts")],
        ..BINDING
    },
    BindingSpec {
        name: "system:volume-scheduler",
        role: "system:volume-scheduler",
        subjects: &[user("system:kube-scheduler")],
        ..BINDING
    },
];

/// Roles of namespaces.
pub(super) const ROLES: &[RoleSpec] = &[
    RoleSpec {
        namespace: "kube-public",
        name: "system:controller:bootstrap-signer",
        rules: &[
            rule("get,list,watch", "", "configmaps"),
            named("update", "", "configmaps", "cluster-info"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
    RoleSpec {
        namespace: "kube-system",
        name: "extension-apiserver-authentication-reader",
        rules: &[named("get,list,watch", "", "configmaps", "extension-apiserver-authentication")],
        ..ROLE
    },
    RoleSpec {
        namespace: "kube-system",
        name: "system::leader-locking-kube-controller-manager",
        rules: &[
            rule("create,get,list,update,watch", "coordination.k8s.io", "leases"),
            rule("create,get,list,update,watch", "coordination.k8s.io", "leasecandidates"),
        ],
        ..ROLE
    },
    RoleSpec {
        namespace: "kube-system",
        name: "system::leader-locking-kube-scheduler",
        rules: &[
            rule("create,get,list,update,watch", "coordination.k8s.io", "leases"),
            rule("create,get,list,update,watch", "coordination.k8s.io", "leasecandidates"),
        ],
        ..ROLE
    },
    RoleSpec {
        namespace: "kube-system",
        name: "system:controller:bootstrap-signer",
        rules: &[rule("get,list,watch", "", "secrets")],
        ..ROLE
    },
    RoleSpec {
        namespace: "kube-system",
        name: "system:controller:cloud-provider",
        rules: &[rule("create,get,list,watch", "", "configmaps")],
        ..ROLE
    },
    RoleSpec {
        namespace: "kube-system",
        name: "system:controller:token-cleaner",
        rules: &[
            rule("delete,get,list,watch", "", "secrets"),
            rule("create,patch,update", ",events.k8s.io", "events"),
        ],
        ..ROLE
    },
];

/// Bindings of namespaces.
pub(super) const BINDINGS: &[BindingSpec] = &[
    BindingSpec {
        namespace: "kube-public",
        name: "system:controller:bootstrap-signer",
        role: "system:controller:bootstrap-signer",
        subjects: &[account("kube-system", "bootstrap-signer")],
    },
    BindingSpec {
        namespace: "kube-system",
        name: "system::extension-apiserver-authentication-reader",
        role: "extension-apiserver-authentication-reader",
        subjects: &[user("system:kube-controller-manager"), user("system:kube-scheduler")],
    },
    BindingSpec {
        namespace: "kube-system",
        name: "system::leader-locking-kube-controller-manager",
        role: "system::leader-locking-kube-controller-manager",
        subjects: &[
            user("system:kube-controller-manager"),
            account("kube-system", "kube-controller-manager"),
            account("kube-system", "leader-election-controller"),
        ],
    },
    BindingSpec {
        namespace: "kube-system",
        name: "system::leader-locking-kube-scheduler",
        role: "system::leader-locking-kube-scheduler",
        subjects: &[user("system:kube-scheduler"), account("kube-system", "kube-scheduler")],
    },
    BindingSpec {
        namespace: "kube-system",
        name: "system:controller:bootstrap-signer",
        role: "system:controller:bootstrap-signer",
        subjects: &[account("kube-system", "bootstrap-signer")],
    },
    BindingSpec {
        namespace: "kube-system",
        name: "system:controller:cloud-provider",
        role: "system:controller:cloud-provider",
        subjects: &[account("kube-system", "cloud-provider")],
    },
    BindingSpec {
        namespace: "kube-system",
        name: "system:controller:token-cleaner",
        role: "system:controller:token-cleaner",
        subjects: &[account("kube-system", "token-cleaner")],
    },
];
