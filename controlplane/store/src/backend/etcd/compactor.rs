//! Owns the forgetting of the past: every few minutes one of the masters compacts etcd to where it was a period ago. Which one is
//! decided by a transaction on a key of ours, without a leader. Nothing is written while nothing else is.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::backend::etcd::Shared;
use crate::backend::etcd::client::{Failure, Repeat};
use crate::backend::etcd::commit::TXN;
use crate::grpc::messages::kv::{
    CompactionRequest, CompactionResponse, Compare, CompareResult, CompareTarget, PutRequest,
    RangeRequest, Request, RequestOp, Response, TargetUnion, TxnRequest, TxnResponse,
};

/// Holds the revision that was compacted to last, in decimal digits; its version counts the rounds.
pub(crate) const COMPACTION_KEY: &[u8] = b"/flotilla/compaction";
pub(crate) const COMPACT: &str = "/etcdserverpb.KV/Compact";

/// What is known of the last round.
#[derive(Debug, Default)]
struct Round {
    /// Version of the key.
    version: i64,
    /// etcd's revision then, which the next round compacts to.
    revision: i64,
}

/// Compacts every `period`, until it is told to stop.
pub(crate) async fn run(shared: Arc<Shared>, period: Duration, mut stop: watch::Receiver<bool>) {
    let mut round = Round::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            stopped = stop.wait_for(|stop| *stop) => return drop(stopped),
        }
        let now = shared.published.with(|snapshot| snapshot.revision) - shared.wire.offset;
        if now <= round.revision {
            continue;
        }
        if let Err(failure) = next(&shared, &mut round).await {
            tracing::warn!(%failure, "the datastore was not compacted; trying again later");
        }
    }
}

async fn next(shared: &Shared, round: &mut Round) -> Result<(), Failure> {
    let key = || Bytes::from_static(COMPACTION_KEY);
    let op = |request| RequestOp { request: Some(request) };
    let compare = Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Version as i32,
        key: key(),
        target_union: Some(TargetUnion::Version(round.version)),
        range_end: Bytes::new(),
    };
    let value = round.revision.to_string().into();
    let request = TxnRequest {
        compare: vec![compare],
        success: vec![op(Request::Put(PutRequest { key: key(), value, ..PutRequest::default() }))],
        failure: vec![op(Request::Range(RangeRequest { key: key(), ..RangeRequest::default() }))],
    };
    let answer: TxnResponse = shared.client.unary(TXN, request, Repeat::IfNotSent).await?;
    let revision = answer.header.map_or(round.revision, |header| header.revision);
    let last = std::mem::replace(&mut round.revision, revision);
    if !answer.succeeded {
        let found = answer.responses.into_iter().next().and_then(|op| op.response);
        if let Some(Response::Range(range)) = found {
            round.version = range.kvs.first().map_or(0, |kv| kv.version);
        }
        return Ok(());
    }
    round.version += 1;
    if last == 0 {
        return Ok(());
    }
    let request = CompactionRequest { revision: last, physical: false };
    match shared.client.unary::<_, CompactionResponse>(COMPACT, request, Repeat::Always).await {
        // Compacted further by somebody else.
        Err(Failure::Refused { text, .. }) if text.contains("has been compacted") => Ok(()),
        other => other.map(|_| tracing::debug!(revision = last, "compacted the datastore")),
    }
}
