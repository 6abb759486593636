//! What an idle cluster writes: all pods Ready, the last event over, nobody asks for anything.

use std::time::Duration;

use anyhow::{Result, bail};

use super::Table;
use crate::idle::{self, Activity};
use crate::lab::Lab;
use crate::shell::wait_for;

/// How long events live in the measured cluster, so that their time is over soon.
pub const EVENT_TTL: &str = "60s";
/// How long the pods may take to run.
const DEADLINE: Duration = Duration::from_secs(300);

/// Adds the figures of a lab of which `pods` are asked.
pub fn measure(lab: &Lab, pods: usize, window: Duration, table: &mut Table) -> Result<()> {
    let replicas = format!("--replicas={pods}");
    let image = "--image=busybox:1.35";
    lab.kubectl(&["create", "deployment", "idle", image, &replicas, "--", "sleep", "1000000"])?;
    wait_for("the pods to run", DEADLINE, || {
        let path = "jsonpath={.status.availableReplicas}";
        let ready = lab.kubectl(&["get", "deployment", "idle", "-o", path])?;
        if ready == pods.to_string() { Ok(()) } else { bail!("{ready} of {pods}") }
    })?;
    let change = idle::watch(lab, window)?;
    let within = format!("{} nodes, {pods} pods, {} s", lab.nodes.len(), window.as_secs());
    for (role, Activity { processes, written, wakeups, busy }) in &change.roles {
        let what = format!("{role} ({processes}), idle ({within})");
        table.row(&what, format!("{written} bytes written"), "0");
        let figure = format!("{wakeups:.2} wake-ups/s, {:.3} % of a processor", busy * 100.0);
        table.row(&format!("{role}, each"), figure, "");
    }
    table.row("files changed", change.files.len().to_string(), "0");
    for path in change.files.iter().take(20) {
        table.row("changed", path.display().to_string(), "");
    }
    Ok(())
}
