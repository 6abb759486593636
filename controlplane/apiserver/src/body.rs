//! Owns the one body type of requests and responses: bytes that stream, with or without a socket.
//! Must not buffer without a bound.

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, combinators::UnsyncBoxBody};

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

/// Why a body could not be read whole.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// It has more bytes than are taken.
    #[error("longer than {bytes_max} bytes")]
    TooLong {
        /// What is taken.
        bytes_max: usize,
    },
    /// It broke off.
    #[error("{0}")]
    Broken(BodyError),
}

/// A whole body of at most `bytes_max` bytes.
///
/// Boxed in a function of its own, since the compiler can't prove such a future to be `Send` inside an async block.
pub fn collect(body: Body, bytes_max: usize) -> BoxFuture<'static, Result<Bytes, CollectError>> {
    let collected = Limited::new(body, bytes_max).collect();
    Box::pin(collected.map(move |collected| match collected {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => Err(CollectError::TooLong { bytes_max }),
        Err(e) => Err(CollectError::Broken(e)),
    }))
}
