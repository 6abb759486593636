//! Where rulesets meet the kernel: nftables, connection tracking, and the host's own filters.
//!
//! Blocking code: callers run it on a thread that may wait. Must not decide anything about services.

pub(crate) mod conntrack;
mod encode;
pub(crate) mod iptables;
pub(crate) mod native;
mod netfilter;
pub(crate) mod nft;
pub(crate) mod nft_dump;
mod nft_sys;
pub(crate) mod notifications;
