//! Owns the translation of etcd's requests into the store's words, and what of them is wrong by itself, told in etcd's order.

use bytes::Bytes;

use crate::grpc::kv::range::whole;
use crate::grpc::messages::kv::{
    Compare, CompareResult, CompareTarget, DeleteRangeRequest, PutRequest, RangeRequest, Request,
    RequestOp, SortOrder, SortTarget, TargetUnion, TxnRequest,
};
use crate::grpc::refusal::{
    EMPTY_KEY, INVALID_COMPARE, INVALID_SORT, KEY_NOT_FOUND, LEASE_PROVIDED, Refusal, TOO_MANY_OPS,
    VALUE_PROVIDED,
};
use crate::txn::check::TXN_OPS_MAX;
use crate::txn::{self, KeyRange, Op, Range, Relation, Target, Txn};

/// etcd's key and range end: none is one key, `\0` is everything from the key on.
pub(in crate::grpc) fn keys(key: &Bytes, range_end: &Bytes) -> KeyRange {
    match &range_end[..] {
        [] => KeyRange::Key(key.to_vec()),
        [0] if key[..] == [0] => KeyRange::Prefix(Vec::new()),
        [0] => KeyRange::Span { start: key.to_vec(), end: Vec::new() },
        end if KeyRange::prefix_end(key) == end => KeyRange::Prefix(key.to_vec()),
        end => KeyRange::Span { start: key.to_vec(), end: end.to_vec() },
    }
}

pub(super) fn check_key(key: &Bytes) -> Result<(), Refusal> {
    if key.is_empty() { Err(EMPTY_KEY) } else { Ok(()) }
}

pub(super) fn check_put(request: &PutRequest) -> Result<(), Refusal> {
    check_key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(VALUE_PROVIDED);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(LEASE_PROVIDED);
    }
    Ok(())
}

pub(super) fn put(request: &PutRequest) -> Op {
    let PutRequest { key, value, lease, ignore_value, ignore_lease, .. } = request;
    let (key, value) = (key.to_vec(), value.clone());
    if *ignore_value || *ignore_lease {
        let (value, lease) = ((!ignore_value).then_some(value), (!ignore_lease).then_some(*lease));
        return Op::Update { key, value, lease };
    }
    Op::Put { key, value, lease: *lease }
}

pub(super) fn delete(request: &DeleteRangeRequest) -> Op {
    Op::Delete(keys(&request.key, &request.range_end))
}

fn check_range(request: &RangeRequest) -> Result<(), Refusal> {
    check_key(&request.key)?;
    let order = SortOrder::try_from(request.sort_order);
    if order.is_err() || SortTarget::try_from(request.sort_target).is_err() {
        return Err(INVALID_SORT);
    }
    Ok(())
}

/// The limit is the store's only where nothing is filtered or sorted behind it.
pub(super) fn range(request: &RangeRequest) -> Result<Range, Refusal> {
    check_range(request)?;
    let limit = match usize::try_from(request.limit) {
        _ if request.count_only => 1,
        // One more, which is sorted with the others before the limit cuts: so does etcd.
        Ok(limit @ 1..) if sorted_behind(request) => limit.saturating_add(1),
        Ok(limit) if !whole(request) => limit,
        _ => 0,
    };
    let revision = Some(request.revision).filter(|revision| *revision != 0);
    Ok(Range { keys: keys(&request.key, &request.range_end), revision, limit })
}

/// Another order than the keys', without saying which.
fn sorted_behind(request: &RangeRequest) -> bool {
    !whole(request) && request.sort_target() != SortTarget::Key
}

pub(super) fn txn(request: &TxnRequest) -> Result<Txn, Refusal> {
    check_txn(request, TXN_OPS_MAX)?;
    translated(request)
}

fn check_txn(request: &TxnRequest, ops_max: usize) -> Result<(), Refusal> {
    let TxnRequest { compare, success, failure } = request;
    let ops = compare.len().max(success.len()).max(failure.len());
    if ops > ops_max {
        return Err(TOO_MANY_OPS);
    }
    compare.iter().try_for_each(|compare| check_key(&compare.key))?;
    for op in success.iter().chain(failure) {
        match &op.request {
            Some(Request::Range(request)) => check_range(request)?,
            Some(Request::Put(request)) => check_put(request)?,
            Some(Request::DeleteRange(request)) => check_key(&request.key)?,
            Some(Request::Txn(request)) => check_txn(request, ops_max - ops)?,
            // So says etcd of an operation that is nothing.
            None => return Err(KEY_NOT_FOUND),
        }
    }
    Ok(())
}

fn translated(request: &TxnRequest) -> Result<Txn, Refusal> {
    let ops = |ops: &[RequestOp]| ops.iter().map(op).collect::<Result<Vec<_>, _>>();
    Ok(Txn {
        compare: request.compare.iter().map(comparison).collect::<Result<_, _>>()?,
        success: ops(&request.success)?,
        failure: ops(&request.failure)?,
    })
}

fn op(op: &RequestOp) -> Result<Op, Refusal> {
    Ok(match &op.request {
        Some(Request::Range(request)) => Op::Range(range(request)?),
        Some(Request::Put(request)) => put(request),
        Some(Request::DeleteRange(request)) => delete(request),
        Some(Request::Txn(request)) => Op::Txn(Box::new(translated(request)?)),
        None => return Err(KEY_NOT_FOUND),
    })
}

/// What the target doesn't find in the union is nothing: 0, or no bytes.
fn comparison(compare: &Compare) -> Result<txn::Compare, Refusal> {
    let target = CompareTarget::try_from(compare.target).map_err(|_| INVALID_COMPARE)?;
    let result = CompareResult::try_from(compare.result).map_err(|_| INVALID_COMPARE)?;
    let union = compare.target_union.as_ref();
    let target = match (target, union) {
        (CompareTarget::Version, Some(TargetUnion::Version(wanted))) => Target::Version(*wanted),
        (CompareTarget::Version, _) => Target::Version(0),
        (CompareTarget::Create, Some(TargetUnion::CreateRevision(wanted))) => {
            Target::CreateRevision(*wanted)
        }
        (CompareTarget::Create, _) => Target::CreateRevision(0),
        (CompareTarget::Mod, Some(TargetUnion::ModRevision(wanted))) => {
            Target::ModRevision(*wanted)
        }
        (CompareTarget::Mod, _) => Target::ModRevision(0),
        (CompareTarget::Value, Some(TargetUnion::Value(wanted))) => Target::Value(wanted.clone()),
        (CompareTarget::Value, _) => Target::Value(Bytes::new()),
        (CompareTarget::Lease, Some(TargetUnion::Lease(wanted))) => Target::Lease(*wanted),
        (CompareTarget::Lease, _) => Target::Lease(0),
    };
    let relation = match result {
        CompareResult::Equal => Relation::Equal,
        CompareResult::NotEqual => Relation::NotEqual,
        CompareResult::Greater => Relation::Greater,
        CompareResult::Less => Relation::Less,
    };
    Ok(txn::Compare { keys: keys(&compare.key, &compare.range_end), target, relation })
}
