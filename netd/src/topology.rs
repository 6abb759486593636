//! How the other nodes' pods are reached: directly where the nodes share a segment, through the overlay otherwise.
//!
//! Pure. Both ends of a pair come to the same answer as long as they see the same addresses and prefix lengths.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ipam;
use crate::link::fnv1a;
use crate::route::{Route, Uplink};

/// What netd knows of a `Node`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct NodeView {
    pub(crate) pod_cidrs: Vec<IpNet>,
    pub(crate) internal_ips: Vec<IpAddr>,
    /// Label `topology.kubernetes.io/zone`.
    pub(crate) zone: Option<Box<str>>,
}

/// Another node behind the overlay.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Peer {
    /// Where the encapsulated packets go: the node's InternalIP.
    pub(crate) remote: IpAddr,
    /// MAC of its overlay link.
    pub(crate) mac: [u8; 6],
    /// Its own addresses in the pod network: gateways of the routes.
    pub(crate) gateways: Vec<IpAddr>,
}

/// What the kernel shall hold for the other nodes and the services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Topology {
    /// Pod CIDRs reached over a node's address on the same segment.
    pub(crate) direct: BTreeMap<IpNet, IpAddr>,
    /// Pod CIDRs reached through the overlay, with their gateway.
    pub(crate) overlay: BTreeMap<IpNet, IpAddr>,
    /// The nodes behind the overlay.
    pub(crate) peers: BTreeSet<Peer>,
}

/// MAC of a node's overlay link: a function of its InternalIP, so that nobody has to announce it.
pub(crate) fn overlay_mac(internal_ip: IpAddr) -> [u8; 6] {
    let tail = match internal_ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => {
            let [.., a, b, c, d] = fnv1a(&ip.octets()).to_be_bytes();
            [a, b, c, d]
        }
    };
    [0x02, 0x76, tail[0], tail[1], tail[2], tail[3]]
}

/// Decides for each other node with pod CIDRs; `underlay` is this node's address for encapsulated packets.
pub(crate) fn plan_topology<'a>(
    nodes: impl Iterator<Item = &'a NodeView>,
    uplink: &Uplink,
    underlay: IpAddr,
) -> Topology {
    let mut topology = Topology::default();
    for node in nodes {
        for cidr in &node.pod_cidrs {
            let same_family =
                |ip: &&IpAddr| ip.is_ipv4() == cidr.addr().is_ipv4() && on_segment(ip, uplink);
            if let Some(ip) = node.internal_ips.iter().find(same_family) {
                topology.direct.insert(*cidr, *ip);
            } else if node.internal_ips.iter().any(|ip| ip.is_ipv4() == underlay.is_ipv4()) {
                topology.overlay.insert(*cidr, ipam::own_address(cidr));
            }
        }
        let remote = node.internal_ips.iter().find(|ip| ip.is_ipv4() == underlay.is_ipv4());
        let gateways: Vec<IpAddr> =
            node.pod_cidrs.iter().filter_map(|cidr| topology.overlay.get(cidr).copied()).collect();
        if let Some(remote) = remote
            && !gateways.is_empty()
        {
            topology.peers.insert(Peer { remote: *remote, mac: overlay_mac(*remote), gateways });
        }
    }
    topology
}

fn on_segment(ip: &IpAddr, uplink: &Uplink) -> bool {
    uplink.connected.iter().any(|net| net.contains(ip)) && !uplink.own.contains(ip)
}

/// The routes of a topology. `own` are this node's addresses in the pod network, `overlay` the overlay link's index.
pub(crate) fn plan_node_routes(
    topology: &Topology,
    uplink: &Uplink,
    overlay: Option<u32>,
    own: &[IpAddr],
) -> BTreeSet<Route> {
    let direct = topology.direct.iter().map(|(cidr, ip)| Route {
        destination: *cidr,
        via: Some(*ip),
        link: uplink.index,
        source: None,
    });
    let source = |cidr: &IpNet| own.iter().find(|ip| ip.is_ipv4() == cidr.addr().is_ipv4());
    let tunnelled = topology.overlay.iter().filter_map(|(cidr, gateway)| {
        Some(Route {
            destination: *cidr,
            via: Some(*gateway),
            link: overlay?,
            source: source(cidr).copied(),
        })
    });
    direct.chain(tunnelled).collect()
}

/// The routes that let the node itself use ClusterIPs: with its own address as source, without any default route.
pub(crate) fn plan_service_routes(service_cidrs: &[IpNet], uplink: &Uplink) -> BTreeSet<Route> {
    let source =
        |cidr: &IpNet| uplink.own.iter().find(|ip| ip.is_ipv4() == cidr.addr().is_ipv4()).copied();
    service_cidrs
        .iter()
        .filter_map(|cidr| {
            let source = Some(source(cidr)?);
            Some(Route { destination: cidr.trunc(), via: None, link: uplink.index, source })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplink() -> Uplink {
        Uplink {
            index: 2,
            mtu: 1500,
            own: vec!["192.0.2.1".parse().unwrap()],
            connected: vec!["192.0.2.0/24".parse().unwrap()],
        }
    }

    fn node(cidr: &str, ip: &str) -> NodeView {
        NodeView {
            pod_cidrs: vec![cidr.parse().unwrap()],
            internal_ips: vec![ip.parse().unwrap()],
            zone: None,
        }
    }

    #[test]
    fn same_segment_directly_others_tunnelled() {
        let nodes = [
            node("10.244.2.0/24", "192.0.2.2"),
            node("10.244.3.0/24", "198.51.100.3"),
            NodeView::default(),
        ];
        let topology = plan_topology(nodes.iter(), &uplink(), "192.0.2.1".parse().unwrap());
        let own: Vec<IpAddr> = vec!["10.244.1.0".parse().unwrap()];
        let routes = plan_node_routes(&topology, &uplink(), Some(9), &own);
        let want = [
            Route {
                destination: "10.244.2.0/24".parse().unwrap(),
                via: Some("192.0.2.2".parse().unwrap()),
                link: 2,
                source: None,
            },
            Route {
                destination: "10.244.3.0/24".parse().unwrap(),
                via: Some("10.244.3.0".parse().unwrap()),
                link: 9,
                source: Some("10.244.1.0".parse().unwrap()),
            },
        ];
        assert_eq!(routes, want.into());
        let peers: Vec<_> = topology.peers.iter().collect();
        assert_eq!(peers.len(), 1);
        assert_eq!(peers[0].mac, [0x02, 0x76, 198, 51, 100, 3]);
    }
}
