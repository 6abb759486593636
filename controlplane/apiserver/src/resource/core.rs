//! Rows of the core group, except what `pod` and `service` say about their own.
//! Must not touch the store.

use apimachinery::object;
use serde_json::{Value, json};

use super::{
    pod, service,
    strategy::{Generation, Strategy},
    table::{Resource, VERBS_PROXY, VERBS_READ_WRITE},
};

fn core(kind: &str, plural: &str) -> Resource {
    Resource::new("", "v1", kind, plural)
}

/// The core group's rows, in discovery's order.
pub(super) fn rows() -> Vec<Resource> {
    let plain = Strategy::default();
    vec![
        core("Binding", "bindings").prefix("").only(&["create"]),
        core("ComponentStatus", "componentstatuses")
            .cluster()
            .prefix("")
            .only(&["get", "list"])
            .short(&["cs"]),
        core("ConfigMap", "configmaps").short(&["cm"]),
        core("Endpoints", "endpoints")
            .singular("endpoints")
            .short(&["ep"])
            .prefix("services/endpoints")
            .strategy(Strategy { create_on_update: true, ..plain }),
        super::events::core_row(),
        core("LimitRange", "limitranges")
            .short(&["limits"])
            .strategy(Strategy { create_on_update: true, ..plain }),
        namespace(),
        node(),
        core("PersistentVolumeClaim", "persistentvolumeclaims").short(&["pvc"]).status().strategy(
            Strategy {
                returns_deleted: true,
                empty_status: Some(|| json!({"phase": "Pending"})),
                ..plain
            },
        ),
        core("PersistentVolume", "persistentvolumes").cluster().short(&["pv"]).status().strategy(
            Strategy {
                returns_deleted: true,
                empty_status: Some(|| json!({"phase": "Pending"})),
                ..plain
            },
        ),
        pod::row(),
        core("PodTemplate", "podtemplates").strategy(Strategy {
            generation: Generation::Content,
            returns_deleted: true,
            ..plain
        }),
        core("ReplicationController", "replicationcontrollers")
            .short(&["rc"])
            .category("all")
            .prefix("controllers")
            .scale()
            .status()
            .field("status.replicas", "0")
            .strategy(Strategy {
                generation: Generation::Content,
                orphans_dependents: true,
                empty_status: Some(|| json!({"replicas": 0})),
                ..plain
            }),
        core("ResourceQuota", "resourcequotas").short(&["quota"]).status().strategy(Strategy {
            returns_deleted: true,
            empty_status: Some(|| json!({})),
            ..plain
        }),
        core("Secret", "secrets").field("type", ""),
        core("ServiceAccount", "serviceaccounts")
            .short(&["sa"])
            .sub("token", Some(("authentication.k8s.io", "v1", "TokenRequest")), &["create"])
            .strategy(Strategy { returns_deleted: true, ..plain }),
        service::row(),
    ]
}

fn namespace() -> Resource {
    core("Namespace", "namespaces")
        .cluster()
        .short(&["ns"])
        .only(&["create", "delete", "get", "list", "patch", "update", "watch"])
        .sub("finalize", None, &["update"])
        .status()
        .field("status.phase", "")
        .strategy(Strategy {
            empty_status: Some(|| json!({"phase": "Active"})),
            prepare_create: namespace_prepare_create,
            prepare_update: namespace_prepare_update,
            ..Strategy::default()
        })
}

/// Every namespace is finalized by its controller: the `kubernetes` finalizer stands in its spec.
fn namespace_prepare_create(object: &mut Value) {
    let finalizers = object::at_mut(object, &["spec", "finalizers"]);
    match finalizers {
        Value::Array(list) if list.iter().any(|f| f == "kubernetes") => {}
        Value::Array(list) => list.push("kubernetes".into()),
        other => *other = json!(["kubernetes"]),
    }
    set_name_label(object);
}

/// Spec finalizers change through `finalize` alone; the label of the name always stands.
fn namespace_prepare_update(object: &mut Value, old: &Value) {
    *object::at_mut(object, &["spec"]) = old["spec"].clone();
    set_name_label(object);
}

fn set_name_label(object: &mut Value) {
    let name = object::name(object).to_owned();
    *object::at_mut(object, &["metadata", "labels", "kubernetes.io/metadata.name"]) = name.into();
}

fn node() -> Resource {
    core("Node", "nodes")
        .cluster()
        .short(&["no"])
        .prefix("minions")
        .sub("proxy", Some(("", "v1", "NodeProxyOptions")), VERBS_PROXY)
        .sub("status", None, VERBS_READ_WRITE)
        .field("spec.unschedulable", "false")
}
