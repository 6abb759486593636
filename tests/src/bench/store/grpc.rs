//! Puts through gRPC: 256 clients on 16 connections to the real master's socket and to a real etcd's, by the same client (HTTP/2 and nothing
//! above it), beside a call that does nothing: a serializable range of a key that is not there.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::Request;
use tokio::net::UnixStream;

use super::in_process::runtime;
use super::{Spread, Table, WRITERS, key, value};

const ETCD: &str = "/usr/bin/etcd";
/// Clients share connections, as clients of gRPC do.
const CONNECTIONS: usize = 16;
/// Keys that the clients go round in.
const KEYS: usize = 10_000;
/// Not measured.
const WARM_UP: Duration = Duration::from_secs(1);
const MEASURED: Duration = Duration::from_secs(5);
/// Each server in turn, so often.
const ROUNDS: usize = 2;
const READY_WITHIN: Duration = Duration::from_secs(60);
const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";

/// A server in a process of its own, killed at the end.
#[derive(Debug)]
struct Server {
    process: Child,
    socket: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Server {
    fn start(command: &mut Command, socket: PathBuf) -> Result<Server> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().with_context(|| format!("{command:?}"))?;
        let server = Server { process, socket };
        let deadline = Instant::now() + READY_WITHIN;
        while std::os::unix::net::UnixStream::connect(&server.socket).is_err() {
            ensure!(Instant::now() < deadline, "{} does not listen", server.socket.display());
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn ours(dir: &Path) -> Result<Server> {
        let data = dir.join("master");
        let own = std::env::current_exe()?;
        let program = own.parent().context("no folder")?.join("controlplane");
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(program);
        command.args(["run", "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1"]);
        command.args(["--secure-port", &port.to_string(), "--data-dir"]).arg(&data);
        Server::start(&mut command, data.join("etcd.sock"))
    }

    fn etcd(dir: &Path) -> Result<Server> {
        // etcd takes no path in a URL of its own, only a name in its folder that looks like HOST:PORT.
        const SOCKET: &str = "peer.sock:0";
        let socket = dir.join(SOCKET);
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let (client, peer) = (format!("unix://{SOCKET}"), format!("http://127.0.0.1:{port}"));
        let mut command = Command::new(ETCD);
        command.current_dir(dir).arg("--data-dir").arg(dir.join("etcd"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        Server::start(&mut command, socket)
    }
}

/// Adds the figures.
pub fn measure(dir: &Path, table: &mut Table) -> Result<()> {
    let dir = dir.join("grpc");
    std::fs::create_dir_all(&dir)?;
    let ours = Server::ours(&dir)?;
    let etcd = Path::new(ETCD).exists().then(|| Server::etcd(&dir)).transpose()?;
    let runtime = runtime()?;
    let (mut empty, mut own, mut peer) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        empty.push(runtime.block_on(load(&ours.socket, RANGE))?);
        own.push(runtime.block_on(load(&ours.socket, PUT))?);
        if let Some(etcd) = &etcd {
            peer.push(runtime.block_on(load(&etcd.socket, PUT))?);
        }
    }
    let (empty, own) = (Figures::of(&empty), Figures::of(&own));
    table.row("gRPC, 256 clients: empty call (range of no key)", empty.text(), "");
    let Some(peer) = etcd.is_some().then(|| Figures::of(&peer)) else {
        table.row("gRPC, 256 clients: puts of 1 KiB", own.text(), "no etcd here to compare with");
        return Ok(());
    };
    let (of_empty, of_peer) = (0.7 * empty.rate, 1.4 * peer.rate);
    let budget = format!(
        ">= {:.0}/s (0.7 of empty {of_empty:.0}, 1.4 of etcd {of_peer:.0}), p99 <= {:.1} ms",
        of_empty.min(of_peer),
        peer.p99.as_secs_f64() * 500.0
    );
    table.row("gRPC, 256 clients: puts of 1 KiB", own.text(), &budget);
    table.row(&format!("the same to {}", version()?), peer.text(), "");
    Ok(())
}

fn version() -> Result<String> {
    let told = Command::new(ETCD).arg("--version").output()?;
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    Ok(text.lines().next().unwrap_or("etcd").replace(" Version:", ""))
}

/// Of one load.
#[derive(Debug)]
struct Figures {
    rate: f64,
    p50: Duration,
    p99: Duration,
}

impl Figures {
    /// The middle of the rounds.
    fn of(rounds: &[Figures]) -> Figures {
        let count = rounds.len().max(1);
        let mean = |of: fn(&Figures) -> Duration| {
            rounds.iter().map(of).sum::<Duration>() / u32::try_from(count).unwrap_or(1)
        };
        let rate = rounds.iter().map(|round| round.rate).sum::<f64>() / count as f64;
        Figures { rate, p50: mean(|round| round.p50), p99: mean(|round| round.p99) }
    }

    fn text(&self) -> String {
        let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
        format!(
            "{:.0}/s, p50 {:.1} ms, p99 {:.1} ms",
            self.rate,
            millis(self.p50),
            millis(self.p99)
        )
    }
}

#[derive(Debug, Default)]
struct Shared {
    next: AtomicUsize,
    done: AtomicU64,
    measuring: AtomicBool,
    stop: AtomicBool,
}

async fn load(socket: &Path, path: &'static str) -> Result<Figures> {
    let shared = Arc::new(Shared::default());
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let stream = UnixStream::connect(socket).await?;
        let (sender, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(async move { connection.await.ok() });
        for _ in 0..WRITERS / CONNECTIONS {
            clients.push(tokio::spawn(client(sender.clone(), path, shared.clone())));
        }
    }
    tokio::time::sleep(WARM_UP).await;
    shared.measuring.store(true, Ordering::Relaxed);
    let (before, begun) = (shared.done.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(MEASURED).await;
    let done = shared.done.load(Ordering::Relaxed) - before;
    let rate = done as f64 / begun.elapsed().as_secs_f64();
    shared.stop.store(true, Ordering::Relaxed);
    let mut latencies = Vec::new();
    for client in clients {
        latencies.extend(client.await??);
    }
    let spread = Spread::of(latencies);
    Ok(Figures { rate, p50: spread.quantile(50), p99: spread.quantile(99) })
}

async fn client(
    mut sender: SendRequest<Bytes>,
    path: &'static str,
    shared: Arc<Shared>,
) -> Result<Vec<Duration>> {
    let mut latencies = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let count = shared.next.fetch_add(1, Ordering::Relaxed);
        let message = match path {
            PUT => put(count),
            _ => missing(),
        };
        let begun = Instant::now();
        sender = call(sender, path, message).await?;
        if shared.measuring.load(Ordering::Relaxed) {
            latencies.push(begun.elapsed());
        }
        shared.done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(latencies)
}

async fn call(
    sender: SendRequest<Bytes>,
    path: &str,
    message: Bytes,
) -> Result<SendRequest<Bytes>> {
    let mut sender = sender.ready().await?;
    let request = Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (answer, mut body) = sender.send_request(request, false)?;
    body.send_data(message, true)?;
    let mut answer = answer.await?.into_body();
    while let Some(data) = answer.data().await {
        answer.flow_control().release_capacity(data?.len())?;
    }
    match answer.trailers().await? {
        Some(trailers) if trailers.get("grpc-status").is_some_and(|status| status == "0") => {
            Ok(sender)
        }
        told => bail!("{path} was refused: {told:?}"),
    }
}

/// `PutRequest`: the key is field 1, the value field 2, each with its length.
fn put(count: usize) -> Bytes {
    let at = count.wrapping_mul(7919) % KEYS;
    framed(&[(1, key(at)), (2, value(at, count as u64))])
}

/// `RangeRequest`: the key is field 1, `serializable` field 7.
fn missing() -> Bytes {
    let mut message = BytesMut::from(&framed(&[(1, b"/none".to_vec())])[..]);
    message.extend_from_slice(&[7 << 3, 1]);
    message[4] += 2;
    message.freeze()
}

fn framed(fields: &[(u8, Vec<u8>)]) -> Bytes {
    let mut message = BytesMut::new();
    for (number, bytes) in fields {
        message.put_u8(number << 3 | 2);
        // Lengths of up to 14 bits.
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        let [low, high] = [length & 0x7f, length >> 7].map(|part| part.to_le_bytes()[0]);
        if high == 0 {
            message.put_u8(low);
        } else {
            message.put_slice(&[low | 0x80, high]);
        }
        message.extend_from_slice(bytes);
    }
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.extend_from_slice(&message);
    framed.freeze()
}
