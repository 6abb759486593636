//! One watch of a history: what it asked for, everything that it was given, and whether that was right: ordered, unique,
//! reliable, atomic, resumable, bookmarkable.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use store::{Event, KeyRange, Revision, Store, WatchError, WatchRequest, Watcher};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::model::Change;

/// How long a watch may take to be where the store is.
const CATCH_UP: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Seen {
    events: Vec<Change>,
    /// How many events had been given behind each batch.
    batches: Vec<usize>,
    /// What `progress` said, and how many events had been given by then.
    progress: Vec<(Revision, usize)>,
    ended: Option<WatchError>,
}

impl Seen {
    fn take(&mut self, events: &[Arc<Event>]) {
        self.events.extend(events.iter().map(|event| Change::of(event)));
        self.batches.push(self.events.len());
    }

    fn note_progress(&mut self, progress: Revision) {
        let given = self.events.len();
        if self.progress.last() != Some(&(progress, given)) {
            self.progress.push((progress, given));
        }
    }
}

#[derive(Debug)]
enum Reader {
    /// Read by a task of its own, as fast as it can.
    Fast {
        stop: oneshot::Sender<()>,
        task: JoinHandle<Watcher>,
    },
    /// Read now and then.
    Slow(Watcher),
    Gone,
}

/// What a watch wants.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Which keys.
    pub keys: KeyRange,
    /// Which index key.
    pub index: Option<Box<str>>,
    /// From where.
    pub from: Option<Revision>,
    /// Its bound.
    pub events_max: usize,
}

/// A watch.
#[derive(Debug)]
pub struct Watching {
    /// What it asked for.
    pub wanted: Wanted,
    /// The first revision wanted lies between these: a watch from now begins at some moment of its making.
    first: (Revision, Revision),
    seen: Arc<Mutex<Seen>>,
    reader: Reader,
}

/// How much of what happened a watch must have been given.
#[derive(Debug, Clone, Copy)]
pub enum Extent {
    /// Everything up to here: it was read to its end.
    All(Revision),
    /// Whatever it got.
    Some(Revision),
}

impl Watching {
    /// Starts a watch.
    ///
    /// # Errors
    /// As [`Store::watch`].
    pub fn start(store: &Store, wanted: Wanted, fast: bool) -> Result<Self, store::ReadError> {
        let before = store.revision();
        let Wanted { keys, index, from, events_max } = wanted.clone();
        let mut watcher = store.watch(WatchRequest { keys, from, index, events_max })?;
        let after = store.revision();
        let first = from.map_or((before + 1, after + 1), |from| (from, from));
        let seen = Arc::new(Mutex::new(Seen::default()));
        lock(&seen).note_progress(watcher.progress());
        if !fast {
            return Ok(Self { wanted, first, seen, reader: Reader::Slow(watcher) });
        }
        let (stop, mut stopped) = oneshot::channel();
        let shared = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    given = watcher.next() => match given {
                        Ok(events) => {
                            let mut seen = lock(&shared);
                            seen.take(&events);
                            seen.note_progress(watcher.progress());
                        }
                        Err(error) => {
                            lock(&shared).ended = Some(error);
                            return watcher;
                        }
                    },
                    _ = &mut stopped => return watcher,
                }
            }
        });
        Ok(Self { wanted, first, seen, reader: Reader::Fast { stop, task } })
    }

    /// Reads what is there, if it is a slow one, and notes its progress.
    pub fn poll(&mut self) {
        let Reader::Slow(watcher) = &mut self.reader else { return };
        let mut seen = lock(&self.seen);
        if seen.ended.is_some() {
            return;
        }
        if let Poll::Ready(given) =
            pin!(watcher.next()).poll(&mut Context::from_waker(Waker::noop()))
        {
            match given {
                Ok(events) => seen.take(&events),
                Err(error) => seen.ended = Some(error),
            }
        }
        seen.note_progress(watcher.progress());
    }

    /// Notes the progress without reading.
    pub fn look(&self) {
        if let Reader::Slow(watcher) = &self.reader {
            lock(&self.seen).note_progress(watcher.progress());
        }
    }

    /// Everything that it was given.
    pub fn given(&self) -> Vec<Change> {
        lock(&self.seen).events.clone()
    }

    /// Ends the watch; what it was given stays to be checked.
    pub fn stop_reading(&mut self) {
        if let Reader::Fast { task, .. } = std::mem::replace(&mut self.reader, Reader::Gone) {
            task.abort();
        }
    }

    /// Whether it is still read.
    pub fn is_read(&self) -> bool {
        !matches!(self.reader, Reader::Gone)
    }

    /// Whether it is read as fast as it goes.
    pub fn is_fast(&self) -> bool {
        matches!(self.reader, Reader::Fast { .. })
    }

    /// The highest revision of which the reader has seen something.
    pub fn newest(&self) -> Revision {
        lock(&self.seen).events.last().map_or(0, |change| change.revision)
    }

    /// Where a reader goes on that was interrupted now: behind what it was given and behind what it was told it has.
    /// `None`: it has to list again.
    pub fn resume_from(&self) -> Option<Revision> {
        let seen = lock(&self.seen);
        if matches!(seen.ended, Some(WatchError::Expired { .. } | WatchError::Compacted { .. })) {
            return None;
        }
        let events = seen.events.iter().map(|change| change.revision);
        let progress = seen.progress.iter().map(|(progress, _)| *progress);
        Some(events.chain(progress).max()? + 1)
    }

    async fn stop(&mut self) -> Option<Watcher> {
        match std::mem::replace(&mut self.reader, Reader::Gone) {
            Reader::Fast { stop, task } => {
                // A task that ended by itself does not listen.
                stop.send(()).ok();
                task.await.ok()
            }
            Reader::Slow(watcher) => Some(watcher),
            Reader::Gone => None,
        }
    }

    /// Reads until the watch says that it is at `revision`, or ends.
    ///
    /// # Errors
    /// It never does.
    pub async fn catch_up(&mut self, revision: Revision) -> Result<(), String> {
        let Some(watcher) = self.stop().await else { return Ok(()) };
        self.reader = Reader::Slow(watcher);
        let deadline = Instant::now() + CATCH_UP;
        loop {
            self.poll();
            {
                let seen = lock(&self.seen);
                let reached = seen.progress.last().map_or(0, |(progress, _)| *progress);
                if seen.ended.is_some() || reached >= revision {
                    return Ok(());
                }
                if Instant::now() > deadline {
                    let wanted = &self.wanted;
                    return Err(format!(
                        "a watch of {wanted:?} stays at {reached}, but the store is at {revision}"
                    ));
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Reads what is left of a watch whose store is closed; nothing may be missing then.
    pub async fn drain(&mut self) {
        let Some(watcher) = self.stop().await else { return };
        self.reader = Reader::Slow(watcher);
        let deadline = Instant::now() + CATCH_UP;
        while lock(&self.seen).ended.is_none() && Instant::now() < deadline {
            self.poll();
            tokio::task::yield_now().await;
        }
    }

    /// Whether the watch was ended by the store, other than by its closing.
    pub fn has_failed(&self) -> bool {
        let ended = &lock(&self.seen).ended;
        ended.as_ref().is_some_and(|why| *why != WatchError::Closed)
    }

    /// Holds what was given against what happened.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, changes: &[Change], extent: Extent) -> Result<(), String> {
        let seen = lock(&self.seen);
        let (Extent::All(until) | Extent::Some(until)) = extent;
        let (low, high) = self.first;
        let mut why = String::new();
        for first in low..=high {
            let wanted = |change: &&Change| {
                (first..=until).contains(&change.revision)
                    && change.is_wanted(&self.wanted.keys, self.wanted.index.as_deref())
            };
            let expected: Vec<_> = changes.iter().filter(wanted).collect();
            match self.judge(&seen, &expected, extent) {
                Ok(()) => return Ok(()),
                Err(error) => why = error,
            }
        }
        let (wanted, ended) = (&self.wanted, &seen.ended);
        Err(format!("watch of {wanted:?} (first {low} to {high}, ended {ended:?}): {why}"))
    }

    fn judge(&self, seen: &Seen, expected: &[&Change], extent: Extent) -> Result<(), String> {
        for (at, given) in seen.events.iter().enumerate() {
            if expected.get(at).is_none_or(|expected| **expected != *given) {
                let expected = expected.get(at);
                return Err(format!("event {at} is {given:?}, expected {expected:?}"));
            }
        }
        for end in &seen.batches {
            let (last, next) = (seen.events.get(end - 1), expected.get(*end));
            if let (Some(last), Some(next)) = (last, next)
                && last.revision == next.revision
            {
                let revision = last.revision;
                return Err(format!("revision {revision} was given in two parts (not atomic)"));
            }
        }
        for (progress, given) in &seen.progress {
            if let Some(missing) = expected.get(*given).filter(|next| next.revision <= *progress) {
                return Err(format!(
                    "progress said {progress} with {given} events given; {missing:?} was not"
                ));
            }
        }
        let left = expected.len() - seen.events.len();
        match (&seen.ended, extent) {
            (Some(WatchError::Expired { events_max }), _) if left <= *events_max => {
                Err(format!("expired with {left} events waiting, though {events_max} may"))
            }
            (None | Some(WatchError::Closed), Extent::All(until)) if left > 0 => {
                let next = expected.get(seen.events.len());
                Err(format!("{left} events up to {until} were never given; the first: {next:?}"))
            }
            _ => Ok(()),
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
