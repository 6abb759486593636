//! Owns how the store's words become etcd's and back: key ranges, revisions (the store's are etcd's and an offset), entries, sealed
//! values. Pure.
//!
//! Worked example, with an offset of 1000: etcd's key at revision 7 is an entry at 1007. "Not changed since 1007" asks etcd for 7; "absent"
//! (0) stays 0; "changed after 900" is true of every key that exists, and asks for more than 0.

use std::sync::Arc;

use bytes::Bytes;

use crate::grpc::messages::KeyValue;
use crate::revision::{Entry, Extract, Revision};
use crate::seal::{Seal, SealError};
use crate::txn::{KeyRange, ReadError, Relation};

/// What is added to etcd's revisions; a decimal number. Nobody but a move from another datastore writes it, and the store does not show it.
pub(crate) const OFFSET_KEY: &[u8] = b"/flotilla/offset";

/// From here on, or up to the end: etcd's word for no bound.
const NO_BOUND: &[u8] = b"\0";

/// Why something of etcd's can't be taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    /// A value can't be opened.
    #[error("the value of {key} can't be read: {source}")]
    Sealed { key: String, source: SealError },
    /// An answer lacks what it must have.
    #[error("the datastore's answer has no {0}")]
    Missing(&'static str),
}

/// What stands between the store and its etcd.
#[derive(Clone)]
pub(crate) struct Wire {
    pub(crate) offset: Revision,
    pub(crate) extract: Arc<dyn Extract>,
    pub(crate) seal: Option<Arc<dyn Seal>>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl Wire {
    /// The store's revision for one of etcd's.
    pub(crate) fn inward(&self, revision: i64) -> Revision {
        revision + self.offset
    }

    /// etcd's revision for one that is read at. What lies before the first of etcd's is gone.
    pub(crate) fn outward(&self, requested: Revision) -> Result<i64, ReadError> {
        if requested > self.offset {
            return Ok(requested - self.offset);
        }
        let compact_revision = self.offset + 1;
        Err(ReadError::Compacted { requested, compact_revision })
    }

    /// What etcd's revision is compared with, where the store's is compared with `wanted`: 0 is a key's that is absent, and no key is at a
    /// revision from 1 to the offset.
    pub(crate) fn compared(&self, wanted: Revision, relation: Relation) -> i64 {
        if wanted <= 0 {
            return wanted;
        }
        match relation {
            _ if wanted > self.offset => wanted - self.offset,
            Relation::Equal | Relation::NotEqual => -1,
            Relation::Greater => 0,
            Relation::Less => 1,
        }
    }

    /// The entry of a key, its value in the open.
    pub(crate) fn entry(&self, kv: &KeyValue) -> Result<Arc<Entry>, WireError> {
        let sealed = self.seal.as_ref().filter(|seal| seal.applies(&kv.key));
        // Copies: what arrived is a piece of a far larger buffer.
        let value = match sealed {
            Some(seal) => seal.open(&kv.key, &kv.value).map(Bytes::from).map_err(|source| {
                WireError::Sealed { key: String::from_utf8_lossy(&kv.key).into_owned(), source }
            })?,
            None => Bytes::copy_from_slice(&kv.value),
        };
        Ok(Arc::new(Entry {
            extracted: self.extract.extract(&kv.key, &value).shrunk(),
            key: Bytes::copy_from_slice(&kv.key),
            value,
            create_revision: self.inward(kv.create_revision),
            mod_revision: self.inward(kv.mod_revision),
            version: kv.version,
            lease: kv.lease,
        }))
    }

    /// Tells the key ring of a value that came in plain.
    pub(crate) fn observe(&self, entry: &Entry) {
        if let Some(seal) = self.seal.as_ref().filter(|seal| !seal.applies(&entry.key)) {
            seal.observe(&entry.key, &entry.value, entry.mod_revision);
        }
    }
}

/// `key` and `range_end` of a range.
pub(crate) fn bounds(keys: &KeyRange) -> (Bytes, Bytes) {
    let no_bound = || Bytes::from_static(NO_BOUND);
    let or_all = |bound: Vec<u8>| if bound.is_empty() { no_bound() } else { bound.into() };
    match keys {
        KeyRange::Key(key) => (key.clone().into(), Bytes::new()),
        KeyRange::Prefix(prefix) => (or_all(prefix.clone()), or_all(KeyRange::prefix_end(prefix))),
        // Nothing lies there. An end below the start means other things to etcd: one key, or no bound.
        KeyRange::Span { start, end } if !end.is_empty() && start >= end => {
            let empty = [start.as_slice(), &[0]].concat();
            (empty.clone().into(), empty.into())
        }
        KeyRange::Span { start, end } => (or_all(start.clone()), or_all(end.clone())),
    }
}

/// A range that would show the hidden key, as the two around it.
pub(crate) fn around_hidden(keys: &KeyRange) -> Option<[KeyRange; 2]> {
    if !keys.contains(OFFSET_KEY) {
        return None;
    }
    let behind = [OFFSET_KEY, &[0]].concat();
    let (start, end) = match keys {
        KeyRange::Key(key) => (key.clone(), behind.clone()),
        KeyRange::Prefix(_) | KeyRange::Span { .. } => keys.bounds(),
    };
    let first = KeyRange::Span { start, end: OFFSET_KEY.to_vec() };
    Some([first, KeyRange::Span { start: behind, end }])
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::revision::ExtractNothing;

    #[test]
    fn a_comparison_means_the_same_on_both_sides_of_the_offset() {
        for offset in [0, 1, 5] {
            let wire = Wire { offset, extract: Arc::new(ExtractNothing), seal: None };
            let relations = [
                (Relation::Equal, i64::eq as fn(&i64, &i64) -> bool),
                (Relation::NotEqual, i64::ne),
                (Relation::Greater, i64::gt),
                (Relation::Less, i64::lt),
            ];
            for own in [0, 1, 2, 7] {
                let seen = if own == 0 { 0 } else { own + offset };
                for wanted in -2..15 {
                    for (relation, holds) in relations {
                        let asked = wire.compared(wanted, relation);
                        let (there, here) = (holds(&own, &asked), holds(&seen, &wanted));
                        assert_eq!(there, here, "{own} {relation:?} {wanted}, offset {offset}");
                    }
                }
            }
        }
    }

    #[test]
    fn revisions_before_the_datastore_are_gone() {
        let wire = Wire { offset: 1000, extract: Arc::new(ExtractNothing), seal: None };
        assert_eq!(wire.outward(1001), Ok(1));
        let gone = ReadError::Compacted { requested: 1000, compact_revision: 1001 };
        assert_eq!(wire.outward(1000), Err(gone));
        assert_eq!(wire.inward(wire.outward(1234).unwrap()), 1234);
    }
}
