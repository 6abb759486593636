//! One container in the monitor's memory, and what of it is on disk.
//!
//! Owns the state file; the spec is written once and read when it is needed again.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::log::{Lines, LogFile, Stream};
use crate::protocol::{ContainerSpec, ContainerState, Phase};

/// Version of the files in a container's folder; a newer one is refused by name.
const FORMAT_VERSION: u32 = 1;
const STATE_FILE: &str = "state.json";
const SPEC_FILE: &str = "spec.json";

/// An agent's call that is answered later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) connection: u64,
    pub(crate) call: u64,
}

#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) state: ContainerState,
    pub(crate) cgroup: PathBuf,
    pub(crate) terminal: bool,
    pub(crate) stdin_once: bool,
    pub(crate) is_init: bool,
    /// Writes to stdin; a terminal's master is in its output.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) attachers: Vec<Attacher>,
    pub(crate) log: Option<LogFile>,
    /// Of a process that is no child of this monitor.
    pub(crate) pidfd: Option<(OwnedFd, u64)>,
    pub(crate) starting: Option<Starting>,
    /// Why its program could not be run.
    pub(crate) start_error: Option<String>,
    pub(crate) deleting: Vec<Reply>,
    pub(crate) cleanup: Option<Cleanup>,
}

/// One output: the reader of a FIFO, or a pty's master.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) fd: OwnedFd,
    pub(crate) token: u64,
    pub(crate) stream: Stream,
    pub(crate) lines: Lines,
    pub(crate) paused: bool,
}

/// Somebody who follows an output.
#[derive(Debug)]
pub(crate) struct Attacher {
    pub(crate) fd: OwnedFd,
    pub(crate) token: u64,
    pub(crate) stream: Stream,
    pub(crate) pending: Vec<u8>,
    /// When a reader that doesn't read is dropped.
    pub(crate) deadline: Option<Instant>,
}

/// A program is being started.
#[derive(Debug)]
pub(crate) struct Starting {
    pub(crate) status: Option<(OwnedFd, u64)>,
    pub(crate) reply: Option<Reply>,
}

/// Cgroups to be removed as soon as the last process is gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cleanup {
    pub(crate) next: Instant,
    pub(crate) until: Instant,
}

#[derive(Serialize, Deserialize)]
struct Stored<T> {
    version: u32,
    #[serde(flatten)]
    value: T,
}

impl Container {
    pub(crate) fn new(spec: &ContainerSpec, is_init: bool) -> Container {
        let state = ContainerState {
            id: spec.id.clone(),
            pod_uid: spec.pod_uid.clone(),
            name: spec.name.clone(),
            attempt: spec.attempt,
            phase: Phase::Created,
            pid: 0,
            pid_start_time: 0,
            created_at: clock::now(),
            started_at: None,
            exit: None,
            log_path: spec.log_path.clone(),
            annotations: spec.annotations.clone(),
        };
        Container::of(spec, state, is_init)
    }

    pub(crate) fn of(spec: &ContainerSpec, state: ContainerState, is_init: bool) -> Container {
        Container {
            state,
            cgroup: spec.cgroup.clone().into(),
            terminal: spec.terminal,
            stdin_once: spec.stdin_once,
            is_init,
            stdin: None,
            outputs: Vec::new(),
            attachers: Vec::new(),
            log: None,
            pidfd: None,
            starting: None,
            start_error: None,
            deleting: Vec::new(),
            cleanup: None,
        }
    }

    /// What the agent holds in case the monitor dies: a pty's master, or stdin's writer.
    pub(crate) fn to_hold(&self) -> io::Result<Vec<OwnedFd>> {
        let fd = if self.terminal {
            self.outputs.first().map(|output| &output.fd)
        } else {
            self.stdin.as_ref()
        };
        fd.map(OwnedFd::try_clone).into_iter().collect()
    }

    pub(crate) fn save(&self, folder: &Path) {
        if let Err(error) = write(&folder.join(STATE_FILE), &self.state) {
            tracing::error!(id = self.state.id, %error, "can't record a container's state");
        }
    }
}

pub(crate) fn save_spec(folder: &Path, spec: &ContainerSpec) -> io::Result<()> {
    write(&folder.join(SPEC_FILE), spec)
}

pub(crate) fn load_spec(folder: &Path) -> io::Result<ContainerSpec> {
    read(&folder.join(SPEC_FILE))
}

pub(crate) fn load_state(folder: &Path) -> io::Result<ContainerState> {
    read(&folder.join(STATE_FILE))
}

fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let text = serde_json::to_vec(&Stored { version: FORMAT_VERSION, value })?;
    let draft = path.with_extension("new");
    fs::write(&draft, text)?;
    fs::rename(draft, path)
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> io::Result<T> {
    let stored: Stored<T> = serde_json::from_slice(&fs::read(path)?)?;
    if stored.version > FORMAT_VERSION {
        let text = format!("{} has format {}", path.display(), stored.version);
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    Ok(stored.value)
}

/// Start time of a process in clock ticks since boot: field 22 of its stat, counted behind the name,
/// which may contain anything.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}
