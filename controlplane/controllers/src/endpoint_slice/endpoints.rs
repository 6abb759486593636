//! The legacy Endpoints of a service: subsets of addresses with equal ports. The plan is pure.

use super::plan::{address, families, hostname, is_headless, ports, target_ref};
use crate::{
    cluster::Cluster,
    kinds::{EndpointPort, Pod, Service},
    runtime::{Error, Key, error::gone_is_fine, object::Kind, write::Deletion},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

const HEADLESS: &str = "service.kubernetes.io/headless";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Addresses in one Endpoints object (Kubernetes: 1000).
const ADDRESSES_MAX: usize = 1000;

/// Makes the Endpoints of the service right.
pub(crate) async fn write(
    cluster: &Cluster,
    service: &Service,
    pods: &[Arc<Pod>],
) -> Result<(), Error> {
    let (subsets, truncated) = plan_subsets(service, pods);
    let labels = labels(service);
    let existing = cluster.endpoints.get(&service.key());
    let same = existing.as_ref().is_some_and(|e| {
        e.subsets.clone().unwrap_or_else(|| json!([])) == subsets
            && labels.iter().all(|(k, v)| e.labels().get(k) == Some(v))
            && e.labels().len() == labels.len()
            && e.annotations().contains_key(OVER_CAPACITY) == truncated
    });
    if same {
        return Ok(());
    }
    let mut annotations = json!({ LAST_CHANGE: cluster.now().to_string() });
    annotations[OVER_CAPACITY] = if truncated { json!("truncated") } else { Value::Null };
    match existing {
        Some(old) => {
            let mut patched = json!(labels);
            for key in old.labels().keys().filter(|k| !labels.contains_key(*k)) {
                patched[key] = Value::Null;
            }
            let patch = json!({
                "metadata": {"labels": patched, "annotations": annotations}, "subsets": subsets,
            });
            gone_is_fine(cluster.endpoints.patch_object(&old.metadata, patch).await)
        }
        None => {
            if !truncated {
                annotations = json!({ LAST_CHANGE: annotations[LAST_CHANGE] });
            }
            let body = json!({
                "apiVersion": "v1", "kind": "Endpoints",
                "metadata": {"name": service.name(), "labels": labels, "annotations": annotations},
                "subsets": subsets,
            });
            cluster.endpoints.create(service.namespace(), &body).await.map(drop)
        }
    }
}

/// The service is gone: so are the Endpoints that we made for it.
pub(crate) async fn remove(cluster: &Cluster, key: &Key) -> Result<(), Error> {
    let Some(old) = cluster.endpoints.get(key) else { return Ok(()) };
    if old.labels().get(MANAGED_BY).is_none_or(|m| m != MANAGER) {
        return Ok(());
    }
    if cluster.services.live(key).await?.is_some() {
        return Ok(());
    }
    let how = Deletion { same_version: true, ..Deletion::default() };
    cluster.endpoints.delete(&old.metadata, how).await
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

type Sorted = BTreeMap<Option<IpAddr>, Value>;

fn plan_subsets(service: &Service, pods: &[Arc<Pod>]) -> (Value, bool) {
    let family = families(service).into_iter().next().unwrap_or_else(|| "IPv4".into());
    let tolerant = service.spec.publish_not_ready_addresses;
    let mut by_ports: BTreeMap<Vec<EndpointPort>, (Sorted, Sorted)> = BTreeMap::new();
    let mut count = 0;
    for pod in pods {
        if pod.is_finished() || pod.is_deleting() && !tolerant {
            continue;
        }
        let Some(ip) = address(pod, &family) else { continue };
        count += 1;
        if count > ADDRESSES_MAX {
            break;
        }
        let ports = ports(service, pod);
        if ports.is_empty() && !is_headless(service) {
            continue;
        }
        let mut entry = json!({ "ip": ip, "targetRef": target_ref(pod) });
        if !pod.node().is_empty() {
            entry["nodeName"] = json!(pod.node());
        }
        if let Some(hostname) = hostname(service, pod) {
            entry["hostname"] = json!(hostname);
        }
        let (ready, not_ready) = by_ports.entry(ports).or_default();
        let side = if tolerant || pod.is_ready() { ready } else { not_ready };
        side.insert(ip.parse().ok(), entry);
    }
    let subsets = by_ports.into_iter().map(subset).collect();
    (Value::Array(subsets), count > ADDRESSES_MAX)
}

fn subset((ports, (ready, not_ready)): (Vec<EndpointPort>, (Sorted, Sorted))) -> Value {
    let mut subset = json!({});
    for (field, side) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
        if !side.is_empty() {
            subset[field] = side.into_values().collect();
        }
    }
    let port = |p: EndpointPort| {
        let mut v = json!(p);
        if v["name"] == "" {
            // A single port has no name, and the field is left out where it is empty.
            if let Some(map) = v.as_object_mut() {
                map.remove("name");
            }
        }
        v
    };
    let distinct: BTreeSet<EndpointPort> = ports.into_iter().collect();
    if !distinct.is_empty() {
        subset["ports"] = distinct.into_iter().map(port).collect();
    }
    subset
}
