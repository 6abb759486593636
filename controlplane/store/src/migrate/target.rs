//! Owns the writing side of a move into an etcd cluster: whether it may be written, emptying it, keys in batches, reading them back. Each
//! write may be repeated: nobody else writes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Digest, MASTERS_PREFIX, MigrateError, Occupied, Step, failed, masters};
use crate::EtcdConfig;
use crate::backend::etcd::client::{Client, Failure, Repeat};
use crate::backend::etcd::commit::TXN;
use crate::backend::etcd::compactor::{COMPACT, COMPACTION_KEY};
use crate::backend::etcd::lease::{GRANT, LEASES, REVOKE};
use crate::backend::etcd::load::{MOVING_KEY, RANGE};
use crate::backend::etcd::wire::OFFSET_KEY;
use crate::grpc::messages::kv::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, PutRequest, RangeRequest,
    RangeResponse, Request, RequestOp, TxnRequest, TxnResponse,
};
use crate::grpc::messages::lease::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseLeasesRequest, LeaseLeasesResponse,
    LeaseRevokeRequest, LeaseRevokeResponse,
};
use crate::log::OpenError;
use crate::revision::{Entry, Revision};
use crate::txn::KeyRange;

/// Keys that belong to a datastore and not to the cluster in it.
pub(super) const OWN_KEYS: &[&[u8]] = &[OFFSET_KEY, MOVING_KEY, COMPACTION_KEY];
/// What is a cluster's of ours.
const OWN_PREFIXES: [&str; 2] = ["/flotilla/", "/registry/"];
/// Puts of one transaction: less than etcd takes by default.
const BATCH_KEYS_MAX: usize = 100;
/// A batch is sent when it has so much: with the largest value etcd takes by default it is still not too large.
const BATCH_BYTES: usize = 256 << 10;
/// Keys deleted, or read back, at once.
const PAGE_KEYS: i64 = 1_000;
/// Between two looks whether etcd is there.
const PAUSE: Duration = Duration::from_millis(500);
const MOVING_TEXT: &str = "a move into this datastore was not finished; run it again with --force, or empty the datastore";

/// An etcd cluster that is written.
pub(super) struct Target {
    client: Client,
    name: String,
}

fn all() -> (Bytes, Bytes) {
    (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"))
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn put(key: &[u8], value: Bytes, lease: i64) -> RequestOp {
    let key = Bytes::copy_from_slice(key);
    op(Request::Put(PutRequest { key, value, lease, ..PutRequest::default() }))
}

impl Target {
    pub(super) fn new(etcd: &EtcdConfig) -> Result<Self, OpenError> {
        Ok(Self { client: Client::new(etcd)?, name: etcd.endpoints.join(",") })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    async fn range(&self, range: RangeRequest) -> Result<RangeResponse, Failure> {
        self.client.unary(RANGE, range, Repeat::Always).await
    }

    async fn count(&self, (key, range_end): (Bytes, Bytes)) -> Result<i64, Failure> {
        let range = RangeRequest { key, range_end, count_only: true, ..RangeRequest::default() };
        Ok(self.range(range).await?.count)
    }

    /// A transaction without conditions; etcd's revision after it.
    async fn txn(&self, success: Vec<RequestOp>) -> Result<i64, Failure> {
        let request = TxnRequest { success, ..TxnRequest::default() };
        let done: TxnResponse = self.client.unary(TXN, request, Repeat::Always).await?;
        Ok(done.header.map_or(0, |header| header.revision))
    }

    /// Waits until etcd answers.
    pub(super) async fn wait(&self, deadline: Instant) -> Result<(), MigrateError> {
        loop {
            match self.count(all()).await {
                Ok(_) => return Ok(()),
                Err(failure) if Instant::now() + PAUSE > deadline => {
                    return Err(failed(&self.name, "the first question")(failure));
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Whether it may be written.
    pub(super) async fn check(&self, occupied: Occupied) -> Result<(), MigrateError> {
        let asking = failed(&self.name, "looking what is there");
        let prefix = |prefix: &str| {
            (
                Bytes::copy_from_slice(prefix.as_bytes()),
                KeyRange::prefix_end(prefix.as_bytes()).into(),
            )
        };
        let (key, range_end) = prefix(MASTERS_PREFIX);
        let running = RangeRequest { key, range_end, keys_only: true, ..RangeRequest::default() };
        let running = self.range(running).await.map_err(&asking)?;
        if let Some(masters) = masters(running.kvs.iter().map(|kv| &kv.key[..])) {
            return Err(MigrateError::Running { at: self.name.clone(), masters });
        }
        let keys = self.count(all()).await.map_err(&asking)?;
        let mut foreign = keys;
        for own in OWN_PREFIXES {
            foreign -= self.count(prefix(own)).await.map_err(&asking)?;
        }
        let at = || self.name.clone();
        match occupied {
            _ if foreign > 0 => Err(MigrateError::Foreign { at: at(), keys: foreign }),
            Occupied::Refuse if keys > 0 => Err(MigrateError::Occupied { at: at(), keys }),
            Occupied::Refuse | Occupied::Replace => Ok(()),
        }
    }

    /// Removes every key but the mark of a move, page by page, and every lease.
    pub(super) async fn empty(&self) -> Result<(), MigrateError> {
        let emptying = failed(&self.name, "removing what was there");
        let (first, end) = all();
        let behind = [MOVING_KEY, &[0]].concat().into();
        for part in [(first, Bytes::from_static(MOVING_KEY)), (behind, end)] {
            self.empty_part(part).await.map_err(&emptying)?;
        }
        let leases = self.client.unary(LEASES, LeaseLeasesRequest {}, Repeat::Always).await;
        let leases: LeaseLeasesResponse = leases.map_err(&emptying)?;
        for lease in leases.leases {
            let request = LeaseRevokeRequest { id: lease.id };
            let revoked =
                self.client.unary::<_, LeaseRevokeResponse>(REVOKE, request, Repeat::Always);
            match revoked.await {
                // It ended by itself.
                Err(Failure::Refused { text, .. }) if text.contains("lease not found") => {}
                other => other.map(drop).map_err(&emptying)?,
            }
        }
        Ok(())
    }

    async fn empty_part(&self, (key, range_end): (Bytes, Bytes)) -> Result<(), Failure> {
        loop {
            let (key, range_end, limit) = (key.clone(), range_end.clone(), PAGE_KEYS);
            let page =
                RangeRequest { key, range_end, limit, keys_only: true, ..RangeRequest::default() };
            let page = self.range(page).await?;
            let (Some(first), Some(last)) = (page.kvs.first(), page.kvs.last()) else {
                return Ok(());
            };
            let range_end = [&last.key[..], &[0]].concat().into();
            let delete = DeleteRangeRequest { key: first.key.clone(), range_end, prev_kv: false };
            self.txn(vec![op(Request::DeleteRange(delete))]).await?;
        }
    }

    /// What is said here of a move, if anything.
    pub(super) async fn mark(&self) -> Result<Option<String>, MigrateError> {
        let key = Bytes::from_static(MOVING_KEY);
        let found = self.range(RangeRequest { key, ..RangeRequest::default() }).await;
        let found = found.map_err(failed(&self.name, "looking for an earlier move"))?;
        Ok(found.kvs.first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned()))
    }

    /// Says that a move is under way, so that no master opens it; etcd's revision after that.
    pub(super) async fn begin(&self) -> Result<i64, MigrateError> {
        let moving = vec![put(MOVING_KEY, MOVING_TEXT.into(), 0)];
        self.txn(moving).await.map_err(failed(&self.name, "the first write"))
    }

    pub(super) async fn grant(&self, id: i64, ttl_seconds: u64) -> Result<(), MigrateError> {
        let ttl = i64::try_from(ttl_seconds).unwrap_or(i64::MAX);
        let request = LeaseGrantRequest { ttl, id };
        let granted = self.client.unary::<_, LeaseGrantResponse>(GRANT, request, Repeat::Always);
        match granted.await {
            // By an attempt whose answer was lost: there were no leases before.
            Err(Failure::Refused { text, .. }) if text.contains("already exists") => Ok(()),
            other => other.map(drop).map_err(failed(&self.name, "granting a lease")),
        }
    }

    /// Writes entries in batches; the last one has a revision of its own.
    pub(super) async fn write(
        &self,
        entries: &[&Arc<Entry>],
        tell: &(dyn Fn(Step) + Send + Sync),
    ) -> Result<(), MigrateError> {
        let (mut batch, mut bytes, mut keys, of) = (Vec::new(), 0, 0, entries.len());
        tell(Step::Writing { keys, of });
        for entry in entries {
            bytes += entry.key.len() + entry.value.len();
            batch.push(put(&entry.key, entry.value.clone(), entry.lease));
            keys += 1;
            let next = entries.get(keys).map_or(usize::MAX, |next| next.value.len());
            let full = batch.len() == BATCH_KEYS_MAX || bytes.saturating_add(next) > BATCH_BYTES;
            if full || keys + 1 == of {
                self.txn(std::mem::take(&mut batch)).await.map_err(|failure| {
                    let key = String::from_utf8_lossy(&entry.key);
                    let reason = format!("{failure} (up to {key}, {bytes} bytes)");
                    MigrateError::Failed { at: self.name.clone(), doing: "writing keys", reason }
                })?;
                bytes = 0;
                tell(Step::Writing { keys, of });
            }
        }
        Ok(())
    }

    /// Reads everything back, at one revision, which is returned.
    pub(super) async fn digest(&self) -> Result<(Digest, i64), MigrateError> {
        let reading = failed(&self.name, "reading it back");
        let (mut digest, mut revision) = (Digest::new(), 0);
        let (mut key, range_end) = all();
        loop {
            let (range_end, limit) = (range_end.clone(), PAGE_KEYS);
            let page = RangeRequest { key, range_end, limit, revision, ..RangeRequest::default() };
            let page = self.range(page).await.map_err(&reading)?;
            if revision == 0 {
                revision = page.header.map_or(0, |header| header.revision);
            }
            for kv in page.kvs.iter().filter(|kv| !OWN_KEYS.contains(&&kv.key[..])) {
                digest.add(&kv.key, &kv.value, kv.lease);
            }
            let Some(last) = page.kvs.last().filter(|_| page.more) else { break };
            key = [&last.key[..], &[0]].concat().into();
        }
        Ok((digest, revision))
    }

    /// Compacts what came before and lets masters open it; the store's revision then.
    pub(super) async fn finish(
        &self,
        last: i64,
        offset: Revision,
    ) -> Result<Revision, MigrateError> {
        let finishing = failed(&self.name, "the last write");
        let request = CompactionRequest { revision: last, physical: false };
        let compacted =
            self.client.unary::<_, CompactionResponse>(COMPACT, request, Repeat::Always);
        match compacted.await {
            Err(Failure::Refused { text, .. }) if text.contains("has been compacted") => {}
            other => other.map(drop).map_err(&finishing)?,
        }
        let key = Bytes::from_static(MOVING_KEY);
        let delete = DeleteRangeRequest { key, ..DeleteRangeRequest::default() };
        let mut ops = vec![op(Request::DeleteRange(delete))];
        if offset > 0 {
            ops.push(put(OFFSET_KEY, offset.to_string().into(), 0));
        }
        Ok(self.txn(ops).await.map_err(&finishing)? + offset)
    }
}
