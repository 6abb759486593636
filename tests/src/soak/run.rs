//! Runs many seeds on several threads, and says how it went.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::in_process::history::{self, Tally};

/// How many histories, and where they begin.
#[derive(Debug, Clone, Copy)]
pub struct Histories {
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

/// What was run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ran {
    /// Histories.
    pub histories: u64,
    /// What they did.
    pub tally: Tally,
}

/// A seed whose history went wrong.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What went wrong.
    pub what: String,
}

/// Runs histories; stops at the first that fails.
///
/// # Errors
/// The machine gives no thread.
pub fn histories(plan: Histories) -> Result<(Ran, Option<Failure>)> {
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let found = Mutex::new((Ran::default(), None));
    let start = Instant::now();
    let worker = || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        while !stop.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let over = plan.time_max.is_some_and(|max| start.elapsed() > max);
            if at >= plan.count * plan.repeat || over {
                break;
            }
            let seed = plan.seed.wrapping_add(at / plan.repeat);
            let outcome = runtime.block_on(history::run(seed));
            let Ok(mut found) = found.lock() else { bail!("another history panicked") };
            found.0.histories += 1;
            match outcome {
                Ok(tally) => found.0.tally += tally,
                Err(what) => {
                    found.1.get_or_insert(Failure { seed, what });
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..plan.jobs.max(1)).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow::anyhow!("a history panicked"))??;
        }
        Ok(())
    })?;
    found.into_inner().ok().context("a history panicked")
}
