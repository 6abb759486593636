//! A client's channels over either protocol: WebSocket messages whose first byte is the channel, or
//! SPDY streams whose header says what they are.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use monitor::protocol::TerminalSize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, frame::coding::CloseCode};

use crate::stream::spdy::{self, DATA_BYTES_MAX, Frame, Piece};
use crate::stream::{
    Channel, Client, IN_PIECES_MAX, OUT_PIECES_MAX, Wanted, parse_size, websocket,
};

const STDIN: u8 = 0;
const RESIZE: u8 = 4;
/// `v5.channel.k8s.io`: closes the channel named by the next byte.
const CLOSE: u8 = 255;
/// Kubernetes 1.36, `DefaultStreamCreationTimeout`.
const STREAMS_DEADLINE: Duration = Duration::from_secs(30);
/// A client that has gone while its stdin is held back is noticed by writing to it.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_ID: u32 = 2;
/// A client that doesn't take the last words gets no more time.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

struct Ends {
    stdin: mpsc::Sender<Bytes>,
    resize: mpsc::Sender<TerminalSize>,
    out: mpsc::Receiver<(Channel, Bytes)>,
}

fn pair() -> (Client, Ends) {
    let (stdin_in, stdin) = mpsc::channel(IN_PIECES_MAX);
    let (resize_in, resize) = mpsc::channel(IN_PIECES_MAX);
    let (out, out_from) = mpsc::channel(OUT_PIECES_MAX);
    (Client { stdin, resize, out }, Ends { stdin: stdin_in, resize: resize_in, out: out_from })
}

fn pings(interval: Duration) -> Interval {
    let mut pings = tokio::time::interval_at(Instant::now() + interval, interval);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings
}

/// Serves a WebSocket whose protocol has been agreed on.
pub(crate) async fn from_websocket<S>(io: S) -> Client
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    join_websocket(io, pings(PING_INTERVAL)).await
}

async fn join_websocket<S>(io: S, mut pings: Interval) -> Client
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (client, ends) = pair();
    let socket = websocket::open(io, Role::Server).await;
    tokio::spawn(async move {
        let Ends { stdin, resize, mut out } = ends;
        let (mut sink, mut source) = socket.split();
        let incoming = async {
            let mut stdin = Some(stdin);
            while let Some(Ok(message)) = source.next().await {
                match message {
                    Message::Binary(bytes) => take_message(bytes, &mut stdin, &resize).await,
                    Message::Close(_) => return,
                    _ => {}
                }
            }
        };
        let outgoing = async {
            loop {
                let piece = tokio::select! {
                    piece = out.recv() => piece,
                    _ = pings.tick() => {
                        sink.send(Message::Ping(Bytes::new())).await?;
                        continue;
                    }
                };
                let Some((channel, bytes)) = piece else { break };
                let mut message = BytesMut::with_capacity(bytes.len() + 1);
                message.put_u8(channel as u8);
                message.put(bytes);
                sink.send(Message::Binary(message.freeze())).await?;
            }
            let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            sink.send(Message::Close(Some(frame))).await
        };
        tokio::pin!(incoming, outgoing);
        tokio::select! {
            () = &mut incoming => {}
            ended = &mut outgoing => {
                // The client answers the close; without that the socket is just dropped.
                if ended.is_ok() {
                    tokio::time::timeout(CLOSE_DEADLINE, incoming).await.ok();
                }
            }
        }
    });
    client
}

async fn take_message(
    mut bytes: Bytes,
    stdin: &mut Option<mpsc::Sender<Bytes>>,
    resize: &mpsc::Sender<TerminalSize>,
) {
    if bytes.is_empty() {
        return;
    }
    let channel = bytes.split_to(1)[0];
    match (channel, &stdin) {
        (STDIN, Some(sender)) if !bytes.is_empty() => {
            let closed = sender.send(bytes).await.is_err();
            stdin.take_if(|_| closed);
        }
        (RESIZE, _) => {
            if let Some(size) = parse_size(&bytes) {
                // Without a terminal nobody listens.
                resize.send(size).await.ok();
            }
        }
        (CLOSE, _) if bytes.first() == Some(&STDIN) => *stdin = None,
        _ => {}
    }
}

/// Serves a SPDY connection: waits for the streams the request promised, then joins them.
pub(crate) async fn from_spdy<S>(io: S, wanted: Wanted) -> Option<Client>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut streams, sender) = spdy::serve(io);
    let mut expected = 1
        + usize::from(wanted.stdin)
        + usize::from(wanted.stdout)
        + usize::from(wanted.stderr && !wanted.tty)
        + usize::from(wanted.tty);
    let mut found: HashMap<String, spdy::Stream> = HashMap::new();
    let collect = async {
        while expected > 0 {
            let stream = streams.recv().await?;
            found.insert(stream.header("streamtype").to_owned(), stream);
            expected -= 1;
        }
        Some(())
    };
    tokio::time::timeout(STREAMS_DEADLINE, collect).await.ok().flatten()?;
    let (client, ends) = pair();
    let Ends { stdin, resize, mut out } = ends;
    if let Some(stream) = found.remove("stdin") {
        tokio::spawn(copy_in(stream.data, stdin));
    }
    if let Some(mut stream) = found.remove("resize") {
        tokio::spawn(async move {
            while let Some(piece) = stream.data.recv().await {
                if let Some(size) = parse_size(&piece.bytes)
                    && resize.send(size).await.is_err()
                {
                    return;
                }
            }
        });
    }
    let ids: HashMap<u8, u32> = [("stdout", 1), ("stderr", 2), ("error", 3)]
        .into_iter()
        .filter_map(|(name, channel)| Some((channel, found.get(name)?.id)))
        .collect();
    let mut pings = pings(PING_INTERVAL);
    tokio::spawn(async move {
        loop {
            let piece = tokio::select! {
                piece = out.recv() => piece,
                _ = pings.tick() => match sender.send(Frame::Ping { id: PING_ID }).await {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                // The connection has gone, and `out` with it.
                None = streams.recv() => return,
            };
            let Some((channel, bytes)) = piece else { break };
            let Some(id) = ids.get(&(channel as u8)).copied() else { continue };
            for chunk in chunks(bytes) {
                if sender.send(Frame::Data { id, bytes: chunk, fin: false }).await.is_err() {
                    return;
                }
            }
        }
        for id in ids.into_values() {
            let frame = Frame::Data { id, bytes: Bytes::new(), fin: true };
            if sender.send(frame).await.is_err() {
                return;
            }
        }
        // The client closes the connection once it has read everything; it gets a little time.
        tokio::time::timeout(CLOSE_DEADLINE, async { while streams.recv().await.is_some() {} })
            .await
            .ok();
    });
    Some(client)
}

async fn copy_in(mut from: mpsc::Receiver<Piece>, to: mpsc::Sender<Bytes>) {
    while let Some(piece) = from.recv().await {
        if to.send(piece.bytes).await.is_err() {
            return;
        }
    }
}

fn chunks(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        (!bytes.is_empty()).then(|| bytes.split_to(bytes.len().min(DATA_BYTES_MAX)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn websocket_channels() {
        let (a, b) = tokio::io::duplex(1 << 16);
        let mut browser = websocket::open(a, Role::Client).await;
        let mut client = from_websocket(b).await;
        let send = |bytes: &'static [u8]| Message::Binary(Bytes::from_static(bytes));
        browser.send(send(b"\0hi")).await.unwrap();
        browser.send(send(b"\x04{\"Width\":9,\"Height\":8}")).await.unwrap();
        browser.send(send(b"\xff\0")).await.unwrap();
        assert_eq!(client.stdin.recv().await.unwrap(), "hi");
        assert_eq!(client.resize.recv().await, Some(TerminalSize { width: 9, height: 8 }));
        assert_eq!(client.stdin.recv().await, None);
        client.out.send((Channel::Stdout, Bytes::from_static(b"out"))).await.unwrap();
        drop(client);
        assert_eq!(browser.next().await.unwrap().unwrap(), send(b"\x01out"));
        assert!(matches!(browser.next().await, Some(Ok(Message::Close(_)))));
    }

    #[tokio::test]
    async fn a_client_that_goes_while_its_stdin_waits_is_noticed() {
        let (a, b) = tokio::io::duplex(1 << 16);
        let mut browser = websocket::open(a, Role::Client).await;
        let client = join_websocket(b, pings(Duration::from_millis(5))).await;
        for _ in 0..2 * IN_PIECES_MAX {
            browser.send(Message::Binary(Bytes::from_static(b"\0x"))).await.unwrap();
        }
        drop(browser);
        client.out.closed().await;
    }
}
