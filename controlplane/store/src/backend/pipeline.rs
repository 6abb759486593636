//! Owns the way of batches to the disk: which fly, how many at once, on which thread; they are published and answered strictly in order, each
//! when all before it are durable. Evaluates nothing.
//!
//! A batch waits as `open`, growing, until it is worth a flush of its own: at once when nothing is being written; else as soon as it is as large as all
//! that is being written, or large at all. So one writer pays one flush on the thread that evaluated its command, a few are in the
//! air side by side, and many make large batches, of which one is written while the next is evaluated and the one before is answered.
//!
//! After a failed write every batch behind it is refused. When the disk was full, the next command cuts off what may stand
//! of them in the file and goes on; any other failure stands until the store is opened again: what the disk holds is
//! not known then, and nothing here guesses.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use rustix::io::Errno;

use crate::backend::flight::{Batch, Flight, Landing, Runway, Takeoff, Waiting};
use crate::backend::{Published, Reply};
use crate::log::checkpoint::{self, CheckpointInfo, Contents};
use crate::log::chore::Chore;
use crate::log::dump::Dump;
use crate::log::segment::Place;
use crate::log::{Counters, Log, LogError};
use crate::revision::Revision;
use crate::txn::WriteError;

/// More flushes at once were not faster on any device tried, and each has a thread.
const WRITING_MAX: usize = 4;
/// A batch of this size is worth a flush, whatever else is being written.
const WORTH_BYTES: usize = 128 << 10;
/// Buffers kept for the next batches, and the largest that is kept.
const BUFFERS_KEPT: usize = WRITING_MAX;
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// Whether batches may fly.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Weather {
    Fair,
    /// A write failed for want of room; the next command tries again.
    Full(Arc<str>),
    /// A write could not begin for want of descriptors; the next command tries again.
    Short(Arc<str>),
    /// A write failed.
    Failed(Arc<str>),
}

impl Weather {
    /// What it is after this.
    fn after(error: &LogError) -> Self {
        let reason: Arc<str> = error.to_string().into();
        // Only what opens a file has these, and every file is opened before its first byte is written.
        let short = [Errno::MFILE, Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
        match error.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(reason),
            _ if short.contains(&error.source.raw_os_error()) => Self::Short(reason),
            _ => Self::Failed(reason),
        }
    }

    /// Why nothing is written.
    fn reason(&self) -> Option<&Arc<str>> {
        match self {
            Self::Fair => None,
            Self::Full(reason) | Self::Short(reason) | Self::Failed(reason) => Some(reason),
        }
    }
}

struct State {
    log: Log,
    open: Option<Batch>,
    /// In order; published from the front.
    flights: VecDeque<Flight>,
    next_id: u64,
    writing: usize,
    writing_bytes: usize,
    /// A segment is being made, or a place could not be opened: nothing else can be placed.
    switching: bool,
    /// Some thread publishes what has landed.
    publishing: bool,
    weather: Weather,
    reserved: Revision,
    buffers: Vec<Vec<u8>>,
    chore: Option<Chore>,
    /// A chore is under way.
    busy: bool,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    /// A checkpoint is being written.
    checkpointing: bool,
    /// Threads that write or wrote one: what they hold is let go of when they are joined.
    checkpoint_threads: Vec<JoinHandle<()>>,
    /// Who waits for the checkpoint that is being written, and for the next.
    checkpoint_asked: Vec<Reply<()>>,
    next_checkpoint_asked: Vec<Reply<()>>,
    closing: bool,
}

/// What batches fly through.
pub(crate) struct Pipeline {
    state: Mutex<State>,
    /// For threads that write.
    work: Condvar,
    /// For whoever waits until nothing is under way.
    quiet: Condvar,
    /// Something other than [`Weather::Fair`].
    foul: AtomicBool,
    published: Arc<Published>,
    durable: Arc<AtomicU64>,
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    own: Weak<Pipeline>,
}

impl State {
    /// Whether `open` is to fly now.
    fn may_take(&self) -> bool {
        let Some(open) = self.open.as_ref().filter(|_| !self.switching) else { return false };
        let bytes = open.bytes.len();
        let worth = bytes > 0 && bytes >= self.writing_bytes.min(WORTH_BYTES);
        if self.writing > 0 && (!worth || self.writing >= WRITING_MAX) {
            return false;
        }
        // Behind a failed one nothing flies, and a new segment says that everything before it is durable.
        let landed = |flight: &Flight| matches!(flight.landed, Some(Ok(())));
        let failed = |flight: &Flight| matches!(flight.landed, Some(Err(_)));
        let fits = bytes == 0 || self.log.has_room(bytes as u64);
        !self.flights.iter().any(failed) && (fits || self.flights.iter().all(landed))
    }

    fn take(&mut self) -> Option<Takeoff> {
        if !self.may_take() {
            return None;
        }
        let mut batch = self.open.take()?;
        let bytes = std::mem::take(&mut batch.bytes);
        let length = bytes.len() as u64;
        let runway = if length == 0 {
            Ok(Runway::Nothing)
        } else if let Some(place) = self.log.place(length) {
            // Nothing may come where this one was to be.
            self.switching = place.is_err();
            place.map(Runway::Place)
        } else {
            self.switching = true;
            Ok(Runway::New(self.log.plan_segment(batch.first_sequence, length)))
        };
        self.next_id += 1;
        let id = self.next_id;
        self.flights.push_back(Flight { id, batch, bytes: length, landed: None });
        self.writing += 1;
        self.writing_bytes += bytes.len();
        Some(Takeoff { id, bytes, runway })
    }

    /// Takes note of what became of a flight.
    fn land(&mut self, landing: Landing) {
        let Landing { id, buffer, segment, place, result } = landing;
        if let Some((info, tail)) = segment {
            self.log.go_on_in(info, tail);
        }
        if let Some(place) = place {
            self.place_used(place, result.is_ok());
        }
        if let Some(flight) = self.flights.iter_mut().find(|flight| flight.id == id) {
            self.writing -= 1;
            self.writing_bytes -= usize::try_from(flight.bytes).unwrap_or(self.writing_bytes);
            flight.landed = Some(result);
        }
        self.switching = false;
        self.keep(buffer);
    }

    fn keep(&mut self, buffer: Vec<u8>) {
        if self.buffers.len() < BUFFERS_KEPT && buffer.capacity() <= BUFFER_BYTES_KEPT {
            self.buffers.push(buffer);
        }
    }

    fn place_used(&mut self, place: Place, written: bool) {
        if !written || self.weather != Weather::Fair {
            // What came before it in the file and failed is taken back with its own place.
            self.log.take_back(&place);
        }
        self.log.give_back(place);
    }

    fn is_quiet(&self) -> bool {
        self.open.is_none() && self.flights.is_empty() && !self.publishing
    }
}

impl Pipeline {
    pub(crate) fn new(
        log: Log,
        published: Arc<Published>,
        durable: Arc<AtomicU64>,
        counters: Arc<Counters>,
        reserved: Revision,
    ) -> Arc<Self> {
        let state = State {
            log,
            open: None,
            flights: VecDeque::new(),
            next_id: 0,
            writing: 0,
            writing_bytes: 0,
            switching: false,
            publishing: false,
            weather: Weather::Fair,
            reserved,
            buffers: Vec::new(),
            chore: None,
            busy: false,
            idle: 0,
            threads: Vec::new(),
            checkpointing: false,
            checkpoint_threads: Vec::new(),
            checkpoint_asked: Vec::new(),
            next_checkpoint_asked: Vec::new(),
            closing: false,
        };
        Arc::new_cyclic(|own| Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            quiet: Condvar::new(),
            foul: AtomicBool::new(false),
            published,
            durable,
            counters,
            stop: Arc::new(AtomicBool::new(false)),
            own: own.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer for the next batch's records.
    pub(crate) fn buffer(&self) -> Vec<u8> {
        self.lock().buffers.pop().unwrap_or_default()
    }

    /// Whether the last write found no room.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self.lock().weather, Weather::Full(_))
    }

    /// Whether writes are refused, or were the last time that one was tried.
    pub(crate) fn is_foul(&self) -> bool {
        self.foul.load(Ordering::Acquire)
    }

    /// Takes what follows all that was given before. `alone`: no other command waits, so this thread may as well write it.
    ///
    /// # Errors
    /// Why it is refused, and who waited for it.
    pub(crate) fn push(&self, batch: Batch, alone: bool) -> Result<(), (Vec<Waiting>, Arc<str>)> {
        let mut state = self.lock();
        if let Some(reason) = state.weather.reason() {
            return Err((batch.answers, reason.clone()));
        }
        match &mut state.open {
            Some(open) => {
                let buffer = open.absorb(batch);
                state.keep(buffer);
            }
            open => *open = Some(batch),
        }
        let own = alone && state.is_calm();
        if (own || !self.call(&mut state))
            && let Some(takeoff) = state.take()
        {
            drop(self.fly(state, takeoff));
        }
        Ok(())
    }

    /// Finds a thread for what is to be done. `false`: there is none, and none can be made.
    fn call(&self, state: &mut State) -> bool {
        if !state.may_take() && (state.chore.is_none() || state.busy) {
            return true;
        }
        if state.idle > 0 {
            self.work.notify_one();
            return true;
        }
        if state.threads.len() < WRITING_MAX && !state.closing {
            self.add_thread(state);
        }
        !state.threads.is_empty()
    }

    fn add_thread(&self, state: &mut State) {
        let Some(own) = self.own.upgrade() else { return };
        let name = format!("store-writer-{}", state.threads.len() + 1);
        match std::thread::Builder::new().name(name).spawn(move || own.run()) {
            Ok(thread) => state.threads.push(thread),
            // The next batch tries again; until then the thread that evaluates writes.
            Err(error) => tracing::warn!(%error, "no thread to write with"),
        }
    }

    /// What a thread that writes does until the end.
    fn run(&self) {
        let _on_panic = OnPanic(self);
        let mut state = self.lock();
        loop {
            if let Some(takeoff) = state.take() {
                state = self.fly(state, takeoff);
                continue;
            }
            if let Some(chore) = (!state.busy).then(|| state.chore.take()).flatten() {
                state.busy = true;
                drop(state);
                let done = chore.run();
                state = self.lock();
                state.busy = false;
                state.log.chore_done(done);
                continue;
            }
            if state.closing {
                return;
            }
            state.idle += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    fn fly<'a>(&'a self, state: MutexGuard<'a, State>, takeoff: Takeoff) -> MutexGuard<'a, State> {
        drop(state);
        let landing = takeoff.fly(&self.counters);
        let mut state = self.lock();
        state.land(landing);
        // Somebody else writes on while this thread publishes.
        self.call(&mut state);
        self.publish(state)
    }

    /// Publishes what has landed, in order, unless another thread is at it: then that one does.
    fn publish<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if state.publishing {
            return state;
        }
        state.publishing = true;
        while state.flights.front().is_some_and(|flight| flight.landed.is_some()) {
            let Some(Flight { batch, landed, .. }) = state.flights.pop_front() else { break };
            if let Some(Err(error)) = landed {
                self.fail(&mut state, &error);
            }
            if let Some(reason) = state.weather.reason() {
                let (reason, open) = (reason.clone(), state.open.take());
                drop(state);
                batch.refuse(&reason);
                if let Some(open) = open {
                    open.refuse(&reason);
                }
                state = self.lock();
                continue;
            }
            self.durable.store(batch.next_sequence - 1, Ordering::Release);
            let (progress, sequence) = (batch.progress.clone(), batch.next_sequence - 1);
            state.reserved = progress.reserved;
            drop(state);
            batch.publish(&self.published);
            state = self.lock();
            self.look_after_log(&mut state, sequence, progress.compacted);
        }
        state.publishing = false;
        if state.is_quiet() {
            self.quiet.notify_all();
        }
        self.call(&mut state);
        state
    }

    fn fail(&self, state: &mut State, error: &LogError) {
        if matches!(state.weather, Weather::Failed(_)) {
            return;
        }
        state.weather = Weather::after(error);
        let until = match &state.weather {
            Weather::Full(_) => "there is room on the disk",
            Weather::Short(_) => "a file can be opened",
            Weather::Fair | Weather::Failed(_) => "the store is reopened",
        };
        tracing::error!(%error, "the log failed; writes are refused until {until}");
        answer(&mut state.next_checkpoint_asked, &Err(refused(error.to_string())));
        self.foul.store(true, Ordering::Release);
    }

    /// Waits until nothing is under way.
    fn wait(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while !state.is_quiet() {
            state = self.quiet.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// Tries to go on after a failure; what was evaluated and refused must be forgotten then. Returns what is reserved.
    ///
    /// # Errors
    /// Why it can't.
    pub(crate) fn recover(&self) -> Result<Revision, Arc<str>> {
        let mut state = self.wait();
        match &state.weather {
            Weather::Fair => {}
            Weather::Failed(reason) => return Err(reason.clone()),
            Weather::Full(_) | Weather::Short(_) => {
                if let Err(error) = state.log.cut() {
                    let reason: Arc<str> = error.to_string().into();
                    state.weather = Weather::Full(reason.clone());
                    return Err(reason);
                }
                state.weather = Weather::Fair;
            }
        }
        self.foul.store(false, Ordering::Release);
        Ok(state.reserved)
    }

    fn look_after_log(&self, state: &mut State, sequence: u64, compacted: Revision) {
        let bytes = self.published.with(|snapshot| snapshot.bytes);
        let wanted = state.log.wants_checkpoint(sequence, bytes);
        if wanted || !state.next_checkpoint_asked.is_empty() {
            self.start_checkpoint(state, sequence);
        }
        if state.chore.is_none() && !state.busy {
            state.chore = state.log.plan_chore(compacted);
        }
    }

    /// What is published is just what the records up to `sequence` say: the caller is the one who publishes.
    fn start_checkpoint(&self, state: &mut State, sequence: u64) {
        if state.checkpointing || state.closing {
            return;
        }
        state.checkpoint_asked.append(&mut state.next_checkpoint_asked);
        if !state.log.has_checkpoint_to_write(sequence) {
            answer(&mut state.checkpoint_asked, &Ok(()));
            return;
        }
        let (snapshot, seal) = (self.published.snapshot(), self.published.seal.clone());
        let contents = Contents {
            disk: state.log.disk().clone(),
            counters: self.counters.clone(),
            sequence,
            dump: Dump::new(snapshot, state.reserved, seal),
            stop: self.stop.clone(),
        };
        state.log.checkpoint_started();
        let own = self.own.clone();
        let thread = std::thread::Builder::new().name("store-checkpoint".to_owned());
        let started = thread.spawn(move || {
            let result = checkpoint::write(contents);
            if let Some(own) = own.upgrade() {
                own.checkpointed(result);
            }
        });
        match started {
            Ok(thread) => {
                state.checkpointing = true;
                state.checkpoint_threads.retain(|thread| !thread.is_finished());
                state.checkpoint_threads.push(thread);
            }
            Err(error) => {
                tracing::warn!(%error, "no thread for a checkpoint; the log grows on");
                answer(&mut state.checkpoint_asked, &Err(refused(error.to_string())));
            }
        }
    }

    fn checkpointed(&self, result: Result<CheckpointInfo, LogError>) {
        let mut state = self.lock();
        state.checkpointing = false;
        let result = match result {
            Ok(info) => {
                state.log.checkpoint_finished(info);
                Ok(())
            }
            Err(error) => {
                Counters::count(&self.counters.checkpoint_failures);
                tracing::warn!(%error, "a checkpoint failed; the log grows on");
                Err(refused(error.to_string()))
            }
        };
        answer(&mut state.checkpoint_asked, &result);
        self.look_after_idle_log(&mut state);
        self.call(&mut state);
    }

    /// Writes a checkpoint of what is durable now.
    pub(crate) fn ask_checkpoint(&self, reply: Reply<()>) {
        let mut state = self.lock();
        state.next_checkpoint_asked.push(reply);
        if let Some(reason) = state.weather.reason() {
            let result = Err(WriteError::Refused { reason: reason.clone() });
            answer(&mut state.next_checkpoint_asked, &result);
            return;
        }
        self.look_after_idle_log(&mut state);
    }

    /// Looks after the log unless the thread that publishes is about to.
    fn look_after_idle_log(&self, state: &mut State) {
        if !state.publishing && !state.closing {
            let compacted = self.published.with(|snapshot| snapshot.history.compacted());
            self.look_after_log(state, self.durable.load(Ordering::Acquire), compacted);
        }
    }

    /// Finishes everything and lets go of every thread.
    pub(crate) fn close(&self) {
        let mut state = self.wait();
        state.closing = true;
        let mut threads = std::mem::take(&mut state.threads);
        threads.append(&mut state.checkpoint_threads);
        drop(state);
        self.stop.store(true, Ordering::Relaxed);
        self.work.notify_all();
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
    }
}

fn refused(reason: String) -> WriteError {
    WriteError::Refused { reason: reason.into() }
}

fn answer(asked: &mut Vec<Reply<()>>, result: &Result<(), WriteError>) {
    for reply in asked.drain(..) {
        // Nobody may wait any more.
        drop(reply.send(result.clone()));
    }
}

impl State {
    /// Whether nothing is being written or published.
    fn is_calm(&self) -> bool {
        self.flights.is_empty() && !self.publishing
    }
}

/// Without the thread that panicked nothing could be promised any more.
struct OnPanic<'a>(&'a Pipeline);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let mut state = self.0.lock();
        state.weather = Weather::Failed("a thread of the store panicked".into());
        state.flights.clear();
        state.open = None;
        (state.writing, state.writing_bytes, state.publishing) = (0, 0, false);
        self.0.foul.store(true, Ordering::Release);
        self.0.quiet.notify_all();
    }
}
