//! Owns the embedded backend: one committer thread that evaluates waiting commands in order ahead of the disk and gives what they changed to
//! the pipeline, batch by batch.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::backend::flight::{Batch, Waiting, refuse};
use crate::backend::pipeline::Pipeline;
use crate::backend::queue::{Queue, Taken};
use crate::backend::recovery::{Recovered, Recovery};
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

/// So long after leases were ended it is looked whether that is durable, and tried again if it is not.
const END_RETRY: Duration = Duration::from_secs(5);

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
    let (committer, embedded) = recover(disk, config)?;
    let published = committer.published.clone();
    let (queue, closing) = (embedded.queue.clone(), embedded.closing.clone());
    let on_exit = OnExit { queue, published: published.clone(), closing };
    let thread = std::thread::Builder::new().name("store-committer".to_owned());
    let started = thread.spawn(move || {
        let _on_exit = on_exit;
        committer.run();
    });
    // The thread is not joined: `closing` says when it has let go of everything.
    started.map(drop).map_err(OpenError::io("the committer's thread", "started"))?;
    Ok((published, embedded))
}

/// A committer that does not run yet, and its callers' side.
fn recover(disk: Arc<dyn Disk>, config: Config) -> Result<(Committer, Embedded), OpenError> {
    let counters = Arc::new(Counters::default());
    let mut recovery = Recovery::new(&config, Instant::now());
    let (log, appender) = Log::open(disk, counters.clone(), config.log_sizes, &mut recovery)?;
    let Recovered { snapshot, leases, reserved, stale } = recovery.finish()?;
    let published = Arc::new(Published::new(snapshot.clone(), config.seal.clone()));
    let durable = appender.durable().clone();
    let pipeline = Pipeline::new(log, published.clone(), durable, counters.clone(), reserved);
    let own = Arc::downgrade(&pipeline);
    let queue = Arc::new(Queue::new());
    let closing = Arc::new(Mutex::new(Closing::default()));
    let mut committer = Committer {
        queue: queue.clone(),
        published,
        pipeline,
        appender,
        speculation: Speculation::new(snapshot, leases, reserved, config),
        refusing: false,
        crowded: 0,
        alone: true,
    };
    if !stale.is_empty() {
        committer.forget(&stale);
    }
    Ok((committer, Embedded { queue, closing, counters, pipeline: own }))
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
    /// No other command waits.
    alone: bool,
}

impl Committer {
    fn run(mut self) {
        loop {
            let now = Instant::now();
            let deadline = self.deadline(now);
            match self.queue.take(deadline) {
                Taken::Items(mut items) => {
                    while !items.is_empty() {
                        self.batch(&mut items, now);
                    }
                }
                Taken::Deadline => self.batch(&mut VecDeque::new(), deadline.unwrap_or(now)),
                Taken::Closed => break,
            }
        }
        self.pipeline.close();
    }

    /// Writes that keys are gone, before anybody reads or watches.
    fn forget(&mut self, stale: &BTreeSet<Vec<u8>>) {
        let first_sequence = self.appender.next_sequence();
        self.speculation.forget(stale, &mut self.appender);
        self.push(Vec::new(), first_sequence);
        let revision = self.published.with(|snapshot| snapshot.revision);
        self.published.notify(&[], revision);
    }

    /// When there is something to do without any command.
    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        if self.refusing {
            return None;
        }
        let retry = self.speculation.awaits_end(&self.appender).then(|| now + END_RETRY);
        self.speculation.next_expiry().into_iter().chain(retry).min()
    }

    /// Takes commands up to one batch's size and evaluates them. Behind the last, leases end whose time was over at `queued`: what was given
    /// up to then has been evaluated, so a lease that was kept alive in time lives.
    fn batch(&mut self, items: &mut VecDeque<Item>, queued: Instant) {
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
        while self.appender.bytes() < BATCH_BYTES_MAX
            && let Some((command, permit)) = items.pop_front()
        {
            let answer = self.speculation.evaluate(command, &mut self.appender);
            answers.push((answer, permit));
        }
        if items.is_empty() {
            self.speculation.expire(&mut self.appender, queued);
        }
        self.alone = self.crowded == 0 && items.is_empty();
        self.push(answers, first_sequence);
    }

    /// Gives what was evaluated to the pipeline.
    fn push(&mut self, answers: Vec<Waiting>, first_sequence: u64) {
        let bytes = self.appender.take(self.pipeline.buffer());
        let (next_sequence, progress) =
            (self.appender.next_sequence(), self.speculation.progress());
        let events = self.speculation.take_events();
        let batch = Batch { bytes, first_sequence, next_sequence, events, progress, answers };
        if batch.is_empty() {
            return;
        }
        if let Err((answers, reason)) = self.pipeline.push(batch, self.alone) {
            refuse(answers, &reason);
        }
    }

    /// Goes back to what is durable, and on from there.
    fn recover(&mut self) -> Result<(), Arc<str>> {
        let reserved = self.pipeline.recover()?;
        self.appender.rewind();
        self.speculation.discard(self.published.snapshot(), reserved, &self.appender);
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

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;
    use crate::log::faulty::FaultyDisk;
    use crate::{LogSizes, Op, Txn};

    fn committer(disk: &FaultyDisk) -> Committer {
        let log_sizes = LogSizes { segment_bytes: 512, checkpoint_bytes_min: 1 << 20 };
        let config = Config { log_sizes, ..Config::new("") };
        recover(Arc::new(disk.clone()), config).unwrap().0
    }

    fn run<T>(
        own: &mut Committer,
        at: Instant,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, WriteError> {
        let (reply, mut answer) = oneshot::channel();
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        own.batch(&mut VecDeque::from([(command(reply), permit)]), at);
        answer.try_recv().unwrap()
    }

    fn grant(own: &mut Committer, id: i64, seconds: u64) {
        let ttl = Duration::from_secs(seconds);
        run(own, Instant::now(), |reply| Command::LeaseGrant { id, ttl, reply }).unwrap();
    }

    #[test]
    fn a_lease_that_is_kept_alive_in_time_lives_however_late_that_is_evaluated() {
        let mut own = committer(&FaultyDisk::new());
        grant(&mut own, 7, 3600);
        let ends = own.speculation.next_expiry().unwrap();
        run(&mut own, ends, |reply| Command::LeaseKeepAlive(7, reply)).unwrap();
        let kept = own.speculation.next_expiry().unwrap();
        assert!(kept > ends);
        own.batch(&mut VecDeque::new(), kept);
        assert!(own.published.snapshot().leases.is_empty());
    }

    #[test]
    fn an_end_that_found_no_room_keeps_its_time_and_is_tried_again() {
        let disk = FaultyDisk::new();
        let mut own = committer(&disk);
        grant(&mut own, 7, 3600);
        let leased = Op::Put { key: "/k".into(), value: vec![1; 600].into(), lease: 7 };
        run(&mut own, Instant::now(), |reply| Command::Txn(Txn::of(vec![leased]), reply)).unwrap();
        let ends = own.speculation.next_expiry().unwrap();
        disk.set_full(true);
        own.batch(&mut VecDeque::new(), ends);
        assert!(own.pipeline.is_full() && own.speculation.next_expiry().is_none());
        let retry = own.deadline(ends).unwrap();
        assert_eq!(retry, ends + END_RETRY);
        own.batch(&mut VecDeque::new(), ends.checked_sub(END_RETRY).unwrap());
        assert_eq!(own.speculation.next_expiry(), Some(ends), "not a whole length more");
        disk.set_full(false);
        own.batch(&mut VecDeque::new(), ends);
        assert!(own.published.snapshot().map.is_empty());
        assert_eq!(own.deadline(ends), None);
    }
}
