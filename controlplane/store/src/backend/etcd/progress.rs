//! Owns how far the feed is, and who waits for it to be somewhere. Must not know why.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::revision::Revision;

#[derive(Debug)]
struct State {
    reached: Revision,
    /// Each with the moment since which the first of its waiters waits.
    waiting: BTreeMap<Revision, (Instant, Vec<oneshot::Sender<()>>)>,
}

/// The last published revision, as something to wait for.
#[derive(Debug)]
pub(crate) struct Progress {
    state: Mutex<State>,
}

impl Progress {
    pub(crate) fn new(reached: Revision) -> Self {
        Self { state: Mutex::new(State { reached, waiting: BTreeMap::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything up to `revision` is published.
    pub(crate) fn advance(&self, revision: Revision) {
        let mut state = self.lock();
        state.reached = state.reached.max(revision);
        let later = state.waiting.split_off(&(revision + 1));
        let served = std::mem::replace(&mut state.waiting, later);
        drop(state);
        for waiter in served.into_values().flat_map(|(_, waiters)| waiters) {
            // Nobody may wait any more.
            waiter.send(()).ok();
        }
    }

    /// Waits until everything up to `revision` is published; `false`: not within `patience`.
    pub(crate) async fn reach(&self, revision: Revision, patience: Duration) -> bool {
        let reached = {
            let mut state = self.lock();
            if state.reached >= revision {
                return true;
            }
            let (sender, receiver) = oneshot::channel();
            let waiting = state.waiting.entry(revision);
            waiting.or_insert_with(|| (Instant::now(), Vec::new())).1.push(sender);
            receiver
        };
        matches!(tokio::time::timeout(patience, reached).await, Ok(Ok(())))
    }

    /// Whether somebody knows of a revision for longer than `patience` that is not published.
    pub(crate) fn overdue(&self, patience: Duration) -> bool {
        let mut state = self.lock();
        state.waiting.retain(|_, (_, waiters)| {
            waiters.retain(|waiter| !waiter.is_closed());
            !waiters.is_empty()
        });
        state.waiting.values().any(|(since, _)| since.elapsed() > patience)
    }
}
