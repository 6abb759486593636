//! What the store must be like: every revision kept as a whole map, transactions applied to maps, nothing clever. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use store::{
    Compare, Entry, Event, Extract, Extracted, KeyRange, Op, OpResult, Range, RangeResult,
    Relation, Revision, Target, Txn, TxnResult,
};

/// The keys at one revision.
pub type Map = BTreeMap<Vec<u8>, Arc<Entry>>;

/// The first byte of a value is its index key.
#[derive(Debug, Clone, Copy)]
pub struct FirstByte;

impl Extract for FirstByte {
    fn extract(&self, _key: &[u8], value: &[u8]) -> Extracted {
        let index = value.first().map(|first| char::from(*first).to_string().into());
        Extracted { index: index.into_iter().collect(), ..Extracted::default() }
    }
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Revision of the transaction.
    pub revision: Revision,
    /// The key before.
    pub before: Option<Arc<Entry>>,
    /// The key after.
    pub after: Option<Arc<Entry>>,
}

impl Change {
    /// What an event says.
    #[must_use]
    pub fn of(event: &Event) -> Self {
        let Event { revision, before, after, .. } = event;
        Self { revision: *revision, before: before.clone(), after: after.clone() }
    }

    /// The key that changed.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        self.after.as_ref().or(self.before.as_ref()).map_or(&[], |entry| &entry.key)
    }

    /// Whether a watch with this filter gets it.
    #[must_use]
    pub fn is_wanted(&self, keys: &KeyRange, index: Option<&str>) -> bool {
        let mut sides = self.before.iter().chain(&self.after);
        keys.contains(self.key())
            && index.is_none_or(|wanted| {
                sides.any(|entry| entry.extracted.index.iter().any(|own| **own == *wanted))
            })
    }
}

/// What an operation makes of a map.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The map after it.
    pub map: Map,
    /// In order; none: no revision was used.
    pub changes: Vec<Change>,
}

/// Applies a transaction to the map of `revision`.
#[must_use]
pub fn apply(map: &Map, revision: Revision, txn: &Txn) -> Applied {
    let mut working = Working { map: map.clone(), changes: Vec::new(), revision: revision + 1 };
    working.txn(map, txn, 0);
    Applied { map: working.map, changes: working.changes }
}

/// What a transaction on the map of `revision` answers.
#[must_use]
pub fn answer(map: &Map, revision: Revision, txn: &Txn) -> TxnResult {
    let changed = !apply(map, revision, txn).changes.is_empty();
    let mut working = Working { map: map.clone(), changes: Vec::new(), revision: revision + 1 };
    working.txn(map, txn, if changed { revision + 1 } else { revision })
}

/// Ends a lease in the map of `revision`: its keys go, in order.
#[must_use]
pub fn revoke(map: &Map, revision: Revision, lease: i64) -> Applied {
    let keys = leased(map, lease).into_iter().map(|key| Op::delete(key.clone()));
    apply(map, revision, &Txn::of(keys.collect()))
}

/// The keys of a lease, in order.
#[must_use]
pub fn leased(map: &Map, lease: i64) -> Vec<&Vec<u8>> {
    map.iter().filter(|(_, entry)| entry.lease == lease).map(|(key, _)| key).collect()
}

/// What a range finds in a map.
#[must_use]
pub fn range(map: &Map, range: &Range, revision: Revision) -> RangeResult {
    let wanted = map.values().filter(|entry| range.keys.contains(&entry.key));
    let mut entries: Vec<_> = wanted.cloned().collect();
    let count = entries.len();
    if range.limit > 0 {
        entries.truncate(range.limit);
    }
    RangeResult { more: entries.len() < count, entries, revision, count }
}

/// The leases that a transaction puts keys under.
#[must_use]
pub fn leases_of(txn: &Txn) -> BTreeSet<i64> {
    let ops = txn.success.iter().chain(&txn.failure);
    ops.flat_map(|op| match op {
        Op::Put { lease, .. } if *lease != 0 => BTreeSet::from([*lease]),
        Op::Txn(inner) => leases_of(inner),
        _ => BTreeSet::new(),
    })
    .collect()
}

struct Working {
    map: Map,
    changes: Vec<Change>,
    revision: Revision,
}

impl Working {
    fn txn(&mut self, before: &Map, txn: &Txn, reached: Revision) -> TxnResult {
        let succeeded = txn.compare.iter().all(|compare| holds(before, compare));
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let responses = ops.iter().map(|op| self.op(before, op, reached)).collect();
        TxnResult { succeeded, revision: reached, responses }
    }

    fn op(&mut self, before: &Map, op: &Op, reached: Revision) -> OpResult {
        match op {
            Op::Put { key, value, lease } => self.put(key, value, *lease),
            Op::Update { key, value, lease } => {
                // Refused where the key is not there; the clients here ask only where it is.
                let kept = self.map.get(key).cloned();
                let value = value.clone().or_else(|| Some(kept.as_ref()?.value.clone()));
                let lease = lease.or_else(|| Some(kept?.lease));
                self.put(key, &value.unwrap_or_default(), lease.unwrap_or_default())
            }
            Op::Delete(keys) => {
                let found = self.map.values().filter(|entry| keys.contains(&entry.key));
                let deleted: Vec<_> = found.cloned().collect();
                for entry in &deleted {
                    self.map.remove(&entry.key[..]);
                    self.change(Some(entry.clone()), None);
                }
                OpResult::Delete { deleted }
            }
            Op::Range(wanted) => OpResult::Range(range(&self.map, wanted, reached)),
            Op::Txn(txn) => OpResult::Txn(self.txn(before, txn, reached)),
        }
    }

    fn put(&mut self, key: &[u8], value: &Bytes, lease: i64) -> OpResult {
        let previous = self.map.get(key).cloned();
        let entry = Arc::new(Entry {
            key: key.to_vec().into(),
            value: value.clone(),
            create_revision: previous.as_ref().map_or(self.revision, |p| p.create_revision),
            mod_revision: self.revision,
            version: previous.as_ref().map_or(1, |p| p.version + 1),
            lease,
            extracted: FirstByte.extract(key, value).into(),
        });
        self.map.insert(key.to_vec(), entry.clone());
        self.change(previous.clone(), Some(entry.clone()));
        OpResult::Put { previous, entry }
    }

    fn change(&mut self, before: Option<Arc<Entry>>, after: Option<Arc<Entry>>) {
        self.changes.push(Change { revision: self.revision, before, after });
    }
}

fn holds(map: &Map, compare: &Compare) -> bool {
    let mut found = map.values().filter(|entry| compare.keys.contains(&entry.key)).peekable();
    if found.peek().is_none() {
        return related(None, compare);
    }
    found.all(|entry| related(Some(entry), compare))
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
