//! Owns one watch: from its first event to its end by compaction, with its progress between.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior};

use crate::grpc::messages::watch::{FilterType, WatchCreateRequest, WatchResponse};
use crate::grpc::refusal::STOPPED;
use crate::grpc::watching::response::{self, Shape};
use crate::grpc::watching::{Gone, Outlet};
use crate::revision::{Event, Revision};
use crate::txn::{KeyRange, Range, ReadError};
use crate::watch::{WatchError, WatchRequest, Watcher};

/// Events that may wait for one watch; behind them it goes on from the history.
const EVENTS_MAX: usize = 4096;
/// How often a watch that wants it hears how far it is, when it hears of no event: etcd's flag as Kubernetes sets it.
const PROGRESS_PERIOD: Duration = Duration::from_secs(5);

/// Which events a watch wants, and how.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::struct_excessive_bools, reason = "they are flags on the wire")]
pub(super) struct Wanted {
    puts: bool,
    deletes: bool,
    progress: bool,
    shape: Shape,
}

impl Wanted {
    pub(super) fn of(request: &WatchCreateRequest) -> Self {
        let lacks = |filter: FilterType| !request.filters.contains(&(filter as i32));
        Self {
            puts: lacks(FilterType::NoPut),
            deletes: lacks(FilterType::NoDelete),
            progress: request.progress_notify,
            shape: Shape { previous: request.prev_kv, fragment: request.fragment },
        }
    }

    fn wants(self, event: &Event) -> bool {
        if event.after.is_some() { self.puts } else { self.deletes }
    }
}

/// Where a watch begins.
#[derive(Debug)]
pub(super) struct Begin {
    pub(super) id: i64,
    pub(super) keys: KeyRange,
    /// The first revision wanted.
    pub(super) from: Revision,
}

pub(super) struct Task {
    outlet: Outlet,
    begin: Begin,
    wanted: Wanted,
    asked: mpsc::Receiver<oneshot::Sender<Revision>>,
}

/// Why a watch ends by itself.
enum Ending {
    Compacted(Revision),
    Closed,
    Gone,
}

impl From<Gone> for Ending {
    fn from(Gone: Gone) -> Self {
        Self::Gone
    }
}

impl Task {
    pub(super) fn new(
        outlet: Outlet,
        begin: Begin,
        wanted: Wanted,
        asked: mpsc::Receiver<oneshot::Sender<Revision>>,
    ) -> Self {
        Self { outlet, begin, wanted, asked }
    }

    /// Runs until the watch ends by itself, and says so to the client.
    pub(super) async fn run(mut self) -> Result<(), Gone> {
        loop {
            let ending = match self.open().await {
                Ok(mut watcher) => match self.follow(&mut watcher).await {
                    Ok(from) => {
                        self.begin.from = from;
                        continue;
                    }
                    Err(ending) => ending,
                },
                Err(ending) => ending,
            };
            match ending {
                Ending::Gone => return Err(Gone),
                Ending::Closed => {
                    self.outlet.end(STOPPED).await;
                    return Err(Gone);
                }
                Ending::Compacted(compact_revision) => {
                    let (watch_id, header) = (self.begin.id, self.outlet.services.header(0));
                    let canceled = WatchResponse {
                        header,
                        watch_id,
                        canceled: true,
                        compact_revision,
                        ..WatchResponse::default()
                    };
                    return self.outlet.send(canceled).await;
                }
            }
        }
    }

    async fn open(&mut self) -> Result<Watcher, Ending> {
        let store = self.outlet.services.store().clone();
        let request = |from| {
            let keys = self.begin.keys.clone();
            WatchRequest { keys, from: Some(from), index: None, events_max: EVENTS_MAX }
        };
        match store.watch(request(self.begin.from)) {
            Ok(watcher) => Ok(watcher),
            Err(ReadError::Compacted { requested, compact_revision })
                if requested == compact_revision =>
            {
                let watcher = store.watch(request(requested + 1)).map_err(refused)?;
                self.left_of(requested).await?;
                Ok(watcher)
            }
            Err(error) => Err(refused(error)),
        }
    }

    /// The revision at which the history is compacted: etcd begins there with the keys that still have it, and since 3.5.16 with
    /// those that it deleted.
    async fn left_of(&mut self, revision: Revision) -> Result<(), Ending> {
        let snapshot = self.outlet.services.store().inner.published.snapshot();
        let known = snapshot.history.compacted() == revision;
        let Some(deleted) = snapshot.history.deleted_last().filter(|_| known) else {
            // Not even this revision is whole: the next one is.
            return Err(Ending::Compacted(revision + 1));
        };
        let range = Range { revision: Some(revision), ..Range::all(self.begin.keys.clone()) };
        let found = snapshot.range(&range).map_err(refused)?;
        let left = found.entries.into_iter().filter(|entry| entry.mod_revision == revision);
        let left = left.map(|entry| Event::new(revision, None, Some(entry)));
        let deleted = deleted.filter(|event| self.begin.keys.contains(event.key())).cloned();
        let wanted: Vec<_> = left.chain(deleted).filter(|event| self.wanted.wants(event)).collect();
        self.send(&wanted, revision).await
    }

    /// Brings events until the watcher ends; `Ok`: it fell behind, and this is the first revision that it did not bring.
    async fn follow(&mut self, watcher: &mut Watcher) -> Result<Revision, Ending> {
        let mut period = tokio::time::interval(PROGRESS_PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        period.reset();
        loop {
            let brought = tokio::select! {
                events = watcher.next() => events,
                Some(reply) = self.asked.recv() => {
                    let brought = self.bring_waiting(watcher).await?;
                    // The stream may be over.
                    reply.send(watcher.progress()).ok();
                    brought
                }
                () = tick(&mut period), if self.wanted.progress => {
                    self.tell_progress(watcher).await?;
                    continue;
                }
            };
            match brought {
                Ok(events) => {
                    if self.bring(&events, watcher).await? {
                        period.reset();
                    }
                }
                // What was not brought begins behind this.
                Err(WatchError::Expired { .. }) => return Ok(watcher.progress() + 1),
                Err(WatchError::Compacted { compact_revision }) => {
                    return Err(Ending::Compacted(compact_revision));
                }
                Err(WatchError::Closed) => return Err(Ending::Closed),
            }
        }
    }

    /// Brings what waits already.
    async fn bring_waiting(
        &mut self,
        watcher: &mut Watcher,
    ) -> Result<Result<Vec<Arc<Event>>, WatchError>, Ending> {
        match watcher.waiting() {
            Ok(events) => self.bring(&events, watcher).await.map(|_| Ok(Vec::new())),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Whether the client heard something.
    async fn bring(&mut self, events: &[Arc<Event>], watcher: &Watcher) -> Result<bool, Ending> {
        let wanted: Vec<_> =
            events.iter().filter(|event| self.wanted.wants(event)).cloned().collect();
        let Some(last) = wanted.last() else { return Ok(false) };
        let reached = self.progress(watcher).max(last.revision);
        self.send(&wanted, reached).await?;
        Ok(true)
    }

    async fn send(&self, events: &[Arc<Event>], reached: Revision) -> Result<(), Ending> {
        for part in response::parts(events, self.wanted.shape) {
            let header = self.outlet.services.header(reached);
            let (watch_id, fragment) = (self.begin.id, part.fragment);
            let events = part.messages(self.wanted.shape);
            let response =
                WatchResponse { header, watch_id, fragment, events, ..WatchResponse::default() };
            self.outlet.send(response).await?;
        }
        Ok(())
    }

    /// A watch that begins in the future is no further than the store.
    fn progress(&self, watcher: &Watcher) -> Revision {
        watcher.progress().min(self.outlet.services.store().revision())
    }

    async fn tell_progress(&self, watcher: &Watcher) -> Result<(), Ending> {
        let header = self.outlet.services.header(self.progress(watcher));
        let watch_id = self.begin.id;
        let response = WatchResponse { header, watch_id, ..WatchResponse::default() };
        Ok(self.outlet.send(response).await?)
    }
}

fn refused(error: ReadError) -> Ending {
    match error {
        ReadError::Compacted { compact_revision, .. } => Ending::Compacted(compact_revision),
        // A watch of the future waits for it; no store says this.
        ReadError::Future { .. } => Ending::Closed,
    }
}

async fn tick(period: &mut Interval) {
    period.tick().await;
}
