//! Owns the sockets: who may connect, how many, and HTTP/2's settings. Hands requests to `route`.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::grpc::authority::Overwritten;
use crate::grpc::route;
use crate::grpc::{Services, stopped};

/// Connections of one listener; further ones wait in the kernel.
const CONNECTIONS_MAX: usize = 1024;
/// Calls at a time of one connection; a client that has more waits.
const STREAMS_MAX: u32 = 2048;
/// What may be on its way to us on one stream, and on one connection: a few of the largest transactions.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// What one stream may have waiting to be sent.
const SEND_BUFFER_BYTES: usize = 1 << 20;
/// A client that answers no ping so long is gone.
const PING_PERIOD: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long open calls may go on after the signal to stop.
const DRAIN: Duration = Duration::from_secs(1);
/// After a failure to accept (no more files), the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Makes the socket at `path` for its owner alone; what an earlier process left there is replaced.
///
/// # Errors
/// The path is too long for a socket, or holds something that is none.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            let message = format!("{} is there, and is no socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        _ => {}
    }
    // Under another name until only its owner can connect.
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}

/// Where clients come from.
trait Door: Send + Sync + 'static {
    type Guest: Send + 'static;
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Guest>> + Send;
    /// May take long, and happens beside other clients.
    fn greet(
        &self,
        guest: Self::Guest,
    ) -> impl Future<Output = io::Result<Self::Stream>> + Send + 'static;
}

impl Door for UnixListener {
    type Guest = UnixStream;
    type Stream = Overwritten<UnixStream>;

    async fn accept(&self) -> io::Result<UnixStream> {
        Ok(Self::accept(self).await?.0)
    }

    fn greet(
        &self,
        guest: UnixStream,
    ) -> impl Future<Output = io::Result<Overwritten<UnixStream>>> + Send + 'static {
        std::future::ready(Ok(Overwritten::new(guest)))
    }
}

struct TlsDoor {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Door for TlsDoor {
    type Guest = TcpStream;
    type Stream = TlsStream<TcpStream>;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn greet(
        &self,
        guest: TcpStream,
    ) -> impl Future<Output = io::Result<TlsStream<TcpStream>>> + Send + 'static {
        let greeted = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(guest));
        async move { greeted.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))? }
    }
}

impl Services {
    /// Answers on a Unix socket until `stop`.
    pub async fn serve_unix(&self, listener: UnixListener, stop: watch::Receiver<bool>) {
        self.serve(listener, stop).await;
    }

    /// Answers on a TLS socket until `stop`; `tls` says which clients may come, and offers `h2`.
    pub async fn serve_tls(
        &self,
        listener: TcpListener,
        tls: Arc<ServerConfig>,
        stop: watch::Receiver<bool>,
    ) {
        self.serve(TlsDoor { listener, acceptor: TlsAcceptor::from(tls) }, stop).await;
    }

    async fn serve(&self, door: impl Door, mut stop: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            // The semaphore is never closed.
            let Ok(place) = places.clone().acquire_owned().await else { break };
            let accepted = tokio::select! {
                accepted = door.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                () = stopped(&mut stop) => break,
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection to the etcd API could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (services, greeted, stop) = (self.clone(), door.greet(stream), stop.clone());
            connections.spawn(async move {
                match greeted.await {
                    Ok(stream) => services.connection(stream, stop).await,
                    Err(error) => tracing::debug!(%error, "a client of the etcd API was refused"),
                }
                drop(place);
            });
        }
        while connections.join_next().await.is_some() {}
    }

    async fn connection<T>(&self, stream: T, mut stop: watch::Receiver<bool>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (services, stopping) = (self.clone(), stop.clone());
        let service = service_fn(move |request| {
            let (services, stopping) = (services.clone(), stopping.clone());
            async move {
                Ok::<_, std::convert::Infallible>(route::call(services, request, stopping).await)
            }
        });
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .keep_alive_interval(PING_PERIOD)
            .keep_alive_timeout(PING_TIMEOUT);
        let mut connection =
            std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stopped(&mut stop) => {
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(DRAIN, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection to the etcd API ended");
        }
    }
}
