//! Owns the one body type of requests and responses: bytes that stream, with or without a socket.
//! Must not buffer without a bound.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};

/// What can go wrong while a body is produced or read.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The body of every request and response. It streams without a socket, so an in-process client watches through it.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// A body that is already whole.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body without any bytes.
pub fn empty() -> Body {
    full(Bytes::new())
}

/// A whole response of one content type.
pub fn respond(
    status: StatusCode,
    content_type: &'static str,
    bytes: impl Into<Bytes>,
) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A JSON response.
pub fn json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    respond(status, "application/json", value.to_string())
}
