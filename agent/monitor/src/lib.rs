//! The single-threaded process that calls libcontainer, holds stdio and reaps.
//!
//! libcontainer changes its caller's directory and runs ordinary code after a raw clone, so no
//! process with threads may call it. The agent asks this one over a Unix socket ([`protocol`],
//! [`wire`]); it forks a short-lived creator per container ([`creator`]), whose processes become its
//! own children, and lives on while the agent is restarted or upgraded. If it dies, containers live:
//! their streams are FIFOs, and the next monitor adopts them.

pub mod pages;
pub mod protocol;
pub mod wire;

mod adopt;
mod cgroup;
mod clock;
mod config;
mod connection;
mod container;
mod creator;
mod executor;
mod exits;
mod init;
mod jobs;
mod log;
mod monitor;
mod output;
mod poll;
mod requests;
mod signal;
mod spec;
mod stdio;
mod validate;

use std::fs::{self, DirBuilder, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::fs::FlockOperation;

pub use config::{ArgumentError, LOG_BYTES_MAX, LOG_FILES_MAX, MonitorConfig};

/// The kernel kills almost anybody else first.
const OOM_SCORE_ADJUST: &str = "-999";
/// Two FIFOs and a little per container; also what containers inherit, whose programs may walk the
/// whole range.
const DESCRIPTORS_MAX: u64 = 1 << 20;

/// Runs a monitor until SIGTERM. Must be called before the process has a second thread.
///
/// # Errors
/// When another monitor has the run directory, or the kernel refuses what a monitor needs.
pub fn run(config: MonitorConfig) -> anyhow::Result<()> {
    for folder in [config.run_dir.clone(), config.containers(), config.runtime_root()] {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("folder {}", folder.display()))?;
    }
    let mut handover = adopt::Handover::take(&config);
    let lock = match handover.take_lock() {
        Some(lock) => lock,
        None => lock(&config)?,
    };
    settle(&config)?;
    let listener = handover.take_listener();
    let mut monitor = monitor::Monitor::new(config, lock, listener).context("setting up")?;
    monitor.adopt(handover).context("adopting containers")?;
    tracing::info!(pid = std::process::id(), "monitor runs");
    monitor.run().context("waiting")
}

fn lock(config: &MonitorConfig) -> anyhow::Result<OwnedFd> {
    let lock = File::create(config.run_dir.join("lock")).context("lock")?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .context("another monitor has this run directory")?;
    Ok(lock.into())
}

/// Puts the process where a monitor belongs: a session and cgroup of its own, heir of orphans.
fn settle(config: &MonitorConfig) -> anyhow::Result<()> {
    match nix::unistd::setsid() {
        // A session's first process already.
        Ok(_) | Err(nix::Error::EPERM) => {}
        Err(error) => return Err(error).context("session"),
    }
    nix::unistd::chdir("/").context("chdir")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    nix::sys::prctl::set_child_subreaper(true).context("subreaper")?;
    nix::sys::prctl::set_name(c"flotilla-mon").context("name")?;
    if let Some(cgroup) = &config.cgroup {
        cgroup::join(cgroup).context("own cgroup")?;
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJUST) {
        tracing::warn!(%error, "the OOM killer may choose the monitor");
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("descriptors")?;
    let limit = hard.min(DESCRIPTORS_MAX);
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit).context("descriptors")
}
