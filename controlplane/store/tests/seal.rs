//! Sealed values on a real folder: no file holds them plain, a restart and a rotation keep them, and without the cluster secret
//! nobody has them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use store::seal::{ClusterSecret, Keyring, SECRET_BYTES};
use store::{Compare, Config, KeyRange, LogSizes, Op, OpenError, Store, Txn};

const KEYS: &str = "/flotilla/secrets/encryption-";
const SEALED: &str = "/registry/secrets/";
const VALUE: &str = "correct horse battery staple";
const WAIT: Duration = Duration::from_secs(10);

fn ring(secret: u8) -> Arc<Keyring> {
    let secret = ClusterSecret::from_bytes([secret; SECRET_BYTES]);
    Arc::new(Keyring::new(secret, KEYS, vec![SEALED.into()]))
}

fn open(dir: &Path, ring: &Arc<Keyring>) -> Result<Store, OpenError> {
    let log_sizes = LogSizes { segment_bytes: 16 << 10, checkpoint_bytes_min: 16 << 10 };
    Store::open(Config { log_sizes, seal: Some(ring.clone()), ..Config::new(dir) })
}

async fn put(store: &Store, key: &str, value: &[u8]) -> i64 {
    let put = Op::Put { key: key.into(), value: value.to_vec().into(), lease: 0 };
    store.txn(Txn::of(vec![put])).await.unwrap().revision
}

async fn add_key(store: &Store, ring: &Keyring, name: &str) {
    let key = format!("{KEYS}{name}");
    let value = ring.make_key(key.as_bytes()).unwrap().into();
    let compare = vec![Compare::absent(key.as_bytes())];
    let success = vec![Op::Put { key: key.into_bytes(), value, lease: 0 }];
    let made = store.txn(Txn { compare, success, failure: Vec::new() }).await.unwrap();
    assert!(made.succeeded);
}

/// Names of the files that hold `text`.
fn holding(dir: &Path, text: &str) -> Vec<String> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let holds = |path: &Path| {
        // A file may be removed at any time.
        let bytes = std::fs::read(path).unwrap_or_default();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    };
    let found = files.filter(|entry| holds(&entry.path()));
    found.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// Writes until a checkpoint more is there.
async fn checkpoint(store: &Store) {
    let (before, began) = (store.metrics().written.checkpoints, Instant::now());
    while store.metrics().written.checkpoints == before {
        assert!(began.elapsed() < WAIT, "no checkpoint: {:?}", store.metrics());
        put(store, "/registry/pods/a", &[7; 4096]).await;
    }
}

#[tokio::test]
async fn no_file_holds_a_sealed_value_and_rotation_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let first = ring(1);
    let store = open(dir.path(), &first).unwrap();
    let unsealed = Op::Put { key: format!("{SEALED}a").into(), value: VALUE.into(), lease: 0 };
    let refused = store.txn(Txn::of(vec![unsealed])).await.unwrap_err();
    assert!(refused.to_string().contains("no key"), "{refused}");
    add_key(&store, &first, "1").await;
    put(&store, &format!("{SEALED}a"), VALUE.as_bytes()).await;
    put(&store, "/registry/configmaps/a", b"not a secret").await;
    assert!(holding(dir.path(), VALUE).is_empty());
    assert!(!holding(dir.path(), "not a secret").is_empty(), "the check finds what is there");
    checkpoint(&store).await;
    add_key(&store, &first, "2").await;
    put(&store, &format!("{SEALED}b"), VALUE.as_bytes()).await;
    checkpoint(&store).await;
    assert!(holding(dir.path(), VALUE).is_empty());
    store.close().await;

    let again = ring(1);
    let store = open(dir.path(), &again).unwrap();
    for key in ["a", "b"] {
        let entry = store.get(format!("{SEALED}{key}").as_bytes()).unwrap();
        assert_eq!(&*entry.value, VALUE.as_bytes());
    }
    let names: Vec<_> = again.keys().into_iter().map(|key| key.name).collect();
    assert_eq!(names, ["1", "2"]);
    let revision = store.revision();
    store.close().await;

    let error = open(dir.path(), &ring(2)).unwrap_err().to_string();
    assert!(error.contains("/registry/secrets/") && error.contains("cluster secret"), "{error}");
    let store = open(dir.path(), &ring(1)).unwrap();
    assert_eq!(store.revision(), revision, "the failed open changed nothing");
}

#[tokio::test]
async fn what_was_stored_plain_is_sealed_when_it_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let plain = Store::open(Config::new(dir.path())).unwrap();
    let key = format!("{SEALED}a");
    put(&plain, &key, VALUE.as_bytes()).await;
    plain.close().await;
    let ring = ring(1);
    let store = open(dir.path(), &ring).unwrap();
    let entry = store.get(key.as_bytes()).unwrap();
    assert_eq!(&*entry.value, VALUE.as_bytes());
    add_key(&store, &ring, "1").await;
    put(&store, &key, &entry.value).await;
    store.compact(store.revision()).await.unwrap();
    let began = Instant::now();
    while !holding(dir.path(), VALUE).is_empty() {
        assert!(began.elapsed() < WAIT, "still in {:?}", holding(dir.path(), VALUE));
        checkpoint(&store).await;
        store.compact(store.revision()).await.unwrap();
    }
    let range = store::Range { keys: KeyRange::Prefix(SEALED.into()), revision: None, limit: 0 };
    assert_eq!(store.range(&range).unwrap().count, 1);
}
