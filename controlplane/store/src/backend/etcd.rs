//! Owns the backend whose log is a real etcd cluster: etcd's transactions decide, one watch of all keys feeds the published state, and a
//! write is answered when that watch has brought it. Several masters may have the same cluster.
//!
//! `client` asks members, `load` copies the state, `feed` follows it, `commit` and `lease` carry commands, `barrier` asks how far the
//! others are, `compactor` forgets; `wire` translates, `progress` lets wait.

mod barrier;
pub(crate) mod client;
pub(crate) mod commit;
pub(crate) mod compactor;
mod feed;
pub(crate) mod lease;
pub(crate) mod load;
mod progress;
pub(crate) mod wire;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::barrier::Barrier;
use self::client::Client;
pub use self::client::EtcdConfig;
use self::feed::Feed;
use self::load::{Found, LoadError, Past};
use self::progress::Progress;
use self::wire::{Wire, WireError};
use crate::Config;
use crate::backend::{Backend, Command, Published, Reply, Written};
use crate::log::OpenError;
use crate::log::disk::RealDisk;
use crate::revision::Revision;
use crate::seal::SealError;
use crate::state::Snapshot;
use crate::txn::WriteError;

/// Commands that may be under way to etcd at once.
const IN_FLIGHT_MAX: u32 = 512;
/// How long an answer waits for the feed, which may have to look for another member meanwhile.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(10);
/// Between two attempts to open.
const OPEN_PAUSE: Duration = Duration::from_millis(500);
/// How often it is said that etcd is waited for.
const OPEN_REMINDER: Duration = Duration::from_secs(10);

/// What all parts of the backend use.
#[derive(Debug)]
pub(crate) struct Shared {
    client: Client,
    wire: Wire,
    published: Arc<Published>,
    progress: Progress,
    barrier: Barrier,
    /// Why the datastore can't be used any more.
    failed: OnceLock<Arc<str>>,
    /// A value that came and could not be opened, first of all.
    unopened: OnceLock<(String, SealError)>,
    bytes: AtomicU64,
    requests: AtomicU64,
    /// What was published last, for who publishes next.
    current: Mutex<Snapshot>,
}

impl Shared {
    fn current(&self) -> MutexGuard<'_, Snapshot> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the past here; elsewhere it is forgotten by age.
    fn forget(&self, revision: Revision) {
        let mut current = self.current();
        current.history.compact(revision);
        self.published.publish(current.clone());
    }

    /// Waits until etcd's `revision` is published; it as the store's.
    async fn published_at(&self, revision: i64) -> Result<Revision, WriteError> {
        let revision = self.wire.inward(revision);
        if self.progress.reach(revision, PUBLISHED_WITHIN).await {
            return Ok(revision);
        }
        let reason = format!("revision {revision} of the datastore did not arrive in time");
        Err(WriteError::Unknown { reason: reason.into() })
    }
}

/// The callers' side.
#[derive(Debug)]
pub(crate) struct Etcd {
    shared: Arc<Shared>,
    runtime: Handle,
    places: Arc<Semaphore>,
    closing: Mutex<Closing>,
}

#[derive(Debug)]
struct Closing {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    /// Says that one process has the folder, as with a log of our own.
    lock: Option<RealDisk>,
    closed: bool,
}

impl Backend for Etcd {
    fn submit(&self, command: Command, permit: OwnedSemaphorePermit) {
        if self.closing.lock().unwrap_or_else(PoisonError::into_inner).closed {
            // The dropped reply is the answer.
            return;
        }
        let (shared, places) = (self.shared.clone(), self.places.clone());
        self.runtime.spawn(async move {
            let Ok(_place) = places.acquire_owned().await else { return };
            carry(&shared, command).await;
            drop(permit);
        });
    }

    fn fresh(&self) -> Option<oneshot::Receiver<Result<(), WriteError>>> {
        Some(barrier::ask(&self.shared, &self.runtime))
    }

    fn knows_leases(&self) -> bool {
        false
    }

    fn close(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let (shared, places) = (self.shared.clone(), self.places.clone());
        let (stop, tasks, lock) = {
            let mut closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
            closing.closed = true;
            (closing.stop.clone(), std::mem::take(&mut closing.tasks), closing.lock.take())
        };
        self.runtime.spawn(async move {
            // What was taken is finished first: places are given in order.
            let finished = places.acquire_many(IN_FLIGHT_MAX).await;
            stop.send_replace(true);
            for task in tasks {
                if let Err(error) = task.await {
                    tracing::error!(%error, "a task of the store died");
                }
            }
            shared.published.hub.close();
            drop((finished, lock));
            // Nobody may wait any more.
            sender.send(()).ok();
        });
        receiver
    }

    fn written(&self) -> Written {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (bytes, flushes) = (load(&self.shared.bytes), load(&self.shared.requests));
        Written { bytes, flushes, ..Written::default() }
    }
}

fn send<T>(reply: Reply<T>, result: Result<T, WriteError>) {
    // Nobody may wait any more; what was done stands.
    drop(reply.send(result));
}

fn refuse(command: Command, why: WriteError) {
    match command {
        Command::Txn(_, reply) => send(reply, Err(why)),
        Command::Compact(_, reply) => send(reply, Err(why)),
        Command::LeaseGrant { reply, .. }
        | Command::LeaseRevoke(_, reply)
        | Command::LeaseKeepAlive(_, reply) => send(reply, Err(why)),
        Command::LeaseTimeToLive(_, reply) => send(reply, Err(why)),
        Command::Leases(reply) => send(reply, Err(why)),
    }
}

/// Carries a command through and answers it.
async fn carry(shared: &Shared, command: Command) {
    if let Some(reason) = shared.failed.get() {
        return refuse(command, WriteError::Refused { reason: reason.clone() });
    }
    match command {
        Command::Txn(txn, reply) => send(reply, commit::txn(shared, txn).await),
        Command::Compact(revision, reply) => send(reply, commit::compact(shared, revision).await),
        Command::LeaseGrant { id, ttl, reply } => {
            send(reply, lease::grant(shared, id, ttl).await);
        }
        Command::LeaseRevoke(id, reply) => send(reply, lease::revoke(shared, id).await),
        Command::LeaseKeepAlive(id, reply) => send(reply, lease::keep_alive(shared, id).await),
        Command::LeaseTimeToLive(id, reply) => send(reply, lease::time_to_live(shared, id).await),
        Command::Leases(reply) => send(reply, lease::list(shared).await),
    }
}

/// Waits for etcd, copies its state and follows it up to now.
pub(crate) async fn open(
    etcd: &EtcdConfig,
    config: Config,
) -> Result<(Arc<Published>, Etcd), OpenError> {
    let lock = lock(&config)?;
    let client = Client::new(etcd)?;
    let mut wire = Wire { offset: 0, extract: config.extract, seal: config.seal };
    let deadline = Instant::now() + etcd.open_timeout;
    let (found, snapshot) = wait_and_load(&client, &mut wire, (etcd, deadline)).await?;
    let now = wire.inward(found.revision);
    let published = Arc::new(Published::new(snapshot.clone(), wire.seal.clone()));
    let shared = Arc::new(Shared {
        client,
        wire,
        published: published.clone(),
        progress: Progress::new(snapshot.revision),
        barrier: Barrier::default(),
        failed: OnceLock::new(),
        unopened: OnceLock::new(),
        bytes: AtomicU64::new(0),
        requests: AtomicU64::new(0),
        current: Mutex::new(snapshot.clone()),
    });
    let stop = watch::Sender::new(false);
    let bounds = (config.history_bytes_max, config.history_age_max);
    let feed = Feed::new(shared.clone(), found, bounds);
    let feed = tokio::spawn(feed.run(stop.subscribe()));
    let until = deadline.max(Instant::now() + PUBLISHED_WITHIN);
    while !shared.progress.reach(now, OPEN_PAUSE).await {
        let sealed = shared.unopened.get().cloned();
        if sealed.is_none() && Instant::now() < until {
            continue;
        }
        feed.abort();
        return Err(match sealed {
            Some((key, source)) => OpenError::Sealed { key, source },
            None => unavailable(etcd, &"its changes did not arrive in time"),
        });
    }
    let compactor = compactor::run(shared.clone(), etcd.compaction_period, stop.subscribe());
    let tasks = vec![feed, tokio::spawn(compactor)];
    let closing = Mutex::new(Closing { stop, tasks, lock, closed: false });
    let places = Arc::new(Semaphore::new(IN_FLIGHT_MAX as usize));
    Ok((published, Etcd { shared, runtime: Handle::current(), places, closing }))
}

fn lock(config: &Config) -> Result<Option<RealDisk>, OpenError> {
    if config.dir.as_os_str().is_empty() {
        return Ok(None);
    }
    let dir = config.dir.display().to_string();
    RealDisk::open(&config.dir).map(Some).map_err(|source| match source.kind() {
        io::ErrorKind::ResourceBusy => OpenError::Locked { dir, holder: source.to_string() },
        _ => OpenError::io(&dir, "taken")(source),
    })
}

fn unavailable(etcd: &EtcdConfig, reason: &dyn std::fmt::Display) -> OpenError {
    OpenError::Datastore { endpoints: etcd.endpoints.join(","), reason: reason.to_string() }
}

async fn wait_and_load(
    client: &Client,
    wire: &mut Wire,
    (etcd, deadline): (&EtcdConfig, Instant),
) -> Result<(Found, Snapshot), OpenError> {
    let mut said: Option<Instant> = None;
    loop {
        let attempt = async {
            let found = load::find(client).await?;
            wire.offset = found.offset;
            Ok((found, load::load(client, wire, found.revision, Past::Window).await?))
        };
        let error = match tokio::time::timeout_at(deadline, attempt).await {
            Ok(Ok(loaded)) => return Ok(loaded),
            Ok(Err(error @ (LoadError::Failed(_) | LoadError::Compacted))) => error,
            Ok(Err(LoadError::Wire(WireError::Sealed { key, source }))) => {
                return Err(OpenError::Sealed { key, source });
            }
            Ok(Err(error)) => return Err(unavailable(etcd, &error)),
            Err(_) => {
                let reason = match client.trouble() {
                    Some(failure) => failure.to_string(),
                    None => "it could not be read".to_owned(),
                };
                let waited = etcd.open_timeout;
                return Err(unavailable(
                    etcd,
                    &format_args!("not there within {waited:?}: {reason}"),
                ));
            }
        };
        if Instant::now() + OPEN_PAUSE > deadline {
            let waited = etcd.open_timeout;
            return Err(unavailable(etcd, &format_args!("not there within {waited:?}: {error}")));
        }
        if said.is_none_or(|at| at.elapsed() > OPEN_REMINDER) {
            said = Some(Instant::now());
            tracing::warn!(endpoints = %etcd.endpoints.join(","), reason = %error, "waiting for the datastore");
        }
        tokio::time::sleep(OPEN_PAUSE).await;
    }
}
