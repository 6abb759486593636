//! Owns moves of a whole state between a log of our own and a real etcd, while no master runs. No key's revision ever goes down, what was
//! watched before is compacted, and the result is read back and compared. Values move as they are stored: sealed ones stay sealed.

mod target;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use ring::digest::{Context, SHA256};
use tokio::time::Instant;

use self::target::Target;
use crate::backend::etcd::client::Failure;
use crate::backend::etcd::load::MOVING_KEY;
use crate::log::OpenError;
use crate::revision::{Entry, Revision};
use crate::snapshot::{self, SnapshotError};
use crate::state::{Map, Snapshot};
use crate::txn::{KeyRange, Op, Range, Txn, WriteError};
use crate::{Config, EtcdConfig, FIRST_REVISION, Store};

/// Where a running master says that it is there.
const MASTERS_PREFIX: &str = "/flotilla/masters/";
/// Where the keys are that seal values.
const ENCRYPTION_PREFIX: &str = "/flotilla/secrets/encryption-";
/// Keys with a shorter lease could die under way; those of masters and tunnels have 10 s, those of events an hour.
const LEASE_SECONDS_MIN: u64 = 120;

/// What a move has done so far, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The state is read from where it is.
    Reading,
    /// What the target held is removed.
    Emptying,
    /// Keys are written.
    Writing {
        /// So many are.
        keys: usize,
        /// Of so many.
        of: usize,
    },
    /// What was written is read back and compared.
    Verifying,
}

/// What was moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// How many keys.
    pub keys: usize,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// How many leases.
    pub leases: usize,
    /// The revision that it was of.
    pub from_revision: Revision,
    /// The revision that it begins with at the target.
    pub revision: Revision,
    /// SHA-256 of keys, values and leases in the order of keys, the same on both sides; hexadecimal digits.
    pub sha256: String,
}

/// What to do with a target that holds a state already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupied {
    /// Refuse.
    Refuse,
    /// Replace it, if it is one of ours.
    Replace,
}

/// Why nothing was moved. The source is as it was.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A side can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is nothing to move.
    #[error("{at} holds no state")]
    Empty {
        /// The source.
        at: String,
    },
    /// The target holds something.
    #[error("{at} holds {keys} keys already; --force replaces them")]
    Occupied {
        /// The target.
        at: String,
        /// How many.
        keys: i64,
    },
    /// The target holds something that is not ours.
    #[error("{at} holds {keys} keys that are not a cluster's of ours; they are not replaced")]
    Foreign {
        /// The target.
        at: String,
        /// How many.
        keys: i64,
    },
    /// A master runs on the datastore.
    #[error("masters run on {at} ({masters}); stop them first, and wait until they are gone")]
    Running {
        /// The datastore.
        at: String,
        /// Their names.
        masters: String,
    },
    /// The datastore failed under way.
    #[error("{at}: {doing} failed: {reason}")]
    Failed {
        /// The datastore.
        at: String,
        /// What was being done.
        doing: &'static str,
        /// Why.
        reason: String,
    },
    /// What was read back is something else.
    #[error("{at} does not hold what was written: {what}")]
    Differs {
        /// The target.
        at: String,
        /// What is different.
        what: String,
    },
    /// The state can't be written as a log.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

fn failed(at: &str, doing: &'static str) -> impl Fn(Failure) -> MigrateError {
    let at = at.to_owned();
    move |failure| {
        let (at, reason) = (at.clone(), failure.to_string());
        MigrateError::Failed { at, doing, reason }
    }
}

fn refused(at: &str, doing: &'static str) -> impl Fn(WriteError) -> MigrateError {
    let at = at.to_owned();
    move |error| {
        let (at, reason) = (at.clone(), error.to_string());
        MigrateError::Failed { at, doing, reason }
    }
}

/// Sums up entries in the order of their keys.
struct Digest {
    hash: Context,
    keys: usize,
    bytes: u64,
}

impl Digest {
    fn new() -> Self {
        Self { hash: Context::new(&SHA256), keys: 0, bytes: 0 }
    }

    fn of(map: &Map) -> Self {
        let mut digest = Self::new();
        map.values().for_each(|entry| digest.add(&entry.key, &entry.value, entry.lease));
        digest
    }

    fn add(&mut self, key: &[u8], value: &[u8], lease: i64) {
        for part in [key, value] {
            self.hash.update(&(part.len() as u64).to_be_bytes());
            self.hash.update(part);
        }
        self.hash.update(&lease.to_be_bytes());
        self.keys += 1;
        self.bytes += (key.len() + value.len()) as u64;
    }

    fn sha256(&self) -> String {
        let digest = self.hash.clone().finish();
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn same(&self, other: &Self, at: &str) -> Result<(), MigrateError> {
        if (self.keys, self.sha256()) == (other.keys, other.sha256()) {
            return Ok(());
        }
        let (wanted, found) = (self.keys, other.keys);
        let what = format!(
            "{found} keys with SHA-256 {}, not {wanted} with {}",
            other.sha256(),
            self.sha256()
        );
        Err(MigrateError::Differs { at: at.to_owned(), what })
    }
}

/// The names of the masters that say they are there.
fn masters<'a>(keys: impl Iterator<Item = &'a [u8]>) -> Option<String> {
    let names = keys.filter_map(|key| key.strip_prefix(MASTERS_PREFIX.as_bytes()));
    let names: Vec<_> = names.map(String::from_utf8_lossy).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Moves the log in `dir` into an etcd cluster. The log stays as it is.
///
/// # Errors
/// The log is in use or can't be read, the etcd cluster isn't there, holds something or has a master, or what it holds at the end
/// is not what was written; then no master opens it before a move into it succeeds.
pub async fn to_etcd(
    dir: &Path,
    etcd: &EtcdConfig,
    occupied: Occupied,
    tell: &(dyn Fn(Step) + Send + Sync),
) -> Result<Moved, MigrateError> {
    tell(Step::Reading);
    let store = Store::open(Config::new(dir))?;
    let mut state = store.inner.published.snapshot();
    leave_behind(&mut state);
    let moved = write_to_etcd((dir, &state), etcd, occupied, tell).await;
    // Its lock says until here that nobody else has it.
    store.close().await;
    moved
}

async fn write_to_etcd(
    (dir, state): (&Path, &Snapshot),
    etcd: &EtcdConfig,
    occupied: Occupied,
    tell: &(dyn Fn(Step) + Send + Sync),
) -> Result<Moved, MigrateError> {
    if state.map.is_empty() && state.revision == FIRST_REVISION {
        return Err(MigrateError::Empty { at: dir.display().to_string() });
    }
    let target = Target::new(etcd)?;
    target.wait(Instant::now() + etcd.open_timeout).await?;
    target.check(occupied).await?;
    tell(Step::Emptying);
    // First: what is half emptied is opened by nobody.
    target.begin().await?;
    target.empty().await?;
    let begun = target.begin().await?;
    // The first key that is written gets a revision behind `begun`.
    let offset = (state.revision - begun).max(0);
    for (id, ttl_seconds) in &state.leases {
        target.grant(*id, *ttl_seconds).await?;
    }
    target.write(&in_order(&state.map), tell).await?;
    tell(Step::Verifying);
    let wanted = Digest::of(&state.map);
    let (found, last) = target.digest().await?;
    wanted.same(&found, target.name())?;
    let revision = target.finish(last, offset).await?;
    Ok(Moved {
        keys: found.keys,
        bytes: found.bytes,
        leases: state.leases.len(),
        from_revision: state.revision,
        revision,
        sha256: found.sha256(),
    })
}

/// All entries in the order of keys, but the newest encryption key behind them: what the masters find to be older than it they seal
/// with it, so that nothing stays plain, nor sealed with a key that goes.
fn in_order(map: &Map) -> Vec<&Arc<Entry>> {
    let mut entries: Vec<_> = map.values().collect();
    let is_key = |entry: &Entry| entry.key.starts_with(ENCRYPTION_PREFIX.as_bytes());
    let keys = entries.iter().enumerate().filter(|(_, entry)| is_key(entry));
    if let Some((at, _)) = keys.max_by_key(|(_, entry)| entry.mod_revision) {
        let newest = entries.remove(at);
        entries.push(newest);
    }
    entries
}

/// What belongs to a datastore and not to the cluster stays behind, and what dies with its owner: who is stopped, or writes it anew.
fn leave_behind(state: &mut Snapshot) {
    let dying = state.leases.iter().filter(|(_, ttl)| **ttl < LEASE_SECONDS_MIN);
    let dying: BTreeSet<_> = dying.map(|(id, _)| *id).collect();
    let dies = |entry: &Entry| entry.lease != 0 && dying.contains(&entry.lease);
    let keys: Vec<_> =
        state.map.values().filter(|entry| dies(entry)).map(|entry| entry.key.clone()).collect();
    let own = target::OWN_KEYS.iter().copied();
    for key in own.chain(keys.iter().map(|key| &key[..])) {
        state.remove(key);
    }
    let used: BTreeSet<_> = state.map.values().map(|entry| entry.lease).collect();
    state.leases = state
        .leases
        .iter()
        .filter(|(id, _)| used.contains(id))
        .map(|(id, ttl)| (*id, *ttl))
        .collect();
}

/// Moves what an etcd cluster holds into a log in `dir`, which must not be there. The etcd cluster keeps its keys, but no master opens it
/// any more.
///
/// # Errors
/// The etcd cluster isn't there, holds no state or has a master, the folder can't be written, or what it holds at the end is not
/// what was read.
pub async fn to_embedded(
    etcd: &EtcdConfig,
    dir: &Path,
    tell: &(dyn Fn(Step) + Send + Sync),
) -> Result<Moved, MigrateError> {
    tell(Step::Reading);
    let store = Box::pin(Store::open_etcd(etcd.clone(), Config::new(""))).await?;
    let moved = Box::pin(write_to_log(&store, etcd, dir, tell)).await;
    store.close().await;
    moved
}

async fn write_to_log(
    store: &Store,
    etcd: &EtcdConfig,
    dir: &Path,
    tell: &(dyn Fn(Step) + Send + Sync),
) -> Result<Moved, MigrateError> {
    let at = etcd.endpoints.join(",");
    let mut state = store.inner.published.snapshot();
    if let Some(masters) = masters(state.map.keys().map(|key| &key[..])) {
        return Err(MigrateError::Running { at, masters });
    }
    if state.map.is_empty() {
        return Err(MigrateError::Empty { at });
    }
    let revision = state.revision;
    for key in target::OWN_KEYS {
        state.remove(key);
    }
    tell(Step::Writing { keys: 0, of: state.map.len() });
    let wanted = Digest::of(&state.map);
    let file = dir.with_extension("snapshot");
    let reader = snapshot::Reader::new(state, None, Some(store.clone()));
    let (from, to) = (file.clone(), dir.to_owned());
    snapshot::save(reader, &file).await?;
    let restored = tokio::task::spawn_blocking(move || snapshot::restore(&from, &to, revision + 1));
    let restored = restored.await.unwrap_or_else(|stopped| {
        let source = std::io::Error::other(stopped);
        Err(SnapshotError::Io { file: dir.display().to_string(), doing: "written", source })
    });
    // Of no use any more; an old one is replaced by the next.
    std::fs::remove_file(&file).ok();
    restored?;
    tell(Step::Verifying);
    let (found, moved) = summed_up(dir).await?;
    wanted.same(&found, &dir.display().to_string())?;
    leave(store, (revision, &moved.sha256), &at).await?;
    Ok(moved)
}

/// What a log in `dir` holds that was moved there.
async fn summed_up(dir: &Path) -> Result<(Digest, Moved), MigrateError> {
    let copy = Store::open(Config::new(dir))?;
    let all = copy.inner.published.snapshot();
    copy.close().await;
    let found = Digest::of(&all.map);
    let moved = Moved {
        keys: found.keys,
        bytes: found.bytes,
        leases: all.leases.len(),
        from_revision: all.revision - 1,
        revision: all.revision,
        sha256: found.sha256(),
    };
    Ok((found, moved))
}

/// What an earlier [`to_embedded`] moved into a log in `dir`, where it came to its end: the etcd cluster is left for this log. `None`: the
/// etcd cluster is not left.
///
/// # Errors
/// The etcd cluster isn't there, or is left for something else.
pub async fn moved_earlier(etcd: &EtcdConfig, dir: &Path) -> Result<Option<Moved>, MigrateError> {
    let target = Target::new(etcd)?;
    target.wait(Instant::now() + etcd.open_timeout).await?;
    let Some(mark) = target.mark().await? else { return Ok(None) };
    match summed_up(dir).await {
        Ok((_, moved)) if mark == left_text(&moved.sha256) => Ok(Some(moved)),
        // A log that can't be opened is not whole.
        _ => {
            let endpoints = target.name().to_owned();
            Err(OpenError::Datastore { endpoints, reason: mark }.into())
        }
    }
}

fn left_text(sha256: &str) -> String {
    format!(
        "its state was moved into a master's own log; move it back, or empty the datastore (SHA-256 {sha256})"
    )
}

/// Says in the datastore that its state is elsewhere now; not if it changed meanwhile.
async fn leave(
    store: &Store,
    (revision, sha256): (Revision, &str),
    at: &str,
) -> Result<(), MigrateError> {
    let doing = "marking it as left";
    let text = left_text(sha256);
    let marked = store.txn(Txn::of(vec![Op::put(MOVING_KEY, text)])).await;
    let marked = marked.map_err(refused(at, doing))?;
    let everything = Range::all(KeyRange::Prefix(MASTERS_PREFIX.into()));
    let running = store.range(&everything).map_or(0, |found| found.count);
    if marked.revision == revision + 1 && running == 0 {
        return Ok(());
    }
    let unmarked = store.txn(Txn::of(vec![Op::delete(MOVING_KEY)])).await;
    unmarked.map_err(refused(at, doing))?;
    let what = "somebody wrote to it meanwhile; stop every master first".to_owned();
    Err(MigrateError::Differs { at: at.to_owned(), what })
}
