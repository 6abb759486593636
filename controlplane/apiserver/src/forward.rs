//! Owns streams toward nodes whose tunnel another master holds: the dial goes to that master over TLS and an HTTP/1.1 upgrade, and bytes
//! are copied. A forwarded dial uses a tunnel of the master that gets it or fails; it is never forwarded again.
//!
//! `GET /flotilla/v1/forward?node=<name>[&address=<ip:port>]` with `Upgrade: flotilla-forward.v1`, asked by a master; answered 101, then
//! the bytes of the node's stream. Without an address the stream leads to the node's own server.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use apimachinery::status::{ApiError, Reason};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header, request::Parts};
use hyper::{client::conn::http1, upgrade};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{io::copy_bidirectional, net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use crate::{
    Body, User,
    body::{self, BodyError},
    nodes::Stream,
    query::Query,
    tunnel::Tunnels,
    user::GROUP_MASTERS,
};

/// Where a master asks another one for a stream.
pub(crate) const PATH: &str = "/flotilla/v1/forward";
const PROTOCOL: &str = "flotilla-forward.v1";
/// Reaching the other master.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The other master's dial to the node, with its own bounds.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// What is read of a refusal.
const REFUSAL_BYTES_MAX: usize = 10 * 1024;

/// Why another master brought no stream.
#[derive(Debug, thiserror::Error)]
enum ForwardError {
    #[error("it did not answer in time")]
    TimedOut,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error(transparent)]
    Request(#[from] http::Error),
    #[error("{0}")]
    Body(BodyError),
}

/// A stream toward `node` through the master that holds its tunnel.
pub(crate) async fn dial(
    tls: &Arc<ClientConfig>,
    master: SocketAddr,
    (node, address): (&str, Option<SocketAddr>),
) -> Result<Stream, ApiError> {
    let failed = |error: ForwardError| {
        let message = format!(
            "error dialing backend: node \"{node}\": its tunnel is at the master {master}: {error}"
        );
        ApiError::new(StatusCode::BAD_GATEWAY.as_u16(), Reason::ServiceUnavailable, message)
    };
    let asked = ask(tls, master, (node, address));
    let response = match timeout(DIAL_TIMEOUT, Box::pin(asked)).await {
        Ok(answer) => answer.map_err(failed)?,
        Err(_) => return Err(failed(ForwardError::TimedOut)),
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let upgraded = upgrade::on(response).await.map_err(|error| failed(error.into()))?;
        return Ok(Box::new(TokioIo::new(upgraded)));
    }
    let refusal = response.map(|body| {
        http_body_util::BodyExt::boxed_unsync(http_body_util::BodyExt::map_err(
            body,
            BodyError::from,
        ))
    });
    let code = refusal.status().as_u16();
    let bytes = body::collect(refusal.into_body(), REFUSAL_BYTES_MAX).await;
    let status = bytes.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let refused = status.and_then(|status| ApiError::from_status(&status));
    Err(refused.unwrap_or_else(|| failed(ForwardError::Body(format!("it answered {code}").into()))))
}

async fn ask(
    tls: &Arc<ClientConfig>,
    master: SocketAddr,
    (node, address): (&str, Option<SocketAddr>),
) -> Result<Response<hyper::body::Incoming>, ForwardError> {
    let connect = async {
        let stream = TcpStream::connect(master).await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::clone(tls));
        connector.connect(ServerName::IpAddress(master.ip().into()), stream).await
    };
    let connected = timeout(CONNECT_TIMEOUT, connect).await;
    let stream = connected.map_err(|_| ForwardError::TimedOut)??;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to another master ended");
        }
    });
    let address = address.map(|address| format!("&address={address}")).unwrap_or_default();
    let uri: Uri = format!("{PATH}?node={node}{address}").parse().map_err(http::Error::from)?;
    let request = Request::builder()
        .uri(uri)
        .header(header::HOST, master.to_string())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, PROTOCOL)
        .body(body::empty())?;
    Ok(sender.send_request(request).await?)
}

/// Answers another master's request for a stream.
pub(crate) async fn accept(
    tunnels: &Tunnels,
    parts: &mut Parts,
    user: &User,
) -> Result<Response<Body>, ApiError> {
    if !user.is_in(GROUP_MASTERS) {
        let message = format!(
            "User \"{}\" is no master: only a master's certificate opens a stream toward a node",
            user.name
        );
        return Err(ApiError::new(403, Reason::Forbidden, message));
    }
    let upgrade_to = parts.headers.get(header::UPGRADE).map(HeaderValue::as_bytes);
    if parts.method != Method::GET || upgrade_to != Some(PROTOCOL.as_bytes()) {
        let message = format!("a stream is a GET with Upgrade: {PROTOCOL}");
        return Err(ApiError::bad_request(message));
    }
    let Some(upgrading) = parts.extensions.remove::<upgrade::OnUpgrade>() else {
        return Err(ApiError::bad_request("this connection can't carry a stream"));
    };
    let query = Query::parse(parts.uri.query());
    let node = query.get("node").to_owned();
    let mut stream = match query.get("address") {
        "" => tunnels.dial_http(&node).await?,
        text => {
            let address =
                text.parse().map_err(|_| ApiError::bad_request("address is no ip:port"))?;
            tunnels.dial_tcp(&node, address).await?
        }
    };
    tokio::spawn(async move {
        let copied = async {
            let mut upgraded = TokioIo::new(upgrading.await.map_err(io::Error::other)?);
            copy_bidirectional(&mut upgraded, &mut stream).await
        };
        if let Err(error) = copied.await {
            tracing::debug!(node, %error, "a forwarded stream ended");
        }
    });
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
    Ok(response)
}
