//! Owns the command `datastore migrate`: which folder, which etcd cluster, what becomes of the log that is left or replaced. How a state is
//! moved, the store knows.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use store::EtcdConfig;
use store::migrate::{Moved, Occupied, Step, moved_earlier, to_embedded, to_etcd};

use crate::cli::{DatastoreMigrateArgs, Direction, Output, RunArgs};
use crate::config::Config;
use crate::datastore::folder;
use crate::figures::size;
use crate::snapshot::{aside, flush_folder_of, put_in_place, rename, take};

/// How often it is said how far a move is.
const TELL_PERIOD: Duration = Duration::from_secs(1);
/// A move is made by a person who waits: an etcd that isn't there is said sooner than at a master's start.
const ETCD_WITHIN: Duration = Duration::from_secs(15);

/// The command `datastore migrate`.
///
/// # Errors
/// A side is in use, not there or holds something, or the result is not what was moved.
pub fn migrate(args: &DatastoreMigrateArgs) -> anyhow::Result<()> {
    let run = RunArgs {
        config: args.config.clone(),
        data_dir: args.data_dir.clone(),
        datastore: args.datastore.clone(),
        ..RunArgs::default()
    };
    let Some(datastore) = Config::load(&run)?.datastore else {
        bail!("which etcd cluster? --datastore-endpoints, or the configuration file, names it");
    };
    let etcd = EtcdConfig { open_timeout: ETCD_WITHIN, ..datastore.etcd()? };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let moved = match args.to {
        Direction::Etcd => runtime.block_on(out(args, &etcd)),
        Direction::Embedded => runtime.block_on(back(args, &etcd)),
    }?;
    summarise(args, &moved)
}

/// To etcd. The log gets another name, so that no master goes on with what is old from now on.
async fn out(args: &DatastoreMigrateArgs, etcd: &EtcdConfig) -> anyhow::Result<Moved> {
    let store = folder(&args.data_dir);
    if !take(&store, "stop the master first")?.is_some_and(|(_, occupied)| occupied) {
        bail!("{} holds no state", store.display());
    }
    let occupied = if args.force { Occupied::Replace } else { Occupied::Refuse };
    let teller = Teller::default();
    let moved = Box::pin(to_etcd(&store, etcd, occupied, &|step| teller.tell(step))).await?;
    let kept = aside(&store, "moved");
    rename(&store, &kept)?;
    flush_folder_of(&store)?;
    writeln!(io::stderr(), "The log is kept in {}.", kept.display())?;
    Ok(moved)
}

/// From etcd. The log has its name only when it is whole.
async fn back(args: &DatastoreMigrateArgs, etcd: &EtcdConfig) -> anyhow::Result<Moved> {
    let store = folder(&args.data_dir);
    // Kept until the end: no master starts meanwhile.
    let taken = take(&store, "stop the master first")?;
    let occupied = taken.as_ref().is_some_and(|(_, occupied)| *occupied);
    if occupied && !args.force {
        bail!("{} holds a cluster's state already; --force moves it aside", store.display());
    }
    let moving = args.data_dir.join("store.moving");
    let moved = match earlier(etcd, &moving).await? {
        Some(moved) => moved,
        None => {
            let teller = Teller::default();
            Box::pin(to_embedded(etcd, &moving, &|step| teller.tell(step))).await?
        }
    };
    put_in_place(&moving, &store, occupied)?;
    Ok(moved)
}

/// What was moved by a command that ended ahead of its last step; what another one left is removed.
async fn earlier(etcd: &EtcdConfig, moving: &Path) -> anyhow::Result<Option<Moved>> {
    if !moving.exists() {
        return Ok(None);
    }
    let moved = Box::pin(moved_earlier(etcd, moving)).await?;
    if moved.is_none() {
        fs::remove_dir_all(moving).with_context(|| moving.display().to_string())?;
    }
    Ok(moved)
}

/// Says how far a move is.
#[derive(Debug, Default)]
struct Teller {
    last: Mutex<Option<Instant>>,
}

impl Teller {
    fn tell(&self, step: Step) {
        let text = match step {
            Step::Reading => "reading".to_owned(),
            Step::Emptying => "looking at the target".to_owned(),
            Step::Writing { keys, of } => format!("{keys} of {of} keys"),
            Step::Verifying => "verifying".to_owned(),
        };
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let recent = last.is_some_and(|at| at.elapsed() < TELL_PERIOD);
        if matches!(step, Step::Writing { keys, of } if keys < of && keys > 0) && recent {
            return;
        }
        *last = Some(Instant::now());
        let mut out = io::stderr();
        let told =
            if out.is_terminal() { write!(out, "\r{text:40}\r") } else { writeln!(out, "{text}") };
        // A move does not fail for want of somebody who listens.
        told.ok();
    }
}

fn summarise(args: &DatastoreMigrateArgs, moved: &Moved) -> anyhow::Result<()> {
    let Moved { keys, bytes, leases, from_revision, revision, sha256 } = moved;
    let text = match args.output {
        Output::Text => {
            let next = match args.to {
                Direction::Etcd => "Start the masters with --datastore-endpoints now.",
                Direction::Embedded => "Start the master without --datastore-endpoints now.",
            };
            format!(
                "Moved: {keys} keys ({}), {leases} leases, compared by SHA-256 {sha256}\n\
                 Revision: {from_revision}, now {revision}\n{next}\n",
                size(*bytes)
            )
        }
        Output::Json => {
            let told = serde_json::json!({
                "keys": keys, "bytes": bytes, "leases": leases, "fromRevision": from_revision,
                "revision": revision, "sha256": sha256,
            });
            format!("{told}\n")
        }
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}
