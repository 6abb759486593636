//! Owns checkpoints: a map written out beside the running store, and read back. A checkpoint has its name only when it is whole and
//! durable; until then it is called `<name>.unfinished`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::log::disk::{Disk, DiskFile};
use crate::log::payload::{Reader, encode_entry, number, signed};
use crate::log::record::{
    BadHead, FILE_HEAD_BYTES, FileHead, FileKind, Header, Kind, Parsed, claimed_bytes, encode,
    parse,
};
use crate::log::{Counters, LogError, OpenError, Replay, sequences, sync_names};
use crate::revision::Revision;
use crate::seal::Seal;
use crate::state::Snapshot;

const PREFIX: &str = "checkpoint-";
/// The ending of a checkpoint that is being written.
pub(crate) const UNFINISHED: &str = ".unfinished";
/// Written and read in pieces of about this size.
const PIECE_BYTES: usize = 256 << 10;

/// What is known of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CheckpointInfo {
    /// The last record that it holds.
    pub(crate) sequence: u64,
    pub(crate) revision: Revision,
}

impl CheckpointInfo {
    pub(crate) fn name(self) -> String {
        format!("{PREFIX}{:016x}", self.sequence)
    }
}

/// What a checkpoint is made of.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) sequence: u64,
    pub(crate) snapshot: Snapshot,
    pub(crate) seal: Option<Arc<dyn Seal>>,
    pub(crate) reserved: Revision,
    pub(crate) leases: Vec<(i64, Duration)>,
    /// Set when the store is being closed: the checkpoint can wait for another day.
    pub(crate) stop: Arc<AtomicBool>,
}

struct Writer<'a> {
    file: Arc<dyn DiskFile>,
    contents: &'a Contents,
    head: FileHead,
    buffer: Vec<u8>,
    offset: u64,
    records: u64,
}

impl Writer<'_> {
    fn record(&mut self, kind: Kind, write: impl FnOnce(&mut Vec<u8>)) -> std::io::Result<()> {
        self.records += 1;
        let (sequence, revision) = (self.records, self.contents.snapshot.revision);
        let header = Header { kind, sequence, durable: 0, revision };
        encode(&mut self.buffer, self.head.salt, header, write);
        if self.buffer.len() < PIECE_BYTES { Ok(()) } else { self.piece() }
    }

    fn piece(&mut self) -> std::io::Result<()> {
        if self.contents.stop.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("the store is being closed"));
        }
        self.file.write_at(self.offset, &self.buffer)?;
        self.contents.counters.wrote(self.buffer.len());
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn all(&mut self) -> std::io::Result<()> {
        let snapshot = &self.contents.snapshot;
        self.record(Kind::Begin, |out| {
            signed(out, snapshot.revision);
            signed(out, self.contents.reserved);
        })?;
        for (lease, ttl) in &self.contents.leases {
            self.record(Kind::Lease, |out| {
                signed(out, *lease);
                number(out, ttl.as_secs());
            })?;
        }
        for entry in snapshot.map.values().filter(|entry| !snapshot.is_volatile(&entry.key)) {
            let seal = self.contents.seal.as_ref().filter(|seal| seal.applies(&entry.key));
            let sealed = seal.map(|seal| seal.seal(&entry.key, &entry.value, snapshot.revision));
            let sealed = sealed.transpose().map_err(std::io::Error::other)?;
            let value = sealed.as_deref().unwrap_or(&entry.value);
            self.record(Kind::Entry, |out| encode_entry(out, entry, value))?;
        }
        self.record(Kind::End, |_| {})?;
        self.piece()?;
        self.file.sync()
    }
}

/// Writes a checkpoint; it is durable when this returns.
pub(crate) fn write(contents: &Contents) -> Result<CheckpointInfo, LogError> {
    let (sequence, revision) = (contents.sequence, contents.snapshot.revision);
    let info = CheckpointInfo { sequence, revision };
    let (name, disk) = (info.name(), &*contents.disk);
    let unfinished = format!("{name}{UNFINISHED}");
    // The whole file is checked before any of it is believed, so the salt need not be secret.
    let head = FileHead { sequence, salt: 0 };
    let written = disk.create(&unfinished, 0).and_then(|file| {
        let buffer = head.encode(FileKind::Checkpoint).to_vec();
        let mut writer = Writer { file, contents, head, buffer, offset: 0, records: 0 };
        writer.all()?;
        disk.rename(&unfinished, &name)
    });
    written.map_err(|source| LogError { file: unfinished, source })?;
    sync_names(disk)?;
    Counters::count(&contents.counters.checkpoints);
    Ok(info)
}

/// Reads the oldest checkpoint into `replay`, and the heads of the others.
pub(crate) fn load(
    disk: &dyn Disk,
    names: &[String],
    replay: &mut dyn Replay,
) -> Result<Vec<CheckpointInfo>, OpenError> {
    let mut found = Vec::new();
    for sequence in sequences(names, PREFIX) {
        let name = CheckpointInfo { sequence, revision: 0 }.name();
        let file = disk.open(&name).map_err(OpenError::io(&name, "opened"))?;
        let mut pieces = Pieces { file: &*file, name: &name, buffer: Vec::new(), at: 0, offset: 0 };
        pieces.fill(FILE_HEAD_BYTES)?;
        let head = match FileHead::parse(&pieces.buffer, FileKind::Checkpoint) {
            Ok(head) if head.sequence == sequence => head,
            Ok(_) => return Err(OpenError::damaged(&name, 8, "its sequence is not the name's")),
            Err(BadHead::Newer(version)) => return Err(OpenError::newer(&name, version)),
            Err(BadHead::Damaged) => {
                return Err(OpenError::damaged(&name, 0, "the head is not a checkpoint's"));
            }
        };
        pieces.at = FILE_HEAD_BYTES;
        let revision = records(&mut pieces, head, replay, found.is_empty())?;
        found.push(CheckpointInfo { sequence, revision });
    }
    Ok(found)
}

/// Reads records up to the last, or, for the revision alone, the first.
fn records(
    pieces: &mut Pieces<'_>,
    head: FileHead,
    replay: &mut dyn Replay,
    all: bool,
) -> Result<Revision, OpenError> {
    let mut sequence = 0;
    loop {
        let (offset, name) = (pieces.offset + pieces.at, pieces.name);
        let damaged = || OpenError::damaged(name, offset, "a record is missing or bad");
        let (header, payload) = pieces.record(head.salt)?.ok_or_else(damaged)?;
        sequence += 1;
        if header.sequence != sequence || (header.kind == Kind::Begin) != (sequence == 1) {
            return Err(damaged());
        }
        let mut reader = Reader(payload);
        match header.kind {
            Kind::Begin => {
                let numbers = reader.signed().zip(reader.signed());
                let (revision, reserved) = numbers.ok_or_else(damaged)?;
                if !all {
                    return Ok(revision);
                }
                replay.begin(revision, reserved);
            }
            Kind::Lease => {
                let numbers = reader.signed().zip(reader.number());
                let (lease, ttl_seconds) = numbers.ok_or_else(damaged)?;
                replay.lease(lease, ttl_seconds);
            }
            Kind::Entry => replay.entry(reader.entry().ok_or_else(damaged)?),
            Kind::End => return Ok(header.revision),
            Kind::Change => return Err(damaged()),
        }
    }
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

    /// `None`: there is no good record.
    fn record(&mut self, salt: u32) -> Result<Option<(Header, &[u8])>, OpenError> {
        self.fill(64)?;
        if let Some(bytes) = claimed_bytes(&self.buffer[self.at..]) {
            self.fill(bytes)?;
        }
        let start = self.at;
        match parse(&self.buffer[start..], salt) {
            Parsed::Record { header, payload, bytes } => {
                self.at = start + bytes;
                Ok(Some((header, payload)))
            }
            Parsed::Newer(version) => Err(OpenError::newer(self.name, version)),
            Parsed::Blank | Parsed::Bad => Ok(None),
        }
    }
}
