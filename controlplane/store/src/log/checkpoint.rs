//! Owns checkpoints: a state written out beside the running store, and found again. A checkpoint has its name only when it is whole and
//! durable; until then it is called `<name>.unfinished`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::log::disk::{Disk, DiskFile};
use crate::log::dump::{Dump, Extent, PIECE_BYTES, read};
use crate::log::record::{FileHead, FileKind};
use crate::log::segment::FIRST_SEQUENCE;
use crate::log::{Counters, LogError, OpenError, Replay, sequences, sync_names};
use crate::revision::Revision;

const PREFIX: &str = "checkpoint-";
/// The ending of a checkpoint that is being written.
pub(crate) const UNFINISHED: &str = ".unfinished";

/// Whether a file has the name of one, finished or not.
pub(crate) fn is_one(name: &str) -> bool {
    name.starts_with(PREFIX)
}

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
    pub(crate) dump: Dump,
    /// Set when the store is being closed: the checkpoint can wait for another day.
    pub(crate) stop: Arc<AtomicBool>,
}

/// Writes a checkpoint; it is durable when this returns.
pub(crate) fn write(mut contents: Contents) -> Result<CheckpointInfo, LogError> {
    let (sequence, revision) = (contents.sequence, contents.dump.snapshot().revision);
    let info = CheckpointInfo { sequence, revision };
    let (disk, counters) = (contents.disk.clone(), contents.counters.clone());
    save(&*disk, info, |file| {
        let (mut offset, mut more) = (0, true);
        let mut buffer = head(info).to_vec();
        while more {
            more = contents.dump.append(&mut buffer, PIECE_BYTES).map_err(io::Error::other)?;
            if contents.stop.load(Ordering::Relaxed) {
                return Err(io::Error::other("the store is being closed"));
            }
            file.write_at(offset, &buffer)?;
            counters.wrote(buffer.len());
            offset += buffer.len() as u64;
            buffer.clear();
        }
        Ok(())
    })?;
    Counters::count(&counters.checkpoints);
    Ok(info)
}

/// The head of a checkpoint's file.
pub(crate) fn head(info: CheckpointInfo) -> [u8; crate::log::record::FILE_HEAD_BYTES] {
    FileHead { sequence: info.sequence, salt: 0 }.encode(FileKind::Checkpoint)
}

/// Makes a checkpoint of what `write` writes into its file. It has its name when this returns, and not before all of it is durable.
pub(crate) fn save(
    disk: &dyn Disk,
    info: CheckpointInfo,
    write: impl FnOnce(&dyn DiskFile) -> io::Result<()>,
) -> Result<(), LogError> {
    let name = info.name();
    let unfinished = format!("{name}{UNFINISHED}");
    let written = disk.create(&unfinished, 0).and_then(|file| {
        write(&*file)?;
        file.sync()?;
        disk.rename(&unfinished, &name)
    });
    if let Err(source) = written {
        // What is left of it is of no use; a full disk needs the room.
        disk.remove(&unfinished).ok();
        return Err(LogError { file: unfinished, source });
    }
    sync_names(disk)
}

/// Reads the base of a log that begins at `first` into `replay`, and the heads of the other checkpoints. The base is the oldest
/// checkpoint that the log goes on from: an older one was about to be removed.
pub(crate) fn load(
    disk: &dyn Disk,
    names: &[String],
    first: Option<u64>,
    replay: &mut dyn Replay,
) -> Result<(Vec<CheckpointInfo>, Option<CheckpointInfo>), OpenError> {
    let all = sequences(names, PREFIX);
    let goes_on = |sequence: &&u64| first.is_none_or(|first| first <= **sequence + 1);
    let base = all.iter().find(goes_on).or(all.first()).copied();
    let base = base.filter(|_| first != Some(FIRST_SEQUENCE));
    let mut found = Vec::new();
    for sequence in all {
        let name = CheckpointInfo { sequence, revision: 0 }.name();
        let file = disk.open(&name).map_err(OpenError::io(&name, "opened"))?;
        let read = if base == Some(sequence) {
            read(&*file, &name, FileKind::Checkpoint, replay, Extent::Whole)?
        } else {
            read(&*file, &name, FileKind::Checkpoint, &mut Nothing, Extent::Beginning)?
        };
        if read.head.sequence != sequence {
            return Err(OpenError::damaged(&name, 8, 0, "its sequence is not the name's"));
        }
        found.push(CheckpointInfo { sequence, revision: read.revision });
    }
    let base = found.iter().find(|info| base == Some(info.sequence)).copied();
    Ok((found, base))
}

/// Takes what is read only for the revision.
struct Nothing;

impl Replay for Nothing {
    fn begin(&mut self, _revision: Revision, _reserved: Revision) {}
    fn entry(&mut self, _entry: crate::log::payload::RawEntry<'_>) {}
    fn lease(&mut self, _lease: i64, _ttl_seconds: u64) {}
    fn change(&mut self, _revision: Revision, _ops: crate::log::payload::Reader<'_>) -> Option<()> {
        None
    }
}
