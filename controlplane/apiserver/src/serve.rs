//! Owns the socket: TLS, HTTP/1.1 and HTTP/2 (extended CONNECT offered), bounds, draining. Hands each request to the handler with
//! who sent it. Must not know resources.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use apimachinery::status::ApiError;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use jiff::Timestamp;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use crate::{ApiServer, Body, BodyError, Caller, User, authn::anonymous, respond};

/// Connections at once: thousands of nodes with one each, and their clients.
const CONNECTIONS_MAX: usize = 16 * 1024;
/// A client proves that it means it within this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A request's head, and the pause between two requests of an HTTP/1.1 connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);
/// Kubernetes has many header values of kilobytes (tokens); more than this is nobody's.
const HEAD_BYTES_MAX: u32 = 64 * 1024;
const HTTP1_BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Streams of one HTTP/2 connection: a node's requests, watches and tunnel.
const STREAMS_MAX: u32 = 1000;
/// Bytes that wait for one slow stream.
const STREAM_SEND_BYTES_MAX: usize = 64 * 1024;
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Finds a dead peer without costing an idle link much.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Wait after a failed accept, mostly for file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl ApiServer {
    /// Serves connections of `listener` until `shutdown` turns true, then lets open requests end within the drain time.
    ///
    /// # Errors
    /// Never for one connection's sake; only when the listener's own task can't go on.
    pub async fn serve(
        &self,
        listener: TcpListener,
        tls: Arc<ServerConfig>,
        mut shutdown: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let acceptor = TlsAcceptor::from(tls);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                    () = stopping(&mut shutdown) => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let connection = Connection { server: self.clone(), peer, shutdown: shutdown.clone() };
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                connection.run(stream, acceptor).await;
                drop(place);
            });
        }
        self.close();
        let drained = async { while connections.join_next().await.is_some() {} };
        if timeout(self.config().drain, drained).await.is_err() {
            tracing::info!("open requests were cut off after the drain time");
            connections.shutdown().await;
        }
        Ok(())
    }
}

struct Connection {
    server: ApiServer,
    peer: SocketAddr,
    shutdown: watch::Receiver<bool>,
}

impl Connection {
    fn is_node(&self, certificate: Option<&[u8]>) -> bool {
        let who = self.server.authenticator().authenticate(
            certificate,
            &http::HeaderMap::new(),
            Timestamp::now(),
        );
        who.is_ok_and(|user| user.node_name().is_some())
    }

    async fn run(mut self, stream: TcpStream, acceptor: TlsAcceptor) {
        let peer = self.peer;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "TCP_NODELAY");
        }
        let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => return tracing::debug!(%peer, "TLS handshake timed out"),
        };
        let (_, session) = stream.get_ref();
        let certificate: Option<Arc<[u8]>> =
            session.peer_certificates().and_then(|c| c.first()).map(|c| Arc::from(c.as_ref()));
        let is_node = self.is_node(certificate.as_deref());
        let mut leaving = self.server.tunnels().leaving();
        let server = self.server.clone();
        let service =
            service_fn(move |request| answer(server.clone(), certificate.clone(), request));
        let builder = builder();
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let stopped = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = stopping(&mut self.shutdown) => None,
            // All of it at once, watches and tunnel too: the node is to have them elsewhere.
            Ok(()) = leaving.changed(), if is_node => return,
        };
        let ended = match stopped {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "connection ended");
        }
    }
}

/// Returns when the server is to stop.
pub(crate) async fn stopping(shutdown: &mut watch::Receiver<bool>) {
    // Whoever could stop the server being gone stops it too.
    let _stop_or_gone = shutdown.wait_for(|stop| *stop).await.is_ok();
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HTTP1_BUFFER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_send_buf_size(STREAM_SEND_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// Boxed, so that the connection's future stays small.
fn answer(
    server: ApiServer,
    certificate: Option<Arc<[u8]>>,
    request: Request<Incoming>,
) -> BoxFuture<'static, Result<Response<Body>, Infallible>> {
    Box::pin(async move {
        let request = request.map(|body| body.map_err(BodyError::from).boxed_unsync());
        let user = match authenticate(&server, certificate.as_deref(), &request) {
            Ok(user) => user,
            Err(error) => return Ok(respond::error(&error)),
        };
        Ok(server.handle(request, Caller::new(user)).await)
    })
}

fn authenticate(
    server: &ApiServer,
    certificate: Option<&[u8]>,
    request: &Request<Body>,
) -> Result<User, ApiError> {
    let path = request.uri().path();
    let who = server.authenticator().authenticate(certificate, request.headers(), Timestamp::now());
    let user = who.map_err(|error| {
        tracing::debug!(%error, path, "unauthorized");
        error.to_api_error()
    })?;
    let open = matches!(path, "/cacerts" | "/healthz" | "/livez" | "/readyz");
    if user.name == anonymous::NAME && !server.config().anonymous_auth && !open {
        return Err(ApiError::unauthorized("Unauthorized"));
    }
    Ok(user)
}
