//! Owns the service `Lease`.

use hyper::body::Incoming;
use tokio::sync::mpsc;

use crate::grpc::Services;
use crate::grpc::messages::lease::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use crate::grpc::refusal::Refusal;
use crate::grpc::wire::{Answer, Messages, Piece, framed};
use crate::lease::LEASE_TTL_SECONDS_MIN;
use crate::txn::WriteError;

/// Answers that may wait for a client of one keep-alive stream; further requests are not read until it takes them.
const ANSWERS_MAX: usize = 16;

impl Services {
    pub(super) async fn lease_grant(
        &self,
        request: LeaseGrantRequest,
    ) -> Result<LeaseGrantResponse, Refusal> {
        let id = self.store().lease_grant(request.id, request.ttl).await?;
        let (header, ttl) = (self.header_now(), request.ttl.max(LEASE_TTL_SECONDS_MIN));
        Ok(LeaseGrantResponse { header, id, ttl, error: String::new() })
    }

    pub(super) async fn lease_revoke(
        &self,
        request: LeaseRevokeRequest,
    ) -> Result<LeaseRevokeResponse, Refusal> {
        let revision = self.store().lease_revoke(request.id).await?;
        Ok(LeaseRevokeResponse { header: self.header(revision) })
    }

    pub(super) async fn time_to_live(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, Refusal> {
        let mut answer = LeaseTimeToLiveResponse { id: request.id, ..Default::default() };
        match self.store().lease_time_to_live(request.id).await {
            Ok(status) => {
                (answer.ttl, answer.granted_ttl) = (status.left_seconds, status.granted_seconds);
                answer.keys = if request.keys { status.keys } else { Vec::new() };
            }
            Err(WriteError::LeaseNotFound { .. }) => answer.ttl = -1,
            Err(error) => return Err(error.into()),
        }
        answer.header = self.header_now();
        Ok(answer)
    }

    pub(super) async fn lease_leases(
        &self,
        _: LeaseLeasesRequest,
    ) -> Result<LeaseLeasesResponse, Refusal> {
        let leases = self.store().leases().await?.into_iter().map(|id| LeaseStatus { id });
        Ok(LeaseLeasesResponse { header: self.header_now(), leases: leases.collect() })
    }

    /// A lease that is not there is kept alive for no time.
    async fn kept(
        &self,
        request: LeaseKeepAliveRequest,
    ) -> Result<LeaseKeepAliveResponse, Refusal> {
        let ttl = match self.store().lease_keep_alive(request.id).await {
            Ok(ttl) => ttl,
            Err(WriteError::LeaseNotFound { .. }) => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(LeaseKeepAliveResponse { header: self.header_now(), id: request.id, ttl })
    }
}

/// Answers each request of the stream in turn.
pub(super) fn keep_alive(services: Services, body: Incoming) -> Answer {
    let (sender, receiver) = mpsc::channel(ANSWERS_MAX);
    tokio::spawn(async move {
        let mut requests = Messages::new(body);
        let ended = loop {
            let answered = match requests.next().await {
                Ok(Some(request)) => services.kept(request).await,
                Ok(None) => return,
                Err(refusal) => Err(refusal),
            };
            match answered.and_then(|answer| framed(&answer)) {
                Ok(message) => {
                    if sender.send(Piece::Message(message)).await.is_err() {
                        return;
                    }
                }
                Err(refusal) => break refusal,
            }
        };
        // The client may be gone.
        drop(sender.send(Piece::End(ended)).await);
    });
    Answer::Many(receiver)
}
