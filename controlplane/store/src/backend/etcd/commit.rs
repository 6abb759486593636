//! Owns a transaction's way to etcd, which decides it, and its answer's way back: given when the feed has published what was
//! changed. Must not evaluate anything, and never sends twice what may have been done.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use prost::Message as _;

use crate::backend::etcd::Shared;
use crate::backend::etcd::client::{Failure, Repeat};
use crate::backend::etcd::compactor::COMPACT;
use crate::backend::etcd::wire::{OFFSET_KEY, around_hidden, bounds};
use crate::grpc::messages::KeyValue;
use crate::grpc::messages::kv::{
    CompactionRequest, CompactionResponse, Compare as WireCompare, CompareResult, CompareTarget,
    DeleteRangeRequest, PutRequest, RangeRequest, Request, RequestOp, Response, ResponseOp,
    TargetUnion, TxnRequest, TxnResponse,
};
use crate::revision::{Entry, Revision};
use crate::txn::{
    Compare, KeyRange, Op, OpResult, Range, RangeResult, ReadError, Relation, Target, Txn,
    TxnResult, WriteError,
};

pub(crate) const TXN: &str = "/etcdserverpb.KV/Txn";
/// What an etcd takes by default (`--max-request-bytes`), named where it refused more.
const REQUEST_BYTES_MAX: usize = 3 << 19;

/// What a failed request says to a writer.
pub(crate) fn refusal(failure: Failure) -> WriteError {
    match failure {
        Failure::NotSent(reason) => WriteError::Unavailable { reason },
        Failure::Refused { text, .. } => WriteError::Refused { reason: text },
        Failure::Unknown(reason) | Failure::AnswerTooLarge(reason) => {
            WriteError::Unknown { reason }
        }
    }
}

/// An answer that lacks something: what was asked for was done, or not.
pub(crate) fn unreadable(what: &str) -> WriteError {
    WriteError::Unknown { reason: format!("the datastore's answer has {what}").into() }
}

pub(crate) async fn txn(shared: &Shared, txn: Txn) -> Result<TxnResult, WriteError> {
    let request = encode_txn(shared, &txn)?;
    let bytes = request.encoded_len();
    shared.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let asked = shared.client.unary::<_, TxnResponse>(TXN, request, Repeat::IfNotSent).await;
    let answer = asked.map_err(|failure| refused(shared, &txn, bytes, failure))?;
    shared.client.note(answer.header.as_ref());
    let header = answer.header.ok_or_else(|| unreadable("no header"))?;
    let revision = shared.published_at(header.revision).await?;
    Decoding { shared, revision }.txn(&txn, answer)
}

pub(crate) async fn compact(shared: &Shared, requested: Revision) -> Result<(), WriteError> {
    let compact_revision = shared.published.with(|snapshot| snapshot.history.compacted());
    if requested <= compact_revision {
        // Here it is forgotten, by age or size if not by etcd.
        return Err(ReadError::Compacted { requested, compact_revision }.into());
    }
    let revision = shared.wire.outward(requested)?;
    let request = CompactionRequest { revision, physical: false };
    let asked = shared.client.unary::<_, CompactionResponse>(COMPACT, request, Repeat::IfNotSent);
    asked.await.map(drop).map_err(|failure| match &failure {
        Failure::Refused { text, .. } if text.contains("has been compacted") => {
            compacted(shared, requested).into()
        }
        Failure::Refused { text, .. } if text.contains("future revision") => {
            future(shared, requested).into()
        }
        _ => refusal(failure),
    })?;
    // etcd may have more than is published here; what is forgotten is.
    shared.published_at(revision).await?;
    shared.forget(requested);
    Ok(())
}

fn compacted(shared: &Shared, requested: Revision) -> ReadError {
    let known = shared.published.with(|snapshot| snapshot.history.compacted());
    ReadError::Compacted { requested, compact_revision: known.max(requested) }
}

fn future(shared: &Shared, requested: Revision) -> ReadError {
    let current = shared.published.with(|snapshot| snapshot.revision);
    ReadError::Future { requested, current }
}

/// What etcd refused, in the store's words; etcd names neither keys nor numbers.
fn refused(shared: &Shared, txn: &Txn, bytes: usize, failure: Failure) -> WriteError {
    let Failure::Refused { text, .. } = &failure else { return refusal(failure) };
    let says = |part: &str| text.contains(part);
    if says("requested lease not found") {
        return WriteError::LeaseNotFound { id: lease(txn).unwrap_or_default() };
    }
    // The second is what gRPC says before etcd can.
    if says("request is too large") || says("received message larger than max") {
        return WriteError::TooLarge { bytes, bytes_max: REQUEST_BYTES_MAX };
    }
    if says("key not found") {
        let key = updated(shared, txn).unwrap_or_default();
        return WriteError::KeyNotFound { key: String::from_utf8_lossy(key).into_owned() };
    }
    let read_at = all_ops(txn).into_iter().find_map(|op| match op {
        Op::Range(range) => range.revision,
        _ => None,
    });
    match read_at {
        Some(at) if says("has been compacted") => compacted(shared, at).into(),
        Some(at) if says("future revision") => future(shared, at).into(),
        _ => refusal(failure),
    }
}

/// Every operation of both branches, those inside as well.
fn all_ops(txn: &Txn) -> Vec<&Op> {
    let mut ops = Vec::new();
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Txn(inner) => ops.extend(all_ops(inner)),
            _ => ops.push(op),
        }
    }
    ops
}

fn lease(txn: &Txn) -> Option<i64> {
    all_ops(txn).into_iter().find_map(|op| match op {
        Op::Put { lease, .. } | Op::Update { lease: Some(lease), .. } if *lease != 0 => {
            Some(*lease)
        }
        _ => None,
    })
}

/// The first key that should be updated and isn't there.
fn updated<'a>(shared: &Shared, txn: &'a Txn) -> Option<&'a [u8]> {
    let updated = all_ops(txn).into_iter().filter_map(|op| match op {
        Op::Update { key, .. } => Some(key.as_slice()),
        _ => None,
    });
    let updated: Vec<_> = updated.collect();
    let absent = |key: &&&[u8]| shared.published.with(|snapshot| !snapshot.map.contains_key(**key));
    updated.iter().find(absent).or(updated.first()).copied()
}

fn encode_txn(shared: &Shared, txn: &Txn) -> Result<TxnRequest, WriteError> {
    let mut compare = Vec::with_capacity(txn.compare.len());
    for wanted in &txn.compare {
        match around_hidden(&wanted.keys).filter(|_| shared.wire.offset > 0) {
            Some(parts) if holds_absent(wanted) => {
                for keys in &parts {
                    compare.push(encode_compare(shared, wanted, keys)?);
                }
            }
            // "Some key is there, and each is so" is not the same of two parts as of the whole.
            Some(_) => {
                let reason = "a comparison of so many keys reaches across /flotilla/offset";
                return Err(WriteError::Refused { reason: reason.into() });
            }
            None => compare.push(encode_compare(shared, wanted, &wanted.keys)?),
        }
    }
    let ops = |ops: &[Op]| {
        ops.iter().map(|op| encode_op(shared, op)).collect::<Result<Vec<_>, WriteError>>()
    };
    Ok(TxnRequest { compare, success: ops(&txn.success)?, failure: ops(&txn.failure)? })
}

/// Whether the comparison holds of a range without a key.
fn holds_absent(compare: &Compare) -> bool {
    let ordering = match &compare.target {
        Target::Version(wanted) | Target::Lease(wanted) => 0.cmp(wanted),
        Target::CreateRevision(wanted) | Target::ModRevision(wanted) => 0.cmp(wanted),
        Target::Value(_) => return false,
    };
    match compare.relation {
        Relation::Equal => ordering.is_eq(),
        Relation::NotEqual => ordering.is_ne(),
        Relation::Greater => ordering.is_gt(),
        Relation::Less => ordering.is_lt(),
    }
}

fn encode_compare(
    shared: &Shared,
    compare: &Compare,
    keys: &KeyRange,
) -> Result<WireCompare, WriteError> {
    let wire = &shared.wire;
    let (target, union) = match &compare.target {
        Target::Version(version) => (CompareTarget::Version, TargetUnion::Version(*version)),
        Target::CreateRevision(revision) => {
            let revision = wire.compared(*revision, compare.relation);
            (CompareTarget::Create, TargetUnion::CreateRevision(revision))
        }
        Target::ModRevision(revision) => {
            let revision = wire.compared(*revision, compare.relation);
            (CompareTarget::Mod, TargetUnion::ModRevision(revision))
        }
        Target::Lease(lease) => (CompareTarget::Lease, TargetUnion::Lease(*lease)),
        Target::Value(value) => {
            if let Some(key) = sealed_in(shared, keys) {
                return Err(WriteError::SealedCompare { key });
            }
            (CompareTarget::Value, TargetUnion::Value(value.clone()))
        }
    };
    let result = match compare.relation {
        Relation::Equal => CompareResult::Equal,
        Relation::NotEqual => CompareResult::NotEqual,
        Relation::Greater => CompareResult::Greater,
        Relation::Less => CompareResult::Less,
    };
    let (key, range_end) = bounds(keys);
    let (result, target, target_union) = (result as i32, target as i32, Some(union));
    Ok(WireCompare { result, target, key, target_union, range_end })
}

/// A key of the range whose value etcd doesn't know.
fn sealed_in(shared: &Shared, keys: &KeyRange) -> Option<String> {
    let seal = shared.wire.seal.as_ref()?;
    let found = match keys {
        KeyRange::Key(key) => seal.applies(key).then(|| Bytes::copy_from_slice(key)),
        _ => {
            let range = Range::all(keys.clone());
            let present = shared.published.snapshot().range(&range).ok()?;
            let sealed = present.entries.iter().find(|entry| seal.applies(&entry.key));
            sealed.map(|entry| entry.key.clone())
        }
    };
    found.map(|key| String::from_utf8_lossy(&key).into_owned())
}

fn encode_op(shared: &Shared, op: &Op) -> Result<RequestOp, WriteError> {
    let request = match op {
        Op::Put { key, .. } | Op::Update { key, .. } if key == OFFSET_KEY => {
            let reason = "/flotilla/offset is the store's own";
            return Err(WriteError::Refused { reason: reason.into() });
        }
        Op::Put { key, value, lease } => {
            let value = encode_value(shared, key, value)?;
            let (key, lease, prev_kv) = (key.clone().into(), *lease, true);
            Request::Put(PutRequest { key, value, lease, prev_kv, ..PutRequest::default() })
        }
        Op::Update { key, value, lease } => {
            let sealed = value.as_ref().map(|value| encode_value(shared, key, value));
            Request::Put(PutRequest {
                ignore_value: value.is_none(),
                ignore_lease: lease.is_none(),
                key: key.clone().into(),
                value: sealed.transpose()?.unwrap_or_default(),
                lease: lease.unwrap_or(0),
                prev_kv: true,
            })
        }
        Op::Delete(keys) => match around_hidden(keys) {
            Some(parts) => both(parts.map(|keys| encode_delete(&keys))),
            None => encode_delete(keys),
        },
        Op::Range(range) => match around_hidden(&range.keys) {
            Some([first, second]) => {
                both([encode_range(shared, range, &first)?, encode_range(shared, range, &second)?])
            }
            None => encode_range(shared, range, &range.keys)?,
        },
        Op::Txn(txn) => Request::Txn(encode_txn(shared, txn)?),
    };
    Ok(RequestOp { request: Some(request) })
}

fn encode_value(shared: &Shared, key: &[u8], value: &Bytes) -> Result<Bytes, WriteError> {
    let Some(seal) = shared.wire.seal.as_ref().filter(|seal| seal.applies(key)) else {
        return Ok(value.clone());
    };
    // Every master that reads the result has at least what is published here.
    let revision = shared.published.with(|snapshot| snapshot.revision);
    seal.seal(key, value, revision).map(Bytes::from).map_err(|error| WriteError::seal(key, error))
}

fn encode_delete(keys: &KeyRange) -> Request {
    let (key, range_end) = bounds(keys);
    Request::DeleteRange(DeleteRangeRequest { key, range_end, prev_kv: true })
}

/// Two operations in the place of one.
fn both(requests: [Request; 2]) -> Request {
    let success = requests.map(|request| RequestOp { request: Some(request) }).into();
    Request::Txn(TxnRequest { success, ..TxnRequest::default() })
}

fn encode_range(shared: &Shared, range: &Range, keys: &KeyRange) -> Result<Request, WriteError> {
    let (key, range_end) = bounds(keys);
    let revision = range.revision.map_or(Ok(0), |revision| shared.wire.outward(revision))?;
    let limit = i64::try_from(range.limit).unwrap_or(i64::MAX);
    Ok(Request::Range(RangeRequest { key, range_end, limit, revision, ..RangeRequest::default() }))
}

/// Reads an answer beside its question.
struct Decoding<'a> {
    shared: &'a Shared,
    /// The store's, after the transaction.
    revision: Revision,
}

impl Decoding<'_> {
    fn txn(&self, txn: &Txn, answer: TxnResponse) -> Result<TxnResult, WriteError> {
        let ops = if answer.succeeded { &txn.success } else { &txn.failure };
        if ops.len() != answer.responses.len() {
            return Err(unreadable("not one result per operation"));
        }
        let results = ops.iter().zip(answer.responses).map(|(op, result)| self.op(op, result));
        let responses = results.collect::<Result<_, _>>()?;
        Ok(TxnResult { succeeded: answer.succeeded, revision: self.revision, responses })
    }

    fn op(&self, op: &Op, result: ResponseOp) -> Result<OpResult, WriteError> {
        match (op, result.response) {
            (Op::Put { key, value, lease }, Some(Response::Put(put))) => {
                let previous = put.prev_kv.map(|kv| self.entry(&kv)).transpose()?;
                let entry = self.stored((key, value, *lease), previous.as_deref());
                Ok(OpResult::Put { previous, entry })
            }
            (Op::Update { key, value, lease }, Some(Response::Put(put))) => {
                let previous = put.prev_kv.map(|kv| self.entry(&kv)).transpose()?;
                let kept = previous.as_deref().ok_or_else(|| unreadable("no previous value"))?;
                let put = (key.as_slice(), value.as_ref(), *lease);
                let (key, value, lease) =
                    (put.0, put.1.unwrap_or(&kept.value), put.2.unwrap_or(kept.lease));
                let entry = self.stored((key, value, lease), Some(kept));
                Ok(OpResult::Put { previous, entry })
            }
            (Op::Delete(_), Some(response)) => {
                let mut deleted = Vec::new();
                for part in parts(response) {
                    let Response::DeleteRange(part) = part else { return Err(other_kind()) };
                    for kv in &part.prev_kvs {
                        deleted.push(self.entry(kv)?);
                    }
                }
                Ok(OpResult::Delete { deleted })
            }
            (Op::Range(range), Some(response)) => {
                Ok(OpResult::Range(self.range(range, parts(response))?))
            }
            (Op::Txn(txn), Some(Response::Txn(inner))) => Ok(OpResult::Txn(self.txn(txn, inner)?)),
            _ => Err(other_kind()),
        }
    }

    fn entry(&self, kv: &KeyValue) -> Result<Arc<Entry>, WriteError> {
        let unopened = |error: super::wire::WireError| unreadable(&format!("a bad value: {error}"));
        self.shared.wire.entry(kv).map_err(unopened)
    }

    /// What a put made; the published entry itself, unless it was changed again already.
    fn stored(
        &self,
        (key, value, lease): (&[u8], &Bytes, i64),
        previous: Option<&Entry>,
    ) -> Arc<Entry> {
        let published = self.shared.published.with(|snapshot| snapshot.map.get(key).cloned());
        if let Some(entry) = published.filter(|entry| entry.mod_revision == self.revision) {
            return entry;
        }
        Arc::new(Entry {
            extracted: self.shared.wire.extract.extract(key, value).shrunk(),
            key: Bytes::copy_from_slice(key),
            value: value.clone(),
            create_revision: previous.map_or(self.revision, |entry| entry.create_revision),
            mod_revision: self.revision,
            version: previous.map_or(0, |entry| entry.version) + 1,
            lease,
        })
    }

    fn range(&self, range: &Range, parts: Vec<Response>) -> Result<RangeResult, WriteError> {
        let (mut entries, mut count) = (Vec::new(), 0);
        for part in parts {
            let Response::Range(part) = part else { return Err(other_kind()) };
            count += usize::try_from(part.count).unwrap_or_default();
            for kv in &part.kvs {
                entries.push(self.entry(kv)?);
            }
        }
        if range.limit > 0 {
            entries.truncate(range.limit);
        }
        let revision = range.revision.unwrap_or(self.revision);
        Ok(RangeResult { more: entries.len() < count, entries, revision, count })
    }
}

fn other_kind() -> WriteError {
    unreadable("another kind of result than was asked for")
}

/// The answers to one operation, which may have been sent as two.
fn parts(response: Response) -> Vec<Response> {
    match response {
        Response::Txn(both) => both.responses.into_iter().filter_map(|op| op.response).collect(),
        one => vec![one],
    }
}
