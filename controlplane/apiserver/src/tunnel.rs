//! Owns the tunnels that nodes hold open: one yamux connection per node, over which the master opens streams toward it.
//! Must not know what the streams carry.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use apimachinery::status::ApiError;
use futures::io::{AsyncRead, AsyncWrite};
use http::{Method, Response, StatusCode, request::Parts};
use hyper::{ext::Protocol, upgrade};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _};

use crate::{
    User,
    body::{self, Body},
};

/// Where a node asks for its tunnel.
pub const PATH: &str = "/flotilla/v1/tunnel";
/// `:protocol` of the extended CONNECT.
pub const PROTOCOL: &str = "flotilla-tunnel.v1";
/// First byte of a stream.
const STREAM_VERSION: u8 = 1;
const KIND_HTTP: u8 = 1;
const KIND_TCP: u8 = 2;
/// Streams at once toward one node; the node has the same bound.
const STREAMS_MAX: usize = 128;
/// yamux ends the whole tunnel at its own bound, and ended streams count until it has said so to the node.
const YAMUX_STREAMS_MAX: usize = 2 * STREAMS_MAX;
/// yamux reserves 256 KiB of window for each stream.
const WINDOW_BYTES_MAX: usize = YAMUX_STREAMS_MAX * 256 * 1024;
/// Requests for streams that wait for one node.
const WAITING_MAX: usize = 64;
/// Opening a stream costs no round trip; a tunnel that takes longer is dead.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// The node dials for so long itself.
const DIAL_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest text of a refusal that is read.
const REFUSAL_BYTES_MAX: u16 = 1024;

/// A stream toward a node, and its place among the tunnel's streams.
#[derive(Debug)]
pub struct TunnelStream {
    stream: Compat<yamux::Stream>,
    _place: OwnedSemaphorePermit,
}

impl tokio::io::AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl tokio::io::AsyncWrite for TunnelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The node holds no tunnel open.
    #[error("node \"{0}\" has no tunnel to this master")]
    NoTunnel(String),
    /// The tunnel went away while the stream was opened.
    #[error("the tunnel of node \"{0}\" broke")]
    Broken(String),
    /// The node did not answer in time.
    #[error("node \"{0}\" did not answer in time")]
    TimedOut(String),
    /// The node could not reach the address.
    #[error("node \"{node}\" can't reach {address}: {why}")]
    Refused {
        /// The node.
        node: String,
        /// The address.
        address: SocketAddr,
        /// What it said.
        why: String,
    },
    /// The stream failed.
    #[error("stream toward node \"{node}\"")]
    Io {
        /// The node.
        node: String,
        /// Why.
        source: io::Error,
    },
}

type Opened = oneshot::Sender<Result<yamux::Stream, yamux::ConnectionError>>;

#[derive(Debug)]
struct Tunnel {
    id: u64,
    open: mpsc::Sender<Opened>,
    places: Arc<Semaphore>,
}

/// The tunnels by node name; the newest of a node wins.
#[derive(Debug, Clone, Default)]
pub struct Tunnels {
    by_node: Arc<Mutex<HashMap<String, Tunnel>>>,
    next: Arc<AtomicU64>,
    changed: watch::Sender<()>,
    sent_away: watch::Sender<()>,
}

impl Tunnels {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Tunnel>> {
        self.by_node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the node holds a tunnel open.
    pub fn has(&self, node: &str) -> bool {
        self.lock().contains_key(node)
    }

    /// Turns whenever a tunnel comes or goes.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Turns when nodes are to go to another master.
    pub(crate) fn leaving(&self) -> watch::Receiver<()> {
        self.sent_away.subscribe()
    }

    pub(crate) fn send_away(&self) {
        self.sent_away.send_replace(());
    }

    /// The nodes that hold a tunnel open, with a number that no other tunnel of this process has.
    pub(crate) fn held(&self) -> HashMap<String, u64> {
        self.lock().iter().map(|(node, tunnel)| (node.clone(), tunnel.id)).collect()
    }

    /// The number of tunnels.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether no node holds a tunnel open.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Answers a node's request for its tunnel; `None` when the request is no such.
    pub(crate) fn accept(
        &self,
        parts: &mut Parts,
        user: &User,
    ) -> Option<Result<Response<Body>, ApiError>> {
        if parts.uri.path() != PATH {
            return None;
        }
        Some(self.accept_node(parts, user))
    }

    fn accept_node(&self, parts: &mut Parts, user: &User) -> Result<Response<Body>, ApiError> {
        let Some(node) = user.node_name().map(str::to_owned) else {
            return Err(ApiError::new(
                403,
                apimachinery::status::Reason::Forbidden,
                format!(
                    "User \"{}\" is no node: only a node's certificate opens a tunnel",
                    user.name
                ),
            ));
        };
        let protocol = parts.extensions.get::<Protocol>().map(Protocol::as_str);
        if parts.method != Method::CONNECT || protocol != Some(PROTOCOL) {
            return Err(ApiError::bad_request(format!(
                "a tunnel is an HTTP/2 extended CONNECT with :protocol {PROTOCOL}"
            )));
        }
        let Some(upgrading) = parts.extensions.remove::<upgrade::OnUpgrade>() else {
            return Err(ApiError::bad_request("this connection can't carry a tunnel"));
        };
        let tunnels = self.clone();
        tokio::spawn(async move {
            match upgrading.await {
                Ok(upgraded) => tunnels.hold(node, TokioIo::new(upgraded).compat()).await,
                Err(error) => {
                    tracing::debug!(node, %error, "a tunnel was asked for and not opened")
                }
            }
        });
        Ok(Response::new(body::empty()))
    }

    /// Registers a node's connection and drives it to its end.
    pub async fn hold(&self, node: String, io: impl AsyncRead + AsyncWrite + Unpin + Send) {
        let mut config = yamux::Config::default();
        config
            .set_max_num_streams(YAMUX_STREAMS_MAX)
            .set_max_connection_receive_window(Some(WINDOW_BYTES_MAX));
        let connection = yamux::Connection::new(io, config, yamux::Mode::Client);
        let (open, asked) = mpsc::channel(WAITING_MAX);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let places = Arc::new(Semaphore::new(STREAMS_MAX));
        let older = self.lock().insert(node.clone(), Tunnel { id, open, places });
        tracing::info!(node, replaced = older.is_some(), "tunnel open");
        drop(older);
        self.changed.send_replace(());
        let ended = drive(connection, asked).await;
        let mut tunnels = self.lock();
        if tunnels.get(&node).is_some_and(|t| t.id == id) {
            tunnels.remove(&node);
        }
        drop(tunnels);
        self.changed.send_replace(());
        match ended {
            Ok(()) => tracing::info!(node, "tunnel closed"),
            Err(error) => tracing::info!(node, %error, "tunnel broke"),
        }
    }

    async fn stream(&self, node: &str, kind: u8) -> Result<TunnelStream, TunnelError> {
        let (open, places) = self
            .lock()
            .get(node)
            .map(|t| (t.open.clone(), t.places.clone()))
            .ok_or_else(|| TunnelError::NoTunnel(node.to_owned()))?;
        let broken = || TunnelError::Broken(node.to_owned());
        let opened = async {
            let place = places.acquire_owned().await.map_err(|_| broken())?;
            let (answer, stream) = oneshot::channel();
            open.send(answer).await.map_err(|_| broken())?;
            let stream = stream.await.map_err(|_| broken())?.map_err(|_| broken())?;
            Ok(TunnelStream { stream: stream.compat(), _place: place })
        };
        let mut stream = timeout(OPEN_TIMEOUT, opened)
            .await
            .map_err(|_| TunnelError::TimedOut(node.to_owned()))??;
        stream.write_all(&[STREAM_VERSION, kind]).await.map_err(|source| io_error(node, source))?;
        Ok(stream)
    }

    /// A connection to the node's own HTTP server.
    ///
    /// # Errors
    /// The node has no tunnel, or it broke.
    pub async fn dial_http(&self, node: &str) -> Result<TunnelStream, TunnelError> {
        self.stream(node, KIND_HTTP).await
    }

    /// A TCP connection from the node to an address as it sees it.
    ///
    /// # Errors
    /// The node has no tunnel, or can't reach the address.
    pub async fn dial_tcp(
        &self,
        node: &str,
        address: SocketAddr,
    ) -> Result<TunnelStream, TunnelError> {
        let mut stream = self.stream(node, KIND_TCP).await?;
        let dialled = dial(&mut stream, address);
        let answer =
            timeout(DIAL_TIMEOUT, dialled).await.map_err(|_| TunnelError::TimedOut(node.into()))?;
        match answer.map_err(|source| io_error(node, source))? {
            None => Ok(stream),
            Some(why) => Err(TunnelError::Refused { node: node.to_owned(), address, why }),
        }
    }
}

fn io_error(node: &str, source: io::Error) -> TunnelError {
    TunnelError::Io { node: node.to_owned(), source }
}

/// Sends the address; the node's refusal, if it refuses.
async fn dial(stream: &mut TunnelStream, address: SocketAddr) -> io::Result<Option<String>> {
    let text = address.to_string();
    stream.write_u16(u16::try_from(text.len()).map_err(io::Error::other)?).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await?;
    if stream.read_u8().await? == 0 {
        return Ok(None);
    }
    let length = stream.read_u16().await?.min(REFUSAL_BYTES_MAX);
    let mut why = vec![0; usize::from(length)];
    stream.read_exact(&mut why).await?;
    Ok(Some(String::from_utf8_lossy(&why).into_owned()))
}

/// Opens streams as they are asked for, until the connection ends. The node opens none.
async fn drive(
    mut connection: yamux::Connection<impl AsyncRead + AsyncWrite + Unpin>,
    mut asked: mpsc::Receiver<Opened>,
) -> Result<(), yamux::ConnectionError> {
    let mut waiting: Option<Opened> = None;
    let mut replaced = false;
    std::future::poll_fn(|cx: &mut Context<'_>| {
        loop {
            // First, so that streams that have ended make room for those asked for.
            match connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => {
                    drop(stream);
                    continue;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => {}
            }
            if waiting.is_none() && !replaced {
                match asked.poll_recv(cx) {
                    Poll::Ready(Some(answer)) => waiting = Some(answer),
                    // A newer tunnel has taken over; what is open goes on.
                    Poll::Ready(None) => replaced = true,
                    Poll::Pending => {}
                }
            }
            if waiting.is_some()
                && let Poll::Ready(opened) = connection.poll_new_outbound(cx)
            {
                if let Some(answer) = waiting.take() {
                    // Whoever asked may have stopped waiting; then the stream closes as it drops.
                    drop(answer.send(opened));
                }
                continue;
            }
            return Poll::Pending;
        }
    })
    .await
}

impl From<TunnelError> for ApiError {
    fn from(error: TunnelError) -> Self {
        let chain = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        match error {
            TunnelError::TimedOut(_) => Self::timeout(chain, 1),
            _ => Self::new(
                StatusCode::BAD_GATEWAY.as_u16(),
                apimachinery::status::Reason::ServiceUnavailable,
                format!("error dialing backend: {chain}"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::DuplexStream;

    /// A node that echoes HTTP streams in capitals and refuses TCP.
    async fn node(io: DuplexStream) {
        let mut connection =
            yamux::Connection::new(io.compat(), yamux::Config::default(), yamux::Mode::Server);
        while let Some(Ok(stream)) =
            std::future::poll_fn(|cx| connection.poll_next_inbound(cx)).await
        {
            tokio::spawn(async move {
                let mut stream = stream.compat();
                let mut head = [0; 2];
                stream.read_exact(&mut head).await.unwrap();
                if head == [1, 2] {
                    let length = stream.read_u16().await.unwrap();
                    let mut address = vec![0; usize::from(length)];
                    stream.read_exact(&mut address).await.unwrap();
                    stream.write_all(&[1, 0, 2, b'n', b'o']).await.unwrap();
                    return;
                }
                let mut text = [0; 5];
                stream.read_exact(&mut text).await.unwrap();
                stream.write_all(&text.to_ascii_uppercase()).await.unwrap();
                stream.flush().await.unwrap();
            });
        }
    }

    #[tokio::test]
    async fn streams_reach_the_newest_tunnel() {
        let tunnels = Tunnels::default();
        assert!(matches!(tunnels.dial_http("n1").await, Err(TunnelError::NoTunnel(_))));
        let mut older = None;
        for i in 0..2 {
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let node = tokio::spawn(node(theirs));
            let held = tunnels.clone();
            tokio::spawn(async move { held.hold("n1".into(), ours.compat()).await });
            while tunnels.lock().get("n1").is_none_or(|t| t.id < i) {
                tokio::task::yield_now().await;
            }
            if i == 0 {
                older = Some(node);
            }
        }
        older.unwrap().abort();
        for _ in 0..3 {
            let mut stream = tunnels.dial_http("n1").await.unwrap();
            stream.write_all(b"hello").await.unwrap();
            stream.flush().await.unwrap();
            let mut text = [0; 5];
            stream.read_exact(&mut text).await.unwrap();
            assert_eq!(&text, b"HELLO");
        }
        let refused = tunnels.dial_tcp("n1", "10.0.0.1:80".parse().unwrap()).await;
        assert!(matches!(refused, Err(TunnelError::Refused { why, .. }) if why == "no"));
    }

    #[tokio::test]
    async fn one_stream_too_many_waits_for_a_place() {
        let tunnels = Tunnels::default();
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(node(theirs));
        let held = tunnels.clone();
        tokio::spawn(async move { held.hold("n1".into(), ours.compat()).await });
        tunnels.changes().wait_for(|()| tunnels.has("n1")).await.unwrap();
        let mut streams = Vec::new();
        for _ in 0..STREAMS_MAX {
            streams.push(tunnels.dial_http("n1").await.unwrap());
        }
        let mut next = Box::pin(tunnels.dial_http("n1"));
        assert!(timeout(Duration::from_millis(50), &mut next).await.is_err());
        streams.pop();
        let mut stream = next.await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.flush().await.unwrap();
        let mut text = [0; 5];
        stream.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"HELLO");
    }
}
