//! PID 1 of a pod whose containers share one PID namespace: reaps, and ends on SIGTERM.
//!
//! Owns the namespace's first process; it opens nothing and runs no program, so a pod's pause
//! container costs a few private pages of the monitor's.

#![allow(unsafe_code, reason = "raw clone into a PID namespace")]

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::cgroup;
use crate::protocol::{NamespaceMode, Namespaces};

/// What a pod's init joins.
pub(crate) struct PodInit {
    pub(crate) cgroup: PathBuf,
    pub(crate) namespaces: Namespaces,
}

impl PodInit {
    /// Makes it a child of the monitor's; answers its pid as the node sees it.
    pub(crate) fn start(self) -> Result<i32, String> {
        cgroup::join(&self.cgroup).map_err(|error| format!("cgroup: {error}"))?;
        let said = |what: &str, error: nix::Error| format!("{what} namespace: {error}");
        for (name, mode, flag) in [
            ("network", &self.namespaces.network, CloneFlags::CLONE_NEWNET),
            ("ipc", &self.namespaces.ipc, CloneFlags::CLONE_NEWIPC),
            ("uts", &self.namespaces.uts, CloneFlags::CLONE_NEWUTS),
        ] {
            match mode {
                NamespaceMode::Host => {}
                NamespaceMode::Private => unshare(flag).map_err(|error| said(name, error))?,
                NamespaceMode::Path(path) => {
                    let file = File::open(path).map_err(|error| format!("{name}: {error}"))?;
                    setns(file.as_fd(), flag).map_err(|error| said(name, error))?;
                }
            }
        }
        unshare(CloneFlags::CLONE_NEWPID).map_err(|error| said("pid", error))?;
        let flags = libc::CLONE_PARENT | libc::SIGCHLD;
        // SAFETY: without a stack of its own the child goes on here like after fork; this process
        // has one thread.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        match i32::try_from(pid) {
            Ok(0) => run(),
            Ok(pid) if pid > 0 => Ok(pid),
            _ => Err(format!("clone: {}", std::io::Error::last_os_error())),
        }
    }
}

fn run() -> ! {
    let code = serve().map_or(1, |()| 0);
    // SAFETY: ends the process without running destructors that belong to the monitor.
    unsafe { libc::_exit(code) }
}

fn serve() -> nix::Result<()> {
    nix::unistd::setsid()?;
    nix::unistd::chdir("/")?;
    nix::sys::prctl::set_name(c"pod-init")?;
    // SAFETY: all descriptors belong to structures that this process never drops.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) };
    if closed != 0 {
        return Err(nix::Error::last());
    }
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        signals.add(signal);
    }
    signals.thread_block()?;
    loop {
        match signals.wait()? {
            Signal::SIGCHLD => reap()?,
            _ => return Ok(()),
        }
    }
}

fn reap() -> nix::Result<()> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
}
