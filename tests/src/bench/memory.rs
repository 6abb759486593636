//! Memory of master, agent and monitor as the kernel counts it, idle and with pods.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Table;
use crate::lab::{Lab, MASTER};
use crate::shell::wait_for;

/// Pods of the loaded measurement.
const PODS: usize = 50;
/// Idle is who has had nothing to do for so long: longer than agent and monitor take to notice it themselves.
const REST: Duration = Duration::from_secs(75);
/// How long they may take to run.
const DEADLINE: Duration = Duration::from_secs(180);

/// Resident memory of a process, in kB.
#[derive(Debug, Clone, Copy, Default)]
struct Memory {
    resident: u64,
    anonymous: u64,
}

impl Memory {
    fn of(pids: &[u32]) -> Result<Memory> {
        let mut sum = Memory::default();
        for pid in pids {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let field = |name: &str| -> Result<u64> {
                let line =
                    status.lines().find(|line| line.starts_with(name)).context("no field")?;
                Ok(line.split_whitespace().nth(1).context("no figure")?.parse()?)
            };
            sum.resident += field("VmRSS:")?;
            sum.anonymous += field("RssAnon:")?;
        }
        Ok(sum)
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mebibytes =
            |kilobytes: u64| format!("{}.{}", kilobytes / 1024, kilobytes % 1024 * 10 / 1024);
        write!(f, "{} MB RSS, {} MB anonymous", mebibytes(self.resident), mebibytes(self.anonymous))
    }
}

fn master(lab: &Lab) -> Result<Memory> {
    Memory::of(&lab.host(MASTER)?.pids(&["controlplane run"])?)
}

fn node(lab: &Lab) -> Result<Memory> {
    let host = lab.host("node1")?;
    let mut pids = host.pids(&["agent run"])?;
    pids.extend(host.pids(&[" monitor --run-dir"])?);
    ensure!(pids.len() >= 2, "agent and monitor do not run");
    Memory::of(&pids)
}

/// Adds the figures of a lab of one node.
pub fn measure(lab: &Lab, table: &mut Table) -> Result<()> {
    thread::sleep(REST);
    table.row("master, idle", master(lab)?.to_string(), "< 48 MB RSS");
    let idle = node(lab)?;
    table.row("agent and monitor, idle", idle.to_string(), "< 20 MB RSS");
    let replicas = format!("--replicas={PODS}");
    lab.kubectl(&[
        "create",
        "deployment",
        "load",
        "--image=busybox:1.35",
        &replicas,
        "--",
        "sleep",
        "100000",
    ])?;
    wait_for("the pods to run", DEADLINE, || {
        let path = "jsonpath={.status.availableReplicas}";
        let ready = lab.kubectl(&["get", "deployment", "load", "-o", path])?;
        if ready == PODS.to_string() { Ok(()) } else { bail!("{ready} of {PODS}") }
    })?;
    table.row("master, 50 pods", master(lab)?.to_string(), "< 48 MB RSS");
    let loaded = node(lab)?;
    table.row("agent and monitor, 50 pods", loaded.to_string(), "");
    let more = loaded.resident.saturating_sub(idle.resident) / PODS as u64;
    table.row("agent and monitor, more per pod", format!("{more} kB RSS"), "< 300 kB");
    lab.kubectl(&["delete", "deployment", "load", "--cascade=foreground", "--timeout=120s"])?;
    Ok(())
}
