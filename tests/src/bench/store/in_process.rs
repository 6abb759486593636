//! Writes in process: one alone beside one flush, and 256 writers on two cores beside what the device gives for batches of their size.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use store::{Config, Store};
use tokio::runtime::Runtime;

use super::floor::Floor;
use super::{Spread, Table, VALUE_BYTES, WRITERS, cpu_time, micros, put, us};

/// Puts alone and flushes, measured in turns.
const ALONE: usize = 1500;
/// So many of each in one turn.
const TURN: usize = 50;
/// What a record has beside a value: header, key, lengths, padding.
const RECORD_OVERHEAD_BYTES: usize = 88;
/// Keys that the writers go round in.
const KEYS: usize = 100_000;
/// Measured after the first round.
const MEASURED: Duration = Duration::from_secs(6);
/// Of the floor's file.
const FLOOR_BYTES: u64 = 256 << 20;
/// One in so many latencies is kept.
const SAMPLED: usize = 16;

/// Two threads for the writers, as on two cores.
pub fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().context("no runtime")
}

/// Adds the figures.
pub fn measure(dir: &Path, table: &mut Table) -> Result<()> {
    let (runtime, own) = (runtime()?, dir.join("in-process"));
    let floor = Floor::new(dir, FLOOR_BYTES)?;
    let store = Store::open(Config::new(&own))?;
    runtime.block_on(alone(&store, &floor, table))?;
    runtime.block_on(writers(store, &floor, table))?;
    std::fs::remove_dir_all(own)?;
    Ok(())
}

async fn alone(store: &Store, floor: &Floor, table: &mut Table) -> Result<()> {
    let (mut puts, mut flushes) = (Vec::new(), Vec::new());
    let batch = vec![0x5a; VALUE_BYTES + RECORD_OVERHEAD_BYTES];
    let mut at = 0;
    while puts.len() < ALONE {
        for _ in 0..TURN {
            at += 1;
            let own = store.clone();
            let timed = async move {
                let (txn, begun) = (put(at, 0), Instant::now());
                own.txn(txn).await.map(|_| begun.elapsed())
            };
            puts.push(tokio::spawn(timed).await??);
        }
        for _ in 0..TURN {
            flushes.push(floor.flush(&batch)?);
        }
    }
    let (puts, flushes) = (Spread::of(puts), Spread::of(flushes));
    table.row("store: one flush of one record, raw", micros(&flushes), "floor");
    table.row("store: one put alone", micros(&puts), "");
    let more = |percent| {
        us(puts.quantile(percent)).cast_signed() - us(flushes.quantile(percent)).cast_signed()
    };
    let figure = format!("p50 {} µs, p99 {} µs", more(50), more(99));
    table.row("store: one put alone, over one flush", figure, "<= 100 µs");
    Ok(())
}

async fn writers(store: Store, floor: &Floor, table: &mut Table) -> Result<()> {
    let load = Load::start(&store, WRITERS, KEYS);
    // Every key is there before it counts.
    while load.done() < KEYS as u64 && !load.is_over() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let cpu = cpu_time()?;
    let (written, done, begun) = (store.metrics().written, load.done(), Instant::now());
    tokio::time::sleep(MEASURED).await;
    let (elapsed, puts) = (begun.elapsed(), load.done() - done);
    let now = store.metrics().written;
    let cpu = cpu_time()?.saturating_sub(cpu).as_secs_f64() / puts.max(1) as f64;
    let latencies = load.stop().await?;
    let (flushes, bytes) = (now.flushes - written.flushes, now.bytes - written.bytes);
    let per_flush = puts as f64 / flushes.max(1) as f64;
    let rate = puts as f64 / elapsed.as_secs_f64();
    table.row("store: durable puts, 256 writers", format!("{rate:.0}/s"), ">= 200,000/s");
    table.row("store: … latency", micros(&latencies), "");
    let figure = format!("{:.1} µs a put", cpu * 1e6);
    let quiet = format!("two quiet cores: {:.0}/s", 2.0 / cpu);
    table.row("store: … time on a core, the load's too", figure, &quiet);
    let checkpoints = now.checkpoints - written.checkpoints;
    let figure = format!("{per_flush:.0} puts, {} B/put", bytes / puts.max(1));
    table.row(
        "store: … per flush, with checkpoints",
        figure,
        &format!("{checkpoints} checkpoints"),
    );
    store.close().await;
    let of_a_batch = usize::try_from(puts / flushes.max(1))?;
    let bytes = of_a_batch.max(1) * (VALUE_BYTES + RECORD_OVERHEAD_BYTES);
    for in_flight in [1, 2, 4] {
        let rate = floor.batches_per_second(bytes, in_flight)?;
        let what = format!("store: … batches of that size, raw, {in_flight} in flight");
        let figure = format!("{rate:.0}/s, {:.0} puts/s", rate * per_flush);
        table.row(&what, figure, "floor");
    }
    Ok(())
}

/// Writers that put round and round.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<Result<Vec<Duration>>>>,
}

#[derive(Debug, Default)]
struct Shared {
    next: AtomicUsize,
    done: AtomicU64,
    stop: AtomicBool,
}

impl Load {
    /// Starts them.
    #[must_use]
    pub fn start(store: &Store, writers: usize, keys: usize) -> Load {
        let shared = Arc::new(Shared::default());
        let one = |_| tokio::spawn(write(store.clone(), shared.clone(), keys));
        Load { tasks: (0..writers).map(one).collect(), shared }
    }

    /// How many puts are done.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// Whether one of them gave up.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.tasks.iter().any(tokio::task::JoinHandle::is_finished)
    }

    /// Stops them and says how long some of the puts took.
    pub async fn stop(self) -> Result<Spread> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for task in self.tasks {
            all.extend(task.await??);
        }
        Ok(Spread::of(all))
    }
}

async fn write(store: Store, shared: Arc<Shared>, keys: usize) -> Result<Vec<Duration>> {
    let mut latencies = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let count = shared.next.fetch_add(1, Ordering::Relaxed);
        // A stride that meets every key, in no order.
        let at = count.wrapping_mul(7919) % keys;
        let (txn, begun) = (put(at, count as u64), Instant::now());
        store.txn(txn).await?;
        if count.is_multiple_of(SAMPLED) {
            latencies.push(begun.elapsed());
        }
        shared.done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(latencies)
}
