//! Sends one request over a stream as HTTP/1.1 and hands back the answer; after a 101 both sides' bytes are copied, bounded by one
//! buffer each way. Must not look into bodies.

use apimachinery::status::{ApiError, Reason};
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
        SEC_WEBSOCKET_PROTOCOL, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
};
use http_body_util::BodyExt as _;
use hyper::{client::conn::http1, upgrade};
use hyper_util::rt::TokioIo;

use crate::{
    authn::{WEBSOCKET_BEARER_PREFIX, impersonation},
    body::{self, Body, BodyError},
    nodes::Stream,
};

/// Buffer of each direction of an upgraded connection.
const COPY_BUFFER_BYTES: usize = 16 * 1024;

/// Headers that belong to one connection, or to us.
const OURS: &[HeaderName] = &[
    AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    HOST,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Relays `request` to `path_and_query` of whoever is at the other end of `stream`.
pub(super) async fn relay(
    stream: Stream,
    (host, path_and_query): (&str, &str),
    mut request: Request<Body>,
) -> Result<Response<Body>, ApiError> {
    let asked = upgrade_of(request.headers(), request.version());
    let ours = asked.as_ref().map(|_| upgrade::on(&mut request));
    let outgoing = outgoing(request, (host, path_and_query), asked)?;
    let io = TokioIo::new(stream);
    let (mut sender, connection) = http1::handshake(io).await.map_err(|e| failed(&e))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection toward a node ended");
        }
    });
    let mut response = sender.send_request(outgoing).await.map_err(|e| failed(&e))?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(ours) = ours else {
            return Err(ApiError::internal("the node switched protocols without being asked"));
        };
        let theirs = upgrade::on(&mut response);
        tokio::spawn(copy(ours, theirs));
        let mut answer = Response::new(body::empty());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = response.headers().clone();
        return Ok(answer);
    }
    let (mut parts, body) = response.into_parts();
    strip(&mut parts.headers);
    parts.version = Version::HTTP_11;
    // The connection lives as long as its answer: dropping the answer's body ends both.
    let body = body.map_err(BodyError::from).map_frame(move |frame| {
        let _alive = &sender;
        frame
    });
    Ok(Response::from_parts(parts, body.boxed_unsync()))
}

/// What the client wants to switch to.
fn upgrade_of(headers: &HeaderMap, version: Version) -> Option<HeaderValue> {
    if version != Version::HTTP_11 {
        return None;
    }
    headers.get(UPGRADE).cloned()
}

fn outgoing(
    request: Request<Body>,
    (host, path_and_query): (&str, &str),
    upgrade: Option<HeaderValue>,
) -> Result<Request<Body>, ApiError> {
    let (parts, body) = request.into_parts();
    let invalid = |e: &dyn std::fmt::Display| ApiError::bad_request(format!("request: {e}"));
    let mut outgoing = Request::new(body);
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = path_and_query.parse().map_err(|e| invalid(&e))?;
    let mut headers = parts.headers;
    strip(&mut headers);
    hide_token(&mut headers);
    let impersonating: Vec<HeaderName> =
        headers.keys().filter(|name| impersonation::is_header(name.as_str())).cloned().collect();
    for name in impersonating {
        headers.remove(name);
    }
    headers.insert(HOST, HeaderValue::from_str(host).map_err(|e| invalid(&e))?);
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, upgrade);
    }
    *outgoing.headers_mut() = headers;
    Ok(outgoing)
}

fn strip(headers: &mut HeaderMap) {
    for name in OURS {
        headers.remove(name);
    }
}

/// Browsers authenticate by a protocol that they offer besides those they mean.
fn hide_token(headers: &mut HeaderMap) {
    let offered: Vec<HeaderValue> =
        headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().cloned().collect();
    headers.remove(SEC_WEBSOCKET_PROTOCOL);
    for value in offered {
        let Ok(text) = value.to_str() else { continue };
        let meant: Vec<&str> = text
            .split(',')
            .map(str::trim)
            .filter(|protocol| {
                !protocol.is_empty() && !protocol.starts_with(WEBSOCKET_BEARER_PREFIX)
            })
            .collect();
        if let (false, Ok(value)) = (meant.is_empty(), HeaderValue::from_str(&meant.join(", "))) {
            headers.append(SEC_WEBSOCKET_PROTOCOL, value);
        }
    }
}

/// Copies both ways until both sides have ended.
async fn copy(ours: upgrade::OnUpgrade, theirs: upgrade::OnUpgrade) {
    let (ours, theirs) = match tokio::try_join!(ours, theirs) {
        Ok(both) => both,
        Err(error) => return tracing::debug!(%error, "a stream was not upgraded"),
    };
    let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
    let copied = tokio::io::copy_bidirectional_with_sizes(
        &mut ours,
        &mut theirs,
        COPY_BUFFER_BYTES,
        COPY_BUFFER_BYTES,
    );
    match copied.await {
        Ok((up, down)) => tracing::debug!(up, down, "stream ended"),
        Err(error) => tracing::debug!(%error, "stream broke"),
    }
}

fn failed(error: &hyper::Error) -> ApiError {
    let message = format!("error dialing backend: {error}");
    ApiError::new(502, Reason::ServiceUnavailable, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_stays_here() {
        let mut headers = HeaderMap::new();
        for value in [
            "base64url.bearer.authorization.k8s.io.dG9rZW4, v5.channel.k8s.io",
            "v4.channel.k8s.io,base64url.bearer.authorization.k8s.io.dG9rZW4",
            "base64url.bearer.authorization.k8s.io.dG9rZW4",
        ] {
            headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(value));
        }
        hide_token(&mut headers);
        let left: Vec<_> = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().collect();
        assert_eq!(left, ["v5.channel.k8s.io", "v4.channel.k8s.io"]);
    }
}
