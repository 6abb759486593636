//! Owns a whole state as a file of records: what checkpoints and snapshots are made of, and how they are read back. Decides neither
//! where such a file lies nor when it is needed.
//!
//! The file: a head (see `record`; its salt is 0, since all of the file is checked before any of it is believed), then records whose
//! sequences are 1, 2, 3, … and whose revision is the state's: `Begin` (revision, highest reserved revision), a `Lease` (id, seconds)
//! for each lease, an `Entry` for each key in the order of keys, `End`. Numbers and entries are encoded as `payload` says.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;

use crate::log::disk::DiskFile;
use crate::log::payload::{RawEntry, Reader, encode_entry, number, signed};
use crate::log::record::{
    BadHead, FILE_HEAD_BYTES, FileHead, FileKind, Header, Kind, Parsed, claimed_bytes, encode,
    parse,
};
use crate::log::{OpenError, Replay};
use crate::revision::Revision;
use crate::seal::{Seal, SealError};
use crate::state::Snapshot;

/// Written and read in pieces of about this size.
pub(crate) const PIECE_BYTES: usize = 256 << 10;

/// A value that can't be sealed, and so can't be written out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the value of {key} can't be sealed: {source}")]
pub struct DumpError {
    /// The key of the store.
    pub key: String,
    /// Why.
    pub source: SealError,
}

#[derive(Debug)]
enum Stage {
    Begin,
    /// Leases behind this one.
    Leases(Option<i64>),
    /// Entries behind this key.
    Entries(Option<Bytes>),
    Done,
}

/// A state on its way into a file.
#[derive(Debug)]
pub(crate) struct Dump {
    snapshot: Snapshot,
    reserved: Revision,
    seal: Option<Arc<dyn Seal>>,
    records: Records,
    stage: Stage,
}

impl Dump {
    pub(crate) fn new(snapshot: Snapshot, reserved: Revision, seal: Option<Arc<dyn Seal>>) -> Self {
        let records = Records { count: 0, revision: snapshot.revision };
        Self { snapshot, reserved, seal, records, stage: Stage::Begin }
    }

    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The length of each lease, where the state doesn't know them.
    pub(crate) fn set_leases(&mut self, leases: OrdMap<i64, u64>) {
        self.snapshot.leases = leases;
    }

    /// Appends records until `out` has `bytes`; `false`: the last one was appended.
    pub(crate) fn append(&mut self, out: &mut Vec<u8>, bytes: usize) -> Result<bool, DumpError> {
        let Self { snapshot, reserved, seal, records, stage } = self;
        if let Stage::Begin = stage {
            records.begin(out, *reserved);
            *stage = Stage::Leases(None);
        }
        if let Stage::Leases(last) = stage {
            let behind = last.map_or(Bound::Unbounded, Bound::Excluded);
            for (lease, ttl_seconds) in snapshot.leases.range((behind, Bound::Unbounded)) {
                records.lease(out, *lease, *ttl_seconds);
                if out.len() >= bytes {
                    *last = Some(*lease);
                    return Ok(true);
                }
            }
            *stage = Stage::Entries(None);
        }
        if let Stage::Entries(last) = stage {
            let behind = last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let entries = snapshot.map.range::<_, [u8]>((behind, Bound::Unbounded));
            for (key, entry) in entries.filter(|(key, _)| !snapshot.is_volatile(key)) {
                let seal = seal.as_ref().filter(|seal| seal.applies(key));
                let sealed = seal.map(|seal| seal.seal(key, &entry.value, snapshot.revision));
                let sealed = sealed.transpose().map_err(|source| DumpError {
                    key: String::from_utf8_lossy(key).into_owned(),
                    source,
                })?;
                let value = sealed.as_deref().unwrap_or(&entry.value);
                records.entry(out, RawEntry::of(entry, value));
                if out.len() >= bytes {
                    *last = Some(key.clone());
                    return Ok(true);
                }
            }
            records.end(out);
            *stage = Stage::Done;
        }
        Ok(false)
    }
}

/// The records of such a file, one behind the other.
#[derive(Debug)]
pub(crate) struct Records {
    pub(crate) count: u64,
    pub(crate) revision: Revision,
}

impl Records {
    fn record(&mut self, out: &mut Vec<u8>, kind: Kind, write: impl FnOnce(&mut Vec<u8>)) {
        self.count += 1;
        let (sequence, revision) = (self.count, self.revision);
        encode(out, 0, Header { kind, sequence, durable: 0, revision }, write);
    }

    pub(crate) fn begin(&mut self, out: &mut Vec<u8>, reserved: Revision) {
        let revision = self.revision;
        self.record(out, Kind::Begin, |out| {
            signed(out, revision);
            signed(out, reserved);
        });
    }

    pub(crate) fn lease(&mut self, out: &mut Vec<u8>, lease: i64, ttl_seconds: u64) {
        self.record(out, Kind::Lease, |out| {
            signed(out, lease);
            number(out, ttl_seconds);
        });
    }

    pub(crate) fn entry(&mut self, out: &mut Vec<u8>, entry: RawEntry<'_>) {
        self.record(out, Kind::Entry, |out| encode_entry(out, entry));
    }

    pub(crate) fn end(&mut self, out: &mut Vec<u8>) {
        self.record(out, Kind::End, |_| {});
    }
}

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    Whole,
    /// Up to the first record: the revision.
    Beginning,
}

/// What a file held.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Read {
    pub(crate) head: FileHead,
    pub(crate) revision: Revision,
    /// Behind the last record that was read.
    pub(crate) offset: usize,
}

/// Reads a file into `replay`.
pub(crate) fn read(
    file: &dyn DiskFile,
    name: &str,
    kind: FileKind,
    replay: &mut dyn Replay,
    extent: Extent,
) -> Result<Read, OpenError> {
    let mut pieces =
        Pieces { file, name, buffer: Vec::new(), at: 0, offset: 0, revision: 0, count: 0 };
    pieces.fill(FILE_HEAD_BYTES)?;
    let head = match FileHead::parse(&pieces.buffer, kind) {
        Ok(head) => head,
        Err(BadHead::Newer(version)) => return Err(OpenError::newer(name, version)),
        Err(BadHead::Damaged) => {
            return Err(OpenError::damaged(name, 0, 0, "the head is not one of this format"));
        }
    };
    pieces.at = FILE_HEAD_BYTES;
    while pieces.replay_record(replay)? && extent == Extent::Whole {}
    Ok(Read { head, revision: pieces.revision, offset: pieces.offset + pieces.at })
}

/// Reads a file forward without holding all of it.
struct Pieces<'a> {
    file: &'a dyn DiskFile,
    name: &'a str,
    buffer: Vec<u8>,
    /// Where in the buffer the next record begins.
    at: usize,
    /// Where in the file the buffer begins.
    offset: usize,
    /// What the records are of; 0 before the first.
    revision: Revision,
    /// Records read.
    count: u64,
}

impl Pieces<'_> {
    /// Makes `bytes` bytes from `at` on available, if the file has them.
    fn fill(&mut self, bytes: usize) -> Result<(), OpenError> {
        if self.buffer.len() - self.at >= bytes {
            return Ok(());
        }
        self.buffer.drain(..self.at);
        self.offset += std::mem::take(&mut self.at);
        let have = self.buffer.len();
        self.buffer.resize(have + bytes.max(PIECE_BYTES), 0);
        let at = (self.offset + have) as u64;
        let read = self.file.read_at(at, &mut self.buffer[have..]);
        let read = read.map_err(OpenError::io(self.name, "read"))?;
        self.buffer.truncate(have + read);
        Ok(())
    }

    /// `false`: that was the last one.
    fn replay_record(&mut self, replay: &mut dyn Replay) -> Result<bool, OpenError> {
        self.fill(64)?;
        if let Some(bytes) = claimed_bytes(&self.buffer[self.at..]) {
            self.fill(bytes)?;
        }
        let (offset, revision) = (self.offset + self.at, self.revision);
        let bad = || OpenError::damaged(self.name, offset, revision, "a record is missing or bad");
        let (header, payload, bytes) = match parse(&self.buffer[self.at..], 0) {
            Parsed::Record { header, payload, bytes } => (header, payload, bytes),
            Parsed::Newer(version) => return Err(OpenError::newer(self.name, version)),
            Parsed::Blank | Parsed::Bad => return Err(bad()),
        };
        self.count += 1;
        let first = self.count == 1;
        if header.sequence != self.count || (header.kind == Kind::Begin) != first {
            return Err(bad());
        }
        if first {
            self.revision = header.revision;
        }
        if header.revision != self.revision {
            return Err(bad());
        }
        replay_one(header.kind, Reader(payload), replay).ok_or_else(bad)?;
        self.at += bytes;
        Ok(header.kind != Kind::End)
    }
}

/// `None`: the payload is not one of this kind.
fn replay_one(kind: Kind, mut payload: Reader<'_>, replay: &mut dyn Replay) -> Option<()> {
    match kind {
        Kind::Begin => replay.begin(payload.signed()?, payload.signed()?),
        Kind::Lease => replay.lease(payload.signed()?, payload.number()?),
        Kind::Entry => replay.entry(payload.entry()?),
        Kind::End => {}
        Kind::Change => return None,
    }
    payload.is_empty().then_some(())
}
