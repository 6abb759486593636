//! A state that moves from a log of our own into a real etcd and back: everything is there, no revision goes down, and nobody opens what
//! was left.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod real_etcd;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use real_etcd::RealEtcd;
use store::migrate::{MigrateError, Moved, Occupied, Step, moved_earlier, to_embedded, to_etcd};
use store::{
    Config, EtcdConfig, KeyRange, Op, OpenError, Range, ReadError, Store, Txn, WatchRequest,
};

type Contents = BTreeMap<Vec<u8>, (Vec<u8>, i64, i64)>;

/// Every key with its value, its revision and its lease.
fn contents(store: &Store) -> Contents {
    let found = store.range(&Range::all(KeyRange::Prefix(Vec::new()))).unwrap();
    let entry = |entry: &std::sync::Arc<store::Entry>| {
        (entry.key.to_vec(), (entry.value.to_vec(), entry.mod_revision, entry.lease))
    };
    found.entries.iter().map(entry).collect()
}

fn watch(store: &Store, from: i64) -> Result<store::Watcher, ReadError> {
    let keys = KeyRange::Prefix(b"/registry/".to_vec());
    store.watch(WatchRequest { keys, from: Some(from), index: None, events_max: 100 })
}

async fn fill(dir: &Path) -> (Contents, i64, i64) {
    let store = Store::open(Config::new(dir)).unwrap();
    let lease = store.lease_grant(0, 3600).await.unwrap();
    let dying = store.lease_grant(0, 10).await.unwrap();
    for number in 0..300 {
        let value = vec![b'x'; (number % 7) * 3000];
        let key = format!("/registry/things/{:03}", number % 250);
        store.txn(Txn::of(vec![Op::put(key, value)])).await.unwrap();
    }
    let leased = |key: &str, lease| Op::Put { key: key.into(), value: "event".into(), lease };
    let big = Op::put("/registry/big", vec![b'b'; 1 << 20]);
    store.txn(Txn::of(vec![leased("/registry/events/e", lease), big])).await.unwrap();
    for key in ["encryption-0001", "encryption-0002", "ca"] {
        let put = Op::put(format!("/flotilla/secrets/{key}"), "sealed");
        store.txn(Txn::of(vec![put])).await.unwrap();
    }
    let kept = contents(&store);
    store.txn(Txn::of(vec![leased("/flotilla/masters/m", dying)])).await.unwrap();
    let revision = store.revision();
    store.close().await;
    (kept, revision, lease)
}

fn same_values(was: &Contents, is: &Contents) {
    let stripped = |contents: &Contents| -> BTreeMap<_, _> {
        contents
            .iter()
            .map(|(key, (value, _, lease))| (key.clone(), (value.clone(), *lease)))
            .collect()
    };
    assert!(stripped(was) == stripped(is), "{} keys, now {}", was.len(), is.len());
}

async fn moved_to_etcd(
    dir: &Path,
    etcd: &EtcdConfig,
    occupied: Occupied,
) -> Result<Moved, MigrateError> {
    let steps = Mutex::new(Vec::new());
    let moved =
        Box::pin(to_etcd(dir, etcd, occupied, &|step| steps.lock().unwrap().push(step))).await;
    if let Ok(moved) = &moved {
        let (keys, steps) = (moved.keys, steps.into_inner().unwrap());
        assert!(steps.contains(&Step::Writing { keys, of: keys }), "{steps:?}");
    }
    moved
}

#[tokio::test]
async fn a_state_moves_into_etcd_and_back() {
    if !RealEtcd::is_here() {
        return;
    }
    let etcd = RealEtcd::start(1);
    let (dir, back) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (was, revision, lease) = fill(dir.path()).await;
    let moved = moved_to_etcd(dir.path(), &etcd.config(), Occupied::Refuse).await.unwrap();
    assert_eq!((moved.keys, moved.leases, moved.from_revision), (255, 1, revision));

    let store = Store::open_etcd(etcd.config(), Config::new("")).await.unwrap();
    let there = contents(&store);
    same_values(&was, &there);
    assert_eq!(store.revision(), moved.revision);
    let lowest = there.values().map(|(_, revision, _)| *revision).min().unwrap();
    assert!(lowest > revision, "each key's revision is above all that was told: {lowest}");
    let newest = there[&b"/flotilla/secrets/encryption-0002"[..]].1;
    let later = there.values().filter(|(_, revision, _)| *revision >= newest).count();
    assert_eq!(later, 1, "the masters seal everything with the newest key");
    assert_eq!(store.lease_time_to_live(lease).await.unwrap().keys, ["/registry/events/e"]);
    for from in [2, revision, revision + 1] {
        let gone = watch(&store, from).unwrap_err();
        assert!(matches!(gone, ReadError::Compacted { .. }), "{from}: {gone}");
    }
    assert!(watch(&store, store.revision() + 1).is_ok());
    let changed = store.txn(Txn::of(vec![Op::put("/registry/things/000", "new")])).await.unwrap();
    assert!(changed.revision > moved.revision);
    let there = contents(&store);
    store.close().await;

    let target = back.path().join("store");
    assert_eq!(moved_earlier(&etcd.config(), &target).await.unwrap(), None);
    let returned = Box::pin(to_embedded(&etcd.config(), &target, &|_| ())).await.unwrap();
    assert_eq!(
        (returned.keys, returned.leases, returned.from_revision),
        (255, 1, changed.revision)
    );
    let store = Store::open(Config::new(&target)).unwrap();
    // A log of our own keeps every revision as it was.
    assert_eq!(contents(&store), there);
    assert!(store.revision() > changed.revision && store.revision() == returned.revision);
    assert_eq!(store.lease_time_to_live(lease).await.unwrap().granted_seconds, 3600);
    assert!(matches!(watch(&store, revision), Err(ReadError::Compacted { .. })));
    store.close().await;

    // Whoever was interrupted then finds what was moved; another log is not taken for it.
    assert_eq!(moved_earlier(&etcd.config(), &target).await.unwrap().unwrap(), returned);
    let other = moved_earlier(&etcd.config(), &dir.path().join("none")).await.unwrap_err();
    assert!(other.to_string().contains("was moved into a master's own log"), "{other}");

    let left = Store::open_etcd(etcd.config(), Config::new("")).await.unwrap_err();
    let says = |reason: &str| reason.contains("was moved into a master's own log");
    assert!(matches!(&left, OpenError::Datastore { reason, .. } if says(reason)), "{left}");
    // And out again: what is there was ours.
    let refused = moved_to_etcd(&target, &etcd.config(), Occupied::Refuse).await.unwrap_err();
    assert!(matches!(refused, MigrateError::Occupied { .. }), "{refused}");
    let again = moved_to_etcd(&target, &etcd.config(), Occupied::Replace).await.unwrap();
    assert_eq!(again.sha256, returned.sha256);
    assert!(again.revision > returned.revision);
    let store = Store::open_etcd(etcd.config(), Config::new("")).await.unwrap();
    same_values(&there, &contents(&store));
    assert!(contents(&store).values().all(|(_, now, _)| *now > returned.revision));
}

#[tokio::test]
async fn a_target_that_is_somebodys_is_refused() {
    if !RealEtcd::is_here() {
        return;
    }
    let etcd = RealEtcd::start(1);
    let dir = tempfile::tempdir().unwrap();
    let empty = moved_to_etcd(&dir.path().join("empty"), &etcd.config(), Occupied::Refuse).await;
    assert!(matches!(empty, Err(MigrateError::Empty { .. })), "{empty:?}");
    fill(dir.path()).await;
    let running = Store::open(Config::new(dir.path())).unwrap();
    let locked = moved_to_etcd(dir.path(), &etcd.config(), Occupied::Refuse).await.unwrap_err();
    assert!(matches!(locked, MigrateError::Open(OpenError::Locked { .. })), "{locked}");
    running.close().await;
    etcd.put("/somebody/else", "1");
    for occupied in [Occupied::Refuse, Occupied::Replace] {
        let foreign = moved_to_etcd(dir.path(), &etcd.config(), occupied).await.unwrap_err();
        assert!(matches!(foreign, MigrateError::Foreign { keys: 1, .. }), "{foreign}");
    }
    let other = RealEtcd::start(1);
    let store = Store::open_etcd(other.config(), Config::new("")).await.unwrap();
    store.txn(Txn::of(vec![Op::put("/flotilla/masters/m1", "")])).await.unwrap();
    for occupied in [Occupied::Refuse, Occupied::Replace] {
        let running = moved_to_etcd(dir.path(), &other.config(), occupied).await.unwrap_err();
        assert!(
            matches!(&running, MigrateError::Running { masters, .. } if masters == "m1"),
            "{running}"
        );
    }
    let target = dir.path().join("back");
    let running = Box::pin(to_embedded(&other.config(), &target, &|_| ())).await.unwrap_err();
    assert!(matches!(&running, MigrateError::Running { .. }), "{running}");
    let nobody = EtcdConfig {
        open_timeout: Duration::from_millis(500),
        ..EtcdConfig::new(["http://127.0.0.1:1"])
    };
    let away = moved_to_etcd(dir.path(), &nobody, Occupied::Refuse).await.unwrap_err();
    assert!(away.to_string().contains("refused"), "{away}");
}
