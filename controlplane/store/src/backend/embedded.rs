//! Owns the embedded backend: one committer thread that evaluates waiting commands in order ahead of the disk, writes what they
//! changed as one batch, flushes once, and only then publishes, notifies and answers. After a failed write it refuses further
//! ones: what the disk holds is not known, and it never guesses.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::backend::queue::{Queue, Taken};
use crate::backend::recovery::Recovery;
use crate::backend::speculation::{Answer, Speculation};
use crate::backend::{Backend, Command, Published, Reply, Written};
use crate::log::checkpoint::{self, CheckpointInfo, Contents};
use crate::log::disk::Disk;
use crate::log::dump::Dump;
use crate::log::{Counters, Log, LogError, OpenError};
use crate::txn::WriteError;
use crate::{Config, KEY_BYTES_MAX};

/// One batch takes no further command above this size, so that the first of a long queue does not wait for all.
const BATCH_BYTES_MAX: usize = 1 << 20;

enum Item {
    Command(Command, OwnedSemaphorePermit),
    Checkpoint(Reply<()>),
    Checkpointed(Result<CheckpointInfo, LogError>),
}

#[derive(Debug, Default)]
struct Closing {
    closed: bool,
    waiting: Vec<oneshot::Sender<()>>,
}

/// The callers' side.
pub(crate) struct Embedded {
    queue: Arc<Queue<Item>>,
    closing: Arc<Mutex<Closing>>,
    counters: Arc<Counters>,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").finish_non_exhaustive()
    }
}

impl Backend for Embedded {
    fn submit(&self, command: Command, permit: OwnedSemaphorePermit) {
        // A closed queue drops the reply, which is the answer.
        drop(self.queue.push(Item::Command(command, permit)));
    }

    fn checkpoint(&self, reply: Reply<()>) {
        drop(self.queue.push(Item::Checkpoint(reply)));
    }

    fn close(&self) -> oneshot::Receiver<()> {
        self.queue.close();
        let (sender, receiver) = oneshot::channel();
        let mut closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        if !closing.closed {
            closing.waiting.push(sender);
        }
        receiver
    }

    fn written(&self) -> Written {
        self.counters.written()
    }
}

/// Recovers what is on the disk and starts the committer.
pub(crate) fn open(
    disk: Arc<dyn Disk>,
    config: Config,
) -> Result<(Arc<Published>, Embedded), OpenError> {
    let counters = Arc::new(Counters::default());
    let mut recovery = Recovery::new(&config, Instant::now());
    let log = Log::open(disk, counters.clone(), config.log_sizes, &mut recovery)?;
    let (snapshot, leases, reserved) = recovery.finish()?;
    let published = Arc::new(Published::new(snapshot.clone(), config.seal.clone()));
    let queue = Arc::new(Queue::new());
    let closing = Arc::new(Mutex::new(Closing::default()));
    let committer = Committer {
        queue: queue.clone(),
        published: published.clone(),
        log,
        speculation: Speculation::new(snapshot, leases, reserved, config),
        failed: None,
        checkpoint: None,
        checkpoint_asked: Vec::new(),
        stop: Arc::new(AtomicBool::new(false)),
    };
    let on_exit =
        OnExit { queue: queue.clone(), published: published.clone(), closing: closing.clone() };
    let thread = std::thread::Builder::new().name("store-committer".to_owned());
    let started = thread.spawn(move || {
        let _on_exit = on_exit;
        committer.run();
    });
    // The thread is not joined: `closing` says when it has let go of everything.
    started.map(drop).map_err(OpenError::io("the committer's thread", "started"))?;
    Ok((published, Embedded { queue, closing, counters }))
}

/// What is true when the committer is gone, however it went.
struct OnExit {
    queue: Arc<Queue<Item>>,
    published: Arc<Published>,
    closing: Arc<Mutex<Closing>>,
}

impl Drop for OnExit {
    fn drop(&mut self) {
        self.queue.close();
        while let Taken::Items(items) = self.queue.take(None) {
            drop(items);
        }
        self.published.hub.close();
        let mut closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        closing.closed = true;
        for waiting in closing.waiting.drain(..) {
            // Nobody may wait any more.
            waiting.send(()).ok();
        }
    }
}

struct Committer {
    queue: Arc<Queue<Item>>,
    published: Arc<Published>,
    log: Log,
    speculation: Speculation,
    failed: Option<Arc<str>>,
    checkpoint: Option<JoinHandle<()>>,
    /// Who waits for the checkpoint that is being written, or for the next.
    checkpoint_asked: Vec<Reply<()>>,
    stop: Arc<AtomicBool>,
}

impl Committer {
    fn run(mut self) {
        loop {
            let deadline = self.speculation.next_expiry().filter(|_| self.failed.is_none());
            match self.queue.take(deadline) {
                Taken::Items(mut items) => {
                    while !items.is_empty() {
                        self.batch(&mut items);
                    }
                }
                Taken::Deadline => self.batch(&mut VecDeque::new()),
                Taken::Closed => break,
            }
        }
        self.stop.store(true, Ordering::Relaxed);
        if self.checkpoint.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the checkpoint's thread panicked");
        }
    }

    /// Takes commands up to one batch's size, and carries them through.
    fn batch(&mut self, items: &mut VecDeque<Item>) {
        let mut answers: Vec<(Answer, OwnedSemaphorePermit)> = Vec::new();
        if self.failed.is_none() {
            self.speculation.expire(&mut self.log, Instant::now());
        }
        while self.log.batch_bytes() < BATCH_BYTES_MAX {
            match items.pop_front() {
                Some(Item::Command(command, permit)) => {
                    let answer = match &self.failed {
                        Some(reason) => Answer::refusal(command, refused(reason)),
                        None => self.speculation.evaluate(command, &mut self.log),
                    };
                    answers.push((answer, permit));
                }
                Some(Item::Checkpoint(reply)) => match &self.failed {
                    Some(reason) => drop(reply.send(Err(refused(reason)))),
                    None => self.checkpoint_asked.push(reply),
                },
                Some(Item::Checkpointed(result)) => self.checkpointed(result),
                None => break,
            }
        }
        self.commit(answers);
    }

    fn commit(&mut self, answers: Vec<(Answer, OwnedSemaphorePermit)>) {
        let flushed = if self.failed.is_none() { self.log.flush() } else { Ok(()) };
        if let Err(error) = flushed {
            let reason: Arc<str> = error.to_string().into();
            tracing::error!(%reason, "the log failed; writes are refused until the store is reopened");
            self.failed = Some(reason.clone());
            self.speculation.discard(self.published.snapshot());
            for (answer, _permit) in answers {
                answer.send(Err(refused(&reason)));
            }
            return;
        }
        let events = self.speculation.take_events();
        if !events.is_empty() || self.speculation.take_changed() {
            self.published.publish(self.speculation.snapshot().clone());
        }
        // Watchers first: whoever sees the answer finds what it changed in every watcher's queue, so a projection that is
        // brought up to date before it decides (authorization) is never behind its asker.
        if !events.is_empty() {
            self.published.notify(&events, self.speculation.snapshot().revision);
        }
        for (answer, _permit) in answers {
            answer.send(Ok(()));
        }
        if self.failed.is_none() {
            self.look_after_log();
        }
    }

    fn look_after_log(&mut self) {
        let snapshot = self.speculation.snapshot();
        let compacted = snapshot.history.compacted();
        let wanted = self.log.wants_checkpoint(snapshot.bytes) || !self.checkpoint_asked.is_empty();
        if self.checkpoint.is_none() && wanted {
            self.start_checkpoint();
        }
        if let Err(error) = self.log.remove_unneeded(compacted) {
            tracing::warn!(%error, "an unneeded file of the log stays");
        }
    }

    fn start_checkpoint(&mut self) {
        let (snapshot, seal) = (self.speculation.snapshot().clone(), self.speculation.seal());
        let dump = Dump::new(snapshot, self.speculation.reserved(), seal.cloned());
        let contents = Contents {
            disk: self.log.disk().clone(),
            counters: self.log.counters().clone(),
            sequence: self.log.durable(),
            dump,
            stop: self.stop.clone(),
        };
        self.log.checkpoint_started();
        let queue = self.queue.clone();
        let thread = std::thread::Builder::new().name("store-checkpoint".to_owned());
        let started = thread.spawn(move || {
            let result = checkpoint::write(contents);
            // A closed queue: the next process finds the checkpoint by its name.
            drop(queue.push(Item::Checkpointed(result)));
        });
        match started {
            Ok(thread) => self.checkpoint = Some(thread),
            Err(error) => {
                tracing::warn!(%error, "no thread for a checkpoint; the log grows on");
                self.answer_checkpoint(Err(refused(&error.to_string().into())));
            }
        }
    }

    fn answer_checkpoint(&mut self, result: Result<(), WriteError>) {
        for reply in self.checkpoint_asked.drain(..) {
            // Nobody may wait any more.
            drop(reply.send(result.clone()));
        }
    }

    fn checkpointed(&mut self, result: Result<CheckpointInfo, LogError>) {
        self.checkpoint = None;
        match result {
            Ok(info) => {
                self.log.checkpoint_finished(info);
                self.answer_checkpoint(Ok(()));
            }
            Err(error) => {
                self.answer_checkpoint(Err(refused(&error.to_string().into())));
                Counters::count(&self.log.counters().checkpoint_failures);
                tracing::warn!(%error, "a checkpoint failed; the log grows on");
            }
        }
    }
}

fn refused(reason: &Arc<str>) -> WriteError {
    WriteError::Refused { reason: reason.clone() }
}

/// Whether the log takes the key.
pub(crate) fn check_key(key: &[u8]) -> Result<(), WriteError> {
    if key.len() <= KEY_BYTES_MAX {
        return Ok(());
    }
    Err(WriteError::TooLarge { bytes: key.len(), bytes_max: KEY_BYTES_MAX })
}
