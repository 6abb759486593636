//! Owns the suite of etcd's semantics: the same calls to the store in process, to its gRPC service, and to a real etcd; the whole answers
//! are the same, errors with their codes and texts.
//!
//! Where ours differs from etcd 3.4, on purpose, and the generator does not go:
//! - cluster, member and term in headers; hashes; sizes;
//! - a transaction never changes a key twice. etcd lets two cases through against its own rule: a put beside a delete of everything
//!   from a key on (`\0`), and a put in one inner transaction before a delete in the next;
//! - a compaction at a revision below 1 is refused as compacted, while a new etcd takes it;
//! - an unknown sort order is refused, as etcd 3.6 does; an unknown comparison is refused;
//! - previous values of a watch are there although their revision is compacted, while the history has the event;
//! - a watch that begins with the revision of the last compaction is told what that revision deleted, as etcd 3.5.16 does;
//! - a manual progress answer of etcd 3.4 overtakes events, ours waits for them, as etcd 3.5.8 does.

mod clients;
mod etcd;
mod random;
mod subject;

use bytes::Bytes;

use crate::grpc::messages::kv::{
    Compare, CompareResult, CompareTarget, DeleteRangeRequest, PutRequest, RangeRequest, Request,
    RequestOp, TargetUnion, TxnRequest,
};
use crate::grpc::messages::watch::WatchCreateRequest;
use crate::grpc::suite::etcd::Etcd;
use crate::grpc::suite::random::Random;
use crate::grpc::suite::subject::{Call, Ours, Subject};

fn put(key: &'static str, value: &'static str) -> PutRequest {
    let (key, value) = (Bytes::from_static(key.as_bytes()), Bytes::from_static(value.as_bytes()));
    PutRequest { key, value, ..PutRequest::default() }
}

fn get(key: &'static str) -> RangeRequest {
    RangeRequest { key: Bytes::from_static(key.as_bytes()), ..RangeRequest::default() }
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn delete(key: &'static str) -> DeleteRangeRequest {
    let (key, prev_kv) = (Bytes::from_static(key.as_bytes()), true);
    DeleteRangeRequest { key, prev_kv, ..DeleteRangeRequest::default() }
}

fn txn(success: Vec<Request>) -> Call {
    let success = success.into_iter().map(op).collect();
    Call::Txn(TxnRequest { success, ..TxnRequest::default() })
}

/// All subjects there are here; each is fresh.
struct Everyone {
    ours: Ours,
    etcd: Option<Etcd>,
}

impl Everyone {
    async fn start() -> Self {
        Self { ours: Ours::start().await, etcd: Etcd::start().await }
    }

    fn all(&self) -> Vec<(&'static str, Subject)> {
        let mut all = vec![
            ("in process", Subject::InProcess(self.ours.services.clone())),
            ("gRPC", Subject::Remote(self.ours.channel.clone())),
        ];
        all.extend(self.etcd.as_ref().map(|etcd| ("etcd", Subject::Remote(etcd.channel.clone()))));
        all
    }
}

/// Two stores of ours, so that writes can be compared as well, and an etcd.
struct Compared {
    everyone: [Everyone; 2],
}

impl Compared {
    async fn start() -> Self {
        let second = Everyone { ours: Ours::start().await, etcd: None };
        Self { everyone: [Everyone::start().await, second] }
    }

    fn subjects(&self) -> Vec<(&'static str, Subject)> {
        let [first, second] = &self.everyone;
        let mut all = vec![first.all().swap_remove(0), second.all().swap_remove(1)];
        all.extend(first.all().into_iter().nth(2));
        all
    }

    /// Makes the call everywhere and returns the one answer.
    async fn call(&self, what: &str, call: &Call) -> Result<String, String> {
        let mut answers = Vec::new();
        for (name, subject) in self.subjects() {
            answers.push((name, subject.call(call).await));
        }
        for (name, answer) in &answers[1..] {
            assert_eq!(
                *answer, answers[0].1,
                "{what}: {name} (left) and {}: {call:?}",
                answers[0].0
            );
        }
        answers.swap_remove(0).1
    }

    async fn watch(&self, request: &WatchCreateRequest, until: i64) -> Vec<String> {
        let mut answers = Vec::new();
        for (name, subject) in self.subjects() {
            answers.push((name, subject.watch(request, until).await));
        }
        for (name, answer) in &answers[1..] {
            let first = answers[0].0;
            assert_eq!(*answer, answers[0].1, "{name} (left) and {first}: {request:?}");
        }
        answers.swap_remove(0).1
    }
}

#[tokio::test]
async fn errors_are_etcds() {
    let compared = Compared::start().await;
    let refused = async |call: Call, expected: &str| {
        let error = compared.call("error", &call).await.unwrap_err();
        assert_eq!(error, expected, "{call:?}");
    };
    let ignoring = |value, lease| PutRequest {
        ignore_value: true,
        ignore_lease: lease != 0,
        lease,
        ..put("k", value)
    };
    refused(Call::Range(get("")), "InvalidArgument: etcdserver: key is not provided").await;
    refused(Call::Put(put("", "v")), "InvalidArgument: etcdserver: key is not provided").await;
    refused(Call::Put(ignoring("", 0)), "InvalidArgument: etcdserver: key not found").await;
    refused(Call::Put(ignoring("v", 0)), "InvalidArgument: etcdserver: value is provided").await;
    refused(Call::Put(ignoring("", 7)), "InvalidArgument: etcdserver: lease is provided").await;
    let leased = PutRequest { lease: 99, ..put("k", "v") };
    refused(Call::Put(leased), "NotFound: etcdserver: requested lease not found").await;
    refused(Call::Revoke(99), "NotFound: etcdserver: requested lease not found").await;
    refused(Call::Grant(1, 9_000_000_001), "OutOfRange: etcdserver: too large lease TTL").await;
    compared.call("grant", &Call::Grant(7, 100)).await.unwrap();
    refused(Call::Grant(7, 100), "FailedPrecondition: etcdserver: lease already exists").await;
    let twice = txn(vec![Request::Put(put("a", "1")), Request::Put(put("a", "2"))]);
    refused(twice, "InvalidArgument: etcdserver: duplicate key given in txn request").await;
    let many = txn(vec![Request::Range(get("a")); 129]);
    refused(many, "InvalidArgument: etcdserver: too many operations in txn request").await;
    let future = RangeRequest { revision: 1000, ..get("a") };
    let text = "OutOfRange: etcdserver: mvcc: required revision is a future revision";
    refused(Call::Range(future), text).await;
    refused(Call::Compact(1000), text).await;
    for _ in 0..3 {
        compared.call("put", &Call::Put(put("a", "1"))).await.unwrap();
    }
    compared.call("compact", &Call::Compact(3)).await.unwrap();
    let text = "OutOfRange: etcdserver: mvcc: required revision has been compacted";
    refused(Call::Compact(3), text).await;
    refused(Call::Range(RangeRequest { revision: 2, ..get("a") }), text).await;
    let large = PutRequest { value: vec![0; crate::TXN_BYTES_MAX + 1].into(), ..put("k", "") };
    refused(Call::Put(large), "InvalidArgument: etcdserver: request is too large").await;
}

#[tokio::test]
async fn transactions_tell_the_revision_reached_inside() {
    let compared = Compared::start().await;
    compared.call("put", &Call::Put(put("a", "1"))).await.unwrap();
    let inner = TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Value.into(),
            key: "a".into(),
            target_union: Some(TargetUnion::Value("1".into())),
            range_end: Bytes::new(),
        }],
        success: vec![op(Request::Put(put("b", "2"))), op(Request::Range(get("b")))],
        failure: vec![op(Request::Put(put("b", "3")))],
    };
    let whole = txn(vec![
        Request::Range(get("a")),
        Request::DeleteRange(delete("none")),
        Request::Txn(inner),
        Request::DeleteRange(delete("a")),
        Request::Range(get("a")),
    ]);
    let answer = compared.call("txn", &whole).await.unwrap();
    assert!(answer.contains("succeeded: true"), "{answer}");
}

#[tokio::test]
async fn watches_begin_in_the_past_filter_and_are_cancelled_by_compaction() {
    let compared = Compared::start().await;
    for call in [
        Call::Put(put("a/1", "1")),
        Call::Put(put("b", "2")),
        Call::Put(put("a/1", "3")),
        txn(vec![Request::Put(put("a/2", "4")), Request::DeleteRange(delete("a/1"))]),
        Call::Put(put("z", "end")),
    ] {
        compared.call("write", &call).await.unwrap();
    }
    let all = |filters: Vec<i32>, start_revision| WatchCreateRequest {
        key: "a/".into(),
        range_end: "a0".into(),
        start_revision,
        filters,
        prev_kv: true,
        ..WatchCreateRequest::default()
    };
    assert_eq!(compared.watch(&all(vec![], 2), 5).await.len(), 5);
    assert_eq!(compared.watch(&all(vec![0], 2), 5).await.len(), 2);
    assert_eq!(compared.watch(&all(vec![1], 2), 5).await.len(), 4);
    let empty = WatchCreateRequest { range_end: "a".into(), ..all(vec![], 0) };
    assert!(compared.watch(&empty, 5).await.concat().contains("watcher range is empty"));
    compared.call("compact", &Call::Compact(5)).await.unwrap();
    let told = compared.watch(&all(vec![], 3), 5).await;
    assert!(told[1].contains("compact_revision: 5"), "{told:?}");
    // What the compaction left of its own revision is still told.
    let left = WatchCreateRequest { prev_kv: false, ..all(vec![1], 5) };
    assert_eq!(compared.watch(&left, 5).await.len(), 2);
}

#[tokio::test]
async fn a_watch_from_the_compacted_revision_is_told_its_deletions() {
    let kept = Ours::start().await;
    let ours = Subject::InProcess(kept.services.clone());
    for call in [
        Call::Put(put("a/1", "1")),
        Call::Put(put("b", "2")),
        txn(vec![
            Request::Put(put("a/2", "3")),
            Request::DeleteRange(delete("a/1")),
            Request::DeleteRange(delete("b")),
        ]),
        Call::Put(put("a/3", "4")),
        Call::Compact(4),
    ] {
        ours.call(&call).await.unwrap();
    }
    for (filters, events) in [(vec![], 2), (vec![0], 1), (vec![1], 1)] {
        let request = WatchCreateRequest {
            key: "a/".into(),
            range_end: "a0".into(),
            start_revision: 4,
            filters,
            ..WatchCreateRequest::default()
        };
        let told = ours.watch(&request, 4).await;
        assert_eq!(told.len(), 1 + events, "{told:?}");
    }
}

#[tokio::test]
async fn leases_take_their_keys_and_are_listed() {
    let compared = Compared::start().await;
    for (id, ttl) in [(7, 100), (9, 200), (11, -5)] {
        compared.call("grant", &Call::Grant(id, ttl)).await.unwrap();
    }
    for key in ["x", "y", "z"] {
        let leased = PutRequest { lease: 7, ..put(key, "v") };
        compared.call("put", &Call::Put(leased)).await.unwrap();
    }
    compared.call("detach", &Call::Put(put("y", "w"))).await.unwrap();
    let keep = PutRequest { ignore_lease: true, ..put("z", "w") };
    compared.call("keep", &Call::Put(keep)).await.unwrap();
    let lived = compared.call("ttl", &Call::TimeToLive(7)).await.unwrap();
    assert!(
        lived.contains("\"x\"") && lived.contains("\"z\"") && !lived.contains("\"y\""),
        "{lived}"
    );
    compared.call("none", &Call::TimeToLive(8)).await.unwrap();
    compared.call("leases", &Call::Leases).await.unwrap();
    compared.call("revoke", &Call::Revoke(7)).await.unwrap();
    let rest = RangeRequest { range_end: Bytes::from_static(&[0]), ..get("\0") };
    let rest = compared.call("rest", &Call::Range(rest)).await.unwrap();
    assert!(rest.contains("count: 1"), "{rest}");
}

/// Calls of one seed; the environment can ask for others and for more.
const CALLS: u64 = 400;

#[tokio::test]
async fn random_calls_have_the_same_answers() {
    let from_environment = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = from_environment("ETCD_SUITE_SEED").unwrap_or(1);
    let calls = from_environment("ETCD_SUITE_CALLS").unwrap_or(CALLS);
    let compared = Compared::start().await;
    let mut random = Random::new(seed);
    for at in 0..calls {
        let call = random.call();
        // What is refused is compared like any answer.
        let answer = compared.call(&format!("seed {seed}, call {at}"), &call).await;
        random.saw(&answer);
    }
    let revision = random.revision();
    if random.compacted() < revision {
        let watch = WatchCreateRequest {
            key: Bytes::from_static(&[0]),
            range_end: Bytes::from_static(&[0]),
            start_revision: random.compacted() + 1,
            ..WatchCreateRequest::default()
        };
        compared.watch(&watch, revision).await;
    }
}
