//! What one object uses, by the names that quotas have for it. Pure; Kubernetes 1.36 (`pkg/quota/v1/evaluator`).

use std::collections::{BTreeMap, BTreeSet};

use apimachinery::quantity::{Format, Quantity};
use serde_json::Value;

use crate::{
    Resource,
    admission::pod_usage::{Amounts, Side, amounts, of_pod},
};

/// Resources of the core group that are also counted under their bare plural.
const BARE: [&str; 7] = [
    "pods",
    "services",
    "persistentvolumeclaims",
    "secrets",
    "configmaps",
    "replicationcontrollers",
    "resourcequotas",
];
const CLASS_SUFFIX: &str = ".storageclass.storage.k8s.io/";
/// What every container has to say when a quota is about it.
const TO_BE_SPECIFIED: [&str; 6] =
    ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

pub(super) fn one() -> Quantity {
    Quantity::new(1, Format::DecimalSi)
}

fn count(number: usize) -> Quantity {
    Quantity::new(i64::try_from(number).unwrap_or(i64::MAX), Format::DecimalSi)
}

fn counted_as(resource: &Resource) -> String {
    format!("count/{}", resource.qualified())
}

/// Whether objects of the resource can use what the name stands for.
pub(super) fn concerns(resource: &Resource, name: &str) -> bool {
    if name == counted_as(resource) {
        return true;
    }
    if !resource.group.is_empty() {
        return false;
    }
    match resource.plural.as_str() {
        "pods" => {
            name == "pods"
                || name != "requests.storage"
                    && !name.contains(CLASS_SUFFIX)
                    && (is_compute(name)
                        || name.strip_prefix("requests.").is_some()
                        || name.strip_prefix("limits.").is_some())
        }
        "services" => name == "services" || name.starts_with("services."),
        "persistentvolumeclaims" => {
            matches!(name, "persistentvolumeclaims" | "requests.storage")
                || name.contains(CLASS_SUFFIX)
        }
        plural => BARE.contains(&plural) && name == plural,
    }
}

fn is_compute(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
}

/// Everything that the object uses.
pub(super) fn of(resource: &Resource, object: &Value) -> Amounts {
    let mut used = Amounts::from([(counted_as(resource), one())]);
    if !resource.group.is_empty() {
        return used;
    }
    match resource.plural.as_str() {
        "pods" => pod(object, &mut used),
        "services" => service(object, &mut used),
        "persistentvolumeclaims" => claim(object, &mut used),
        plural if BARE.contains(&plural) => {
            used.insert(plural.to_owned(), one());
        }
        _ => {}
    }
    used
}

/// A pod that has ended only counts as an object.
fn pod(pod: &Value, used: &mut Amounts) {
    if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return;
    }
    used.insert("pods".to_owned(), one());
    for (name, amount) in of_pod(pod, Side::Requests) {
        if is_compute(&name) {
            used.insert(name.clone(), amount);
        }
        used.insert(format!("requests.{name}"), amount);
    }
    for (name, amount) in of_pod(pod, Side::Limits) {
        used.insert(format!("limits.{name}"), amount);
    }
}

fn service(service: &Value, used: &mut Amounts) {
    used.insert("services".to_owned(), one());
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let kind = service["spec"]["type"].as_str().unwrap_or_default();
    let node_ports = match kind {
        "NodePort" => ports.len(),
        "LoadBalancer" if service["spec"]["allocateLoadBalancerNodePorts"] == false => {
            ports.iter().filter(|port| port["nodePort"].as_i64().is_some_and(|p| p != 0)).count()
        }
        "LoadBalancer" => ports.len(),
        _ => 0,
    };
    used.insert("services.nodeports".to_owned(), count(node_ports));
    let balancers = usize::from(kind == "LoadBalancer");
    used.insert("services.loadbalancers".to_owned(), count(balancers));
}

fn claim(claim: &Value, used: &mut Amounts) {
    let name = "persistentvolumeclaims";
    used.insert(name.to_owned(), one());
    let requests = amounts(&claim["spec"]["resources"]["requests"]);
    let allocated = amounts(&claim["status"]["allocatedResources"]);
    let storage = requests.get("storage").max(allocated.get("storage")).copied();
    if let Some(storage) = storage {
        used.insert("requests.storage".to_owned(), storage);
    }
    let annotation = "volume.beta.kubernetes.io/storage-class";
    let class = claim["metadata"]["annotations"][annotation]
        .as_str()
        .or_else(|| claim["spec"]["storageClassName"].as_str())
        .unwrap_or_default();
    if class.is_empty() {
        return;
    }
    used.insert(format!("{class}{CLASS_SUFFIX}{name}"), one());
    if let Some(storage) = storage {
        used.insert(format!("{class}{CLASS_SUFFIX}requests.storage"), storage);
    }
}

/// Where a quota is about compute resources, each container has to say how much it wants.
pub(super) fn check_specified(
    resource: &Resource,
    object: &Value,
    hard: &Amounts,
) -> Result<(), String> {
    if !resource.group.is_empty() || resource.plural != "pods" {
        return Ok(());
    }
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let lists = ["containers", "initContainers"];
    let containers = lists
        .iter()
        .flat_map(|list| object["spec"][list].as_array().map(Vec::as_slice).unwrap_or_default());
    for container in containers {
        for name in TO_BE_SPECIFIED.into_iter().filter(|name| hard.contains_key(*name)) {
            let (side, of) = match name.split_once('.') {
                Some((side, of)) => (side, of),
                None => ("requests", name),
            };
            if container["resources"][side].get(of).is_none() {
                let container = container["name"].as_str().unwrap_or_default();
                missing.entry(name).or_default().insert(container);
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let texts: Vec<String> = missing
        .into_iter()
        .map(|(name, containers)| {
            let containers: Vec<&str> = containers.into_iter().collect();
            format!("{name} for: {}", containers.join(","))
        })
        .collect();
    Err(format!("must specify {}", texts.join("; ")))
}
