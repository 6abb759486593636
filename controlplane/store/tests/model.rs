//! The store against a pure model of it: every revision kept as a whole map, nothing clever.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod pure;
mod real_etcd;

use std::sync::Arc;

use proptest::prelude::*;
use pure::{Change, Pure};
use real_etcd::RealEtcd;
use store::{
    Compare, Config, EtcdConfig, Extract, Extracted, FaultyDisk, KeyRange, LogSizes, Op, Range,
    ReadError, Relation, Store, Target, Txn, WatchRequest, Watcher, WriteError,
};

/// The first byte of a value is its index key.
struct FirstByte;

impl Extract for FirstByte {
    fn extract(&self, _key: &[u8], value: &[u8]) -> Extracted {
        let index = value.first().map(|first| index_key(*first)).into_iter().collect();
        Extracted { index, ..Extracted::default() }
    }
}

fn index_key(first: u8) -> Box<str> {
    char::from(first).to_string().into()
}

#[derive(Debug, Clone)]
enum Step {
    Txn(Txn),
    Range { keys: KeyRange, back: i64, limit: usize },
    Watch { keys: KeyRange, back: i64, index: Option<u8> },
    Compact { back: i64 },
    Reopen,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec!["/a", "/a/1", "/a/2", "/a/3", "/b/1", "/b/2"]).prop_map(Into::into)
}

fn keys() -> impl Strategy<Value = KeyRange> {
    let prefix = prop::sample::select(vec!["", "/a/", "/a", "/b/", "/c"]);
    prop_oneof![
        3 => key().prop_map(KeyRange::Key),
        2 => prefix.prop_map(|prefix| KeyRange::Prefix(prefix.into())),
        1 => (key(), key()).prop_map(|(start, end)| KeyRange::Span { start, end }),
        1 => key().prop_map(|start| KeyRange::Span { start, end: Vec::new() }),
    ]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec![b'x', b'y']), 0..40)
}

fn compare() -> impl Strategy<Value = Compare> {
    let target = prop_oneof![
        (0..4_i64).prop_map(Target::Version),
        (0..20_i64).prop_map(Target::ModRevision),
        (0..20_i64).prop_map(Target::CreateRevision),
        value().prop_map(|value| Target::Value(value.into())),
    ];
    use Relation::{Equal, Greater, Less, NotEqual};
    let relation = prop::sample::select(vec![Equal, NotEqual, Greater, Less]);
    (keys(), target, relation).prop_map(|(keys, target, relation)| Compare {
        keys,
        target,
        relation,
    })
}

fn op(depth: u32) -> BoxedStrategy<Op> {
    let put = (key(), value()).prop_map(|(key, value)| Op::put(key, value));
    let range = (keys(), 0..3_usize);
    let range = range.prop_map(|(keys, limit)| Op::Range(Range { keys, revision: None, limit }));
    let flat = prop_oneof![4 => put, 2 => keys().prop_map(Op::Delete), 1 => range];
    if depth == 0 {
        return flat.boxed();
    }
    prop_oneof![6 => flat, 1 => txn(depth - 1).prop_map(|txn| Op::Txn(Box::new(txn)))].boxed()
}

fn txn(depth: u32) -> BoxedStrategy<Txn> {
    let ops = || prop::collection::vec(op(depth), 0..4);
    (prop::collection::vec(compare(), 0..2), ops(), ops())
        .prop_map(|(compare, success, failure)| Txn { compare, success, failure })
        .boxed()
}

fn step() -> impl Strategy<Value = Step> {
    let index = prop::option::of(prop::sample::select(vec![b'x', b'y']));
    prop_oneof![
        12 => txn(1).prop_map(Step::Txn),
        4 => (keys(), -2..12_i64, 0..4_usize)
            .prop_map(|(keys, back, limit)| Step::Range { keys, back, limit }),
        3 => (keys(), -2..12_i64, index).prop_map(|(keys, back, index)| Step::Watch { keys, back, index }),
        1 => (0..12_i64).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Reopen),
    ]
}

struct Watching {
    keys: KeyRange,
    index: Option<u8>,
    /// The next revision that it has not returned.
    next: i64,
    watcher: Watcher,
}

/// Where the store keeps what it is given.
enum Backing {
    Disk(FaultyDisk),
    Etcd(EtcdConfig),
}

struct Test {
    backing: Backing,
    store: Option<Store>,
    pure: Pure,
    watching: Vec<Watching>,
}

impl Test {
    async fn new(backing: Backing) -> Self {
        let store = open(&backing).await;
        if matches!(backing, Backing::Etcd(_)) {
            // What the last case left. The put is for a revision that can be compacted.
            store.txn(Txn::of(vec![Op::put("/z", "")])).await.unwrap();
            let everything = KeyRange::Prefix(Vec::new());
            store.txn(Txn::of(vec![Op::Delete(everything)])).await.unwrap();
            store.compact(store.revision()).await.unwrap();
        }
        let pure = Pure::empty_at(store.revision());
        Self { backing, store: Some(store), pure, watching: Vec::new() }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Txn(txn) => {
                let expected = self.pure.txn(&txn);
                match self.store().txn(txn).await {
                    Ok(result) => assert_eq!(Some(result), expected),
                    Err(error) => {
                        assert!(matches!(error, WriteError::DuplicateKey { .. }), "{error}");
                        assert_eq!(expected, None);
                    }
                }
            }
            Step::Range { keys, back, limit } => {
                let revision = Some((self.pure.revision() - back).max(self.pure.first_revision()));
                let range = Range { keys, revision, limit };
                let compacted = self.store().compact_revision();
                assert_eq!(self.store().range(&range), self.pure.range(&range, compacted));
            }
            Step::Watch { keys, back, index } => self.watch(keys, back, index),
            Step::Compact { back } => {
                let (revision, before) =
                    (self.pure.revision() - back, self.store().compact_revision());
                let done = self.store().compact(revision).await;
                assert_eq!(done.is_ok(), revision > before);
                assert_eq!(self.store().compact_revision(), before.max(revision));
            }
            Step::Reopen => {
                self.drain().await;
                self.watching.clear();
                self.store.take().unwrap().close().await;
                self.store = Some(open(&self.backing).await);
            }
        }
        assert_eq!(self.store().revision(), self.pure.revision());
        self.drain().await;
    }

    fn watch(&mut self, keys: KeyRange, back: i64, index: Option<u8>) {
        let from = self.pure.revision() - back;
        let request = WatchRequest {
            keys: keys.clone(),
            from: Some(from),
            index: index.map(index_key),
            events_max: 1000,
        };
        match self.store().watch(request) {
            Ok(watcher) => {
                assert!(from > self.store().compact_revision());
                self.watching.push(Watching { keys, index, next: from, watcher });
            }
            Err(ReadError::Compacted { requested, compact_revision }) => {
                assert_eq!((requested, compact_revision), (from, self.store().compact_revision()));
                assert!(from <= compact_revision);
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Every watch returns exactly the changes that the model says, and its progress says so.
    async fn drain(&mut self) {
        let revision = self.pure.revision();
        for watching in &mut self.watching {
            let expected: Vec<_> = self.pure.changes(watching.next, &watching.keys, watching.index);
            let mut seen = Vec::new();
            while seen.len() < expected.len() {
                let next = watching.watcher.next();
                let events = tokio::time::timeout(std::time::Duration::from_secs(10), next).await;
                let events = events.unwrap_or_else(|_| panic!("got {seen:?} of {expected:?}"));
                seen.extend(events.unwrap().iter().map(|event| Change::of(event)));
            }
            assert_eq!(seen, expected);
            watching.next = watching.next.max(revision + 1);
            while watching.watcher.progress() < revision {
                tokio::task::yield_now().await;
            }
        }
    }
}

async fn open(backing: &Backing) -> Store {
    let log_sizes = LogSizes { segment_bytes: 1024, checkpoint_bytes_min: 2048 };
    let mut config = Config { log_sizes, extract: Arc::new(FirstByte), ..Config::new("") };
    config.history_bytes_max = 8 << 10;
    match backing {
        Backing::Disk(disk) => Store::open_on(Arc::new(disk.clone()), config).unwrap(),
        Backing::Etcd(etcd) => Store::open_etcd(etcd.clone(), config).await.unwrap(),
    }
}

fn run(backing: Backing, steps: Vec<Step>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(async {
        let mut test = Test::new(backing).await;
        for step in steps {
            test.step(step).await;
        }
        test.store.take().unwrap().close().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_the_model_says(steps in prop::collection::vec(step(), 1..60)) {
        run(Backing::Disk(FaultyDisk::new()), steps);
    }
}

#[test]
fn the_store_on_etcd_does_what_the_model_says() {
    model_on_etcd(None);
}

#[test]
fn the_store_does_what_the_model_says_beyond_an_offset() {
    model_on_etcd(Some("1000"));
}

/// Comparisons that reach across the hidden key are refused; one of their keys is compared instead.
fn short(step: Step) -> Step {
    fn shorten(txn: &mut Txn) {
        for compare in &mut txn.compare {
            if compare.keys.contains(b"/flotilla/offset") {
                compare.keys = KeyRange::Key(b"/a/1".to_vec());
            }
        }
        for op in txn.success.iter_mut().chain(&mut txn.failure) {
            if let Op::Txn(inner) = op {
                shorten(inner);
            }
        }
    }
    match step {
        Step::Txn(mut txn) => {
            shorten(&mut txn);
            Step::Txn(txn)
        }
        other => other,
    }
}

fn model_on_etcd(offset: Option<&str>) {
    if !RealEtcd::is_here() {
        return;
    }
    let etcd = RealEtcd::start(1);
    if let Some(offset) = offset {
        etcd.put("/flotilla/offset", offset);
    }
    let config = ProptestConfig {
        cases: 40,
        failure_persistence: None,
        max_shrink_time: 20_000,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let checked = runner.run(&prop::collection::vec(step(), 1..60), |steps| {
        let steps = if offset.is_some() { steps.into_iter().map(short).collect() } else { steps };
        run(Backing::Etcd(etcd.config()), steps);
        Ok(())
    });
    checked.unwrap();
}
