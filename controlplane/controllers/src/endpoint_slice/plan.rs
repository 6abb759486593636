//! Which EndpointSlices a service has. Pure.
//!
//! Endpoints are grouped by address family and resolved ports. Slices that still hold wanted endpoints keep them, so
//! that a change touches as few slices as possible; new endpoints go where there is room.

use super::{MANAGED_BY, MANAGER, SERVICE_NAME};
use crate::{
    kinds::{
        Container, Endpoint, EndpointConditions, EndpointPort, EndpointSlice, Pod, Service,
        ServicePort, TargetRef,
    },
    runtime::object::Kind,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

pub(super) const ZONE: &str = "topology.kubernetes.io/zone";
pub(super) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Endpoints in one slice (Kubernetes: 100).
const ENDPOINTS_MAX: usize = 100;

/// One write.
#[derive(Debug)]
pub(super) enum Change {
    Create(Value),
    Update(Arc<EndpointSlice>, Value),
    Delete(Arc<EndpointSlice>),
}

/// Whether endpoints can differ between two states of a pod.
pub(super) fn matters(old: &Pod, new: &Pod) -> bool {
    let facts = |p: &Pod| {
        (
            p.is_ready(),
            p.is_deleting(),
            p.is_finished(),
            p.node().to_owned(),
            addresses(p),
            p.labels().clone(),
            (p.spec.hostname.clone(), p.spec.subdomain.clone()),
        )
    };
    facts(old) != facts(new) || old.uid() != new.uid()
}

/// All addresses of the pod.
pub(super) fn addresses(pod: &Pod) -> Vec<String> {
    if pod.status.pod_ips.is_empty() {
        return pod.status.pod_ip.iter().filter(|ip| !ip.is_empty()).cloned().collect();
    }
    pod.status.pod_ips.iter().map(|ip| ip.ip.clone()).collect()
}

/// The pod's address of the family (`IPv4` or `IPv6`).
pub(super) fn address(pod: &Pod, family: &str) -> Option<String> {
    let fits =
        |ip: &String| ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4() == (family == "IPv4"));
    addresses(pod).into_iter().find(fits)
}

/// Address families of the service.
pub(super) fn families(service: &Service) -> Vec<String> {
    if !service.spec.ip_families.is_empty() {
        return service.spec.ip_families.clone();
    }
    let v6 = service.spec.cluster_ip.as_ref().is_some_and(|ip| ip.contains(':'));
    vec![if v6 { "IPv6" } else { "IPv4" }.into()]
}

pub(super) fn is_headless(service: &Service) -> bool {
    service.spec.cluster_ip.as_deref() == Some("None")
}

/// The port of the pod that a service port leads to.
fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(n)) => Some(*n),
        Some(IntOrString::String(name)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
            let containers =
                pod.spec.containers.iter().chain(pod.spec.init_containers.iter().filter(sidecar));
            let named = |p: &&crate::kinds::ContainerPort| {
                p.name.as_ref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol
            };
            containers.flat_map(|c| &c.ports).find(named).map(|p| p.container_port)
        }
    }
}

/// The service's ports as they are at the pod; a named port that the pod lacks is left out.
pub(super) fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let resolve = |p: &ServicePort| {
        Some(EndpointPort {
            name: Some(p.name.clone().unwrap_or_default()),
            port: Some(target_port(p, pod)?),
            protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".into())),
            app_protocol: p.app_protocol.clone(),
        })
    };
    let mut ports: Vec<_> = service.spec.ports.iter().filter_map(resolve).collect();
    ports.sort();
    ports
}

/// The reference to the pod.
pub(super) fn target_ref(pod: &Pod) -> TargetRef {
    TargetRef {
        kind: "Pod".into(),
        name: pod.name().into(),
        namespace: pod.namespace().into(),
        uid: pod.uid().into(),
    }
}

/// The pod's host name under the service, when it has one.
pub(super) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let under = pod.spec.subdomain.as_deref() == Some(service.name());
    pod.spec.hostname.clone().filter(|h| under && !h.is_empty())
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    address: String,
    zone: &dyn Fn(&str) -> Option<String>,
) -> Endpoint {
    let serving = pod.is_ready();
    let terminating = pod.is_deleting();
    let ready = service.spec.publish_not_ready_addresses || serving && !terminating;
    let node = Some(pod.node().to_owned()).filter(|n| !n.is_empty());
    Endpoint {
        addresses: vec![address],
        conditions: EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        },
        hostname: hostname(service, pod),
        zone: node.as_deref().and_then(zone),
        node_name: node,
        target_ref: Some(target_ref(pod)),
        hints: None,
    }
}

/// Labels of the service's slices.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = service
        .labels()
        .iter()
        .filter(|(k, _)| ![SERVICE_NAME, MANAGED_BY, HEADLESS].contains(&k.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE_NAME.into(), service.name().into());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

type Group = (String, Vec<EndpointPort>);

/// The writes that make the slices right: creations, updates, then deletions.
pub(super) fn slices(
    service: &Service,
    pods: &[Arc<Pod>],
    existing: &[Arc<EndpointSlice>],
    zone: &dyn Fn(&str) -> Option<String>,
) -> Vec<Change> {
    let mut wanted: BTreeMap<Group, Vec<Endpoint>> = BTreeMap::new();
    for family in families(service) {
        let mut any = false;
        for pod in pods.iter().filter(|p| !p.is_finished()) {
            let Some(address) = address(pod, &family) else { continue };
            any = true;
            let group = (family.clone(), ports(service, pod));
            wanted.entry(group).or_default().push(endpoint(service, pod, address, zone));
        }
        if !any {
            wanted.insert((family, Vec::new()), Vec::new());
        }
    }
    let labels = labels(service);
    let mut by_group: BTreeMap<Group, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in existing {
        let mut ports = slice.ports.clone().unwrap_or_default();
        ports.sort();
        by_group.entry((slice.address_type.clone(), ports)).or_default().push(Arc::clone(slice));
    }
    let mut changes = Vec::new();
    let mut deletions = Vec::new();
    for (group, endpoints) in wanted {
        let slices = by_group.remove(&group).unwrap_or_default();
        fill(service, &labels, (&group, endpoints), slices, (&mut changes, &mut deletions));
    }
    deletions.extend(by_group.into_values().flatten());
    changes.extend(deletions.into_iter().map(Change::Delete));
    changes
}

fn identity(endpoint: &Endpoint) -> (Option<TargetRef>, Vec<String>) {
    (endpoint.target_ref.clone(), endpoint.addresses.clone())
}

fn fill(
    service: &Service,
    labels: &BTreeMap<String, String>,
    (group, wanted): (&Group, Vec<Endpoint>),
    slices: Vec<Arc<EndpointSlice>>,
    (changes, deletions): (&mut Vec<Change>, &mut Vec<Arc<EndpointSlice>>),
) {
    let placeholder = wanted.is_empty();
    let mut missing: BTreeMap<_, Endpoint> =
        wanted.into_iter().map(|e| (identity(&e), e)).collect();
    let mut kept: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let old = slice.endpoints.iter().flatten();
        let still: Vec<Endpoint> = old.filter_map(|e| missing.remove(&identity(e))).collect();
        kept.push((slice, still));
    }
    // The fullest first, so that new ones don't keep nearly empty slices alive.
    kept.sort_by_key(|(_, e)| std::cmp::Reverse(e.len()));
    let mut missing = missing.into_values();
    let mut first = true;
    for (slice, mut endpoints) in kept {
        let room = ENDPOINTS_MAX.saturating_sub(endpoints.len());
        endpoints.extend(missing.by_ref().take(room));
        if endpoints.is_empty() && !(placeholder && std::mem::take(&mut first)) {
            deletions.push(slice);
            continue;
        }
        if slice.endpoints.as_deref().unwrap_or_default() == endpoints && slice.labels() == labels {
            continue;
        }
        // Labels that the service no longer has go.
        let gone: BTreeSet<&String> =
            slice.labels().keys().filter(|k| !labels.contains_key(*k)).collect();
        let mut patched = json!(labels);
        for key in gone {
            patched[key] = Value::Null;
        }
        let patch = json!({"metadata": {"labels": patched}, "endpoints": endpoints});
        changes.push(Change::Update(slice, patch));
    }
    let missing: Vec<Endpoint> = missing.collect();
    let chunks = missing.chunks(ENDPOINTS_MAX).map(<[Endpoint]>::to_vec);
    for endpoints in chunks.chain((placeholder && first).then(Vec::new)) {
        changes.push(Change::Create(body(service, labels, group, endpoints)));
    }
}

fn body(
    service: &Service,
    labels: &BTreeMap<String, String>,
    (family, ports): &Group,
    endpoints: Vec<Endpoint>,
) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "generateName": format!("{}-", service.name()), "labels": labels,
            "ownerReferences": [service.as_controller()],
        },
        "addressType": family, "ports": ports, "endpoints": endpoints,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "d", "uid": "s"},
            "spec": spec,
        }))
        .unwrap()
    }

    /// `name ip state`, state of r(eady), n(ot ready), t(erminating), f(inished).
    fn pods(text: &str) -> Vec<Arc<Pod>> {
        let lines = text.split(',').map(str::trim).filter(|l| !l.is_empty());
        let parse = |line: &str| {
            let f: Vec<&str> = line.split_whitespace().collect();
            let mut p = json!({
                "metadata": {"name": f[0], "namespace": "d", "uid": f[0]},
                "spec": {"nodeName": "n1", "containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]},
                "status": {"podIP": f[1], "phase": "Running",
                    "conditions": [{"type": "Ready", "status": if f[2].contains('r') { "True" } else { "False" }}]},
            });
            if f[2].contains('t') {
                p["metadata"]["deletionTimestamp"] = json!("2020-01-01T00:00:00Z");
            }
            if f[2].contains('f') {
                p["status"]["phase"] = json!("Succeeded");
            }
            Arc::new(serde_json::from_value(p).unwrap())
        };
        lines.map(parse).collect()
    }

    fn show(changes: &[Change]) -> String {
        let ends = |v: &Value| {
            let one = |e: &Value| {
                let c = &e["conditions"];
                let flag = |f: &str, s: &'static str| if c[f] == true { s } else { "" };
                format!(
                    "{}:{}{}{}",
                    e["addresses"][0].as_str().unwrap(),
                    flag("ready", "r"),
                    flag("serving", "s"),
                    flag("terminating", "t")
                )
            };
            v["endpoints"].as_array().unwrap().iter().map(one).collect::<Vec<_>>().join(",")
        };
        let one = |c: &Change| match c {
            Change::Create(v) => format!(
                "+{}{}[{}]",
                v["addressType"].as_str().unwrap(),
                v["ports"][0]["port"],
                ends(v)
            ),
            Change::Update(s, v) => format!("{}[{}]", s.name(), ends(v)),
            Change::Delete(s) => format!("-{}", s.name()),
        };
        changes.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    fn made(changes: &[Change], name: &str) -> Vec<Arc<EndpointSlice>> {
        let slice = |(i, c): (usize, &Change)| {
            let Change::Create(v) = c else { panic!("not a creation") };
            let mut v = v.clone();
            v["metadata"]["name"] = json!(format!("{name}{i}"));
            Arc::new(serde_json::from_value(v).unwrap())
        };
        changes.iter().enumerate().map(slice).collect()
    }

    #[test]
    fn slices_of_services() {
        let named = json!({"selector": {"a": "b"}, "ports": [{"port": 80, "targetPort": "http"}]});
        let publish = json!({"ports": [{"port": 80}], "publishNotReadyAddresses": true});
        let dual = json!({"ports": [{"port": 80}], "ipFamilies": ["IPv4", "IPv6"]});
        for (spec, state, expected) in [
            (named.clone(), "", "+IPv4null[]"),
            (
                named.clone(),
                "a 10.0.0.1 r, b 10.0.0.2 n, c 10.0.0.3 rt, d 10.0.0.4 f",
                "+IPv48080[10.0.0.1:rs,10.0.0.2:,10.0.0.3:st]",
            ),
            (publish, "b 10.0.0.2 n", "+IPv480[10.0.0.2:r]"),
            (dual, "a 10.0.0.1 r, b fd00::1 r", "+IPv480[10.0.0.1:rs] +IPv680[fd00::1:rs]"),
        ] {
            let found = slices(&service(spec), &pods(state), &[], &|_| None);
            assert_eq!(show(&found), expected, "{state}");
        }
    }

    #[test]
    fn unchanged_slices_are_left_alone_and_room_is_used() {
        let s = service(json!({"ports": [{"port": 80}]}));
        let none = |_: &str| None;
        let one = pods("a 10.0.0.1 r");
        let existing = made(&slices(&s, &one, &[], &none), "x");
        assert_eq!(show(&slices(&s, &one, &existing, &none)), "");
        assert_eq!(
            show(&slices(&s, &pods("a 10.0.0.1 r, b 10.0.0.2 r"), &existing, &none)),
            "x0[10.0.0.1:rs,10.0.0.2:rs]"
        );
        assert_eq!(show(&slices(&s, &pods("a 10.0.0.1 n"), &existing, &none)), "x0[10.0.0.1:]");
        assert_eq!(show(&slices(&s, &[], &existing, &none)), "+IPv4null[] -x0");
    }

    #[test]
    fn at_most_a_hundred_per_slice() {
        let s = service(json!({"ports": [{"port": 80}]}));
        let text: Vec<String> =
            (0..250).map(|i| format!("p{i} 10.0.{}.{} r", i / 200, i % 200)).collect();
        let found = slices(&s, &pods(&text.join(",")), &[], &|_| None);
        let sizes: Vec<usize> =
            made(&found, "x").iter().map(|s| s.endpoints.as_ref().unwrap().len()).collect();
        assert_eq!(sizes, [100, 100, 50]);
    }
}
