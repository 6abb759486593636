//! Owns the leases, which are etcd's own: passed through, with the store's answers. Keeps nothing.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::backend::etcd::Shared;
use crate::backend::etcd::client::{Failure, Repeat};
use crate::backend::etcd::commit::{refusal, unreadable};
use crate::grpc::messages::lease::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use crate::lease::LeaseStatus;
use crate::revision::Revision;
use crate::txn::WriteError;

pub(crate) const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
pub(crate) const REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";
pub(crate) const LEASES: &str = "/etcdserverpb.Lease/LeaseLeases";
/// A lease is kept alive by the leader, who answers at once.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
const KEEP_ALIVE_ATTEMPTS: usize = 3;

fn failed(id: i64) -> impl Fn(Failure) -> WriteError {
    move |failure| match &failure {
        Failure::Refused { text, .. } if text.contains("requested lease not found") => {
            WriteError::LeaseNotFound { id }
        }
        Failure::Refused { text, .. } if text.contains("lease already exists") => {
            WriteError::LeaseExists { id }
        }
        _ => refusal(failure),
    }
}

pub(crate) async fn grant(shared: &Shared, id: i64, ttl: Duration) -> Result<i64, WriteError> {
    let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
    let request = LeaseGrantRequest { ttl, id };
    let granted: LeaseGrantResponse =
        shared.client.unary(GRANT, request, Repeat::IfNotSent).await.map_err(failed(id))?;
    Ok(granted.id)
}

/// Ends a lease; its keys are gone from the published state when this returns.
pub(crate) async fn revoke(shared: &Shared, id: i64) -> Result<Revision, WriteError> {
    let request = LeaseRevokeRequest { id };
    let revoked: LeaseRevokeResponse =
        shared.client.unary(REVOKE, request, Repeat::IfNotSent).await.map_err(failed(id))?;
    let header = revoked.header.ok_or_else(|| unreadable("no header"))?;
    shared.published_at(header.revision).await
}

pub(crate) async fn keep_alive(shared: &Shared, id: i64) -> Result<i64, WriteError> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let asked = tokio::time::timeout(KEEP_ALIVE_TIMEOUT, ask_keep_alive(shared, id)).await;
        let failure = match asked {
            Ok(Ok(answer)) if answer.ttl > 0 => return Ok(answer.ttl),
            Ok(Ok(_)) => return Err(WriteError::LeaseNotFound { id }),
            Ok(Err(failure @ Failure::Refused { .. })) => return Err(failed(id)(failure)),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::Unknown("the datastore does not answer".into()),
        };
        if attempts == KEEP_ALIVE_ATTEMPTS {
            return Err(failed(id)(failure));
        }
    }
}

async fn ask_keep_alive(shared: &Shared, id: i64) -> Result<LeaseKeepAliveResponse, Failure> {
    let (client, link) = (&shared.client, shared.client.link().await?);
    let ended = || Failure::Unknown("the datastore ended the stream of a lease".into());
    let (requests, outgoing) = mpsc::channel(1);
    requests.send(LeaseKeepAliveRequest { id }).await.map_err(|_| ended())?;
    let answer = async {
        let mut stream =
            client.streaming::<_, LeaseKeepAliveResponse>(&link, KEEP_ALIVE, outgoing).await?;
        let answer = stream.message().await.map_err(|status| client.failed(&link, &status))?;
        answer.ok_or_else(ended)
    };
    let answer = answer.await;
    if matches!(answer, Err(Failure::NotSent(_) | Failure::Unknown(_))) {
        client.leave(&link);
    }
    answer
}

pub(crate) async fn time_to_live(shared: &Shared, id: i64) -> Result<LeaseStatus, WriteError> {
    let request = LeaseTimeToLiveRequest { id, keys: true };
    let found: LeaseTimeToLiveResponse =
        shared.client.unary(TIME_TO_LIVE, request, Repeat::Always).await.map_err(failed(id))?;
    if found.ttl < 0 {
        return Err(WriteError::LeaseNotFound { id });
    }
    let keys = found.keys.iter().map(|key| bytes::Bytes::copy_from_slice(key)).collect();
    let (granted_seconds, left_seconds) = (found.granted_ttl, found.ttl);
    Ok(LeaseStatus { id, granted_seconds, left_seconds, keys })
}

/// Every lease there is.
pub(crate) async fn list(shared: &Shared) -> Result<Vec<i64>, WriteError> {
    let request = LeaseLeasesRequest {};
    let found: LeaseLeasesResponse =
        shared.client.unary(LEASES, request, Repeat::Always).await.map_err(refusal)?;
    Ok(found.leases.iter().map(|lease| lease.id).collect())
}
