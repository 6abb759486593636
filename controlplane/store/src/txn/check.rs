//! Owns what can be said about a transaction before it is evaluated: keys are given, operations are not too many, and no key can
//! be changed twice. Pure, and independent of what the store holds, as etcd's answer is.
//!
//! Worked example: `[put a, delete [a, c)]` changes `a` twice. `[txn {then: put a, else: put a}]` doesn't, since one branch is
//! taken; with a `put a` beside it, it does. Two deletes may overlap: the second finds nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::txn::{KeyRange, Op, Txn, WriteError};

/// How many comparisons, or operations of one branch, a transaction has at most, those around it included: etcd's default.
pub const TXN_OPS_MAX: usize = 128;

/// Whether the transaction can be evaluated at all.
pub(crate) fn check(txn: &Txn) -> Result<(), WriteError> {
    check_shape(txn, TXN_OPS_MAX)?;
    if !txn.writes() {
        return Ok(());
    }
    for ops in [&txn.success, &txn.failure] {
        if !matches!(ops.as_slice(), [] | [Op::Put { .. } | Op::Update { .. } | Op::Delete(_)]) {
            Changes::of(ops)?;
        }
    }
    Ok(())
}

fn check_shape(txn: &Txn, ops_max: usize) -> Result<(), WriteError> {
    let ops = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    if ops > ops_max {
        return Err(WriteError::TooManyOps { ops_max: TXN_OPS_MAX });
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Put { key, .. } | Op::Update { key, .. } if key.is_empty() => {
                return Err(WriteError::EmptyKey);
            }
            Op::Txn(inner) => check_shape(inner, ops_max - ops)?,
            Op::Put { .. } | Op::Update { .. } | Op::Delete(_) | Op::Range(_) => {}
        }
    }
    Ok(())
}

/// What a list of operations can change.
#[derive(Default)]
struct Changes<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Spans,
}

impl<'a> Changes<'a> {
    fn of(ops: &'a [Op]) -> Result<Self, WriteError> {
        let mut all = Self::default();
        for op in ops {
            match op {
                Op::Put { key, .. } | Op::Update { key, .. } => {
                    all.add(Self { puts: [key.as_slice()].into(), deletes: Spans::default() })?;
                }
                Op::Delete(keys) => {
                    let mut deletes = Spans::default();
                    deletes.add(keys);
                    all.add(Self { puts: BTreeSet::new(), deletes })?;
                }
                Op::Txn(txn) => {
                    let (then, or) = (Self::of(&txn.success)?, Self::of(&txn.failure)?);
                    all.add(then.or(or))?;
                }
                Op::Range(_) => {}
            }
        }
        Ok(all)
    }

    /// One of both happens.
    fn or(mut self, mut other: Self) -> Self {
        if self.puts.len() < other.puts.len() {
            std::mem::swap(&mut self.puts, &mut other.puts);
        }
        self.puts.extend(other.puts);
        self.deletes.append(other.deletes);
        self
    }

    /// Both happen.
    fn add(&mut self, other: Self) -> Result<(), WriteError> {
        let twice =
            other.puts.iter().find(|key| self.puts.contains(*key) || self.deletes.contains(key));
        let deleted = || other.deletes.all().find_map(|span| first_within(&self.puts, span));
        if let Some(key) = twice.copied().or_else(deleted) {
            return Err(WriteError::DuplicateKey {
                key: String::from_utf8_lossy(key).into_owned(),
            });
        }
        let Self { puts, deletes } = std::mem::take(self);
        *self = Self { puts, deletes }.or(other);
        Ok(())
    }
}

fn first_within<'a>(keys: &BTreeSet<&'a [u8]>, (start, end): (&[u8], &[u8])) -> Option<&'a [u8]> {
    let upper = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) };
    keys.range::<[u8], _>((Bound::Included(start), upper)).next().copied()
}

/// Spans of keys that don't touch: first key to the first key behind; an empty end has no upper bound.
#[derive(Default)]
struct Spans {
    ends: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Spans {
    fn all(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.ends.iter().map(|(start, end)| (start.as_slice(), end.as_slice()))
    }

    fn contains(&self, key: &[u8]) -> bool {
        let mut before = self.ends.range::<[u8], _>((Bound::Unbounded, Bound::Included(key)));
        before.next_back().is_some_and(|(_, end)| end.is_empty() || key < end.as_slice())
    }

    fn add(&mut self, keys: &KeyRange) {
        let (start, end) = keys.bounds();
        if end.is_empty() || start < end {
            self.insert(start, end);
        }
    }

    fn insert(&mut self, mut start: Vec<u8>, mut end: Vec<u8>) {
        let behind =
            |end: &[u8], other: &[u8]| other.is_empty() || (!end.is_empty() && end < other);
        loop {
            let upper =
                if end.is_empty() { Bound::Unbounded } else { Bound::Included(end.as_slice()) };
            let last = self.ends.range::<[u8], _>((Bound::Unbounded, upper)).next_back();
            let touching = last.filter(|(_, other)| other.is_empty() || **other >= start);
            let Some((other, _)) = touching else { break };
            let other = other.clone();
            let Some(other_end) = self.ends.remove(&other) else { break };
            start = start.min(other);
            if behind(&end, &other_end) && !end.is_empty() {
                end = other_end;
            }
        }
        self.ends.insert(start, end);
    }

    fn append(&mut self, other: Self) {
        for (start, end) in other.ends {
            self.insert(start, end);
        }
    }
}
