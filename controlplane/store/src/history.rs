//! Owns the window of past changes: an immutable, structurally shared ring, bounded in bytes and age. Undoes it to
//! read a past revision and cuts it to begin a watch. Decides nothing about the present.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use imbl::Vector;

use crate::revision::{Entry, Event, FIRST_REVISION, Revision};
use crate::txn::KeyRange;

/// Changes behind `compacted`, oldest first. Cloning shares.
#[derive(Debug, Clone)]
pub(crate) struct History {
    events: Vector<Arc<Event>>,
    bytes: usize,
    /// Every change up to here is gone.
    compacted: Revision,
    /// The deletions of that revision itself, which the state does not tell; `None`: they are not known.
    deleted: Option<Vector<Arc<Event>>>,
}

impl History {
    pub(crate) fn new(compacted: Revision) -> Self {
        // At the first revision there was nothing to delete.
        let deleted = (compacted <= FIRST_REVISION).then(Vector::new);
        Self { events: Vector::new(), bytes: 0, compacted, deleted }
    }

    pub(crate) fn compacted(&self) -> Revision {
        self.compacted
    }

    /// The deletions of the revision [`History::compacted`], if they are known.
    pub(crate) fn deleted_last(&self) -> Option<impl Iterator<Item = &Arc<Event>>> {
        self.deleted.as_ref().map(|deleted| deleted.iter())
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
        if revision > self.compacted {
            let deletes = |event: &&Arc<Event>| event.revision == revision && event.after.is_none();
            self.deleted = Some(forgotten.iter().filter(deletes).cloned().collect());
            self.compacted = revision;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::revision::Extracts;

    fn entry(key: &'static str, revision: Revision) -> Arc<Entry> {
        let (create_revision, mod_revision) = (revision, revision);
        let (key, value, extracted) = (key.into(), Bytes::new(), Extracts::default());
        Arc::new(Entry {
            key,
            value,
            create_revision,
            mod_revision,
            version: 1,
            lease: 0,
            extracted,
        })
    }

    fn deleted(history: &History) -> Option<usize> {
        history.deleted_last().map(Iterator::count)
    }

    #[test]
    fn deletions_of_the_compacted_revision_are_remembered_while_known() {
        assert_eq!(deleted(&History::new(FIRST_REVISION)), Some(0));
        let mut history = History::new(5);
        assert_eq!(deleted(&history), None, "what was at 5 was never seen");
        for (revision, key) in [(6, "a"), (7, "b"), (7, "c"), (8, "d")] {
            let (before, after) = (entry(key, 2), entry(key, revision));
            history.push(match key {
                "d" => Event::new(revision, None, Some(after)),
                _ => Event::new(revision, Some(before), None),
            });
        }
        for (revision, known) in [(5, None), (6, Some(1)), (7, Some(2)), (6, Some(2)), (8, Some(0))]
        {
            history.compact(revision);
            assert_eq!(deleted(&history), known, "{revision}");
        }
    }
}
