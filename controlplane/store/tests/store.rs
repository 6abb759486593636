//! The store as its users see it: on a log of our own in a real folder, and on a real etcd.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod behaviour;
mod real_etcd;

use behaviour::{Backing, put, watch};
use store::{Config, ReadError, Store};

/// Each behaviour once per log.
macro_rules! on_both_logs {
    ($($behaviour:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test]
            async fn $behaviour() {
                crate::behaviour::$behaviour(&crate::Backing::embedded()).await;
            })*
        }
        mod etcd {
            $(#[tokio::test]
            async fn $behaviour() {
                if crate::real_etcd::RealEtcd::is_here() {
                    crate::behaviour::$behaviour(&crate::Backing::etcd()).await;
                }
            })*
        }
    };
}

on_both_logs! {
    writes_are_there_after_a_restart_with_their_history,
    a_transaction_is_all_or_nothing,
    a_slow_watcher_is_expired_and_the_backlog_is_not_held_against_it,
    leases_take_their_keys_along,
    compaction_forgets_the_past_and_nothing_else,
}

#[tokio::test]
async fn an_idle_store_writes_nothing_and_volatile_keys_almost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = || {
        let volatile_prefixes = vec![b"/leases/".to_vec()];
        Config { volatile_prefixes, ..Config::new(dir.path()) }
    };
    let store = Store::open(config()).unwrap();
    store.txn(put("/pods/a", "1")).await.unwrap();
    for _ in 0..100 {
        store.txn(put("/leases/n", "beat")).await.unwrap();
    }
    assert_eq!(store.metrics().written.flushes, 2, "one for the pod, one to reserve revisions");
    let before = store.revision();
    store.close().await;

    let store = Store::open(config()).unwrap();
    assert!(store.revision() >= before, "revisions only grow");
    assert!(store.get(b"/leases/n").is_none());
    let lost = store.watch(watch("/leases/", Some(before))).unwrap_err();
    assert!(matches!(lost, ReadError::Compacted { .. }), "{lost}");
    assert!(store.watch(watch("/leases/", Some(store.revision() + 1))).is_ok());
    assert!(store.watch(watch("/pods/", Some(2))).is_ok());
    assert_eq!(store.metrics().written.bytes, 0);
}

#[tokio::test]
async fn keys_that_become_volatile_are_gone_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let config = |prefixes: &[&[u8]]| {
        let volatile_prefixes = prefixes.iter().map(|prefix| prefix.to_vec()).collect();
        Config { volatile_prefixes, ..Config::new(dir.path()) }
    };
    let store = Store::open(config(&[])).unwrap();
    store.txn(put("/events/a", "1")).await.unwrap();
    store.txn(put("/pods/a", "1")).await.unwrap();
    store.close().await;
    for prefixes in [&[b"/events/".as_slice()][..], &[b"/events/"], &[]] {
        let store = Store::open(config(prefixes)).unwrap();
        assert!(store.get(b"/events/a").is_none() && store.get(b"/pods/a").is_some());
        assert_eq!(store.revision(), 4, "their end is written once");
        store.close().await;
    }
}

#[tokio::test]
async fn a_closed_store_has_let_go_of_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..50 {
        let store = Store::open(Config::new(dir.path())).unwrap();
        store.txn(put("/k", "1")).await.unwrap();
        store.checkpoint().await.unwrap();
        store.close().await;
    }
}
