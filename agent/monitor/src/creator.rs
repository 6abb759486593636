//! The short-lived child that calls libcontainer for one create or exec.
//!
//! libcontainer changes its caller's directory, oom score and dumpability, leaks descriptors when it
//! fails and runs much code after a raw clone; all that dies with this child. The container's
//! processes become the monitor's children (`as_sibling`). Owns the fork and the report; must not
//! touch the monitor's state.

#![allow(unsafe_code, reason = "fork and what a forked child must put right")]

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::unistd::{ForkResult, Pid, fork};
use rustix::pipe::PipeFlags;
use serde::{Deserialize, Serialize};

use crate::executor::{ExecRights, Program};
use crate::protocol::TerminalSize;
use crate::stdio::ContainerEnds;

/// A report is one write, which the kernel keeps whole up to this size (`PIPE_BUF`).
const REPORT_BYTES_MAX: usize = 4096;
const LOG_BYTES_MAX: u64 = 16 << 10;
const MESSAGE_BYTES_MAX: usize = 3000;

/// What the child tells the monitor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The new process, as the node sees it.
    Made(i32),
    /// Why there is none.
    Failed(String),
}

/// A running child.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) pid: Pid,
    report: OwnedFd,
    log: File,
}

impl Job {
    /// The descriptor that becomes readable with the report.
    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.report
    }

    /// Reads the report with one read: the waiting container holds the other end open, so there is
    /// no end of file. `None` when there is nothing yet.
    pub(crate) fn read(&mut self) -> Option<Result<i32, String>> {
        let mut buffer = [0; REPORT_BYTES_MAX];
        let count = match rustix::io::read(&self.report, &mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => return Some(Err(format!("creator's report: {error}"))),
        };
        match serde_json::from_slice(&buffer[..count]) {
            Ok(Report::Made(pid)) => Some(Ok(pid)),
            Ok(Report::Failed(message)) => Some(Err(self.with_cause(message))),
            Err(_) => Some(Err(self.with_cause("the creator died".to_owned()))),
        }
    }

    /// libcontainer drops the causes of errors on their way between its processes; they are in its
    /// log, the innermost first.
    fn with_cause(&mut self, message: String) -> String {
        let mut log = String::new();
        let read = self
            .log
            .seek(SeekFrom::Start(0))
            .and_then(|_| (&mut self.log).take(LOG_BYTES_MAX).read_to_string(&mut log));
        let first = log.lines().next().unwrap_or_default().trim();
        if read.is_err() || first.is_empty() || message.contains(crate::executor::PROGRAM) {
            return message;
        }
        format!("{message}: {first}")
    }
}

/// What to make.
pub(crate) enum Work {
    /// A container's first process from a bundle.
    Create { bundle: PathBuf },
    /// Another process in a container, from a `process.json`.
    Exec { process: PathBuf, rights: Option<Box<ExecRights>>, size: Option<TerminalSize> },
    /// A pod's init.
    Init(crate::init::PodInit),
}

/// Work and what it is given.
pub(crate) struct Order {
    pub(crate) id: String,
    pub(crate) root: PathBuf,
    pub(crate) work: Work,
    pub(crate) stdio: ContainerEnds,
    /// Set for a terminal; `stdio` is then unused.
    pub(crate) console: Option<PathBuf>,
    /// Told why the program could not be run; closed by running it.
    pub(crate) status: Option<OwnedFd>,
}

/// Forks a child that carries out the order.
pub(crate) fn spawn(order: Order) -> io::Result<Job> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let log = rustix::fs::memfd_create("creator-log", rustix::fs::MemfdFlags::CLOEXEC)?;
    // SAFETY: the monitor has one thread, so the child may run any code.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            Ok(Job { pid: child, report: reader, log: File::from(log) })
        }
        ForkResult::Child => {
            let report = match prepare_child(&order, &writer, &log) {
                Ok(()) => carry_out(order, &log),
                Err(error) => Report::Failed(format!("preparing the creator: {error}")),
            };
            let sent = send(&writer, report);
            // SAFETY: ends the child without running the parent's destructors.
            unsafe { libc::_exit(i32::from(sent.is_err())) }
        }
    }
}

fn send(writer: &OwnedFd, report: Report) -> io::Result<()> {
    let report = match report {
        Report::Failed(mut message) => {
            let mut end = message.len().min(MESSAGE_BYTES_MAX);
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
            Report::Failed(message)
        }
        made => made,
    };
    let text = serde_json::to_vec(&report)?;
    rustix::io::write(writer, &text)?;
    Ok(())
}

/// Signals as a fresh program has them, and no descriptor of the monitor's: the container would hold
/// them until it is started.
fn prepare_child(order: &Order, writer: &OwnedFd, log: &OwnedFd) -> io::Result<()> {
    SigSet::empty().thread_set_mask()?;
    for number in Signal::iterator() {
        if !matches!(number, Signal::SIGKILL | Signal::SIGSTOP) {
            // SAFETY: installs no handler.
            unsafe { signal(number, SigHandler::SigDfl) }?;
        }
    }
    let mut keep: Vec<RawFd> = vec![writer.as_raw_fd(), log.as_raw_fd()];
    let stdio = &order.stdio;
    keep.extend([&stdio.stdin, &stdio.stdout, &stdio.stderr].map(AsRawFd::as_raw_fd));
    keep.extend(order.status.as_ref().map(AsRawFd::as_raw_fd));
    keep.sort_unstable();
    let mut from: libc::c_uint = 3;
    for fd in keep {
        let fd = libc::c_uint::try_from(fd).unwrap_or(0);
        if fd > from {
            close_range(from, fd - 1)?;
        }
        from = from.max(fd + 1);
    }
    close_range(from, libc::c_uint::MAX)
}

fn close_range(from: libc::c_uint, to: libc::c_uint) -> io::Result<()> {
    // SAFETY: what is closed belongs to the parent's structures, which this child never drops.
    let result = unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn carry_out(order: Order, log: &OwnedFd) -> Report {
    let sink = match log.try_clone() {
        Ok(log) => Arc::new(File::from(log)),
        Err(error) => return Report::Failed(error.to_string()),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_writer(sink)
        .with_max_level(tracing::Level::ERROR)
        .without_time()
        .with_ansi(false)
        .with_target(false)
        .with_level(false)
        .finish();
    let result = tracing::subscriber::with_default(subscriber, || build(order));
    match result {
        Ok(pid) => Report::Made(pid),
        Err(message) => Report::Failed(message),
    }
}

fn build(order: Order) -> Result<i32, String> {
    let Order { id, root, work, stdio, console, status } = order;
    let program = |rights: Option<Box<ExecRights>>, size| Program {
        rights: rights.map(Rc::from),
        status: status.map(Rc::new),
        size,
    };
    let builder = ContainerBuilder::new(id, SyscallType::default())
        .with_root_path(root)
        .map_err(|error| chain(&error))?
        .with_stdin(stdio.stdin)
        .with_stdout(stdio.stdout)
        .with_stderr(stdio.stderr)
        .with_console_socket(console);
    match work {
        Work::Create { bundle } => {
            let container = builder
                .with_executor(program(None, None))
                .as_init(bundle)
                .with_systemd(false)
                .as_sibling(true)
                .build()
                .map_err(|error| chain(&error))?;
            container
                .pid()
                .map(|pid| pid.as_raw())
                .ok_or_else(|| "the container has no process".to_owned())
        }
        Work::Exec { process, rights, size } => builder
            .with_executor(program(rights, size))
            .as_tenant()
            .with_detach(true)
            .as_sibling(true)
            .with_process(Some(process))
            .build()
            .map(nix_pid)
            .map_err(|error| chain(&error)),
        Work::Init(init) => init.start(),
    }
}

fn nix_pid<P: ToString>(pid: P) -> i32 {
    pid.to_string().parse().unwrap_or(0)
}

/// An error and its sources, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
