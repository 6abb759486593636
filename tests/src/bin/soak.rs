//! `soak`: proves the store. Each command prints what it did; the first thing that went wrong ends it, with its seed.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, Parser, Subcommand};
use tests::soak::in_process::seeds::{self, Plan, Ran};
use tests::soak::in_process::{bytes, history, power};
use tests::soak::kill::Killed;
use tests::soak::mutations::Bench;
use tests::soak::{fuse as cuts, kill as kills};

/// Proofs of the store.
#[derive(Debug, Parser)]
#[command(name = "soak", disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Random histories with crashes against a model
    Store(StoreArgs),
    /// Power cuts of a disk in memory, under load
    Power(PowerArgs),
    /// Flipped bits and zeroed sectors at every position of small logs
    Bytes,
    /// Bugs put in on purpose, each of which the histories must find
    Mutations(MutationsArgs),
    /// SIGKILL of the real master under load
    Kill(KillArgs),
    /// Power cuts of the real master on a file system that forgets what was not synced
    Fuse(FuseArgs),
}

#[derive(Debug, Args)]
struct StoreArgs {
    /// How many histories [default: 10,000, or as many as fit in --seconds]
    #[arg(long)]
    histories: Option<u64>,
    /// The first seed; a history that failed is run again by its seed [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Begin no history after so many seconds
    #[arg(long)]
    seconds: Option<u64>,
    /// Histories at a time
    #[arg(long, default_value_t = 2)]
    jobs: u64,
    /// Run each seed so often: threads do not always meet in the same way
    #[arg(long, default_value_t = 1)]
    repeat: u64,
}

#[derive(Debug, Args)]
struct PowerArgs {
    /// How many cuts
    #[arg(long, default_value_t = 10_000)]
    cuts: u64,
    /// The first seed [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Loads at a time
    #[arg(long, default_value_t = 2)]
    jobs: u64,
}

#[derive(Debug, Args)]
struct MutationsArgs {
    /// How many histories a bug may live
    #[arg(long, default_value_t = 60_000)]
    histories: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Args)]
struct KillArgs {
    /// How many kills
    #[arg(long, default_value_t = 1000)]
    kills: u64,
    /// The first seed [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Masters at a time
    #[arg(long, default_value_t = 2)]
    jobs: u64,
    /// Milliseconds in which a killed master must be ready again
    #[arg(long, default_value_t = 2000)]
    ready_ms: u64,
}

#[derive(Debug, Args)]
struct FuseArgs {
    /// How many cuts
    #[arg(long, default_value_t = 200)]
    cuts: u64,
    /// The first seed [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Milliseconds in which the master must be ready again
    #[arg(long, default_value_t = 2000)]
    ready_ms: u64,
}

fn main() -> ExitCode {
    match act(Cli::parse().what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(what: What) -> Result<()> {
    match what {
        What::Store(args) => store(&args),
        What::Power(args) => power(&args),
        What::Bytes => bytes(),
        What::Mutations(args) => mutations(&args),
        What::Kill(args) => kill(&args),
        What::Fuse(args) => fuse(&args),
    }
}

fn any_seed() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(1, |since| since.as_secs() << 20)
}

fn judge<T>(ran: Ran<T>, again: &str) -> Result<()> {
    match ran.failure {
        None => Ok(()),
        Some(failed) => {
            bail!("seed {}: {}\nagain: {again} --seed {}", failed.seed, failed.what, failed.seed)
        }
    }
}

fn store(args: &StoreArgs) -> Result<()> {
    let seed = args.seed.unwrap_or_else(any_seed);
    let count = args.histories.unwrap_or(match (args.seconds, args.seed) {
        (Some(_), _) => u64::MAX,
        (None, Some(_)) => 1,
        (None, None) => 10_000,
    });
    let start = Instant::now();
    let time_max = args.seconds.map(Duration::from_secs);
    let plan = Plan { seed, count, time_max, jobs: args.jobs, repeat: args.repeat.max(1) };
    let ran = seeds::run(plan, |runtime, seed| runtime.block_on(history::run(seed)), |_| false);
    let ran = ran.map_err(|error| anyhow!(error))?;
    let (tally, seconds) = (ran.done, start.elapsed().as_secs_f64());
    println!(
        "store: {} histories from seed {seed} in {seconds:.1} s ({:.0}/s): {} calls ({} never answered), {} watches, \
         {} power cuts, {} times opened",
        ran.runs,
        ran.runs as f64 / seconds,
        tally.calls,
        tally.unknown,
        tally.watches,
        tally.cuts,
        tally.opened
    );
    judge(ran, "scripts/soak store --repeat 100")
}

fn power(args: &PowerArgs) -> Result<()> {
    let seed = args.seed.unwrap_or_else(any_seed);
    let start = Instant::now();
    let plan = Plan { seed, count: u64::MAX, time_max: None, jobs: args.jobs, repeat: 1 };
    let work = |runtime: &tokio::runtime::Runtime, seed| runtime.block_on(power::run(seed));
    let ran = seeds::run(plan, work, |done| done.cuts >= args.cuts);
    let ran = ran.map_err(|error| anyhow!(error))?;
    println!(
        "power: {} cuts in {} loads from seed {seed} in {:.1} s; {} with a write there that nobody had been told of yet",
        ran.done.cuts,
        ran.runs,
        start.elapsed().as_secs_f64(),
        ran.done.beyond
    );
    judge(ran, "scripts/soak power --cuts 1")
}

fn bytes() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    for (what, damages) in runtime.block_on(bytes::run()).map_err(|error| anyhow!(error))? {
        println!(
            "bytes: {what}: {} damages: {} refused by name, {} cut as a torn tail, {} in what carries nothing",
            damages.tried, damages.refused, damages.cut, damages.ignored
        );
    }
    Ok(())
}

fn mutations(args: &MutationsArgs) -> Result<()> {
    let binary = std::env::current_exe()?;
    let target = binary.parent().and_then(Path::parent).context("no target folder")?;
    let findings = Bench::build(target)?.findings(args.seed, args.histories)?;
    let mut missed = 0;
    println!("{:<30}  {:>10}  {:>6}  what it breaks; what was seen", "bug", "histories", "seed");
    for finding in findings {
        let (name, breaks) = (finding.name, finding.breaks);
        match finding.found {
            Some(found) => {
                let what: String =
                    found.what.lines().next().unwrap_or_default().chars().take(120).collect();
                println!(
                    "{name:<30}  {:>10}  {:>6}  {breaks}; {what}",
                    found.after + 1,
                    found.seed
                );
            }
            None => {
                missed += 1;
                println!("{name:<30}  {:>10}  {:>6}  {breaks}", "NOT FOUND", "");
            }
        }
    }
    ensure!(missed == 0, "{missed} bugs were not found in {} histories each", args.histories);
    Ok(())
}

/// The master under test: of `FLOTILLA_BIN_DIR`, or beside this program.
fn master() -> Result<PathBuf> {
    let binary = match std::env::var_os("FLOTILLA_BIN_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => std::env::current_exe()?.parent().context("no folder")?.to_path_buf(),
    }
    .join("controlplane");
    ensure!(binary.exists(), "{} is not built", binary.display());
    Ok(binary)
}

/// A folder for a run; removed when the run went well.
fn run_dir(name: &str) -> Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("flotilla-soak-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

fn tell(what: &str, killed: Killed, seconds: f64) {
    println!(
        "{what}: {} in {seconds:.1} s; {} writes acknowledged, none lost; of those without an answer {} were there whole and {} not; \
         ready again in at most {:.2} s",
        killed.kills,
        killed.acknowledged,
        killed.kept,
        killed.lost,
        killed.ready_max.as_secs_f64()
    );
}

fn kill(args: &KillArgs) -> Result<()> {
    let (binary, start) = (master()?, Instant::now());
    let (seed, jobs) = (args.seed.unwrap_or_else(any_seed), args.jobs.max(1));
    println!("kill: seed {seed}");
    let dir = run_dir("kill")?;
    let run = |job: u64| -> Result<Killed> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let count = args.kills / jobs + u64::from(job < args.kills % jobs);
        let ready_max = Duration::from_millis(args.ready_ms);
        let plan = kills::Plan { seed: seed + job, count, ready_max };
        let dir = dir.join(job.to_string());
        std::fs::create_dir_all(&dir)?;
        runtime.block_on(kills::run(binary.clone(), &dir, plan))
    };
    let run = &run;
    let total = std::thread::scope(|scope| -> Result<Killed> {
        let workers: Vec<_> = (0..jobs).map(|job| scope.spawn(move || run(job))).collect();
        let mut total = Killed::default();
        for worker in workers {
            total += worker.join().map_err(|_| anyhow!("a run panicked"))??;
        }
        Ok(total)
    })?;
    tell("kill", total, start.elapsed().as_secs_f64());
    Ok(std::fs::remove_dir_all(dir)?)
}

fn fuse(args: &FuseArgs) -> Result<()> {
    let (binary, start) = (master()?, Instant::now());
    let dir = run_dir("fuse")?;
    if let Some(reason) = cuts::obstacle(&dir.join("disk")) {
        println!("SKIPPED  fuse: {reason}");
        return Ok(std::fs::remove_dir_all(dir)?);
    }
    let seed = args.seed.unwrap_or_else(any_seed);
    println!("fuse: seed {seed}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ready_max = Duration::from_millis(args.ready_ms);
    let plan = kills::Plan { seed, count: args.cuts, ready_max };
    let killed = runtime.block_on(cuts::run(binary, &dir, plan))?;
    tell("fuse", killed, start.elapsed().as_secs_f64());
    Ok(std::fs::remove_dir_all(dir)?)
}
