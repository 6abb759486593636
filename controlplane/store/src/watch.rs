//! Owns the watchers: who wants which events, and each one's bounded queue. An event costs what its interested watchers
//! cost; a slow watcher is expired and never slows a writer.
//!
//! Worked example: watches on prefix `/registry/pods/` with index `node/n1`, on prefix `/registry/` and on key
//! `/registry/pods/a/b` stand in `indexed["node/n1"]`, in `prefixed["/registry/"]` (so 10 is one of the lengths that every
//! event's key is cut to) and in `exact["/registry/pods/a/b"]`. An event looks up its key, its key cut to each length, and the
//! index keys of its entries before and after; nothing is compared with the other watchers.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::hash::Hash;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::revision::{Event, Revision};
use crate::state::Snapshot;
use crate::txn::{KeyRange, ReadError};

/// What to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchRequest {
    /// Which keys.
    pub keys: KeyRange,
    /// The first revision wanted; `None`: what happens from now on.
    pub from: Option<Revision>,
    /// Only events whose entry before or after carries this index key.
    pub index: Option<Box<str>>,
    /// How many new events may wait for the reader before it is expired; the last revision's may go beyond.
    pub events_max: usize,
}

/// Why a watch ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The history was compacted before it could be read.
    #[error("required revision has been compacted (oldest: {compact_revision})")]
    Compacted {
        /// Everything up to here is gone.
        compact_revision: Revision,
    },
    /// The reader was too slow; it must list again.
    #[error("too slow: more than {events_max} events waited to be read")]
    Expired {
        /// The bound that was given.
        events_max: usize,
    },
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

#[derive(Debug)]
struct Queue {
    events: VecDeque<Arc<Event>>,
    events_max: usize,
    /// Events up to here were queued or are not wanted.
    seen: Revision,
    ended: Option<WatchError>,
    /// The first revision of what was queued when the reader expired.
    lost_from: Option<Revision>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    ready: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, why: WatchError) {
        let mut queue = self.lock();
        queue.ended.get_or_insert(why);
        drop(queue);
        self.ready.notify_one();
    }

    /// Offers events of one revision, so that a reader gets all of them at once. `false`: the watcher is expired.
    fn offer<'a>(&self, revision: Revision, events: impl Iterator<Item = &'a Arc<Event>>) -> bool {
        let mut queue = self.lock();
        if revision <= queue.seen || queue.ended.is_some() {
            return true;
        }
        if queue.events.len() >= queue.events_max {
            queue.lost_from = queue.events.front().map(|event| event.revision).or(Some(revision));
            queue.events = VecDeque::new();
            let events_max = queue.events_max;
            queue.ended = Some(WatchError::Expired { events_max });
            drop(queue);
            self.ready.notify_one();
            return false;
        }
        let wake = queue.events.is_empty();
        queue.events.extend(events.cloned());
        drop(queue);
        if wake {
            self.ready.notify_one();
        }
        true
    }
}

type Id = u64;

#[derive(Debug)]
struct Registered {
    keys: KeyRange,
    index: Option<Box<str>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Index {
    watchers: HashMap<Id, Registered>,
    exact: HashMap<Vec<u8>, Vec<Id>>,
    prefixed: HashMap<Vec<u8>, Vec<Id>>,
    /// How many prefixes of each length there are in `prefixed`.
    lengths: BTreeMap<usize, usize>,
    indexed: HashMap<Box<str>, Vec<Id>>,
    spans: Vec<Id>,
    closed: bool,
}

impl Index {
    fn insert(&mut self, id: Id, registered: Registered) {
        match (&registered.index, &registered.keys) {
            (Some(index), _) => self.indexed.entry(index.clone()).or_default().push(id),
            (None, KeyRange::Key(key)) => self.exact.entry(key.clone()).or_default().push(id),
            (None, KeyRange::Prefix(prefix)) => {
                let ids = self.prefixed.entry(prefix.clone()).or_default();
                if ids.is_empty() {
                    *self.lengths.entry(prefix.len()).or_default() += 1;
                }
                ids.push(id);
            }
            (None, KeyRange::Span { .. }) => self.spans.push(id),
        }
        self.watchers.insert(id, registered);
    }

    fn remove(&mut self, id: Id) {
        let Some(Registered { keys, index, .. }) = self.watchers.remove(&id) else { return };
        match (index, keys) {
            (Some(index), _) => forget(&mut self.indexed, &index, id),
            (None, KeyRange::Key(key)) => forget(&mut self.exact, &key, id),
            (None, KeyRange::Prefix(prefix)) => {
                forget(&mut self.prefixed, &prefix, id);
                let left = self.lengths.get_mut(&prefix.len());
                if let Some(left) = left.filter(|_| !self.prefixed.contains_key(&prefix)) {
                    *left -= 1;
                    if *left == 0 {
                        self.lengths.remove(&prefix.len());
                    }
                }
            }
            (None, KeyRange::Span { .. }) => self.spans.retain(|other| *other != id),
        }
    }

    /// Everyone interested; each at most once.
    fn interested(&self, event: &Event, found: &mut Vec<Id>) {
        let key = event.key();
        found.clear();
        found.extend(self.exact.get(key).into_iter().flatten());
        for length in self.lengths.range(..=key.len()).map(|(length, _)| *length) {
            found.extend(self.prefixed.get(&key[..length]).into_iter().flatten());
        }
        let spans = self.spans.iter().filter(|id| self.wants(**id, key));
        found.extend(spans);
        if self.indexed.is_empty() {
            return;
        }
        let entries = event.before.iter().chain(&event.after);
        for index in entries.flat_map(|entry| &entry.extracted.index) {
            for id in self.indexed.get(index).into_iter().flatten() {
                if !found.contains(id) && self.wants(*id, key) {
                    found.push(*id);
                }
            }
        }
    }

    fn wants(&self, id: Id, key: &[u8]) -> bool {
        self.watchers.get(&id).is_some_and(|watcher| watcher.keys.contains(key))
    }
}

fn forget<K, Q>(map: &mut HashMap<K, Vec<Id>>, key: &Q, id: Id)
where
    K: Borrow<Q> + Hash + Eq,
    Q: Hash + Eq + ?Sized,
{
    if let Some(ids) = map.get_mut(key) {
        ids.retain(|other| *other != id);
        if ids.is_empty() {
            map.remove(key);
        }
    }
}

/// The place where committed events meet watchers.
pub(crate) struct Hub {
    index: Mutex<Index>,
    next_id: AtomicU64,
    /// Every event up to here has been offered to everyone.
    dispatched: AtomicI64,
    expired: AtomicU64,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("watchers", &self.watchers()).finish_non_exhaustive()
    }
}

impl Hub {
    pub(crate) fn new(revision: Revision) -> Self {
        Self {
            index: Mutex::default(),
            next_id: AtomicU64::new(1),
            dispatched: AtomicI64::new(revision),
            expired: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn watchers(&self) -> usize {
        self.lock().watchers.len()
    }

    pub(crate) fn expired(&self) -> u64 {
        self.expired.load(Ordering::Relaxed)
    }

    /// Offers committed events, in their order, and says how far everyone is.
    pub(crate) fn dispatch(&self, events: &[Arc<Event>], revision: Revision) {
        let mut index = self.lock();
        let (mut found, mut wanted) = (Vec::new(), Vec::new());
        for own in events.chunk_by(|one, next| one.revision == next.revision) {
            wanted.clear();
            for event in own {
                index.interested(event, &mut found);
                wanted.extend(found.iter().map(|id| (*id, event)));
            }
            if own.len() > 1 {
                wanted.sort_by_key(|(id, _)| *id);
            }
            for offered in wanted.chunk_by(|(one, _), (next, _)| one == next) {
                let (id, event) = offered[0];
                let events = offered.iter().map(|(_, event)| *event);
                let watcher = index.watchers.get(&id);
                if watcher.is_some_and(|own| !own.shared.offer(event.revision, events)) {
                    self.expired.fetch_add(1, Ordering::Relaxed);
                    index.remove(id);
                }
            }
        }
        self.dispatched.store(revision, Ordering::Release);
    }

    /// Registers a watcher. What happened before stands in its queue already, however much that is.
    pub(crate) fn watch(
        self: &Arc<Self>,
        request: WatchRequest,
        snapshot: &dyn Fn() -> Snapshot,
    ) -> Result<Watcher, ReadError> {
        // Most of the history is read without holding the writers up; what came meanwhile is little.
        let mut backlog = VecDeque::new();
        let first = snapshot();
        let compacted = |requested: Revision, needed: Revision, snapshot: &Snapshot| {
            let compact_revision = snapshot.compacted_for(&request.keys);
            let gone = needed <= compact_revision;
            if gone { Err(ReadError::Compacted { requested, compact_revision }) } else { Ok(()) }
        };
        if let Some(from) = request.from {
            compacted(from, from, &first)?;
            backlog.extend(wanted(&first, &request, from));
        }
        let mut index = self.lock();
        let now = snapshot();
        let from = request.from.unwrap_or(now.revision + 1);
        let unread = from.max(first.revision + 1);
        // The window may have moved on over what came meanwhile.
        compacted(from, unread, &now)?;
        backlog.extend(wanted(&now, &request, unread));
        let seen = now.revision.max(from - 1);
        let events_max = request.events_max.saturating_add(backlog.len());
        let ended = index.closed.then_some(WatchError::Closed);
        let queue = Mutex::new(Queue { events: backlog, events_max, seen, ended, lost_from: None });
        let shared = Arc::new(Shared { queue, ready: Notify::new() });
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (keys, index_key) = (request.keys, request.index);
        index.insert(id, Registered { keys, index: index_key, shared: shared.clone() });
        drop(index);
        let hub = self.clone();
        Ok(Watcher { id, shared, hub, before: from - 1, events_max: request.events_max })
    }

    /// Ends every watch there is: what happened up to `compact_revision` can't be told any more.
    pub(crate) fn compacted(&self, compact_revision: Revision) {
        let mut index = self.lock();
        let closed = index.closed;
        let ended = std::mem::replace(&mut *index, Index { closed, ..Index::default() });
        let before = self.dispatched.fetch_max(compact_revision, Ordering::AcqRel);
        drop(index);
        let next = before + 1;
        for watcher in ended.watchers.into_values() {
            let mut queue = watcher.shared.lock();
            let first = queue.events.front().map_or(next, |event| event.revision);
            queue.lost_from.get_or_insert(first);
            drop(queue);
            watcher.shared.end(WatchError::Compacted { compact_revision });
        }
    }

    /// Ends every watch, also those to come.
    pub(crate) fn close(&self) {
        let mut index = self.lock();
        index.closed = true;
        for watcher in index.watchers.values() {
            watcher.shared.end(WatchError::Closed);
        }
    }
}

/// What of the snapshot's history the request wants, from `from` on.
fn wanted<'a>(
    snapshot: &'a Snapshot,
    request: &'a WatchRequest,
    from: Revision,
) -> impl Iterator<Item = Arc<Event>> + use<'a> {
    let carries = move |event: &Event| {
        request.index.as_ref().is_none_or(|wanted| {
            event.before.iter().chain(&event.after).any(|e| e.extracted.index.contains(wanted))
        })
    };
    let events = snapshot.history.since(from);
    events.filter(move |e| request.keys.contains(e.key()) && carries(e)).cloned()
}

/// The reader's end of a watch. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watcher {
    id: Id,
    shared: Arc<Shared>,
    hub: Arc<Hub>,
    /// What is before the watch's first wanted revision counts as returned.
    before: Revision,
    events_max: usize,
}

impl Watcher {
    /// Waits for events and returns all that are there, in the order of their revisions; never none.
    ///
    /// # Errors
    /// The watch is over; what was queued before is returned first, except by [`WatchError::Expired`].
    pub async fn next(&mut self) -> Result<Vec<Arc<Event>>, WatchError> {
        loop {
            let events = self.waiting()?;
            if !events.is_empty() {
                return Ok(events);
            }
            self.shared.ready.notified().await;
        }
    }

    /// What [`Watcher::next`] would return at once; none where it would wait.
    ///
    /// # Errors
    /// As [`Watcher::next`].
    pub fn waiting(&mut self) -> Result<Vec<Arc<Event>>, WatchError> {
        let mut queue = self.shared.lock();
        if !queue.events.is_empty() {
            // The room for the backlog is given back with the backlog.
            queue.events_max = self.events_max;
            return Ok(std::mem::take(&mut queue.events).into());
        }
        match &queue.ended {
            Some(why) => Err(why.clone()),
            None => Ok(Vec::new()),
        }
    }

    /// Every event up to here has been returned by [`Watcher::next`].
    pub fn progress(&self) -> Revision {
        // Read before the queue: what is queued later is newer than this.
        let dispatched = self.hub.dispatched.load(Ordering::Acquire);
        let queue = self.shared.lock();
        let waiting = queue.lost_from.or_else(|| Some(queue.events.front()?.revision));
        waiting.map_or(dispatched.max(self.before), |first| first - 1)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.hub.lock().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use bytes::Bytes;

    use super::*;
    use crate::revision::Entry;

    fn put(revision: Revision) -> Arc<Event> {
        let entry = Entry {
            key: Bytes::from_static(b"/a"),
            value: Bytes::new(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: 0,
            extracted: Default::default(),
        };
        Event::new(revision, None, Some(Arc::new(entry)))
    }

    /// The state at `revision`, whose window holds what came behind `compacted`.
    fn state(compacted: Revision, revision: Revision) -> Snapshot {
        let mut snapshot = Snapshot {
            map: crate::state::Map::new(),
            history: crate::history::History::new(compacted),
            revision,
            bytes: 0,
            leases: imbl::OrdMap::new(),
            volatile_floor: 0,
            volatile_prefixes: Arc::default(),
        };
        (compacted + 1..=revision).for_each(|at| snapshot.history.push(put(at)));
        snapshot
    }

    /// Registers while the store goes from one state to another.
    fn watch(
        from: Option<Revision>,
        then: Snapshot,
        now: Snapshot,
    ) -> Result<Vec<Revision>, ReadError> {
        let states = RefCell::new(VecDeque::from([then, now.clone()]));
        let snapshot = || states.borrow_mut().pop_front().unwrap_or_else(|| now.clone());
        let keys = KeyRange::Prefix(b"/".to_vec());
        let request = WatchRequest { keys, from, index: None, events_max: 10 };
        let mut watcher = Arc::new(Hub::new(now.revision)).watch(request, &snapshot)?;
        Ok(watcher.waiting().into_iter().flatten().map(|event| event.revision).collect())
    }

    #[test]
    fn what_is_committed_while_a_watch_registers_is_in_it() {
        assert_eq!(watch(Some(2), state(1, 4), state(1, 6)), Ok(vec![2, 3, 4, 5, 6]));
        // What the first look held may have left the window since.
        assert_eq!(watch(Some(2), state(1, 4), state(4, 6)), Ok(vec![2, 3, 4, 5, 6]));
        assert_eq!(watch(Some(6), state(1, 4), state(5, 6)), Ok(vec![6]));
        assert_eq!(watch(Some(8), state(1, 4), state(5, 6)), Ok(vec![]));
        assert_eq!(watch(None, state(1, 4), state(5, 6)), Ok(vec![]));
    }

    #[test]
    fn a_watch_is_refused_when_the_window_passes_what_it_has_not_read() {
        let refused = |requested| Err(ReadError::Compacted { requested, compact_revision: 5 });
        assert_eq!(watch(Some(2), state(1, 4), state(5, 6)), refused(2));
        assert_eq!(watch(Some(5), state(1, 4), state(5, 6)), refused(5));
    }
}
