//! From the cluster's state to what packets shall meet on this node: addresses and ports, and where they lead.
//!
//! Pure. The choice of endpoints is kube-proxy's (Kubernetes 1.36): ready ones, else serving and terminating ones; topology hints;
//! traffic policies. Must not know how rules look.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::cluster::{Cluster, Endpoint, Key, Service, ServicePort};
use crate::pods::Table;
use crate::rules::Family;
use crate::{Config, DNS_ADDRESS, Mode, Protocol};

/// The port of DNS.
const DNS_SERVICE_PORT: u16 = 53;

/// An address and port that services are reached at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Vip {
    pub(crate) address: IpAddr,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
}

/// An endpoint's address and port.
pub(crate) type Backend = (IpAddr, u16);

/// Whose traffic it is, which decides about masquerade and locality.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// To a ClusterIP: masqueraded unless it is a pod's.
    Cluster,
    /// From outside: masqueraded, any endpoint.
    External,
    /// From outside with `externalTrafficPolicy: Local`: keeps its source, local endpoints only.
    ExternalLocal,
}

/// What happens where there is no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unserved {
    /// No endpoint anywhere.
    Reject,
    /// There are some, but the policy forbids them.
    Drop,
}

/// Where an address and port lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) traffic: Traffic,
    /// `sessionAffinity: ClientIP`.
    pub(crate) sticky: bool,
    pub(crate) endpoints: Arc<[Backend]>,
    /// Those on this node; used by `ExternalLocal`.
    pub(crate) local: Arc<[Backend]>,
    pub(crate) unserved: Unserved,
}

/// A port of this host that leads to one pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostPortTarget {
    pub(crate) address: Option<IpAddr>,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) backend: Backend,
}

/// All that the rules are made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Desired {
    pub(crate) vips: BTreeMap<Vip, Target>,
    pub(crate) node_ports: BTreeMap<(Family, Protocol, u16), Target>,
    pub(crate) host_ports: BTreeSet<HostPortTarget>,
    /// Load balancer addresses that answer these sources only.
    pub(crate) restricted: BTreeMap<Vip, Vec<IpNet>>,
    /// Pods of this node that may reach themselves through a service.
    pub(crate) hairpin: BTreeSet<IpAddr>,
    /// This node's pod CIDRs.
    pub(crate) own_cidrs: Vec<IpNet>,
    pub(crate) cluster_cidrs: Vec<IpNet>,
    pub(crate) service_cidrs: Vec<IpNet>,
}

/// Decides everything anew; cheap enough for each change (some microseconds per service).
pub(crate) fn plan_desired(config: &Config, cluster: &Cluster, pods: &Table) -> Desired {
    let own = cluster.nodes.get(config.node_name.as_str());
    // Beside somebody else's pod network, masquerade of pods is theirs to do.
    let ours = own.filter(|_| config.mode == Mode::Node);
    let mut desired = Desired {
        own_cidrs: ours.map(|node| node.pod_cidrs.clone()).unwrap_or_default(),
        cluster_cidrs: config.cluster_cidrs.clone(),
        service_cidrs: config.exclusive_service_cidrs(),
        ..Desired::default()
    };
    add_dns(&mut desired, config);
    add_host_ports(&mut desired, pods);
    let here = Here { node: &config.node_name, zone: own.and_then(|node| node.zone.as_deref()) };
    for (key, service) in &cluster.services {
        if service.foreign || service.headless || service.external_name.is_some() {
            continue;
        }
        for port in &service.ports {
            add_port(&mut desired, cluster, &here, (key, service, port));
        }
    }
    desired
}

struct Here<'a> {
    node: &'a str,
    zone: Option<&'a str>,
}

/// The node's own resolver: an ordinary VIP, which needs no service and outranks one.
fn add_dns(desired: &mut Desired, config: &Config) {
    for address in &config.cluster_dns {
        let resolver = match address {
            IpAddr::V4(_) => Some(IpAddr::V4(DNS_ADDRESS)),
            IpAddr::V6(_) => config.node_ips.iter().find(|ip| ip.is_ipv6()).copied(),
        };
        let Some(resolver) = resolver else { continue };
        let endpoints: Arc<[Backend]> = [(resolver, config.dns_port)].into();
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let vip = Vip { address: *address, protocol, port: DNS_SERVICE_PORT };
            let target = Target {
                traffic: Traffic::Cluster,
                sticky: false,
                endpoints: endpoints.clone(),
                local: endpoints.clone(),
                unserved: Unserved::Reject,
            };
            desired.vips.insert(vip, target);
        }
    }
}

fn add_host_ports(desired: &mut Desired, pods: &Table) {
    for record in pods.values() {
        for port in &record.host_ports {
            for address in &record.addresses {
                if port.host_ip.is_some_and(|ip| ip.is_ipv4() != address.is_ipv4()) {
                    continue;
                }
                desired.hairpin.insert(*address);
                desired.host_ports.insert(HostPortTarget {
                    address: port.host_ip.filter(|ip| !ip.is_unspecified()),
                    protocol: port.protocol,
                    port: port.host_port,
                    backend: (*address, port.container_port),
                });
            }
        }
    }
}

fn add_port(
    desired: &mut Desired,
    cluster: &Cluster,
    here: &Here<'_>,
    (key, service, port): (&Key, &Service, &ServicePort),
) {
    let mut families: BTreeSet<Family> = service.cluster_ips.iter().map(Family::of).collect();
    families.extend(service.external_ips.iter().map(Family::of));
    families.extend(service.load_balancer_ips.iter().map(Family::of));
    for family in families {
        let all = endpoints(cluster, key, port, family);
        let local = backends(&available(all.iter().filter(|(e, _)| is_here(e, here))));
        let everywhere = backends(&available(with_topology(&all, here)));
        for (endpoint, _) in all.iter().filter(|(endpoint, _)| is_here(endpoint, here)) {
            desired.hairpin.insert(endpoint.address);
        }
        let unserved = if everywhere.is_empty() { Unserved::Reject } else { Unserved::Drop };
        let sticky = service.affinity_seconds.is_some();
        let internal = if service.internal_local { local.clone() } else { everywhere.clone() };
        let cluster_target = Target {
            traffic: Traffic::Cluster,
            sticky,
            endpoints: internal,
            local: local.clone(),
            unserved,
        };
        let external_target = Target {
            traffic: match service.external_local && !everywhere.is_empty() {
                true => Traffic::ExternalLocal,
                false => Traffic::External,
            },
            sticky,
            endpoints: everywhere,
            local,
            unserved,
        };
        let vip =
            |address: &IpAddr| Vip { address: *address, protocol: port.protocol, port: port.port };
        for address in service.cluster_ips.iter().filter(|ip| Family::of(ip) == family) {
            desired.vips.entry(vip(address)).or_insert_with(|| cluster_target.clone());
        }
        for address in service.external_ips.iter().filter(|ip| Family::of(ip) == family) {
            desired.vips.entry(vip(address)).or_insert_with(|| external_target.clone());
        }
        for address in service.load_balancer_ips.iter().filter(|ip| Family::of(ip) == family) {
            desired.vips.entry(vip(address)).or_insert_with(|| external_target.clone());
            let ranges = service.source_ranges.iter().copied();
            let ranges = ranges.filter(|range| Family::of_net(range) == family);
            let mut ranges: Vec<IpNet> = ranges.collect();
            // As kube-proxy, where no range is of the address's family: from anywhere.
            if !ranges.is_empty() {
                // The node itself may, with the VIP as its source, as where a balancer puts the VIP on the node.
                ranges.push(IpNet::from(*address));
                desired.restricted.insert(vip(address), ranges);
            }
        }
        if let Some(node_port) = port.node_port {
            let place = (family, port.protocol, node_port);
            desired.node_ports.entry(place).or_insert(external_target);
        }
    }
}

/// All endpoints of a service's port in one family, each address once, with its port.
fn endpoints<'a>(
    cluster: &'a Cluster,
    service: &Key,
    port: &ServicePort,
    family: Family,
) -> Vec<(&'a Endpoint, u16)> {
    let mut found: BTreeMap<Backend, &Endpoint> = BTreeMap::new();
    for slice in cluster.slices.get(service).into_iter().flat_map(BTreeMap::values) {
        let matching =
            slice.ports.iter().find(|p| p.name == port.name && p.protocol == port.protocol);
        let Some(matching) = matching else { continue };
        for endpoint in slice.endpoints.iter().filter(|e| Family::of(&e.address) == family) {
            found.entry((endpoint.address, matching.port)).or_insert(endpoint);
        }
    }
    found.into_iter().map(|((_, port), endpoint)| (endpoint, port)).collect()
}

fn is_here(endpoint: &Endpoint, here: &Here<'_>) -> bool {
    endpoint.node.as_deref() == Some(here.node)
}

/// The ready ones; when there are none, those that still serve while they terminate.
fn available<'a>(
    endpoints: impl Iterator<Item = &'a (&'a Endpoint, u16)> + Clone,
) -> Vec<(&'a Endpoint, u16)> {
    let ready: Vec<_> = endpoints.clone().filter(|(e, _)| e.ready).copied().collect();
    if !ready.is_empty() {
        return ready;
    }
    endpoints.filter(|(e, _)| e.serving && e.terminating).copied().collect()
}

/// Those hinted to this node or zone, when all ready ones have hints and one is for here.
fn with_topology<'a>(
    all: &'a [(&'a Endpoint, u16)],
    here: &'a Here<'a>,
) -> impl Iterator<Item = &'a (&'a Endpoint, u16)> + Clone {
    let ready = || all.iter().map(|(endpoint, _)| *endpoint).filter(|endpoint| endpoint.ready);
    let for_node = |e: &Endpoint| e.for_nodes.iter().any(|node| **node == *here.node);
    let for_zone = |e: &Endpoint| e.for_zones.iter().any(|zone| Some(&**zone) == here.zone);
    let by_node = ready().all(|e| !e.for_nodes.is_empty()) && ready().any(for_node);
    let by_zone = ready().all(|e| !e.for_zones.is_empty()) && ready().any(for_zone);
    all.iter().filter(move |(endpoint, _)| match (by_node, by_zone) {
        (true, _) => for_node(endpoint),
        (false, true) => for_zone(endpoint),
        (false, false) => true,
    })
}

fn backends(endpoints: &[(&Endpoint, u16)]) -> Arc<[Backend]> {
    endpoints.iter().map(|(endpoint, port)| (endpoint.address, *port)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Object, Slice, SlicePort};
    use crate::topology::NodeView;

    fn endpoint(address: &str, node: &str, state: &str) -> Endpoint {
        Endpoint {
            address: address.parse().unwrap(),
            ready: state == "ready",
            serving: state != "down",
            terminating: state == "terminating",
            node: Some(node.into()),
            hostname: None,
            for_zones: Vec::new(),
            for_nodes: Vec::new(),
        }
    }

    fn plan(service: Service, endpoints: Vec<Endpoint>) -> Desired {
        let mut cluster = Cluster::default();
        let port = ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: Some(30080),
        };
        let service = Service {
            cluster_ips: vec!["10.96.0.7".parse().unwrap()],
            ports: vec![port],
            ..service
        };
        cluster.insert(Object::Service(Key::new("d", "web"), service));
        let port = SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 };
        let slice = Slice { service: "web".into(), ports: vec![port], endpoints };
        cluster.insert(Object::Slice(Key::new("d", "web-1"), slice));
        let mut config = Config::new("n1", vec!["192.0.2.1".parse().unwrap()]);
        config.cluster_dns.clear();
        plan_desired(&config, &cluster, &Table::new())
    }

    fn addresses(backends: &[Backend]) -> String {
        backends.iter().map(|(ip, _)| ip.to_string()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn endpoints_are_chosen_as_kube_proxy_does() {
        let cases = [
            (
                vec![("10.244.1.1", "n1", "ready"), ("10.244.2.1", "n2", "ready")],
                "10.244.1.1 10.244.2.1",
            ),
            (
                vec![("10.244.1.1", "n1", "ready"), ("10.244.2.1", "n2", "terminating")],
                "10.244.1.1",
            ),
            (vec![("10.244.1.1", "n1", "down"), ("10.244.2.1", "n2", "terminating")], "10.244.2.1"),
            (vec![("10.244.1.1", "n1", "down")], ""),
        ];
        for (given, want) in cases {
            let given = given.into_iter().map(|(a, n, s)| endpoint(a, n, s)).collect();
            let desired = plan(Service::default(), given);
            let (_, target) = desired.vips.first_key_value().unwrap();
            assert_eq!(addresses(&target.endpoints), want);
        }
    }

    #[test]
    fn policies_choose_local_ones() {
        let service = Service { internal_local: true, external_local: true, ..Service::default() };
        let remote = vec![endpoint("10.244.2.1", "n2", "ready")];
        let desired = plan(service.clone(), remote);
        let (_, target) = desired.vips.first_key_value().unwrap();
        assert_eq!((target.endpoints.len(), target.unserved), (0, Unserved::Drop));
        let (_, target) = desired.node_ports.first_key_value().unwrap();
        assert_eq!(target.traffic, Traffic::ExternalLocal);
        assert_eq!((target.endpoints.len(), target.local.len()), (1, 0));
        let desired = plan(service, Vec::new());
        let (_, target) = desired.node_ports.first_key_value().unwrap();
        assert_eq!((target.traffic, target.unserved), (Traffic::External, Unserved::Reject));
    }

    #[test]
    fn hints_hold_only_when_all_have_them() {
        let hinted = |address: &str, node: &str| Endpoint {
            for_nodes: vec![node.into()],
            ..endpoint(address, node, "ready")
        };
        let desired =
            plan(Service::default(), vec![hinted("10.244.1.1", "n1"), hinted("10.244.2.1", "n2")]);
        let (_, target) = desired.vips.first_key_value().unwrap();
        assert_eq!(addresses(&target.endpoints), "10.244.1.1");
        let desired = plan(
            Service::default(),
            vec![hinted("10.244.1.1", "n1"), endpoint("10.244.2.1", "n2", "ready")],
        );
        let (_, target) = desired.vips.first_key_value().unwrap();
        assert_eq!(addresses(&target.endpoints), "10.244.1.1 10.244.2.1");
    }

    #[test]
    fn pods_of_another_network_are_not_ours_to_masquerade() {
        let mut cluster = Cluster::default();
        let cidrs = vec!["10.9.1.0/24".parse().unwrap()];
        let node = NodeView { pod_cidrs: cidrs.clone(), ..NodeView::default() };
        cluster.insert(Object::Node("n1".into(), node));
        let mut config = Config::new("n1", vec!["192.0.2.1".parse().unwrap()]);
        assert_eq!(plan_desired(&config, &cluster, &Table::new()).own_cidrs, cidrs);
        config.mode = Mode::Proxy;
        assert!(plan_desired(&config, &cluster, &Table::new()).own_cidrs.is_empty());
    }

    #[test]
    fn source_ranges_restrict_their_own_family_only() {
        let service = Service {
            load_balancer_ips: vec!["203.0.113.8".parse().unwrap(), "2001:db8::8".parse().unwrap()],
            source_ranges: vec!["192.0.2.0/24".parse().unwrap()],
            ..Service::default()
        };
        let desired = plan(service, vec![endpoint("10.244.1.1", "n1", "ready")]);
        let restricted: Vec<_> = desired.restricted.into_iter().collect();
        let [(vip, ranges)] = restricted.as_slice() else { panic!("{restricted:?}") };
        assert_eq!(vip.address.to_string(), "203.0.113.8");
        let ranges: Vec<_> = ranges.iter().map(IpNet::to_string).collect();
        assert_eq!(ranges, ["192.0.2.0/24", "203.0.113.8/32"]);
    }
}
