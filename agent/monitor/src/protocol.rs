//! What the agent and the monitor say to each other: containers, requests, answers, events.
//!
//! Owns the values and their version; it must not touch sockets (that is `wire`) nor the kernel.
//! Both sides may be of different releases: a field is only ever added, with a default.
//!
//! A connection is a Unix stream. Every frame is a little-endian `u32` length and that many bytes
//! of JSON. Each side's first frame is a [`Hello`]; then the agent sends [`Call`]s and the monitor
//! [`Message`]s. File descriptors ride as `SCM_RIGHTS` on a frame, whose `fds` counts them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Version of the protocol; a side that reads a newer one refuses it by name.
pub const PROTOCOL_VERSION: u32 = 1;
/// Longest frame accepted. A container's spec with its environment is a few kilobytes; the answer
/// to `List` is about 1 KiB per container.
pub const FRAME_BYTES_MAX: usize = 4 << 20;
/// Most file descriptors on one frame.
pub const FRAME_FDS_MAX: usize = 8;

/// First frame of either side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub version: u32,
    /// Release of the sender's program, for logs.
    #[serde(default)]
    pub release: String,
    /// Process id of the sender.
    #[serde(default)]
    pub pid: i32,
}

/// A request, to be answered by the [`Message::Answer`] with the same `id`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Chosen by the agent, unique on its connection.
    pub id: u64,
    /// What is asked.
    pub request: Request,
    /// How many file descriptors ride on this frame.
    #[serde(default)]
    pub fds: u32,
}

/// A frame of the monitor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// Answers a call.
    Answer {
        /// The call's id.
        id: u64,
        /// What came of it.
        result: Result<Answer, Failure>,
        /// How many file descriptors ride on this frame.
        #[serde(default)]
        fds: u32,
    },
    /// Sent unasked, after `Subscribe`.
    Event(Event),
}

/// What the agent can ask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// From now on send events; containers that have exited already are repeated first.
    Subscribe,
    /// Make a container up to the point where its process waits to be started. Answered by
    /// [`Answer::State`]; with a terminal or stdin the answer carries a duplicate of its pty
    /// master or stdin writer, for the agent to hold in case the monitor dies.
    Create(Box<ContainerSpec>),
    /// Let a created container's process run.
    Start {
        /// Container.
        id: String,
    },
    /// Send a signal.
    Signal {
        /// Container.
        id: String,
        /// Signal number.
        signal: i32,
        /// Whom it reaches.
        target: SignalTarget,
    },
    /// Remove an exited (or never started) container: cgroups, state, FIFOs; not its log.
    Delete {
        /// Container.
        id: String,
    },
    /// All containers.
    List,
    /// Run another process in a running container. The frame carries the process's stdin, stdout
    /// and stderr in that order, those that are asked for; with a terminal it carries none and the
    /// answer brings the pty master.
    Exec(Box<ExecSpec>),
    /// Signal an exec'd process.
    SignalExec {
        /// Exec.
        exec: u64,
        /// Signal number.
        signal: i32,
    },
    /// Follow a container's output from now on. The answer carries: stdin writer or pty master (if
    /// asked and there is one), stdout reader, stderr reader (none with a terminal).
    Attach {
        /// Container.
        id: String,
        /// Whether its stdin is wanted too.
        stdin: bool,
    },
    /// The attached client has closed stdin: a `stdin_once` container sees end of file.
    CloseStdin {
        /// Container.
        id: String,
    },
    /// Set the size of a container's terminal.
    Resize {
        /// Container.
        id: String,
        /// Columns and rows.
        size: TerminalSize,
    },
    /// Close and open the log file again, after somebody else moved it.
    ReopenLog {
        /// Container.
        id: String,
    },
    /// The agent hands a pty master or stdin writer back that it held for a dead monitor.
    Restore {
        /// Container.
        id: String,
    },
    /// Duplicates of all pty masters and stdin writers, one container per call.
    Hold {
        /// Container.
        id: String,
    },
    /// An init process of ours that owns a PID namespace, for pods that share one. It has no
    /// files, no log and reaps; it is a container in `List`, started at once.
    CreateInit {
        /// Its id.
        id: String,
        /// Pod it belongs to.
        pod_uid: String,
        /// Cgroup it lives in, absolute below each hierarchy's mount point.
        cgroup: String,
        /// Network, IPC and UTS namespaces that it joins.
        namespaces: Namespaces,
    },
    /// Replace the monitor's program by this file, children and files kept.
    Upgrade {
        /// New program.
        executable: PathBuf,
    },
}

/// What the monitor answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done, nothing to say.
    Done,
    /// State of one container.
    State(Box<ContainerState>),
    /// All containers.
    List(Vec<ContainerState>),
    /// An exec'd process runs.
    Exec {
        /// Its number, unique for the monitor's life.
        exec: u64,
        /// Its process id as the node sees it.
        pid: i32,
    },
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What code branches on.
    pub kind: FailureKind,
    /// What people read, with its cause.
    pub message: String,
}

/// Class of a [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// No such container or exec.
    NotFound,
    /// The id is taken.
    Exists,
    /// The container is not in a state that allows this.
    State,
    /// The container can't be made as specified, now or later (kubelet's `CreateContainerError`,
    /// `RunContainerError`).
    Invalid,
    /// The program named in `args` does not exist or can't be executed.
    Executable,
    /// The system refused; may work later.
    System,
    /// Unknown request: the monitor is older than the agent.
    Unsupported,
}

/// What the monitor tells unasked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A container's process ended (repeated after each `Subscribe` until it is deleted).
    Exited(Box<ContainerState>),
    /// An exec'd process ended.
    ExecExited {
        /// Exec.
        exec: u64,
        /// How.
        exit: Exit,
    },
    /// The container's stdin is closed for good: drop what was held.
    StdinClosed {
        /// Container.
        id: String,
    },
}

/// Whom a signal reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalTarget {
    /// The container's first process.
    Init,
    /// Every process in its cgroup.
    All,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code as Kubernetes tells it: 128 + signal for a signal, 137 when lost.
    pub code: i32,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// The kernel's OOM killer struck in the container's cgroup.
    #[serde(default)]
    pub oom_killed: bool,
    /// The exit happened while no monitor lived, so that code and time are guesses
    /// (`ContainerStatusUnknown`).
    #[serde(default)]
    pub lost: bool,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
}

/// Where a container is in its life: `Created -> Running -> Exited`, or `Created -> Exited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its process waits to be started.
    Created,
    /// Its process runs.
    Running,
    /// Its process ended.
    Exited,
}

/// What the monitor knows of a container; also the file it keeps per container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Id.
    pub id: String,
    /// Pod it belongs to.
    pub pod_uid: String,
    /// Container's name in the pod.
    pub name: String,
    /// How many predecessors of that name it had.
    pub attempt: u32,
    /// Where it is in its life.
    pub phase: Phase,
    /// First process, as the node sees it; 0 after its exit.
    pub pid: i32,
    /// That process's start time in clock ticks since boot: tells it from a later one of its number.
    #[serde(default)]
    pub pid_start_time: u64,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Nanoseconds since the epoch.
    #[serde(default)]
    pub started_at: Option<i64>,
    /// How it ended.
    #[serde(default)]
    pub exit: Option<Exit>,
    /// Its log file.
    #[serde(default)]
    pub log_path: Option<PathBuf>,
    /// Free text of the agent, from the spec: image, spec hash, termination message path, ...
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// Terminal size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A process to run beside a container's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Container.
    pub id: String,
    /// Program and arguments. Environment, user, directory and rights are the container's.
    pub args: Vec<String>,
    /// Whether it gets a pty. Then `stdin`, `stdout`, `stderr` don't matter.
    #[serde(default)]
    pub terminal: bool,
    /// First size of the pty.
    #[serde(default)]
    pub size: Option<TerminalSize>,
    /// Whether a stdin rides on the frame.
    #[serde(default)]
    pub stdin: bool,
    /// Whether a stdout rides on the frame.
    #[serde(default)]
    pub stdout: bool,
    /// Whether a stderr rides on the frame.
    #[serde(default)]
    pub stderr: bool,
}

/// Everything needed to make a container. Defaults are those of Kubernetes: see each field.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    /// Unique on the node: `[A-Za-z0-9_.-]`, at most 64 characters.
    pub id: String,
    /// Pod it belongs to.
    pub pod_uid: String,
    /// Container's name in the pod.
    pub name: String,
    /// How many predecessors of that name it had.
    pub attempt: u32,
    /// Free text for the agent; comes back in [`ContainerState`].
    pub annotations: BTreeMap<String, String>,

    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value`; a missing `PATH` is filled in.
    pub env: Vec<String>,
    /// Working directory; empty means `/`. It is made when missing.
    pub cwd: String,
    /// Who runs it.
    pub user: User,
    /// Whether it gets a pty.
    pub terminal: bool,
    /// Whether it has a stdin that stays open.
    pub stdin: bool,
    /// Whether stdin is closed when the first attached client goes.
    pub stdin_once: bool,
    /// Log in the CRI format.
    pub log_path: Option<PathBuf>,

    /// Mounted root file system (an overlay that the agent made).
    pub rootfs: PathBuf,
    /// Whether the root is mounted read-only.
    pub read_only_rootfs: bool,
    /// Mounts beyond, or instead of, the usual ones (`/proc`, `/dev`, `/dev/pts`, `/dev/shm`,
    /// `/dev/mqueue`, `/sys`, `/sys/fs/cgroup`): one with the same destination replaces it.
    pub mounts: Vec<Mount>,
    /// Host devices beyond the usual ones.
    pub devices: Vec<Device>,
    /// `None`: the usual ones.
    pub masked_paths: Option<Vec<String>>,
    /// `None`: the usual ones.
    pub readonly_paths: Option<Vec<String>>,

    /// Namespaces joined.
    pub namespaces: Namespaces,
    /// Hostname; only when `namespaces.uts` is [`NamespaceMode::Private`].
    pub hostname: Option<String>,
    /// Namespaced kernel settings.
    pub sysctls: BTreeMap<String, String>,
    /// Absolute path below each hierarchy's mount point, e.g. `/flotilla/pods/<uid>/<id>`.
    pub cgroup: String,
    /// Limits.
    pub resources: Resources,
    /// `RLIMIT_*`.
    pub rlimits: Vec<Rlimit>,

    /// Changes to the default capability set.
    pub capabilities: Capabilities,
    /// Whether `execve` can't gain rights (`allowPrivilegeEscalation: false`).
    pub no_new_privileges: bool,
    /// All capabilities, all devices, nothing masked, no seccomp.
    pub privileged: bool,
    /// System call filter.
    pub seccomp: Seccomp,
}

/// Numeric user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
}

/// A mount inside the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path in the container.
    pub destination: String,
    /// What is mounted.
    pub kind: MountKind,
    /// mount(8) options beyond the kind's own: `ro`, `nosuid`, `size=64k`, `rshared`, ...
    #[serde(default)]
    pub options: Vec<String>,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    /// A file or directory of the node, with what is mounted below it.
    Bind {
        /// Absolute path on the node.
        source: PathBuf,
    },
    /// Memory.
    Tmpfs,
    /// `/proc`.
    Proc,
    /// `/sys`.
    Sysfs,
    /// POSIX message queues.
    Mqueue,
    /// Pseudo terminals.
    Devpts,
    /// The container's own cgroups, read-only unless `rw` is an option.
    Cgroup,
}

/// Namespaces; the mount namespace is always the container's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespaces {
    /// Network.
    pub network: NamespaceMode,
    /// System V IPC, POSIX queues.
    pub ipc: NamespaceMode,
    /// Hostname.
    pub uts: NamespaceMode,
    /// Process ids. `Path` is the PID namespace of the pod's init.
    pub pid: NamespaceMode,
}

/// Where a namespace comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceMode {
    /// A new one.
    #[default]
    Private,
    /// The node's.
    Host,
    /// The one bound at this path.
    Path(PathBuf),
}

/// Limits; `None` leaves the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// cgroup v1 CPU shares (2 to 262144); converted to a weight on v2.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU per period.
    pub cpu_quota: Option<i64>,
    /// Period in microseconds.
    pub cpu_period: Option<u64>,
    /// `cpuset.cpus`.
    pub cpuset_cpus: Option<String>,
    /// Bytes.
    pub memory_limit: Option<i64>,
    /// Bytes of memory and swap together; `None` with a memory limit means no swap.
    pub memory_swap: Option<i64>,
    /// Processes and threads.
    pub pids_limit: Option<i64>,
    /// -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// Further cgroup v2 files (`memory.min`, ...).
    pub unified: BTreeMap<String, String>,
}

/// A resource limit of the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE`, ...
    pub kind: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// A device of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Path on the node.
    pub host_path: PathBuf,
    /// Path in the container.
    pub container_path: PathBuf,
    /// Some of `r`, `w`, `m`.
    pub permissions: String,
}

/// As in a pod's `securityContext`: `ALL`, or names with or without `CAP_`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Added to the default set.
    pub add: Vec<String>,
    /// Taken from the default set.
    pub drop: Vec<String>,
}

/// System call filter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    /// None.
    #[default]
    Unconfined,
    /// The built-in profile.
    RuntimeDefault,
    /// A profile in the runtime specification's JSON (or Docker's, whose fields are a superset).
    Localhost(String),
}
