//! A real etcd on loopback, as many members as wanted; killed and removed at the end.
#![allow(unreachable_pub, dead_code, missing_docs, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "a test says what it skips")]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use store::EtcdConfig;
use tempfile::TempDir;

const PROGRAM: &str = "/usr/bin/etcd";
const READY_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Member {
    name: String,
    client: u16,
    peer: u16,
    process: Option<Child>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Member {
    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

#[derive(Debug)]
pub struct RealEtcd {
    members: Vec<Member>,
    dir: TempDir,
    /// Flags for clients with TLS; none: without.
    tls: Vec<String>,
}

/// Ports that were free a moment ago.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

impl RealEtcd {
    /// Whether there is an etcd on this machine; says so when there is none.
    pub fn is_here() -> bool {
        let here = std::path::Path::new(PROGRAM).exists();
        if !here {
            eprintln!("SKIPPED: {PROGRAM} is not installed");
        }
        here
    }

    pub fn start(members: usize) -> Self {
        Self::start_with(members, Vec::new())
    }

    pub fn start_with(members: usize, tls: Vec<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let member = |at: usize| {
            let [client, peer] = free_ports();
            Member { name: format!("m{at}"), client, peer, process: None }
        };
        let mut etcd = Self { members: (0..members).map(member).collect(), dir, tls };
        for at in 0..members {
            etcd.start_member(at);
        }
        etcd
    }

    pub fn start_member(&mut self, at: usize) {
        let peer = |member: &Member| format!("http://127.0.0.1:{}", member.peer);
        let cluster = self.members.iter().map(|m| format!("{}={}", m.name, peer(m)));
        let cluster = cluster.collect::<Vec<_>>().join(",");
        let log = std::fs::File::create(self.dir.path().join(format!("m{at}.log"))).unwrap();
        let (client, tls) = (self.client_url(&self.members[at]), self.tls.clone());
        let member = &mut self.members[at];
        let peer = peer(member);
        let data = self.dir.path().join(&member.name);
        let process = Command::new(PROGRAM)
            .args(["--name", &member.name, "--data-dir", data.to_str().unwrap()])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster, "--initial-cluster-state", "new"])
            .args(tls)
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        member.process = Some(process);
    }

    /// SIGKILL.
    pub fn kill_member(&mut self, at: usize) {
        self.members[at].kill();
    }

    /// SIGSTOP or SIGCONT: a member that neither answers nor hangs up.
    pub fn signal_member(&self, at: usize, signal: &str) {
        let pid = self.members[at].process.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Writes a key past all of ours, with etcd's own client.
    pub fn put(&self, key: &str, value: &str) {
        let mut etcdctl = Command::new("/usr/bin/etcdctl");
        etcdctl.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoints().join(",")]);
        // It may have been started a moment ago.
        etcdctl.args(["--dial-timeout=30s", "--command-timeout=30s"]);
        let done = etcdctl.args(["put", key, value]).stdout(Stdio::null()).status().unwrap();
        assert!(done.success());
    }

    /// A value as etcd has it.
    pub fn get(&self, key: &str) -> Vec<u8> {
        let mut etcdctl = Command::new("/usr/bin/etcdctl");
        etcdctl.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoints().join(",")]);
        let found = etcdctl.args(["get", "--print-value-only", key]).output().unwrap();
        assert!(found.status.success() && !found.stdout.is_empty());
        found.stdout
    }

    /// Where its members keep their data.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| self.client_url(member)).collect()
    }

    fn client_url(&self, member: &Member) -> String {
        let scheme = if self.tls.is_empty() { "http" } else { "https" };
        format!("{scheme}://127.0.0.1:{}", member.client)
    }

    pub fn config(&self) -> EtcdConfig {
        EtcdConfig { open_timeout: READY_WITHIN, ..EtcdConfig::new(self.endpoints()) }
    }
}
