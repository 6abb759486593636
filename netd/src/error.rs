//! The error families of netd's public operations: one enum each, a variant per thing that was being done.

use std::io;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::link::LinkError;

/// Why netd could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error("network configuration: {0}")]
    Config(String),
    /// A folder or file of ours could not be used.
    #[error("{}", path.display())]
    State {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused something that nothing works without.
    #[error("{what}")]
    Kernel {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: LinkError,
    },
}

/// Why a pod has no network.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Netd was stopped.
    #[error("the pod network is stopped")]
    Stopped,
    /// The node has no pod CIDR yet: the controller assigns it shortly after the node registered.
    #[error("node {node:?} has no spec.podCIDR yet")]
    NoPodCidr {
        /// Name of the node.
        node: String,
    },
    /// Each address of the node's range is in use.
    #[error("no free address in {cidr}: {used} pods have one")]
    Exhausted {
        /// The node's range.
        cidr: IpNet,
        /// Addresses in use.
        used: usize,
    },
    /// A UID that can't be a file name.
    #[error("pod UID {0:?} is not usable as a file name")]
    Uid(String),
    /// A file of ours could not be used.
    #[error("{}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("pod network: {what}")]
    Kernel {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: LinkError,
    },
}

/// Why a pod's network could not be taken down; the caller tries again.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// Netd was stopped.
    #[error("the pod network is stopped")]
    Stopped,
    /// A UID that can't be a file name.
    #[error("pod UID {0:?} is not usable as a file name")]
    Uid(String),
    /// A file or mount of ours could not be removed.
    #[error("{}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("pod network: {what}")]
    Kernel {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: LinkError,
    },
}

/// What could not be removed; everything else was.
#[derive(Debug, thiserror::Error)]
#[error("{}", left.join("; "))]
pub struct RemoveError {
    /// One text per thing left behind, with its cause.
    pub left: Vec<String>,
}
