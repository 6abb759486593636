//! Owns what one revision of one key is: entries, events and what is extracted from a value. Knows no Kubernetes:
//! the meaning of a value comes in through [`Extract`].

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;

/// etcd's revision: one per transaction that changes something. An empty store is at revision 1.
pub type Revision = i64;

/// The revision of a store that has never been written.
pub const FIRST_REVISION: Revision = 1;

/// Reads from a value, once, what lists and watches filter by.
pub trait Extract: Send + Sync {
    /// Called when a value is committed or loaded; must be pure and must not panic on any bytes.
    fn extract(&self, key: &[u8], value: &[u8]) -> Extracted;
}

/// An [`Extract`] that reads nothing, for stores of opaque values.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExtractNothing;

impl Extract for ExtractNothing {
    fn extract(&self, _key: &[u8], _value: &[u8]) -> Extracted {
        Extracted::default()
    }
}

/// What was read from a value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extracted {
    /// Labels, sorted by key.
    pub labels: Vec<(Box<str>, Box<str>)>,
    /// Selectable fields, such as `("spec.nodeName", "n1")`.
    pub fields: Vec<(Box<str>, Box<str>)>,
    /// UIDs of the owners.
    pub owners: Vec<Box<str>>,
    /// Index keys that a watch can ask for, such as `"node/n1"`.
    pub index: Vec<Box<str>>,
    /// Offset in the value at which the reader inserts the revision.
    pub splice_at: u32,
}

impl Extracted {
    /// Gives back what the vectors allocated and don't use: an entry lives long.
    pub(crate) fn shrunk(mut self) -> Extracts {
        self.labels.shrink_to_fit();
        self.fields.shrink_to_fit();
        self.owners.shrink_to_fit();
        self.index.shrink_to_fit();
        self.into()
    }
}

/// What an entry carries of [`Extracted`]: nothing at all where nothing was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extracts(Option<Box<Extracted>>);

static NOTHING: Extracted = Extracted {
    labels: Vec::new(),
    fields: Vec::new(),
    owners: Vec::new(),
    index: Vec::new(),
    splice_at: 0,
};

impl From<Extracted> for Extracts {
    fn from(extracted: Extracted) -> Self {
        Self((extracted != NOTHING).then(|| Box::new(extracted)))
    }
}

impl Deref for Extracts {
    type Target = Extracted;

    fn deref(&self) -> &Extracted {
        self.0.as_deref().unwrap_or(&NOTHING)
    }
}

/// One key at one revision.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// The value as it was put.
    pub value: Bytes,
    /// Revision at which the key came into being.
    pub create_revision: Revision,
    /// Revision of this value.
    pub mod_revision: Revision,
    /// Number of puts since the key came into being, this one included.
    pub version: i64,
    /// Lease that the key dies with; 0: none.
    pub lease: i64,
    /// What was read from the value.
    pub extracted: Extracts,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &String::from_utf8_lossy(&self.key))
            .field("bytes", &self.value.len())
            .field("create_revision", &self.create_revision)
            .field("mod_revision", &self.mod_revision)
            .field("version", &self.version)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

/// One change of one key.
#[derive(Debug)]
pub struct Event {
    /// Revision of the transaction that made the change.
    pub revision: Revision,
    /// The key before; `None`: it did not exist.
    pub before: Option<Arc<Entry>>,
    /// The key after; `None`: it was deleted.
    pub after: Option<Arc<Entry>>,
    /// Room for the one serialisation that the watchers share.
    pub rendered: OnceLock<Bytes>,
    /// When this process saw the change, on the monotonic clock.
    pub(crate) seen: Instant,
    /// Counted once: when it is forgotten its entries are long out of every cache.
    cost_bytes: usize,
}

/// What an event costs beside keys and values: the event, its entry, their places in the ring.
const EVENT_OVERHEAD_BYTES: usize = 256;

impl Event {
    pub(crate) fn new(
        revision: Revision,
        before: Option<Arc<Entry>>,
        after: Option<Arc<Entry>>,
    ) -> Arc<Self> {
        let (rendered, seen) = (OnceLock::new(), Instant::now());
        let value = |entry: &Option<Arc<Entry>>| entry.as_ref().map_or(0, |e| e.value.len());
        let key = after.as_ref().or(before.as_ref()).map_or(0, |entry| entry.key.len());
        let cost_bytes = EVENT_OVERHEAD_BYTES + key + value(&before) + value(&after);
        Arc::new(Self { revision, before, after, rendered, seen, cost_bytes })
    }

    /// The key that changed.
    pub fn key(&self) -> &[u8] {
        self.after.as_ref().or(self.before.as_ref()).map_or(&[], |entry| &entry.key)
    }

    /// What the history pays for keeping this event: the superseded value and, since readers may
    /// have rendered it, the new one.
    pub(crate) fn cost_bytes(&self) -> usize {
        self.cost_bytes
    }
}
