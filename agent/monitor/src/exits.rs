//! Ends of processes: reaping, recording, and removing what they leave in the kernel.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::cgroup;
use crate::clock;
use crate::container::Cleanup;
use crate::monitor::{Child, Monitor, failure};
use crate::protocol::{Event, Exit, FailureKind, Phase};

/// Code of a process whose end nobody saw, as kubelet reports it.
const LOST_CODE: i32 = 137;
/// Code of a container whose program could not be run, as containerd reports it.
const START_ERROR_CODE: i32 = 128;
const CLEANUP_MILLIS: u64 = 10;
const CLEANUP_SECONDS_MAX: u64 = 10;
/// Ends kept of processes that no report has named yet.
const EARLY_MAX: usize = 1024;

impl Monitor {
    /// Reaps whoever has ended: containers, execs, creators, and orphans.
    pub(crate) fn reap(&mut self) {
        loop {
            match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(status) => self.child_ended(status),
                Err(error) => {
                    tracing::error!(%error, "waitpid");
                    return;
                }
            }
        }
    }

    fn child_ended(&mut self, status: WaitStatus) {
        let Some(exit) = exit_of(status) else { return };
        let Some(pid) = status.pid().map(Pid::as_raw) else { return };
        match self.children.remove(&pid) {
            Some(Child::Creator(token)) => self.creator_exited(token),
            Some(Child::Exec(exec)) => {
                self.execs.remove(&exec);
                self.publish(Event::ExecExited { exec, exit });
            }
            Some(Child::Container(id)) => self.container_exited(&id, exit),
            None if !self.jobs.is_empty() && self.early.len() < EARLY_MAX => {
                self.early.insert(pid, status);
            }
            None => {}
        }
    }

    /// Ends that came before the report that names their process.
    pub(crate) fn settle_early(&mut self) {
        let known: Vec<i32> =
            self.early.keys().copied().filter(|pid| self.children.contains_key(pid)).collect();
        for pid in known {
            if let Some(status) = self.early.remove(&pid) {
                self.child_ended(status);
            }
        }
        if self.jobs.is_empty() {
            self.early.clear();
        }
    }

    /// The pidfd of an adopted container says that it has ended; who reaped it knows how.
    pub(crate) fn adopted_exited(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some((pidfd, token)) = container.pidfd.take() else { return };
        self.poller.remove(pidfd.as_fd(), token);
        self.container_exited(id, lost(clock::now()));
    }

    pub(crate) fn container_exited(&mut self, id: &str, mut exit: Exit) {
        // An answer to `Start` comes before the end of what was started.
        self.status_ready(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        exit.oom_killed = cgroup::oom_kills(&container.cgroup) > 0;
        cgroup::signal_all(&container.cgroup, libc::SIGKILL);
        if container.start_error.is_some() {
            exit.code = START_ERROR_CODE;
        }
        if let Some((fd, token)) = container.starting.take().and_then(|starting| starting.status) {
            self.poller.remove(&fd, token);
        }
        self.drain(id);
        let folder = self.config.container(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        container.state.phase = Phase::Exited;
        container.state.pid = 0;
        container.state.exit = Some(exit);
        container.stdin = None;
        container.log = None;
        container.save(&folder);
        let now = Instant::now();
        container.cleanup =
            Some(Cleanup { next: now, until: now + Duration::from_secs(CLEANUP_SECONDS_MAX) });
        let event = Event::Exited(Box::new(container.state.clone()));
        self.publish(event);
        self.cleanup(id, now);
    }

    /// Removes the cgroups of an exited container; again a little later while a process lingers.
    pub(crate) fn cleanup(&mut self, id: &str, now: Instant) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(cleanup) = container.cleanup.filter(|cleanup| cleanup.next <= now) else { return };
        match cgroup::remove(&container.cgroup) {
            Ok(()) => container.cleanup = None,
            Err(error) if now >= cleanup.until => {
                tracing::warn!(id, %error, "a container's cgroup can't be removed");
                container.cleanup = None;
                let message = format!("cgroup {}: {error}", container.cgroup.display());
                for reply in std::mem::take(&mut container.deleting) {
                    let failure = failure(FailureKind::System, &message);
                    self.reply(reply, Err(failure), Vec::new());
                }
                return;
            }
            Err(_) => {
                cgroup::signal_all(&container.cgroup, libc::SIGKILL);
                container.cleanup =
                    Some(Cleanup { next: now + Duration::from_millis(CLEANUP_MILLIS), ..cleanup });
                return;
            }
        }
        self.finish_delete(id);
    }
}

fn exit_of(status: WaitStatus) -> Option<Exit> {
    let (code, signal) = match status {
        WaitStatus::Exited(_, code) => (code, None),
        WaitStatus::Signaled(_, signal, _) => (128 + signal as i32, Some(signal as i32)),
        _ => return None,
    };
    Some(Exit { code, signal, oom_killed: false, lost: false, finished_at: clock::now() })
}

pub(crate) fn lost(finished_at: i64) -> Exit {
    Exit { code: LOST_CODE, signal: None, oom_killed: false, lost: true, finished_at }
}
