//! The tunnel inwards: one extended CONNECT stream of the link carrying yamux, over which the
//! master opens streams toward this node. It hands HTTP streams to the server and joins raw ones
//! to a TCP connection; it decides nothing about them.
//!
//! A stream begins with two bytes, version (1) and kind: 1 is HTTP/1.1; 2 is followed by a u16
//! length and `ip:port`, answered with u8 0, or u8 1, a u16 length and a text.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use kube::client::Body;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use tracing::{debug, warn};

use crate::connection::{Link, Live, chain};

const PROTOCOL: &str = "flotilla-tunnel.v1";
const PATH: &str = "/flotilla/v1/tunnel";
const STREAM_VERSION: u8 = 1;
const KIND_HTTP: u8 = 1;
const KIND_TCP: u8 = 2;
/// Streams the master may have open at once; one more is dropped.
const STREAMS_MAX: usize = 128;
/// yamux ends the whole tunnel at its own bound, and ended streams count until it has said so to the master.
const YAMUX_STREAMS_MAX: usize = 2 * STREAMS_MAX;
/// yamux reserves 256 KiB of window for each stream.
const WINDOW_BYTES_MAX: usize = YAMUX_STREAMS_MAX * 256 * 1024;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the master may take to say that it speaks extended CONNECT.
const SETTINGS_DEADLINE: Duration = Duration::from_secs(5);
const REOPEN_DELAY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    #[error("the master offers no extended CONNECT")]
    NotOffered,
    #[error("the request for the tunnel is invalid")]
    Request(#[from] http::Error),
    #[error("the tunnel failed")]
    Hyper(#[from] hyper::Error),
    #[error("the master refused the tunnel with status {0}")]
    Refused(http::StatusCode),
    #[error("the tunnel broke")]
    Yamux(#[from] yamux::ConnectionError),
    #[error("a stream failed")]
    Io(#[from] std::io::Error),
    #[error("a stream has version {0}, kind {1}; this agent knows version 1, kinds 1 and 2")]
    UnknownStream(u8, u8),
}

/// Serves one byte stream that speaks HTTP/1.1.
pub(crate) trait ServeHttp: Send + Sync + 'static {
    fn serve<S>(&self, stream: S) -> impl Future<Output = ()> + Send
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static;
}

/// Keeps the tunnel open whenever the link is up. One over a link that goes away lives on beside
/// the next until its master lets go of it, so that what flows through it can end.
pub(crate) async fn run(link: Arc<Link>, server: Arc<impl ServeHttp>) {
    let mut live = link.subscribe();
    let mut tunnels = JoinSet::new();
    loop {
        let current = match live.wait_for(Option::is_some).await {
            Ok(current) => current.clone(),
            Err(_) => return,
        };
        if let Some(current) = current {
            tunnels.spawn(keep(current, server.clone()));
        }
        if live.changed().await.is_err() {
            return;
        }
        while tunnels.try_join_next().is_some() {}
    }
}

async fn keep(live: Live, server: Arc<impl ServeHttp>) {
    loop {
        match hold(live.clone(), &server).await {
            Ok(()) => debug!("the tunnel was closed"),
            Err(error) if live.sender.is_closed() => {
                return debug!(error = %chain(&error), "the tunnel went with its link");
            }
            Err(error) => warn!(error = %chain(&error), "the tunnel is down"),
        }
        if live.sender.is_closed() {
            return;
        }
        tokio::time::sleep(REOPEN_DELAY).await;
    }
}

async fn hold(mut live: Live, server: &Arc<impl ServeHttp>) -> Result<(), TunnelError> {
    let offered = live.takes_tunnel.wait_for(|offered| *offered);
    match tokio::time::timeout(SETTINGS_DEADLINE, offered).await {
        Ok(Ok(_)) => {}
        _ => return Err(TunnelError::NotOffered),
    }
    let request = http::Request::builder()
        .method(http::Method::CONNECT)
        .uri(format!("https://{}{PATH}", live.authority))
        .extension(hyper::ext::Protocol::from_static(PROTOCOL))
        .body(Body::empty())?;
    let response = live.sender.send_request(request).await?;
    if !response.status().is_success() {
        return Err(TunnelError::Refused(response.status()));
    }
    drop(live);
    let stream = TokioIo::new(hyper::upgrade::on(response).await?);
    debug!("the tunnel is open");
    serve(stream, server).await
}

/// Serves the master's streams until the tunnel ends.
async fn serve<S>(stream: S, server: &Arc<impl ServeHttp>) -> Result<(), TunnelError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut config = yamux::Config::default();
    config
        .set_max_num_streams(YAMUX_STREAMS_MAX)
        .set_max_connection_receive_window(Some(WINDOW_BYTES_MAX));
    let mut connection = yamux::Connection::new(stream.compat(), config, yamux::Mode::Server);
    let places = Arc::new(Semaphore::new(STREAMS_MAX));
    while let Some(stream) = std::future::poll_fn(|cx| connection.poll_next_inbound(cx)).await {
        let stream = stream?.compat();
        let Ok(place) = places.clone().try_acquire_owned() else {
            warn!("more streams than allowed; one was dropped");
            continue;
        };
        let server = server.clone();
        tokio::spawn(async move {
            if let Err(error) = accept(stream, &*server).await {
                debug!(error = %chain(&error), "a stream of the tunnel ended");
            }
            drop(place);
        });
    }
    Ok(())
}

async fn accept<S>(mut stream: S, server: &impl ServeHttp) -> Result<(), TunnelError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let timed_out = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    let mut head = [0u8; 2];
    tokio::time::timeout(HEADER_TIMEOUT, stream.read_exact(&mut head))
        .await
        .map_err(timed_out)??;
    match head {
        [STREAM_VERSION, KIND_HTTP] => {
            server.serve(stream).await;
            Ok(())
        }
        [STREAM_VERSION, KIND_TCP] => {
            let address = tokio::time::timeout(HEADER_TIMEOUT, read_address(&mut stream))
                .await
                .map_err(timed_out)??;
            join(stream, &address).await
        }
        [version, kind] => Err(TunnelError::UnknownStream(version, kind)),
    }
}

async fn read_address(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<String> {
    let length = stream.read_u16().await?;
    let mut text = vec![0u8; usize::from(length)];
    stream.read_exact(&mut text).await?;
    String::from_utf8(text)
        .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
}

async fn join<S>(mut stream: S, address: &str) -> Result<(), TunnelError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match dial(address).await {
        Ok(mut target) => {
            stream.write_all(&[0]).await?;
            stream.flush().await?;
            tokio::io::copy_bidirectional(&mut stream, &mut target).await?;
        }
        Err(error) => {
            let text = format!("dial tcp {address}: {error}");
            let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
            let mut answer = vec![1];
            answer.extend_from_slice(&length.to_be_bytes());
            answer.extend_from_slice(&text.as_bytes()[..usize::from(length)]);
            stream.write_all(&answer).await?;
            stream.shutdown().await?;
        }
    }
    Ok(())
}

async fn dial(address: &str) -> std::io::Result<TcpStream> {
    let invalid = |error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error);
    let address: SocketAddr = address.parse().map_err(invalid)?;
    tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(address))
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;
    impl ServeHttp for Nobody {
        async fn serve<S>(&self, mut stream: S)
        where
            S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        {
            stream.write_all(b"http").await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_raw_stream_reaches_its_address_or_says_why_not() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut peer, _) = listener.accept().await.unwrap();
            peer.write_all(b"hello").await.unwrap();
        });
        for (target, expected) in [(address.as_str(), &b"\0hello"[..]), ("127.0.0.1:1", b"\x01")] {
            let (mut ours, theirs) = tokio::io::duplex(1024);
            tokio::spawn(async move { accept(theirs, &Nobody).await.unwrap() });
            let mut head = vec![STREAM_VERSION, KIND_TCP, 0, u8::try_from(target.len()).unwrap()];
            head.extend_from_slice(target.as_bytes());
            ours.write_all(&head).await.unwrap();
            let mut answer = vec![0u8; expected.len()];
            ours.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, expected);
        }
        let (mut ours, theirs) = tokio::io::duplex(64);
        ours.write_all(&[1, 9]).await.unwrap();
        assert!(matches!(accept(theirs, &Nobody).await, Err(TunnelError::UnknownStream(1, 9))));
    }

    #[tokio::test]
    async fn one_stream_too_many_is_dropped_and_not_the_tunnel() {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(async move { serve(theirs, &Arc::new(Nobody)).await });
        let config = yamux::Config::default();
        let mut master = yamux::Connection::new(ours.compat(), config, yamux::Mode::Client);
        let mut streams = Vec::new();
        for _ in 0..=STREAMS_MAX {
            let stream = std::future::poll_fn(|cx| master.poll_new_outbound(cx)).await.unwrap();
            streams.push(stream.compat());
        }
        tokio::spawn(async move {
            std::future::poll_fn(|cx| master.poll_next_inbound(cx)).await.is_none()
        });
        for stream in &mut streams {
            stream.write_all(&[STREAM_VERSION]).await.unwrap();
            stream.flush().await.unwrap();
        }
        assert!(streams[STREAMS_MAX].read_u8().await.is_err());
        streams[0].write_all(&[KIND_HTTP]).await.unwrap();
        streams[0].flush().await.unwrap();
        let mut answer = [0u8; 4];
        streams[0].read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"http");
    }
}
