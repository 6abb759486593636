//! Owns a real etcd on loopback, killed and removed at the end.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

const PROGRAM: &str = "/usr/bin/etcd";
const READY_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Etcd {
    process: Child,
    pub(super) channel: Channel,
    /// Removed at the end.
    _dir: TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn free_ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

impl Etcd {
    /// `None`, and a word about it, where none is installed.
    #[allow(clippy::print_stderr, reason = "a test says what it skips")]
    pub(super) async fn start() -> Option<Self> {
        if !std::path::Path::new(PROGRAM).exists() {
            eprintln!("SKIPPED  comparing with a real etcd: {PROGRAM} is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let [client, peer] = free_ports().map(|port| format!("http://127.0.0.1:{port}"));
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let process = Command::new(PROGRAM)
            .args(["--data-dir", dir.path().join("data").to_str().unwrap()])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(["--max-request-bytes", &crate::TXN_BYTES_MAX.to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let endpoint = Endpoint::from_shared(client).unwrap();
        let deadline = Instant::now() + READY_WITHIN;
        let channel = loop {
            match endpoint.connect().await {
                Ok(channel) => break channel,
                Err(error) => assert!(Instant::now() < deadline, "etcd does not listen: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        Some(Self { process, channel, _dir: dir })
    }
}
