//! Owns the reading of segments: which records are good, what is a torn tail and cut, what is damage and refused (see `record` for the rule).
//! What the records mean is [`Replay`]'s.

use std::collections::VecDeque;

use crate::log::checkpoint::CheckpointInfo;
use crate::log::disk::{Disk, DiskFile};
use crate::log::payload::Reader;
use crate::log::record::{
    BadHead, FILE_HEAD_BYTES, FileHead, FileKind, Header, Kind, Parsed, claims_sequence_above,
    offsets, parse,
};
use crate::log::segment::{PREFIX, SegmentInfo, Tail};
use crate::log::{OpenError, Replay, sequences};
use crate::revision::Revision;

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
    /// Behind the last whole record that was written and never known to be durable.
    lost_until: usize,
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
    /// Sequences and offsets of this segment's last records, which nothing says were durable.
    unconfirmed: VecDeque<(u64, usize)>,
}

/// An open segment.
struct Open {
    name: String,
    file: std::sync::Arc<dyn DiskFile>,
    salt: u32,
    offset: usize,
    size: u64,
}

/// What of the checkpoints counts here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// The one that is loaded.
    pub(crate) base: CheckpointInfo,
    /// The last record that is in any of them: all up to it was durable.
    pub(crate) newest: u64,
}

/// Replays every record behind the base, cuts a torn tail and refuses damage.
pub(crate) fn recover(
    disk: &dyn Disk,
    names: &[String],
    known: Known,
    replay: &mut dyn Replay,
) -> Result<Recovered, OpenError> {
    let CheckpointInfo { sequence: base, revision } = known.base;
    let info = |first_sequence| SegmentInfo { first_sequence, bytes: 0 };
    let mut segments: Vec<_> = sequences(names, PREFIX).into_iter().map(info).collect();
    // What the base needs no more was about to be removed.
    let needed = segments.iter().rposition(|info| info.first_sequence <= base + 1).unwrap_or(0);
    for info in segments.drain(..needed) {
        let name = info.name();
        disk.remove(&name).map_err(OpenError::io(&name, "removed"))?;
    }
    let first = segments.first().map_or(base + 1, |info| info.first_sequence);
    if first > base + 1 {
        let what = "records before the oldest segment are missing";
        return Err(OpenError::damaged(&segments[0].name(), 0, revision, what));
    }
    let last_sequence = first - 1;
    let (end, unconfirmed) = (None, VecDeque::new());
    let mut recovery = Recovery { disk, replay, base, last_sequence, revision, end, unconfirmed };
    let mut last = None;
    let mut good = Vec::new();
    for (at, info) in segments.iter().enumerate() {
        if let Some(open) = recovery.segment(*info, at + 1 == segments.len())? {
            good.push(SegmentInfo { bytes: open.size, ..*info });
            last = Some(open);
        }
    }
    if recovery.last_sequence < known.newest {
        let end = recovery.end.as_ref();
        let (name, offset) = end.map_or(("the log", 0), |end| (&*end.name, end.offset));
        let what = "it ends before the newest checkpoint";
        return Err(recovery.damaged(name, offset, what));
    }
    if let Some(open) = &last {
        recovery.cut_torn_tail(open)?;
        recovery.write_unconfirmed(open)?;
        // What another process wrote may not be flushed yet, and will be called durable by the next record.
        open.file.sync().map_err(OpenError::io(&open.name, "flushed"))?;
    }
    let salt = last.as_ref().map(|open| open.salt);
    let tail = last.map(|open| Tail::new(open.name, open.file, open.offset as u64, open.size));
    Ok(Recovered { segments: good, tail, salt, last_sequence: recovery.last_sequence })
}

impl Recovery<'_> {
    fn damaged(&self, name: &str, offset: usize, what: &'static str) -> OpenError {
        OpenError::damaged(name, offset, self.revision, what)
    }

    /// `None`: a segment that was being made, and has been removed.
    fn segment(&mut self, info: SegmentInfo, last: bool) -> Result<Option<Open>, OpenError> {
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
                return Err(self.damaged(&name, 0, "the head is not a segment's"));
            }
        };
        if head.sequence != info.first_sequence {
            return Err(self.damaged(&name, 8, "the head's sequence is not the name's"));
        }
        if let Some(end) = self.end.take().filter(|_| head.sequence != self.last_sequence + 1) {
            let what = "a record that was durable is missing or bad";
            return Err(self.damaged(&end.name, end.offset, what));
        }
        let offset = self.records(&name, &bytes, head.salt)?;
        let size = bytes.len() as u64;
        Ok(Some(Open { name, file, salt: head.salt, offset, size }))
    }

    /// Replays the good records and returns the offset behind them.
    fn records(&mut self, name: &str, bytes: &[u8], salt: u32) -> Result<usize, OpenError> {
        let mut offset = FILE_HEAD_BYTES;
        // The head says that everything before it was durable.
        self.unconfirmed.clear();
        loop {
            match parse(&bytes[offset..], salt) {
                Parsed::Record { header, payload, bytes }
                    if header.sequence == self.last_sequence + 1 && header.kind == Kind::Change =>
                {
                    self.record(name, offset, header, payload)?;
                    offset += bytes;
                }
                Parsed::Newer(version) => return Err(OpenError::newer(name, version)),
                Parsed::Record { .. } | Parsed::Bad | Parsed::Blank => break,
            }
        }
        // Behind them: zeros, what stood in the file when it was another segment, or records that were on their way.
        let mut lost_until = offset;
        for at in offsets(offset, bytes.len()) {
            if !claims_sequence_above(&bytes[at..], self.last_sequence) {
                continue;
            }
            if let Parsed::Record { header, bytes, .. } = parse(&bytes[at..], salt) {
                if header.durable > self.last_sequence {
                    return Err(self.damaged(name, offset, "a record that was durable is bad"));
                }
                lost_until = at + bytes;
            }
        }
        self.end = Some(End { name: name.to_owned(), offset, lost_until });
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
        self.unconfirmed.push_back((header.sequence, offset));
        while self.unconfirmed.front().is_some_and(|(own, _)| *own <= header.durable) {
            self.unconfirmed.pop_front();
        }
        if header.sequence <= self.base {
            return Ok(());
        }
        let replayed = self.replay.change(header.revision, Reader(payload));
        replayed.ok_or_else(|| self.damaged(name, offset, "the payload is not a change"))?;
        self.revision = header.revision;
        Ok(())
    }

    /// Writes once more what may never have reached the disk. After a flush that failed, readers still see what was written, and a later
    /// flush succeeds without it.
    fn write_unconfirmed(&self, open: &Open) -> Result<(), OpenError> {
        let Some((_, first)) = self.unconfirmed.front() else { return Ok(()) };
        let mut bytes = vec![0; open.offset.saturating_sub(*first)];
        let read = open.file.read_at(*first as u64, &mut bytes);
        bytes.truncate(read.map_err(OpenError::io(&open.name, "read"))?);
        let written = open.file.write_at(*first as u64, &bytes);
        written.map_err(OpenError::io(&open.name, "written"))
    }

    /// Zeroes the whole records that stand behind the good ones and were never acknowledged: one of them could follow, of the right
    /// sequence, behind a new record of just the length of a torn one. What is torn never becomes whole.
    fn cut_torn_tail(&self, open: &Open) -> Result<(), OpenError> {
        let Some(end) = self.end.as_ref().filter(|end| end.lost_until > end.offset) else {
            return Ok(());
        };
        let End { name, offset, lost_until } = end;
        let zeros = vec![0; lost_until - offset];
        tracing::warn!(file = name, offset, bytes = zeros.len(), "cut a torn tail off the log");
        open.file.write_at(*offset as u64, &zeros).map_err(OpenError::io(name, "cut"))
    }
}

fn read_all(file: &dyn DiskFile) -> std::io::Result<Vec<u8>> {
    let size = usize::try_from(file.size()?).unwrap_or(usize::MAX);
    let mut bytes = vec![0; size];
    let read = file.read_at(0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}
