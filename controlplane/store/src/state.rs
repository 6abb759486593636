//! Owns the pure heart: a snapshot (map, history, revision), reads of it, and what a transaction makes of it. No I/O,
//! no clock but the events' own, no locks.

use std::collections::HashSet;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;

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

fn bounds(keys: &KeyRange) -> (Vec<u8>, Vec<u8>) {
    match keys {
        KeyRange::Key(key) => (key.clone(), [key, &[0][..]].concat()),
        KeyRange::Prefix(prefix) => (prefix.clone(), KeyRange::prefix_end(prefix)),
        KeyRange::Span { start, end } => (start.clone(), end.clone()),
    }
}

/// The entries of `keys` in the order of their keys.
fn entries<'a>(map: &'a Map, keys: &KeyRange) -> impl Iterator<Item = Arc<Entry>> + use<'a> {
    let (start, end) = bounds(keys);
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

/// What a transaction makes of a snapshot.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) map: Map,
    pub(crate) bytes: usize,
    /// In the order of the operations; empty: nothing changed and no revision was used.
    pub(crate) events: Vec<Arc<Event>>,
    pub(crate) result: TxnResult,
}

/// What an evaluation asks of the world.
pub(crate) struct Surroundings<'a> {
    pub(crate) extract: &'a dyn Extract,
    pub(crate) lease_exists: &'a dyn Fn(i64) -> bool,
}

/// Evaluates a transaction; the snapshot stays as it is.
pub(crate) fn apply(
    base: &Snapshot,
    txn: &Txn,
    surroundings: &Surroundings<'_>,
) -> Result<Applied, WriteError> {
    let mut evaluation = Evaluation {
        base,
        surroundings,
        map: base.map.clone(),
        bytes: base.bytes,
        revision: base.revision + 1,
        touched: HashSet::new(),
        events: Vec::new(),
    };
    let mut result = evaluation.txn(txn)?;
    let revision = if evaluation.events.is_empty() { base.revision } else { base.revision + 1 };
    stamp(&mut result, revision);
    let Evaluation { map, bytes, events, .. } = evaluation;
    Ok(Applied { map, bytes, events, result })
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

struct Evaluation<'a> {
    base: &'a Snapshot,
    surroundings: &'a Surroundings<'a>,
    map: Map,
    bytes: usize,
    revision: Revision,
    touched: HashSet<Bytes>,
    events: Vec<Arc<Event>>,
}

impl Evaluation<'_> {
    fn txn(&mut self, txn: &Txn) -> Result<TxnResult, WriteError> {
        let succeeded = txn.compare.iter().all(|compare| holds(&self.base.map, compare));
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let responses = ops.iter().map(|op| self.op(op)).collect::<Result<_, _>>()?;
        Ok(TxnResult { succeeded, revision: OWN_REVISION, responses })
    }

    fn op(&mut self, op: &Op) -> Result<OpResult, WriteError> {
        match op {
            Op::Put { key, value, lease } => self.put(key, value, *lease),
            Op::Delete(keys) => self.delete(keys),
            Op::Range(range) => match range.revision {
                Some(_) => Ok(OpResult::Range(self.base.range(range)?)),
                None => {
                    let entries = entries(&self.map, &range.keys);
                    Ok(OpResult::Range(limited(entries, range.limit, OWN_REVISION)))
                }
            },
            Op::Txn(txn) => Ok(OpResult::Txn(self.txn(txn)?)),
        }
    }

    fn touch(&mut self, key: &Bytes) -> Result<(), WriteError> {
        if self.touched.insert(key.clone()) {
            return Ok(());
        }
        Err(WriteError::DuplicateKey { key: String::from_utf8_lossy(key).into_owned() })
    }

    fn put(&mut self, key: &[u8], value: &Bytes, lease: i64) -> Result<OpResult, WriteError> {
        if lease != 0 && !(self.surroundings.lease_exists)(lease) {
            return Err(WriteError::LeaseNotFound { id: lease });
        }
        let previous = self.map.get(key).cloned();
        let key = previous.as_ref().map_or_else(|| Bytes::copy_from_slice(key), |p| p.key.clone());
        self.touch(&key)?;
        let entry = Arc::new(Entry {
            extracted: self.surroundings.extract.extract(&key, value).shrunk(),
            key: key.clone(),
            // A copy of the exact size: the caller's buffer may be larger, and this one lives long.
            value: Bytes::copy_from_slice(value),
            create_revision: previous.as_ref().map_or(self.revision, |p| p.create_revision),
            mod_revision: self.revision,
            version: previous.as_ref().map_or(0, |p| p.version) + 1,
            lease,
        });
        self.bytes += entry.key.len() + entry.value.len();
        self.bytes -= previous.as_ref().map_or(0, |p| p.key.len() + p.value.len());
        self.map.insert(key, entry.clone());
        self.events.push(Event::new(self.revision, previous.clone(), Some(entry.clone())));
        Ok(OpResult::Put { previous, entry })
    }

    fn delete(&mut self, keys: &KeyRange) -> Result<OpResult, WriteError> {
        let deleted: Vec<_> = entries(&self.map, keys).collect();
        for entry in &deleted {
            self.touch(&entry.key)?;
            self.map.remove(&entry.key);
            self.bytes -= entry.key.len() + entry.value.len();
            self.events.push(Event::new(self.revision, Some(entry.clone()), None));
        }
        Ok(OpResult::Delete { deleted })
    }
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
