//! Owns the way from callers on async threads to the committer's own thread: commands in order, taken all at once. Bounded by
//! the permits that come with the commands.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[derive(Debug)]
struct Waiting<T> {
    items: VecDeque<T>,
    closed: bool,
    /// The consumer sleeps.
    asleep: bool,
}

/// A queue of one consumer thread.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    ready: Condvar,
}

/// What the consumer got.
#[derive(Debug)]
pub(crate) enum Taken<T> {
    /// In the order of their coming; never none.
    Items(VecDeque<T>),
    /// The deadline passed.
    Deadline,
    /// Closed, and nothing is left.
    Closed,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        let waiting = Waiting { items: VecDeque::new(), closed: false, asleep: false };
        Self { waiting: Mutex::new(waiting), ready: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the item back when the queue is closed.
    pub(crate) fn push(&self, item: T) -> Result<(), T> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(item);
        }
        waiting.items.push_back(item);
        let asleep = std::mem::take(&mut waiting.asleep);
        drop(waiting);
        if asleep {
            self.ready.notify_one();
        }
        Ok(())
    }

    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_one();
    }

    pub(crate) fn take(&self, deadline: Option<Instant>) -> Taken<T> {
        let mut waiting = self.lock();
        loop {
            if !waiting.items.is_empty() {
                return Taken::Items(std::mem::take(&mut waiting.items));
            }
            if waiting.closed {
                return Taken::Closed;
            }
            waiting.asleep = true;
            let Some(deadline) = deadline else {
                waiting = self.ready.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Taken::Deadline;
            }
            let waited = self.ready.wait_timeout(waiting, left);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
