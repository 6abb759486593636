//! Containers of a monitor that is gone: found again by their folders, followed by pidfds.
//!
//! The same happens after an upgrade in place, where they still are this process's children and
//! nothing is lost: the lock, the listening socket and the terminals stay open across the exec, so
//! that no second monitor can come up and an agent that connects meanwhile only waits.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use rustix::event::epoll::EventFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::config::MonitorConfig;
use crate::container::{self, Container, Reply};
use crate::exits;
use crate::log::{LogFile, Stream};
use crate::monitor::{Child, Handled, Monitor, failure};
use crate::poll::Source;
use crate::protocol::{Failure, FailureKind, Phase};
use crate::requests::system;
use crate::{clock, stdio};

/// What one program leaves the next in the same process.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Handover {
    pid: u32,
    next_exec: u64,
    execs: BTreeMap<u64, i32>,
    /// Pty masters by container, open across the exec.
    masters: BTreeMap<String, RawFd>,
    lock: Option<RawFd>,
    listener: Option<RawFd>,
}

impl Handover {
    /// What the program before this one left in this process; nothing after an ordinary start.
    pub(crate) fn take(config: &MonitorConfig) -> Handover {
        let path = path_of(config);
        let Ok(text) = fs::read(&path) else { return Handover::default() };
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(%error, "a handover stays");
        }
        match serde_json::from_slice::<Handover>(&text) {
            Ok(handover) if handover.pid == std::process::id() => handover,
            Ok(_) => Handover::default(),
            Err(error) => {
                tracing::error!(%error, "unreadable handover");
                Handover::default()
            }
        }
    }

    pub(crate) fn take_lock(&mut self) -> Option<OwnedFd> {
        self.lock.take().map(take_fd)
    }

    pub(crate) fn take_listener(&mut self) -> Option<OwnedFd> {
        self.listener.take().map(take_fd)
    }
}

fn path_of(config: &MonitorConfig) -> PathBuf {
    config.run_dir.join("handover.json")
}

/// Whether a descriptor stays open in the next program.
fn keep_open(fd: impl AsFd, keep: bool) -> nix::Result<RawFd> {
    let flags = if keep { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(fd.as_fd(), FcntlArg::F_SETFD(flags))?;
    Ok(fd.as_fd().as_raw_fd())
}

impl Monitor {
    /// Takes over whatever is in the run directory.
    pub(crate) fn adopt(&mut self, mut handover: Handover) -> io::Result<()> {
        for (exec, pid) in std::mem::take(&mut handover.execs) {
            self.execs.insert(exec, pid);
            self.children.insert(pid, Child::Exec(exec));
        }
        self.next_exec = self.next_exec.max(handover.next_exec);
        for entry in fs::read_dir(self.config.containers())? {
            let folder = entry?.path();
            let master = folder
                .file_name()
                .and_then(|name| handover.masters.remove(&*name.to_string_lossy()))
                .map(take_fd);
            if let Err(error) = self.adopt_one(&folder, master) {
                tracing::error!(folder = %folder.display(), %error, "can't adopt a container");
            }
        }
        self.reap();
        Ok(())
    }

    fn adopt_one(&mut self, folder: &Path, master: Option<OwnedFd>) -> io::Result<()> {
        let spec = container::load_spec(folder)?;
        let state = match container::load_state(folder) {
            Ok(state) => state,
            // The monitor died while a creator worked: nobody knows this container.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                crate::cgroup::signal_all(Path::new(&spec.cgroup), libc::SIGKILL);
                let runtime = self.config.runtime_root().join(&spec.id);
                if runtime.exists() {
                    fs::remove_dir_all(runtime)?;
                }
                return fs::remove_dir_all(folder);
            }
            Err(error) => return Err(error),
        };
        let id = state.id.clone();
        let phase = state.phase;
        let is_alive = phase != Phase::Exited
            && container::start_time(state.pid).is_some_and(|time| time == state.pid_start_time);
        let pid = state.pid;
        let is_init = spec.args.is_empty();
        let mut container = Container::of(&spec, state, is_init);
        if phase == Phase::Exited {
            self.containers.insert(id, container);
            return Ok(());
        }
        if let Some(path) = &spec.log_path {
            container.log = Some(LogFile::open(path, self.log_bounds())?);
        }
        let ends =
            if spec.terminal || is_init { Default::default() } else { stdio::reopen(folder) };
        container.stdin = ends.stdin;
        self.containers.insert(id.clone(), container);
        for (fd, stream) in
            [(ends.stdout.or(master), Stream::Stdout), (ends.stderr, Stream::Stderr)]
        {
            if let Some(fd) = fd {
                self.add_output(&id, fd, stream)?;
            }
        }
        if is_alive { self.watch(&id, pid) } else { self.container_lost(&id) }
    }

    fn watch(&mut self, id: &str, pid: i32) -> io::Result<()> {
        if is_own_child(pid) {
            self.children.insert(pid, Child::Container(id.to_owned()));
            return Ok(());
        }
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => {
                let source = Source::Adopted(id.to_owned());
                let token = self.poller.add(&pidfd, EventFlags::IN, source)?;
                if let Some(container) = self.containers.get_mut(id) {
                    container.pidfd = Some((pidfd, token));
                }
                Ok(())
            }
            Err(rustix::io::Errno::SRCH) => self.container_lost(id),
            Err(error) => Err(error.into()),
        }
    }

    fn container_lost(&mut self, id: &str) -> io::Result<()> {
        self.container_exited(id, exits::lost(clock::now()));
        Ok(())
    }

    /// Becomes another program, keeping children and pty masters; FIFOs are opened again.
    pub(crate) fn upgrade(&mut self, executable: &Path, _: Reply) -> Result<Handled, Failure> {
        let is_busy = !self.jobs.is_empty()
            || self.containers.values().any(|container| {
                container.starting.as_ref().is_some_and(|starting| starting.reply.is_some())
                    || !container.deleting.is_empty()
            });
        if is_busy {
            return Err(failure(FailureKind::State, "containers are being made; try again"));
        }
        let text = self.hand_over(true).map_err(system)?;
        fs::write(path_of(&self.config), text).map_err(system)?;
        let mut arguments = vec![c"agent".to_owned(), c"monitor".to_owned()];
        for argument in self.config.to_arguments() {
            arguments.push(CString::new(argument.as_encoded_bytes()).map_err(system)?);
        }
        let program = CString::new(executable.as_os_str().as_encoded_bytes()).map_err(system)?;
        match nix::unistd::execv(&program, &arguments) {
            Ok(never) => match never {},
            Err(error) => {
                fs::remove_file(path_of(&self.config)).map_err(system)?;
                self.hand_over(false).map_err(system)?;
                Err(failure(FailureKind::System, format!("{}: {error}", executable.display())))
            }
        }
    }

    /// Keeps open what the next program needs, and says so; or takes that back.
    fn hand_over(&self, keep: bool) -> io::Result<Vec<u8>> {
        let mut masters = BTreeMap::new();
        for (id, container) in &self.containers {
            if let Some(output) = container.outputs.first().filter(|_| container.terminal) {
                masters.insert(id.clone(), keep_open(&output.fd, keep)?);
            }
        }
        let handover = Handover {
            pid: std::process::id(),
            next_exec: self.next_exec,
            execs: self.execs.iter().map(|(exec, pid)| (*exec, *pid)).collect(),
            masters,
            lock: Some(keep_open(&self.lock, keep)?),
            listener: Some(keep_open(&self.listener, keep)?),
        };
        Ok(serde_json::to_vec(&handover)?)
    }
}

#[allow(unsafe_code, reason = "a descriptor that came through exec has no owner yet")]
fn take_fd(fd: RawFd) -> OwnedFd {
    // SAFETY: the program before this one left it open for us, and named it once.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    if let Err(error) = keep_open(&fd, false) {
        tracing::error!(%error, "a descriptor stays open in containers");
    }
    fd
}

fn is_own_child(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
    parent.and_then(|parent| parent.parse().ok()) == Some(std::process::id())
}
