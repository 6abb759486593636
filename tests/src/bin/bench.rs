//! `bench`: the figures that are features. Brings up a lab of its own, measures, prints a table.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use tests::bench::{Table, containers, idle, memory, pods, store};
use tests::lab::{Lab, UpOptions};

/// Figures of this build on this machine.
#[derive(Debug, Parser)]
#[command(name = "bench", disable_version_flag = true)]
struct Cli {
    /// What to measure; everything but `idle`, which takes long, when nothing is named.
    what: Vec<What>,
    /// Nodes of the idle cluster.
    #[arg(long, default_value_t = 10)]
    nodes: u8,
    /// Pods of the idle cluster.
    #[arg(long, default_value_t = 100)]
    pods: usize,
    /// How long the idle cluster is watched.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Folder of the lab.
    #[arg(long, default_value = "/tmp/flotilla-bench")]
    dir: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Memory of master, agent and monitor: idle and with 50 pods.
    Memory,
    /// API create to Running, with the image present.
    Pods,
    /// Container create and start through the monitor, beside `runc run`.
    Containers,
    /// Durable writes, recovery, memory and snapshots of the store, beside what the device gives.
    Store,
    /// What a cluster writes that has nothing to do.
    Idle,
}

fn main() -> ExitCode {
    if let Some(opened) = store::million::open_if_asked() {
        return match opened {
            Ok(figures) => {
                println!("{figures}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("bench: {error:?}");
                ExitCode::FAILURE
            }
        };
    }
    let cli = Cli::parse();
    match measure(&cli) {
        Ok(table) => {
            if cli.json {
                println!("{}", table.json());
            } else {
                print!("{table}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn measure(cli: &Cli) -> Result<Table> {
    let wanted = |what| cli.what.is_empty() || cli.what.contains(&what);
    let bin_dir = std::env::current_exe()?.parent().context("no folder")?.to_path_buf();
    let mut table = Table::default();
    if wanted(What::Store) {
        store::measure(&cli.dir.join("store"), &mut table)?;
    }
    if wanted(What::Containers) {
        containers::measure(&bin_dir, &mut table)?;
    }
    if wanted(What::Memory) || wanted(What::Pods) {
        let lab = Lab::up(&UpOptions {
            nodes: 1,
            masters: 1,
            etcds: 0,
            dir: cli.dir.clone(),
            bin_dir: bin_dir.clone(),
            registries: None,
            master_args: Vec::new(),
        })?;
        let outcome = (|| -> Result<()> {
            if wanted(What::Memory) {
                memory::measure(&lab, &mut table)?;
            }
            if wanted(What::Pods) {
                pods::measure(&lab, &mut table)?;
            }
            Ok(())
        })();
        lab.down()?;
        outcome?;
    }
    if cli.what.contains(&What::Idle) {
        let lab = Lab::up(&UpOptions {
            nodes: cli.nodes,
            masters: 1,
            etcds: 0,
            dir: cli.dir.clone(),
            bin_dir,
            registries: None,
            master_args: vec![format!("--event-ttl={}", idle::EVENT_TTL)],
        })?;
        let window = Duration::from_secs(cli.minutes * 60);
        let outcome = idle::measure(&lab, cli.pods, window, &mut table);
        // What was measured is told even when the lab can't be taken down.
        if let Err(error) = lab.down() {
            eprintln!("bench: the lab could not be taken down: {error:?}");
        }
        outcome?;
    }
    Ok(table)
}
