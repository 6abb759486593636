//! The lab's etcd members: the distribution's real etcd, each on a host of its own. Knows nothing of
//! who stores what in it.

use anyhow::{Context, Result};

use super::lifecycle::START_DEADLINE;
use super::{Host, Lab};
use crate::shell::{run, wait_for};

const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;

impl Lab {
    /// URLs at which the members answer clients.
    pub fn etcd_endpoints(&self) -> Result<Vec<String>> {
        self.etcds.iter().map(|name| Ok(url(&self.host(name)?, CLIENT_PORT))).collect()
    }

    /// Starts a member on a host that has power.
    pub(super) fn start_etcd(&self, name: &str) -> Result<()> {
        let host = self.host(name)?;
        let (client, peer) = (url(&host, CLIENT_PORT), url(&host, PEER_PORT));
        let members: Result<Vec<String>> = self
            .etcds
            .iter()
            .map(|other| Ok(format!("{other}={}", url(&self.host(other)?, PEER_PORT))))
            .collect();
        let mut command = host.command("etcd")?;
        command.args(["--name", name, "--data-dir"]).arg(host.dir.join("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &members?.join(","), "--logger", "zap"]);
        host.spawn(command, "etcd.log")
    }

    /// Waits until a member has a leader.
    pub(super) fn etcd_answers(&self, name: &str) -> Result<()> {
        let health = format!("{}/health", url(&self.host(name)?, CLIENT_PORT));
        wait_for(&format!("{name} to answer"), START_DEADLINE, || {
            run(&["curl", "-sS", "--fail", "--max-time", "5", &health]).map(drop)
        })
        .context("etcd (package etcd-server)")
    }
}

fn url(host: &Host, port: u16) -> String {
    format!("http://{}:{port}", host.ip)
}
