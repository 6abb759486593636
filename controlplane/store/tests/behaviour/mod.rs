//! What every store does, whatever its log is: each of these runs on the log of our own and on a real etcd.
#![allow(unreachable_pub, dead_code, missing_docs, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use store::{
    Compare, Config, KeyRange, Op, OpenError, Range, ReadError, Store, Txn, WatchError,
    WatchRequest, WriteError,
};
use tempfile::TempDir;

use crate::real_etcd::RealEtcd;

/// Where a store keeps what it is given.
pub struct Backing {
    dir: TempDir,
    etcd: Option<RealEtcd>,
}

impl Backing {
    pub fn embedded() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), etcd: None }
    }

    pub fn etcd() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), etcd: Some(RealEtcd::start(1)) }
    }

    pub async fn try_open(&self) -> Result<Store, OpenError> {
        let config = Config::new(self.dir.path());
        match &self.etcd {
            None => Store::open(config),
            Some(etcd) => Store::open_etcd(etcd.config(), config).await,
        }
    }

    pub async fn open(&self) -> Store {
        self.try_open().await.unwrap()
    }
}

pub fn put(key: &str, value: &str) -> Txn {
    Txn::of(vec![Op::put(key, value.to_owned())])
}

pub fn watch(prefix: &str, from: Option<i64>) -> WatchRequest {
    let keys = KeyRange::Prefix(prefix.into());
    WatchRequest { keys, from, index: None, events_max: 100 }
}

pub async fn writes_are_there_after_a_restart_with_their_history(backing: &Backing) {
    let store = backing.open().await;
    assert_eq!(store.revision(), 1);
    for value in ["1", "2", "3"] {
        store.txn(put("/a/x", value)).await.unwrap();
    }
    store.txn(Txn::of(vec![Op::put("/a/y", "y"), Op::delete("/a/x")])).await.unwrap();
    assert_eq!(store.revision(), 5);
    let again = backing.try_open().await.unwrap_err();
    assert!(matches!(&again, OpenError::Locked { .. }), "{again}");
    assert!(again.to_string().contains(&std::process::id().to_string()), "{again}");
    store.close().await;

    let store = backing.open().await;
    assert_eq!(store.revision(), 5);
    let entry = store.get(b"/a/y").unwrap();
    assert_eq!((entry.create_revision, entry.version, &entry.value[..]), (5, 1, &b"y"[..]));
    let at = |revision| Range { revision: Some(revision), ..Range::all(KeyRange::Prefix(vec![])) };
    let then = store.range(&at(3)).unwrap();
    assert_eq!((then.count, &then.entries[0].value[..], then.revision), (1, &b"2"[..], 3));
    assert_eq!(store.range(&at(9)), Err(ReadError::Future { requested: 9, current: 5 }));
    let mut watcher = store.watch(watch("/a/", Some(3))).unwrap();
    let events = watcher.next().await.unwrap();
    let seen: Vec<_> = events.iter().map(|e| (e.revision, e.key().to_vec())).collect();
    let x = b"/a/x".to_vec();
    assert_eq!(seen, [(3, x.clone()), (4, x.clone()), (5, b"/a/y".to_vec()), (5, x)]);
    assert_eq!(events[0].before.as_ref().unwrap().value, "1");
    assert!(events[3].after.is_none());
    assert_eq!(watcher.progress(), 5);
    store.close().await;
    assert_eq!(watcher.next().await.unwrap_err(), WatchError::Closed);
}

pub async fn a_transaction_is_all_or_nothing(backing: &Backing) {
    let store = backing.open().await;
    let create = |value: &str| Txn {
        compare: vec![Compare::absent("k")],
        success: vec![Op::put("k", value.to_owned())],
        failure: vec![Op::Range(Range::all(KeyRange::Key("k".into())))],
    };
    assert!(store.txn(create("1")).await.unwrap().succeeded);
    let second = store.txn(create("2")).await.unwrap();
    assert!(!second.succeeded);
    assert_eq!((second.revision, store.revision()), (2, 2));
    let twice = Txn::of(vec![Op::put("z", "1"), Op::put("k", "3"), Op::put("z", "2")]);
    let refused = store.txn(twice).await.unwrap_err();
    assert_eq!(refused, WriteError::DuplicateKey { key: "z".into() });
    assert!(store.get(b"z").is_none());
    assert_eq!(store.get(b"k").unwrap().value, "1");
}

pub async fn a_slow_watcher_is_expired_and_the_backlog_is_not_held_against_it(backing: &Backing) {
    let store = backing.open().await;
    for at in 0..20 {
        store.txn(put(&format!("/a/{at}"), "")).await.unwrap();
    }
    let request = WatchRequest { events_max: 5, ..watch("/a/", Some(2)) };
    let mut watcher = store.watch(request).unwrap();
    assert_eq!(watcher.next().await.unwrap().len(), 20);
    for at in 0..6 {
        store.txn(put(&format!("/a/{at}"), "")).await.unwrap();
    }
    let metrics = || store.metrics();
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while metrics().watches_expired == 0 && std::time::Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    assert_eq!(watcher.next().await.unwrap_err(), WatchError::Expired { events_max: 5 });
    assert_eq!(metrics().watchers, 0);
}

pub async fn leases_take_their_keys_along(backing: &Backing) {
    let store = backing.open().await;
    let lease = store.lease_grant(0, 4).await.unwrap();
    let leased = |key: &str| Txn::of(vec![Op::Put { key: key.into(), value: "".into(), lease }]);
    store.txn(leased("a")).await.unwrap();
    store.txn(leased("b")).await.unwrap();
    store.txn(put("b", "free again")).await.unwrap();
    assert_eq!(store.lease_time_to_live(lease).await.unwrap().keys, ["a"]);
    let mut watcher = store.watch(watch("", None)).unwrap();
    let events = tokio::time::timeout(Duration::from_secs(30), watcher.next()).await;
    let events = events.expect("the lease should have ended").unwrap();
    assert_eq!(events.iter().map(|e| e.key()).collect::<Vec<_>>(), [b"a"]);
    assert!(store.get(b"b").is_some());
    let gone = store.txn(leased("c")).await.unwrap_err();
    assert_eq!(gone, WriteError::LeaseNotFound { id: lease });
    let kept = store.lease_grant(7, 3600).await.unwrap();
    store.close().await;
    let store = backing.open().await;
    assert_eq!(store.lease_time_to_live(kept).await.unwrap().granted_seconds, 3600);
    assert!(store.lease_keep_alive(lease).await.is_err());
}

pub async fn compaction_forgets_the_past_and_nothing_else(backing: &Backing) {
    let store = backing.open().await;
    for value in ["1", "2", "3"] {
        store.txn(put("k", value)).await.unwrap();
    }
    store.compact(3).await.unwrap();
    let again = store.compact(3).await.unwrap_err();
    let compacted = ReadError::Compacted { requested: 3, compact_revision: 3 };
    assert_eq!(again, WriteError::Read(compacted.clone()));
    store.close().await;
    let store = backing.open().await;
    assert_eq!(store.watch(watch("", Some(3))).unwrap_err(), compacted);
    assert!(store.watch(watch("", Some(4))).is_ok());
    let at = |revision| Range { revision: Some(revision), ..Range::all(KeyRange::Key("k".into())) };
    assert_eq!(store.range(&at(3)).unwrap().entries[0].value, "2");
    assert!(store.range(&at(2)).is_err());
}
