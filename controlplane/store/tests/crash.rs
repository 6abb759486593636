//! What the store promises of a disk that loses, tears, fails and rots: nothing acknowledged is lost, nothing is made up, and what can't
//! be kept is refused by name.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod pure;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pure::{Change, Pure};
use store::{
    Config, FaultyDisk, KeyRange, LogSizes, Op, OpenError, Range, Store, Txn, WatchRequest,
    WriteError,
};

fn open(disk: &FaultyDisk) -> Result<Store, OpenError> {
    let log_sizes = LogSizes { segment_bytes: 2048, checkpoint_bytes_min: 6000 };
    let mut config = Config { log_sizes, ..Config::new("") };
    config.history_bytes_max = 6 << 10;
    Store::open_on(Arc::new(disk.clone()), config)
}

/// Numbers that a seed determines.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn random_txn(random: &mut Random) -> Txn {
    let mut ops = Vec::new();
    for at in 0..=random.below(3) {
        let key = format!("/k{}/{at}", random.below(4));
        let value = vec![b'v'; usize::try_from(random.below(700)).unwrap()];
        let deletes = random.below(4) == 0;
        ops.push(if deletes { Op::delete(key) } else { Op::put(key, value) });
    }
    let mut keys = std::collections::BTreeSet::new();
    ops.retain(|op| match op {
        Op::Put { key, .. } | Op::Delete(KeyRange::Key(key)) => keys.insert(key.clone()),
        _ => false,
    });
    Txn::of(ops)
}

/// Keys with the lengths of their values: the bytes are all the same.
fn contents(store: &Store) -> BTreeMap<String, usize> {
    let all = store.range(&Range::all(KeyRange::Prefix(Vec::new()))).unwrap();
    all.entries.iter().map(|entry| (text(&entry.key), entry.value.len())).collect()
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

async fn check(store: &Store, pure: &Pure, acknowledged: i64) {
    let revision = store.revision();
    assert!(revision >= acknowledged, "at {revision}, but {acknowledged} was acknowledged");
    assert!(revision <= pure.revision());
    let expected = pure.at(revision);
    let expected = expected.iter().map(|(key, value)| (text(key), value.len())).collect();
    assert_eq!(contents(store), expected);
    // The whole window is there, and exact.
    let from = store.compact_revision() + 1;
    let keys = KeyRange::Prefix(Vec::new());
    let mut expected = pure.changes(from, &keys, None);
    expected.retain(|change| change.revision <= revision);
    if expected.is_empty() {
        return;
    }
    let request = WatchRequest { keys, from: Some(from), index: None, events_max: 1 };
    let events = store.watch(request).unwrap().next().await.unwrap();
    let seen: Vec<_> = events.iter().map(|event| Change::of(event)).collect();
    assert!(seen == expected, "watch from {from} at {revision}");
}

/// Runs a load, with a few writes in flight at once, and keeps an image at every sync point.
async fn load(disk: &FaultyDisk, pure: &mut Pure, random: &mut Random) {
    let store = open(disk).unwrap();
    for _ in 0..25 {
        let txns: Vec<_> = (0..=random.below(3)).map(|_| random_txn(random)).collect();
        // A runtime of one thread polls them first in the order of their spawning.
        let spawn = |txn: &Txn| {
            let (store, txn) = (store.clone(), txn.clone());
            tokio::spawn(async move { store.txn(txn).await })
        };
        let waiting: Vec<_> = txns.iter().map(spawn).collect();
        for (txn, write) in txns.iter().zip(waiting) {
            let expected = pure.txn(txn).unwrap();
            assert_eq!(write.await.unwrap().unwrap().revision, expected.revision);
            disk.mark(expected.revision.cast_unsigned());
        }
    }
    store.close().await;
}

#[tokio::test]
async fn no_power_cut_at_any_sync_point_loses_or_invents_anything() {
    let mut images_seen = 0;
    for seed in 0..6 {
        let mut random = Random(seed);
        let (disk, mut pure) = (FaultyDisk::new(), Pure::new());
        disk.record_images();
        load(&disk, &mut pure, &mut random).await;
        for image in disk.take_images() {
            images_seen += 1;
            for lost_of_four in [0, 2, 4] {
                let cut = image.power_cut(&mut || random.below(4) < lost_of_four);
                let store = open(&cut).unwrap();
                check(&store, &pure, image.mark.cast_signed()).await;
                // It goes on from there, and what it then acknowledges stays as well.
                let revision = store.revision();
                let written = store.txn(Txn::of(vec![Op::put("/after", "1")])).await.unwrap();
                assert_eq!(written.revision, revision + 1);
                let expected = contents(&store);
                store.close().await;
                let store = open(&cut).unwrap();
                assert_eq!((store.revision(), contents(&store)), (revision + 1, expected));
                store.close().await;
            }
        }
    }
    assert!(images_seen > 250, "{images_seen} images");
}

/// Writers that don't wait for each other, on a disk whose syncs take their time: several batches are on their way at once. Returns what
/// was done at which revision.
async fn crowd(disk: &FaultyDisk, seed: u64) -> BTreeMap<i64, Txn> {
    let store = open(disk).unwrap();
    disk.set_sync_takes(Duration::from_micros(400));
    let highest = Arc::new(std::sync::Mutex::new(0));
    let writer = |at: u64| {
        let (store, disk, highest) = (store.clone(), disk.clone(), highest.clone());
        tokio::spawn(async move {
            let (mut random, mut done) = (Random(seed * 1000 + at), Vec::new());
            for _ in 0..6 {
                let txn = random_txn(&mut random);
                let result = store.txn(txn.clone()).await.unwrap();
                let mut highest = highest.lock().unwrap();
                *highest = i64::max(*highest, result.revision);
                disk.mark(highest.cast_unsigned());
                drop(highest);
                done.push((result, txn));
            }
            done
        })
    };
    let writers: Vec<_> = (0..24).map(writer).collect();
    let mut all = BTreeMap::new();
    for writer in writers {
        for (result, txn) in writer.await.unwrap() {
            let changed = result.responses.iter().any(|response| match response {
                store::OpResult::Delete { deleted } => !deleted.is_empty(),
                _ => true,
            });
            if changed {
                assert!(all.insert(result.revision, txn).is_none(), "a revision used twice");
            }
        }
    }
    store.close().await;
    all
}

#[tokio::test]
async fn no_power_cut_with_several_flushes_in_flight_loses_or_invents_anything() {
    let (mut images_seen, mut in_flight_at_once) = (0, 0);
    for seed in 0..4 {
        let (disk, mut random) = (FaultyDisk::new(), Random(seed));
        disk.record_images();
        let done = crowd(&disk, seed).await;
        let mut pure = Pure::new();
        for (revision, txn) in done {
            assert_eq!(pure.txn(&txn).unwrap().revision, revision);
        }
        for image in disk.take_images() {
            images_seen += 1;
            in_flight_at_once = in_flight_at_once.max(image.unsynced_writes());
            for lost_of_four in [0, 1, 2, 3, 4] {
                let cut = image.power_cut(&mut || random.below(4) < lost_of_four);
                let store = open(&cut).unwrap();
                check(&store, &pure, image.mark.cast_signed()).await;
                let revision = store.revision();
                store.txn(Txn::of(vec![Op::put("/after", "1")])).await.unwrap();
                let expected = contents(&store);
                store.close().await;
                let store = open(&cut).unwrap();
                assert_eq!((store.revision(), contents(&store)), (revision + 1, expected));
                store.close().await;
            }
        }
    }
    assert!(images_seen > 60, "{images_seen} images");
    assert!(in_flight_at_once > 1, "never more than one write was on its way");
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_takes_them_again_when_there_is_room() {
    let disk = FaultyDisk::new();
    let store = open(&disk).unwrap();
    disk.set_sync_takes(Duration::from_micros(200));
    let lease = store.lease_grant(0, 3600).await.unwrap();
    let leased = Op::Put { key: "/leased".into(), value: "1".into(), lease };
    store.txn(Txn::of(vec![leased])).await.unwrap();
    let mut expected = contents(&store);
    for round in 0..6 {
        disk.set_full(true);
        let write = |at: u64| {
            let store = store.clone();
            let (key, value) = (format!("/k/{round}/{at}"), vec![b'x'; 400]);
            tokio::spawn(async move {
                (key.clone(), store.txn(Txn::of(vec![Op::put(key, value)])).await)
            })
        };
        let mut refused = 0;
        let writes: Vec<_> = (0..30).map(write).collect();
        for write in writes {
            match write.await.unwrap() {
                (key, Ok(_)) => drop(expected.insert(key, 400)),
                (_, Err(error)) => {
                    assert!(matches!(error, WriteError::Refused { .. }), "{error}");
                    assert!(error.to_string().contains("log-"), "{error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0, "segments of 2 KiB");
        // Reads go on, of what was acknowledged and nothing else.
        assert_eq!(contents(&store), expected);
        let revision = store.revision();
        disk.set_full(false);
        let written =
            store.txn(Txn::of(vec![Op::put(format!("/room/{round}"), "1")])).await.unwrap();
        assert_eq!(written.revision, revision + 1);
        expected.insert(format!("/room/{round}"), 1);
    }
    assert_eq!(store.lease_time_to_live(lease).await.unwrap().keys, ["/leased"]);
    store.close().await;
    let store = open(&disk).unwrap();
    assert_eq!(contents(&store), expected);
}

#[tokio::test]
async fn running_out_of_descriptors_refuses_writes_only_while_it_lasts() {
    let disk = FaultyDisk::new();
    let store = open(&disk).unwrap();
    let put = |at| Txn::of(vec![Op::put(format!("/k/{at}"), vec![b'x'; 400])]);
    store.txn(put(0)).await.unwrap();
    disk.set_no_descriptors(true);
    let mut refused = 0;
    for at in 1..10 {
        refused += u32::from(store.txn(put(at)).await.is_err());
    }
    assert!(refused > 0 && !store.is_full(), "segments of 2 KiB");
    disk.set_no_descriptors(false);
    store.txn(put(10)).await.unwrap();
    let expected = contents(&store);
    store.close().await;
    assert_eq!(contents(&open(&disk).unwrap()), expected);
}

#[tokio::test]
async fn batches_that_fill_a_segment_each_lead_to_checkpoints() {
    let disk = FaultyDisk::new();
    let store = open(&disk).unwrap();
    for _ in 0..20 {
        store.txn(Txn::of(vec![Op::put("/k", vec![b'x'; 60_000])])).await.unwrap();
    }
    store.close().await;
    let names = store::Disk::names(&disk).unwrap();
    assert!(names.iter().any(|name| name.starts_with("checkpoint-")), "{names:?}");
}

#[tokio::test]
async fn a_second_power_cut_during_recovery_changes_nothing() {
    let mut random = Random(99);
    let (disk, mut pure) = (FaultyDisk::new(), Pure::new());
    disk.record_images();
    load(&disk, &mut pure, &mut random).await;
    for image in disk.take_images() {
        let cut = image.power_cut(&mut || random.below(2) == 0);
        cut.record_images();
        open(&cut).unwrap().close().await;
        for again in cut.take_images() {
            let cut = again.power_cut(&mut || random.below(2) == 0);
            let store = open(&cut).unwrap();
            check(&store, &pure, image.mark.cast_signed()).await;
            store.close().await;
        }
    }
}

#[tokio::test]
async fn a_failed_disk_refuses_writes_with_the_reason_and_reads_go_on() {
    for operations in 0..30 {
        let disk = FaultyDisk::new();
        let store = open(&disk).unwrap();
        disk.fail_after(operations);
        let mut acknowledged = BTreeMap::new();
        let mut refused = None;
        for at in 0..40 {
            let (key, value) = (format!("/k/{at}"), vec![b'x'; 300 + at]);
            match store.txn(Txn::of(vec![Op::put(key.clone(), value.clone())])).await {
                Ok(_) => {
                    assert_eq!(refused, None, "a write after a failed one");
                    acknowledged.insert(key, value.len());
                }
                Err(error) => refused = Some(error),
            }
        }
        let refused = refused.expect("the disk failed");
        assert!(matches!(refused, WriteError::Refused { .. }), "{refused}");
        assert!(refused.to_string().contains("injected fault"), "{refused}");
        assert_eq!(contents(&store), acknowledged);
        store.close().await;
        disk.fail_after(u64::MAX);
        let store = open(&disk).unwrap();
        let recovered = contents(&store);
        assert!(acknowledged.iter().all(|(key, value)| recovered.get(key) == Some(value)));
    }
}

#[tokio::test]
async fn rot_in_what_was_durable_is_refused_by_name() {
    let disk = FaultyDisk::new();
    let store = open(&disk).unwrap();
    let mut last_begins = 0;
    for at in 0..5 {
        last_begins = usize::try_from(store.metrics().written.bytes).unwrap();
        store.txn(Txn::of(vec![Op::put(format!("/k/{at}"), vec![b'x'; 21])])).await.unwrap();
    }
    let whole = contents(&store);
    store.close().await;
    let name = "log-0000000000000001";
    let (mut damaged, mut ignored) = (0, 0);
    // The last record can't be told from a torn tail.
    for offset in 0..last_begins {
        for mask in [0x01, 0x80, 0xff] {
            disk.flip(name, offset, mask);
            match open(&disk) {
                Err(OpenError::Damaged { file, .. }) => {
                    assert_eq!(file, name);
                    damaged += 1;
                }
                Err(error) => assert!(matches!(error, OpenError::Newer { .. }), "{error}"),
                Ok(store) => {
                    // Zeros that carry nothing: of the head, of a header, behind a payload.
                    assert_eq!(contents(&store), whole, "offset {offset}");
                    ignored += 1;
                    store.close().await;
                }
            }
            disk.flip(name, offset, mask);
        }
    }
    assert!(damaged > ignored * 3, "{damaged} found, {ignored} in padding");
}

#[tokio::test]
async fn a_log_that_ends_before_its_newest_checkpoint_is_refused() {
    use store::Disk;
    let written = async || {
        let disk = FaultyDisk::new();
        let store = open(&disk).unwrap();
        let mut last_begins = 0;
        for at in 0..5 {
            last_begins = usize::try_from(store.metrics().written.bytes).unwrap();
            store.txn(Txn::of(vec![Op::put(format!("/k/{at}"), vec![b'x'; 21])])).await.unwrap();
        }
        store.checkpoint().await.unwrap();
        store.close().await;
        (disk, last_begins)
    };
    let name = "log-0000000000000001";
    let (rotten, last_begins) = written().await;
    rotten.flip(name, last_begins + 40, 0x01);
    let error = open(&rotten).unwrap_err();
    let named = matches!(&error, OpenError::Damaged { file, offset, .. } if file == name && *offset == last_begins);
    assert!(named, "{error}");
    let (without, _) = written().await;
    let file = without.open(name).unwrap();
    let mut bytes = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
    file.read_at(0, &mut bytes).unwrap();
    let cut = without.create(name, 0).unwrap();
    cut.write_at(0, &bytes[..last_begins]).unwrap();
    let error = open(&without).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn a_segment_cut_within_its_last_record_ends_before_it() {
    use store::Disk;
    let disk = FaultyDisk::new();
    let store = open(&disk).unwrap();
    store.txn(Txn::of(vec![Op::put("/k/0", "x")])).await.unwrap();
    let whole = contents(&store);
    store.txn(Txn::of(vec![Op::put("/k/1", "")])).await.unwrap();
    let ends = usize::try_from(store.metrics().written.bytes).unwrap();
    store.close().await;
    let name = "log-0000000000000001";
    let mut bytes = vec![0; ends - 1];
    disk.open(name).unwrap().read_at(0, &mut bytes).unwrap();
    disk.create(name, 0).unwrap().write_at(0, &bytes).unwrap();
    assert_eq!(contents(&open(&disk).unwrap()), whole);
}

#[tokio::test]
async fn what_is_too_much_for_one_record_is_refused_and_leaves_nothing() {
    let disk = FaultyDisk::new();
    let config = Config { history_bytes_max: 1 << 20, ..Config::new("") };
    let store = Store::open_on(Arc::new(disk), config).unwrap();
    for at in 0..33 {
        store.txn(Txn::of(vec![Op::put(format!("/k/{at}"), vec![b'x'; 2 << 20])])).await.unwrap();
    }
    let lease = store.lease_grant(0, 60).await.unwrap();
    let attached =
        |at| Op::Update { key: format!("/k/{at}").into(), value: None, lease: Some(lease) };
    let before = store.revision();
    let error = store.txn(Txn::of((0..33).map(attached).collect())).await.unwrap_err();
    assert!(matches!(error, WriteError::TooLarge { .. }), "{error}");
    assert_eq!(
        (store.revision(), store.lease_time_to_live(lease).await.unwrap().keys.len()),
        (before, 0)
    );
    store.txn(Txn::of((0..31).map(attached).collect())).await.unwrap();
    assert_eq!(store.lease_time_to_live(lease).await.unwrap().keys.len(), 31);
}

#[tokio::test]
async fn a_missing_segment_is_refused() {
    use store::Disk;
    let disk = FaultyDisk::new();
    let store = open(&disk).unwrap();
    for at in 0..12 {
        store.txn(Txn::of(vec![Op::put(format!("/k/{at}"), vec![b'x'; 400])])).await.unwrap();
    }
    store.close().await;
    let mut segments = disk.names().unwrap();
    segments.retain(|name| name.starts_with("log-"));
    segments.sort();
    assert!(segments.len() > 2, "{segments:?}");
    disk.remove(&segments[1]).unwrap();
    let error = open(&disk).unwrap_err();
    assert!(matches!(&error, OpenError::Damaged { file, .. } if *file == segments[0]), "{error}");
}

#[tokio::test]
async fn the_log_stays_within_its_bounds() {
    let (disk, mut random) = (FaultyDisk::new(), Random(7));
    let store = open(&disk).unwrap();
    let files = || store::Disk::names(&disk).unwrap();
    for _ in 0..600 {
        store.txn(random_txn(&mut random)).await.unwrap();
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        store.txn(random_txn(&mut random)).await.unwrap();
        let names = files();
        // Two checkpoints, the window of 6 KiB and the log since the last checkpoint.
        if names.len() < 20 || std::time::Instant::now() > deadline {
            assert!(names.len() < 20, "{names:?}");
            break;
        }
    }
    let written = store.metrics().written;
    assert!(written.checkpoints > 3 && written.checkpoint_failures == 0, "{written:?}");
    let expected = contents(&store);
    store.close().await;
    assert_eq!(contents(&open(&disk).unwrap()), expected);
}
