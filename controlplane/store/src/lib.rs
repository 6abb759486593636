//! The revisioned key-value store under the API server: an in-memory ordered map with a durable log behind it.
//!
//! Verbs are etcd's: range, transaction, watch, lease, compact. Reads never wait for writes or for the disk; a write is
//! durable before it is answered or seen. Knows no Kubernetes: what a value means comes in through [`Extract`].

mod backend;
pub mod grpc;
mod history;
mod lease;
pub mod local;
mod log;
pub mod migrate;
mod revision;
pub mod seal;
pub mod snapshot;
mod state;
mod txn;
mod watch;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

pub use crate::backend::Written;
pub use crate::backend::etcd::EtcdConfig;
use crate::backend::{Backend, Command, Published, Reply, embedded, etcd};
use crate::lease::Leases;
pub use crate::lease::{LEASE_TTL_SECONDS_MIN, LeaseStatus};
pub use crate::log::disk::{Disk, DiskFile, RealDisk};
pub use crate::log::faulty::{FaultyDisk, FaultyImage};
pub use crate::log::{LogSizes, OpenError};
pub use crate::revision::{
    Entry, Event, Extract, ExtractNothing, Extracted, Extracts, FIRST_REVISION, Revision,
};
pub use crate::seal::{Seal, SealError};
use crate::state::{Surroundings, apply};
pub use crate::txn::check::TXN_OPS_MAX;
use crate::txn::check::check;
pub use crate::txn::{
    Compare, KeyRange, Op, OpResult, Range, RangeResult, ReadError, Relation, Target, Txn,
    TxnResult, WriteError,
};
pub use crate::watch::{WatchError, WatchRequest, Watcher};

/// How many writes may wait for the disk; further ones wait for their turn without a place.
const WRITES_WAITING_MAX: usize = 4096;

/// What one transaction may put, in bytes of keys and values: twice etcd's default, for the API server's largest body.
pub const TXN_BYTES_MAX: usize = 3 << 20;

/// The longest key in bytes.
pub const KEY_BYTES_MAX: usize = 16 << 10;

/// How a store is opened.
#[derive(Clone)]
pub struct Config {
    /// The folder of the log; made when it is not there.
    pub dir: PathBuf,
    /// Past changes are kept in memory and in the log up to so many bytes …
    pub history_bytes_max: usize,
    /// … and up to this age.
    pub history_age_max: Duration,
    /// Keys under these prefixes live in memory only.
    pub volatile_prefixes: Vec<Vec<u8>>,
    /// The sizes of the log's files.
    pub log_sizes: LogSizes,
    /// Reads labels, fields and index keys from values.
    pub extract: Arc<dyn Extract>,
    /// Seals values of some keys before they leave the memory; `None`: none.
    pub seal: Option<Arc<dyn Seal>>,
}

impl Config {
    /// The defaults for a folder: five minutes of history, as etcd keeps under Kubernetes, in at most 16 MiB.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            history_bytes_max: 16 << 20,
            history_age_max: Duration::from_secs(300),
            volatile_prefixes: Vec::new(),
            log_sizes: LogSizes::default(),
            extract: Arc::new(ExtractNothing),
            seal: None,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("dir", &self.dir)
            .field("history_bytes_max", &self.history_bytes_max)
            .field("history_age_max", &self.history_age_max)
            .finish_non_exhaustive()
    }
}

/// What the store holds and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metrics {
    /// The last published revision.
    pub revision: Revision,
    /// Every change up to here is forgotten.
    pub compact_revision: Revision,
    /// Keys now.
    pub keys: usize,
    /// Bytes of their keys and values.
    pub bytes: usize,
    /// Changes in the history.
    pub history_events: usize,
    /// What the history is charged with.
    pub history_bytes: usize,
    /// Watches now.
    pub watchers: usize,
    /// Watches ended because they were too slow.
    pub watches_expired: u64,
    /// What went to the disk.
    pub written: Written,
}

#[derive(Debug)]
struct Inner {
    published: Arc<Published>,
    backend: Box<dyn Backend>,
    places: Arc<Semaphore>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.backend.close());
    }
}

/// The store. Clones are handles of the same store; it closes with the last of them.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

impl Store {
    /// Opens the store in `config.dir`, recovering what is there.
    ///
    /// # Errors
    /// Another process has the folder, the disk failed, or the log is damaged or newer than this program.
    pub fn open(config: Config) -> Result<Self, OpenError> {
        let disk = RealDisk::open(&config.dir).map_err(|source| match source.kind() {
            io::ErrorKind::ResourceBusy => {
                let (dir, holder) = (config.dir.display().to_string(), source.to_string());
                OpenError::Locked { dir, holder }
            }
            _ => OpenError::io(&config.dir.display().to_string(), "taken")(source),
        })?;
        Self::open_on(Arc::new(disk), config)
    }

    /// Opens the store on a disk of the caller's, whatever `config.dir` says.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(disk: Arc<dyn Disk>, config: Config) -> Result<Self, OpenError> {
        let (published, backend) = embedded::open(disk, config)?;
        let places = Arc::new(Semaphore::new(WRITES_WAITING_MAX));
        Ok(Self { inner: Arc::new(Inner { published, backend: Box::new(backend), places }) })
    }

    /// Opens the store whose log is a real etcd cluster; several processes may. Waits for etcd, as long as `etcd` says. Of the folder
    /// in `config` only the lock is used; volatile prefixes don't count. Needs a runtime of tokio's, on which it lives.
    ///
    /// # Errors
    /// Another process has the folder, etcd is not there in time, or what it holds can't be used.
    pub async fn open_etcd(etcd: EtcdConfig, config: Config) -> Result<Self, OpenError> {
        let (published, backend) = Box::pin(etcd::open(&etcd, config)).await?;
        let places = Arc::new(Semaphore::new(WRITES_WAITING_MAX));
        Ok(Self { inner: Arc::new(Inner { published, backend: Box::new(backend), places }) })
    }

    /// Waits until what anybody was told before this call, by any master, is in what is read after it. Free where the log is our own.
    ///
    /// # Errors
    /// The datastore did not answer.
    pub async fn fresh(&self) -> Result<(), WriteError> {
        match self.inner.backend.fresh() {
            Some(answer) => answer.await.unwrap_or(Err(WriteError::Closed)),
            None => Ok(()),
        }
    }

    /// The last published revision.
    pub fn revision(&self) -> Revision {
        self.inner.published.with(|snapshot| snapshot.revision)
    }

    /// Every change up to here is forgotten; a watch can begin at the next revision.
    pub fn compact_revision(&self) -> Revision {
        self.inner.published.with(|snapshot| snapshot.history.compacted())
    }

    /// The key now.
    pub fn get(&self, key: &[u8]) -> Option<Arc<Entry>> {
        self.inner.published.with(|snapshot| snapshot.map.get(key).cloned())
    }

    /// Entries now or at a past revision of the history.
    ///
    /// # Errors
    /// The revision is forgotten, or has not happened.
    pub fn range(&self, range: &Range) -> Result<RangeResult, ReadError> {
        self.inner.published.snapshot().range(range)
    }

    /// Evaluates a transaction; what it changed is durable when this returns. Once given to the store it is done even when
    /// the caller stops waiting.
    ///
    /// # Errors
    /// Nothing was changed, except as [`WriteError::Refused`] says.
    pub async fn txn(&self, txn: Txn) -> Result<TxnResult, WriteError> {
        check(&txn)?;
        let bytes = txn.bytes();
        if bytes > TXN_BYTES_MAX {
            return Err(WriteError::TooLarge { bytes, bytes_max: TXN_BYTES_MAX });
        }
        if !txn.writes() {
            self.fresh().await?;
            let (extract, lease_exists) = (&ExtractNothing, &|_| false);
            let surroundings = Surroundings { extract, lease_exists };
            return Ok(apply(&mut self.inner.published.snapshot(), &txn, &surroundings)?.result);
        }
        self.submit(|reply| Command::Txn(txn, reply)).await
    }

    /// Watches keys.
    ///
    /// # Errors
    /// The first wanted revision is forgotten: list again.
    pub fn watch(&self, request: WatchRequest) -> Result<Watcher, ReadError> {
        let published = &self.inner.published;
        published.hub.watch(request, &|| published.snapshot())
    }

    /// Forgets every change up to `revision`.
    ///
    /// # Errors
    /// The revision is forgotten already, or has not happened.
    pub async fn compact(&self, revision: Revision) -> Result<(), WriteError> {
        self.submit(|reply| Command::Compact(revision, reply)).await
    }

    /// Grants a lease and returns its id; 0 asks for a free one. A length below [`LEASE_TTL_SECONDS_MIN`] is that.
    ///
    /// # Errors
    /// The id is taken, or the length is out of range.
    pub async fn lease_grant(&self, id: i64, ttl_seconds: i64) -> Result<i64, WriteError> {
        let ttl = Leases::check_ttl(ttl_seconds)?;
        self.submit(|reply| Command::LeaseGrant { id, ttl, reply }).await
    }

    /// Ends a lease and deletes its keys; the revision is the store's after it.
    ///
    /// # Errors
    /// There is no such lease.
    pub async fn lease_revoke(&self, id: i64) -> Result<Revision, WriteError> {
        self.submit(|reply| Command::LeaseRevoke(id, reply)).await
    }

    /// Gives a lease its whole length again, and returns it in seconds.
    ///
    /// # Errors
    /// There is no such lease.
    pub async fn lease_keep_alive(&self, id: i64) -> Result<i64, WriteError> {
        self.submit(|reply| Command::LeaseKeepAlive(id, reply)).await
    }

    /// What is left of a lease, and its keys.
    ///
    /// # Errors
    /// There is no such lease.
    pub async fn lease_time_to_live(&self, id: i64) -> Result<LeaseStatus, WriteError> {
        self.submit(|reply| Command::LeaseTimeToLive(id, reply)).await
    }

    /// Every lease, the one that ends first in front.
    ///
    /// # Errors
    /// The store is closed.
    pub async fn leases(&self) -> Result<Vec<i64>, WriteError> {
        self.submit(Command::Leases).await
    }

    /// The store's present revision as a file, piece by piece, while the store goes on.
    pub fn snapshot(&self) -> snapshot::Reader {
        let Inner { published, backend, .. } = &*self.inner;
        let lessor = (!backend.knows_leases()).then(|| self.clone());
        snapshot::Reader::new(published.snapshot(), published.seal.clone(), lessor)
    }

    /// Whether writes are refused for want of room on the disk; the next write tries again.
    pub fn is_full(&self) -> bool {
        self.inner.backend.is_full()
    }

    /// Writes a checkpoint, so that the log before it is not needed any more.
    ///
    /// # Errors
    /// It could not be written; the log goes on without it.
    pub async fn checkpoint(&self) -> Result<(), WriteError> {
        let (reply, answer) = oneshot::channel();
        self.inner.backend.checkpoint(reply);
        answer.await.unwrap_or(Err(WriteError::Closed))
    }

    /// What the store holds and did.
    pub fn metrics(&self) -> Metrics {
        let Inner { published, backend, .. } = &*self.inner;
        let snapshot = published.snapshot();
        Metrics {
            revision: snapshot.revision,
            compact_revision: snapshot.history.compacted(),
            keys: snapshot.map.len(),
            bytes: snapshot.bytes,
            history_events: snapshot.history.len(),
            history_bytes: snapshot.history.bytes(),
            watchers: published.hub.watchers(),
            watches_expired: published.hub.expired(),
            written: backend.written(),
        }
    }

    /// Finishes the writes that were given, ends every watch and lets go of the folder. Other handles go on reading; their
    /// writes are answered with [`WriteError::Closed`].
    pub async fn close(self) {
        // The answer never fails but by a panic of the committer, and then it is gone as well.
        if self.inner.backend.close().await.is_err() {
            tracing::debug!("the committer was gone before the store was closed");
        }
    }

    async fn submit<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, WriteError> {
        let permit: OwnedSemaphorePermit =
            self.inner.places.clone().acquire_owned().await.map_err(|_| WriteError::Closed)?;
        let (reply, answer) = oneshot::channel();
        self.inner.backend.submit(command(reply), permit);
        answer.await.unwrap_or(Err(WriteError::Closed))
    }
}
