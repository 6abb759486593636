//! Defaults against what a real API server answered, where these answers are at hand, and against known cases.

use serde_json::json;

use super::*;
use crate::object;
use crate::schema::Schemas;
use crate::strict;

fn examples() -> Option<Map<String, Value>> {
    let folder = std::env::var_os("FLOTILLA_SPEC_DIR").map_or_else(
        || std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../spec"),
        std::path::PathBuf::from,
    );
    let bytes = std::fs::read(folder.join("examples.json")).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn defaulted(mut value: Value) -> Value {
    let gvk = (object::api_version(&value).to_owned(), object::kind(&value).to_owned());
    let gvk = GroupVersionKind::from_api_version(&gvk.0, &gvk.1);
    let schema = Schemas::builtin().of(gvk).unwrap();
    strict::conform(&mut value, &schema).unwrap();
    apply_defaults(gvk, &mut value);
    let once = value.clone();
    apply_defaults(gvk, &mut value);
    assert_eq!(value, once, "applied twice");
    value
}

/// Takes away what admission, allocation and the strategies add.
fn without_server_side(mut value: Value, kind: &str) -> Value {
    let spec: &[&str] = match kind {
        "Pod" => {
            &["tolerations", "priority", "preemptionPolicy", "serviceAccount", "serviceAccountName"]
        }
        "Service" => &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"],
        "Job" => &["selector"],
        _ => &[],
    };
    for key in spec {
        map_mut(&mut value["spec"]).remove(*key);
    }
    if kind == "Pod" {
        value["status"] = json!({});
    }
    if let Some(ports) = value["spec"]["ports"].as_array_mut() {
        ports.iter_mut().for_each(|port| drop(map_mut(port).remove("nodePort")));
    }
    if kind == "Job" {
        value["spec"]["template"]["metadata"] = json!({});
        value["metadata"] = json!({"name": value["metadata"]["name"]});
    }
    let metadata = map_mut(&mut value["metadata"]);
    for key in
        ["namespace", "uid", "generation", "creationTimestamp", "managedFields", "annotations"]
    {
        metadata.remove(key);
    }
    value
}

#[test]
fn answers_are_those_of_a_real_server() {
    let Some(examples) = examples() else {
        println!("SKIPPED: no examples.json (set FLOTILLA_SPEC_DIR)");
        return;
    };
    let mut compared = 0;
    for (name, example) in &examples {
        let answer = &example["answer"];
        if object::kind(answer) == "Status" {
            continue;
        }
        let kind = object::kind(answer);
        let mut have = without_server_side(defaulted(example["sent"].clone()), kind);
        let mut want = without_server_side(answer.clone(), kind);
        // An empty list of projections is written as null by Go.
        for value in [&mut have, &mut want] {
            for volume in value["spec"]["volumes"].as_array_mut().into_iter().flatten() {
                if let Some(projected) = child(map_mut(volume), "projected") {
                    projected.remove("sources");
                }
            }
            if value["spec"]["volumes"].is_null() {
                map_mut(&mut value["spec"]).remove("volumes");
            }
        }
        assert_eq!(have, want, "{name}");
        compared += 1;
    }
    assert!(compared >= 10, "{compared}");
}

#[test]
fn other_kinds_have_upstreams_defaults() {
    let cases = [
        (
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, "stringData": {"a": "b"}, "data": {"c": "ZA=="}}),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, "type": "Opaque", "data": {"a": "Yg==", "c": "ZA=="}}),
        ),
        (
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x", "labels": {"kubernetes.io/metadata.name": "x"}}, "spec": {}, "status": {"phase": "Active"}}),
        ),
        (
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "x"}, "status": {"capacity": {"cpu": "2"}}}),
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "x"}, "spec": {}, "status": {"capacity": {"cpu": "2"}, "allocatable": {"cpu": "2"}}}),
        ),
        (
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "x"}, "roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]}),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "x"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}, "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]}),
        ),
        (
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "x"}, "provisioner": "p"}),
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "x"}, "provisioner": "p", "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"}),
        ),
        (
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "x"}, "addressType": "IPv4", "endpoints": [], "ports": [{"port": 80}]}),
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "x"}, "addressType": "IPv4", "endpoints": [], "ports": [{"name": "", "port": 80, "protocol": "TCP"}]}),
        ),
        (
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP", "ports": [{"port": 80, "targetPort": "http"}]}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
                "allocateLoadBalancerNodePorts": true, "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster", "ports": [{"port": 80, "protocol": "TCP", "targetPort": "http"}]}, "status": {"loadBalancer": {}}}),
        ),
    ];
    for (sent, want) in cases {
        assert_eq!(defaulted(sent), want);
    }
}
