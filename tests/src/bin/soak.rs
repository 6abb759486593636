//! `soak`: proves the store. Each command prints what it did; the first thing that went wrong ends it, with its seed.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};
use tests::soak::run::{Histories, histories};

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
    }
}

fn any_seed() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(1, |since| since.as_secs() << 20)
}

fn store(args: &StoreArgs) -> Result<()> {
    let seed = args.seed.unwrap_or_else(any_seed);
    let count = args.histories.unwrap_or(match (args.seconds, args.seed) {
        (Some(_), _) => u64::MAX / args.repeat.max(1),
        (None, Some(_)) => 1,
        (None, None) => 10_000,
    });
    let start = Instant::now();
    let time_max = args.seconds.map(Duration::from_secs);
    let (jobs, repeat) = (args.jobs, args.repeat.max(1));
    let (ran, failure) = histories(Histories { seed, count, time_max, jobs, repeat })?;
    let (tally, seconds) = (ran.tally, start.elapsed().as_secs_f64());
    println!(
        "store: {} histories from seed {seed} in {seconds:.1} s ({:.0}/s): {} calls ({} unknown), {} watches, {} power cuts, \
         {} times opened",
        ran.histories,
        ran.histories as f64 / seconds,
        tally.calls,
        tally.unknown,
        tally.watches,
        tally.cuts,
        tally.opened
    );
    match failure {
        None => Ok(()),
        Some(failure) => bail!(
            "seed {}: {}\nagain: scripts/soak store --seed {} --repeat 100",
            failure.seed,
            failure.what,
            failure.seed
        ),
    }
}
