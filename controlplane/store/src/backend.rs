//! Owns the seam between the store and what makes writes durable: commands go in, committed revisions come out in order
//! through [`Published`]. Knows no log and no network.

pub(crate) mod embedded;
pub(crate) mod etcd;
pub(crate) mod flight;
mod pipeline;
mod queue;
mod recovery;
mod speculation;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::backend::flight::Progress;
use crate::lease::LeaseStatus;
use crate::revision::{Event, Revision};
use crate::seal::Seal;
use crate::state::Snapshot;
use crate::txn::{Txn, TxnResult, WriteError};
use crate::watch::Hub;

/// Where a command's answer goes. An answer nobody waits for any more is dropped: the write stands.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, WriteError>>;

/// What a backend is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    Txn(Txn, Reply<TxnResult>),
    Compact(Revision, Reply<()>),
    LeaseGrant { id: i64, ttl: Duration, reply: Reply<i64> },
    LeaseRevoke(i64, Reply<Revision>),
    LeaseKeepAlive(i64, Reply<i64>),
    LeaseTimeToLive(i64, Reply<LeaseStatus>),
    Leases(Reply<Vec<i64>>),
}

/// What makes writes durable, in one order.
pub(crate) trait Backend: Send + Sync + std::fmt::Debug {
    /// Takes a command; it is answered when it is durable and published. The permit is dropped with the answer.
    fn submit(&self, command: Command, permit: OwnedSemaphorePermit);
    /// Waits until all that anybody was told before is published; `None`: it is.
    fn fresh(&self) -> Option<oneshot::Receiver<Result<(), WriteError>>> {
        None
    }
    /// Whether the leases are in what is published.
    fn knows_leases(&self) -> bool {
        true
    }
    /// Whether writes are refused for want of room on the disk.
    fn is_full(&self) -> bool {
        false
    }
    /// Writes a checkpoint now and lets the log before it go; without files of its own there is nothing to write.
    fn checkpoint(&self, reply: Reply<()>) {
        // Nobody may wait any more.
        drop(reply.send(Ok(())));
    }
    /// Stops taking commands, finishes those taken and lets go of everything held.
    fn close(&self) -> oneshot::Receiver<()>;
    /// Bytes written, flushes, checkpoints.
    fn written(&self) -> Written;
}

/// What a backend wrote since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes given to the disk, checkpoints included.
    pub bytes: u64,
    /// Flushes waited for.
    pub flushes: u64,
    /// Checkpoints completed.
    pub checkpoints: u64,
    /// Checkpoints that failed; the log goes on without them.
    pub checkpoint_failures: u64,
}

/// The durable state that readers see, and the watchers of it.
#[derive(Debug)]
pub(crate) struct Published {
    snapshot: RwLock<Snapshot>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) seal: Option<Arc<dyn Seal>>,
}

impl Published {
    pub(crate) fn new(snapshot: Snapshot, seal: Option<Arc<dyn Seal>>) -> Self {
        let hub = Arc::new(Hub::new(snapshot.revision));
        Self { snapshot: RwLock::new(snapshot), hub, seal }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads without cloning; `read` must be short.
    pub(crate) fn with<T>(&self, read: impl FnOnce(&Snapshot) -> T) -> T {
        read(&self.snapshot.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes a durable state the one that is read.
    pub(crate) fn publish(&self, snapshot: Snapshot) {
        let old = {
            let mut current = self.snapshot.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, snapshot)
        };
        // Freed outside of the lock.
        drop(old);
    }

    /// Brings what is read up to what became durable, in place as far as no reader holds it.
    pub(crate) fn advance(&self, events: &[Arc<Event>], progress: &Progress) {
        let forgotten = {
            let mut current = self.snapshot.write().unwrap_or_else(PoisonError::into_inner);
            current.follow(events, progress)
        };
        // Freed outside of the lock.
        drop(forgotten);
    }

    /// Tells the watchers, and whoever seals values, what was published.
    pub(crate) fn notify(&self, events: &[Arc<Event>], revision: Revision) {
        if let Some(seal) = &self.seal {
            for entry in events.iter().filter_map(|event| event.after.as_ref()) {
                seal.observe(&entry.key, &entry.value, entry.mod_revision);
            }
        }
        self.hub.dispatch(events, revision);
    }
}
