//! The monitor's only client: containers of this node, asked for over its socket.
//!
//! Owns the connection to the monitor, starts it when it is missing and hands back what it held for
//! a dead one. It must not know pods, nor touch containers in any other way.

mod link;
mod session;
mod spawn;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use monitor::MonitorConfig;
use monitor::protocol::{
    Answer, ContainerSpec, ContainerState, ExecSpec, Exit, Failure, FailureKind, Namespaces,
    Request, SignalTarget, TerminalSize,
};
use monitor::wire::WireError;
use tokio::sync::{broadcast, mpsc, oneshot};

use link::Outgoing;
pub(crate) use session::{AttachSession, ExecSession};
#[allow(unused_imports, reason = "names of what sessions give")]
pub(crate) use session::{Input, Output};

/// Events kept for a listener that is slow; it then hears of the gap and lists.
const EVENTS_MAX: usize = 256;
/// Calls waiting for the link.
const CALLS_MAX: usize = 64;
/// A call takes no longer: the monitor gives a creator two minutes.
const CALL_SECONDS_MAX: u64 = 130;

/// How the monitor is found and started.
#[derive(Clone, Debug)]
pub(crate) struct RuntimeConfig {
    /// What the monitor is started with.
    pub(crate) monitor: MonitorConfig,
    /// The agent's program: `/proc/self/exe`, whose file may have been replaced meanwhile.
    pub(crate) executable: PathBuf,
    /// The hidden subcommand, before the monitor's own arguments.
    pub(crate) subcommand: Vec<OsString>,
}

impl RuntimeConfig {
    /// The agent's own program with its hidden subcommand.
    pub(crate) fn new(monitor: MonitorConfig) -> RuntimeConfig {
        let executable = PathBuf::from("/proc/self/exe");
        RuntimeConfig { monitor, executable, subcommand: vec!["monitor".into()] }
    }
}

/// Why a container operation failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RuntimeError {
    /// The monitor answered that it can't.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// The connection was lost before the answer; whether it was done is seen by listing.
    #[error("connection to the monitor was lost")]
    Disconnected,
    /// No answer in time.
    #[error("the monitor did not answer within {CALL_SECONDS_MAX} s")]
    TimedOut,
    /// The monitor does not come up.
    #[error("monitor can't be started")]
    Start(#[source] std::io::Error),
    /// The monitor is of a newer release than this agent.
    #[error("the monitor speaks protocol {0}, this agent an older one")]
    Newer(u32),
    /// Malformed frames.
    #[error("monitor protocol")]
    Wire(#[from] WireError),
    /// Pipes and sockets of ours.
    #[error("local descriptor")]
    Local(#[source] std::io::Error),
    /// An answer of another kind than the question.
    #[error("unexpected answer of the monitor")]
    Unexpected,
}

impl RuntimeError {
    /// The class of the monitor's refusal.
    pub(crate) fn kind(&self) -> Option<FailureKind> {
        match self {
            RuntimeError::Refused(failure) => Some(failure.kind),
            _ => None,
        }
    }
}

/// What happens to containers.
#[derive(Clone, Debug)]
pub(crate) enum RuntimeEvent {
    /// A container's process ended; may be repeated.
    Exited(Box<ContainerState>),
    /// The connection is back: events may have been missed, list again.
    Reconnected,
}

/// PID 1 of a pod whose containers share a PID namespace.
#[derive(Clone, Debug)]
pub(crate) struct InitSpec {
    pub(crate) id: String,
    pub(crate) pod_uid: String,
    pub(crate) cgroup: String,
    pub(crate) namespaces: Namespaces,
}

/// What an attach wants.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AttachRequest {
    pub(crate) stdin: bool,
}

/// The node's containers.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    calls: mpsc::Sender<Outgoing>,
    events: broadcast::Sender<RuntimeEvent>,
}

impl Runtime {
    /// Connects to the monitor, starting it when none answers. The connection is kept up by a task
    /// that ends with the last clone.
    pub(crate) async fn connect_or_start(config: RuntimeConfig) -> Result<Runtime, RuntimeError> {
        let (calls, outgoing) = mpsc::channel(CALLS_MAX);
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let link = link::Link::connect(config, events.clone()).await?;
        tokio::spawn(link.run(outgoing));
        Ok(Runtime { calls, events })
    }

    /// Exits and reconnections from now on.
    pub(crate) fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }

    /// Makes a container; its process waits for [`Runtime::start`].
    pub(crate) async fn create(&self, spec: ContainerSpec) -> Result<ContainerState, RuntimeError> {
        let (call, answer) = Outgoing::new(Request::Create(Box::new(spec)));
        self.state(call, answer).await
    }

    /// Makes a pod's init.
    pub(crate) async fn create_init(&self, spec: InitSpec) -> Result<ContainerState, RuntimeError> {
        let InitSpec { id, pod_uid, cgroup, namespaces } = spec;
        let (call, answer) = Outgoing::new(Request::CreateInit { id, pod_uid, cgroup, namespaces });
        self.state(call, answer).await
    }

    /// Runs a created container's program.
    pub(crate) async fn start(&self, id: &str) -> Result<ContainerState, RuntimeError> {
        let (call, answer) = Outgoing::new(Request::Start { id: id.to_owned() });
        self.state(call, answer).await
    }

    /// Signals a container's first process, or all.
    pub(crate) async fn signal(
        &self,
        id: &str,
        signal: i32,
        target: SignalTarget,
    ) -> Result<(), RuntimeError> {
        self.done(Request::Signal { id: id.to_owned(), signal, target }).await
    }

    /// Removes a container, killing it first if need be. One that doesn't exist is removed.
    pub(crate) async fn delete(&self, id: &str) -> Result<(), RuntimeError> {
        self.done(Request::Delete { id: id.to_owned() }).await
    }

    /// All containers.
    pub(crate) async fn list(&self) -> Result<Vec<ContainerState>, RuntimeError> {
        let (call, answer) = Outgoing::new(Request::List);
        match self.call(call, answer).await? {
            (Answer::List(states), _) => Ok(states),
            _ => Err(RuntimeError::Unexpected),
        }
    }

    /// Runs another process in a container.
    pub(crate) async fn exec(&self, spec: ExecSpec) -> Result<ExecSession, RuntimeError> {
        let terminal = spec.terminal;
        let pipes = if terminal { None } else { Some(session::Pipes::new(&spec)?) };
        let (mut call, answer) = Outgoing::new(Request::Exec(Box::new(spec)));
        let (mut ours, theirs) = pipes.map(session::Pipes::split).unwrap_or_default();
        call.fds = theirs;
        let (exited, exit) = oneshot::channel::<Exit>();
        call.exited = Some(exited);
        match self.call(call, answer).await? {
            (Answer::Exec { exec, .. }, mut fds) => {
                let master = if terminal { fds.pop() } else { None };
                if let Some(master) = &master {
                    ours = session::terminal_ends(master, true).map_err(RuntimeError::Local)?;
                }
                Ok(ExecSession::new(self.clone(), (exec, exit), ours, master))
            }
            _ => Err(RuntimeError::Unexpected),
        }
    }

    /// Signals an exec'd process.
    pub(crate) async fn signal_exec(&self, exec: u64, signal: i32) -> Result<(), RuntimeError> {
        self.done(Request::SignalExec { exec, signal }).await
    }

    /// Follows a container's output from now on.
    pub(crate) async fn attach(
        &self,
        id: &str,
        wanted: AttachRequest,
    ) -> Result<AttachSession, RuntimeError> {
        let request = Request::Attach { id: id.to_owned(), stdin: wanted.stdin };
        let (call, answer) = Outgoing::new(request);
        let (_, fds) = self.call(call, answer).await?;
        session::attach(self.clone(), id, wanted, fds).map_err(RuntimeError::Local)
    }

    /// The attached client closed stdin for good; matters to `stdinOnce` alone.
    pub(crate) async fn close_stdin(&self, id: &str) -> Result<(), RuntimeError> {
        self.done(Request::CloseStdin { id: id.to_owned() }).await
    }

    /// Sets the size of a container's terminal.
    pub(crate) async fn resize(&self, id: &str, size: TerminalSize) -> Result<(), RuntimeError> {
        self.done(Request::Resize { id: id.to_owned(), size }).await
    }

    /// Opens a log again that was moved away.
    pub(crate) async fn reopen_log(&self, id: &str) -> Result<(), RuntimeError> {
        self.done(Request::ReopenLog { id: id.to_owned() }).await
    }

    /// Puts another program in the monitor's place, containers untouched. The connection is lost
    /// and comes back.
    pub(crate) async fn upgrade(&self, executable: PathBuf) -> Result<(), RuntimeError> {
        match self.done(Request::Upgrade { executable }).await {
            Err(RuntimeError::Disconnected) => Ok(()),
            other => other,
        }
    }

    async fn state(
        &self,
        call: Outgoing,
        answer: link::Answered,
    ) -> Result<ContainerState, RuntimeError> {
        match self.call(call, answer).await? {
            (Answer::State(state), _) => Ok(*state),
            _ => Err(RuntimeError::Unexpected),
        }
    }

    async fn done(&self, request: Request) -> Result<(), RuntimeError> {
        let (call, answer) = Outgoing::new(request);
        self.call(call, answer).await.map(|_| ())
    }

    async fn call(
        &self,
        call: Outgoing,
        answer: link::Answered,
    ) -> Result<(Answer, Vec<OwnedFd>), RuntimeError> {
        let limit = Duration::from_secs(CALL_SECONDS_MAX);
        let answered = async {
            self.calls.send(call).await.map_err(|_| RuntimeError::Disconnected)?;
            answer.await.map_err(|_| RuntimeError::Disconnected)?
        };
        tokio::time::timeout(limit, answered).await.map_err(|_| RuntimeError::TimedOut)?
    }
}

fn borrow(fds: &[OwnedFd]) -> Vec<std::os::fd::BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}
