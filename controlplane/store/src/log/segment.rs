//! Owns one segment: its name, its making, appending to it, and reading it back with the rule for bad records (see `record`).

use std::sync::Arc;

use crate::log::checkpoint::CheckpointInfo;
use crate::log::disk::{Disk, DiskFile};
use crate::log::payload::Reader;
use crate::log::record::{
    BadHead, FILE_HEAD_BYTES, FileHead, FileKind, Header, Kind, Parsed, offsets, parse,
};
use crate::log::{LogError, OpenError, Replay, sequences, sync_names};
use crate::revision::Revision;

const PREFIX: &str = "log-";
/// The sequence of a store's first record.
pub(crate) const FIRST_SEQUENCE: u64 = 1;

/// Whether a file has the name of one.
pub(crate) fn is_one(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// What is known of a segment without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentInfo {
    pub(crate) first_sequence: u64,
}

impl SegmentInfo {
    pub(crate) fn name(self) -> String {
        format!("{PREFIX}{:016x}", self.first_sequence)
    }

    /// Whether it is the first that the store ever wrote.
    pub(crate) fn is_first(self) -> bool {
        self.first_sequence == FIRST_SEQUENCE
    }
}

/// The segment that is appended to.
#[derive(Debug)]
pub(crate) struct Tail {
    name: String,
    file: Arc<dyn DiskFile>,
    end: u64,
    size: u64,
}

impl Tail {
    pub(crate) fn room(&self) -> u64 {
        self.size.saturating_sub(self.end)
    }

    /// Durable when it returns.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        let written = self.file.write_at(self.end, bytes).and_then(|()| self.file.sync());
        written.map_err(|source| LogError { file: self.name.clone(), source })?;
        self.end += bytes.len() as u64;
        Ok(())
    }
}

/// The first sequence of the oldest segment.
pub(crate) fn first_sequence(names: &[String]) -> Option<u64> {
    sequences(names, PREFIX).first().copied()
}

/// Makes a segment with room for `bytes` of records. Its head is durable before any record is: so a bad head over anything but zeros
/// is damage, and the sequence in a head says that everything before it was durable.
pub(crate) fn create(
    disk: &dyn Disk,
    first_sequence: u64,
    salt: u32,
    bytes: u64,
) -> Result<(SegmentInfo, Tail), LogError> {
    let info = SegmentInfo { first_sequence };
    let name = info.name();
    let size = FILE_HEAD_BYTES as u64 + bytes;
    let head = FileHead { sequence: first_sequence, salt }.encode(FileKind::Segment);
    let made = disk.create(&name, size).and_then(|file| {
        file.write_at(0, &head)?;
        file.sync()?;
        Ok(file)
    });
    let file = made.map_err(|source| LogError { file: name.clone(), source })?;
    sync_names(disk)?;
    Ok((info, Tail { name, file, end: FILE_HEAD_BYTES as u64, size }))
}

/// What was found in the segments.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) segments: Vec<SegmentInfo>,
    pub(crate) tail: Option<Tail>,
    pub(crate) salt: Option<u32>,
    pub(crate) last_sequence: u64,
}

/// Where the good records end.
struct End {
    name: String,
    offset: usize,
    /// Something other than zeros stands there.
    bad: bool,
}

struct Recovery<'a> {
    disk: &'a dyn Disk,
    replay: &'a mut dyn Replay,
    /// Records up to here are in the checkpoint.
    base: u64,
    last_sequence: u64,
    /// Of the last good record.
    revision: Revision,
    end: Option<End>,
}

/// Replays every record behind `base`, cuts a torn tail and refuses damage.
pub(crate) fn recover(
    disk: &dyn Disk,
    names: &[String],
    base: CheckpointInfo,
    replay: &mut dyn Replay,
) -> Result<Recovered, OpenError> {
    let CheckpointInfo { sequence: base, revision } = base;
    let all = sequences(names, PREFIX);
    let mut segments: Vec<_> =
        all.into_iter().map(|first_sequence| SegmentInfo { first_sequence }).collect();
    // What the base needs no more was about to be removed.
    let needed = segments.iter().rposition(|info| info.first_sequence <= base + 1).unwrap_or(0);
    for info in segments.drain(..needed) {
        let name = info.name();
        disk.remove(&name).map_err(OpenError::io(&name, "removed"))?;
    }
    let first = segments.first().map_or(base + 1, |info| info.first_sequence);
    if first > base + 1 {
        let name = segments[0].name();
        return Err(OpenError::damaged(
            &name,
            0,
            revision,
            "records before the oldest segment are missing",
        ));
    }
    let mut recovery =
        Recovery { disk, replay, base, last_sequence: first - 1, revision, end: None };
    let mut salt = None;
    let mut tail = None;
    let mut good = Vec::new();
    for (at, info) in segments.iter().enumerate() {
        let last = at + 1 == segments.len();
        if let Some((found, own)) = recovery.segment(*info, last)? {
            (salt, tail) = (Some(own), Some(found));
            good.push(*info);
        }
    }
    if recovery.last_sequence < base {
        let name = good.last().map_or_else(|| "the log".to_owned(), |info| info.name());
        return Err(OpenError::damaged(
            &name,
            0,
            recovery.revision,
            "it ends before the oldest checkpoint",
        ));
    }
    if let Some(tail) = &tail {
        recovery.cut_torn_tail(tail)?;
        // What another process wrote may not be flushed yet, and will be called durable by the next record.
        tail.file.sync().map_err(OpenError::io(&tail.name, "flushed"))?;
    }
    Ok(Recovered { segments: good, tail, salt, last_sequence: recovery.last_sequence })
}

impl Recovery<'_> {
    /// `None`: a segment that was being made, and has been removed.
    fn segment(&mut self, info: SegmentInfo, last: bool) -> Result<Option<(Tail, u32)>, OpenError> {
        let name = info.name();
        let file = self.disk.open(&name).map_err(OpenError::io(&name, "opened"))?;
        let bytes = read_all(&*file).map_err(OpenError::io(&name, "read"))?;
        let head = match FileHead::parse(&bytes, FileKind::Segment) {
            Ok(head) => head,
            Err(BadHead::Newer(version)) => return Err(OpenError::newer(&name, version)),
            Err(BadHead::Damaged) => {
                let body = bytes.get(FILE_HEAD_BYTES..).unwrap_or_default();
                if last && body.iter().all(|byte| *byte == 0) {
                    self.disk.remove(&name).map_err(OpenError::io(&name, "removed"))?;
                    return Ok(None);
                }
                return Err(OpenError::damaged(
                    &name,
                    0,
                    self.revision,
                    "the head is not a segment's",
                ));
            }
        };
        if head.sequence != info.first_sequence {
            return Err(OpenError::damaged(
                &name,
                8,
                self.revision,
                "the head's sequence is not the name's",
            ));
        }
        let ended_early = head.sequence != self.last_sequence + 1;
        if let Some(end) = self.end.take().filter(|end| end.bad || ended_early) {
            let what = "a record that was durable is missing or bad";
            return Err(OpenError::damaged(&end.name, end.offset, self.revision, what));
        }
        let offset = self.records(&name, &bytes, head.salt)?;
        let size = bytes.len() as u64;
        Ok(Some((Tail { name, file, end: offset as u64, size }, head.salt)))
    }

    /// Replays the good records and returns the offset behind them.
    fn records(&mut self, name: &str, bytes: &[u8], salt: u32) -> Result<usize, OpenError> {
        let mut offset = FILE_HEAD_BYTES;
        let bad = loop {
            match parse(&bytes[offset..], salt) {
                Parsed::Record { header, payload, bytes }
                    if header.sequence == self.last_sequence + 1 && header.kind == Kind::Change =>
                {
                    self.record(name, offset, header, payload)?;
                    offset += bytes;
                }
                Parsed::Newer(version) => return Err(OpenError::newer(name, version)),
                Parsed::Record { .. } | Parsed::Bad => break true,
                Parsed::Blank => break false,
            }
        };
        let bad = bad || bytes[offset..].iter().any(|byte| *byte != 0);
        let is_later = |at| match parse(&bytes[at..], salt) {
            Parsed::Record { header, .. } => header.durable > self.last_sequence,
            _ => false,
        };
        if bad && offsets(offset, bytes.len()).any(is_later) {
            return Err(OpenError::damaged(
                name,
                offset,
                self.revision,
                "a record that was durable is bad",
            ));
        }
        self.end = Some(End { name: name.to_owned(), offset, bad });
        Ok(offset)
    }

    fn record(
        &mut self,
        name: &str,
        offset: usize,
        header: Header,
        payload: &[u8],
    ) -> Result<(), OpenError> {
        self.last_sequence = header.sequence;
        if header.sequence <= self.base {
            return Ok(());
        }
        let replayed = self.replay.change(header.revision, Reader(payload));
        let before = std::mem::replace(&mut self.revision, header.revision);
        replayed
            .ok_or_else(|| OpenError::damaged(name, offset, before, "the payload is not a change"))
    }

    /// Zeroes what stands behind the good records. Else a record of the lost batch could follow, whole and of the right
    /// sequence, behind a new record of just the length of the torn one.
    fn cut_torn_tail(&self, tail: &Tail) -> Result<(), OpenError> {
        let Some(End { name, offset, bad: true }) = &self.end else { return Ok(()) };
        let bytes = read_all(&*tail.file).map_err(OpenError::io(name, "read"))?;
        let dirty = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let zeros = vec![0; dirty.saturating_sub(*offset)];
        tracing::warn!(file = name, offset, bytes = zeros.len(), "cut a torn tail off the log");
        tail.file.write_at(*offset as u64, &zeros).map_err(OpenError::io(name, "cut"))
    }
}

pub(crate) fn read_all(file: &dyn DiskFile) -> std::io::Result<Vec<u8>> {
    let size = usize::try_from(file.size()?).unwrap_or(usize::MAX);
    let mut bytes = vec![0; size];
    let read = file.read_at(0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}
