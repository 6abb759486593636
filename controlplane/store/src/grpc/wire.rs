//! Owns gRPC's framing over HTTP/2 bodies: messages with their five bytes of prefix, and the trailers that end an answer.
//! Knows no service.

use std::convert::Infallible;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use prost::Message;
use tokio::sync::mpsc;
use tonic::Code;

use crate::TXN_BYTES_MAX;
use crate::grpc::refusal::{GRPC_STATUS, Refusal};

/// A byte that says whether the message is compressed, and four with its length.
const PREFIX_BYTES: usize = 5;

/// The longest message that is taken: the largest transaction, and what stands around its keys and values.
pub(super) const MESSAGE_BYTES_MAX: usize = TXN_BYTES_MAX + (512 << 10);

/// The longest message that is sent: what clients of gRPC take at most.
const ANSWER_BYTES_MAX: usize = i32::MAX as usize;

/// The messages of a request, as they come.
#[derive(Debug)]
pub(super) struct Messages<M> {
    body: Incoming,
    /// What has come of the next messages.
    buffer: BytesMut,
    message: PhantomData<fn() -> M>,
}

impl<M: Message + Default> Messages<M> {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, buffer: BytesMut::new(), message: PhantomData }
    }

    /// The next message; `None`: the client sends no more.
    pub(super) async fn next(&mut self) -> Result<Option<M>, Refusal> {
        loop {
            if let Some(length) = length(&self.buffer)?
                && self.buffer.len() >= PREFIX_BYTES + length
            {
                self.buffer.advance(PREFIX_BYTES);
                return decode(self.buffer.split_to(length).freeze()).map(Some);
            }
            match next_data(&mut self.body).await? {
                Some(data) => self.buffer.extend_from_slice(&data),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Refusal::of(Code::Internal, "unexpected end of the stream")),
            }
        }
    }
}

/// The one message of a call. Most come in one piece, and then nothing is copied.
pub(super) async fn only<M: Message + Default>(mut body: Incoming) -> Result<M, Refusal> {
    let missing = || Refusal::of(Code::Internal, "the request has no message");
    let mut first = next_data(&mut body).await?.ok_or_else(missing)?;
    let whole = matches!(length(&first)?, Some(length) if first.len() == PREFIX_BYTES + length);
    if !whole {
        let mut buffer = BytesMut::from(first);
        let length = loop {
            match length(&buffer)? {
                Some(length) if buffer.len() >= PREFIX_BYTES + length => break length,
                _ => buffer.extend_from_slice(&next_data(&mut body).await?.ok_or_else(missing)?),
            }
        };
        buffer.truncate(PREFIX_BYTES + length);
        first = buffer.freeze();
    }
    first.advance(PREFIX_BYTES);
    // The end is read as well, so that the stream isn't reset.
    while !body.is_end_stream() && next_data(&mut body).await?.is_some() {}
    decode(first)
}

fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, Refusal> {
    let broken =
        |error| Refusal::new(Code::Internal, format!("grpc: the message is broken: {error}"));
    M::decode(bytes).map_err(broken)
}

/// The length of the message that begins here, when its prefix is there.
fn length(buffer: &[u8]) -> Result<Option<usize>, Refusal> {
    let Some((&[compressed, a, b, c, d], _)) = buffer.split_first_chunk::<PREFIX_BYTES>() else {
        return Ok(None);
    };
    if compressed != 0 {
        return Err(Refusal::of(Code::Unimplemented, "grpc: compressed messages are not taken"));
    }
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if length > MESSAGE_BYTES_MAX {
        let message =
            format!("grpc: received message larger than max ({length} vs. {MESSAGE_BYTES_MAX})");
        return Err(Refusal::new(Code::ResourceExhausted, message));
    }
    Ok(Some(length))
}

async fn next_data(body: &mut Incoming) -> Result<Option<Bytes>, Refusal> {
    loop {
        match poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
            None => return Ok(None),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Some(Err(error)) => return Err(Refusal::new(Code::Cancelled, error.to_string())),
        }
    }
}

/// A message with its prefix.
pub(super) fn framed<M: Message>(message: &M) -> Result<Bytes, Refusal> {
    let length = message.encoded_len();
    let sent = u32::try_from(length).ok().filter(|_| length <= ANSWER_BYTES_MAX);
    let Some(sent) = sent else {
        let message = format!(
            "grpc: trying to send message larger than max ({length} vs. {ANSWER_BYTES_MAX})"
        );
        return Err(Refusal::new(Code::ResourceExhausted, message));
    };
    let mut buffer = BytesMut::with_capacity(PREFIX_BYTES + length);
    buffer.put_u8(0);
    buffer.put_u32(sent);
    message.encode_raw(&mut buffer);
    Ok(buffer.freeze())
}

/// A piece of an answer of many messages.
#[derive(Debug)]
pub(super) enum Piece {
    /// A message with its prefix.
    Message(Bytes),
    /// The end, with what went wrong.
    End(Refusal),
}

/// The body of an answer.
#[derive(Debug)]
pub(super) enum Answer {
    /// One message, or what is left of it.
    One(Option<Bytes>),
    /// As many as come; the end of the channel is the end of the answer.
    Many(mpsc::Receiver<Piece>),
    /// Nothing more.
    Ended,
}

fn succeeded() -> HeaderMap {
    static SUCCEEDED: OnceLock<HeaderMap> = OnceLock::new();
    let made = || [(GRPC_STATUS, HeaderValue::from_static("0"))].into_iter().collect();
    SUCCEEDED.get_or_init(made).clone()
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match &mut *self {
            Self::One(message) => match message.take() {
                Some(message) => return Poll::Ready(Some(Ok(Frame::data(message)))),
                None => None,
            },
            Self::Many(pieces) => match pieces.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Piece::Message(message))) => {
                    return Poll::Ready(Some(Ok(Frame::data(message))));
                }
                Poll::Ready(Some(Piece::End(refusal))) => Some(refusal),
                Poll::Ready(None) => None,
            },
            Self::Ended => return Poll::Ready(None),
        };
        *self = Self::Ended;
        let trailers = piece.map_or_else(succeeded, |refusal| refusal.headers());
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Ended)
    }
}
