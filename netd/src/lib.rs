//! The pod network of a node: links, routes, services, DNS.
//!
//! A library that the agent links, and a small binary that serves any cluster as its service proxy. Owns, in the
//! network namespace it runs in: the nftables tables of one name, the routes of one protocol number, the links
//! `flt*`, the pins under `<run_dir>/netns`. It never touches anything else. Invariant: what the kernel
//! holds of ours is a function of the saved and watched state; whoever changes it sees it repaired.

mod accepts;
mod cluster;
mod config;
mod desired;
mod diff;
mod dns;
mod error;
mod ipam;
mod kernel;
mod link;
mod netns;
mod network;
mod overlay;
mod pods;
mod projection;
mod remove;
mod render;
mod route;
mod rules;
mod saved;
mod script;
mod services;
mod sysctl;
mod topology;
mod tracker;
mod worker;

use std::net::IpAddr;
use std::path::PathBuf;

pub use config::{
    CLUSTER_CIDR, Config, DNS_ADDRESS, DNS_PORT, Mode, ROUTE_PROTOCOL, SERVICE_CIDR, TABLE,
    VXLAN_PORT, VXLAN_VNI,
};
pub use error::{AttachError, DetachError, RemoveError, StartError};
pub use ipnet::IpNet;
pub use link::LinkError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::network::Network;
use crate::pods::Pods;
use crate::services::Services;
use crate::tracker::Tracker;

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
    requests: mpsc::Sender<pods::Request>,
    table: watch::Sender<pods::Table>,
    readiness: watch::Receiver<Readiness>,
    programmed: watch::Receiver<bool>,
    stop: watch::Sender<bool>,
    /// Tasks that end by themselves after `stop`: they have something to finish.
    finishing: JoinSet<()>,
    /// Tasks that can be dropped at any point.
    tasks: JoinSet<()>,
}

type NodeChannels =
    (watch::Sender<pods::Table>, mpsc::Receiver<pods::Request>, watch::Sender<Readiness>);

impl Netd {
    /// Starts from the saved state, then follows the cluster: rules, routes and DNS go on in the background.
    pub async fn start(config: Config, client: kube::Client) -> Result<Netd, StartError> {
        config.check()?;
        config.warn_of_overlaps();
        let state = |path: PathBuf| move |source| StartError::State { path, source };
        std::fs::create_dir_all(&config.state_dir).map_err(state(config.state_dir.clone()))?;
        let tracker = Tracker::load(&config.state_dir).map_err(state(config.state_dir.clone()))?;
        let saved = match config.mode {
            Mode::Node => pods::load(&config).map_err(state(config.run_dir.clone()))?,
            Mode::Proxy => pods::Table::new(),
        };
        let (table, table_changes) = watch::channel(saved);
        let (readiness, readiness_changes) = watch::channel(Readiness::NoPodCidr);
        let (programmed, programmed_changes) = watch::channel(false);
        let (requests, inbox) = mpsc::channel(pods::REQUESTS_MAX);
        let (stop, _) = watch::channel(false);
        let mut netd = Netd {
            requests,
            table: table.clone(),
            readiness: readiness_changes,
            programmed: programmed_changes,
            stop,
            finishing: JoinSet::new(),
            tasks: JoinSet::new(),
        };
        let services = Services {
            config: config.clone(),
            tracker: tracker.clone(),
            pods: table_changes,
            programmed,
            stop: netd.stop.subscribe(),
        };
        netd.finishing.spawn(services.run());
        tracker.spawn_saving(&mut netd.finishing, &config.state_dir, netd.stop.subscribe());
        tracker.spawn(&mut netd.tasks, &client);
        if config.mode == Mode::Node {
            netd.spawn_node(config, tracker, (table, inbox, readiness))?;
        }
        Ok(netd)
    }

    /// What only the node of a Flotilla cluster has: pods, routes, DNS, the accepts in the host's firewall.
    fn spawn_node(
        &mut self,
        config: Config,
        tracker: Tracker,
        (table, inbox, readiness): NodeChannels,
    ) -> Result<(), StartError> {
        let (pod_cidrs, pod_cidr_changes) = watch::channel(Vec::new());
        let network = Network {
            config: config.clone(),
            handle: self.netlink()?,
            tracker: tracker.clone(),
            pods: table.subscribe(),
            requests: self.requests.downgrade(),
            pod_cidrs,
            readiness,
        };
        self.tasks.spawn(network.run());
        let pods = Pods::new(config.clone(), self.netlink()?, table, pod_cidr_changes);
        self.tasks.spawn(pods.run(inbox));
        self.finishing.spawn(accepts::run(config.clone(), self.stop.subscribe()));
        if !config.cluster_dns.is_empty() {
            self.tasks.spawn(dns::server::run(config, tracker));
        }
        Ok(())
    }

    /// A netlink socket. Each task has one of its own: the kernel refuses a second dump on a socket while one is under way.
    fn netlink(&mut self) -> Result<rtnetlink::Handle, StartError> {
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(|source| StartError::Kernel {
                what: "opening a netlink socket",
                source: source.into(),
            })?;
        self.tasks.spawn(connection);
        Ok(handle)
    }

    /// Gives a pod its namespace, link and addresses; for a UID that has them, says which they are.
    pub async fn attach(&self, pod: PodAttachment) -> Result<PodNetwork, AttachError> {
        let (answer, result) = oneshot::channel();
        let request = pods::Request::Attach(pod, answer);
        self.requests.send(request).await.map_err(|_| AttachError::Stopped)?;
        result.await.map_err(|_| AttachError::Stopped)?
    }

    /// Takes a pod's network away; succeeds when there is none. The kernel's own clean-up goes on behind it.
    pub async fn detach(&self, uid: &str) -> Result<(), DetachError> {
        let (answer, result) = oneshot::channel();
        let request = pods::Request::Detach(uid.to_owned(), answer);
        self.requests.send(request).await.map_err(|_| DetachError::Stopped)?;
        result.await.map_err(|_| DetachError::Stopped)?
    }

    /// UIDs of the pods that have a network, or a half-made one: for the caller to detach those it doesn't know.
    pub fn attached(&self) -> Vec<String> {
        self.table.borrow().keys().cloned().collect()
    }

    /// Changes whenever pods become able, or unable, to get a network.
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.clone()
    }

    /// Becomes true when the rules of services are in the kernel for the first time.
    pub fn programmed(&self) -> watch::Receiver<bool> {
        self.programmed.clone()
    }

    /// Stops following the cluster; leaves rules, routes and links as they are.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
        self.stop.send_replace(true);
        while self.finishing.join_next().await.is_some() {}
    }

    /// Removes all that netd ever made on this node, and nothing else.
    pub async fn remove(config: Config) -> Result<(), RemoveError> {
        remove::remove(&config).await
    }
}
