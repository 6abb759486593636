//! The master's etcd as others use it: the `etcd-client` crate on the TLS port, Debian's `etcdctl` on the Unix socket and on the port.
//! The whole semantics are compared with a real etcd in the store's own suite; here it is the real binary and the wire.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Error, EventType,
    GetOptions, Identity, PutOptions, TlsOptions, Txn, TxnOp, WatchOptions, WatchResponse,
    WatchStream,
};

const DEADLINE: Duration = Duration::from_secs(30);

/// A master with its etcd on a TLS port; gone with its folder when dropped.
struct Master {
    dir: tempfile::TempDir,
    port: u16,
    child: Child,
}

impl Drop for Master {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn run(data: &Path, (api, etcd): (u16, u16)) -> Child {
    let binary = tests::fixture::bin_dir().unwrap().join("controlplane");
    let log = std::fs::File::create(data.join("log")).unwrap();
    Command::new(binary)
        .args([
            "run",
            "--config=/dev/null",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
        ])
        .arg(format!("--secure-port={api}"))
        .arg(format!("--etcd-listen-address=127.0.0.1:{etcd}"))
        .arg("--data-dir")
        .arg(data.join("master"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Master {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let child = run(dir.path(), (free_port(), port));
        let master = Self { dir, port, child };
        master.wait();
        master
    }

    /// Waits until `etcdctl` is answered on the socket.
    fn wait(&self) {
        let begin = Instant::now();
        while !self.etcdctl(&["endpoint", "health"]).status.success() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(begin.elapsed() < DEADLINE, "{log}");
        }
    }

    fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = run(self.dir.path(), (free_port(), self.port));
        self.wait();
    }

    fn data(&self, name: &str) -> PathBuf {
        self.dir.path().join("master").join(name)
    }

    fn etcdctl(&self, arguments: &[&str]) -> Output {
        let socket = format!("--endpoints=unix://{}", self.data("etcd.sock").display());
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg(socket).args(arguments).output().unwrap()
    }

    /// What `etcdctl` says, which must succeed.
    fn say(&self, arguments: &[&str]) -> String {
        let output = self.etcdctl(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn client(&self) -> Client {
        let read = |name: &str| std::fs::read(self.data("pki").join(name)).unwrap();
        let identity = Identity::from_pem(read("etcd-client.crt"), read("etcd-client.key"));
        let ca = Certificate::from_pem(read("etcd-ca.crt"));
        let tls = TlsOptions::new().ca_certificate(ca).identity(identity);
        let options = ConnectOptions::new().with_tls(tls);
        let endpoint = format!("https://127.0.0.1:{}", self.port);
        Client::connect([endpoint], Some(options)).await.unwrap()
    }
}

async fn next(stream: &mut WatchStream) -> WatchResponse {
    tokio::time::timeout(DEADLINE, stream.message()).await.unwrap().unwrap().unwrap()
}

/// Type, key and value of what came, with the revision.
fn seen(response: &WatchResponse) -> Vec<(EventType, String, String, i64)> {
    let one = |event: &etcd_client::Event| {
        let kv = event.kv().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (event.event_type(), text(kv.key()), text(kv.value()), kv.mod_revision())
    };
    response.events().iter().map(one).collect()
}

#[tokio::test]
async fn the_etcd_client_crate_reads_writes_and_compares_over_tls() {
    let master = Master::start();
    let mut client = master.client().await;
    let first = client.put("/t/a", "1", None).await.unwrap().header().unwrap().revision();
    let put = client.put("/t/a", "2", Some(PutOptions::new().with_prev_key())).await.unwrap();
    assert_eq!(put.prev_key().unwrap().value(), b"1");
    let past = GetOptions::new().with_revision(first);
    let past = client.get("/t/a", Some(past)).await.unwrap();
    assert_eq!((past.kvs()[0].value(), past.kvs()[0].version()), (&b"1"[..], 1));
    let txn = |wanted: &str| {
        let when = [Compare::value("/t/a", CompareOp::Equal, wanted)];
        let then = [TxnOp::put("/t/b", "3", None), TxnOp::get("/t/b", None)];
        Txn::new().when(when).and_then(then).or_else([TxnOp::get("/t/a", None)])
    };
    assert!(!client.txn(txn("1")).await.unwrap().succeeded());
    let done = client.txn(txn("2")).await.unwrap();
    assert!(done.succeeded());
    assert_eq!(done.op_responses().len(), 2);
    let all = GetOptions::new().with_prefix().with_count_only();
    assert_eq!(client.get("/t/", Some(all)).await.unwrap().count(), 2);
    client.compact(first + 1, None).await.unwrap();
    let past = client.get("/t/a", Some(GetOptions::new().with_revision(first))).await;
    let Err(Error::GRpcStatus(status)) = past else { panic!("{past:?}") };
    assert_eq!(status.message(), "etcdserver: mvcc: required revision has been compacted");
    let gone = client.delete("/t/", Some(DeleteOptions::new().with_prefix())).await.unwrap();
    assert_eq!(gone.deleted(), 2);
    let members = client.member_list().await.unwrap();
    assert_eq!(members.members().len(), 1);
    let status = client.status().await.unwrap();
    assert_eq!(status.leader(), members.members()[0].id());
}

#[tokio::test]
async fn the_etcd_client_crate_watches_across_a_restart() {
    let mut master = Master::start();
    let mut client = master.client().await;
    let options = || WatchOptions::new().with_prefix().with_prev_key();
    let mut stream = client.watch("/w/", Some(options())).await.unwrap();
    let created = next(&mut stream).await;
    assert!(created.created());
    let begin = created.header().unwrap().revision();
    client.put("/w/a", "1", None).await.unwrap();
    assert_eq!(
        seen(&next(&mut stream).await),
        [(EventType::Put, "/w/a".into(), "1".into(), begin + 1)]
    );
    stream.request_progress().await.unwrap();
    let progress = next(&mut stream).await;
    assert!(progress.events().is_empty());
    assert!(progress.header().unwrap().revision() > begin);
    stream.cancel(created.watch_id()).await.unwrap();
    assert!(next(&mut stream).await.canceled());
    client.delete("/w/a", None).await.unwrap();
    // The history is in the log: a watch resumes in the next process.
    master.restart();
    let mut client = master.client().await;
    let from = options().with_start_revision(begin + 1);
    let mut stream = client.watch("/w/", Some(from)).await.unwrap();
    assert!(next(&mut stream).await.created());
    let mut events = Vec::new();
    while events.len() < 2 {
        let response = next(&mut stream).await;
        events.extend(response.events().iter().map(|event| {
            (event.event_type(), event.prev_kv().map(|previous| previous.value().to_vec()))
        }));
    }
    assert_eq!(events, [(EventType::Put, None), (EventType::Delete, Some(b"1".to_vec()))]);
    // One from a forgotten revision is told which are there.
    let now = client.get("/w/", None).await.unwrap().header().unwrap().revision();
    client.compact(now, None).await.unwrap();
    let old = WatchOptions::new().with_start_revision(begin);
    let mut stream = client.watch("/w/a", Some(old)).await.unwrap();
    let mut answer = next(&mut stream).await;
    if answer.created() && !answer.canceled() {
        answer = next(&mut stream).await;
    }
    assert!(answer.canceled());
    assert_eq!(answer.compact_revision(), now);
}

#[tokio::test]
async fn keys_die_with_their_lease_unless_it_is_kept() {
    let master = Master::start();
    let mut client = master.client().await;
    let kept = client.lease_grant(6, None).await.unwrap().id();
    let left = client.lease_grant(6, None).await.unwrap().id();
    for (key, lease) in [("/l/kept", kept), ("/l/left", left)] {
        client.put(key, "1", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    }
    let mut stream = client.watch("/l/", Some(WatchOptions::new().with_prefix())).await.unwrap();
    assert!(next(&mut stream).await.created());
    let (mut keeper, mut answers) = client.lease_keep_alive(kept).await.unwrap();
    let mut ticks = tokio::time::interval(Duration::from_millis(500));
    let begin = Instant::now();
    let died = loop {
        tokio::select! {
            _ = ticks.tick() => {
                keeper.keep_alive().await.unwrap();
                assert_eq!(answers.message().await.unwrap().unwrap().ttl(), 6);
            }
            response = stream.message() => break response.unwrap().unwrap(),
        }
        assert!(begin.elapsed() < DEADLINE, "nothing died");
    };
    let died = seen(&died);
    assert_eq!(died.len(), 1);
    assert_eq!((died[0].0, died[0].1.as_str()), (EventType::Delete, "/l/left"));
    let leases: Vec<_> = client.leases().await.unwrap().leases().iter().map(|l| l.id()).collect();
    assert!(leases.contains(&kept) && !leases.contains(&left), "{leases:?}");
    client.lease_revoke(kept).await.unwrap();
    let all = GetOptions::new().with_prefix().with_count_only();
    assert_eq!(client.get("/l/", Some(all)).await.unwrap().count(), 0);
    let ended = client.lease_time_to_live(kept, None).await.unwrap();
    assert_eq!(ended.ttl(), -1);
}

#[test]
fn etcdctl_works_on_the_socket_and_strangers_do_not_get_in() {
    let master = Master::start();
    let mode = std::fs::metadata(master.data("etcd.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(master.say(&["put", "/c/a", "1"]), "OK\n");
    assert_eq!(master.say(&["get", "/c/", "--prefix"]), "/c/a\n1\n");
    assert!(master.say(&["member", "list"]).contains("started"));
    assert!(master.say(&["endpoint", "status", "-w", "json"]).contains("\"leader\""));
    assert_eq!(master.say(&["alarm", "list"]), "");
    assert!(master.say(&["defrag"]).contains("Finished defragmenting"));
    let lease = master.say(&["lease", "grant", "60"]);
    let lease = lease.split(' ').nth(1).unwrap();
    master.say(&["put", "/c/b", "2", "--lease", lease]);
    assert!(master.say(&["lease", "timetolive", lease, "--keys"]).contains("/c/b"));
    assert!(master.say(&["lease", "revoke", lease]).contains("revoked"));
    assert_eq!(master.say(&["del", "/c/", "--prefix"]), "1\n");
    let file = master.dir.path().join("saved");
    master.say(&["snapshot", "save", file.to_str().unwrap()]);
    let binary = tests::fixture::bin_dir().unwrap().join("controlplane");
    let verified = Command::new(binary).args(["snapshot", "verify"]).arg(&file).output().unwrap();
    assert!(verified.status.success(), "{verified:?}");
    // Kubernetes' own objects stand there; the port wants a certificate of its own CA.
    assert!(
        master
            .say(&["get", "/registry/namespaces/", "--prefix", "--keys-only"])
            .contains("default")
    );
    let port = format!("--endpoints=https://127.0.0.1:{}", master.port);
    let pki = |name: &str| master.data("pki").join(name).display().to_string();
    let over = |certificate: &str, key: &str| {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["get", "/registry/x", &port, "--dial-timeout=2s"]);
        command.args(["--command-timeout=2s", "--cacert", &pki("etcd-ca.crt")]);
        command.args(["--cert", &pki(certificate), "--key", &pki(key)]).output().unwrap()
    };
    assert!(over("etcd-client.crt", "etcd-client.key").status.success());
    assert!(!over("apiserver.crt", "apiserver.key").status.success());
}
