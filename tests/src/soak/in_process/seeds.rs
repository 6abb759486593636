//! Runs many seeds on several threads, and says how it went.

use std::ops::AddAssign;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

/// How many seeds, and where they begin.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The first seed; the next ones count up.
    pub seed: u64,
    /// So many at most.
    pub count: u64,
    /// No new one begins after this.
    pub time_max: Option<Duration>,
    /// So many at a time.
    pub jobs: u64,
    /// Each seed so many times: threads may meet otherwise.
    pub repeat: u64,
}

/// A seed that went wrong.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What went wrong.
    pub what: String,
}

/// What was run.
#[derive(Debug, Clone, Default)]
pub struct Ran<T> {
    /// Seeds that were run to their end.
    pub runs: u64,
    /// What they did.
    pub done: T,
    /// The first that went wrong.
    pub failure: Option<Failure>,
}

/// Runs seeds; stops at the first that goes wrong, or when `enough` says so.
///
/// # Errors
/// The machine gives no thread, or a run panicked.
pub fn run<T: AddAssign + Default + Send>(
    plan: Plan,
    work: impl Fn(&Runtime, u64) -> Result<T, String> + Sync,
    enough: impl Fn(&T) -> bool + Sync,
) -> Result<Ran<T>, String> {
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let ran = Mutex::new(Ran { runs: 0, done: T::default(), failure: None });
    let start = Instant::now();
    let worker = || -> Result<(), String> {
        let runtime = Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        while !stop.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let over = plan.time_max.is_some_and(|max| start.elapsed() > max);
            if at >= plan.count.saturating_mul(plan.repeat) || over {
                break;
            }
            let seed = plan.seed.wrapping_add(at / plan.repeat);
            let outcome = work(&runtime, seed);
            let mut ran = ran.lock().map_err(|_| "another run panicked")?;
            match outcome {
                Ok(done) => {
                    ran.runs += 1;
                    ran.done += done;
                    if enough(&ran.done) {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
                Err(what) => {
                    ran.failure.get_or_insert(Failure { seed, what });
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| -> Result<(), String> {
        let workers: Vec<_> = (0..plan.jobs.max(1)).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            worker.join().map_err(|_| "a run panicked")??;
        }
        Ok(())
    })?;
    ran.into_inner().map_err(|_| "a run panicked".to_owned())
}
