//! Servers and clients in namespaces: small enough to say who answered whom.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;

/// How long a client waits; refusals come at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// Runs a closure on a thread inside of a namespace.
pub(crate) fn inside<T: Send + 'static>(
    netns: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let netns = File::open(netns).unwrap();
    let thread = std::thread::spawn(move || {
        nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        work()
    });
    thread.join().unwrap()
}

/// A server of TCP and UDP that answers `<name> <client's address>`; it ends when this is dropped.
pub(crate) struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub(crate) fn new(netns: &Path, port: u16, name: &str) -> Server {
        let netns = File::open(netns).unwrap();
        let name = name.to_owned();
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::spawn(move || {
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_all().build().unwrap().block_on(async move {
                let tcp = tokio::net::TcpListener::bind(("::", port)).await.unwrap();
                let udp = tokio::net::UdpSocket::bind(("0.0.0.0", port)).await.unwrap();
                ready.send(()).unwrap();
                let mut buffer = [0; 512];
                let serve = async {
                    loop {
                        tokio::select! {
                            accepted = tcp.accept() => if let Ok((mut stream, from)) = accepted {
                                drop(stream.write_all(format!("{name} {}", from.ip().to_canonical()).as_bytes()).await);
                            },
                            received = udp.recv_from(&mut buffer) => if let Ok((_, from)) = received {
                                drop(udp.send_to(format!("{name} {}", from.ip().to_canonical()).as_bytes(), from).await);
                            },
                        }
                    }
                };
                tokio::select! { () = serve => {}, _ = stopped => {} }
            });
        });
        is_ready.recv().unwrap();
        Server { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// One TCP request: who answered and whom it saw, or the error's kind.
pub(crate) fn request(netns: &Path, to: &str) -> Result<String, std::io::ErrorKind> {
    let to: SocketAddr = to.parse().unwrap();
    inside(netns, move || {
        let run = || {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.flush()?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        run().map_err(|error: std::io::Error| error.kind())
    })
}

/// A UDP client that keeps its port.
pub(crate) struct UdpClient {
    socket: UdpSocket,
    to: SocketAddr,
}

impl UdpClient {
    pub(crate) fn new(netns: &Path, to: &str) -> UdpClient {
        let to = to.parse().unwrap();
        let socket = inside(netns, || UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        UdpClient { socket, to }
    }

    pub(crate) fn ask(&self) -> Result<String, std::io::ErrorKind> {
        let run = || {
            self.socket.send_to(b"who", self.to)?;
            let mut buffer = [0; 512];
            let (length, _) = self.socket.recv_from(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        run().map_err(|error: std::io::Error| error.kind())
    }
}

/// The distinct first words of many requests' answers, sorted.
pub(crate) fn answering(netns: &Path, to: &str, times: usize) -> Vec<String> {
    let netns = PathBuf::from(netns);
    let mut names: Vec<String> = (0..times)
        .map(|_| match request(&netns, to) {
            Ok(text) => text.split(' ').next().unwrap().to_owned(),
            Err(kind) => format!("{kind:?}"),
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Sends so many bytes over TCP; returns how many arrived.
pub(crate) fn transfer(from: &Path, to: &Path, address: &str, bytes: usize) -> usize {
    let address: SocketAddr = address.parse().unwrap();
    let listener = inside(to, move || std::net::TcpListener::bind(address).unwrap());
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut received = Vec::new();
        drop(stream.read_to_end(&mut received));
        received.len()
    });
    inside(from, move || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(&vec![7; bytes]).unwrap();
    });
    receiver.join().unwrap()
}
