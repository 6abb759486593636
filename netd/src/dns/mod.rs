//! The node's own resolver: the cluster's names from the state at hand, everything else from upstream.
//!
//! Works with the master away. Nothing binds port 53: the cluster DNS address is a VIP that leads here.

mod forward;
mod message;
pub(crate) mod server;
mod zone;
