//! `agent leave`: pods move elsewhere if the master answers, then everything of ours goes: processes,
//! network, mounts, cgroups, unit, files. What others put beside it stays. Each step is said, and one
//! that fails doesn't keep the rest from being done.

mod drain;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use netd::Netd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixStream;

use crate::cgroup;
use crate::cli::{LeaveArgs, complain, say};
use crate::config::Config;
use crate::connection::chain;
use crate::join::service;
use crate::run::{monitor_config, netd_config};
use crate::runtime::{Runtime, RuntimeConfig};
use crate::volume;

/// What containers get to end by themselves when the pods could not move.
const STOP_GRACE: Duration = Duration::from_secs(10);
const MONITOR_DEADLINE: Duration = Duration::from_secs(10);
const CGROUP_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

pub(crate) fn leave(args: &LeaveArgs) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("leaving needs root: run it with sudo");
    }
    let config = Config::load(&args.config.config)?;
    say(&format!("Node {:?} leaves its cluster", config.node_name));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut problems = Vec::new();
    let mut note = |what: &str, result: anyhow::Result<()>| match result {
        Ok(()) => say(&format!("  {what}")),
        Err(error) => {
            complain(&format!("  {what}: {error:#}"));
            problems.push(what.to_owned());
        }
    };
    let master = runtime.block_on(drain::Master::find(&config, args.force));
    if let Some(master) = &master {
        let grace = Duration::from_secs(args.drain_seconds);
        note("the node is drained", runtime.block_on(master.drain(grace)));
    } else {
        say("  the master is not asked; its side stays until somebody deletes the Node");
    }
    note("the agent is stopped", service::stop(&config));
    let stopped = runtime.block_on(stop_containers(&config));
    let uids = stopped.as_ref().map(Clone::clone).unwrap_or_default();
    note("the containers and the monitor are stopped", stopped.map(drop));
    if let Some(master) = &master {
        note("the Node is deleted", runtime.block_on(master.delete_node()));
    }
    drop(master);
    let removed = runtime.block_on(Netd::remove(netd_config(&config, config.node_ip.clone())));
    note("the pod network is removed", removed.context("netd"));
    note("mounts and files are removed", remove_files(&config, &args.config.config, &uids));
    note("the cgroups are removed", remove_cgroups(&config));
    if problems.is_empty() {
        say("Left. Nothing of the agent is on this device but its program.");
        return Ok(());
    }
    bail!("left, but not everything could be removed: {}; run it again", problems.join("; "))
}

/// Ends every container, then the monitor. Gives the UIDs of their pods.
async fn stop_containers(config: &Config) -> anyhow::Result<Vec<String>> {
    let monitor = monitor_config(config);
    let socket = monitor.socket();
    let Ok(stream) = UnixStream::connect(&socket).await else { return Ok(Vec::new()) };
    let pid = stream.peer_cred()?.pid();
    drop(stream);
    let runtime = Runtime::connect_or_start(RuntimeConfig::new(monitor)).await?;
    let states = runtime.list().await?;
    for state in states.iter().filter(|state| state.exit.is_none()) {
        let target = monitor::protocol::SignalTarget::Init;
        if let Err(error) = runtime.signal(&state.id, libc::SIGTERM, target).await {
            tracing::debug!(id = %state.id, error = %chain(&error), "not told to end");
        }
    }
    let deadline = Instant::now() + STOP_GRACE;
    while Instant::now() < deadline && runtime.list().await?.iter().any(|s| s.exit.is_none()) {
        tokio::time::sleep(POLL).await;
    }
    for state in &states {
        runtime.delete(&state.id).await.with_context(|| format!("container {}", state.name))?;
    }
    drop(runtime);
    if let Some(pid) = pid {
        end_process(Pid::from_raw(pid)).await?;
    }
    let mut uids: Vec<String> = states.into_iter().map(|state| state.pod_uid).collect();
    uids.sort();
    uids.dedup();
    Ok(uids)
}

async fn end_process(pid: Pid) -> anyhow::Result<()> {
    kill(pid, Signal::SIGTERM).context("the monitor")?;
    let deadline = Instant::now() + MONITOR_DEADLINE;
    while is_alive(pid) {
        if Instant::now() > deadline {
            kill(pid, Signal::SIGKILL).context("the monitor")?;
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// A zombie that its parent has not asked for yet is as good as gone.
fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
    !matches!(state, None | Some("Z" | "X"))
}

/// Everything the agent wrote; folders that others use too go only when they are empty.
fn remove_files(config: &Config, config_path: &Path, uids: &[String]) -> anyhow::Result<()> {
    let mut known: Vec<String> = uids.to_vec();
    for dir in [config.pods_dir(), config.checkpoint_dir().join("pods")] {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        known.extend(entries.filter_map(|entry| entry.file_name().into_string().ok()));
    }
    for entry in std::fs::read_dir(&config.log_dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let own = name
            .to_str()
            .and_then(|name| name.rsplit('_').next())
            .is_some_and(|uid| known.iter().any(|known| known == uid));
        if own {
            volume::remove(&entry.path())?;
        }
    }
    for dir in [&config.run_dir, &config.data_dir] {
        volume::remove(dir)?;
    }
    remove_file(config_path)?;
    let parents = |path: &Path| path.parent().map(Path::to_owned);
    let shared: Vec<Option<PathBuf>> = vec![
        Some(config.log_dir.clone()),
        Some(config.manifests_dir.clone()),
        parents(config_path),
        parents(&config.data_dir),
    ];
    for dir in shared.into_iter().flatten() {
        remove_if_empty(&dir)?;
    }
    Ok(())
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}

fn remove_if_empty(dir: &Path) -> anyhow::Result<()> {
    use std::io::ErrorKind;
    match std::fs::remove_dir(dir) {
        Err(error)
            if !matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy
            ) =>
        {
            Err(error).with_context(|| dir.display().to_string())
        }
        _ => Ok(()),
    }
}

/// The kernel may take a moment to let go of the last process.
fn remove_cgroups(config: &Config) -> anyhow::Result<()> {
    let deadline = Instant::now() + CGROUP_DEADLINE;
    loop {
        match cgroup::remove(&config.cgroup_parent) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => std::thread::park_timeout(POLL),
        }
    }
}
