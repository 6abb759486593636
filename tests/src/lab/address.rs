//! What follows from a lab's number: subnet, interface, namespace and cgroup names. Pure.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Result, bail};

/// Names and addresses of one lab; the subnet is in the range kept for benchmarks of networks.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The lab's number.
    pub id: u8,
}

impl Addresses {
    /// Address of the host at `position` in the lab's subnet.
    #[must_use]
    pub fn ip(self, position: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.id, position)
    }

    /// Hardware address of the host at `position`.
    #[must_use]
    pub fn mac(self, position: u8) -> String {
        format!("02:00:c6:12:{:02x}:{position:02x}", self.id)
    }

    /// Name of the network namespace of a host.
    #[must_use]
    pub fn netns(self, host: &str) -> String {
        format!("fl{}-{host}", self.id)
    }

    /// Name of the network namespace that holds the bridge.
    #[must_use]
    pub fn switch(self) -> String {
        self.netns("switch")
    }

    /// Interface of the machine itself on the switch.
    #[must_use]
    pub fn machine_link(self) -> String {
        format!("fl{}h", self.id)
    }

    /// Port of the switch that the host at `position` is plugged into.
    #[must_use]
    pub fn port(self, position: u8) -> String {
        format!("fl{}p{position}", self.id)
    }

    /// Cgroup below which everything of a host runs, in every hierarchy.
    #[must_use]
    pub fn cgroup(self, host: &str) -> String {
        format!("/flotilla-lab-{}/{host}", self.id)
    }

    /// The first number that no lab on this machine uses.
    pub fn first_free(netns_dir: &Path) -> Result<Addresses> {
        let taken: Vec<String> = fs::read_dir(netns_dir)
            .map(|entries| {
                entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
            })
            .unwrap_or_default();
        for id in 1..=250 {
            let addresses = Addresses { id };
            let prefix = addresses.netns("");
            if !taken.iter().any(|name| name.starts_with(&prefix)) {
                return Ok(addresses);
            }
        }
        bail!("250 labs are up on this machine; bring some down with `scripts/lab down --dir DIR`")
    }
}
