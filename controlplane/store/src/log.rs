//! Owns durability: records in segments, checkpoints of the map, recovery, and the removal of what nobody needs. Knows
//! sequences and bytes; what they mean is [`Replay`]'s.
//!
//! The folder holds `log-<first sequence>` and `checkpoint-<last sequence>` (16 hex digits). Recovery loads the oldest checkpoint
//! (none where the first segment is still there) and replays every record behind it, so that the history comes back with the state.
//! A checkpoint is the base as soon as the history
//! begins behind it; then older checkpoints go, and after them the segments that only they needed. In this order: a crash in
//! between leaves too much, never too little.

pub(crate) mod appender;
pub(crate) mod checkpoint;
pub(crate) mod chore;
pub(crate) mod disk;
pub(crate) mod dump;
pub(crate) mod faulty;
pub(crate) mod payload;
pub(crate) mod record;
pub(crate) mod recover;
pub(crate) mod segment;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::backend::Written;
use crate::log::appender::Appender;
use crate::log::checkpoint::CheckpointInfo;
use crate::log::chore::{Chore, Done};
use crate::log::disk::Disk;
use crate::log::payload::{RawEntry, Reader};
use crate::log::record::FORMAT_VERSION;
use crate::log::recover::Known;
use crate::log::segment::{Growth, NewSegment, Place, SegmentInfo, Spare, Tail};
use crate::revision::Revision;
use crate::seal::SealError;

/// A checkpoint of a large state waits for so much more log than the state has, at most.
const CHECKPOINT_DELAY_BYTES_MAX: u64 = 256 << 20;

/// So many segments that nobody needs are kept to be the next ones.
const SPARES_MAX: usize = 4;
/// A segment has less room than bytes.
const HEAD_BYTES: u64 = record::FILE_HEAD_BYTES as u64;

/// The sizes of the log's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSizes {
    /// What a segment is made with: small beside a device's disk, large beside a batch. It grows while segments are filled
    /// fast.
    pub segment_bytes: u64,
    /// So much log is worth a checkpoint, however small the state is.
    pub checkpoint_bytes_min: u64,
}

impl Default for LogSizes {
    fn default() -> Self {
        Self { segment_bytes: 4 << 20, checkpoint_bytes_min: 32 << 20 }
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
    /// A real etcd cluster is the log, and it can't be used.
    #[error("the datastore at {endpoints}: {reason}")]
    Datastore {
        /// Its endpoints.
        endpoints: String,
        /// Why.
        reason: String,
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

/// The files of one store's log.
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
    /// Files that are to become the next segments.
    spares: Vec<Spare>,
    next_spare: u64,
    /// One is being made, or segments are being made some.
    making_spares: bool,
    growth: Growth,
    bytes_since_checkpoint: u64,
    /// The next try waits for the next checkpoint.
    removal_failed: bool,
}

impl Log {
    /// Recovers what is in the folder into `replay`.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        counters: Arc<Counters>,
        sizes: LogSizes,
        replay: &mut dyn Replay,
    ) -> Result<(Self, Appender), OpenError> {
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
        let newest = checkpoints.last().map_or(0, |newest| newest.sequence);
        let recovered = recover::recover(&*disk, &names, Known { base, newest }, replay)?;
        // A file that recovery removed must not come back between later ones.
        disk.sync_names().map_err(OpenError::io("the store's folder", "flushed"))?;
        let later = recovered.segments.iter().filter(|segment| segment.first_sequence > newest);
        let random = RandomState::new().build_hasher().finish();
        let salt = recovered.salt.unwrap_or((random >> 32) as u32);
        let durable = Arc::new(AtomicU64::new(recovered.last_sequence));
        let log = Self {
            salt,
            bytes_since_checkpoint: later.map(|segment| segment.bytes).sum(),
            segments: recovered.segments,
            checkpoints,
            tail: recovered.tail,
            spares: Vec::new(),
            next_spare: 0,
            making_spares: false,
            removal_failed: false,
            growth: Growth::new(sizes.segment_bytes),
            disk,
            counters,
            sizes,
        };
        Ok((log, Appender::new(salt, durable)))
    }

    /// Whether the last segment has room for so many bytes.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.tail.as_ref().is_some_and(|tail| tail.room() >= bytes)
    }

    /// Gives out the next bytes of the last segment. `None`: it has no room.
    pub(crate) fn place(&mut self, bytes: u64) -> Option<Result<Place, LogError>> {
        let tail = self.tail.as_mut().filter(|tail| tail.room() >= bytes)?;
        self.bytes_since_checkpoint += bytes;
        Some(tail.place(&*self.disk, bytes))
    }

    /// Takes the file of a place back, for the next one.
    pub(crate) fn give_back(&mut self, place: Place) {
        if let Some(tail) = &mut self.tail {
            tail.give_back(place);
        }
    }

    /// What a new segment is made of, whose first record is this one. Everything before must be durable when it is made.
    pub(crate) fn plan_segment(&mut self, first_sequence: u64, bytes: u64) -> NewSegment {
        self.bytes_since_checkpoint += bytes;
        let wanted = self.growth.size.max(bytes);
        let with_room =
            |room: u64| self.spares.iter().position(|spare| spare.bytes >= room + HEAD_BYTES);
        let large_enough = with_room(wanted).or_else(|| with_room(bytes));
        let spare = large_enough.map(|at| self.spares.remove(at));
        let (disk, salt) = (self.disk.clone(), self.salt);
        NewSegment { disk, salt, first_sequence, bytes: wanted, spare }
    }

    /// Goes on in a new segment.
    pub(crate) fn go_on_in(&mut self, info: SegmentInfo, tail: Tail) {
        self.counters.wrote(record::FILE_HEAD_BYTES);
        self.growth.made(Instant::now());
        // An empty segment that was too small has been replaced by one of the same name.
        self.segments.pop_if(|last| last.first_sequence == info.first_sequence);
        self.segments.push(info);
        self.tail = Some(tail);
    }

    /// Takes back what was given out from this offset of this file on: nothing of it is to be found there.
    pub(crate) fn take_back(&mut self, place: &Place) {
        if let Some(tail) = &mut self.tail {
            tail.take_back(place);
        }
    }

    /// Makes sure that nothing is found of what was taken back. Where there was no room for a large segment, there may be for a small one.
    pub(crate) fn cut(&mut self) -> Result<(), LogError> {
        self.growth.begin_again();
        self.tail.as_mut().map_or(Ok(()), Tail::cut)
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Whether the log has outgrown the state: then a checkpoint of it up to `sequence` is worth writing.
    pub(crate) fn wants_checkpoint(&self, sequence: u64, state_bytes: usize) -> bool {
        let state_bytes = state_bytes as u64;
        // Three times the state makes checkpoints a quarter of what is written; recovery of a large one must not wait for it.
        let worth = (3 * state_bytes).min(state_bytes + CHECKPOINT_DELAY_BYTES_MAX);
        self.has_checkpoint_to_write(sequence)
            && self.bytes_since_checkpoint > self.sizes.checkpoint_bytes_min.max(worth)
    }

    /// Whether there is more up to `sequence` than in the newest checkpoint.
    pub(crate) fn has_checkpoint_to_write(&self, sequence: u64) -> bool {
        let newest = self.checkpoints.last().map_or(0, |newest| newest.sequence);
        sequence > newest
    }

    /// The next checkpoint is due only after as much log again, whatever becomes of this one.
    pub(crate) fn checkpoint_started(&mut self) {
        self.bytes_since_checkpoint = 0;
    }

    pub(crate) fn checkpoint_finished(&mut self, info: CheckpointInfo) {
        self.checkpoints.push(info);
        self.removal_failed = false;
    }

    /// What is to be done beside the writing, when the history begins behind `compacted`. It is said once.
    pub(crate) fn plan_chore(&mut self, compacted: Revision) -> Option<Chore> {
        let disk = self.disk.clone();
        let base = self.checkpoints.iter().rposition(|info| info.revision <= compacted);
        let base = base.filter(|base| *base > 0 || self.has_unneeded_segment());
        if let Some(base) = base.filter(|_| !self.removal_failed) {
            let checkpoints = self.checkpoints.drain(..base).collect();
            let mut segments = Vec::new();
            while self.has_unneeded_segment() {
                segments.push(self.segments.remove(0));
            }
            let more = SPARES_MAX.saturating_sub(self.spares.len());
            let wanted = (0..more).map(|_| self.new_spare()).collect();
            self.making_spares = true;
            return Some(Chore::Remove { disk, checkpoints, segments, wanted });
        }
        let half_full = self.tail.as_ref().is_some_and(Tail::is_half_full);
        if !self.spares.is_empty() || self.making_spares || !half_full {
            return None;
        }
        self.making_spares = true;
        let (counters, spare) = (self.counters.clone(), self.new_spare());
        Some(Chore::MakeSpare { disk, counters, spare })
    }

    fn new_spare(&mut self) -> Spare {
        self.next_spare += 1;
        Spare { id: self.next_spare, bytes: self.growth.size + HEAD_BYTES }
    }

    /// Learns what a chore came to.
    pub(crate) fn chore_done(&mut self, done: Done) {
        self.making_spares = false;
        match done {
            Done::Spare(spare) => self.spares.extend(spare),
            Done::Removed { spares, checkpoints, segments } => {
                self.spares.extend(spares);
                self.removal_failed = !checkpoints.is_empty() || !segments.is_empty();
                // What could not be removed stays in the lists, since recovery will find it too.
                self.checkpoints.splice(..0, checkpoints);
                self.segments.splice(..0, segments);
            }
        }
    }

    fn has_unneeded_segment(&self) -> bool {
        let base = self.checkpoints.first().map_or(0, |info| info.sequence);
        self.segments.get(1).is_some_and(|second| second.first_sequence <= base + 1)
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
