//! Validation against what a real API server answered, where these answers are at hand, and against known cases.

use serde_json::{Map, Value, json};

use super::*;
use crate::default::apply_defaults;
use crate::object;
use crate::schema::Schemas;
use crate::status::ApiError;
use crate::strict;

fn examples() -> Option<Map<String, Value>> {
    captured("examples.json")
}

/// What was captured of a real API server, where the machine has it.
fn captured(file: &str) -> Option<Map<String, Value>> {
    let folder = std::env::var_os("FLOTILLA_SPEC_DIR").map_or_else(
        || std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../spec"),
        std::path::PathBuf::from,
    );
    let bytes = std::fs::read(folder.join(file)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn prepared(mut value: Value) -> (String, String, Value) {
    let (api_version, kind) =
        (object::api_version(&value).to_owned(), object::kind(&value).to_owned());
    let gvk = GroupVersionKind::from_api_version(&api_version, &kind);
    let schema = Schemas::builtin().of(gvk).unwrap();
    strict::conform(&mut value, &schema).unwrap();
    apply_defaults(gvk, &mut value);
    if meta::is_namespaced(gvk) && object::namespace(&value).is_empty() {
        value["metadata"]["namespace"] = "default".into();
    }
    (api_version, kind, value)
}

fn created(value: Value) -> Vec<String> {
    let (api_version, kind, value) = prepared(value);
    let gvk = GroupVersionKind::from_api_version(&api_version, &kind);
    validate_create(gvk, &value).iter().map(ToString::to_string).collect()
}

fn updated(old: Value, change: impl FnOnce(&mut Value)) -> Vec<String> {
    let (api_version, kind, old) = prepared(old);
    let gvk = GroupVersionKind::from_api_version(&api_version, &kind);
    let mut new = old.clone();
    change(&mut new);
    validate_update(gvk, &new, &old).iter().map(ToString::to_string).collect()
}

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"},
        "spec": {"containers": [{"name": "c", "image": "busybox"}]}})
}

fn with(mut value: Value, path: &str, field: Value) -> Value {
    let (parent, key) = path.rsplit_once('/').unwrap();
    object::map_mut(value.pointer_mut(parent).unwrap()).insert(key.to_owned(), field);
    value
}

fn workload(kind: &str) -> Value {
    let api_version = if kind == "Job" { "batch/v1" } else { "apps/v1" };
    let labels = json!({"a": "b"});
    let mut value = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}, "spec": {
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "busybox"}]}}}});
    if kind == "Job" {
        value["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
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
        let wanted = &example["answer"];
        if name == "bad-type" || name == "missing-namespace" {
            continue;
        }
        let (api_version, kind, value) = prepared(example["sent"].clone());
        let gvk = GroupVersionKind::from_api_version(&api_version, &kind);
        let errors = validate_create(gvk, &value);
        if object::kind(wanted) == "Status" {
            let error = ApiError::invalid(gvk.group_kind(), object::name(&value), &errors);
            assert_eq!(&error.to_status(), wanted, "{name}");
        } else {
            assert!(errors.is_empty(), "{name}: {errors}");
            // What the server answered may be sent back as it is.
            let (_, _, stored) = prepared(wanted.clone());
            let errors = validate_update(gvk, &stored, &stored);
            assert!(errors.is_empty(), "{name}: {errors}");
        }
        compared += 1;
    }
    assert!(compared >= 13, "{compared}");
}

/// Each value has exactly one error, which begins as said.
fn check_all<const N: usize>(cases: [(Value, &str); N]) {
    for (value, want) in cases {
        let errors = created(value);
        assert!(errors.len() == 1 && errors[0].starts_with(want), "{errors:?} != {want}");
    }
}

#[test]
fn pods_are_checked_as_upstream_checks_them() {
    let container = "/spec/containers/0";
    let cases = [
        (with(pod(), "/spec/containers", json!([])), "spec.containers: Required value"),
        (
            with(pod(), "/spec/dnsPolicy", json!("Odd")),
            r#"spec.dnsPolicy: Unsupported value: "Odd": supported values: "ClusterFirstWithHostNet", "ClusterFirst", "Default", "None""#,
        ),
        (
            with(pod(), &format!("{container}/imagePullPolicy"), json!("Often")),
            r#"spec.containers[0].imagePullPolicy: Unsupported value: "Often": supported values: "Always", "IfNotPresent", "Never""#,
        ),
        (
            with(
                pod(),
                &format!("{container}/volumeMounts"),
                json!([{"name": "v", "mountPath": "/x"}]),
            ),
            r#"spec.containers[0].volumeMounts[0].name: Not found: "v""#,
        ),
        (
            with(pod(), &format!("{container}/env"), json!([{"name": "A=B"}])),
            r#"spec.containers[0].env[0].name: Invalid value: "A=B": a valid environment variable name must consist only of printable ASCII characters other than '='"#,
        ),
        (
            with(
                pod(),
                &format!("{container}/resources"),
                json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}),
            ),
            r#"spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1"#,
        ),
        (
            with(pod(), &format!("{container}/resources"), json!({"requests": {"a.b/gold": "1"}})),
            "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources",
        ),
        (
            with(pod(), &format!("{container}/livenessProbe"), json!({"periodSeconds": 1})),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
    ];
    check_all(cases);
    assert_eq!(created(pod()), [""; 0]);
}

#[test]
fn volumes_tolerations_and_metadata_are_checked_too() {
    check_all([
        (
            with(pod(), "/spec/volumes", json!([{"name": "V", "emptyDir": {}}])),
            "spec.volumes[0].name: Invalid value: \"V\": a lowercase RFC 1123 label must consist of",
        ),
        (
            with(pod(), "/spec/volumes", json!([{"name": "v", "hostPath": {"path": "/a/../b"}}])),
            r#"spec.volumes[0].hostPath.path: Invalid value: "/a/../b": must not contain '..'"#,
        ),
        (
            with(pod(), "/spec/tolerations", json!([{"key": "a", "operator": "Like"}])),
            r#"spec.tolerations[0].operator: Unsupported value: "Like": supported values: "Equal", "Exists""#,
        ),
        (
            with(pod(), "/spec/nodeSelector", json!({"a": "b c"})),
            r#"spec.nodeSelector: Invalid value: "b c": a valid label must be an empty string"#,
        ),
        (
            with(pod(), "/spec/initContainers", json!([{"name": "c", "image": "x"}])),
            r#"spec.initContainers[0].name: Duplicate value: "c""#,
        ),
        (
            with(pod(), "/metadata/labels", json!({"-a": "b"})),
            "metadata.labels: Invalid value: \"-a\": name part must consist of",
        ),
        (
            with(pod(), "/metadata/finalizers", json!(["x"])),
            r#"metadata.finalizers[0]: Invalid value: "x": name is neither a standard finalizer name nor is it fully qualified"#,
        ),
        (
            with(
                pod(),
                "/metadata/ownerReferences",
                json!([{"apiVersion": "v1", "kind": "Pod", "name": "p"}]),
            ),
            r#"metadata.ownerReferences.uid: Invalid value: "": must not be empty"#,
        ),
    ]);
}

#[test]
fn other_kinds_are_checked_too() {
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "x:y"}, "rules": [{"verbs": [], "apiGroups": [""], "resources": ["pods"]}]});
    let job = with(workload("Job"), "/spec/template/spec/restartPolicy", json!("Always"));
    let cases = [
        (role, "rules[0].verbs: Required value: verbs must contain at least one value"),
        (
            job,
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
        ),
        (
            with(
                workload("Deployment"),
                "/spec/strategy",
                json!({"type": "Recreate", "rollingUpdate": {}}),
            ),
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ),
        (
            with(
                workload("DaemonSet"),
                "/spec/updateStrategy",
                json!({"rollingUpdate": {"maxSurge": 1}}),
            ),
            "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero",
        ),
        (
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a/b": ""}}),
            "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, "type": "kubernetes.io/tls", "data": {"tls.crt": ""}}),
            "data[tls.key]: Required value",
        ),
        (
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "x"}, "spec": {"accessModes": ["ReadWriteOnce"]}}),
            "spec.resources[storage]: Required value",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a.b"}}),
            "metadata.name: Invalid value: \"a.b\": must not contain dots",
        ),
        (
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "x"}, "spec": {"podSelector": {}, "ingress": [{"from": [{}]}]}}),
            "spec.ingress[0].from[0]: Required value: must specify a peer",
        ),
        (
            json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "x"}, "spec": {"minAvailable": "101%"}}),
            "spec.minAvailable: Invalid value: \"101%\": must not be greater than 100%",
        ),
        (
            json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "x"}, "value": 2_000_000_000}),
            "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
        ),
        (
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "x"}, "spec": {"leaseDurationSeconds": 0}}),
            "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "x", "namespace": "n"}}),
            "metadata.namespace: Forbidden: not allowed on this type",
        ),
    ];
    check_all(cases);
}

#[test]
fn what_is_fixed_stays() {
    let image = updated(pod(), |pod| pod["spec"]["containers"][0]["image"] = "other".into());
    assert_eq!(image, [""; 0]);
    // A typed client sends back what Go's encoding keeps.
    let sent = with(with(pod(), "/spec/hostNetwork", json!(false)), "/spec/tolerations", json!([]));
    let echoed = updated(sent, |pod| {
        let spec = object::map_mut(&mut pod["spec"]);
        spec.remove("hostNetwork");
        spec.remove("tolerations");
    });
    assert_eq!(echoed, [""; 0]);
    let command = updated(pod(), |pod| pod["spec"]["containers"][0]["command"] = json!(["x"]));
    assert!(command[0].starts_with("spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,"), "{command:?}");
    let containers = updated(pod(), |pod| pod["spec"]["containers"] = json!([]));
    assert_eq!(
        containers.last().unwrap(),
        "spec.containers: Forbidden: pod updates may not add or remove containers"
    );
    let name = updated(pod(), |pod| pod["metadata"]["name"] = "y".into());
    assert_eq!(name, [r#"metadata.name: Invalid value: "y": field is immutable"#]);
    let relabelled = |value: &mut Value| {
        value["spec"]["selector"] = json!({"matchLabels": {"a": "c"}});
        value["spec"]["template"]["metadata"]["labels"] = json!({"a": "c"});
    };
    assert_eq!(
        updated(workload("Deployment"), relabelled),
        [r#"spec.selector: Invalid value: {"matchLabels":{"a":"c"}}: field is immutable"#]
    );
    let stateful =
        updated(workload("StatefulSet"), |value| value["spec"]["serviceName"] = "s".into());
    assert!(stateful[0].starts_with(
        "spec: Forbidden: updates to statefulset spec for fields other than 'replicas'"
    ));
    assert_eq!(
        updated(workload("StatefulSet"), |value| value["spec"]["replicas"] = 3.into()),
        [""; 0]
    );
    let job =
        updated(workload("Job"), |value| value["spec"]["template"]["spec"]["priority"] = 1.into());
    assert!(
        job[0].starts_with("spec.template: Invalid value: {")
            && job[0].ends_with(": field is immutable")
    );
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 80}]}});
    let moved = updated(service, |value| {
        value["spec"]["clusterIP"] = "10.0.0.2".into();
        value["spec"]["clusterIPs"] = json!(["10.0.0.2"]);
    });
    assert_eq!(
        moved,
        [r#"spec.clusterIPs[0]: Invalid value: ["10.0.0.2"]: may not change once set"#]
    );
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, "immutable": true, "data": {"a": "YQ=="}});
    let changed = updated(secret, |value| value["data"]["a"] = "Yg==".into());
    assert_eq!(changed, ["data: Forbidden: field is immutable when `immutable` is set"]);
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "x"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    assert_eq!(updated(claim.clone(), |value| value["spec"]["volumeName"] = "pv".into()), [""; 0]);
    let mode = updated(claim, |value| value["spec"]["accessModes"] = json!(["ReadWriteMany"]));
    assert!(mode[0].starts_with(
        "spec: Forbidden: spec is immutable after creation except resources.requests"
    ));
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "x"}, "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"]}});
    let renumbered = updated(node, |value| value["spec"]["podCIDRs"] = json!(["10.2.0.0/24"]));
    assert_eq!(
        renumbered,
        [
            r#"spec.podCIDRs: Forbidden: node updates may not change podCIDR except from "" to valid"#
        ]
    );
}

#[test]
fn what_a_fresh_cluster_holds_is_valid() {
    let Some(bootstrap) = captured("bootstrap-objects.json") else {
        println!("SKIPPED: no bootstrap-objects.json (set FLOTILLA_SPEC_DIR)");
        return;
    };
    let kinds = Schemas::builtin().kinds();
    let mut compared = 0;
    for (path, objects) in &bootstrap {
        let (group_version, plural) = path.rsplit_once('/').unwrap();
        let group_version = group_version.trim_start_matches("/apis/").trim_start_matches("/api/");
        let gvk = kinds
            .iter()
            .map(|row| row.gvk)
            .find(|gvk| {
                let name = gvk.kind.to_lowercase();
                gvk.api_version() == group_version
                    && [format!("{name}s"), format!("{name}es")].contains(&plural.to_owned())
            })
            .unwrap_or_else(|| panic!("{path}"));
        let schema = Schemas::builtin().of(gvk).unwrap();
        for object in objects.as_array().unwrap() {
            let mut object = object.clone();
            assert_eq!(strict::conform(&mut object, &schema), Ok(Vec::new()), "{path}");
            let sent = object.clone();
            apply_defaults(gvk, &mut object);
            for (key, value) in sent["spec"].as_object().into_iter().flatten() {
                assert_eq!(&object["spec"][key], value, "{path}: defaults change what is there");
            }
            let errors = validate_create(gvk, &object);
            assert!(errors.is_empty(), "{path} {}: {errors}", object::name(&object));
            let errors = validate_update(gvk, &object, &object);
            assert!(errors.is_empty(), "{path} {}: {errors}", object::name(&object));
            compared += 1;
        }
    }
    assert!(compared > 100, "{compared}");
}

#[test]
fn statuses_keep_their_promises() {
    let (_, _, old) = prepared(with(pod(), "/spec/restartPolicy", json!("Never")));
    let old = with(
        old,
        "/status",
        json!({"qosClass": "BestEffort", "containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 0}}}]}),
    );
    let mut new = old.clone();
    new["status"]["qosClass"] = "Burstable".into();
    new["status"]["containerStatuses"][0]["state"] = json!({"running": {}});
    let errors = validate_status_update(GroupVersionKind::new("", "v1", "Pod"), &new, &old);
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            r#"status.qosClass: Invalid value: "Burstable": field is immutable"#,
            "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state",
        ]
    );
}
