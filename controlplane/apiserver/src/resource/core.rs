//! Rows of the core group, except what `pod` and `service` say about their own.
//! Must not touch the store.

use serde_json::{Value, json};

use super::{
    pod, service,
    strategy::Strategy,
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
        core("PersistentVolumeClaim", "persistentvolumeclaims")
            .short(&["pvc"])
            .status()
            .strategy(Strategy { empty_status: Some(|| json!({"phase": "Pending"})), ..plain }),
        core("PersistentVolume", "persistentvolumes")
            .cluster()
            .short(&["pv"])
            .status()
            .strategy(Strategy { empty_status: Some(|| json!({"phase": "Pending"})), ..plain }),
        pod::row(),
        core("PodTemplate", "podtemplates").strategy(Strategy { generation: true, ..plain }),
        core("ReplicationController", "replicationcontrollers")
            .short(&["rc"])
            .category("all")
            .prefix("controllers")
            .scale()
            .status()
            .field("status.replicas", &["status", "replicas"])
            .strategy(Strategy {
                generation: true,
                empty_status: Some(|| json!({"replicas": 0})),
                ..plain
            }),
        core("ResourceQuota", "resourcequotas")
            .short(&["quota"])
            .status()
            .strategy(Strategy { empty_status: Some(|| json!({})), ..plain }),
        core("Secret", "secrets").field("type", &["type"]),
        core("ServiceAccount", "serviceaccounts").short(&["sa"]).sub(
            "token",
            Some(("authentication.k8s.io", "v1", "TokenRequest")),
            &["create"],
        ),
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
        .field("status.phase", &["status", "phase"])
        .strategy(Strategy {
            empty_status: Some(|| json!({"phase": "Active"})),
            prepare_create: namespace_prepare_create,
            prepare_update: namespace_prepare_update,
            ..Strategy::default()
        })
}

/// Every namespace is finalized by its controller: the `kubernetes` finalizer stands in its spec.
fn namespace_prepare_create(object: &mut Value) {
    let finalizers = &mut object["spec"]["finalizers"];
    let has = finalizers.as_array().is_some_and(|f| f.iter().any(|f| f == "kubernetes"));
    if !has {
        match finalizers {
            Value::Array(list) => list.push("kubernetes".into()),
            other => *other = json!(["kubernetes"]),
        }
    }
    let Some(name) = object["metadata"]["name"].as_str().map(str::to_owned) else { return };
    object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.into();
}

/// Spec finalizers change through `finalize` alone; the label of the name always stands.
fn namespace_prepare_update(object: &mut Value, old: &Value) {
    object["spec"] = old["spec"].clone();
    if let Some(name) = old["metadata"]["name"].as_str() {
        object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.into();
    }
}

fn node() -> Resource {
    core("Node", "nodes")
        .cluster()
        .short(&["no"])
        .prefix("minions")
        .sub("proxy", Some(("", "v1", "NodeProxyOptions")), VERBS_PROXY)
        .sub("status", None, VERBS_READ_WRITE)
        .field("spec.unschedulable", &["spec", "unschedulable"])
}
