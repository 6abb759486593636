//! Owns the window of past changes: an immutable, structurally shared ring, bounded in bytes and age. Undoes it to
//! read a past revision and cuts it to begin a watch. Decides nothing about the present.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use imbl::Vector;

use crate::revision::{Entry, Event, Revision};
use crate::txn::KeyRange;

/// Changes behind `compacted`, oldest first. Cloning shares.
#[derive(Debug, Clone)]
pub(crate) struct History {
    events: Vector<Arc<Event>>,
    bytes: usize,
    /// Every change up to here is gone.
    compacted: Revision,
}

impl History {
    pub(crate) fn new(compacted: Revision) -> Self {
        Self { events: Vector::new(), bytes: 0, compacted }
    }

    pub(crate) fn compacted(&self) -> Revision {
        self.compacted
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    pub(crate) fn push(&mut self, event: Arc<Event>) {
        self.bytes += event.cost_bytes();
        self.events.push_back(event);
    }

    /// Takes back the last changes.
    pub(crate) fn pop(&mut self, changes: usize) {
        for event in (0..changes).filter_map(|_| self.events.pop_back()) {
            self.bytes -= event.cost_bytes();
        }
    }

    /// Forgets every change up to `revision`.
    pub(crate) fn compact(&mut self, revision: Revision) {
        drop(self.forget(revision));
    }

    /// Forgets every change up to `revision`, and returns them.
    pub(crate) fn forget(&mut self, revision: Revision) -> Vec<Arc<Event>> {
        let mut forgotten = Vec::new();
        while self.events.front().is_some_and(|event| event.revision <= revision) {
            if let Some(event) = self.events.pop_front() {
                self.bytes -= event.cost_bytes();
                forgotten.push(event);
            }
        }
        self.compacted = self.compacted.max(revision);
        forgotten
    }

    /// Forgets whole revisions, oldest first, until the window is small and young enough.
    pub(crate) fn trim(&mut self, bytes_max: usize, age_max: Duration, now: Instant) {
        while let Some(oldest) = self.events.front() {
            let old = now.saturating_duration_since(oldest.seen) > age_max;
            if self.bytes <= bytes_max && !old {
                return;
            }
            self.compact(oldest.revision);
        }
    }

    /// Changes from `revision` on, oldest first.
    pub(crate) fn since(&self, revision: Revision) -> impl Iterator<Item = &Arc<Event>> {
        let found = self.events.binary_search_by(|event| {
            // Never equal: the search ends at the first event that is not older.
            if event.revision < revision {
                std::cmp::Ordering::Less
            } else {
                std::cmp::Ordering::Greater
            }
        });
        let at = found.unwrap_or_else(|at| at);
        self.events.focus().narrow(at..).into_iter()
    }

    /// The keys of `keys` that changed after `revision`, each as it was then.
    ///
    /// With `a` put at 5 and 7 and `b` put first at 6, the answer for revision 5 is `{a: as of 5, b: absent}`.
    pub(crate) fn undone(
        &self,
        keys: &KeyRange,
        revision: Revision,
    ) -> BTreeMap<Bytes, Option<Arc<Entry>>> {
        let mut then = BTreeMap::new();
        for event in self.since(revision + 1) {
            let Some(entry) = event.after.as_ref().or(event.before.as_ref()) else { continue };
            if keys.contains(&entry.key) && !then.contains_key(&entry.key) {
                then.insert(entry.key.clone(), event.before.clone());
            }
        }
        then
    }
}
