//! The one link to the master: TCP, TLS, HTTP/2. Requests of the kube client and the tunnel are
//! streams of it. It dials, keeps it alive with HTTP/2 pings and dials again, another master where
//! there is one, with jittered backoff; it knows nothing of what is asked over it.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::uri::{Authority, PathAndQuery};
use http::{Request, Response, Uri};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::client::Body;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::identity::Identity;
use crate::masters::Masters;
use crate::node::address;

const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// A master that has not answered by then is dialled on, and the next one beside it.
const STAGGER: Duration = Duration::from_secs(1);
/// Spreads the nodes of a lost master over this time as they come to another one.
const MOVE_SPREAD: Duration = Duration::from_millis(500);

/// How often the link is proven alive.
#[derive(Debug, Clone, Copy)]
struct Pings {
    interval: Duration,
    timeout: Duration,
}

/// A lease goes every 10 s anyway.
const PINGS_ALONE: Pings =
    Pings { interval: Duration::from_secs(10), timeout: Duration::from_secs(5) };
/// With somewhere else to go, a dead master is worth finding out about.
const PINGS_OF_MANY: Pings =
    Pings { interval: Duration::from_secs(4), timeout: Duration::from_secs(3) };
/// A request made while the link is down waits this long for the next one.
const REQUEST_WAIT: Duration = Duration::from_secs(60);
/// A master that answers pings may still never answer; its own limit, 60 s, comes first.
const ANSWER_WAIT: Duration = Duration::from_secs(90);
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// Bytes a stream, and the connection, may have in flight toward us.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("no server is configured")]
    NoServer,
    #[error("the server address {0:?} is not https://host[:port]")]
    Address(String),
    #[error("cannot connect to {server}")]
    Connect { server: String, source: std::io::Error },
    #[error("connecting to {0} took too long")]
    Timeout(String),
    #[error("the master at {server} speaks no HTTP/2")]
    Handshake { server: String, source: hyper::Error },
    #[error("the identity of this node cannot be used")]
    Identity(#[from] crate::identity::IdentityError),
    #[error("not connected to the master")]
    Down,
    #[error("the master did not answer within {} s", ANSWER_WAIT.as_secs())]
    Unanswered,
    #[error("the request has no valid address")]
    Request(#[from] http::Error),
    #[error("the request failed")]
    Send(#[from] hyper::Error),
}

/// One live connection.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) sender: SendRequest<Body>,
    pub(crate) authority: Authority,
    /// The address the master is reached from.
    pub(crate) local: SocketAddr,
    /// Whether the master has said that it takes extended CONNECT.
    pub(crate) takes_tunnel: watch::Receiver<bool>,
}

/// Holds the current connection for everyone who asks.
#[derive(Debug)]
pub(crate) struct Link {
    live: watch::Sender<Option<Live>>,
}

impl Link {
    pub(crate) fn new() -> Arc<Link> {
        Arc::new(Link { live: watch::Sender::new(None) })
    }

    /// A kube client whose requests travel over the link.
    pub(crate) fn client(&self) -> kube::Client {
        kube::Client::new(LinkService { live: self.live.subscribe() }, "default")
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Live>> {
        self.live.subscribe()
    }

    pub(crate) fn connected(&self) -> bool {
        self.live.borrow().is_some()
    }

    /// The address toward the master, when connected; with the master on this host, the address
    /// toward everybody else.
    pub(crate) fn local_ip(&self) -> Option<IpAddr> {
        let ip = self.live.borrow().as_ref().map(|live| live.local.ip())?;
        Some(address::for_others(ip))
    }

    /// Dials for ever; ends with the task that runs it.
    pub(crate) async fn run(&self, masters: Arc<Masters>, identity: Arc<Identity>) {
        let mut backoff = BACKOFF_FIRST;
        let mut last: Option<String> = None;
        loop {
            let servers = order(masters.candidates(), last.as_deref());
            if servers.is_empty() {
                warn!(error = %LinkError::NoServer, "running without a master");
                return;
            }
            let Some((server, (live, connection, offer))) = race(&servers, &identity).await else {
                debug!(retry_in = ?backoff, "no link");
                tokio::time::sleep(jitter(backoff)).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
                continue;
            };
            info!(%server, local = %live.local, "connected to the master");
            backoff = BACKOFF_FIRST;
            self.live.send_replace(Some(live));
            let end = drive(connection, offer).await;
            self.live.send_replace(None);
            warn!(%server, end = %describe(&end), "the link to the master is down");
            last = Some(server);
            if servers.len() > 1 {
                tokio::time::sleep(jitter(MOVE_SPREAD)).await;
            }
        }
    }
}

/// The one whose link was lost comes last.
fn order(mut servers: Vec<String>, last: Option<&str>) -> Vec<String> {
    if let Some(at) = servers.iter().position(|server| Some(server.as_str()) == last) {
        let lost = servers.remove(at);
        servers.push(lost);
    }
    servers
}

/// Dials one after the other, the next one when the last has failed or takes long; the first that answers wins.
async fn race(servers: &[String], identity: &Identity) -> Option<(String, Dialled)> {
    let pings = if servers.len() > 1 { PINGS_OF_MANY } else { PINGS_ALONE };
    let mut waiting = servers.iter();
    let mut dials = FuturesUnordered::new();
    loop {
        if let Some(server) = waiting.next() {
            dials.push(async move { (server, dial(server, (identity, pings)).await) });
        }
        let ended = tokio::select! {
            ended = dials.next() => ended,
            () = tokio::time::sleep(STAGGER), if waiting.len() > 0 => continue,
        };
        match ended {
            Some((server, Ok(dialled))) => return Some((server.clone(), dialled)),
            Some((server, Err(error))) => warn!(%server, error = %chain(&error), "no link"),
            None if waiting.len() == 0 => return None,
            None => {}
        }
    }
}

fn describe(end: &Result<(), hyper::Error>) -> String {
    match end {
        Ok(()) => "closed by the master".into(),
        Err(error) => chain(error),
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// Between half and all of `delay`.
pub(crate) fn jitter(delay: Duration) -> Duration {
    let mut byte = [0u8; 1];
    // Without randomness the whole delay serves as well.
    let share = match ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut byte) {
        Ok(()) => f64::from(byte[0]) / 255.0,
        Err(_) => 1.0,
    };
    delay.mul_f64(0.5 + share / 2.0)
}

type Connection =
    http2::Connection<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>, Body, TokioExecutor>;

/// Runs the connection to its end, telling when the master's settings allow a tunnel.
async fn drive(mut connection: Connection, offer: watch::Sender<bool>) -> hyper::Result<()> {
    std::future::poll_fn(|cx| {
        let end = Pin::new(&mut connection).poll(cx);
        let offered = connection.is_extended_connect_protocol_enabled();
        offer.send_if_modified(|known| std::mem::replace(known, offered) != offered);
        end
    })
    .await
}

type Dialled = (Live, Connection, watch::Sender<bool>);

async fn dial(server: &str, how: (&Identity, Pings)) -> Result<Dialled, LinkError> {
    let timeout = || LinkError::Timeout(server.to_owned());
    tokio::time::timeout(DIAL_TIMEOUT, connect(server, how)).await.map_err(|_| timeout())?
}

async fn connect(
    server: &str,
    (identity, pings): (&Identity, Pings),
) -> Result<Dialled, LinkError> {
    let (host, authority) = parse_server(server)?;
    let failed = |source| LinkError::Connect { server: server.to_owned(), source };
    let port = authority.port_u16().unwrap_or(443);
    let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(failed)?;
    tcp.set_nodelay(true).map_err(failed)?;
    let local = tcp.local_addr().map_err(failed)?;
    let name = ServerName::try_from(host).map_err(|_| LinkError::Address(server.to_owned()))?;
    let tls = tokio_rustls::TlsConnector::from(Arc::new(identity.tls()?));
    let stream = tls.connect(name, tcp).await.map_err(failed)?;
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(pings.interval)
        .keep_alive_timeout(pings.timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|source| LinkError::Handshake { server: server.to_owned(), source })?;
    let (offer, takes_tunnel) = watch::channel(false);
    Ok((Live { sender, authority, local, takes_tunnel }, connection, offer))
}

/// The host for TLS (without the brackets of IPv6) and the authority for requests.
pub(crate) fn parse_server(server: &str) -> Result<(String, Authority), LinkError> {
    let bad = || LinkError::Address(server.to_owned());
    let uri: Uri = server.parse().map_err(|_| bad())?;
    let authority = uri.authority().cloned().ok_or_else(bad)?;
    if uri.scheme_str() != Some("https") {
        return Err(bad());
    }
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    Ok((host, authority))
}

/// The tower service behind the kube client.
#[derive(Debug, Clone)]
struct LinkService {
    live: watch::Receiver<Option<Live>>,
}

impl tower::Service<Request<Body>> for LinkService {
    type Response = Response<hyper::body::Incoming>;
    type Error = LinkError;
    type Future = futures::future::BoxFuture<'static, Result<Self::Response, LinkError>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), LinkError>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let live = self.live.clone();
        Box::pin(async move {
            let current = tokio::time::timeout(REQUEST_WAIT, current(live)).await;
            let Live { mut sender, authority, .. } =
                current.ok().flatten().ok_or(LinkError::Down)?;
            let request = address(request, &authority)?;
            debug!(method = %request.method(), uri = %request.uri(), "request");
            let watches = is_watch(request.uri());
            let answer = sender.send_request(request);
            if watches {
                return Ok(answer.await?);
            }
            let answered = tokio::time::timeout(ANSWER_WAIT, answer).await;
            Ok(answered.map_err(|_| LinkError::Unanswered)??)
        })
    }
}

async fn current(mut live: watch::Receiver<Option<Live>>) -> Option<Live> {
    let usable = |live: &Option<Live>| live.as_ref().is_some_and(|live| !live.sender.is_closed());
    live.wait_for(usable).await.ok().and_then(|current| current.clone())
}

/// Whether the answer may begin only when something happens.
fn is_watch(uri: &Uri) -> bool {
    let mut parameters = uri.query().unwrap_or_default().split('&');
    parameters.any(|parameter| matches!(parameter, "watch=true" | "watch=1"))
}

fn address(request: Request<Body>, authority: &Authority) -> Result<Request<Body>, http::Error> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().cloned();
    parts.uri = Uri::builder()
        .scheme("https")
        .authority(authority.clone())
        .path_and_query(path.unwrap_or_else(|| PathAndQuery::from_static("/")))
        .build()?;
    parts.version = http::Version::HTTP_2;
    Ok(Request::from_parts(parts, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_addresses() {
        let (host, authority) = parse_server("https://[fd00::1]:6443").unwrap();
        assert_eq!((host.as_str(), authority.port_u16()), ("fd00::1", Some(6443)));
        assert_eq!(parse_server("https://m").unwrap().0, "m");
        for bad in ["http://m:1", "m:6443", "", "https://"] {
            assert!(parse_server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn watches_are_told_apart() {
        let is = |uri: &str| is_watch(&uri.parse().unwrap());
        assert!(is("https://m/api/v1/pods?&watch=true&timeoutSeconds=290"));
        assert!(!is("https://m/api/v1/pods?fieldSelector=a%3Dwatch") && !is("https://m/version"));
    }

    #[test]
    fn the_lost_master_is_tried_last() {
        let servers = || ["a", "b", "c"].map(str::to_owned).to_vec();
        assert_eq!(order(servers(), Some("a")), ["b", "c", "a"]);
        assert_eq!(order(servers(), Some("gone")), servers());
        assert_eq!(order(servers(), None), servers());
    }

    #[test]
    fn jitter_stays_between_half_and_all() {
        for _ in 0..200 {
            let got = jitter(Duration::from_secs(10));
            assert!((5.0..=10.0).contains(&got.as_secs_f64()));
        }
    }
}
