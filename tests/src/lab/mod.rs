//! The lab: one master and N nodes on this machine, each a host of its own with a network, mount,
//! PID and UTS namespace, joined by a switch; a registry beside them. It runs the real binaries and
//! must leave nothing on the machine after `down`.
//!
//! ```text
//!  machine ──(flNNh)── switch namespace (bridge) ──┬── registry 198.18.NN.2
//!          198.18.NN.1                             ├── master   198.18.NN.10
//!                                                  └── node1…   198.18.NN.11…
//! ```

mod address;
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
    /// Names of the nodes, in order.
    pub nodes: Vec<String>,
    /// Configuration of registries that every node gets.
    pub registries: String,
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

    /// The host of that name: a node, `master` or `registry`.
    pub fn host(&self, name: &str) -> Result<Host> {
        let position = match name {
            REGISTRY => 2,
            MASTER => 10,
            node => {
                let Some(index) = self.nodes.iter().position(|known| known == node) else {
                    bail!("no host {node:?} in this lab; there are master and {:?}", self.nodes);
                };
                11 + u8::try_from(index)?
            }
        };
        Ok(Host::new(self, name, position))
    }

    /// The administrator's kubeconfig, usable from the machine itself.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
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
