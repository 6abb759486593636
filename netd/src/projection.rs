//! How API objects are read: only the fields that netd uses, straight from the JSON.
//!
//! Must not keep anything: a projection is turned into the cluster's compact value at once.

use std::borrow::Cow;
use std::fmt::Debug;
use std::str::FromStr;
use std::sync::Once;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::Protocol;
use crate::cluster::{Endpoint, Key, Kind, Object, Service, ServicePort, Slice, SlicePort};
use crate::topology::NodeView;

/// A kind that netd follows.
pub(crate) trait Projection:
    kube::Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static
{
    const KIND: Kind;

    fn key(&self) -> Key {
        let meta = self.meta();
        Key::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }

    /// The compact value; none for an object that means nothing to netd.
    fn object(self) -> Option<Object>;
}

macro_rules! resource {
    ($type:ident, $kind:literal, $group:literal, $version:literal, $plural:literal) => {
        impl kube::Resource for $type {
            type DynamicType = ();
            type Scope = kube::core::ClusterResourceScope;
            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }
            fn group((): &()) -> Cow<'_, str> {
                $group.into()
            }
            fn version((): &()) -> Cow<'_, str> {
                $version.into()
            }
            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(ServiceObject, "Service", "", "v1", "services");
resource!(SliceObject, "EndpointSlice", "discovery.k8s.io", "v1", "endpointslices");
resource!(NodeObject, "Node", "", "v1", "nodes");

static WARNED: Once = Once::new();

/// What can be read of these; one object's nonsense must not keep its kind from being followed.
fn parsed<T: FromStr>(texts: impl IntoIterator<Item = String>) -> Vec<T> {
    let texts = texts.into_iter().filter(|text| !text.is_empty());
    let read = texts.filter_map(|text| {
        let value = text.parse().ok();
        if value.is_none() {
            WARNED.call_once(|| {
                tracing::warn!(text, "not an address or range; passed over, as more of its kind")
            });
        }
        value
    });
    read.collect()
}

/// A `Service`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ServiceObject {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: ServiceSpec,
    #[serde(default)]
    status: ServiceStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceSpec {
    r#type: String,
    #[serde(rename = "clusterIP")]
    cluster_ip: String,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    external_name: Option<String>,
    #[serde(rename = "externalIPs")]
    external_ips: Vec<String>,
    ports: Vec<ServicePortObject>,
    session_affinity: String,
    session_affinity_config: Option<SessionAffinityConfig>,
    load_balancer_source_ranges: Vec<String>,
    external_traffic_policy: String,
    internal_traffic_policy: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SessionAffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: ClientIpConfig,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClientIpConfig {
    timeout_seconds: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServicePortObject {
    #[serde(default)]
    name: String,
    protocol: Option<Protocol>,
    port: u16,
    #[serde(default)]
    node_port: u16,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceStatus {
    load_balancer: LoadBalancer,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Vec<Ingress>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Ingress {
    ip: String,
    ip_mode: Option<String>,
}

/// Kubernetes' default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: u32 = 10_800;

impl Projection for ServiceObject {
    const KIND: Kind = Kind::Service;

    fn object(self) -> Option<Object> {
        let key = self.key();
        let spec = self.spec;
        let mut texts = spec.cluster_ips;
        if texts.is_empty() {
            texts.push(spec.cluster_ip);
        }
        let mut load_balancer_ips = Vec::new();
        if spec.r#type == "LoadBalancer" {
            let vips = self.status.load_balancer.ingress.into_iter();
            let vips = vips.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
            load_balancer_ips = parsed(vips.map(|ingress| ingress.ip));
        }
        let timeout =
            spec.session_affinity_config.and_then(|config| config.client_ip.timeout_seconds);
        let ranges = spec.load_balancer_source_ranges;
        let port = |port: ServicePortObject| ServicePort {
            name: port.name.into(),
            protocol: port.protocol.unwrap_or(Protocol::Tcp),
            port: port.port,
            node_port: (port.node_port != 0).then_some(port.node_port),
        };
        let label = "service.kubernetes.io/service-proxy-name";
        let service = Service {
            headless: texts.iter().any(|text| text == "None"),
            cluster_ips: texts.iter().filter_map(|text| text.parse().ok()).collect(),
            external_name: (spec.r#type == "ExternalName")
                .then(|| spec.external_name.unwrap_or_default().into()),
            external_ips: parsed(spec.external_ips),
            load_balancer_ips,
            source_ranges: ranges.iter().filter_map(|text| text.trim().parse().ok()).collect(),
            ports: spec.ports.into_iter().map(port).collect(),
            affinity_seconds: (spec.session_affinity == "ClientIP")
                .then(|| timeout.unwrap_or(AFFINITY_SECONDS)),
            external_local: spec.external_traffic_policy == "Local",
            internal_local: spec.internal_traffic_policy == "Local",
            foreign: self.metadata.labels.is_some_and(|labels| labels.contains_key(label)),
        };
        Some(Object::Service(key, service))
    }
}

/// An `EndpointSlice`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SliceObject {
    metadata: ObjectMeta,
    #[serde(default)]
    address_type: String,
    #[serde(default)]
    endpoints: Option<Vec<EndpointObject>>,
    #[serde(default)]
    ports: Option<Vec<SlicePortObject>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndpointObject {
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Conditions,
    node_name: Option<String>,
    hostname: Option<String>,
    hints: Option<Hints>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Hints {
    for_zones: Option<Vec<Named>>,
    for_nodes: Option<Vec<Named>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Named {
    name: String,
}

#[derive(Debug, Clone, Deserialize)]
struct SlicePortObject {
    #[serde(default)]
    name: Option<String>,
    protocol: Option<Protocol>,
    port: Option<u16>,
}

impl Projection for SliceObject {
    const KIND: Kind = Kind::Slice;

    fn object(self) -> Option<Object> {
        let key = self.key();
        let service = self.metadata.labels?.remove("kubernetes.io/service-name")?;
        if !matches!(self.address_type.as_str(), "IPv4" | "IPv6") {
            return None;
        }
        let names = |names: Option<Vec<Named>>| {
            names.into_iter().flatten().map(|named| named.name.into()).collect()
        };
        let endpoint = |endpoint: EndpointObject| {
            // Unset means ready; serving follows ready where it is unset.
            let hints = endpoint.hints.unwrap_or_default();
            let ready = endpoint.conditions.ready.unwrap_or(true);
            Some(Endpoint {
                address: endpoint.addresses.first()?.parse().ok()?,
                ready,
                serving: endpoint.conditions.serving.unwrap_or(ready),
                terminating: endpoint.conditions.terminating.unwrap_or(false),
                node: endpoint.node_name.map(Into::into),
                hostname: endpoint.hostname.filter(|name| !name.is_empty()).map(Into::into),
                for_zones: names(hints.for_zones),
                for_nodes: names(hints.for_nodes),
            })
        };
        let port = |port: SlicePortObject| {
            Some(SlicePort {
                name: port.name.unwrap_or_default().into(),
                protocol: port.protocol.unwrap_or(Protocol::Tcp),
                port: port.port?,
            })
        };
        let slice = Slice {
            service: service.into(),
            ports: self.ports.unwrap_or_default().into_iter().filter_map(port).collect(),
            endpoints: self
                .endpoints
                .unwrap_or_default()
                .into_iter()
                .filter_map(endpoint)
                .collect(),
        };
        Some(Object::Slice(key, slice))
    }
}

/// A `Node`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct NodeObject {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: Vec<NodeAddress>,
}

#[derive(Debug, Clone, Deserialize)]
struct NodeAddress {
    r#type: String,
    address: String,
}

impl Projection for NodeObject {
    const KIND: Kind = Kind::Node;

    fn object(self) -> Option<Object> {
        let name = self.metadata.name?;
        let mut labels = self.metadata.labels.unwrap_or_default();
        let mut pod_cidrs = self.spec.pod_cidrs;
        if pod_cidrs.is_empty() {
            pod_cidrs.extend(self.spec.pod_cidr);
        }
        let internal = self.status.addresses.into_iter().filter(|a| a.r#type == "InternalIP");
        let node = NodeView {
            pod_cidrs: parsed(pod_cidrs).iter().map(IpNet::trunc).collect(),
            internal_ips: internal.filter_map(|address| address.address.parse().ok()).collect(),
            zone: labels.remove("topology.kubernetes.io/zone").map(Into::into),
        };
        Some(Object::Node(name.into(), node))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn services_are_read_as_the_api_writes_them() {
        let object: ServiceObject = serde_json::from_str(
            r#"{"metadata":{"name":"web","namespace":"default","managedFields":[{"manager":"kubectl"}]},
            "spec":{"type":"LoadBalancer","clusterIP":"10.96.7.7","clusterIPs":["10.96.7.7"],
            "sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":600}},
            "externalTrafficPolicy":"Local","loadBalancerSourceRanges":["192.0.2.0/24"],"externalIPs":["203.0.113.9"],
            "ports":[{"name":"http","protocol":"TCP","port":80,"targetPort":8080,"nodePort":30080}]},
            "status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.10","ipMode":"VIP"},
            {"ip":"203.0.113.11","ipMode":"Proxy"}]}}}"#,
        )
        .unwrap();
        let Some(Object::Service(key, service)) = object.object() else { panic!("a service") };
        assert_eq!(key, Key::new("default", "web"));
        assert_eq!(service.affinity_seconds, Some(600));
        assert!(service.external_local && !service.internal_local && !service.headless);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(service.external_ips, [address("203.0.113.9")]);
        let vips = [address("203.0.113.10")];
        assert_eq!(service.load_balancer_ips, vips, "an address of mode Proxy is left alone");
        assert_eq!(service.source_ranges, ["192.0.2.0/24".parse().unwrap()]);
        assert_eq!(service.ports[0].node_port, Some(30080));
    }

    #[test]
    fn unset_conditions_mean_ready() {
        let object: SliceObject = serde_json::from_str(
            r#"{"metadata":{"name":"web-1","namespace":"default",
            "labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4",
            "ports":[{"name":"","port":8080,"protocol":"TCP"}],
            "endpoints":[{"addresses":["10.244.1.2"]},
            {"addresses":["10.244.1.3"],"conditions":{"ready":false,"serving":true,"terminating":true}},
            {"addresses":["10.244.1.4"],"conditions":{"ready":false}}]}"#,
        )
        .unwrap();
        let Some(Object::Slice(_, slice)) = object.object() else { panic!("a slice") };
        let states: Vec<_> =
            slice.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
        assert_eq!(states, [(true, true, false), (false, true, true), (false, false, false)]);
    }

    #[test]
    fn one_field_that_is_none_leaves_the_object() {
        let object: ServiceObject = serde_json::from_str(
            r#"{"metadata":{"name":"web"},"spec":{"type":"LoadBalancer","externalIPs":["nowhere","203.0.113.9"]},
            "status":{"loadBalancer":{"ingress":[{"ip":""},{"hostname":"a.example"},{"ip":"203.0.113.10"}]}}}"#,
        )
        .unwrap();
        let Some(Object::Service(_, service)) = object.object() else { panic!("a service") };
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(service.external_ips, [address("203.0.113.9")]);
        assert_eq!(service.load_balancer_ips, [address("203.0.113.10")]);
        let object: SliceObject = serde_json::from_str(
            r#"{"metadata":{"name":"web-1","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4",
            "endpoints":[{"addresses":["10.244.1.2"],"hints":null},
            {"addresses":["10.244.1.3"],"hints":{"forZones":null,"forNodes":[{"name":"n1"}]}}]}"#,
        )
        .unwrap();
        let Some(Object::Slice(_, slice)) = object.object() else { panic!("a slice") };
        assert_eq!(slice.endpoints.len(), 2);
        assert_eq!(*slice.endpoints[1].for_nodes[0], *"n1");
        let object: NodeObject = serde_json::from_str(
            r#"{"metadata":{"name":"n1"},"spec":{"podCIDR":"","podCIDRs":["nowhere","10.244.1.7/24"]}}"#,
        )
        .unwrap();
        let Some(Object::Node(_, node)) = object.object() else { panic!("a node") };
        assert_eq!(node.pod_cidrs, ["10.244.1.0/24".parse().unwrap()]);
    }
}
