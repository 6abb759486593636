//! Owns the keys' lives: every value that is sealed with an older key is written again with the newest, slowly and while the master
//! serves; a key that nothing needs any more goes. Whether a value is behind is in its revision (older than the newest
//! key's), so this goes on where it stopped, at this master or another. A write that was under way when the newest key came is
//! behind as well, and not to be told by its revision: before a key goes, every value is written once more. Must not make keys:
//! `secrets` does, when somebody asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use store::seal::{KeyInfo, Keyring};
use store::{
    Compare, Entry, KeyRange, Op, Range, ReadError, Revision, Store, Txn, WatchError, WatchRequest,
    WriteError,
};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::secrets::{ENCRYPTION_PREFIX, SEALED_PREFIX};

/// How this takes its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Between two values: two hundred in a second leave the disk to others.
    pub pause: Duration,
    /// After a failure.
    pub retry: Duration,
    /// A key is removed when nothing has needed it for so long: another master may be that far behind, but no further.
    pub keep: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            pause: Duration::from_millis(5),
            retry: Duration::from_secs(10),
            keep: Duration::from_secs(3600),
        }
    }
}

/// What there is to tell.
#[derive(Debug, Default)]
pub struct Progress {
    /// Values to be written again.
    pub left: AtomicU64,
}

/// Why a pass ended early.
#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Runs until `stop`.
///
/// # Errors
/// The store is closed.
pub async fn run(
    store: Store,
    ring: Arc<Keyring>,
    progress: Arc<Progress>,
    pace: Pace,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<&'static str> {
    let work = async {
        loop {
            if let Err(WatchError::Closed) = follow(&store, &ring, &progress, pace).await {
                return WatchError::Closed;
            }
        }
    };
    tokio::select! {
        closed = work => Err(closed.into()),
        stopped = stop.wait_for(|stopped| *stopped) => {
            drop(stopped);
            Ok("the encryption of secrets")
        }
    }
}

/// Looks again whenever a key comes or goes.
async fn follow(
    store: &Store,
    ring: &Keyring,
    progress: &Progress,
    pace: Pace,
) -> Result<(), WatchError> {
    let keys = KeyRange::Prefix(ENCRYPTION_PREFIX.into());
    let request = WatchRequest { keys, from: None, index: None, events_max: 64 };
    // From now on nothing is ever compacted.
    let Ok(mut watcher) = store.watch(request) else { return Ok(()) };
    loop {
        if let Err(error) = pass(store, ring, progress, pace).await {
            tracing::warn!(%error, "sealed values could not be written again; trying later");
            tokio::time::sleep(pace.retry).await;
            continue;
        }
        let newest = ring.keys().pop().filter(|newest| !obsolete(store, newest).is_empty());
        let Some(newest) = newest else {
            watcher.next().await?;
            continue;
        };
        let at = Instant::now() + pace.keep;
        tokio::select! {
            event = watcher.next() => drop(event?),
            () = tokio::time::sleep_until(at) => {
                if let Err(error) = retire(store, &newest, progress, pace).await {
                    tracing::warn!(%error, "old encryption keys could not be removed; trying later");
                }
            }
        }
    }
}

/// Values written before `revision`: with that of the newest key, those that it has not sealed.
fn behind(store: &Store, revision: Revision) -> Result<Vec<Arc<Entry>>, ReadError> {
    let mut entries = store.range(&Range::all(KeyRange::Prefix(SEALED_PREFIX.into())))?.entries;
    entries.retain(|entry| entry.mod_revision < revision);
    Ok(entries)
}

async fn pass(
    store: &Store,
    ring: &Keyring,
    progress: &Progress,
    pace: Pace,
) -> Result<(), PassError> {
    loop {
        let Some(newest) = ring.keys().pop() else { return Ok(()) };
        if !renew(store, &newest, newest.revision, (progress, pace)).await? {
            return Ok(());
        }
    }
}

/// Writes again what was written before `revision`; whether there was something.
async fn renew(
    store: &Store,
    newest: &KeyInfo,
    revision: Revision,
    (progress, pace): (&Progress, Pace),
) -> Result<bool, PassError> {
    let behind = behind(store, revision)?;
    progress.left.store(behind.len() as u64, Ordering::Relaxed);
    if behind.is_empty() {
        return Ok(false);
    }
    tracing::info!(values = behind.len(), key = newest.name, "sealing values with the newest key");
    for entry in &behind {
        rewrite(store, entry).await?;
        progress.left.fetch_sub(1, Ordering::Relaxed);
        tokio::time::sleep(pace.pause).await;
    }
    Ok(true)
}

/// Whoever changed or deleted the value meanwhile has done it for us.
async fn rewrite(store: &Store, entry: &Entry) -> Result<(), WriteError> {
    let put = Op::Put { key: entry.key.to_vec(), value: entry.value.clone(), lease: entry.lease };
    let compare = vec![Compare::unchanged(entry.key.to_vec(), entry.mod_revision)];
    store.txn(Txn { compare, success: vec![put], failure: Vec::new() }).await.map(drop)
}

/// The store's keys of the encryption keys that are older than `newest`.
fn obsolete(store: &Store, newest: &KeyInfo) -> Vec<Arc<Entry>> {
    let range = Range::all(KeyRange::Prefix(ENCRYPTION_PREFIX.into()));
    match store.range(&range) {
        Ok(mut found) => {
            found.entries.retain(|entry| entry.mod_revision < newest.revision);
            found.entries
        }
        Err(error) => {
            tracing::warn!(%error, "old encryption keys stay: they can't be listed");
            Vec::new()
        }
    }
}

/// Removes keys that nothing needs: the state has no value of theirs, and files that do have the keys, too. By now every master
/// seals with `newest`, so what is written again here no older key has sealed.
async fn retire(
    store: &Store,
    newest: &KeyInfo,
    progress: &Progress,
    pace: Pace,
) -> Result<(), PassError> {
    renew(store, newest, store.revision() + 1, (progress, pace)).await?;
    let key = format!("{ENCRYPTION_PREFIX}{}", newest.name).into_bytes();
    for entry in obsolete(store, newest) {
        let compare = vec![
            Compare::unchanged(entry.key.to_vec(), entry.mod_revision),
            Compare::unchanged(key.clone(), newest.revision),
        ];
        let success = vec![Op::delete(entry.key.to_vec())];
        if store.txn(Txn { compare, success, failure: Vec::new() }).await?.succeeded {
            tracing::info!(key = %String::from_utf8_lossy(&entry.key), "removed an old encryption key");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::{Loaded, Secrets};

    const DEADLINE: Duration = Duration::from_secs(20);

    async fn until(what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < DEADLINE, "{what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn values_follow_the_newest_key_and_old_keys_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = store::Config::new(dir.path().join("store"));
        let store = Store::open(config.clone()).unwrap();
        for name in ["a", "b", "c"] {
            let put = Op::put(format!("{SEALED_PREFIX}default/{name}"), "plain");
            store.txn(Txn::of(vec![put])).await.unwrap();
        }
        store.clone().close().await;
        drop(store);

        let loaded = Loaded::read(dir.path(), None).unwrap();
        let ring = loaded.ring().clone();
        config.seal = Some(ring.clone());
        let store = Store::open(config).unwrap();
        let secrets = Secrets::open(store.clone(), loaded).await.unwrap();
        let pace = Pace { pause: Duration::from_millis(1), ..Pace::default() };
        let pace = Pace { keep: Duration::from_millis(300), ..pace };
        let (stop, stopped) = watch::channel(false);
        let progress = Arc::<Progress>::default();
        let running =
            tokio::spawn(run(store.clone(), ring.clone(), progress.clone(), pace, stopped));
        let newest = || ring.keys().pop().unwrap();
        let all_new = || behind(&store, newest().revision).unwrap().is_empty();
        until("plain values are sealed", all_new).await;

        assert_eq!(secrets.add_encryption_key().await.unwrap().unwrap(), "0002");
        assert_eq!(newest().name, "0002");
        until("values are sealed with the new key", all_new).await;
        assert_eq!(obsolete(&store, &newest()).len(), 1, "the old key is kept for a while");
        until("the old key goes", || obsolete(&store, &newest()).is_empty()).await;
        assert_eq!(progress.left.load(Ordering::Relaxed), 0);
        let revision = store.revision();
        tokio::time::sleep(pace.keep * 2).await;
        assert_eq!(store.revision(), revision, "and then nothing is written");
        stop.send_replace(true);
        running.await.unwrap().unwrap();
        let entry = store.get(format!("{SEALED_PREFIX}default/a").as_bytes()).unwrap();
        // The third time because a write could have been under way when the second key came.
        assert_eq!((&*entry.value, entry.version), (&b"plain"[..], 4));
    }
}
