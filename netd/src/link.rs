//! The pod's link: namespace, veth pair, addresses, routes, neighbours.

use std::io;

/// What went wrong in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A netlink request was refused.
    #[error("netlink: {0}")]
    Netlink(#[from] rtnetlink::Error),
    /// A system call failed.
    #[error("system call")]
    System(#[from] io::Error),
}
