//! Owns what is done beside the writing: the removal of files that nobody needs, and the file that will be the next segment. Nothing
//! waits for it, and nothing is lost when it fails: the next process cleans up.

use std::sync::Arc;

use crate::log::checkpoint::CheckpointInfo;
use crate::log::disk::Disk;
use crate::log::segment::{SPARE, SegmentInfo};
use crate::log::{Counters, LogError, sync_names};

/// Something to do.
#[derive(Debug)]
pub(crate) enum Chore {
    /// Removes what recovery no longer needs, oldest first; one segment of at least `bytes_min` becomes the spare file.
    Remove {
        disk: Arc<dyn Disk>,
        checkpoints: Vec<CheckpointInfo>,
        segments: Vec<SegmentInfo>,
        bytes_min: Option<u64>,
    },
    /// Makes the next segment's file, so that no write waits for it.
    MakeSpare { disk: Arc<dyn Disk>, counters: Arc<Counters>, bytes: u64 },
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Done {
    /// The size of the spare file, when there is one now.
    Spare(Option<u64>),
    /// The same, if the spare file was this chore's to make, and what could not be removed.
    Removed {
        made_spare: Option<Option<u64>>,
        checkpoints: Vec<CheckpointInfo>,
        segments: Vec<SegmentInfo>,
    },
}

impl Chore {
    pub(crate) fn run(self) -> Done {
        match self {
            Self::Remove { disk, mut checkpoints, mut segments, mut bytes_min } => {
                let (mut spare, makes_spare) = (None, bytes_min.is_some());
                let removed = remove_checkpoints(&*disk, &mut checkpoints).and_then(|()| {
                    remove_segments(&*disk, &mut segments, &mut bytes_min, &mut spare)
                });
                if let Err(error) = removed {
                    tracing::warn!(%error, "an unneeded file of the log stays");
                }
                let made_spare = makes_spare.then_some(spare);
                Done::Removed { made_spare, checkpoints, segments }
            }
            Self::MakeSpare { disk, counters, bytes } => {
                let made = disk.create(SPARE, bytes).and_then(|file| file.sync());
                if let Err(error) = made {
                    tracing::debug!(%error, "no segment was made ahead");
                    disk.remove(SPARE).ok();
                    return Done::Spare(None);
                }
                counters.wrote(usize::try_from(bytes).unwrap_or(usize::MAX));
                Done::Spare(Some(bytes))
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
        remove(disk, &info.name())?;
        checkpoints.remove(0);
    }
    sync_names(disk)
}

/// Oldest first, and durably one by one: what is left is always a log without a gap, and the next user of a file finds it under no
/// name of a segment.
fn remove_segments(
    disk: &dyn Disk,
    segments: &mut Vec<SegmentInfo>,
    bytes_min: &mut Option<u64>,
    spare: &mut Option<u64>,
) -> Result<(), LogError> {
    while let Some(info) = segments.first() {
        let kept = bytes_min.take_if(|bytes_min| info.bytes >= *bytes_min).map(|_| info.bytes);
        if kept.is_some() {
            let renamed = disk.rename(&info.name(), SPARE);
            renamed.map_err(|source| LogError { file: info.name(), source })?;
        } else {
            remove(disk, &info.name())?;
        }
        sync_names(disk)?;
        *spare = spare.or(kept);
        segments.remove(0);
    }
    Ok(())
}

fn remove(disk: &dyn Disk, name: &str) -> Result<(), LogError> {
    match disk.remove(name) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(LogError { file: name.to_owned(), source })
        }
        // Gone by an earlier try.
        Ok(()) | Err(_) => Ok(()),
    }
}
