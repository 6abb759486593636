//! Defaults of pods and pod templates (`pkg/apis/core/v1/defaults.go`, Kubernetes 1.36).

use std::collections::BTreeMap;

use serde_json::Value;

use super::{child, each, empty, fill, is_empty, made, round_resources, set, set_zero, text};
use crate::object::Object;
use crate::quantity::Quantity;

/// Defaults of a pod template: the spec and what Go always writes.
pub(super) fn template(template: &mut Object) {
    set(template, "metadata", empty());
    pod_spec(made(template, "spec"));
}

/// Defaults of a Pod itself, on top of those of its spec.
pub(super) fn pod(object: &mut Object) {
    let spec = made(object, "spec");
    pod_spec(spec);
    for list in ["containers", "initContainers"] {
        for container in each(spec, list) {
            fill(made(container, "resources"), "requests", "limits");
        }
    }
    pod_level_resources(spec);
    set(spec, "enableServiceLinks", true);
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        for list in ["containers", "initContainers"] {
            for port in each(spec, list).flat_map(|container| each(container, "ports")) {
                if let Some(number) = port.get("containerPort").cloned() {
                    set_zero(port, "hostPort", number);
                }
            }
        }
    }
    made(object, "status");
}

/// Defaults of a pod's spec, wherever it stands.
pub(super) fn pod_spec(spec: &mut Object) {
    set_zero(spec, "dnsPolicy", "ClusterFirst");
    set_zero(spec, "restartPolicy", "Always");
    set(spec, "securityContext", empty());
    set(spec, "terminationGracePeriodSeconds", 30);
    set_zero(spec, "schedulerName", "default-scheduler");
    // The old name of the field and the new one mirror each other.
    let account = match text(spec, "serviceAccountName") {
        "" => text(spec, "serviceAccount").to_owned(),
        name => name.to_owned(),
    };
    for key in ["serviceAccountName", "serviceAccount"] {
        if account.is_empty() {
            spec.remove(key);
        } else {
            spec.insert(key.to_owned(), account.clone().into());
        }
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        each(spec, list).for_each(container);
    }
    each(spec, "volumes").for_each(volume);
    round_resources(spec, "overhead");
    if let Some(resources) = child(spec, "resources") {
        round_resources(resources, "limits");
        round_resources(resources, "requests");
    }
}

fn container(container: &mut Object) {
    let policy = pull_policy(text(container, "image"));
    set_zero(container, "imagePullPolicy", policy);
    set_zero(container, "terminationMessagePath", "/dev/termination-log");
    set_zero(container, "terminationMessagePolicy", "File");
    let resources = made(container, "resources");
    round_resources(resources, "limits");
    round_resources(resources, "requests");
    for port in each(container, "ports") {
        set_zero(port, "protocol", "TCP");
    }
    for source in each(container, "env").filter_map(|env| child(env, "valueFrom")) {
        field_ref(source);
        if let Some(key) = child(source, "fileKeyRef") {
            set(key, "optional", false);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = child(container, name) {
            set_zero(probe, "timeoutSeconds", 1);
            set_zero(probe, "periodSeconds", 10);
            set_zero(probe, "successThreshold", 1);
            set_zero(probe, "failureThreshold", 3);
            handler(probe);
        }
    }
    if let Some(lifecycle) = child(container, "lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(hook) = child(lifecycle, name) {
                handler(hook);
            }
        }
    }
}

fn handler(handler: &mut Object) {
    if let Some(get) = child(handler, "httpGet") {
        set_zero(get, "path", "/");
        set_zero(get, "scheme", "HTTP");
    }
    if let Some(grpc) = child(handler, "grpc") {
        set(grpc, "service", "");
    }
}

fn field_ref(source: &mut Object) {
    if let Some(reference) = child(source, "fieldRef") {
        set_zero(reference, "apiVersion", "v1");
    }
}

fn volume(volume: &mut Object) {
    if volume.iter().all(|(key, value)| key == "name" || value.is_null()) {
        volume.insert("emptyDir".to_owned(), empty());
    }
    for name in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = child(volume, name) {
            set(source, "defaultMode", 0o644);
            each(source, "items").for_each(field_ref);
        }
    }
    if let Some(projected) = child(volume, "projected") {
        projected.entry("sources").or_insert(Value::Null);
        for source in each(projected, "sources") {
            if let Some(token) = child(source, "serviceAccountToken") {
                set(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = child(source, "downwardAPI") {
                each(downward, "items").for_each(field_ref);
            }
        }
    }
    if let Some(claim) =
        child(volume, "ephemeral").and_then(|one| child(one, "volumeClaimTemplate"))
    {
        set(claim, "metadata", empty());
        claim_spec(made(claim, "spec"));
    }
    if let Some(image) = child(volume, "image") {
        let policy = pull_policy(text(image, "reference"));
        set_zero(image, "pullPolicy", policy);
    }
    source(volume);
}

/// Volume sources that pods and persistent volumes share.
pub(super) fn source(volume: &mut Object) {
    if let Some(path) = child(volume, "hostPath") {
        set(path, "type", "");
    }
    if let Some(iscsi) = child(volume, "iscsi") {
        set_zero(iscsi, "iscsiInterface", "default");
    }
    if let Some(rbd) = child(volume, "rbd") {
        set_zero(rbd, "pool", "rbd");
        set_zero(rbd, "user", "admin");
        set_zero(rbd, "keyring", "/etc/ceph/keyring");
    }
    if let Some(disk) = child(volume, "azureDisk") {
        set(disk, "cachingMode", "ReadWrite");
        set(disk, "kind", "Shared");
        set(disk, "fsType", "ext4");
        set(disk, "readOnly", false);
    }
    if let Some(disk) = child(volume, "scaleIO") {
        set_zero(disk, "storageMode", "ThinProvisioned");
        set_zero(disk, "fsType", "xfs");
    }
}

/// Defaults of a claim's spec.
pub(super) fn claim_spec(spec: &mut Object) {
    set(spec, "volumeMode", "Filesystem");
    let resources = made(spec, "resources");
    round_resources(resources, "limits");
    round_resources(resources, "requests");
}

/// `Always` for images with the tag `latest` or none, as upstream's reference parser sees it.
fn pull_policy(image: &str) -> &'static str {
    if image_tag(image) == Some("latest") { "Always" } else { "IfNotPresent" }
}

/// The tag; `latest` when there is neither tag nor digest, `None` for a digest alone or what is no reference.
fn image_tag(image: &str) -> Option<&str> {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let last = name.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match name[last..].split_once(':') {
        Some((_, tag)) => (&name[..name.len() - tag.len() - 1], Some(tag)),
        None => (name, None),
    };
    // The registry's host may have capitals and a port, the repository not.
    let repository = path
        .split_once('/')
        .filter(|(host, _)| host.contains(['.', ':']) || *host == "localhost")
        .map_or(path, |(_, repository)| repository);
    let component = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte)
            })
    };
    if !repository.split('/').all(component) {
        return None;
    }
    match (tag, digest) {
        (Some(tag), _) => Some(tag),
        (None, Some(_)) => None,
        (None, None) => Some("latest"),
    }
}

type Amounts = BTreeMap<String, Quantity>;

fn amounts(container: &Object, list: &str) -> Amounts {
    let resources = container.get("resources").and_then(|resources| resources.get(list));
    resources
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.parse().ok()?)))
        .collect()
}

fn add(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = total.entry(name.clone()).or_default();
        *sum = sum.plus(*amount);
    }
}

fn raise(total: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let highest = total.entry(name.clone()).or_insert(*amount);
        *highest = (*highest).max(*amount);
    }
}

/// What all containers together ask for, init containers counted as they run: one by one, sidecars along with the rest.
fn aggregate(spec: &Object, list: &str) -> Amounts {
    let containers = |key: &str| {
        spec.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object)
    };
    let mut total = Amounts::new();
    for container in containers("containers") {
        add(&mut total, &amounts(container, list));
    }
    let (mut sidecars, mut highest) = (Amounts::new(), Amounts::new());
    for container in containers("initContainers") {
        let mut wanted = amounts(container, list);
        if text(container, "restartPolicy") == "Always" {
            add(&mut sidecars, &wanted);
            add(&mut total, &wanted);
            wanted = sidecars.clone();
        } else {
            add(&mut wanted, &sidecars);
        }
        raise(&mut highest, &wanted);
    }
    raise(&mut total, &highest);
    total
}

fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// Resources of the pod as a whole, only where its author gave some.
fn pod_level_resources(spec: &mut Object) {
    let given = |spec: &Object, list: &str| {
        spec.get("resources").and_then(Value::as_object).is_some_and(|all| !is_empty(all, list))
    };
    if !given(spec, "limits") && !given(spec, "requests") {
        return;
    }
    let limits = aggregate(spec, "limits");
    let requests = aggregate(spec, "requests");
    let everywhere = |name: &str| {
        ["containers", "initContainers"].iter().all(|list| {
            spec.get(*list)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .all(|one| one.pointer(&format!("/resources/limits/{name}")).is_some())
        })
    };
    let limited: Vec<_> = limits
        .iter()
        .filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory") && everywhere(name))
        .collect();
    let had_limits = given(spec, "limits");
    let pod = made(spec, "resources");
    for (name, amount) in limits.iter().filter(|(name, _)| name.starts_with("hugepages-")) {
        let requested = pod.get("requests").is_some_and(|all| all.get(name).is_some());
        if !requested {
            set(made(pod, "limits"), name, amount.to_string());
        }
    }
    if !is_empty(pod, "limits") {
        for (name, amount) in requests.iter().filter(|(name, _)| is_pod_level(name)) {
            if !name.starts_with("hugepages-") {
                set(made(pod, "requests"), name, amount.to_string());
            }
        }
        fill(pod, "requests", "limits");
    }
    if !had_limits {
        for (name, amount) in limited {
            set(made(pod, "limits"), name, amount.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tags_decide_the_pull_policy() {
        let cases = [
            ("busybox", "Always"),
            ("busybox:latest", "Always"),
            ("busybox:1.35", "IfNotPresent"),
            ("reg:5000/busybox", "Always"),
            ("reg:5000/a/busybox:1", "IfNotPresent"),
            ("Reg.example/a", "Always"),
            ("busybox@sha256:0123", "IfNotPresent"),
            ("busybox:latest@sha256:0123", "Always"),
            ("BusyBox", "IfNotPresent"),
            ("", "IfNotPresent"),
        ];
        for (image, want) in cases {
            assert_eq!(pull_policy(image), want, "{image}");
        }
    }

    fn defaulted(spec: Value) -> Value {
        let mut object = json!({"spec": spec});
        if let Value::Object(object) = &mut object {
            pod(object);
        }
        object["spec"].take()
    }

    #[test]
    fn requests_follow_limits() {
        let spec = defaulted(json!({"containers": [{"name": "a", "image": "x", "resources":
            {"limits": {"cpu": "1", "memory": "0.1m"}, "requests": {"cpu": "500m"}}}]}));
        assert_eq!(
            spec["containers"][0]["resources"],
            json!({"limits": {"cpu": "1", "memory": "1m"}, "requests": {"cpu": "500m", "memory": "1m"}})
        );
    }

    #[test]
    fn pod_level_requests_come_from_containers_then_limits() {
        let spec = defaulted(json!({"resources": {"limits": {"cpu": "2", "memory": "1Gi"}},
            "initContainers": [{"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}}],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "500m"}}}]}));
        assert_eq!(
            spec["resources"],
            json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "600m", "memory": "1Gi"}})
        );
        let spec = defaulted(json!({"resources": {"requests": {"cpu": "1"}},
            "containers": [{"name": "a", "resources": {"limits": {"cpu": "2"}}}, {"name": "b", "resources": {"limits": {"cpu": "1"}}}]}));
        assert_eq!(spec["resources"], json!({"limits": {"cpu": "3"}, "requests": {"cpu": "1"}}));
    }

    #[test]
    fn host_network_opens_host_ports_and_accounts_mirror() {
        let spec = defaulted(json!({"hostNetwork": true, "serviceAccount": "x",
            "containers": [{"name": "a", "ports": [{"containerPort": 80}, {"containerPort": 81, "hostPort": 9}]}],
            "volumes": [{"name": "v"}, {"name": "h", "hostPath": {"path": "/x"}},
                {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}},
                    {"downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}}]}));
        let ports = &spec["containers"][0]["ports"];
        assert_eq!((&ports[0]["hostPort"], &ports[1]["hostPort"]), (&json!(80), &json!(9)));
        assert_eq!(spec["serviceAccountName"], "x");
        assert_eq!(spec["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(spec["volumes"][1]["hostPath"]["type"], "");
        let sources = &spec["volumes"][2]["projected"]["sources"];
        assert_eq!(sources[0]["serviceAccountToken"]["expirationSeconds"], 3600);
        assert_eq!(sources[1]["downwardAPI"]["items"][0]["fieldRef"]["apiVersion"], "v1");
    }
}
