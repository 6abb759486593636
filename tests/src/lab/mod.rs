//! The lab: a master (or several, with etcd members) and N nodes on this machine, each a host of its
//! own with a network, mount, PID and UTS namespace, joined by a switch; a registry beside them. It
//! runs the real binaries and must leave nothing on the machine after `down`.
//!
//! ```text
//!  machine ──(flNNh)── switch namespace (bridge) ──┬── registry 198.18.NN.2
//!          198.18.NN.1                             ├── etcd1…   198.18.NN.3…
//!                                                  ├── master   198.18.NN.10
//!                                                  ├── node1…   198.18.NN.11…
//!                                                  └── master2… 198.18.NN.242…
//! ```

mod address;
mod etcd;
mod host;
pub mod image;
mod lifecycle;
pub mod registry;
pub mod snapshot;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

pub use address::Addresses;
pub use host::{Host, hold, remove_cgroups};
pub use lifecycle::{UpOptions, describe};

/// Name of the host that runs the control plane.
pub const MASTER: &str = "master";
/// Where the second master is, less its number.
const FURTHER_MASTERS: u8 = 240;
/// How many masters a lab may have.
const MASTERS_MAX: u8 = 9;
/// Where the first etcd member is, less its number.
const ETCDS: u8 = 2;
/// How many etcd members a lab may have.
const ETCDS_MAX: u8 = 7;
/// Name of the host that runs the registry.
pub const REGISTRY: &str = "registry";

/// A lab on disk: everything that a later verb needs to find it again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lab {
    /// The lab's folder.
    pub dir: PathBuf,
    /// Where the binaries under test are.
    pub bin_dir: PathBuf,
    /// Its number on this machine, 1 to 250: subnet, interface and namespace names follow from it.
    pub id: u8,
    /// Names of the masters, in order; the first is [`MASTER`].
    pub masters: Vec<String>,
    /// Names of the etcd members, in order; none where the master's own log is the datastore.
    pub etcds: Vec<String>,
    /// Names of the nodes, in order.
    pub nodes: Vec<String>,
    /// Configuration of registries that every node gets.
    pub registries: String,
}

/// What runs on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The control plane.
    Master,
    /// The agent, and the pods.
    Node,
    /// A member of the etcd cluster.
    Etcd,
    /// The registry of images.
    Registry,
}

impl Role {
    /// Words of its process's command line.
    fn process(self) -> &'static str {
        match self {
            Role::Master => "controlplane run",
            Role::Node => "agent run",
            Role::Etcd => "etcd --name",
            Role::Registry => "docker-registry serve",
        }
    }

    /// Name of its log in the host's folder.
    #[must_use]
    pub fn log(self) -> &'static str {
        match self {
            Role::Master => "controlplane.log",
            Role::Node => "agent.log",
            Role::Etcd => "etcd.log",
            Role::Registry => "registry.log",
        }
    }
}

impl Lab {
    /// The lab that was brought up in `dir`.
    pub fn open(dir: &Path) -> Result<Lab> {
        let file = dir.join("lab.json");
        let text = fs::read(&file).with_context(|| {
            format!("no lab in {}; bring one up with `scripts/lab up`", dir.display())
        })?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", file.display()))
    }

    fn save(&self) -> Result<()> {
        let file = self.dir.join("lab.json");
        fs::write(&file, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Addresses and names that follow from the lab's number.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        Addresses { id: self.id }
    }

    /// The host of that name: a node, a master, an etcd member or `registry`.
    pub fn host(&self, name: &str) -> Result<Host> {
        let index = |of: &[String]| {
            of.iter().position(|known| known == name).and_then(|index| u8::try_from(index).ok())
        };
        let position = match (index(&self.nodes), index(&self.masters), index(&self.etcds)) {
            _ if name == REGISTRY => 2,
            (Some(index), ..) => 11 + index,
            (_, Some(0), _) => 10,
            (_, Some(index), _) => FURTHER_MASTERS + index + 1,
            (.., Some(index)) => ETCDS + index + 1,
            _ => bail!("no host {name:?} in this lab; there are {}", self.hosts().join(", ")),
        };
        Ok(Host::new(self, name, position))
    }

    /// Names of all hosts.
    #[must_use]
    pub fn hosts(&self) -> Vec<&str> {
        let registry = [REGISTRY].into_iter();
        let others = self.etcds.iter().chain(&self.masters).chain(&self.nodes);
        registry.chain(others.map(String::as_str)).collect()
    }

    /// What runs on the host of that name.
    pub fn role(&self, name: &str) -> Role {
        let is_in = |of: &[String]| of.iter().any(|known| known == name);
        match name {
            REGISTRY => Role::Registry,
            _ if is_in(&self.masters) => Role::Master,
            _ if is_in(&self.etcds) => Role::Etcd,
            _ => Role::Node,
        }
    }

    /// The administrator's kubeconfig, usable from the machine itself; it leads to the first master.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// The same for one of several masters.
    #[must_use]
    pub fn kubeconfig_of(&self, master: &str) -> PathBuf {
        self.dir.join(master).join("kubeconfig")
    }

    /// URL of the API server.
    #[must_use]
    pub fn server(&self) -> String {
        format!("https://{}:6443", self.addresses().ip(10))
    }

    fn binary(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
}
