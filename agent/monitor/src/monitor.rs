//! The loop: waits for descriptors and deadlines, and hands each to the file that owns it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::WaitStatus;
use rustix::event::epoll::EventFlags;

use crate::config::MonitorConfig;
use crate::connection::{Connection, Ended};
use crate::container::{Container, Reply};
use crate::jobs::Pending;
use crate::poll::{Poller, Source};
use crate::protocol::{Answer, Event, Failure, FailureKind, Message};
use crate::stdio;

/// A child and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Child {
    Container(String),
    Exec(u64),
    Creator(u64),
}

#[derive(Debug)]
pub(crate) struct Monitor {
    pub(crate) config: MonitorConfig,
    pub(crate) poller: Poller,
    signals: SignalFd,
    pub(crate) listener: UnixListener,
    /// Held for as long as this monitor has the run directory.
    pub(crate) lock: OwnedFd,
    pub(crate) connections: HashMap<u64, Connection>,
    pub(crate) containers: BTreeMap<String, Container>,
    /// Creators at work, by the token of their report.
    pub(crate) jobs: HashMap<u64, Pending>,
    pub(crate) execs: HashMap<u64, i32>,
    pub(crate) next_exec: u64,
    pub(crate) children: HashMap<i32, Child>,
    /// Exits of processes that no report has named yet; kept only while a creator works.
    pub(crate) early: HashMap<i32, WaitStatus>,
    stopping: bool,
    /// When the program's pages are let go of, unless there is more to do until then.
    idle_at: Option<Instant>,
}

/// After so long without anything to do, a monitor is idle.
const IDLE_AFTER: Duration = Duration::from_secs(20);

/// What a request comes to.
pub(crate) enum Handled {
    Now(Answer, Vec<OwnedFd>),
    /// The answer follows.
    Later,
}

pub(crate) fn failure(kind: FailureKind, message: impl ToString) -> Failure {
    Failure { kind, message: message.to_string() }
}

impl Monitor {
    /// A monitor with its run directory locked; `listener` is what an upgrade left open.
    pub(crate) fn new(
        config: MonitorConfig,
        lock: OwnedFd,
        listener: Option<OwnedFd>,
    ) -> io::Result<Monitor> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let listener = match listener {
            Some(listener) => listener.into(),
            None => stdio::listen(&config.socket())?,
        };
        listener.set_nonblocking(true)?;
        let mut poller = Poller::new()?;
        poller.add(&signals, EventFlags::IN, Source::Signals)?;
        poller.add(&listener, EventFlags::IN, Source::Listener)?;
        Ok(Monitor {
            config,
            poller,
            signals,
            listener,
            lock,
            connections: HashMap::new(),
            containers: BTreeMap::new(),
            jobs: HashMap::new(),
            execs: HashMap::new(),
            next_exec: crate::clock::now().unsigned_abs(),
            children: HashMap::new(),
            early: HashMap::new(),
            stopping: false,
            idle_at: Some(Instant::now() + IDLE_AFTER),
        })
    }

    /// Runs until SIGTERM. Containers go on without it.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        while !self.stopping {
            let timeout =
                self.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
            let ready = self.poller.wait(timeout.map(round_up))?;
            if !ready.is_empty() {
                self.idle_at = Some(Instant::now() + IDLE_AFTER);
            }
            for (token, flags) in ready {
                if let Some(source) = self.poller.source(token) {
                    self.ready(token, flags, source);
                }
            }
            self.deadlines(Instant::now());
        }
        Ok(())
    }

    fn ready(&mut self, token: u64, flags: EventFlags, source: Source) {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.signalled(),
            Source::Connection => self.connection_ready(token, flags),
            Source::Job => self.job_ready(token),
            Source::Output(id, stream) => self.output_ready(&id, stream),
            Source::Attacher(id) => self.attacher_ready(&id, token, flags),
            Source::Adopted(id) => self.adopted_exited(&id),
            Source::Status(id) => self.status_ready(&id),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let jobs = self.jobs.values().map(|job| job.deadline);
        let containers = self.containers.values().flat_map(|container| {
            let stalled = container.attachers.iter().filter_map(|attacher| attacher.deadline);
            stalled.chain(container.cleanup.map(|cleanup| cleanup.next))
        });
        jobs.chain(containers).chain(self.idle_at).min()
    }

    fn deadlines(&mut self, now: Instant) {
        if self.idle_at.is_some_and(|at| at <= now) {
            self.idle_at = None;
            crate::pages::release_program();
        }
        let late: Vec<u64> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.deadline <= now)
            .map(|(token, _)| *token)
            .collect();
        for token in late {
            self.job_timed_out(token);
        }
        let ids: Vec<String> = self
            .containers
            .iter()
            .filter(|(_, container)| {
                container.cleanup.is_some_and(|cleanup| cleanup.next <= now)
                    || container
                        .attachers
                        .iter()
                        .any(|attacher| attacher.deadline.is_some_and(|at| at <= now))
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in ids {
            self.drop_stalled(&id, now);
            self.cleanup(&id, now);
        }
    }

    fn accept(&mut self) {
        let (stream, _) = match self.listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "can't accept an agent");
                return;
            }
        };
        let connection = match Connection::new(stream) {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "can't greet an agent");
                return;
            }
        };
        match self.poller.add(connection.socket(), EventFlags::IN, Source::Connection) {
            Ok(token) => {
                self.connections.insert(token, connection);
                self.arm(token);
            }
            Err(error) => tracing::warn!(%error, "epoll"),
        }
    }

    fn connection_ready(&mut self, token: u64, flags: EventFlags) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if flags.contains(EventFlags::OUT)
            && let Err(error) = connection.flush()
        {
            return self.disconnect(token, &error);
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            match connection.read() {
                Ok(calls) => {
                    for received in calls {
                        let reply = Reply { connection: token, call: received.id };
                        let handled = received
                            .request
                            .map_err(|error| failure(FailureKind::Unsupported, error))
                            .and_then(|request| self.handle(request, received.fds, reply));
                        match handled {
                            Ok(Handled::Now(answer, fds)) => self.reply(reply, Ok(answer), fds),
                            Ok(Handled::Later) => {}
                            Err(failure) => self.reply(reply, Err(failure), Vec::new()),
                        }
                    }
                }
                Err(error) => return self.disconnect(token, &error),
            }
        }
        self.arm(token);
    }

    fn arm(&self, token: u64) {
        if let Some(connection) = self.connections.get(&token) {
            let mut flags = EventFlags::IN;
            flags.set(EventFlags::OUT, connection.wants_to_write());
            self.poller.modify(connection.socket(), token, flags);
        }
    }

    fn disconnect(&mut self, token: u64, reason: &Ended) {
        if let Some(connection) = self.connections.remove(&token) {
            self.poller.remove(connection.socket(), token);
            if !matches!(reason, Ended::Closed) {
                tracing::warn!(%reason, "an agent's connection ended");
            }
        }
    }

    /// Answers a call; an agent that is gone doesn't matter.
    pub(crate) fn reply(
        &mut self,
        reply: Reply,
        result: Result<Answer, Failure>,
        fds: Vec<OwnedFd>,
    ) {
        let count = u32::try_from(fds.len()).unwrap_or(0);
        let message = Message::Answer { id: reply.call, result, fds: count };
        self.send(reply.connection, &message, fds);
    }

    pub(crate) fn publish(&mut self, event: Event) {
        let subscribed: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.subscribed)
            .map(|(token, _)| *token)
            .collect();
        let message = Message::Event(event);
        for token in subscribed {
            self.send(token, &message, Vec::new());
        }
    }

    pub(crate) fn send(&mut self, token: u64, message: &Message, fds: Vec<OwnedFd>) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        match connection.send(message, fds) {
            Ok(()) => self.arm(token),
            Err(error) => self.disconnect(token, &error),
        }
    }

    fn signalled(&mut self) {
        loop {
            match self.signals.read_signal() {
                Ok(Some(info)) if info.ssi_signo == Signal::SIGCHLD as u32 => self.reap(),
                Ok(Some(info)) if info.ssi_signo == Signal::SIGHUP as u32 => {}
                Ok(Some(_)) => self.stopping = true,
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(%error, "signalfd");
                    return;
                }
            }
        }
    }
}

/// Epoll counts milliseconds where `epoll_pwait2` is missing: never wake up too early.
fn round_up(timeout: Duration) -> Duration {
    timeout + Duration::from_millis(1)
}
