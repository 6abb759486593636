//! WebSockets of Kubernetes' remote commands: the opening answer, channels as the first byte of each
//! message (`v5.channel.k8s.io`, `v4.channel.k8s.io`), and a byte stream of binary messages for
//! tunnelled SPDY.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use base64::Engine as _;
use bytes::{Buf, Bytes};
use futures::{Sink, Stream};
use http::HeaderMap;
use http::header::SEC_WEBSOCKET_KEY;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// RFC 6455, 1.3.
const MAGIC: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Clients send at most 32 KiB at once.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
const BUFFER_BYTES: usize = 32 * 1024;

/// Whether a request asks for a WebSocket.
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    let has = |name, word: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word)))
    };
    has(http::header::UPGRADE, "websocket") && headers.contains_key(SEC_WEBSOCKET_KEY)
}

/// The protocols a client offers, in its order.
pub(crate) fn offered(headers: &HeaderMap) -> Vec<String> {
    let all = headers.get_all(http::header::SEC_WEBSOCKET_PROTOCOL).iter();
    let all = all.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    all.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

/// `Sec-WebSocket-Accept` for the request's key.
pub(crate) fn accept_key(headers: &HeaderMap) -> String {
    let key = headers.get(SEC_WEBSOCKET_KEY).map(|key| key.as_bytes()).unwrap_or_default();
    let digest =
        ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &[key, MAGIC].concat());
    base64::engine::general_purpose::STANDARD.encode(digest)
}

pub(crate) fn config() -> WebSocketConfig {
    let mut config = WebSocketConfig::default();
    config.read_buffer_size = BUFFER_BYTES;
    config.write_buffer_size = 0;
    config.max_message_size = Some(MESSAGE_BYTES_MAX);
    config.max_frame_size = Some(MESSAGE_BYTES_MAX);
    config
}

pub(crate) async fn open<S>(io: S, role: Role) -> WebSocketStream<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    WebSocketStream::from_raw_socket(io, role, Some(config())).await
}

/// A WebSocket's binary messages as one stream of bytes.
#[derive(Debug)]
pub(crate) struct ByteStream<S> {
    socket: WebSocketStream<S>,
    rest: Bytes,
}

impl<S> ByteStream<S> {
    pub(crate) fn new(socket: WebSocketStream<S>) -> ByteStream<S> {
        ByteStream { socket, rest: Bytes::new() }
    }
}

fn broken(error: tokio_tungstenite::tungstenite::Error) -> io::Error {
    io::Error::other(error)
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for ByteStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let count = buffer.remaining().min(self.rest.len());
        buffer.put_slice(&self.rest[..count]);
        self.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ByteStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(broken)?;
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        Pin::new(&mut self.socket).start_send(message).map_err(broken)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(broken)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn the_answer_of_rfc_6455() {
        let mut headers = HeaderMap::new();
        headers.insert(SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==".parse().unwrap());
        assert_eq!(accept_key(&headers), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(!is_upgrade(&headers));
        headers.insert("upgrade", "WebSocket".parse().unwrap());
        assert!(is_upgrade(&headers));
        headers.insert("sec-websocket-protocol", "v5.channel.k8s.io, v4".parse().unwrap());
        assert_eq!(offered(&headers), ["v5.channel.k8s.io", "v4"]);
    }

    #[tokio::test]
    async fn bytes_pass_through_messages() {
        let (a, b) = tokio::io::duplex(1 << 16);
        let mut client = ByteStream::new(open(a, Role::Client).await);
        let mut server = ByteStream::new(open(b, Role::Server).await);
        let sent = vec![7u8; 100_000];
        let copy = sent.clone();
        let writer = tokio::spawn(async move {
            client.write_all(&copy).await.unwrap();
            client.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        writer.await.unwrap();
        assert_eq!(got, sent);
    }
}
