//! Owns how the state is read from etcd: a consistent copy of all keys at one revision, in pages, with as much history to follow as there
//! is room for. Must not watch.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::backend::etcd::client::{Client, Failure, Repeat};
use crate::backend::etcd::wire::{OFFSET_KEY, Wire, WireError};
use crate::grpc::messages::kv::{RangeRequest, RangeResponse};
use crate::grpc::messages::watch::{WatchCreateRequest, WatchRequest, WatchResponse, WatchUnion};
use crate::history::History;
use crate::revision::Revision;
use crate::state::{Map, Snapshot};

/// Stands there while a move into this datastore is under way, and after its state was moved elsewhere; says so in words.
pub(crate) const MOVING_KEY: &[u8] = b"/flotilla/moving";

pub(crate) const RANGE: &str = "/etcdserverpb.KV/Range";
pub(crate) const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// So many revisions of the past are read again, so that watches resume: as many as the default history holds of objects of 1.5 KiB.
const PAST_REVISIONS_MAX: i64 = 10_000;
/// An answer should have about so many bytes …
const PAGE_BYTES: usize = 4 << 20;
/// … and at most so many keys.
const PAGE_KEYS_MAX: usize = 4_000;
const PAGE_KEYS_FIRST: usize = 200;
/// Each new attempt follows a compaction, which comes every few minutes.
const ATTEMPTS_MAX: usize = 5;
/// So long a member may take to tell up to where the past is gone, as for any request.
const COMPACTED_WITHIN: Duration = Duration::from_secs(10);

/// Why there is no copy of the state.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum LoadError {
    #[error(transparent)]
    Failed(#[from] Failure),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("/flotilla/offset holds {0:?}, which is no revision")]
    Offset(String),
    #[error("{0}")]
    Moving(String),
    #[error("it is compacted faster than it can be read")]
    Compacted,
}

/// A datastore as it was found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) cluster: u64,
    /// etcd's.
    pub(crate) revision: i64,
    pub(crate) offset: Revision,
}

/// Asks all members together: nothing that anybody was told is newer than this.
pub(crate) async fn find(client: &Client) -> Result<Found, LoadError> {
    let one = |key: &'static [u8]| RangeRequest { key: key.into(), ..RangeRequest::default() };
    let moving: RangeResponse = client.unary(RANGE, one(MOVING_KEY), Repeat::Always).await?;
    if let Some(kv) = moving.kvs.first() {
        return Err(LoadError::Moving(String::from_utf8_lossy(&kv.value).into_owned()));
    }
    let found: RangeResponse = client.unary(RANGE, one(OFFSET_KEY), Repeat::Always).await?;
    client.note(found.header.as_ref());
    let header = found.header.ok_or(WireError::Missing("header"))?;
    let offset = found.kvs.first().map_or(Ok(0), |kv| offset(&kv.value))?;
    Ok(Found { cluster: header.cluster_id, revision: header.revision, offset })
}

pub(crate) fn offset(value: &[u8]) -> Result<Revision, LoadError> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let number = text.parse().ok().filter(|number| *number >= 0);
    number.ok_or_else(|| LoadError::Offset(String::from_utf8_lossy(value).into_owned()))
}

/// How much of the past is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Past {
    /// As much as there is room for.
    Window,
    /// None: who watched is told so.
    Nothing,
}

/// All keys as they were at some revision up to `now` (etcd's), behind which nothing is compacted.
pub(crate) async fn load(
    client: &Client,
    wire: &Wire,
    now: i64,
    past: Past,
) -> Result<Snapshot, LoadError> {
    let mut revision = match past {
        Past::Window => (now - PAST_REVISIONS_MAX).max(1),
        Past::Nothing => now,
    };
    for _ in 0..ATTEMPTS_MAX {
        match copy(client, wire, revision).await {
            Err(LoadError::Failed(Failure::Refused { text, .. })) if is_compacted(&text) => {
                revision = compacted(client).await?.max(revision);
            }
            other => return other,
        }
    }
    Err(LoadError::Compacted)
}

fn is_compacted(text: &str) -> bool {
    text.contains("required revision has been compacted")
}

async fn copy(client: &Client, wire: &Wire, revision: i64) -> Result<Snapshot, LoadError> {
    let (mut map, mut bytes) = (Map::new(), 0);
    let (mut from, mut limit) = (Bytes::from_static(b"\0"), PAGE_KEYS_FIRST);
    loop {
        let page = RangeRequest {
            key: from.clone(),
            range_end: Bytes::from_static(b"\0"),
            limit: i64::try_from(limit).unwrap_or(i64::MAX),
            revision,
            ..RangeRequest::default()
        };
        let page: RangeResponse = match client.unary(RANGE, page, Repeat::Always).await {
            Err(Failure::AnswerTooLarge(_)) if limit > 1 => {
                limit /= 2;
                continue;
            }
            other => other?,
        };
        let before = bytes;
        for kv in page.kvs.iter().filter(|kv| &kv.key[..] != OFFSET_KEY) {
            let entry = wire.entry(kv)?;
            wire.observe(&entry);
            bytes += entry.key.len() + entry.value.len();
            map.insert(entry.key.clone(), entry);
        }
        let Some(last) = page.kvs.last().filter(|_| page.more) else { break };
        from = [&last.key[..], &[0]].concat().into();
        let average = (bytes - before) / page.kvs.len() + 1;
        limit = (PAGE_BYTES / average).clamp(1, PAGE_KEYS_MAX);
    }
    let revision = wire.inward(revision);
    Ok(Snapshot {
        map,
        history: History::new(revision),
        revision,
        bytes,
        leases: imbl::OrdMap::new(),
        volatile_floor: 0,
        volatile_prefixes: Arc::from([]),
    })
}

/// A watch of all keys from a revision on.
pub(crate) fn watch_from(start_revision: i64) -> WatchRequest {
    let all = || Bytes::from_static(b"\0");
    let create = WatchCreateRequest {
        key: all(),
        range_end: all(),
        start_revision,
        fragment: true,
        ..WatchCreateRequest::default()
    };
    WatchRequest { request_union: Some(WatchUnion::Create(create)) }
}

/// Up to where the past is gone. Only a watch that comes too late is told.
async fn compacted(client: &Client) -> Result<i64, LoadError> {
    let link = client.link().await?;
    let (requests, outgoing) = mpsc::channel(1);
    let ended = || Failure::Unknown("the datastore ended a watch without a reason".into());
    requests.send(watch_from(1)).await.map_err(|_| ended())?;
    let mut stream = client.streaming::<_, WatchResponse>(&link, WATCH, outgoing).await?;
    let told = async {
        loop {
            let answer = stream.message().await.map_err(|status| client.failed(&link, &status))?;
            let answer = answer.ok_or_else(ended)?;
            if answer.compact_revision > 0 || !answer.events.is_empty() {
                return Ok(answer.compact_revision);
            }
        }
    };
    let silent = || Failure::Unknown(format!("{} tells of no compaction", link.url()).into());
    tokio::time::timeout(COMPACTED_WITHIN, told).await.map_err(|_| silent())?
}
