//! Port forwarding: pairs of SPDY streams (`data` and `error`, joined by their request id), each pair
//! a TCP connection to the pod as seen from inside its network.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nix::sched::CloneFlags;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::probe::go_error;
use crate::stream::spdy::{self, DATA_BYTES_MAX, Frame, Piece};

/// Kubernetes 1.36: name of the protocol on `X-Stream-Protocol-Version`.
pub(crate) const PROTOCOL: &str = "portforward.k8s.io";
/// The same, tunnelled in a WebSocket.
pub(crate) const TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves one client until it goes.
pub(crate) async fn serve<S>(io: S, netns: Option<PathBuf>, pod: String)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut streams, sender) = spdy::serve(io);
    // As many as a connection may have streams.
    let mut waiting: HashMap<String, spdy::Stream> = HashMap::new();
    while let Some(stream) = streams.recv().await {
        let request = stream.header("requestid").to_owned();
        let is_error = stream.header("streamtype") == "error";
        match waiting.remove(&request) {
            None => {
                waiting.insert(request, stream);
            }
            Some(other) => {
                let (data, error) = if is_error { (other, stream) } else { (stream, other) };
                let (netns, pod, sender) = (netns.clone(), pod.clone(), sender.clone());
                tokio::spawn(async move { forward(data, error.id, (netns, pod), sender).await });
            }
        }
    }
}

async fn forward(
    data: spdy::Stream,
    error_id: u32,
    (netns, pod): (Option<PathBuf>, String),
    sender: spdy::Sender,
) {
    let id = data.id;
    let port = data.header("port").to_owned();
    let result = match port.parse::<u16>() {
        Ok(number) if number > 0 => match connect(netns, number).await {
            Ok(target) => {
                copy(target, data.data, id, &sender).await;
                Ok(())
            }
            Err(error) => Err(format!(
                "error forwarding port {port} to pod {pod}, uid : failed to connect to localhost:{port} \
                 inside namespace: dial tcp4 127.0.0.1:{port}: connect: {}",
                go_error(&error)
            )),
        },
        _ => Err(format!("invalid port {port:?}")),
    };
    let word = result.err().map(Bytes::from).unwrap_or_default();
    let last = [
        Frame::Data { id, bytes: Bytes::new(), fin: true },
        Frame::Data { id: error_id, bytes: word, fin: true },
    ];
    for frame in last {
        // The client may have gone first.
        sender.send(frame).await.ok();
    }
}

async fn copy(target: TcpStream, mut from: mpsc::Receiver<Piece>, id: u32, sender: &spdy::Sender) {
    let (mut read, mut write) = target.into_split();
    let inwards = async {
        while let Some(piece) = from.recv().await {
            if write.write_all(&piece.bytes).await.is_err() {
                return;
            }
        }
        // The other side may have closed already.
        write.shutdown().await.ok();
    };
    let outwards = async {
        let mut buffer = BytesMut::with_capacity(DATA_BYTES_MAX);
        loop {
            buffer.reserve(DATA_BYTES_MAX);
            match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    let bytes = buffer.split().freeze();
                    if sender.send(Frame::Data { id, bytes, fin: false }).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    tokio::pin!(inwards, outwards);
    tokio::select! {
        () = &mut outwards => {}
        () = &mut inwards => outwards.await,
    }
}

/// Connects to the loopback of a network namespace: IPv4 first, then IPv6.
async fn connect(netns: Option<PathBuf>, port: u16) -> std::io::Result<TcpStream> {
    let addresses = [
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    ];
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("port-forward".into()).stack_size(64 * 1024).spawn(
        move || {
            // The client may have gone meanwhile.
            tell.send(connect_inside(netns.as_deref(), &addresses)).ok();
        },
    )?;
    let stream = told.await.map_err(std::io::Error::other)??;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

/// A socket keeps the namespace it was made in; the thread ends with its namespace.
fn connect_inside(
    netns: Option<&Path>,
    addresses: &[SocketAddr],
) -> std::io::Result<std::net::TcpStream> {
    if let Some(netns) = netns {
        nix::sched::setns(std::fs::File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
    }
    let mut first = None;
    for address in addresses {
        match std::net::TcpStream::connect_timeout(address, CONNECT_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or_else(|| std::io::ErrorKind::AddrNotAvailable.into()))
}
