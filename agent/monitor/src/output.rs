//! Containers' output on its way to the log and to those who follow it.
//!
//! Somebody who follows and doesn't read holds the container up for a bounded time, then is dropped:
//! nobody loses lines silently and nobody stops a container for good.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use crate::clock;
use crate::container::{Attacher, Container};
use crate::log::Stream;
use crate::monitor::Monitor;

const READ_BYTES: usize = 64 << 10;
/// How long a follower may keep a container waiting.
const STALLED_SECONDS_MAX: u64 = 10;
/// Reads at a container's end; what a FIFO holds (64 KiB) fits.
const DRAIN_READS_MAX: usize = 64;

impl Monitor {
    pub(crate) fn output_ready(&mut self, id: &str, stream: Stream) {
        self.read_output(id, stream);
    }

    /// Reads once; whether there may be more.
    fn read_output(&mut self, id: &str, stream: Stream) -> bool {
        let Some(container) = self.containers.get_mut(id) else { return false };
        let Some(at) = container.outputs.iter().position(|output| output.stream == stream) else {
            return false;
        };
        let mut buffer = vec![0; READ_BYTES];
        match rustix::io::read(&container.outputs[at].fd, &mut buffer) {
            Ok(count) if count > 0 => {
                self.take_output(id, at, &buffer[..count]);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            // The last writer is gone; a pty says so by EIO.
            Ok(_) | Err(_) => {
                self.end_output(id, at);
                false
            }
        }
    }

    fn take_output(&mut self, id: &str, at: usize, chunk: &[u8]) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let mut lines = Vec::with_capacity(chunk.len() + 256);
        let output = &mut container.outputs[at];
        let stream = output.stream;
        output.lines.push(chunk, &clock::rfc3339(clock::now()), &mut lines);
        if let Some(log) = &mut container.log {
            log.write(&lines);
        }
        for attacher in &mut container.attachers {
            if attacher.stream == stream {
                attacher.pending.extend_from_slice(chunk);
            }
        }
        self.flush_attachers(id);
    }

    fn end_output(&mut self, id: &str, at: usize) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let mut output = container.outputs.remove(at);
        self.poller.remove(&output.fd, output.token);
        let mut lines = Vec::new();
        output.lines.finish(&clock::rfc3339(clock::now()), &mut lines);
        if let Some(log) = &mut container.log {
            log.write(&lines);
        }
        self.flush_attachers(id);
    }

    /// Reads what the ended container has left, and ends its outputs.
    pub(crate) fn drain(&mut self, id: &str) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            for _ in 0..DRAIN_READS_MAX {
                if !self.read_output(id, stream) {
                    break;
                }
            }
            let at = self.containers.get(id).and_then(|container| {
                container.outputs.iter().position(|output| output.stream == stream)
            });
            if let Some(at) = at {
                self.end_output(id, at);
            }
        }
    }

    pub(crate) fn attacher_ready(&mut self, id: &str, token: u64, flags: EventFlags) {
        if flags.contains(EventFlags::ERR) {
            self.drop_attachers(id, |attacher| attacher.token == token);
        }
        self.flush_attachers(id);
    }

    pub(crate) fn drop_stalled(&mut self, id: &str, now: Instant) {
        self.drop_attachers(id, |attacher| attacher.deadline.is_some_and(|at| at <= now));
        self.flush_attachers(id);
    }

    fn drop_attachers(&mut self, id: &str, goes: impl Fn(&Attacher) -> bool) {
        let Some(container) = self.containers.get_mut(id) else { return };
        for attacher in &container.attachers {
            if goes(attacher) {
                self.poller.remove(&attacher.fd, attacher.token);
            }
        }
        container.attachers.retain(|attacher| !goes(attacher));
    }

    /// Writes what followers take, and reads a container's output only while none has to wait.
    fn flush_attachers(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let deadline = Instant::now() + Duration::from_secs(STALLED_SECONDS_MAX);
        let mut gone = Vec::new();
        for attacher in &mut container.attachers {
            let had = attacher.pending.len();
            if flush(attacher).is_err() {
                gone.push(attacher.token);
                continue;
            }
            let waits = !attacher.pending.is_empty();
            if !waits {
                attacher.deadline = None;
            } else if attacher.deadline.is_none() || attacher.pending.len() < had {
                attacher.deadline = Some(deadline);
            }
            let flags = if waits { EventFlags::OUT } else { EventFlags::empty() };
            self.poller.modify(&attacher.fd, attacher.token, flags);
            let is_over = !container.outputs.iter().any(|output| output.stream == attacher.stream);
            if is_over && !waits {
                gone.push(attacher.token);
            }
        }
        self.drop_attachers(id, |attacher| gone.contains(&attacher.token));
        self.pause_or_resume(id);
    }

    fn pause_or_resume(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Container { outputs, attachers, .. } = container;
        for output in outputs {
            let waits = attachers
                .iter()
                .any(|attacher| attacher.stream == output.stream && !attacher.pending.is_empty());
            if waits != output.paused {
                output.paused = waits;
                let flags = if waits { EventFlags::empty() } else { EventFlags::IN };
                self.poller.modify(&output.fd, output.token, flags);
            }
        }
    }
}

fn flush(attacher: &mut Attacher) -> io::Result<()> {
    while !attacher.pending.is_empty() {
        match rustix::io::write(&attacher.fd, &attacher.pending) {
            Ok(count) => {
                attacher.pending.drain(..count);
            }
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    attacher.pending.shrink_to(0);
    Ok(())
}
