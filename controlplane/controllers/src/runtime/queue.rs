//! A work queue of keys: deduplicated, never the same key twice at a time, failures backed off.
//!
//! Three sets as in client-go: `waiting` (ordered), `dirty` (has to be looked at), `running`. A key that gets dirty while it
//! runs waits until it is done. Bounded by the number of objects, because a key is in it once.

use super::{Error, Key};
use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    fmt::{Debug, Display},
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, task::JoinSet, time::Instant};

/// First wait after a failure (client-go: 5 ms).
const RETRY_FIRST: Duration = Duration::from_millis(5);
/// Longest wait after failures. client-go waits up to 1000 s; small clusters heal faster.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Failures in a row after which they are worth a warning; before, they are mostly races that settle.
const QUIET_FAILURES: u32 = 3;
/// Upper bound of a sleep.
const IDLE_MAX: Duration = Duration::from_secs(3600);

/// What a reconcile wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing until something changes.
    Done,
    /// To be called again after this time even if nothing changes.
    After(Duration),
}

/// What can be queued.
pub(crate) trait QueueKey:
    Clone + Eq + Ord + Hash + Debug + Display + Send + Sync + 'static
{
}
impl<T: Clone + Eq + Ord + Hash + Debug + Display + Send + Sync + 'static> QueueKey for T {}

struct State<Q> {
    waiting: VecDeque<Q>,
    dirty: HashSet<Q>,
    running: HashSet<Q>,
    failures: HashMap<Q, u32>,
    later: BTreeSet<(Instant, Q)>,
}

/// The queue of one controller.
pub(crate) struct WorkQueue<Q = Key> {
    state: Mutex<State<Q>>,
    wake: Notify,
}

impl<Q: QueueKey> WorkQueue<Q> {
    pub(crate) fn new() -> Arc<Self> {
        let state = State {
            waiting: VecDeque::new(),
            dirty: HashSet::new(),
            running: HashSet::new(),
            failures: HashMap::new(),
            later: BTreeSet::new(),
        };
        Arc::new(Self { state: Mutex::new(state), wake: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State<Q>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks a key as to be looked at.
    pub(crate) fn add(&self, key: Q) {
        let mut state = self.lock();
        if state.dirty.insert(key.clone()) && !state.running.contains(&key) {
            state.waiting.push_back(key);
            self.wake.notify_one();
        }
    }

    fn try_pop(&self) -> Result<Q, Instant> {
        let mut state = self.lock();
        let now = Instant::now();
        while state.later.first().is_some_and(|(due, _)| *due <= now) {
            let Some((_, key)) = state.later.pop_first() else { break };
            if state.dirty.insert(key.clone()) && !state.running.contains(&key) {
                state.waiting.push_back(key);
            }
        }
        let Some(key) = state.waiting.pop_front() else {
            return Err(state.later.first().map_or(now + IDLE_MAX, |(due, _)| *due));
        };
        state.dirty.remove(&key);
        state.running.insert(key.clone());
        if !state.waiting.is_empty() {
            self.wake.notify_one();
        }
        Ok(key)
    }

    async fn pop(&self) -> Q {
        loop {
            match self.try_pop() {
                Ok(key) => return key,
                Err(due) => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep_until(due) => {}
                    }
                }
            }
        }
    }

    /// The reconcile ended; returns the number of failures in a row.
    fn finish(&self, key: Q, next: Option<Next>) -> u32 {
        let mut state = self.lock();
        state.running.remove(&key);
        let failures = match next {
            Some(next) => {
                state.failures.remove(&key);
                if let Next::After(wait) = next {
                    // Longer is no use: it is looked at again then anyway.
                    state.later.insert((Instant::now() + wait.min(IDLE_MAX), key.clone()));
                }
                0
            }
            None => {
                let failures = state.failures.entry(key.clone()).or_default();
                *failures = failures.saturating_add(1);
                let failures = *failures;
                let wait = RETRY_FIRST.saturating_mul(1 << (failures - 1).min(16)).min(RETRY_MAX);
                state.later.insert((Instant::now() + wait, key.clone()));
                failures
            }
        };
        if state.dirty.contains(&key) {
            state.waiting.push_back(key);
        }
        drop(state);
        self.wake.notify_one();
        failures
    }
}

/// Reconciles keys with `count` workers, for ever.
pub(crate) async fn run_workers<Q, R, F>(
    controller: &'static str,
    queue: Arc<WorkQueue<Q>>,
    count: usize,
    reconcile: R,
) where
    Q: QueueKey,
    R: Fn(Q) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Next, Error>> + Send,
{
    let mut workers = JoinSet::new();
    for _ in 0..count {
        let (queue, reconcile) = (Arc::clone(&queue), reconcile.clone());
        workers.spawn(async move {
            loop {
                let key = queue.pop().await;
                let result = Box::pin(reconcile(key.clone())).await;
                conclude(controller, &queue, key, result);
            }
        });
    }
    while let Some(ended) = workers.join_next().await {
        tracing::error!(controller, ?ended, "worker died");
    }
}

fn conclude<Q: QueueKey>(
    controller: &'static str,
    queue: &WorkQueue<Q>,
    key: Q,
    result: Result<Next, Error>,
) {
    match result {
        Ok(next) => {
            queue.finish(key, Some(next));
        }
        Err(error) => {
            let name = key.to_string();
            let failures = queue.finish(key, None);
            if error.is_expected() || failures < QUIET_FAILURES {
                tracing::debug!(controller, key = %name, %error, "reconcile again");
            } else {
                tracing::warn!(controller, key = %name, %error, failures, "reconcile failed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_key_is_queued_once_and_never_runs_twice_at_a_time() {
        let q = WorkQueue::<&'static str>::new();
        q.add("a");
        q.add("a");
        q.add("b");
        assert_eq!(q.pop().await, "a");
        q.add("a");
        assert_eq!(q.pop().await, "b");
        assert!(q.try_pop().is_err(), "a is running");
        q.finish("a", Some(Next::Done));
        assert_eq!(q.pop().await, "a");
        q.finish("a", Some(Next::Done));
        assert!(q.try_pop().is_err());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn failures_back_off_and_success_forgets_them() {
        let q = WorkQueue::<&'static str>::new();
        q.add("a");
        let mut begin = Instant::now();
        for expected in 1..=3 {
            assert_eq!(q.pop().await, "a");
            if expected > 1 {
                assert!(begin.elapsed() >= RETRY_FIRST * (1 << (expected - 2)));
            }
            begin = Instant::now();
            assert_eq!(q.finish("a", None), expected);
        }
        assert_eq!(q.pop().await, "a");
        assert_eq!(q.finish("a", Some(Next::Done)), 0);
        q.add("a");
        assert_eq!(q.pop().await, "a");
        assert_eq!(q.finish("a", None), 1);
        assert_eq!(q.pop().await, "a");
        q.finish("a", Some(Next::After(Duration::MAX)));
        assert!(q.try_pop().is_err_and(|due| due <= Instant::now() + IDLE_MAX));
    }
}
