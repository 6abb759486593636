//! Owns durability: records in segments, checkpoints of the map, recovery, and the removal of what nobody needs. Knows
//! sequences and bytes; what they mean is [`Replay`]'s.
//!
//! The folder holds `log-<first sequence>` and `checkpoint-<last sequence>` (16 hex digits). Recovery loads the oldest checkpoint
//! (none where the first segment is still there) and replays every record behind it, so that the history comes back with the state. A checkpoint is the base as soon as the history
//! begins behind it; then older checkpoints go, and after them the segments that only they needed. In this order: a crash in
//! between leaves too much, never too little.

pub(crate) mod checkpoint;
pub(crate) mod disk;
pub(crate) mod dump;
pub(crate) mod faulty;
pub(crate) mod payload;
pub(crate) mod record;
pub(crate) mod segment;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::Written;
use crate::log::checkpoint::CheckpointInfo;
use crate::log::disk::Disk;
use crate::log::payload::{RawEntry, Reader};
use crate::log::record::{FORMAT_VERSION, Header, Kind};
use crate::log::segment::{SegmentInfo, Tail};
use crate::revision::Revision;
use crate::seal::SealError;

/// The batch's buffer is given back above this size.
const BATCH_BYTES_KEPT: usize = 256 << 10;

/// The sizes of the log's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSizes {
    /// What a segment is allocated with: small beside a device's disk, large beside a batch.
    pub segment_bytes: u64,
    /// So much log is worth a checkpoint, however small the state is.
    pub checkpoint_bytes_min: u64,
}

impl Default for LogSizes {
    fn default() -> Self {
        Self { segment_bytes: 4 << 20, checkpoint_bytes_min: 8 << 20 }
    }
}

/// Why a store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the folder.
    #[error("{dir} is in use by another process (pid {holder}); one process at a time may have it")]
    Locked {
        /// The folder.
        dir: String,
        /// What the lock file says of its holder.
        holder: String,
    },
    /// The disk failed.
    #[error("{file}: cannot be {doing}")]
    Io {
        /// The file.
        file: String,
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Something that was durable is not there as it was written. Nothing was changed; restore a snapshot.
    #[error(
        "{file} is damaged at offset {offset}, behind revision {revision}: {what}; acknowledged writes would be lost, so the \
         store is not opened"
    )]
    Damaged {
        /// The file.
        file: String,
        /// Where.
        offset: usize,
        /// The revision of what stands before that and is good; 0: nothing does.
        revision: Revision,
        /// What is wrong.
        what: &'static str,
    },
    /// A sealed value can't be opened.
    #[error("the value of {key} can't be opened: {source}")]
    Sealed {
        /// The key of the store.
        key: String,
        /// Why.
        source: SealError,
    },
    /// Written by a newer program.
    #[error("{file} has format version {version}; this program reads up to {supported}")]
    Newer {
        /// The file.
        file: String,
        /// Its version.
        version: u8,
        /// What this program reads.
        supported: u8,
    },
    /// A real etcd cluster is the log, and it can't be used.
    #[error("the datastore at {endpoints}: {reason}")]
    Datastore {
        /// Its endpoints.
        endpoints: String,
        /// Why.
        reason: String,
    },
}

impl OpenError {
    pub(crate) fn io(file: &str, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { file: file.to_owned(), doing, source }
    }

    pub(crate) fn damaged(
        file: &str,
        offset: usize,
        revision: Revision,
        what: &'static str,
    ) -> Self {
        Self::Damaged { file: file.to_owned(), offset, revision, what }
    }

    pub(crate) fn newer(file: &str, version: u8) -> Self {
        Self::Newer { file: file.to_owned(), version, supported: FORMAT_VERSION }
    }
}

/// Why the log can't go on.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {source}")]
pub(crate) struct LogError {
    pub(crate) file: String,
    pub(crate) source: io::Error,
}

/// Takes what recovery reads. `None`: the bytes are not of this format.
pub(crate) trait Replay {
    fn begin(&mut self, revision: Revision, reserved: Revision);
    fn entry(&mut self, entry: RawEntry<'_>);
    fn lease(&mut self, lease: i64, ttl_seconds: u64);
    fn change(&mut self, revision: Revision, ops: Reader<'_>) -> Option<()>;
}

/// What was written, counted where it is written.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) bytes: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) checkpoints: AtomicU64,
    pub(crate) checkpoint_failures: AtomicU64,
}

impl Counters {
    pub(crate) fn wrote(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn written(&self) -> Written {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Written {
            bytes: load(&self.bytes),
            flushes: load(&self.flushes),
            checkpoints: load(&self.checkpoints),
            checkpoint_failures: load(&self.checkpoint_failures),
        }
    }
}

/// The log of one store.
#[derive(Debug)]
pub(crate) struct Log {
    disk: Arc<dyn Disk>,
    counters: Arc<Counters>,
    sizes: LogSizes,
    salt: u32,
    /// Oldest first; records go to the last.
    segments: Vec<SegmentInfo>,
    /// Oldest first.
    checkpoints: Vec<CheckpointInfo>,
    tail: Option<Tail>,
    next_sequence: u64,
    /// Everything up to here is flushed.
    durable: u64,
    batch: Vec<u8>,
    bytes_since_checkpoint: u64,
}

impl Log {
    /// Recovers what is in the folder into `replay`.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        counters: Arc<Counters>,
        sizes: LogSizes,
        replay: &mut dyn Replay,
    ) -> Result<Self, OpenError> {
        let names = disk.names().map_err(OpenError::io("the store's folder", "listed"))?;
        // What a killed process made, renamed and removed may not be durable yet; what follows relies on it.
        disk.sync_names().map_err(OpenError::io("the store's folder", "flushed"))?;
        for name in names.iter().filter(|name| name.ends_with(checkpoint::UNFINISHED)) {
            disk.remove(name).map_err(OpenError::io(name, "removed"))?;
        }
        // A log that is there from its first record on needs no checkpoint, and has the whole history.
        let first = segment::first_sequence(&names);
        let (checkpoints, base) = checkpoint::load(&*disk, &names, first, replay)?;
        let base = base.unwrap_or(CheckpointInfo { sequence: 0, revision: 0 });
        let recovered = segment::recover(&*disk, &names, base, replay)?;
        // A file that recovery removed must not come back between later ones.
        disk.sync_names().map_err(OpenError::io("the store's folder", "flushed"))?;
        let newest = checkpoints.last().map_or(0, |newest| newest.sequence);
        let later = recovered.segments.iter().filter(|segment| segment.first_sequence > newest);
        let random = RandomState::new().build_hasher().finish();
        Ok(Self {
            salt: recovered.salt.unwrap_or((random >> 32) as u32),
            bytes_since_checkpoint: later.count() as u64 * sizes.segment_bytes,
            segments: recovered.segments,
            checkpoints,
            tail: recovered.tail,
            next_sequence: recovered.last_sequence + 1,
            durable: recovered.last_sequence,
            batch: Vec::new(),
            disk,
            counters,
            sizes,
        })
    }

    /// Adds a change to the batch.
    pub(crate) fn append(&mut self, revision: Revision, write: impl FnOnce(&mut Vec<u8>)) {
        let (sequence, durable) = (self.next_sequence, self.durable);
        let header = Header { kind: Kind::Change, sequence, durable, revision };
        record::encode(&mut self.batch, self.salt, header, write);
        self.next_sequence += 1;
    }

    pub(crate) fn batch_bytes(&self) -> usize {
        self.batch.len()
    }

    /// Writes and flushes the batch. After an error the log must not be used.
    pub(crate) fn flush(&mut self) -> Result<(), LogError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let bytes = self.batch.len() as u64;
        let tail = match &mut self.tail {
            Some(tail) if tail.room() >= bytes => tail,
            _ => {
                let first_sequence = self.durable + 1;
                // An empty segment that is too small is replaced by one of the same name.
                self.segments.pop_if(|last| last.first_sequence == first_sequence);
                let (info, tail) = segment::create(
                    &*self.disk,
                    first_sequence,
                    self.salt,
                    self.sizes.segment_bytes.max(bytes),
                )?;
                self.counters.wrote(record::FILE_HEAD_BYTES);
                self.segments.push(info);
                self.tail.insert(tail)
            }
        };
        tail.append(&self.batch)?;
        self.counters.wrote(self.batch.len());
        Counters::count(&self.counters.flushes);
        self.durable = self.next_sequence - 1;
        self.bytes_since_checkpoint += bytes;
        self.batch.clear();
        self.batch.shrink_to(BATCH_BYTES_KEPT);
        Ok(())
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Whether the log has outgrown the state: then a checkpoint at most doubles what is written.
    pub(crate) fn wants_checkpoint(&self, state_bytes: usize) -> bool {
        let newest = self.checkpoints.last().map_or(0, |newest| newest.sequence);
        self.durable > newest
            && self.bytes_since_checkpoint > self.sizes.checkpoint_bytes_min.max(state_bytes as u64)
    }

    /// The next checkpoint is due only after as much log again, whatever becomes of this one.
    pub(crate) fn checkpoint_started(&mut self) {
        self.bytes_since_checkpoint = 0;
    }

    pub(crate) fn checkpoint_finished(&mut self, info: CheckpointInfo) {
        self.checkpoints.push(info);
    }

    /// Removes what recovery no longer needs when the history begins behind `compacted`.
    pub(crate) fn remove_unneeded(&mut self, compacted: Revision) -> Result<(), LogError> {
        let base = self.checkpoints.iter().rposition(|info| info.revision <= compacted);
        let Some(base) = base.filter(|base| *base > 0 || self.has_unneeded_segment()) else {
            return Ok(());
        };
        // What could not be removed stays in the lists, since recovery will find it too.
        for _ in 0..base {
            remove(&*self.disk, &self.checkpoints[0].name())?;
            self.checkpoints.remove(0);
        }
        sync_names(&*self.disk)?;
        while self.has_unneeded_segment() {
            let oldest = self.segments[0];
            remove(&*self.disk, &oldest.name())?;
            // Whoever finds the first segment takes the log for whole.
            if oldest.is_first() {
                sync_names(&*self.disk)?;
            }
            self.segments.remove(0);
        }
        Ok(())
    }

    fn has_unneeded_segment(&self) -> bool {
        let base = self.checkpoints.first().map_or(0, |info| info.sequence);
        self.segments.get(1).is_some_and(|second| second.first_sequence <= base + 1)
    }
}

fn remove(disk: &dyn Disk, name: &str) -> Result<(), LogError> {
    match disk.remove(name) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(LogError { file: name.to_owned(), source })
        }
        // Gone by an earlier try.
        Ok(()) | Err(_) => Ok(()),
    }
}

pub(crate) fn sync_names(disk: &dyn Disk) -> Result<(), LogError> {
    disk.sync_names().map_err(|source| LogError { file: "the store's folder".to_owned(), source })
}

/// The sequences of the files that are called `<prefix><16 hex digits>`, in order.
pub(crate) fn sequences(names: &[String], prefix: &str) -> Vec<u64> {
    let own = names.iter().filter_map(|name| name.strip_prefix(prefix));
    let hex = own.filter(|rest| rest.len() == 16);
    let mut found: Vec<_> = hex.filter_map(|rest| u64::from_str_radix(rest, 16).ok()).collect();
    found.sort_unstable();
    found
}
