//! Owns the words of a request: key ranges, comparisons, operations, transactions, and their results and errors.
//! Decides nothing; `state` evaluates.

pub(crate) mod check;

use std::sync::Arc;

use bytes::Bytes;

use crate::revision::{Entry, Revision};
use crate::seal::SealError;

/// Which keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyRange {
    /// One key.
    Key(Vec<u8>),
    /// Every key that begins so; the empty prefix is every key.
    Prefix(Vec<u8>),
    /// Keys from `start` on and below `end`; an empty `end` has no upper bound.
    Span {
        /// First key.
        start: Vec<u8>,
        /// First key behind the span.
        end: Vec<u8>,
    },
}

impl KeyRange {
    /// Whether `key` lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(own) => own == key,
            Self::Prefix(prefix) => key.starts_with(prefix),
            Self::Span { start, end } => {
                key >= start.as_slice() && (end.is_empty() || key < end.as_slice())
            }
        }
    }

    /// The first key, and the first one behind; an empty end has no upper bound.
    pub(crate) fn bounds(&self) -> (Vec<u8>, Vec<u8>) {
        match self {
            Self::Key(key) => (key.clone(), [key, &[0][..]].concat()),
            Self::Prefix(prefix) => (prefix.clone(), Self::prefix_end(prefix)),
            Self::Span { start, end } => (start.clone(), end.clone()),
        }
    }

    /// The first key behind all that begin with `prefix`; empty: there is none.
    pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
        let mut end = prefix.to_vec();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                return end;
            }
        }
        end
    }

    /// Whether any key that begins with `prefix` lies in the range.
    pub fn touches_prefix(&self, prefix: &[u8]) -> bool {
        match self {
            Self::Key(key) => key.starts_with(prefix),
            Self::Prefix(own) => own.starts_with(prefix) || prefix.starts_with(own),
            Self::Span { start, end } => {
                let behind = Self::prefix_end(prefix);
                (end.is_empty() || prefix < end.as_slice())
                    && (behind.is_empty() || start.as_slice() < behind.as_slice())
            }
        }
    }
}

/// A read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// Which keys.
    pub keys: KeyRange,
    /// At which revision; `None`: now.
    pub revision: Option<Revision>,
    /// At most so many entries; 0: all.
    pub limit: usize,
}

impl Range {
    /// Every entry of `keys`, now.
    pub fn all(keys: KeyRange) -> Self {
        Self { keys, revision: None, limit: 0 }
    }
}

/// What a [`Range`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeResult {
    /// Entries in the order of their keys.
    pub entries: Vec<Arc<Entry>>,
    /// The revision that the entries are of: the one asked for, or the store's.
    pub revision: Revision,
    /// Whether the limit cut something off.
    pub more: bool,
    /// Number of keys in the whole range, whatever the limit.
    pub count: usize,
}

/// What a comparison looks at. A key that does not exist has 0 everywhere, and no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The number of puts since the key came into being.
    Version(i64),
    /// The revision at which the key came into being.
    CreateRevision(Revision),
    /// The revision of the key's value.
    ModRevision(Revision),
    /// The key's lease.
    Lease(i64),
    /// The key's value.
    Value(Bytes),
}

/// How what the key has relates to what [`Target`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// The same.
    Equal,
    /// Not the same.
    NotEqual,
    /// The key has more.
    Greater,
    /// The key has less.
    Less,
}

/// One condition of a transaction; with several keys, each must satisfy it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// Which keys.
    pub keys: KeyRange,
    /// What is compared.
    pub target: Target,
    /// How.
    pub relation: Relation,
}

impl Compare {
    /// The key's value is the one of this revision.
    pub fn unchanged(key: impl Into<Vec<u8>>, revision: Revision) -> Self {
        let (keys, target) = (KeyRange::Key(key.into()), Target::ModRevision(revision));
        Self { keys, target, relation: Relation::Equal }
    }

    /// The key does not exist.
    pub fn absent(key: impl Into<Vec<u8>>) -> Self {
        Self::unchanged(key, 0)
    }

    /// The key exists.
    pub fn exists(key: impl Into<Vec<u8>>) -> Self {
        Self { relation: Relation::NotEqual, ..Self::absent(key) }
    }
}

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets a key.
    Put {
        /// The key.
        key: Vec<u8>,
        /// Its value.
        value: Bytes,
        /// The lease that it dies with; 0: none.
        lease: i64,
    },
    /// Sets a key that exists, and keeps something of it.
    Update {
        /// The key.
        key: Vec<u8>,
        /// The value; `None` keeps the one that is there.
        value: Option<Bytes>,
        /// The lease; `None` keeps the one that is there.
        lease: Option<i64>,
    },
    /// Deletes keys.
    Delete(KeyRange),
    /// Reads keys, with what earlier operations of the transaction did.
    Range(Range),
    /// A transaction inside. Its comparisons see the state before the outermost one.
    Txn(Box<Txn>),
}

impl Op {
    /// Sets a key that has no lease.
    pub fn put(key: impl Into<Vec<u8>>, value: impl Into<Bytes>) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: 0 }
    }

    /// Deletes one key.
    pub fn delete(key: impl Into<Vec<u8>>) -> Self {
        Self::Delete(KeyRange::Key(key.into()))
    }

    fn writes(&self) -> bool {
        match self {
            Self::Put { .. } | Self::Update { .. } | Self::Delete(_) => true,
            Self::Range(_) => false,
            Self::Txn(txn) => txn.writes(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.len() + value.len(),
            Self::Update { key, value, .. } => key.len() + value.as_ref().map_or(0, Bytes::len),
            Self::Delete(_) | Self::Range(_) => 0,
            Self::Txn(txn) => txn.bytes(),
        }
    }
}

/// A transaction: all of `success` when every comparison holds, else all of `failure`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions.
    pub compare: Vec<Compare>,
    /// What to do when all hold.
    pub success: Vec<Op>,
    /// What to do when one doesn't.
    pub failure: Vec<Op>,
}

impl Txn {
    /// A transaction without conditions.
    pub fn of(ops: Vec<Op>) -> Self {
        Self { success: ops, ..Self::default() }
    }

    /// Whether the transaction could change anything.
    pub(crate) fn writes(&self) -> bool {
        self.success.iter().chain(&self.failure).any(Op::writes)
    }

    /// Keys and values that it could put.
    pub(crate) fn bytes(&self) -> usize {
        self.success.iter().chain(&self.failure).map(Op::bytes).sum()
    }
}

/// What a transaction did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnResult {
    /// Whether the comparisons held.
    pub succeeded: bool,
    /// The store's revision after the transaction; its own when it changed something.
    pub revision: Revision,
    /// One result per operation of the branch that was taken.
    pub responses: Vec<OpResult>,
}

/// What one operation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpResult {
    /// Of [`Op::Put`] and [`Op::Update`].
    Put {
        /// The key before.
        previous: Option<Arc<Entry>>,
        /// The key now.
        entry: Arc<Entry>,
    },
    /// Of [`Op::Delete`].
    Delete {
        /// What was deleted.
        deleted: Vec<Arc<Entry>>,
    },
    /// Of [`Op::Range`].
    Range(RangeResult),
    /// Of [`Op::Txn`].
    Txn(TxnResult),
}

/// Why a read has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The history of that revision is gone.
    #[error("required revision {requested} has been compacted (oldest: {compact_revision})")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// Everything up to here is gone; a watch can begin behind it.
        compact_revision: Revision,
    },
    /// That revision has not happened.
    #[error("required revision {requested} is a future revision (current: {current})")]
    Future {
        /// What was asked for.
        requested: Revision,
        /// Where the store is.
        current: Revision,
    },
}

/// Why a write was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// One transaction would change one key twice.
    #[error("duplicate key given in transaction: {key:?}")]
    DuplicateKey {
        /// The key, as text.
        key: String,
    },
    /// A key of no bytes.
    #[error("key is not provided")]
    EmptyKey,
    /// More comparisons or operations than a transaction takes.
    #[error("too many operations in transaction (at most {ops_max})")]
    TooManyOps {
        /// What is taken.
        ops_max: usize,
    },
    /// A value or a lease is to be kept, and the key is not there.
    #[error("key not found: {key:?}")]
    KeyNotFound {
        /// The key, as text.
        key: String,
    },
    /// The transaction, or the key, is larger than the log takes.
    #[error("transaction of {bytes} bytes is too large (at most {bytes_max})")]
    TooLarge {
        /// What was given.
        bytes: usize,
        /// What is taken.
        bytes_max: usize,
    },
    /// A range in the transaction has no answer.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// There is no such lease.
    #[error("requested lease {id} not found")]
    LeaseNotFound {
        /// The lease.
        id: i64,
    },
    /// There is such a lease already.
    #[error("lease {id} already exists")]
    LeaseExists {
        /// The lease.
        id: i64,
    },
    /// A lease of this length is not granted.
    #[error("lease of {ttl_seconds} s is too long (at most {ttl_seconds_max})")]
    LeaseTtl {
        /// What was asked for.
        ttl_seconds: i64,
        /// What is granted.
        ttl_seconds_max: i64,
    },
    /// The value could not be sealed.
    #[error("the value of {key} can't be sealed: {source}")]
    Seal {
        /// The key of the store.
        key: String,
        /// Why.
        source: SealError,
    },
    /// The log could not be written. Whether this write will be there after a restart is not known; later ones were
    /// not tried. Reads go on.
    #[error("the store refuses writes since its log failed: {reason}")]
    Refused {
        /// What failed, with the file's name.
        reason: Arc<str>,
    },
    /// The datastore can't be reached or has no leader. Nothing was changed; try again.
    #[error("the datastore is not available: {reason}")]
    Unavailable {
        /// What failed.
        reason: Arc<str>,
    },
    /// The answer of the datastore did not come. Whether the write was done is not known: read before trying again.
    #[error(
        "the datastore did not answer in time, and the write may have been done or not: {reason}"
    )]
    Unknown {
        /// What failed.
        reason: Arc<str>,
    },
    /// The datastore holds this value sealed, and can't compare it.
    #[error("the value of {key} is sealed and can't be compared")]
    SealedCompare {
        /// The key, as text.
        key: String,
    },
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

impl WriteError {
    pub(crate) fn seal(key: &[u8], source: SealError) -> Self {
        Self::Seal { key: String::from_utf8_lossy(key).into_owned(), source }
    }
}
