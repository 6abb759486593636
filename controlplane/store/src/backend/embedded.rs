//! Owns the embedded backend: one committer thread that evaluates waiting commands in order ahead of the disk and gives what they changed to
//! the pipeline, batch by batch.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::backend::flight::{Batch, refuse};
use crate::backend::pipeline::Pipeline;
use crate::backend::queue::{Queue, Taken};
use crate::backend::recovery::Recovery;
use crate::backend::speculation::{Answer, Speculation};
use crate::backend::{Backend, Command, Published, Reply, Written};
use crate::log::appender::Appender;
use crate::log::disk::Disk;
use crate::log::{Counters, Log, OpenError};
use crate::txn::WriteError;
use crate::{Config, KEY_BYTES_MAX};

/// One batch takes no further command above this size, so that the first of a long queue does not wait for all.
const BATCH_BYTES_MAX: usize = 128 << 10;
/// After two commands were seen at once, so many batches are not written by the committer itself.
const CROWDED_BATCHES: u32 = 64;

type Item = (Command, OwnedSemaphorePermit);

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
    pipeline: Weak<Pipeline>,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").finish_non_exhaustive()
    }
}

impl Backend for Embedded {
    fn submit(&self, command: Command, permit: OwnedSemaphorePermit) {
        // A closed queue drops the reply, which is the answer.
        drop(self.queue.push((command, permit)));
    }

    fn is_full(&self) -> bool {
        self.pipeline.upgrade().is_some_and(|pipeline| pipeline.is_full())
    }

    fn checkpoint(&self, reply: Reply<()>) {
        // A closed store drops the reply, which is the answer.
        if let Some(pipeline) = self.pipeline.upgrade() {
            pipeline.ask_checkpoint(reply);
        }
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
    let (log, appender) = Log::open(disk, counters.clone(), config.log_sizes, &mut recovery)?;
    let (snapshot, leases, reserved) = recovery.finish()?;
    let published = Arc::new(Published::new(snapshot.clone(), config.seal.clone()));
    let durable = appender.durable().clone();
    let pipeline = Pipeline::new(log, published.clone(), durable, counters.clone(), reserved);
    let own = Arc::downgrade(&pipeline);
    let queue = Arc::new(Queue::new());
    let closing = Arc::new(Mutex::new(Closing::default()));
    let committer = Committer {
        queue: queue.clone(),
        published: published.clone(),
        pipeline,
        appender,
        speculation: Speculation::new(snapshot, leases, reserved, config),
        refusing: false,
        crowded: 0,
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
    Ok((published, Embedded { queue, closing, counters, pipeline: own }))
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
    pipeline: Arc<Pipeline>,
    appender: Appender,
    speculation: Speculation,
    /// The last command was refused: nothing ends by itself until one is not.
    refusing: bool,
    /// Batches for which there is company.
    crowded: u32,
}

impl Committer {
    fn run(mut self) {
        loop {
            let deadline = self.speculation.next_expiry().filter(|_| !self.refusing);
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
        self.pipeline.close();
    }

    /// Takes commands up to one batch's size and evaluates them.
    fn batch(&mut self, items: &mut VecDeque<Item>) {
        if self.pipeline.is_foul()
            && let Err(reason) = self.recover()
        {
            self.refusing = true;
            let answer = |(command, permit)| {
                let why = WriteError::Refused { reason: reason.clone() };
                (Answer::refusal(command, why), permit)
            };
            refuse(items.drain(..).map(answer).collect(), &reason);
            return;
        }
        self.refusing = false;
        self.crowded =
            if items.len() > 1 { CROWDED_BATCHES } else { self.crowded.saturating_sub(1) };
        let (first_sequence, mut answers) = (self.appender.next_sequence(), Vec::new());
        self.speculation.expire(&mut self.appender, Instant::now());
        while self.appender.bytes() < BATCH_BYTES_MAX
            && let Some((command, permit)) = items.pop_front()
        {
            let answer = self.speculation.evaluate(command, &mut self.appender);
            answers.push((answer, permit));
        }
        let bytes = self.appender.take(self.pipeline.buffer());
        let (next_sequence, progress) =
            (self.appender.next_sequence(), self.speculation.progress());
        let events = self.speculation.take_events();
        let batch = Batch { bytes, first_sequence, next_sequence, events, progress, answers };
        if batch.is_empty() {
            return;
        }
        let alone = self.crowded == 0 && items.is_empty();
        if let Err((answers, reason)) = self.pipeline.push(batch, alone) {
            refuse(answers, &reason);
        }
    }

    /// Goes back to what is durable, and on from there.
    fn recover(&mut self) -> Result<(), Arc<str>> {
        let reserved = self.pipeline.recover()?;
        self.appender.rewind();
        self.speculation.discard(self.published.snapshot(), reserved);
        Ok(())
    }
}

/// Whether the log takes the key.
pub(crate) fn check_key(key: &[u8]) -> Result<(), WriteError> {
    if key.len() <= KEY_BYTES_MAX {
        return Ok(());
    }
    Err(WriteError::TooLarge { bytes: key.len(), bytes_max: KEY_BYTES_MAX })
}
