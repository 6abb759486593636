//! Owns what etcd does with a range's entries: filters by revision, sorts, cuts, and leaves values out.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::grpc::kv::without_value;
use crate::grpc::messages::kv::{RangeRequest, RangeResponse, SortOrder, SortTarget};
use crate::grpc::messages::{KeyValue, ResponseHeader};
use crate::revision::Entry;
use crate::txn::RangeResult;

/// Whether all entries are needed before the limit can cut.
pub(super) fn whole(request: &RangeRequest) -> bool {
    request.sort_order() != SortOrder::None
        || request.max_mod_revision != 0
        || request.min_mod_revision != 0
        || request.max_create_revision != 0
        || request.min_create_revision != 0
}

pub(super) fn answer(
    request: &RangeRequest,
    result: RangeResult,
    header: Option<ResponseHeader>,
) -> RangeResponse {
    let count = i64::try_from(result.count).unwrap_or(i64::MAX);
    if request.count_only {
        return RangeResponse { header, kvs: Vec::new(), more: false, count };
    }
    let (mut entries, mut more) = (result.entries, result.more);
    if whole(request) {
        entries.retain(|entry| wanted(request, entry));
    }
    sort(request, &mut entries);
    if let Ok(limit @ 1..) = usize::try_from(request.limit) {
        more |= entries.len() > limit;
        entries.truncate(limit);
    }
    let kvs = entries.iter().map(|entry| KeyValue::from(&**entry));
    let kvs = if request.keys_only { kvs.map(without_value).collect() } else { kvs.collect() };
    RangeResponse { header, kvs, more, count }
}

fn wanted(request: &RangeRequest, entry: &Entry) -> bool {
    let within = |revision: i64, min: i64, max: i64| {
        (min == 0 || revision >= min) && (max == 0 || revision <= max)
    };
    within(entry.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && within(entry.create_revision, request.min_create_revision, request.max_create_revision)
}

fn sort(request: &RangeRequest, entries: &mut [Arc<Entry>]) {
    let (target, order) = (request.sort_target(), request.sort_order());
    if target == SortTarget::Key && order != SortOrder::Descend {
        return;
    }
    let compare = |a: &Entry, b: &Entry| -> Ordering {
        match target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        }
    };
    // Another target than the key without an order is ascending.
    if order == SortOrder::Descend {
        entries.sort_by(|a, b| compare(b, a));
    } else {
        entries.sort_by(|a, b| compare(a, b));
    }
}
