//! Owns the way from etcd's one watch of all keys to the published state: every revision once, in order, none skipped. What can't be
//! continued is loaded anew, and every watcher told so. Must not write.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::backend::etcd::Shared;
use crate::backend::etcd::client::{Failure, Link};
use crate::backend::etcd::load::{self, Found, LoadError, Past, WATCH};
use crate::backend::etcd::wire::{OFFSET_KEY, Wire, WireError};
use crate::grpc::messages::watch::WatchResponse;
use crate::grpc::messages::{Event as WireEvent, EventType};
use crate::revision::Event;
use crate::state::Snapshot;

/// How often the feed looks after its watch.
const TICK: Duration = Duration::from_millis(500);
/// After so long without a word the member is asked whether it lives: etcd says nothing while nothing happens.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// A member whose watch is so far behind what another one answered is left.
const LAG_MAX: Duration = Duration::from_secs(2);
/// How often it is said that the watch can't be resumed.
const REMINDER: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Why a watch is over.
#[derive(Debug)]
enum End {
    /// It can be resumed.
    Broken(Arc<str>),
    /// What comes next is not to be had, or does not fit what was before.
    Lost(Arc<str>),
    /// A value can't be opened. Maybe it can be later: it is tried again.
    Unreadable(WireError),
    /// Not the datastore that was opened.
    Replaced(Arc<str>),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Broken(failure.to_string().into())
    }
}

impl From<LoadError> for End {
    fn from(error: LoadError) -> Self {
        Self::Broken(error.to_string().into())
    }
}

/// The state on its way from etcd.
#[derive(Debug)]
pub(crate) struct Feed {
    shared: Arc<Shared>,
    /// etcd's revision of what is published.
    reached: i64,
    cluster: u64,
    history_bytes_max: usize,
    history_age_max: Duration,
    pause: Duration,
}

impl Feed {
    pub(crate) fn new(
        shared: Arc<Shared>,
        found: Found,
        (history_bytes_max, history_age_max): (usize, Duration),
    ) -> Self {
        let reached = shared.current().revision - found.offset;
        let cluster = found.cluster;
        let pause = PAUSE_MIN;
        Self { shared, reached, cluster, history_bytes_max, history_age_max, pause }
    }

    /// Goes on until it is told to stop, or the datastore is another one.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let shared = self.shared.clone();
        tokio::select! {
            reason = self.go_on() => {
                tracing::error!(%reason, "the datastore can't be followed any more; restart the master");
                // Set once: there is one feed.
                shared.failed.set(reason).ok();
                shared.published.hub.close();
            }
            stopped = stop.wait_for(|stop| *stop) => drop(stopped),
        }
    }

    async fn go_on(&mut self) -> Arc<str> {
        let (mut whole, mut said) = (true, None::<Instant>);
        loop {
            let ended = if whole { self.follow().await } else { self.reload().await };
            match ended {
                Ok(()) => whole = true,
                Err(End::Unreadable(error)) => self.unreadable(&error, &mut said),
                Err(End::Broken(reason)) => {
                    if said.is_none_or(|at| at.elapsed() > REMINDER) {
                        said = Some(Instant::now());
                        tracing::warn!(%reason, revision = self.shared.wire.inward(self.reached), "the watch of the datastore broke; resuming");
                    }
                }
                Err(End::Lost(reason)) => {
                    tracing::warn!(%reason, revision = self.shared.wire.inward(self.reached), "the watch of the datastore can't be resumed; loading all of it");
                    whole = false;
                }
                Err(End::Replaced(reason)) => return reason,
            }
            tokio::time::sleep(self.pause).await;
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
    }

    fn unreadable(&self, error: &WireError, said: &mut Option<Instant>) {
        if let WireError::Sealed { key, source } = error {
            // Only the first counts.
            self.shared.unopened.set((key.clone(), source.clone())).ok();
        }
        if said.is_none_or(|at| at.elapsed() > REMINDER) {
            *said = Some(Instant::now());
            let revision = self.shared.wire.inward(self.reached);
            tracing::error!(%error, revision, "a change of the datastore can't be taken over; nothing behind it is seen");
        }
    }

    /// Asks who is there, before anything of it is believed.
    async fn find(&self) -> Result<Found, End> {
        let found = load::find(&self.shared.client).await?;
        if found.cluster != self.cluster {
            return Err(End::Replaced("another etcd cluster answers at its endpoints".into()));
        }
        if found.offset != self.shared.wire.offset {
            return Err(End::Replaced("the offset of its revisions was changed".into()));
        }
        if found.revision < self.reached {
            let (was, is) = (self.reached, found.revision);
            let reason = format!("it went back from revision {was} to {is}: was it restored?");
            return Err(End::Replaced(reason.into()));
        }
        Ok(found)
    }

    /// Watches until the watch ends.
    async fn follow(&mut self) -> Result<(), End> {
        self.find().await?;
        let link = self.shared.client.link().await?;
        let ended = self.watch(&link).await;
        if matches!(ended, Err(End::Broken(_))) {
            self.shared.client.leave(&link);
        }
        ended
    }

    async fn watch(&mut self, link: &Link) -> Result<(), End> {
        let broken = |text: &str| End::Broken(format!("{}: {text}", link.url()).into());
        let client = self.shared.clone();
        let (requests, outgoing) = mpsc::channel(1);
        if requests.send(load::watch_from(self.reached + 1)).await.is_err() {
            return Err(broken("the watch could not be begun"));
        }
        let mut stream = client.client.streaming::<_, WatchResponse>(link, WATCH, outgoing).await?;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (began, mut heard, mut pieces) = (Instant::now(), Instant::now(), Vec::new());
        loop {
            tokio::select! {
                message = stream.message() => {
                    let message = message.map_err(|status| client.client.failed(link, &status))?;
                    let message = message.ok_or_else(|| broken("the watch was ended"))?;
                    heard = Instant::now();
                    self.take(link, message, &mut pieces)?;
                }
                () = link.died() => return Err(broken("the member does not answer")),
                _ = tick.tick() => {
                    // Who has waited since before this watch is no sign of this member's slowness.
                    if began.elapsed() > LAG_MAX && client.progress.overdue(LAG_MAX) {
                        return Err(broken("the member is behind"));
                    }
                    if heard.elapsed() > SILENCE_MAX {
                        heard = Instant::now();
                        link.probe();
                    }
                }
            }
        }
    }

    /// Takes one message; events count when their last piece is there.
    fn take(
        &mut self,
        link: &Link,
        message: WatchResponse,
        pieces: &mut Vec<WireEvent>,
    ) -> Result<(), End> {
        self.shared.client.note(message.header.as_ref());
        if message.compact_revision > 0 {
            let (next, gone) = (self.reached + 1, message.compact_revision);
            let reason = format!("revision {next} is compacted (up to {gone})");
            return Err(End::Lost(reason.into()));
        }
        if message.canceled {
            let reason = format!("{}: {}", link.url(), message.cancel_reason);
            return Err(End::Broken(reason.into()));
        }
        pieces.extend(message.events);
        if message.fragment {
            return Ok(());
        }
        self.pause = PAUSE_MIN;
        let events = std::mem::take(pieces);
        if events.is_empty() { Ok(()) } else { self.publish(events) }
    }

    fn publish(&mut self, events: Vec<WireEvent>) -> Result<(), End> {
        let shared = &self.shared;
        let mut current = shared.current();
        let mut next = current.clone();
        let (reached, events) = apply(&mut next, &shared.wire, self.reached, events)?;
        next.history.trim(self.history_bytes_max, self.history_age_max, Instant::now());
        let revision = next.revision;
        shared.published.publish(next.clone());
        *current = next;
        drop(current);
        self.reached = reached;
        shared.published.notify(&events, revision);
        shared.progress.advance(revision);
        Ok(())
    }

    async fn reload(&mut self) -> Result<(), End> {
        let found = self.find().await?;
        let shared = self.shared.clone();
        let (client, wire) = (&shared.client, &shared.wire);
        let snapshot = load::load(client, wire, found.revision, Past::Nothing).await?;
        let revision = snapshot.revision;
        shared.published.publish(snapshot.clone());
        *shared.current() = snapshot;
        self.reached = revision - found.offset;
        shared.published.hub.compacted(revision);
        shared.progress.advance(revision);
        Ok(())
    }
}

/// Puts etcd's events, which follow its revision `reached`, into the state. Each revision of etcd has an event, so a gap is a loss.
fn apply(
    snapshot: &mut Snapshot,
    wire: &Wire,
    reached: i64,
    events: Vec<WireEvent>,
) -> Result<(i64, Vec<Arc<Event>>), End> {
    let lost = |text: String| End::Lost(text.into());
    let mut last = reached;
    let mut applied = Vec::with_capacity(events.len());
    for event in events {
        let put = event.r#type == EventType::Put as i32;
        let Some(kv) = event.kv else { return Err(lost("an event without a key".into())) };
        if kv.mod_revision <= reached {
            continue;
        }
        if kv.mod_revision != last && kv.mod_revision != last + 1 {
            return Err(lost(format!("revision {} came behind {last}", kv.mod_revision)));
        }
        last = kv.mod_revision;
        if &kv.key[..] == OFFSET_KEY {
            if put && load::offset(&kv.value)? == wire.offset {
                continue;
            }
            return Err(End::Replaced("the offset of its revisions was changed".into()));
        }
        let after = match put.then(|| wire.entry(&kv)).transpose() {
            Ok(after) => after,
            Err(error) => return Err(End::Unreadable(error)),
        };
        let before = match &after {
            Some(after) => snapshot.insert(after.clone()),
            None => snapshot.remove(&kv.key),
        };
        let version = after.as_ref().map_or(0, |entry| entry.version);
        let expected = if put { before.as_ref().map_or(0, |entry| entry.version) + 1 } else { 0 };
        if version != expected || (!put && before.is_none()) {
            let key = String::from_utf8_lossy(&kv.key).into_owned();
            return Err(lost(format!("revision {last} of {key} does not follow what was known")));
        }
        if let Some(after) = &after {
            wire.observe(after);
        }
        let event = Event::new(wire.inward(last), before, after);
        snapshot.history.push(event.clone());
        applied.push(event);
    }
    snapshot.revision = wire.inward(last);
    Ok((last, applied))
}
