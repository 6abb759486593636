//! Answers of the agent's server: bodies and refusals. Nothing is decided here.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use tokio::sync::mpsc;

pub(crate) type Body = BoxBody<Bytes, std::convert::Infallible>;

/// A status and the text that the master makes a `metav1.Status` of.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Refusal {
        Refusal { status, message: message.into() }
    }

    pub(crate) fn respond(self) -> Response<Body> {
        text(self.status, &self.message)
    }
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

fn with(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static(kind);
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

pub(crate) fn text(status: StatusCode, text: &str) -> Response<Body> {
    with(status, "text/plain; charset=utf-8", full(Bytes::copy_from_slice(text.as_bytes())))
}

pub(crate) fn json(value: &serde_json::Value) -> Response<Body> {
    with(StatusCode::OK, "application/json", full(value.to_string()))
}

/// A body that is written while it is read.
pub(crate) fn streamed(pieces: mpsc::Receiver<Bytes>) -> Response<Body> {
    let stream = futures::stream::unfold(pieces, |mut pieces| async {
        let piece = pieces.recv().await?;
        Some((Ok(Frame::data(piece)), pieces))
    });
    with(StatusCode::OK, "text/plain", StreamBody::new(stream).boxed())
}

/// `101 Switching Protocols` with the headers of the new one.
pub(crate) fn switching(headers: &[(&'static str, &str)]) -> Result<Response<Body>, Refusal> {
    let mut response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response
        .body(full(Bytes::new()))
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))
}
