//! Owns the connections to the members of an etcd cluster: one member is asked until it fails, then the next. Tells what was never
//! sent, and may be asked again, from what may have been done. Knows no key and no revision.

mod link;

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::uri::PathAndQuery;
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

pub(crate) use self::link::Link;
use self::link::{GivenUp, Member};
use crate::grpc::messages::ResponseHeader;
use crate::log::OpenError;

/// How long a member may take to be connected to. Another one is as good.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A silent connection is asked so often whether it lives. Servers of gRPC for Go hang up on who asks more often than every 5 s.
const PING_PERIOD: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// A request that takes longer makes the client ask whether the member lives at all.
const SLOW: Duration = Duration::from_millis(800);
/// etcd gives its own requests up after 5 s and two elections' time, and then says so.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// So long is tried again what was never sent: an election takes a second or two.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// What one answer may have; pages are chosen far smaller.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// With this a member that has no leader refuses at once, instead of waiting for one.
const REQUIRE_LEADER: &str = "hasleader";
const NO_LEADER: &str = "etcdserver: no leader";
/// What tonic says of an answer of more than [`ANSWER_BYTES_MAX`], with a code that etcd uses as well.
const ANSWER_TOO_LARGE: &str = "message length too large";

/// Where a real etcd cluster is, and who we are to it.
#[derive(Clone)]
pub struct EtcdConfig {
    /// URLs of its members' client ports, `http://` or `https://`.
    pub endpoints: Vec<String>,
    /// The CA that its certificates are checked with, as PEM.
    pub ca_pem: Option<String>,
    /// The certificate shown to it, as PEM.
    pub certificate_pem: Option<String>,
    /// The key of that certificate, as PEM.
    pub key_pem: Option<String>,
    /// How long to wait for it when the store is opened.
    pub open_timeout: Duration,
    /// One of the masters lets etcd forget so often what was before the last time.
    pub compaction_period: Duration,
}

impl EtcdConfig {
    /// Members without TLS.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            ca_pem: None,
            certificate_pem: None,
            key_pem: None,
            open_timeout: Duration::from_secs(60),
            compaction_period: Duration::from_secs(300),
        }
    }

    fn endpoint(&self, url: &str) -> Result<Endpoint, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(url.to_owned())?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_PERIOD)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20);
        if endpoint.uri().scheme_str() != Some("https") {
            return Ok(endpoint);
        }
        let mut tls = ClientTlsConfig::new();
        if let Some(ca) = &self.ca_pem {
            tls = tls.ca_certificate(Certificate::from_pem(ca));
        }
        if let (Some(certificate), Some(key)) = (&self.certificate_pem, &self.key_pem) {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        endpoint.tls_config(tls)
    }
}

impl std::fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdConfig").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

/// Why a request has no good answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Failure {
    /// Nobody took it: nothing was done.
    #[error("{0}")]
    NotSent(Arc<str>),
    /// etcd refused it: nothing was done.
    #[error("{text}")]
    Refused { code: Code, text: Arc<str> },
    /// It was done, but the answer is larger than is taken.
    #[error("{0}")]
    AnswerTooLarge(Arc<str>),
    /// It was sent, and what became of it isn't known.
    #[error("{0}")]
    Unknown(Arc<str>),
}

impl Failure {
    fn unknown(text: impl std::fmt::Display) -> Self {
        Self::Unknown(text.to_string().into())
    }
}

/// What may be done when the outcome of a request is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Asking again changes nothing more.
    Always,
    /// Only what was never sent is sent again.
    IfNotSent,
}

/// The members of a cluster.
#[derive(Debug)]
pub(crate) struct Client {
    members: Box<[Member]>,
    /// The member that is asked.
    current: AtomicUsize,
    /// The highest term that any member told.
    term: Arc<AtomicU64>,
    /// Why a request failed last.
    trouble: Mutex<Option<Failure>>,
}

impl Client {
    /// Checks the configuration; connects to nobody yet.
    pub(crate) fn new(config: &EtcdConfig) -> Result<Self, OpenError> {
        let bad = |url: &str, reason: &dyn std::fmt::Display| OpenError::Datastore {
            endpoints: url.to_owned(),
            reason: reason.to_string(),
        };
        let term = Arc::new(AtomicU64::new(0));
        let member = |url: &String| {
            let endpoint = config.endpoint(url).map_err(|error| bad(url, &chain(&error)))?;
            match endpoint.uri().scheme_str() {
                Some("http" | "https") => Ok(Member::new(url, endpoint, term.clone())),
                _ => Err(bad(url, &"not an http:// or https:// URL")),
            }
        };
        let members: Box<[_]> = config.endpoints.iter().map(member).collect::<Result<_, _>>()?;
        if members.is_empty() {
            return Err(bad("", &"no endpoint was given"));
        }
        Ok(Self { members, current: AtomicUsize::new(0), term, trouble: Mutex::default() })
    }

    /// A connection to the member that is asked, or to the next that can be connected to.
    pub(crate) async fn link(&self) -> Result<Link, Failure> {
        let first = self.current.load(Ordering::Relaxed);
        let mut reasons = String::new();
        for offset in 0..self.members.len() {
            let at = (first + offset) % self.members.len();
            match self.members[at].link().await {
                Ok(link) => {
                    if offset > 0 {
                        self.choose(first, at);
                    }
                    return Ok(link);
                }
                Err(reason) => {
                    let separator = if reasons.is_empty() { "" } else { "; " };
                    // Writing to a string can't fail.
                    write!(reasons, "{separator}{reason}").ok();
                }
            }
        }
        Err(Failure::NotSent(reasons.into()))
    }

    fn choose(&self, from: usize, to: usize) {
        let relaxed = Ordering::Relaxed;
        if self.current.compare_exchange(from, to, relaxed, relaxed).is_ok() {
            let (from, to) = (self.members[from].url(), self.members[to].url());
            tracing::info!(%from, %to, "asking another member of the datastore");
        }
    }

    /// From now on another member is asked, if `link` is to the one that is asked now.
    pub(crate) fn leave(&self, link: &Link) {
        let count = self.members.len();
        let at = self.members.iter().position(|member| member.url() == link.url());
        if let Some(at) = at.filter(|_| count > 1) {
            self.choose(at, (at + 1) % count);
        }
    }

    /// One request, one answer.
    pub(crate) async fn unary<Q, A>(
        &self,
        path: &'static str,
        message: Q,
        repeat: Repeat,
    ) -> Result<A, Failure>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let (began, mut pause) = (Instant::now(), PAUSE_MIN);
        loop {
            let failure = match self.attempt(path, message.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure.clone());
            let again = match &failure {
                Failure::NotSent(_) => true,
                Failure::Unknown(_) => repeat == Repeat::Always,
                Failure::Refused { .. } | Failure::AnswerTooLarge(_) => false,
            };
            if !again || began.elapsed() + pause > PATIENCE {
                return Err(failure);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Takes note of the term that an answer tells.
    pub(crate) fn note(&self, header: Option<&ResponseHeader>) {
        let term = header.map_or(0, |header| header.raft_term);
        self.term.fetch_max(term, Ordering::Relaxed);
    }

    /// Why a request failed last, for who gave up waiting.
    pub(crate) fn trouble(&self) -> Option<Failure> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn attempt<Q, A>(&self, path: &'static str, message: Q) -> Result<A, Failure>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let link = self.link().await?;
        let asked = async {
            let mut grpc = grpc(&link);
            ready(&mut grpc).await?;
            let codec = ProstCodec::<Q, A>::default();
            grpc.unary(request(message), PathAndQuery::from_static(path), codec).await
        };
        let answered = tokio::time::timeout(REQUEST_TIMEOUT, link.watched(SLOW, asked)).await;
        let failure = match answered {
            Ok(Ok(Ok(answer))) => return Ok(answer.into_inner()),
            Ok(Ok(Err(status))) => self.failed(&link, &status),
            Ok(Err(GivenUp::LeaderChanged)) => {
                return Err(Failure::unknown("the datastore changed its leader under the request"));
            }
            Ok(Err(GivenUp::Dead)) => {
                Failure::unknown(format_args!("{} stopped answering", link.url()))
            }
            Err(_) => Failure::unknown(format_args!("{} does not answer", link.url())),
        };
        if !matches!(failure, Failure::Refused { .. } | Failure::AnswerTooLarge(_)) {
            self.leave(&link);
        }
        Err(failure)
    }

    /// What an error of a request says, and what it says of the connection.
    pub(crate) fn failed(&self, link: &Link, status: &Status) -> Failure {
        if is_local(status) {
            link.declare_dead();
        }
        judged(link.url(), status)
    }

    /// Opens a stream in both directions on a connection; what is sent goes through `requests`.
    pub(crate) async fn streaming<Q, A>(
        &self,
        link: &Link,
        path: &'static str,
        requests: tokio::sync::mpsc::Receiver<Q>,
    ) -> Result<Streaming<A>, Failure>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let asked = async {
            let mut grpc = grpc(link);
            ready(&mut grpc).await?;
            let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
            let codec = ProstCodec::<Q, A>::default();
            grpc.streaming(request(requests), PathAndQuery::from_static(path), codec).await
        };
        let answered = tokio::time::timeout(REQUEST_TIMEOUT, link.watched(SLOW, asked)).await;
        match answered {
            Ok(Ok(Ok(stream))) => Ok(stream.into_inner()),
            Ok(Ok(Err(status))) => Err(self.failed(link, &status)),
            Ok(Err(_)) | Err(_) => {
                Err(Failure::unknown(format_args!("{} does not answer", link.url())))
            }
        }
    }
}

fn grpc(link: &Link) -> Grpc<tonic::transport::Channel> {
    Grpc::new(link.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
}

async fn ready(grpc: &mut Grpc<tonic::transport::Channel>) -> Result<(), Status> {
    grpc.ready().await.map_err(|error| Status::from_error(error.into()))
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let yes = tonic::metadata::MetadataValue::from_static("true");
    request.metadata_mut().insert(REQUIRE_LEADER, yes);
    request
}

/// Whether the error arose on this side of the connection.
fn is_local(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// What became of a request. A code of this side's own is no refusal: what failed may be the answer's way.
fn judged(url: &str, status: &Status) -> Failure {
    use Code::{
        AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OutOfRange, PermissionDenied,
        ResourceExhausted, Unauthenticated, Unimplemented,
    };
    if let Some(source) = std::error::Error::source(status) {
        let text = format!("{url}: {}", chain(source)).into();
        return if is_unconnected(status) {
            Failure::NotSent(text)
        } else {
            Failure::Unknown(text)
        };
    }
    let text: Arc<str> = status.message().into();
    match status.code() {
        _ if &*text == NO_LEADER => Failure::NotSent(text),
        OutOfRange if text.contains(ANSWER_TOO_LARGE) => Failure::AnswerTooLarge(text),
        code @ (AlreadyExists | FailedPrecondition | InvalidArgument | NotFound | OutOfRange
        | PermissionDenied | ResourceExhausted | Unauthenticated | Unimplemented) => {
            Failure::Refused { code, text }
        }
        _ => Failure::Unknown(text),
    }
}

fn is_unconnected(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// An error with what caused it, in one line; each text once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            // Writing to a string can't fail.
            write!(text, ": {cause}").ok();
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_etcd_says_is_a_refusal() {
        let compacted =
            Status::out_of_range("etcdserver: mvcc: required revision has been compacted");
        let told = |status: &Status| judged("http://a", status);
        assert!(matches!(told(&compacted), Failure::Refused { code: Code::OutOfRange, .. }));
        let large = "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes";
        assert!(matches!(told(&Status::out_of_range(large)), Failure::AnswerTooLarge(_)));
        assert!(matches!(told(&Status::unavailable(NO_LEADER)), Failure::NotSent(_)));
        assert!(matches!(told(&Status::unavailable("shutting down")), Failure::Unknown(_)));
        let mut local = Status::resource_exhausted("h2");
        local.set_source(Arc::new(std::io::Error::other("enhance your calm")));
        assert!(matches!(told(&local), Failure::Unknown(text) if text.contains("your calm")));
    }
}
