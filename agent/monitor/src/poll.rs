//! What the loop waits for: epoll, and what each token stands for.
//!
//! Owns registration. A descriptor is taken out before it is closed: a duplicate elsewhere (a pty
//! master at the agent) would keep a closed one's registration alive.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use std::os::fd::OwnedFd;

use crate::log::Stream;

const EVENTS_MAX: usize = 64;

/// What a token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Listener,
    Signals,
    Connection,
    Job,
    Output(String, Stream),
    Attacher(String),
    /// The process of a container that is no child of this monitor.
    Adopted(String),
    /// Whether a started container's program runs.
    Status(String),
}

#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    sources: HashMap<u64, Source>,
    next: u64,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Poller> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Poller { epoll, sources: HashMap::new(), next: 1 })
    }

    pub(crate) fn add(
        &mut self,
        fd: impl AsFd,
        flags: EventFlags,
        source: Source,
    ) -> io::Result<u64> {
        let token = self.next;
        epoll::add(&self.epoll, fd, EventData::new_u64(token), flags)?;
        self.next += 1;
        self.sources.insert(token, source);
        Ok(token)
    }

    pub(crate) fn modify(&self, fd: impl AsFd, token: u64, flags: EventFlags) {
        if let Err(error) = epoll::modify(&self.epoll, fd, EventData::new_u64(token), flags) {
            tracing::error!(%error, token, "epoll");
        }
    }

    pub(crate) fn remove(&mut self, fd: impl AsFd, token: u64) {
        if self.sources.remove(&token).is_some()
            && let Err(error) = epoll::delete(&self.epoll, fd)
        {
            tracing::error!(%error, token, "epoll");
        }
    }

    pub(crate) fn source(&self, token: u64) -> Option<Source> {
        self.sources.get(&token).cloned()
    }

    /// Tokens that are ready.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<(u64, EventFlags)>> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut space = [MaybeUninit::<epoll::Event>::uninit(); EVENTS_MAX];
        match epoll::wait(&self.epoll, &mut space, timeout.as_ref()) {
            Ok((ready, _)) => {
                Ok(ready.iter().map(|event| (event.data.u64(), event.flags)).collect())
            }
            Err(rustix::io::Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}
