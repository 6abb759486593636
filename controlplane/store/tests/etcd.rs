//! The store on a real etcd cluster whose members die, hang and come back, and which others write to and compact.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod real_etcd;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use real_etcd::RealEtcd;
use store::seal::{ClusterSecret, Keyring, SECRET_BYTES};
use store::{
    Compare, Config, EtcdConfig, KeyRange, Op, OpResult, OpenError, Range, ReadError, Store,
    Target, Txn, WatchError, WatchRequest, WriteError,
};

const WITHIN: Duration = Duration::from_secs(30);
/// Measured: 1.7 to 2.2 s. etcd gives up what a dead leader was given after 6 s with the timing of these tests.
const SLOWEST: Duration = Duration::from_secs(15);

async fn open(etcd: EtcdConfig) -> Store {
    Store::open_etcd(etcd, Config::new("")).await.unwrap()
}

fn put(key: &str, value: &str) -> Txn {
    Txn::of(vec![Op::put(key, value.to_owned())])
}

fn watch(from: i64, events_max: usize) -> WatchRequest {
    let keys = KeyRange::Prefix("/w/".into());
    WatchRequest { keys, from: Some(from), index: None, events_max }
}

/// Waits until it is so.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Writes numbers to keys of its own until it is told to stop; what was acknowledged, and what may be there.
struct Writer {
    acknowledged: Vec<u64>,
    unknown: Vec<u64>,
    slowest: Duration,
}

async fn write(
    store: Store,
    at: usize,
    (stop, count): (Arc<AtomicBool>, Arc<AtomicU64>),
) -> Writer {
    let mut own = Writer { acknowledged: Vec::new(), unknown: Vec::new(), slowest: Duration::ZERO };
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let began = Instant::now();
        match store.txn(put(&format!("/w/{at}/{number:06}"), &number.to_string())).await {
            Ok(result) => {
                assert!(store.revision() >= result.revision, "own writes are read");
                own.acknowledged.push(number);
                count.fetch_add(1, Ordering::Relaxed);
            }
            Err(WriteError::Unknown { .. }) => own.unknown.push(number),
            Err(WriteError::Unavailable { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        own.slowest = own.slowest.max(began.elapsed());
    }
    own
}

/// Two masters write and watch while `faults` happens to three members; then everything is compared.
async fn under_load(faults: impl AsyncFnOnce(&mut RealEtcd, &AtomicU64)) -> Duration {
    let mut etcd = RealEtcd::start(3);
    let stores = [open(etcd.config()).await, open(etcd.config()).await];
    let from = stores[0].revision() + 1;
    let mut watchers = stores.each_ref().map(|store| store.watch(watch(from, 1 << 20)).unwrap());
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..8)
        .map(|at| tokio::spawn(write(stores[at % 2].clone(), at, (stop.clone(), count.clone()))))
        .collect();
    faults(&mut etcd, &count).await;
    stop.store(true, Ordering::Relaxed);
    let mut slowest = Duration::ZERO;
    let (mut acknowledged, mut possible) = (Vec::new(), Vec::new());
    for (at, writer) in writers.into_iter().enumerate() {
        let own = writer.await.unwrap();
        slowest = slowest.max(own.slowest);
        let key = |number: &u64| format!("/w/{at}/{number:06}");
        acknowledged.extend(own.acknowledged.iter().map(key));
        possible.extend(own.unknown.iter().map(key));
    }
    for (store, watcher) in stores.iter().zip(&mut watchers) {
        store.fresh().await.unwrap();
        let everything = Range::all(KeyRange::Prefix("/w/".into()));
        let there: Vec<_> = store.range(&everything).unwrap().entries;
        let keys: std::collections::BTreeSet<_> =
            there.iter().map(|entry| String::from_utf8(entry.key.to_vec()).unwrap()).collect();
        for key in &acknowledged {
            assert!(keys.contains(key), "acknowledged {key} is lost");
        }
        assert!(keys.len() <= acknowledged.len() + possible.len(), "nothing was written twice");
        // The watch: each key once, in the order of revisions, exactly what is there.
        let mut seen = Vec::new();
        while seen.len() < there.len() {
            let next = tokio::time::timeout(WITHIN, watcher.next()).await;
            seen.extend(next.expect("an event is missing").unwrap());
        }
        assert!(seen.windows(2).all(|two| two[0].revision < two[1].revision), "in order");
        let mut by_revision = there.clone();
        by_revision.sort_by_key(|entry| entry.mod_revision);
        let seen: Vec<_> = seen.iter().map(|event| event.after.clone().unwrap()).collect();
        assert_eq!(seen, by_revision);
    }
    assert!(!acknowledged.is_empty());
    slowest
}

async fn more(count: &AtomicU64, by: u64) {
    let wanted = count.load(Ordering::Relaxed) + by;
    until("writes go on", || count.load(Ordering::Relaxed) >= wanted).await;
}

#[tokio::test]
async fn no_acknowledged_write_is_lost_when_members_are_killed() {
    if !RealEtcd::is_here() {
        return;
    }
    let slowest = under_load(async |etcd, count| {
        for member in [0, 1, 2, 0] {
            more(count, 200).await;
            etcd.kill_member(member);
            more(count, 200).await;
            etcd.start_member(member);
            more(count, 100).await;
        }
    })
    .await;
    assert!(slowest < SLOWEST, "{slowest:?}");
}

#[tokio::test]
async fn a_member_that_hangs_is_left() {
    if !RealEtcd::is_here() {
        return;
    }
    let slowest = under_load(async |etcd, count| {
        for member in [0, 1, 2] {
            more(count, 200).await;
            etcd.signal_member(member, "-STOP");
            more(count, 200).await;
            etcd.signal_member(member, "-CONT");
            more(count, 100).await;
        }
    })
    .await;
    assert!(slowest < SLOWEST, "{slowest:?}");
}

#[tokio::test]
async fn without_etcd_writes_say_so_and_reads_and_watches_go_on() {
    if !RealEtcd::is_here() {
        return;
    }
    let mut etcd = RealEtcd::start(1);
    let store = open(etcd.config()).await;
    store.txn(put("/w/a", "1")).await.unwrap();
    let mut watcher = store.watch(watch(store.revision() + 1, 10)).unwrap();
    etcd.kill_member(0);
    let refused = store.txn(put("/w/a", "2")).await.unwrap_err();
    assert!(matches!(refused, WriteError::Unavailable { .. } | WriteError::Unknown { .. }));
    let refused = store.txn(put("/w/a", "3")).await.unwrap_err();
    assert!(matches!(&refused, WriteError::Unavailable { .. }), "{refused}");
    let refused = store.fresh().await.unwrap_err();
    assert!(matches!(&refused, WriteError::Unavailable { .. }), "{refused}");
    assert_eq!(store.get(b"/w/a").unwrap().value, "1");
    etcd.start_member(0);
    let deadline = Instant::now() + WITHIN;
    while store.txn(put("/w/a", "4")).await.is_err() {
        assert!(Instant::now() < deadline, "etcd is there again");
    }
    let events = tokio::time::timeout(WITHIN, watcher.next()).await.unwrap().unwrap();
    assert_eq!(events[0].after.as_ref().unwrap().value, "4");
    store.close().await;
}

#[tokio::test]
async fn a_watch_whose_past_is_compacted_is_told_and_never_skips() {
    if !RealEtcd::is_here() {
        return;
    }
    let mut etcd = RealEtcd::start(3);
    // One master has a single member, which dies; the other goes on and compacts.
    let mut alone = etcd.config();
    alone.endpoints.truncate(1);
    let store = open(alone).await;
    let mut others = etcd.config();
    others.endpoints.remove(0);
    let other = open(others).await;
    store.txn(put("/w/a", "1")).await.unwrap();
    let mut watcher = store.watch(watch(store.revision() + 1, 10)).unwrap();
    let before = store.revision();
    etcd.kill_member(0);
    let deadline = Instant::now() + WITHIN;
    while other.txn(put("/w/a", "2")).await.is_err() {
        assert!(Instant::now() < deadline, "two of three are enough");
    }
    other.txn(put("/w/b", "3")).await.unwrap();
    other.compact(other.revision()).await.unwrap();
    assert_eq!(store.revision(), before);
    etcd.start_member(0);
    let ended = tokio::time::timeout(WITHIN, watcher.next()).await.unwrap().unwrap_err();
    let compact_revision = other.revision();
    assert_eq!(ended, WatchError::Compacted { compact_revision });
    assert_eq!(watcher.progress(), before);
    assert_eq!(store.get(b"/w/a").unwrap().value, "2");
    let from = store.watch(watch(before + 1, 10)).unwrap_err();
    assert_eq!(from, ReadError::Compacted { requested: before + 1, compact_revision });
    let mut again = store.watch(watch(compact_revision + 1, 10)).unwrap();
    other.txn(put("/w/c", "4")).await.unwrap();
    assert_eq!(again.next().await.unwrap()[0].key(), b"/w/c");
}

#[tokio::test]
async fn what_one_master_acknowledged_another_reads_after_asking() {
    if !RealEtcd::is_here() {
        return;
    }
    let etcd = RealEtcd::start(1);
    let (one, two) = (open(etcd.config()).await, open(etcd.config()).await);
    for number in 0..200 {
        let written = one.txn(put("/w/a", &number.to_string())).await.unwrap();
        let asked: Vec<_> = (0..20).map(|_| two.fresh()).collect();
        for asked in asked {
            asked.await.unwrap();
        }
        assert!(two.revision() >= written.revision);
        assert_eq!(two.get(b"/w/a").unwrap().value, number.to_string());
    }
    let lease = one.lease_grant(0, 60).await.unwrap();
    let leased = Op::Put { key: "/w/l".into(), value: "".into(), lease };
    one.txn(Txn::of(vec![leased])).await.unwrap();
    assert_eq!(two.lease_time_to_live(lease).await.unwrap().keys, ["/w/l"]);
    assert_eq!(two.leases().await.unwrap(), [lease]);
    let gone = two.lease_revoke(lease).await.unwrap();
    assert!(two.revision() >= gone && two.get(b"/w/l").is_none());
}

#[tokio::test]
async fn the_offset_is_added_and_hidden() {
    if !RealEtcd::is_here() {
        return;
    }
    let etcd = RealEtcd::start(1);
    etcd.put("/flotilla/offset", "5000");
    let store = open(etcd.config()).await;
    assert_eq!(store.revision(), 5002);
    let made = store.txn(put("/w/a", "1")).await.unwrap();
    assert_eq!(made.revision, 5003);
    let change =
        |revision| Txn { compare: vec![Compare::unchanged("/w/a", revision)], ..put("/w/a", "2") };
    assert!(!store.txn(change(3)).await.unwrap().succeeded);
    assert!(store.txn(change(5003)).await.unwrap().succeeded);
    let entry = store.get(b"/w/a").unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision, entry.version), (5003, 5004, 2));
    let at = Range { revision: Some(5003), ..Range::all(KeyRange::Prefix(Vec::new())) };
    let then = store.range(&at).unwrap();
    assert_eq!((then.count, &then.entries[0].value[..]), (1, &b"1"[..]));
    let gone = store.watch(watch(4000, 10)).unwrap_err();
    assert!(matches!(gone, ReadError::Compacted { requested: 4000, .. }), "{gone}");
    // Nobody of the store's users sees, overwrites or deletes the offset.
    let refused = store.txn(put("/flotilla/offset", "1")).await.unwrap_err();
    assert!(matches!(&refused, WriteError::Refused { .. }), "{refused}");
    let all = || KeyRange::Prefix(Vec::new());
    let deleted = Txn::of(vec![Op::Range(Range::all(all())), Op::Delete(all())]);
    let result = store.txn(deleted).await.unwrap();
    assert_eq!(result.revision, 5005);
    drop(store);
    let store = open(etcd.config()).await;
    assert_eq!((store.revision(), store.metrics().keys), (5005, 0));
}

#[tokio::test]
async fn masters_compact_etcd_one_at_a_time() {
    if !RealEtcd::is_here() {
        return;
    }
    let etcd = RealEtcd::start(1);
    let config = EtcdConfig { compaction_period: Duration::from_millis(300), ..etcd.config() };
    let (one, two) = (open(config.clone()).await, open(config).await);
    let first = one.txn(put("/w/a", "1")).await.unwrap().revision;
    let (deadline, mut number) = (Instant::now() + WITHIN, 0);
    let compacted = loop {
        number += 1;
        two.txn(put("/w/a", &number.to_string())).await.unwrap();
        let later = open(EtcdConfig { ..etcd.config() }).await;
        // One that was opened while etcd was compacted begins with the present.
        if later.compact_revision() > first && later.compact_revision() < later.revision() {
            break later.compact_revision();
        }
        assert!(Instant::now() < deadline, "etcd is compacted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(compacted < two.revision());
    let rounds = two.get(b"/flotilla/compaction").unwrap().version;
    // Idle masters write nothing: one more round may have been under way.
    tokio::time::sleep(Duration::from_millis(900)).await;
    let settled = two.get(b"/flotilla/compaction").unwrap().version;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(two.get(b"/flotilla/compaction").unwrap().version, settled);
    assert!(settled <= rounds + 2, "{rounds} rounds, then {settled}");
}

#[tokio::test]
async fn what_cannot_be_opened_says_why() {
    if !RealEtcd::is_here() {
        return;
    }
    let nobody = EtcdConfig {
        open_timeout: Duration::from_millis(1200),
        ..EtcdConfig::new(["http://127.0.0.1:1"])
    };
    let error = Store::open_etcd(nobody, Config::new("")).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("http://127.0.0.1:1") && text.contains("refused"), "{text}");
    let etcd = RealEtcd::start(1);
    etcd.put("/flotilla/offset", "many");
    let error = Store::open_etcd(etcd.config(), Config::new("")).await.unwrap_err();
    assert!(error.to_string().contains("\"many\""), "{error}");
    etcd.put("/flotilla/offset", "5");
    etcd.put("/flotilla/moving", "a move is under way");
    let error = Store::open_etcd(etcd.config(), Config::new("")).await.unwrap_err();
    assert!(
        matches!(&error, OpenError::Datastore { reason, .. } if reason.contains("move")),
        "{error}"
    );
}

#[tokio::test]
async fn what_etcd_refuses_is_said_in_the_stores_words() {
    if !RealEtcd::is_here() {
        return;
    }
    let etcd = RealEtcd::start(1);
    let store = open(etcd.config()).await;
    let large = store.txn(put("/w/a", &"x".repeat(2 << 20))).await.unwrap_err();
    assert!(matches!(large, WriteError::TooLarge { bytes, .. } if bytes > 2 << 20), "{large}");
    let lease = 99;
    let leased = Op::Put { key: "/w/l".into(), value: "".into(), lease };
    let refused = store.txn(Txn::of(vec![leased])).await.unwrap_err();
    assert_eq!(refused, WriteError::LeaseNotFound { id: 99 });
    let absent = Op::Update { key: "/w/u".into(), value: None, lease: Some(0) };
    let refused = store.txn(Txn::of(vec![absent])).await.unwrap_err();
    assert_eq!(refused, WriteError::KeyNotFound { key: "/w/u".into() });
    let at = Range { revision: Some(50), ..Range::all(KeyRange::Key("/w/a".into())) };
    let refused = store.txn(Txn::of(vec![Op::put("/w/b", ""), Op::Range(at)])).await.unwrap_err();
    let future = ReadError::Future { requested: 50, current: store.revision() };
    assert_eq!(refused, WriteError::Read(future));
    // Many at once, and a page that is larger than one answer should be.
    let value = "y".repeat(1 << 20);
    let writes = (0..40).map(|at| {
        let (store, txn) = (store.clone(), put(&format!("/w/big/{at:02}"), &value));
        tokio::spawn(async move { store.txn(txn).await })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap().unwrap();
    }
    let again = open(etcd.config()).await;
    assert_eq!((again.metrics().keys, again.revision()), (40, store.revision()));
    let compare = Compare {
        keys: KeyRange::Key("/w/big/00".into()),
        target: Target::Value(value.into()),
        relation: store::Relation::Equal,
    };
    let same =
        Txn { compare: vec![compare], success: vec![Op::delete("/w/big/00")], failure: vec![] };
    assert!(again.txn(same).await.unwrap().succeeded);
}

#[tokio::test]
async fn sealed_values_are_plain_at_every_master_and_nowhere_else() {
    if !RealEtcd::is_here() {
        return;
    }
    let etcd = RealEtcd::start(1);
    let ring = || {
        let secret = ClusterSecret::from_bytes([7; SECRET_BYTES]);
        Arc::new(Keyring::new(secret, "/flotilla/secrets/encryption-", vec!["/s/".into()]))
    };
    let open = async |ring: &Arc<Keyring>| {
        let config = Config { seal: Some(ring.clone()), ..Config::new("") };
        Store::open_etcd(etcd.config(), config).await
    };
    let rings = [ring(), ring()];
    let (one, two) = (open(&rings[0]).await.unwrap(), open(&rings[1]).await.unwrap());
    let early = one.txn(put("/s/a", "plain")).await.unwrap_err();
    assert!(matches!(early, WriteError::Seal { .. }), "{early}");
    for (key, number) in [("one", 1), ("two", 2)] {
        // A new key is made at one master, and the other seals with it as soon as it has been told.
        let key = format!("/flotilla/secrets/encryption-{key}");
        let value = rings[0].make_key(key.as_bytes()).unwrap();
        one.txn(Txn::of(vec![Op::put(key.as_str(), value)])).await.unwrap();
        let sealed = format!("/s/{number}");
        let made = one.txn(put(&sealed, "correct horse")).await.unwrap();
        two.fresh().await.unwrap();
        assert_eq!(two.get(sealed.as_bytes()).unwrap().value, "correct horse");
        let read = Txn {
            compare: vec![Compare::unchanged(sealed.as_str(), made.revision)],
            success: vec![
                Op::Range(Range::all(KeyRange::Key(sealed.clone().into()))),
                Op::put(sealed.as_str(), "battery staple"),
            ],
            failure: Vec::new(),
        };
        let result = two.txn(read).await.unwrap();
        let [OpResult::Range(found), OpResult::Put { previous: Some(previous), entry }] =
            &result.responses[..]
        else {
            panic!("{result:?}")
        };
        assert_eq!((&found.entries[0], &previous.value[..]), (previous, &b"correct horse"[..]));
        assert_eq!(entry.value, "battery staple");
        let stored = etcd.get(&sealed);
        assert!(stored.starts_with(b"\0FSV") && !stored.windows(6).any(|part| part == b"staple"));
    }
    let compare = |keys| Compare {
        keys,
        target: Target::Value("battery staple".into()),
        relation: store::Relation::Equal,
    };
    for keys in [KeyRange::Key("/s/1".into()), KeyRange::Prefix(Vec::new())] {
        let txn = Txn { compare: vec![compare(keys)], ..put("/t", "") };
        let refused = one.txn(txn).await.unwrap_err();
        assert!(matches!(refused, WriteError::SealedCompare { .. }), "{refused}");
    }
    // Without the cluster secret nobody opens it.
    let secret = ClusterSecret::from_bytes([8; SECRET_BYTES]);
    let prefix = "/flotilla/secrets/encryption-";
    let stranger = Arc::new(Keyring::new(secret, prefix, vec!["/s/".into()]));
    let error = open(&stranger).await.unwrap_err();
    assert!(matches!(&error, OpenError::Sealed { key, .. } if key == "/s/1"), "{error}");
}
