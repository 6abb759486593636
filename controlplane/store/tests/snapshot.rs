//! Snapshots: consistent while the store is written to, refused by name and offset when they are not what was written, and a store again
//! whose revision never goes back.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use store::snapshot::{SnapshotError, restore, save, verify};
use store::{Config, KeyRange, Op, Range, ReadError, Store, Txn, WatchRequest};

fn put(key: &str, value: &str) -> Txn {
    Txn::of(vec![Op::put(key, value.to_owned())])
}

fn contents(store: &Store) -> Vec<(Vec<u8>, Vec<u8>, [i64; 4])> {
    let all = store.range(&Range::all(KeyRange::Prefix(Vec::new()))).unwrap().entries;
    let all = all.iter().map(|e| {
        let numbers = [e.create_revision, e.mod_revision, e.version, e.lease];
        (e.key.to_vec(), e.value.to_vec(), numbers)
    });
    all.collect()
}

struct Made {
    dir: tempfile::TempDir,
    file: PathBuf,
    contents: Vec<(Vec<u8>, Vec<u8>, [i64; 4])>,
    revision: i64,
    lease: i64,
}

/// A snapshot of some keys, one with a lease, taken while the store is written to.
async fn made(keys: usize, value_bytes: usize) -> Made {
    let dir = tempfile::tempdir().unwrap();
    let volatile_prefixes = vec![b"/volatile/".to_vec()];
    let config = Config { volatile_prefixes, ..Config::new(dir.path().join("own")) };
    let store = Store::open(config).unwrap();
    for at in 0..keys {
        store.txn(put(&format!("/k/{at:05}"), &"x".repeat(value_bytes))).await.unwrap();
    }
    store.txn(put("/k/00000", "again")).await.unwrap();
    store.txn(Txn::of(vec![Op::delete("/k/00001")])).await.unwrap();
    let lease = store.lease_grant(0, 3600).await.unwrap();
    let leased = Op::Put { key: "/leased".into(), value: "l".into(), lease };
    store.txn(Txn::of(vec![leased])).await.unwrap();
    let (contents, revision) = (contents(&store), store.revision());
    let reader = store.snapshot();
    assert_eq!(reader.revision(), revision);
    store.txn(put("/volatile/a", "not in it")).await.unwrap();
    store.txn(put("/k/00002", "behind it")).await.unwrap();
    store.txn(put("/new", "behind it")).await.unwrap();
    let file = dir.path().join("snapshot");
    save(reader, &file).await.unwrap();
    store.close().await;
    Made { dir, file, contents, revision, lease }
}

#[tokio::test]
async fn a_snapshot_is_one_revision_and_becomes_a_store_whose_revision_never_goes_back() {
    let made = made(400, 1000).await;
    let info = verify(&made.file).unwrap();
    assert_eq!((info.revision, info.keys), (made.revision, made.contents.len()));
    assert_eq!(info.file_bytes, std::fs::metadata(&made.file).unwrap().len());
    // The snapshot's store had reserved revisions for its volatile keys: nobody may see one of them again.
    let far = 1 << 40;
    for (at, floor, expected) in [(0, 0, made.revision), (1, 5000, 5000), (2, far, far)] {
        let dir = made.dir.path().join(format!("restored-{at}"));
        assert_eq!(restore(&made.file, &dir, floor).unwrap().revision, expected);
        let store = Store::open(Config::new(&dir)).unwrap();
        let begin = store.revision();
        assert!(begin >= expected && (at < 2 || begin == far), "at {begin}");
        assert_eq!(contents(&store), made.contents);
        let keys = KeyRange::Prefix(Vec::new());
        let watch = |from| WatchRequest { keys: keys.clone(), from, index: None, events_max: 9 };
        let past = store.watch(watch(Some(expected))).unwrap_err();
        assert!(
            matches!(past, ReadError::Compacted { requested, compact_revision }
                if requested == expected && compact_revision >= expected),
            "{past}"
        );
        let status = store.lease_time_to_live(made.lease).await.unwrap();
        assert_eq!((status.granted_seconds, status.keys), (3600, vec!["/leased".into()]));
        assert_eq!(store.txn(put("/k/00003", "on")).await.unwrap().revision, begin + 1);
        store.close().await;
        // It stays restored, and a second restore replaces nothing.
        let store = Store::open(Config::new(&dir)).unwrap();
        assert!(store.revision() > begin);
        store.close().await;
        let again = restore(&made.file, &dir, 0).unwrap_err();
        assert!(matches!(again, SnapshotError::Occupied { .. }), "{again}");
    }
}

fn refused(file: &Path, dir: &Path) -> SnapshotError {
    let dir = dir.join("refused");
    let error = restore(file, &dir, 0).unwrap_err();
    assert!(!dir.exists() || std::fs::read_dir(&dir).unwrap().count() <= 1, "only the lock");
    error
}

#[tokio::test]
async fn every_changed_byte_and_every_cut_is_refused_by_name() {
    let made = made(4, 30).await;
    let whole = std::fs::read(&made.file).unwrap();
    let bad = made.dir.path().join("bad");
    let named = bad.display().to_string();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&bad, &bytes).unwrap();
        let error = verify(&bad).unwrap_err();
        assert!(error.to_string().contains(&named), "{error}");
        match error {
            SnapshotError::Damaged { offset, .. } => assert!(offset <= whole.len() as u64),
            SnapshotError::Foreign { .. } => assert!(at < 7),
            other => panic!("byte {at}: {other}"),
        }
        std::fs::write(&bad, &whole[..at]).unwrap();
        let error = verify(&bad).unwrap_err();
        assert!(error.to_string().contains(&named), "{error}");
    }
    std::fs::write(&bad, [&whole[..], b"more"].concat()).unwrap();
    assert!(matches!(refused(&bad, made.dir.path()), SnapshotError::Damaged { .. }));
    std::fs::write(&bad, "{\"kind\":\"List\"}").unwrap();
    assert!(matches!(refused(&bad, made.dir.path()), SnapshotError::Foreign { .. }));
    let mut newer = whole.clone();
    newer[7] = 9;
    let crc = crc32c(&newer[..20]);
    newer[20..24].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&bad, &newer).unwrap();
    let error = refused(&bad, made.dir.path());
    assert!(matches!(error, SnapshotError::Newer { version: 9, .. }), "{error}");
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}
