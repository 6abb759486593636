//! Rows of the core group's kinds but pods. Pure; Kubernetes 1.36 (`pkg/printers/internalversion`).

use super::columns::{AGE, Column, NAME, text as column, wide};
use super::read::{NONE, Printed, UNSET, access_modes, at, int, labels, list, or, text, three_of};
use super::{Cells, Printer};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const CLASS_ANNOTATION: &str = "/metadata/annotations/volume.beta.kubernetes.io~1storage-class";
const ROLE_PREFIX: &str = "node-role.kubernetes.io/";

pub(super) const PODS: Printer = (
    &[
        NAME,
        column("Ready"),
        column("Status"),
        column("Restarts"),
        AGE,
        wide("IP"),
        wide("Node"),
        wide("Nominated Node"),
        wide("Readiness Gates"),
    ],
    super::pod::cells,
);
pub(super) const NODES: Printer = (
    &[
        NAME,
        column("Status"),
        column("Roles"),
        AGE,
        column("Version"),
        wide("Internal-IP"),
        wide("External-IP"),
        wide("OS-Image"),
        wide("Kernel-Version"),
        wide("Container-Runtime"),
    ],
    nodes,
);
pub(super) const SERVICES: Printer = (
    &[
        NAME,
        column("Type"),
        column("Cluster-IP"),
        column("External-IP"),
        column("Port(s)"),
        AGE,
        wide("Selector"),
    ],
    services,
);
pub(super) const NAMESPACES: Printer = (&[NAME, column("Status"), AGE], namespaces);
pub(super) const CONFIG_MAPS: Printer = (&[NAME, column("Data"), AGE], config_maps);
pub(super) const SECRETS: Printer = (&[NAME, column("Type"), column("Data"), AGE], secrets);
pub(super) const SERVICE_ACCOUNTS: Printer = (&[NAME, AGE], name_and_age);
pub(super) const ENDPOINTS: Printer = (&[NAME, column("Endpoints"), AGE], endpoints);
pub(super) const EVENT_COLUMNS: &[Column] = &[
    column("Last Seen"),
    column("Type"),
    column("Reason"),
    column("Object"),
    wide("Subobject"),
    wide("Source"),
    column("Message"),
    wide("First Seen"),
    wide("Count"),
    Column { priority: 1, ..NAME },
];
pub(super) const EVENTS: Printer = (EVENT_COLUMNS, events);
pub(super) const VOLUMES: Printer = (
    &[
        NAME,
        column("Capacity"),
        column("Access Modes"),
        column("Reclaim Policy"),
        column("Status"),
        column("Claim"),
        column("StorageClass"),
        column("VolumeAttributesClass"),
        column("Reason"),
        AGE,
        wide("VolumeMode"),
    ],
    volumes,
);
pub(super) const CLAIMS: Printer = (
    &[
        NAME,
        column("Status"),
        column("Volume"),
        column("Capacity"),
        column("Access Modes"),
        column("StorageClass"),
        column("VolumeAttributesClass"),
        AGE,
        wide("VolumeMode"),
    ],
    claims,
);
pub(super) const POD_TEMPLATES: Printer =
    (&[NAME, column("Containers"), column("Images"), column("Pod Labels")], pod_templates);
pub(super) const QUOTAS: Printer = (&[NAME, column("Request"), column("Limit"), AGE], quotas);
pub(super) const COMPONENT_STATUSES: Printer =
    (&[NAME, column("Status"), column("Message"), column("Error")], component_statuses);

pub(super) fn name_and_age(printed: &Printed<'_>) -> Cells {
    vec![json!(printed.name()), json!(printed.age())]
}

fn nodes(printed: &Printed<'_>) -> Cells {
    let node = printed.object;
    let ready = list(node, "/status/conditions").iter().find(|c| text(c, "/type") == "Ready");
    let mut status = match ready {
        Some(condition) if text(condition, "/status") == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if at(node, "/spec/unschedulable") == true {
        status.push_str(",SchedulingDisabled");
    }
    let address = |kind: &str| {
        list(node, "/status/addresses")
            .iter()
            .find(|address| text(address, "/type") == kind)
            .map_or(NONE, |address| text(address, "/address"))
    };
    let info = |member: &str| {
        or(text(node, &format!("/status/nodeInfo/{member}")), "<unknown>").to_owned()
    };
    vec![
        json!(printed.name()),
        json!(status),
        json!(roles(node)),
        json!(printed.age()),
        json!(text(node, "/status/nodeInfo/kubeletVersion")),
        json!(address("InternalIP")),
        json!(address("ExternalIP")),
        json!(info("osImage")),
        json!(info("kernelVersion")),
        json!(info("containerRuntimeVersion")),
    ]
}

fn roles(node: &Value) -> String {
    let labels = at(node, "/metadata/labels").as_object();
    let roles: BTreeSet<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.as_str() {
            "kubernetes.io/role" => value.as_str(),
            key => key.strip_prefix(ROLE_PREFIX),
        })
        .filter(|role| !role.is_empty())
        .collect();
    if roles.is_empty() {
        return NONE.to_owned();
    }
    roles.into_iter().collect::<Vec<_>>().join(",")
}

fn services(printed: &Printed<'_>) -> Cells {
    let service = printed.object;
    let ports: Vec<String> = list(service, "/spec/ports")
        .iter()
        .map(|port| {
            let (number, protocol) = (int(port, "/port"), text(port, "/protocol"));
            match int(port, "/nodePort") {
                0 => format!("{number}/{protocol}"),
                node_port => format!("{number}:{node_port}/{protocol}"),
            }
        })
        .collect();
    let cluster_ip = or(text(service, "/spec/clusterIPs/0"), text(service, "/spec/clusterIP"));
    vec![
        json!(printed.name()),
        json!(text(service, "/spec/type")),
        json!(or(cluster_ip, NONE)),
        json!(external_ip(service)),
        json!(or(&ports.join(","), NONE)),
        json!(printed.age()),
        json!(labels(at(service, "/spec/selector"))),
    ]
}

fn external_ip(service: &Value) -> String {
    let given: Vec<&str> =
        list(service, "/spec/externalIPs").iter().filter_map(Value::as_str).collect();
    match text(service, "/spec/type") {
        "ClusterIP" | "NodePort" => or(&given.join(","), NONE).to_owned(),
        "ExternalName" => text(service, "/spec/externalName").to_owned(),
        "LoadBalancer" => {
            let balancer = load_balancer(service);
            let all: Vec<&str> =
                [balancer.as_str()].into_iter().filter(|b| !b.is_empty()).chain(given).collect();
            or(&all.join(","), "<pending>").to_owned()
        }
        _ => "<unknown>".to_owned(),
    }
}

/// Addresses and host names of a load balancer, sorted.
pub(super) fn load_balancer(object: &Value) -> String {
    let points: BTreeSet<&str> = list(object, "/status/loadBalancer/ingress")
        .iter()
        .map(|point| or(text(point, "/ip"), text(point, "/hostname")))
        .filter(|point| !point.is_empty())
        .collect();
    points.into_iter().collect::<Vec<_>>().join(",")
}

fn namespaces(printed: &Printed<'_>) -> Cells {
    vec![json!(printed.name()), json!(printed.text("/status/phase")), json!(printed.age())]
}

fn config_maps(printed: &Printed<'_>) -> Cells {
    let entries = printed.count("/data") + printed.count("/binaryData");
    vec![json!(printed.name()), json!(entries), json!(printed.age())]
}

fn secrets(printed: &Printed<'_>) -> Cells {
    vec![
        json!(printed.name()),
        json!(printed.text("/type")),
        json!(printed.count("/data")),
        json!(printed.age()),
    ]
}

fn endpoints(printed: &Printed<'_>) -> Cells {
    let subsets = printed.list("/subsets");
    let mut all = Vec::new();
    for subset in subsets {
        let addresses = || list(subset, "/addresses").iter().map(|a| text(a, "/ip"));
        let ports = list(subset, "/ports");
        if ports.is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            let number = int(port, "/port");
            all.extend(addresses().map(|ip| match ip.contains(':') {
                true => format!("[{ip}]:{number}"),
                false => format!("{ip}:{number}"),
            }));
        }
    }
    let shown = if subsets.is_empty() { NONE.to_owned() } else { three_of(&all) };
    vec![json!(printed.name()), json!(shown), json!(printed.age())]
}

/// Events of both API groups: the newer one names some fields differently.
fn events(printed: &Printed<'_>) -> Cells {
    let event = printed.object;
    let either = |one: &str, other: &str| match at(event, one) {
        Value::Null => at(event, other).clone(),
        found => found.clone(),
    };
    let time = |one: &str, other: &str| {
        let found = either(one, other);
        found.as_str().map(|time| super::duration::since(Some(time), printed.now))
    };
    let unknown = || "<unknown>".to_owned();
    let first = time("/firstTimestamp", "/deprecatedFirstTimestamp")
        .unwrap_or_else(|| printed.since("/eventTime"));
    let mut last = time("/lastTimestamp", "/deprecatedLastTimestamp").unwrap_or(first.clone());
    let mut count = either("/count", "/deprecatedCount").as_i64().unwrap_or_default().max(1);
    if printed.has("/series") {
        last = time("/series/lastObservedTime", "/series/lastObservedTime").unwrap_or_else(unknown);
        count = printed.int("/series/count");
    }
    let object = either("/involvedObject", "/regarding");
    let kind = text(&object, "/kind").to_lowercase();
    let target = match text(&object, "/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let source = either("/source", "/deprecatedSource");
    let component = or(
        text(&source, "/component"),
        or(printed.text("/reportingComponent"), printed.text("/reportingController")),
    );
    let host = or(text(&source, "/host"), printed.text("/reportingInstance"));
    let source: Vec<&str> = [component, host].into_iter().filter(|s| !s.is_empty()).collect();
    let message = either("/message", "/note");
    vec![
        json!(last),
        json!(printed.text("/type")),
        json!(printed.text("/reason")),
        json!(target),
        json!(text(&object, "/fieldPath")),
        json!(source.join(", ")),
        json!(message.as_str().unwrap_or_default().trim()),
        json!(first),
        json!(count),
        json!(printed.name()),
    ]
}

fn phase(printed: &Printed<'_>) -> String {
    match printed.has("/metadata/deletionTimestamp") {
        true => "Terminating".to_owned(),
        false => printed.text("/status/phase").to_owned(),
    }
}

fn storage_class(printed: &Printed<'_>) -> String {
    or(printed.text(CLASS_ANNOTATION), printed.text("/spec/storageClassName")).to_owned()
}

fn volumes(printed: &Printed<'_>) -> Cells {
    let claim = match printed.has("/spec/claimRef") {
        true => format!(
            "{}/{}",
            printed.text("/spec/claimRef/namespace"),
            printed.text("/spec/claimRef/name")
        ),
        false => String::new(),
    };
    vec![
        json!(printed.name()),
        json!(printed.text("/spec/capacity/storage")),
        json!(access_modes(printed.list("/spec/accessModes"))),
        json!(printed.text("/spec/persistentVolumeReclaimPolicy")),
        json!(phase(printed)),
        json!(claim),
        json!(storage_class(printed)),
        json!(or(printed.text("/spec/volumeAttributesClassName"), UNSET)),
        json!(printed.text("/status/reason")),
        json!(printed.age()),
        json!(or(printed.text("/spec/volumeMode"), UNSET)),
    ]
}

fn claims(printed: &Printed<'_>) -> Cells {
    let volume = printed.text("/spec/volumeName");
    let (capacity, modes) = match volume {
        "" => ("", String::new()),
        _ => (
            printed.text("/status/capacity/storage"),
            access_modes(printed.list("/status/accessModes")),
        ),
    };
    vec![
        json!(printed.name()),
        json!(phase(printed)),
        json!(volume),
        json!(capacity),
        json!(modes),
        json!(storage_class(printed)),
        json!(or(printed.text("/spec/volumeAttributesClassName"), UNSET)),
        json!(printed.age()),
        json!(or(printed.text("/spec/volumeMode"), UNSET)),
    ]
}

fn pod_templates(printed: &Printed<'_>) -> Cells {
    let [names, images] = printed.containers("/template/spec");
    let labels = labels(at(printed.object, "/template/metadata/labels"));
    vec![json!(printed.name()), names, images, json!(labels)]
}

fn quotas(printed: &Printed<'_>) -> Cells {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    let hard = at(printed.object, "/status/hard").as_object();
    let used = at(printed.object, "/status/used");
    let mut hard: Vec<_> = hard.into_iter().flatten().collect();
    hard.sort_by(|a, b| a.0.cmp(b.0));
    for (resource, limit) in hard {
        let used = used[resource].as_str().unwrap_or("0");
        let shown = format!("{resource}: {used}/{}", limit.as_str().unwrap_or_default());
        if resource.starts_with("limits") { limits.push(shown) } else { requests.push(shown) }
    }
    vec![
        json!(printed.name()),
        json!(requests.join(", ")),
        json!(limits.join(", ")),
        json!(printed.age()),
    ]
}

fn component_statuses(printed: &Printed<'_>) -> Cells {
    let healthy = printed.list("/conditions").iter().find(|c| text(c, "/type") == "Healthy");
    let of = |pointer: &str| healthy.map_or("", |condition| text(condition, pointer));
    let status = match of("/status") {
        "True" => "Healthy",
        "False" => "Unhealthy",
        _ => "Unknown",
    };
    vec![json!(printed.name()), json!(status), json!(of("/message")), json!(of("/error"))]
}
