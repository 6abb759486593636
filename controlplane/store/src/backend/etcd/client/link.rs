//! Owns one member's connection: made when it is needed, and given up at once for all who use it when the member doesn't answer a
//! cheap question. Must not choose between members.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::uri::PathAndQuery;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::{CONNECT_TIMEOUT, chain, request};
use crate::grpc::messages::kv::{RangeRequest, RangeResponse};

/// A member that could not be connected to is not tried again for so long.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// A member that lives answers a local read of one key in a fraction of this.
const PROBE_TIMEOUT: Duration = Duration::from_millis(1_000);

#[derive(Debug, Default)]
struct State {
    link: Option<Link>,
    failed: Option<(Instant, Arc<str>)>,
}

/// One member of the cluster.
#[derive(Debug)]
pub(super) struct Member {
    url: Arc<str>,
    endpoint: Endpoint,
    term: Arc<AtomicU64>,
    state: Mutex<State>,
}

impl Member {
    pub(super) fn new(url: &str, endpoint: Endpoint, term: Arc<AtomicU64>) -> Self {
        Self { url: url.into(), endpoint, term, state: Mutex::default() }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The member's connection, or why there is none.
    pub(super) async fn link(&self) -> Result<Link, Arc<str>> {
        let mut state = self.state.lock().await;
        if let Some(link) = state.link.as_ref().filter(|link| !link.is_dead()) {
            return Ok(link.clone());
        }
        state.link = None;
        let recently = |at: &Instant| at.elapsed() < RETRY_AFTER;
        if let Some((_, reason)) = state.failed.as_ref().filter(|(at, _)| recently(at)) {
            return Err(reason.clone());
        }
        // The bound of the endpoint is for TCP alone; a handshake can hang as well.
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.endpoint.connect()).await;
        let reason: Arc<str> = match connected {
            Ok(Ok(channel)) => {
                let link = Link::new(self.url.clone(), channel, self.term.clone());
                *state = State { link: Some(link.clone()), failed: None };
                return Ok(link);
            }
            Ok(Err(error)) => format!("{}: {}", self.url, chain(&error)).into(),
            Err(_) => format!("{}: no connection within {CONNECT_TIMEOUT:?}", self.url).into(),
        };
        state.failed = Some((Instant::now(), reason.clone()));
        Err(reason)
    }
}

#[derive(Debug)]
struct Shared {
    url: Arc<str>,
    dead: watch::Sender<bool>,
    probing: AtomicBool,
    /// The highest term that any member told; a leader has one of its own.
    term: Arc<AtomicU64>,
}

/// Why a request was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// The connection died under it.
    Dead,
    /// Another leader came, who knows nothing of it.
    LeaderChanged,
}

/// A connection. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    channel: Channel,
    shared: Arc<Shared>,
}

impl Link {
    fn new(url: Arc<str>, channel: Channel, term: Arc<AtomicU64>) -> Self {
        let (dead, probing) = (watch::Sender::new(false), AtomicBool::new(false));
        Self { channel, shared: Arc::new(Shared { url, dead, probing, term }) }
    }

    fn term(&self) -> u64 {
        self.shared.term.load(Ordering::Relaxed)
    }

    pub(crate) fn url(&self) -> &str {
        &self.shared.url
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn is_dead(&self) -> bool {
        *self.shared.dead.borrow()
    }

    /// Ends everything that uses this connection.
    pub(crate) fn declare_dead(&self) {
        self.shared.dead.send_replace(true);
    }

    /// Waits until the connection is declared dead.
    pub(crate) async fn died(&self) {
        let mut dead = self.shared.dead.subscribe();
        // The sender lives as long as this link.
        drop(dead.wait_for(|dead| *dead).await);
    }

    /// Runs a request. One that takes longer than `slow` makes the member be probed; it is given up when the member doesn't answer, and
    /// a while after another leader came: what the last one was given, etcd itself gives up after five seconds and more.
    pub(super) async fn watched<T>(
        &self,
        slow: Duration,
        request: impl Future<Output = T>,
    ) -> Result<T, GivenUp> {
        let (mut request, mut died) = (std::pin::pin!(request), std::pin::pin!(self.died()));
        let (mut term, mut pause, mut changed) = (self.term(), slow, None::<Instant>);
        loop {
            tokio::select! {
                done = &mut request => return Ok(done),
                () = &mut died => return Err(GivenUp::Dead),
                () = tokio::time::sleep(pause) => self.probe(),
            }
            pause = slow / 2;
            if term == 0 {
                // Nobody has told one before.
                term = self.term();
            }
            if self.term() > term && changed.get_or_insert_with(Instant::now).elapsed() >= slow {
                return Err(GivenUp::LeaderChanged);
            }
        }
    }

    /// Asks in the background whether the member answers at all; if it doesn't, the connection is dead.
    pub(crate) fn probe(&self) {
        if self.shared.probing.swap(true, Ordering::AcqRel) {
            return;
        }
        let link = self.clone();
        tokio::spawn(async move {
            let mut grpc = Grpc::new(link.channel());
            let asked = async {
                let failed =
                    |error: tonic::transport::Error| tonic::Status::from_error(error.into());
                grpc.ready().await.map_err(failed)?;
                let path = PathAndQuery::from_static("/etcdserverpb.KV/Range");
                let codec = ProstCodec::<RangeRequest, RangeResponse>::default();
                // Answered by the member alone, whether it has a leader or not.
                let key = bytes::Bytes::from_static(b"\0");
                let message = RangeRequest {
                    key,
                    serializable: true,
                    count_only: true,
                    ..Default::default()
                };
                let mut question = request(message);
                question.metadata_mut().clear();
                grpc.unary(question, path, codec).await
            };
            // A refusal is an answer, too.
            let answered = match tokio::time::timeout(PROBE_TIMEOUT, asked).await {
                Ok(Ok(answer)) => {
                    let term = answer.into_inner().header.map_or(0, |header| header.raft_term);
                    link.shared.term.fetch_max(term, Ordering::Relaxed);
                    true
                }
                Ok(Err(status)) => !super::is_local(&status),
                Err(_) => false,
            };
            if !answered {
                tracing::warn!(member = link.url(), "a member of the datastore does not answer");
                link.declare_dead();
            }
            link.shared.probing.store(false, Ordering::Release);
        });
    }
}
