//! A store that keeps every revision as a whole map.
#![allow(unreachable_pub, dead_code, missing_docs, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::cast_possible_wrap, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use store::{
    Compare, Entry, Event, Extracted, KeyRange, Op, OpResult, Range, RangeResult, ReadError,
    Relation, Target, Txn, TxnResult,
};

type Map = BTreeMap<Vec<u8>, Arc<Entry>>;

/// A change, as a value that can be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub revision: i64,
    pub before: Option<(Vec<u8>, Vec<u8>)>,
    pub after: Option<(Vec<u8>, Vec<u8>)>,
}

fn pair(entry: &Entry) -> (Vec<u8>, Vec<u8>) {
    (entry.key.to_vec(), entry.value.to_vec())
}

impl Change {
    pub fn of(event: &Event) -> Self {
        let side = |entry: &Option<Arc<Entry>>| entry.as_deref().map(pair);
        Self { revision: event.revision, before: side(&event.before), after: side(&event.after) }
    }

    fn key(&self) -> &[u8] {
        &self.after.as_ref().or(self.before.as_ref()).unwrap().0
    }

    fn carries(&self, index: u8) -> bool {
        self.before.iter().chain(&self.after).any(|(_, value)| value.first() == Some(&index))
    }
}

pub struct Pure {
    /// The last revision before the first.
    base: i64,
    /// The map at revision `base` + 1, + 2, ….
    maps: Vec<Map>,
    changes: Vec<Change>,
}

struct Working {
    map: Map,
    touched: BTreeSet<Vec<u8>>,
    changes: Vec<Change>,
    revision: i64,
}

impl Pure {
    pub fn new() -> Self {
        Self::empty_at(1)
    }

    /// Nothing is there at `revision`, and nothing is known before.
    pub fn empty_at(revision: i64) -> Self {
        Self { base: revision - 1, maps: vec![Map::new()], changes: Vec::new() }
    }

    pub fn revision(&self) -> i64 {
        self.base + self.maps.len() as i64
    }

    pub fn first_revision(&self) -> i64 {
        self.base + 1
    }

    fn map_at(&self, revision: i64) -> &Map {
        &self.maps[usize::try_from(revision - self.base - 1).unwrap()]
    }

    pub fn at(&self, revision: i64) -> BTreeMap<Vec<u8>, Vec<u8>> {
        self.map_at(revision).values().map(|e| pair(e)).collect()
    }

    pub fn changes(&self, from: i64, keys: &KeyRange, index: Option<u8>) -> Vec<Change> {
        let wanted = |change: &&Change| {
            let carries = index.is_none_or(|index| change.carries(index));
            change.revision >= from && keys.contains(change.key()) && carries
        };
        self.changes.iter().filter(wanted).cloned().collect()
    }

    pub fn range(&self, range: &Range, compacted: i64) -> Result<RangeResult, ReadError> {
        let (requested, current) = (range.revision.unwrap(), self.revision());
        if requested > current {
            return Err(ReadError::Future { requested, current });
        }
        if requested < compacted {
            return Err(ReadError::Compacted { requested, compact_revision: compacted });
        }
        let map = self.map_at(requested);
        Ok(limited(map, &range.keys, range.limit, requested))
    }

    /// `None`: refused, for changing a key twice.
    pub fn txn(&mut self, txn: &Txn) -> Option<TxnResult> {
        changes(&txn.success)?;
        changes(&txn.failure)?;
        let before = self.maps.last().unwrap().clone();
        let revision = self.revision() + 1;
        // Once to see whether a revision is used, once with what is then known.
        let mut dry = Working::new(before.clone(), revision);
        dry.txn(&before, txn, revision)?;
        let changed = !dry.changes.is_empty();
        let mut working = Working::new(before.clone(), revision);
        let result = working.txn(&before, txn, if changed { revision } else { revision - 1 })?;
        if changed {
            self.maps.push(working.map);
            self.changes.extend(working.changes);
        }
        Some(result)
    }
}

/// What the operations can change, in any state; `None`: a key twice.
fn changes(ops: &[Op]) -> Option<(BTreeSet<Vec<u8>>, Vec<KeyRange>)> {
    let (mut puts, mut deletes) = (BTreeSet::new(), Vec::new());
    for op in ops {
        let (mut new_puts, mut new_deletes) = (BTreeSet::new(), Vec::new());
        match op {
            Op::Put { key, .. } | Op::Update { key, .. } => drop(new_puts.insert(key.clone())),
            Op::Delete(keys) => new_deletes.push(keys.clone()),
            Op::Txn(txn) => {
                for branch in [&txn.success, &txn.failure] {
                    let (puts, deletes) = changes(branch)?;
                    new_puts.extend(puts);
                    new_deletes.extend(deletes);
                }
            }
            Op::Range(_) => {}
        }
        let deleted = |key: &Vec<u8>, by: &[KeyRange]| by.iter().any(|keys| keys.contains(key));
        let twice = new_puts.iter().any(|key| puts.contains(key) || deleted(key, &deletes))
            || puts.iter().any(|key| deleted(key, &new_deletes));
        (!twice).then_some(())?;
        puts.extend(new_puts);
        deletes.extend(new_deletes);
    }
    Some((puts, deletes))
}

fn limited(map: &Map, keys: &KeyRange, limit: usize, revision: i64) -> RangeResult {
    let all: Vec<_> = map.values().filter(|e| keys.contains(&e.key)).cloned().collect();
    let count = all.len();
    let limit = if limit == 0 { count } else { limit };
    let entries: Vec<_> = all.into_iter().take(limit).collect();
    RangeResult { more: entries.len() < count, entries, revision, count }
}

impl Working {
    fn new(map: Map, revision: i64) -> Self {
        Self { map, touched: BTreeSet::new(), changes: Vec::new(), revision }
    }

    fn txn(&mut self, before: &Map, txn: &Txn, reached: i64) -> Option<TxnResult> {
        let succeeded = txn.compare.iter().all(|compare| holds(before, compare));
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let mut responses = Vec::new();
        for op in ops {
            responses.push(self.op(before, op, reached)?);
        }
        Some(TxnResult { succeeded, revision: reached, responses })
    }

    fn op(&mut self, before: &Map, op: &Op, reached: i64) -> Option<OpResult> {
        Some(match op {
            Op::Put { key, value, lease } => {
                self.touched.insert(key.clone()).then_some(())?;
                let previous = self.map.get(key).cloned();
                let index = value.first().map(|first| char::from(*first).to_string().into());
                let entry = Arc::new(Entry {
                    key: key.clone().into(),
                    value: value.clone(),
                    create_revision: previous.as_ref().map_or(self.revision, |p| p.create_revision),
                    mod_revision: self.revision,
                    version: previous.as_ref().map_or(1, |p| p.version + 1),
                    lease: *lease,
                    extracted: Extracted {
                        index: index.into_iter().collect(),
                        ..Extracted::default()
                    }
                    .into(),
                });
                self.map.insert(key.clone(), entry.clone());
                let (was, is) = (previous.as_deref().map(pair), Some(pair(&entry)));
                self.changes.push(Change { revision: self.revision, before: was, after: is });
                OpResult::Put { previous, entry }
            }
            Op::Update { .. } => unreachable!("not generated"),
            Op::Delete(keys) => {
                let deleted: Vec<_> =
                    self.map.values().filter(|e| keys.contains(&e.key)).cloned().collect();
                for entry in &deleted {
                    self.touched.insert(entry.key.to_vec()).then_some(())?;
                    self.map.remove(&entry.key[..]);
                    let was = Some(pair(entry));
                    self.changes.push(Change { revision: self.revision, before: was, after: None });
                }
                OpResult::Delete { deleted }
            }
            Op::Range(range) => {
                OpResult::Range(limited(&self.map, &range.keys, range.limit, reached))
            }
            Op::Txn(txn) => OpResult::Txn(self.txn(before, txn, reached)?),
        })
    }
}

fn holds(map: &Map, compare: &Compare) -> bool {
    let found: Vec<_> = map.values().filter(|e| compare.keys.contains(&e.key)).collect();
    if found.is_empty() {
        return related(None, compare);
    }
    found.into_iter().all(|entry| related(Some(entry), compare))
}

fn related(entry: Option<&Arc<Entry>>, compare: &Compare) -> bool {
    let (has, wanted) = match &compare.target {
        Target::Version(wanted) => (entry.map_or(0, |e| e.version), *wanted),
        Target::CreateRevision(wanted) => (entry.map_or(0, |e| e.create_revision), *wanted),
        Target::ModRevision(wanted) => (entry.map_or(0, |e| e.mod_revision), *wanted),
        Target::Lease(wanted) => (entry.map_or(0, |e| e.lease), *wanted),
        Target::Value(wanted) => match entry {
            None => return false,
            Some(entry) => (entry.value.cmp(wanted) as i64, 0),
        },
    };
    match compare.relation {
        Relation::Equal => has == wanted,
        Relation::NotEqual => has != wanted,
        Relation::Greater => has > wanted,
        Relation::Less => has < wanted,
    }
}
