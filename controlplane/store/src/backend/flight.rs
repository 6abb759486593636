//! Owns a batch on its way: its records, what it makes of the published state, who waits for it. Decides nothing.

use std::sync::Arc;

use imbl::OrdMap;
use tokio::sync::OwnedSemaphorePermit;

use crate::backend::Published;
use crate::backend::speculation::Answer;
use crate::log::segment::{NewSegment, Place, SegmentInfo, Tail};
use crate::log::{Counters, LogError};
use crate::revision::{Event, Revision};
use crate::txn::WriteError;

/// What the published state becomes, beside what events say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    pub(crate) revision: Revision,
    /// Every change up to here is forgotten.
    pub(crate) compacted: Revision,
    /// The length of each lease, when those changed.
    pub(crate) leases: Option<OrdMap<i64, u64>>,
    /// The highest revision that changes which are not logged may have.
    pub(crate) reserved: Revision,
    /// The history was compacted, or there are other leases.
    pub(crate) changed: bool,
}

/// Who waits, and the place that it took.
pub(crate) type Waiting = (Answer, OwnedSemaphorePermit);

/// Evaluated commands. Two that follow each other make one.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) bytes: Vec<u8>,
    pub(crate) first_sequence: u64,
    pub(crate) next_sequence: u64,
    pub(crate) events: Vec<Arc<Event>>,
    pub(crate) progress: Progress,
    pub(crate) answers: Vec<Waiting>,
}

impl Batch {
    /// Whether there is nothing to write, to publish or to answer.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
            && self.events.is_empty()
            && self.answers.is_empty()
            && !self.progress.changed
    }

    /// Takes in the one that follows; gives back a buffer that is not needed.
    pub(crate) fn absorb(&mut self, mut next: Batch) -> Vec<u8> {
        self.bytes.append(&mut next.bytes);
        self.next_sequence = next.next_sequence;
        self.events.append(&mut next.events);
        self.answers.append(&mut next.answers);
        let leases = next.progress.leases.take().or_else(|| self.progress.leases.take());
        let changed = self.progress.changed || next.progress.changed;
        self.progress = Progress { leases, changed, ..next.progress };
        next.bytes
    }

    /// Makes it what is read, and tells everybody. It is durable.
    pub(crate) fn publish(self, published: &Published) {
        let Self { events, progress, answers, .. } = self;
        if !events.is_empty() || progress.changed {
            published.advance(&events, &progress);
        }
        // Watchers first: whoever sees the answer finds what it changed in every watcher's queue, so a projection that is
        // brought up to date before it decides (authorization) is never behind its asker.
        if !events.is_empty() {
            published.notify(&events, progress.revision);
        }
        for (answer, _permit) in answers {
            answer.send(Ok(()));
        }
    }

    /// Nothing of it has happened.
    pub(crate) fn refuse(self, reason: &Arc<str>) {
        refuse(self.answers, reason);
    }
}

pub(crate) fn refuse(answers: Vec<Waiting>, reason: &Arc<str>) {
    for (answer, _permit) in answers {
        answer.send(Err(WriteError::Refused { reason: reason.clone() }));
    }
}

/// A batch whose records are being written.
pub(crate) struct Flight {
    pub(crate) id: u64,
    pub(crate) batch: Batch,
    /// What of it is being written now.
    pub(crate) bytes: u64,
    pub(crate) landed: Option<Result<(), LogError>>,
}

/// Where a flight's records go.
pub(crate) enum Runway {
    /// There are none.
    Nothing,
    Place(Place),
    /// The segment is to be made first.
    New(NewSegment),
}

/// What one thread has to do for a flight.
pub(crate) struct Takeoff {
    pub(crate) id: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) runway: Result<Runway, LogError>,
}

/// What became of it.
pub(crate) struct Landing {
    pub(crate) id: u64,
    /// For the next batch.
    pub(crate) buffer: Vec<u8>,
    pub(crate) segment: Option<(SegmentInfo, Tail)>,
    pub(crate) place: Option<Place>,
    pub(crate) result: Result<(), LogError>,
}

impl Takeoff {
    /// Writes and flushes.
    pub(crate) fn fly(self, counters: &Counters) -> Landing {
        let Self { id, bytes, runway } = self;
        let mut landing = Landing { id, buffer: bytes, segment: None, place: None, result: Ok(()) };
        landing.result = runway.and_then(|runway| {
            let place = match runway {
                Runway::Nothing => return Ok(()),
                Runway::Place(place) => place,
                Runway::New(new) => {
                    let (info, mut tail) = new.make()?;
                    let place = tail.place(&*new.disk, landing.buffer.len() as u64);
                    landing.segment = Some((info, tail));
                    place?
                }
            };
            let written = place.write(&landing.buffer);
            landing.place = Some(place);
            written?;
            counters.wrote(landing.buffer.len());
            Counters::count(&counters.flushes);
            Ok(())
        });
        landing.buffer.clear();
        landing
    }
}
