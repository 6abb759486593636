//! What the caller tells netd: the node, the cluster's address plan, where files lie, which names are ours.
//!
//! Must not read files or the kernel: a `Config` is a value. Everything named here lives in one network
//! namespace, so several nodes can share a machine.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};

use crate::error::StartError;

/// Routing protocol number of our routes (`ip route` shows `proto 86`); unassigned in iproute2's tables.
pub const ROUTE_PROTOCOL: u8 = 86;
/// Up to here routing protocol numbers are the kernel's and the administrator's (`RTPROT_STATIC`).
const ROUTE_PROTOCOL_KERNEL_MAX: u8 = 4;
/// UDP port of the overlay, IANA's for VXLAN.
pub const VXLAN_PORT: u16 = 4789;
/// VXLAN network identifier of the overlay.
pub const VXLAN_VNI: u32 = 86;
/// Port on which the node's resolver listens; nothing of ours binds port 53.
pub const DNS_PORT: u16 = 10053;
/// Address on `lo` (scope host) on which the node's resolver listens: there even with every cable unplugged.
/// Taken from the reserved first /24 of 169.254/16, which no autoconfigured host may claim (RFC 3927).
pub const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 53);
/// Default range of pods' addresses.
pub const CLUSTER_CIDR: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16));
/// Default range of ClusterIPs.
pub const SERVICE_CIDR: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12));
/// Default name of the nftables tables (`ip flotilla`, `ip6 flotilla`).
pub const TABLE: &str = "flotilla";

/// How a node takes part in the cluster's network.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of this node's `Node`.
    pub node_name: String,
    /// The node's InternalIPs, the primary one first; at most one per family is used.
    pub node_ips: Vec<IpAddr>,
    /// Folder for what must vanish with a reboot: namespaces are pinned at `<run_dir>/netns/<pod uid>`.
    pub run_dir: PathBuf,
    /// Folder for what must outlive a reboot: services, endpoints, nodes and the sysctls we changed.
    pub state_dir: PathBuf,
    /// Cluster domain, without a trailing dot.
    pub cluster_domain: String,
    /// Cluster DNS addresses served by this node; empty: no DNS.
    pub cluster_dns: Vec<IpAddr>,
    /// Ranges of ClusterIPs.
    pub service_cidrs: Vec<IpNet>,
    /// Ranges that all pods' addresses are from.
    pub cluster_cidrs: Vec<IpNet>,
    /// Name of the nftables tables.
    pub table: String,
    /// Routing protocol number that marks our routes.
    pub route_protocol: u8,
    /// The resolv.conf whose name servers get the questions outside of the cluster domain.
    pub upstream_resolv_conf: PathBuf,
    /// Port of the node's resolver.
    pub dns_port: u16,
    /// UDP port of the overlay.
    pub vxlan_port: u16,
    /// Network identifier of the overlay.
    pub vxlan_vni: u32,
    /// TCP ports of this host that the cluster needs open where the host drops by default (the API server's).
    pub accept_tcp_ports: Vec<u16>,
    /// What this process does with the kernel.
    pub mode: Mode,
}

/// Which parts of the network this process owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Pods, routes, services and DNS: the agent's.
    Node,
    /// Services only, beside somebody else's pod network.
    Proxy,
}

impl Config {
    /// The defaults of a node of a Flotilla cluster.
    pub fn new(node_name: impl Into<String>, node_ips: Vec<IpAddr>) -> Config {
        Config {
            node_name: node_name.into(),
            node_ips,
            run_dir: PathBuf::from("/run/flotilla"),
            state_dir: PathBuf::from("/var/lib/flotilla/agent/network"),
            cluster_domain: "cluster.local".to_owned(),
            cluster_dns: vec![IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10))],
            service_cidrs: vec![SERVICE_CIDR],
            cluster_cidrs: vec![CLUSTER_CIDR],
            table: TABLE.to_owned(),
            route_protocol: ROUTE_PROTOCOL,
            upstream_resolv_conf: PathBuf::from("/etc/resolv.conf"),
            dns_port: DNS_PORT,
            vxlan_port: VXLAN_PORT,
            vxlan_vni: VXLAN_VNI,
            accept_tcp_ports: Vec::new(),
            mode: Mode::Node,
        }
    }

    /// Whether the configuration can be worked with.
    pub(crate) fn check(&self) -> Result<(), StartError> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let named = self.table.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
        if !named || !self.table.bytes().all(word) {
            let text = format!("table {:?}: letters, digits, - and _ only", self.table);
            return Err(StartError::Config(text));
        }
        if self.mode == Mode::Node && self.node_ips.is_empty() {
            let text = "a node needs an address (InternalIP)".to_owned();
            return Err(StartError::Config(text));
        }
        if self.route_protocol <= ROUTE_PROTOCOL_KERNEL_MAX {
            let text = format!("routing protocol {} is the system's", self.route_protocol);
            return Err(StartError::Config(text));
        }
        Ok(())
    }

    /// The ranges of ClusterIPs in which nothing else can be. Where the node's own address is in one, so is its network, and what no
    /// service has there must not be rejected.
    pub(crate) fn exclusive_service_cidrs(&self) -> Vec<IpNet> {
        let is_shared = |cidr: &&IpNet| self.node_ips.iter().any(|ip| cidr.contains(ip));
        self.service_cidrs.iter().filter(|cidr| !is_shared(cidr)).copied().collect()
    }

    /// Says where the node's network and the cluster's ranges overlap.
    pub(crate) fn warn_of_overlaps(&self) {
        for cidr in self.service_cidrs.iter().chain(&self.cluster_cidrs) {
            for ip in self.node_ips.iter().filter(|ip| cidr.contains(*ip)) {
                tracing::warn!(%ip, %cidr, "the node's address lies in a range of the cluster: give the cluster other ranges");
            }
        }
    }

    /// Folder of the pinned network namespaces.
    pub fn netns_dir(&self) -> PathBuf {
        self.run_dir.join("netns")
    }
}
