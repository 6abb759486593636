//! Owns the pure heart: a snapshot (map, history, revision), reads of it, and what a transaction makes of it. No I/O,
//! no clock but the events' own, no locks.

use std::collections::{HashSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;

use crate::backend::flight::Progress;
use crate::history::History;
use crate::revision::{Entry, Event, Extract, Revision};
use crate::txn::{
    Compare, KeyRange, Op, OpResult, Range, RangeResult, ReadError, Relation, Target, Txn,
    TxnResult, WriteError,
};

/// The current state, ordered by key.
pub(crate) type Map = OrdMap<Bytes, Arc<Entry>>;

/// Everything that a reader needs, at one revision. Cloning shares.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) map: Map,
    pub(crate) history: History,
    pub(crate) revision: Revision,
    /// Bytes of all keys and values.
    pub(crate) bytes: usize,
    /// The length of each lease, in seconds.
    pub(crate) leases: OrdMap<i64, u64>,
    /// What volatile keys did up to here died with an earlier process.
    pub(crate) volatile_floor: Revision,
    pub(crate) volatile_prefixes: Arc<[Vec<u8>]>,
}

impl Snapshot {
    /// Everything up to here is unknown for these keys.
    pub(crate) fn compacted_for(&self, keys: &KeyRange) -> Revision {
        let compacted = self.history.compacted();
        let volatile = self.volatile_prefixes.iter().any(|prefix| keys.touches_prefix(prefix));
        if volatile { compacted.max(self.volatile_floor) } else { compacted }
    }

    pub(crate) fn is_volatile(&self, key: &[u8]) -> bool {
        self.volatile_prefixes.iter().any(|prefix| key.starts_with(prefix))
    }

    pub(crate) fn range(&self, range: &Range) -> Result<RangeResult, ReadError> {
        let Some(requested) = range.revision.filter(|revision| *revision != self.revision) else {
            let entries = entries(&self.map, &range.keys);
            return Ok(limited(entries, range.limit, self.revision));
        };
        if requested > self.revision {
            return Err(ReadError::Future { requested, current: self.revision });
        }
        let compact_revision = self.compacted_for(&range.keys);
        if requested < compact_revision {
            return Err(ReadError::Compacted { requested, compact_revision });
        }
        Ok(self.range_then(range, requested))
    }

    /// Makes an entry the one of its key, and returns the one before.
    pub(crate) fn insert(&mut self, entry: Arc<Entry>) -> Option<Arc<Entry>> {
        self.bytes += entry.key.len() + entry.value.len();
        let before = match self.map.get_mut(&entry.key) {
            Some(own) => Some(std::mem::replace(own, entry)),
            None => self.map.insert(entry.key.clone(), entry),
        };
        self.bytes -= before.as_ref().map_or(0, |before| before.key.len() + before.value.len());
        before
    }

    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Arc<Entry>> {
        let before = self.map.remove(key);
        self.bytes -= before.as_ref().map_or(0, |before| before.key.len() + before.value.len());
        before
    }

    /// Goes where another copy of this state went, and returns what is forgotten.
    pub(crate) fn follow(&mut self, events: &[Arc<Event>], progress: &Progress) -> Vec<Arc<Event>> {
        for event in events {
            match &event.after {
                Some(after) => drop(self.insert(after.clone())),
                None => drop(self.remove(event.key())),
            }
            self.history.push(event.clone());
        }
        self.revision = progress.revision;
        if let Some(leases) = &progress.leases {
            self.leases.clone_from(leases);
        }
        self.history.forget(progress.compacted)
    }

    /// Takes back the last transaction that changed something.
    pub(crate) fn revert(&mut self, events: &[Arc<Event>]) {
        if events.is_empty() {
            return;
        }
        self.history.pop(events.len());
        self.revision -= 1;
        events.iter().rev().for_each(|event| self.undo(event));
    }

    fn undo(&mut self, event: &Event) {
        match &event.before {
            Some(before) => drop(self.insert(before.clone())),
            None => drop(self.remove(event.key())),
        }
    }

    /// The present with what happened since undone.
    fn range_then(&self, range: &Range, revision: Revision) -> RangeResult {
        let mut undone = self.history.undone(&range.keys, revision).into_iter().peekable();
        let mut present = entries(&self.map, &range.keys).peekable();
        let merged = std::iter::from_fn(|| {
            loop {
                let changed_first = match (undone.peek(), present.peek()) {
                    (Some((key, _)), Some(entry)) => *key <= entry.key,
                    (Some(_), None) => true,
                    (None, _) => false,
                };
                if !changed_first {
                    return present.next();
                }
                let (key, then) = undone.next()?;
                present.next_if(|entry| entry.key == key);
                if let Some(entry) = then {
                    return Some(entry);
                }
            }
        });
        limited(merged, range.limit, revision)
    }
}

/// The entries of `keys` in the order of their keys.
fn entries<'a>(map: &'a Map, keys: &KeyRange) -> impl Iterator<Item = Arc<Entry>> + use<'a> {
    let (start, end) = keys.bounds();
    let empty = !end.is_empty() && start >= end;
    let upper = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end.as_slice()) };
    let (one, many) = match keys {
        KeyRange::Key(key) => (map.get(key.as_slice()), None),
        _ if empty => (None, None),
        _ => (None, Some(map.range::<_, [u8]>((Bound::Included(start.as_slice()), upper)))),
    };
    let many = many.into_iter().flatten().map(|(_, entry)| entry);
    one.into_iter().chain(many).cloned()
}

fn limited(
    mut entries: impl Iterator<Item = Arc<Entry>>,
    limit: usize,
    revision: Revision,
) -> RangeResult {
    let limit = if limit == 0 { usize::MAX } else { limit };
    let taken: Vec<_> = entries.by_ref().take(limit).collect();
    let rest = if taken.len() == limit { entries.count() } else { 0 };
    let count = taken.len() + rest;
    RangeResult { entries: taken, revision, more: rest > 0, count }
}

/// What a transaction did to the state.
#[derive(Debug)]
pub(crate) struct Applied {
    /// In the order of the operations; empty: nothing changed and no revision was used.
    pub(crate) events: Vec<Arc<Event>>,
    pub(crate) result: TxnResult,
}

/// What an evaluation asks of the world.
pub(crate) struct Surroundings<'a> {
    pub(crate) extract: &'a dyn Extract,
    pub(crate) lease_exists: &'a dyn Fn(i64) -> bool,
}

/// Evaluates a transaction in place. After an error the state is as it was.
pub(crate) fn apply(
    state: &mut Snapshot,
    txn: &Txn,
    surroundings: &Surroundings<'_>,
) -> Result<Applied, WriteError> {
    let before = match Before::of(state, txn) {
        Ok(before) => before,
        Err(error) => return Err(foremost(state, txn, surroundings, error.into())),
    };
    let base_revision = state.revision;
    let revision = base_revision + 1;
    let (events, touched) = (Vec::new(), HashSet::new());
    let mut evaluation = Evaluation { state, surroundings, before, revision, events, touched };
    match evaluation.txn(txn) {
        Ok(mut result) => {
            let events = evaluation.events;
            if !events.is_empty() {
                state.revision = revision;
                events.iter().for_each(|event| state.history.push(event.clone()));
            }
            stamp(&mut result, state.revision);
            Ok(Applied { events, result })
        }
        Err(error) => {
            let Evaluation { state, events, .. } = evaluation;
            events.iter().rev().for_each(|event| state.undo(event));
            Err(foremost(state, txn, surroundings, error))
        }
    }
}

/// Ranges inside are of the transaction's own revision, which is known only at its end.
fn stamp(result: &mut TxnResult, revision: Revision) {
    result.revision = revision;
    for response in &mut result.responses {
        match response {
            OpResult::Txn(inner) => stamp(inner, revision),
            OpResult::Range(range) if range.revision == OWN_REVISION => range.revision = revision,
            OpResult::Range(_) | OpResult::Put { .. } | OpResult::Delete { .. } => {}
        }
    }
}

/// Stands for the transaction's own revision until [`stamp`].
const OWN_REVISION: Revision = -1;

/// So many changes of one transaction are looked through for a key that changes twice; more are hashed.
const TOUCHED_LISTED_MAX: usize = 16;

/// What a transaction asks of the state before it, in the order of asking: which branches, and ranges of a given revision.
#[derive(Default)]
struct Before {
    branches: VecDeque<bool>,
    ranges: VecDeque<RangeResult>,
}

impl Before {
    fn of(state: &Snapshot, txn: &Txn) -> Result<Self, ReadError> {
        let mut before = Self::default();
        before.ask(state, txn)?;
        Ok(before)
    }

    fn ask(&mut self, state: &Snapshot, txn: &Txn) -> Result<(), ReadError> {
        let succeeded = txn.compare.iter().all(|compare| holds(&state.map, compare));
        self.branches.push_back(succeeded);
        for op in if succeeded { &txn.success } else { &txn.failure } {
            match op {
                Op::Txn(inner) => self.ask(state, inner)?,
                Op::Range(range) if range.revision.is_some() => {
                    self.ranges.push_back(state.range(range)?);
                }
                Op::Put { .. } | Op::Update { .. } | Op::Delete(_) | Op::Range(_) => {}
            }
        }
        Ok(())
    }
}

struct Evaluation<'a> {
    state: &'a mut Snapshot,
    surroundings: &'a Surroundings<'a>,
    before: Before,
    revision: Revision,
    events: Vec<Arc<Event>>,
    /// The keys of `events` when those are many.
    touched: HashSet<Bytes>,
}

impl Evaluation<'_> {
    fn txn(&mut self, txn: &Txn) -> Result<TxnResult, WriteError> {
        let succeeded = self.before.branches.pop_front().unwrap_or_default();
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let responses = ops.iter().map(|op| self.op(op)).collect::<Result<_, _>>()?;
        Ok(TxnResult { succeeded, revision: OWN_REVISION, responses })
    }

    fn op(&mut self, op: &Op) -> Result<OpResult, WriteError> {
        match op {
            Op::Put { key, value, lease } => self.put(key, value, *lease),
            Op::Update { key, value, lease } => self.update(key, value.as_ref(), *lease),
            Op::Delete(keys) => self.delete(keys),
            Op::Range(range) => {
                let before = range.revision.and_then(|_| self.before.ranges.pop_front());
                Ok(OpResult::Range(before.unwrap_or_else(|| {
                    let entries = entries(&self.state.map, &range.keys);
                    limited(entries, range.limit, OWN_REVISION)
                })))
            }
            Op::Txn(txn) => Ok(OpResult::Txn(self.txn(txn)?)),
        }
    }

    /// Refuses a key that this transaction changed already.
    fn touch(&mut self, key: &[u8]) -> Result<(), WriteError> {
        let twice = if self.events.len() <= TOUCHED_LISTED_MAX {
            self.events.iter().any(|event| event.key() == key)
        } else {
            self.touched.contains(key)
        };
        if !twice {
            return Ok(());
        }
        Err(WriteError::DuplicateKey { key: String::from_utf8_lossy(key).into_owned() })
    }

    fn happened(&mut self, event: Arc<Event>) {
        let key_of = |event: &Event| {
            let entry = event.after.as_ref().or(event.before.as_ref());
            entry.map(|entry| entry.key.clone()).unwrap_or_default()
        };
        if self.events.len() == TOUCHED_LISTED_MAX {
            self.touched.extend(self.events.iter().map(|event| key_of(event)));
        }
        if self.events.len() >= TOUCHED_LISTED_MAX {
            self.touched.insert(key_of(&event));
        }
        self.events.push(event);
    }

    fn put(&mut self, key: &[u8], value: &Bytes, lease: i64) -> Result<OpResult, WriteError> {
        check_lease(self.surroundings, lease)?;
        self.touch(key)?;
        let extracted = self.surroundings.extract.extract(key, value).shrunk();
        // A copy of the exact size: the caller's buffer may be larger, and this one lives long.
        let (value, mod_revision) = (Bytes::copy_from_slice(value), self.revision);
        let (previous, entry) = match self.state.map.get_mut(key) {
            Some(slot) => {
                let (key, version) = (slot.key.clone(), slot.version + 1);
                let create_revision = slot.create_revision;
                let entry = Arc::new(Entry {
                    key,
                    value,
                    create_revision,
                    mod_revision,
                    version,
                    lease,
                    extracted,
                });
                (Some(std::mem::replace(slot, entry.clone())), entry)
            }
            None => {
                let (key, create_revision) = (Bytes::copy_from_slice(key), mod_revision);
                let entry = Arc::new(Entry {
                    key,
                    value,
                    create_revision,
                    mod_revision,
                    version: 1,
                    lease,
                    extracted,
                });
                self.state.map.insert(entry.key.clone(), entry.clone());
                (None, entry)
            }
        };
        self.state.bytes += entry.key.len() + entry.value.len();
        self.state.bytes -= previous.as_ref().map_or(0, |p| p.key.len() + p.value.len());
        self.happened(Event::new(self.revision, previous.clone(), Some(entry.clone())));
        Ok(OpResult::Put { previous, entry })
    }

    fn update(
        &mut self,
        key: &[u8],
        value: Option<&Bytes>,
        lease: Option<i64>,
    ) -> Result<OpResult, WriteError> {
        let Some(kept) = self.state.map.get(key).cloned() else { return Err(not_found(key)) };
        self.put(key, value.unwrap_or(&kept.value), lease.unwrap_or(kept.lease))
    }

    fn delete(&mut self, keys: &KeyRange) -> Result<OpResult, WriteError> {
        let deleted: Vec<_> = entries(&self.state.map, keys).collect();
        for entry in &deleted {
            self.touch(&entry.key)?;
            self.state.remove(&entry.key);
            self.happened(Event::new(self.revision, Some(entry.clone()), None));
        }
        Ok(OpResult::Delete { deleted })
    }
}

/// Which error is told when a transaction has several: as in etcd a put's goes before a range's.
fn foremost(
    state: &Snapshot,
    txn: &Txn,
    surroundings: &Surroundings<'_>,
    first: WriteError,
) -> WriteError {
    refused_put(state, txn, surroundings).unwrap_or(first)
}

fn refused_put(state: &Snapshot, txn: &Txn, surroundings: &Surroundings<'_>) -> Option<WriteError> {
    let succeeded = txn.compare.iter().all(|compare| holds(&state.map, compare));
    let ops = if succeeded { &txn.success } else { &txn.failure };
    ops.iter().find_map(|op| match op {
        Op::Put { lease, .. } => check_lease(surroundings, *lease).err(),
        Op::Update { key, lease, .. } if state.map.contains_key(key.as_slice()) => {
            check_lease(surroundings, lease.unwrap_or(0)).err()
        }
        Op::Update { key, .. } => Some(not_found(key)),
        Op::Txn(inner) => refused_put(state, inner, surroundings),
        Op::Delete(_) | Op::Range(_) => None,
    })
}

fn check_lease(surroundings: &Surroundings<'_>, id: i64) -> Result<(), WriteError> {
    if id == 0 || (surroundings.lease_exists)(id) {
        return Ok(());
    }
    Err(WriteError::LeaseNotFound { id })
}

fn not_found(key: &[u8]) -> WriteError {
    WriteError::KeyNotFound { key: String::from_utf8_lossy(key).into_owned() }
}

fn holds(map: &Map, compare: &Compare) -> bool {
    let mut found = false;
    for entry in entries(map, &compare.keys) {
        found = true;
        if !related(Some(&entry), compare) {
            return false;
        }
    }
    found || related(None, compare)
}

fn related(entry: Option<&Arc<Entry>>, compare: &Compare) -> bool {
    let number = |of: fn(&Entry) -> i64| entry.map_or(0, |entry| of(entry));
    let ordering = match &compare.target {
        Target::Version(wanted) => number(|e| e.version).cmp(wanted),
        Target::CreateRevision(wanted) => number(|e| e.create_revision).cmp(wanted),
        Target::ModRevision(wanted) => number(|e| e.mod_revision).cmp(wanted),
        Target::Lease(wanted) => number(|e| e.lease).cmp(wanted),
        Target::Value(wanted) => match entry {
            Some(entry) => entry.value.cmp(wanted),
            None => return false,
        },
    };
    match compare.relation {
        Relation::Equal => ordering.is_eq(),
        Relation::NotEqual => ordering.is_ne(),
        Relation::Greater => ordering.is_gt(),
        Relation::Less => ordering.is_lt(),
    }
}
