//! Every object that a fresh cluster holds, from the tables.
//!
//! Pure. Ours beyond upstream: nodes may do what a service proxy may (each node balances its own services) and read what the
//! cluster tells them, and holders of any bootstrap token may ask for a node's certificate.

use super::bindings::{BINDINGS, CLUSTER_BINDINGS, ROLES};
use super::cluster_roles::CLUSTER_ROLES;
use super::controller_roles::CONTROLLER_ROLES;
use super::spec::{BINDING, BindingSpec, ROLE, RoleSpec, SubjectSpec, group, named, user};
use crate::lookup::prefix;
use serde_json::{Value, json};

const SERVICE_CIDRS: &str = "servicecidrs";
const CONTROLLER_PREFIX: &str = "system:controller:";

/// Bindings that upstream leaves to whoever installs a cluster.
const OUR_BINDINGS: &[BindingSpec] = &[BindingSpec {
    name: "flotilla:node-bootstrapper",
    role: "system:node-bootstrapper",
    subjects: &[group("system:bootstrappers")],
    ..BINDING
}];
/// What a node reads when it joins; kubeadm has the same, under a name of its own.
const OUR_ROLE: RoleSpec = RoleSpec {
    namespace: "kube-system",
    name: "flotilla:kubelet-config",
    rules: &[named("get", "", "configmaps", "kubelet-config")],
    ..ROLE
};
const OUR_ROLE_BINDING: BindingSpec = BindingSpec {
    namespace: "kube-system",
    name: "flotilla:kubelet-config",
    role: "flotilla:kubelet-config",
    subjects: &[group("system:nodes")],
};
/// Subjects beyond upstream's: binding and subject.
const OUR_SUBJECTS: &[(&str, SubjectSpec)] = &[("system:node-proxier", group("system:nodes"))];
/// The one identity under which the controllers of this process act.
const CONTROLLERS: SubjectSpec = user("system:kube-controller-manager");

/// An object, and where it is stored.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct BootstrapObject {
    pub(super) prefix: &'static str,
    pub(super) value: Value,
}

impl BootstrapObject {
    pub(super) fn name(&self) -> &str {
        self.value["metadata"]["name"].as_str().unwrap_or_default()
    }

    pub(super) fn namespace(&self) -> Option<&str> {
        self.value["metadata"]["namespace"].as_str()
    }
}

/// All objects, namespaces first.
pub(super) fn all(service_cidrs: &[String]) -> Vec<BootstrapObject> {
    let mut objects = Vec::new();
    let mut put = |prefix, value| objects.push(BootstrapObject { prefix, value });
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        put(prefix::NAMESPACES, namespace(name));
    }
    for class in priority_classes() {
        put(prefix::PRIORITY_CLASSES, class);
    }
    put(SERVICE_CIDRS, service_cidr(service_cidrs));
    for role in CLUSTER_ROLES.iter().chain(CONTROLLER_ROLES) {
        put(prefix::CLUSTER_ROLES, role.object());
    }
    for binding in CLUSTER_BINDINGS.iter().chain(OUR_BINDINGS) {
        put(prefix::CLUSTER_ROLE_BINDINGS, with_our_subjects(binding));
    }
    for role in CONTROLLER_ROLES {
        put(prefix::CLUSTER_ROLE_BINDINGS, controller_binding(role));
    }
    for role in ROLES.iter().chain([&OUR_ROLE]) {
        put(prefix::ROLES, role.object());
    }
    for binding in BINDINGS.iter().chain([&OUR_ROLE_BINDING]) {
        put(prefix::ROLE_BINDINGS, binding.object());
    }
    objects
}

fn add_subject(binding: &mut Value, subject: SubjectSpec) {
    if let Value::Array(subjects) = &mut binding["subjects"] {
        subjects.push(subject.object());
    }
}

fn with_our_subjects(binding: &BindingSpec) -> Value {
    let mut object = binding.object();
    for (_, subject) in OUR_SUBJECTS.iter().filter(|(name, _)| *name == binding.name) {
        add_subject(&mut object, *subject);
    }
    object
}

fn controller_binding(role: &'static RoleSpec) -> Value {
    let account = role.name.strip_prefix(CONTROLLER_PREFIX).unwrap_or(role.name);
    let mut object = BindingSpec { name: role.name, role: role.name, ..BINDING }.object();
    object["subjects"] = json!([]);
    add_subject(&mut object, SubjectSpec::Account("kube-system", account));
    add_subject(&mut object, CONTROLLERS);
    object
}

fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    })
}

fn priority_classes() -> [Value; 2] {
    let class = |name: &str, value: i64, description: &str| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name, "generation": 1},
            "value": value, "preemptionPolicy": "PreemptLowerPriority", "description": description,
        })
    };
    [
        class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ]
}

fn service_cidr(cidrs: &[String]) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": cidrs},
        "status": {"conditions": [{
            "type": "Ready", "status": "True", "reason": "",
            "message": "Kubernetes default Service CIDR is ready",
        }]},
    })
}
