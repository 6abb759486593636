//! Owns the records of what was evaluated and is not yet on its way to the disk. Numbers them; never writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::log::record::{self, Header, Kind};
use crate::revision::Revision;

/// Records in the making.
#[derive(Debug)]
pub(crate) struct Appender {
    salt: u32,
    next_sequence: u64,
    /// Every record up to here is flushed.
    durable: Arc<AtomicU64>,
    bytes: Vec<u8>,
}

impl Appender {
    pub(crate) fn new(salt: u32, durable: Arc<AtomicU64>) -> Self {
        let next_sequence = durable.load(Ordering::Acquire) + 1;
        Self { salt, next_sequence, durable, bytes: Vec::new() }
    }

    /// The mark that records carry: who publishes moves it.
    pub(crate) fn durable(&self) -> &Arc<AtomicU64> {
        &self.durable
    }

    /// Every record up to here is flushed.
    pub(crate) fn durable_sequence(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Adds a change.
    pub(crate) fn append(&mut self, revision: Revision, write: impl FnOnce(&mut Vec<u8>)) {
        let (sequence, durable) = (self.next_sequence, self.durable.load(Ordering::Acquire));
        let header = Header { kind: Kind::Change, sequence, durable, revision };
        record::encode(&mut self.bytes, self.salt, header, write);
        self.next_sequence += 1;
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The sequence of the next record.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// The records since the last call; goes on in `empty`.
    pub(crate) fn take(&mut self, empty: Vec<u8>) -> Vec<u8> {
        std::mem::replace(&mut self.bytes, empty)
    }

    /// Forgets every record that is not durable.
    pub(crate) fn rewind(&mut self) {
        self.bytes.clear();
        self.next_sequence = self.durable.load(Ordering::Acquire) + 1;
    }
}
