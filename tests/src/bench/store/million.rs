//! A million objects of 1 KiB: how long from open to ready and how much memory, what a snapshot of them costs those who write meanwhile, and
//! whether its restore has every object.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use store::{Config, KeyRange, Range, Store};

use super::in_process::{Load, runtime};
use super::{Spread, Table, WRITERS, key, micros, put, resident_megabytes, value};

const OBJECTS: usize = 1_000_000;
/// Those who write while a snapshot is taken.
const SNAPSHOT_WRITERS: usize = 16;
/// How long they write before, for comparison.
const BEFORE: Duration = Duration::from_secs(8);
/// The variable that makes this program open a store, say what that cost, and end.
const OPEN: &str = "FLOTILLA_BENCH_OPEN";

/// Adds the figures.
pub fn measure(dir: &Path, table: &mut Table) -> Result<()> {
    let own = dir.join("million");
    let runtime = runtime()?;
    runtime.block_on(fill(&own, table))?;
    for run in ["first", "second"] {
        let (ready, megabytes) = in_a_process_of_its_own(&own)?;
        let ready = format!("{:.2} s", ready.as_secs_f64());
        table.row(&format!("store: a million objects, open to ready, {run}"), ready, "< 4 s");
        let memory = format!("{megabytes} MB RSS");
        table.row("store: a million objects, memory", memory, "<= 1400 MB");
    }
    runtime.block_on(snapshot(&own, dir, table))?;
    std::fs::remove_dir_all(own)?;
    Ok(())
}

async fn fill(dir: &Path, table: &mut Table) -> Result<()> {
    let store = Store::open(Config::new(dir))?;
    let begun = Instant::now();
    let one = |writer: usize| {
        let store = store.clone();
        tokio::spawn(async move {
            for at in (writer..OBJECTS).step_by(WRITERS) {
                store.txn(put(at, 0)).await?;
            }
            anyhow::Ok(())
        })
    };
    let tasks: Vec<_> = (0..WRITERS).map(one).collect();
    for task in tasks {
        task.await??;
    }
    let rate = OBJECTS as f64 / begun.elapsed().as_secs_f64();
    table.row("store: a million objects, made", format!("{rate:.0}/s"), "");
    table.row(
        "store: a million objects, memory of who made them",
        format!("{} MB RSS", resident_megabytes()?),
        "",
    );
    store.close().await;
    Ok(())
}

fn in_a_process_of_its_own(dir: &Path) -> Result<(Duration, u64)> {
    let output = Command::new(std::env::current_exe()?).env(OPEN, dir).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let mut numbers = text.split_whitespace().map(str::parse);
    let (micros, megabytes) = numbers.next().zip(numbers.next()).with_context(|| text.clone())?;
    Ok((Duration::from_micros(micros?), megabytes?))
}

/// In the process that [`measure`] starts: the figures, as text. `None`: this is not such a process.
pub fn open_if_asked() -> Option<Result<String>> {
    let dir = PathBuf::from(std::env::var_os(OPEN)?);
    Some((|| {
        let begun = Instant::now();
        let store = Store::open(Config::new(dir))?;
        let ready = begun.elapsed().as_micros();
        let keys = store.metrics().keys;
        ensure!(keys == OBJECTS, "{keys} objects");
        let megabytes = resident_megabytes()?;
        runtime()?.block_on(store.close());
        Ok(format!("{ready} {megabytes}"))
    })())
}

async fn snapshot(own: &Path, dir: &Path, table: &mut Table) -> Result<()> {
    let store = Store::open(Config::new(own))?;
    let load = Load::start(&store, SNAPSHOT_WRITERS, OBJECTS);
    tokio::time::sleep(BEFORE).await;
    let before = load.stop().await?;
    let file = dir.join("snapshot");
    let load = Load::start(&store, SNAPSHOT_WRITERS, OBJECTS);
    let begun = Instant::now();
    store::snapshot::save(store.snapshot(), &file).await?;
    let elapsed = begun.elapsed().as_secs_f64();
    let during = load.stop().await?;
    let bytes = std::fs::metadata(&file)?.len();
    let rate = format!("{} MB in {elapsed:.1} s", bytes / 1_000_000);
    table.row("store: snapshot while 16 write", rate, "");
    table.row("store: … their puts before", micros(&before), "");
    table.row("store: … their puts meanwhile", micros(&during), &ratio(&before, &during));
    let reader = store.snapshot();
    store::snapshot::save(reader, &file).await?;
    restored(&store, &file, dir, table)?;
    store.close().await;
    Ok(())
}

fn ratio(before: &Spread, during: &Spread) -> String {
    let of = |spread: &Spread| spread.quantile(99).as_secs_f64();
    format!("p99 × {:.2}, <= 2", of(during) / of(before))
}

/// Every object of the restored store is the one of the store that goes on.
fn restored(store: &Store, file: &Path, dir: &Path, table: &mut Table) -> Result<()> {
    let (into, begun) = (dir.join("restored"), Instant::now());
    let info = store::snapshot::restore(file, &into, 0)?;
    let elapsed = begun.elapsed().as_secs_f64();
    ensure!(info.revision == store.revision(), "revision {}", info.revision);
    let restored = Store::open(Config::new(&into))?;
    let mut equal = 0;
    for at in 0..OBJECTS {
        let (own, other) = (store.get(&key(at)), restored.get(&key(at)));
        ensure!(own.is_some() && own == other, "object {at} differs");
        equal += 1;
    }
    let all = restored.range(&Range::all(KeyRange::Prefix(Vec::new())))?;
    ensure!(all.count == OBJECTS, "{} objects", all.count);
    ensure!(value(0, 0).len() == super::VALUE_BYTES, "values of another size");
    let figure = format!("{elapsed:.1} s, {equal} objects equal");
    table.row("store: restore, verified object by object", figure, "");
    std::fs::remove_dir_all(into)?;
    Ok(())
}
