//! The parts of a running agent that pods' workers share. It is only held together here; each part
//! has its own room.

use std::net::IpAddr;
use std::sync::Arc;

use netd::Netd;

use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::connection::Link;
use crate::engine::Engine;
use crate::events::Recorder;
use crate::masters::Masters;
use crate::node::host::Host;
use crate::node::status::allocatable_memory;
use crate::objects::ObjectStore;
use crate::pod::field::NodeFacts;
use crate::services::Services;
use crate::volume::token::Tokens;

pub(crate) struct Context {
    pub(crate) config: Arc<Config>,
    pub(crate) client: kube::Client,
    pub(crate) link: Arc<Link>,
    pub(crate) masters: Arc<Masters>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) netd: Arc<Netd>,
    pub(crate) recorder: Recorder,
    pub(crate) objects: Arc<ObjectStore>,
    pub(crate) services: Services,
    pub(crate) tokens: Tokens,
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) host: Host,
    /// The addresses found at the start.
    pub(crate) addresses: Vec<IpAddr>,
}

impl Context {
    /// The node's addresses: as configured, or as the master is reached.
    pub(crate) fn host_ips(&self) -> Vec<IpAddr> {
        match self.link.local_ip() {
            Some(address) if self.config.node_ip.is_empty() => vec![address],
            _ => self.addresses.clone(),
        }
    }

    pub(crate) fn node_facts(&self) -> NodeFacts {
        NodeFacts {
            host_ips: self.host_ips(),
            cpu_milli: self.host.cpus * 1000,
            memory_bytes: allocatable_memory(&self.config, &self.host),
            ephemeral_storage_bytes: self.host.storage_bytes / 100 * 90,
        }
    }
}
