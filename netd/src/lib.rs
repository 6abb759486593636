//! The pod network of a node: links, routes, services, DNS.
//!
//! A library that the agent links, and a small binary that serves any cluster as its service proxy. Owns, in the
//! network namespace it runs in: the nftables tables of one name, the routes of one protocol number, the links
//! `flt*`, the pins under `<run_dir>/netns`. It never touches anything else. Invariant: what the kernel
//! holds of ours is a function of the saved and watched state; whoever changes it sees it repaired.

mod config;
mod error;
mod link;

use std::net::IpAddr;
use std::path::PathBuf;

pub use config::{
    Config, DNS_ADDRESS, DNS_PORT, Mode, ROUTE_PROTOCOL, TABLE, VXLAN_PORT, VXLAN_VNI,
};
pub use error::{AttachError, DetachError, RemoveError, StartError};
pub use link::LinkError;
use tokio::sync::watch;

/// A pod that wants a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodAttachment {
    /// The pod's UID: names the namespace, the link and the reservation.
    pub uid: String,
    /// The pod's namespace, for logs.
    pub namespace: String,
    /// The pod's name, for logs.
    pub name: String,
    /// Ports of the host that lead into the pod.
    pub host_ports: Vec<HostPort>,
}

/// One `hostPort` of a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct HostPort {
    /// The one host address it is on; none: all of them but loopback.
    pub host_ip: Option<IpAddr>,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the pod.
    pub container_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// Transport protocols of Kubernetes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum Protocol {
    /// TCP.
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
    /// SCTP.
    #[serde(rename = "SCTP")]
    Sctp,
}

/// A pod's network as it stands in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNetwork {
    /// Path of the pinned network namespace.
    pub netns: PathBuf,
    /// The pod's addresses, the primary one first.
    pub ips: Vec<IpAddr>,
}

/// Whether pods can get a network (kubelet's NetworkReady).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// They can.
    Ready,
    /// The node has no pod CIDR yet.
    NoPodCidr,
    /// The rules or routes could not be written; the text says why.
    Failing(String),
}

/// The running network of a node.
#[derive(Debug)]
pub struct Netd {
    readiness: watch::Receiver<Readiness>,
}

impl Netd {
    /// Starts from the saved state, then follows the cluster: rules, routes and DNS go on in the background.
    pub async fn start(config: Config, client: kube::Client) -> Result<Netd, StartError> {
        let (_, readiness) = watch::channel(Readiness::NoPodCidr);
        drop((config, client));
        Ok(Netd { readiness })
    }

    /// Gives a pod its namespace, link and addresses; for a UID that has them, says which they are.
    pub async fn attach(&self, pod: PodAttachment) -> Result<PodNetwork, AttachError> {
        Err(AttachError::Uid(pod.uid))
    }

    /// Takes a pod's network away; succeeds when there is none. The kernel's own clean-up goes on behind it.
    pub async fn detach(&self, uid: &str) -> Result<(), DetachError> {
        Err(DetachError::Uid(uid.to_owned()))
    }

    /// Changes whenever pods become able, or unable, to get a network.
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.clone()
    }

    /// Stops following the cluster; leaves rules, routes and links as they are.
    pub async fn stop(self) {}

    /// Removes all that netd ever made on this node, and nothing else.
    pub async fn remove(config: Config) -> Result<(), RemoveError> {
        drop(config);
        Ok(())
    }
}
