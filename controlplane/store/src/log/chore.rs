//! Owns what is done beside the writing: the removal of files that nobody needs, and the file that will be the next segment. Nothing
//! waits for it, and nothing is lost when it fails: the next process cleans up.

use std::sync::Arc;

use crate::log::checkpoint::CheckpointInfo;
use crate::log::disk::Disk;
use crate::log::segment::{SegmentInfo, Spare};
use crate::log::{Counters, LogError, sync_names};

/// Something to do.
#[derive(Debug)]
pub(crate) enum Chore {
    /// Removes what recovery no longer needs, oldest first; segments as large as these spare files are wanted become them.
    Remove {
        disk: Arc<dyn Disk>,
        checkpoints: Vec<CheckpointInfo>,
        segments: Vec<SegmentInfo>,
        wanted: Vec<Spare>,
    },
    /// Makes the next segment's file, so that no write waits for it.
    MakeSpare { disk: Arc<dyn Disk>, counters: Arc<Counters>, spare: Spare },
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Done {
    /// The spare file, when it is there now.
    Spare(Option<Spare>),
    /// Those that are there now, and what could not be removed.
    Removed { spares: Vec<Spare>, checkpoints: Vec<CheckpointInfo>, segments: Vec<SegmentInfo> },
}

impl Chore {
    pub(crate) fn run(self) -> Done {
        match self {
            Self::Remove { disk, mut checkpoints, mut segments, wanted } => {
                let mut spares = Vec::new();
                let removed = remove_checkpoints(&*disk, &mut checkpoints)
                    .and_then(|()| remove_segments(&*disk, &mut segments, wanted, &mut spares));
                if let Err(error) = removed {
                    tracing::warn!(%error, "an unneeded file of the log stays");
                }
                Done::Removed { spares, checkpoints, segments }
            }
            Self::MakeSpare { disk, counters, spare } => {
                let name = spare.name();
                let made = disk.create(&name, spare.bytes).and_then(|file| file.sync());
                if let Err(error) = made {
                    tracing::debug!(%error, "no segment was made ahead");
                    disk.remove(&name).ok();
                    return Done::Spare(None);
                }
                counters.wrote(usize::try_from(spare.bytes).unwrap_or(usize::MAX));
                Done::Spare(Some(spare))
            }
        }
    }
}

/// Before the segments that only they needed: a crash in between leaves too much, never too little.
fn remove_checkpoints(
    disk: &dyn Disk,
    checkpoints: &mut Vec<CheckpointInfo>,
) -> Result<(), LogError> {
    while let Some(info) = checkpoints.first() {
        unless_gone(disk.remove(&info.name()), &info.name())?;
        checkpoints.remove(0);
    }
    sync_names(disk)
}

/// Oldest first, and durably one by one: what is left is always a log without a gap, and the next user of a file finds it under no
/// name of a segment.
fn remove_segments(
    disk: &dyn Disk,
    segments: &mut Vec<SegmentInfo>,
    mut wanted: Vec<Spare>,
    spares: &mut Vec<Spare>,
) -> Result<(), LogError> {
    while let Some(info) = segments.first() {
        let kept = wanted.pop_if(|wanted| info.bytes >= wanted.bytes);
        let kept = kept.map(|wanted| Spare { bytes: info.bytes, ..wanted });
        let gone = match kept {
            Some(kept) => disk.rename(&info.name(), &kept.name()),
            None => disk.remove(&info.name()),
        };
        let is_there = unless_gone(gone, &info.name())?;
        sync_names(disk)?;
        spares.extend(kept.filter(|_| is_there));
        segments.remove(0);
    }
    Ok(())
}

/// Whether the file was there; an earlier try that failed later may have done this already.
fn unless_gone(result: std::io::Result<()>, name: &str) -> Result<bool, LogError> {
    match result {
        Ok(()) => Ok(true),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(LogError { file: name.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::faulty::FaultyDisk;

    #[test]
    fn a_segment_that_was_renamed_by_a_failed_try_is_gone_at_the_next() {
        let disk = FaultyDisk::new();
        let info = SegmentInfo { first_sequence: 1, bytes: 64 };
        disk.create(&info.name(), 64).unwrap();
        let chore = |segments| Chore::Remove {
            disk: Arc::new(disk.clone()),
            checkpoints: Vec::new(),
            segments,
            wanted: vec![Spare { id: 1, bytes: 64 }],
        };
        // The names without checkpoints are flushed, the segment is renamed, its new name is not flushed.
        disk.fail_after(2);
        let Done::Removed { segments, spares, .. } = chore(vec![info]).run() else { panic!() };
        assert_eq!((segments.len(), spares.len()), (1, 0));
        disk.fail_after(u64::MAX);
        let Done::Removed { segments, spares, .. } = chore(segments).run() else { panic!() };
        assert_eq!((segments.len(), spares.len()), (0, 0));
    }
}
