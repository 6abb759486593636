//! The master's binary and kubectl on a real etcd: a cluster that begins in a log of its own, moves to three members, is served by two
//! masters while a member dies, and moves back. No resource version ever goes down.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "a test says what it skips")]

#[path = "../store/tests/real_etcd/mod.rs"]
mod real_etcd;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use real_etcd::RealEtcd;
use serde_json::Value;
use store::{EtcdConfig, Op, Store, Txn};

const CONTROLPLANE: &str = env!("CARGO_BIN_EXE_controlplane");
/// The machine's own configuration is nothing to a test.
const NO_CONFIG: &str = "/dev/null";
const WITHIN: Duration = Duration::from_secs(60);

struct Master {
    dir: PathBuf,
    process: Child,
}

impl Drop for Master {
    fn drop(&mut self) {
        // Gone already where it was stopped.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Master {
    fn start(dir: &Path, datastore: &[String]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        std::fs::create_dir_all(dir).unwrap();
        let log = std::fs::File::create(dir.with_extension("log")).unwrap();
        let mut command = Command::new(CONTROLPLANE);
        command.args(["run", "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1"]);
        command.arg("--data-dir").arg(dir).args(["--secure-port", &port.to_string()]);
        command.args(["--config", NO_CONFIG]).args(datastore).stdout(Stdio::null()).stderr(log);
        let master = Self { dir: dir.to_owned(), process: command.spawn().unwrap() };
        let deadline = Instant::now() + WITHIN;
        while master.try_kubectl(&["get", "--raw", "/readyz"]).is_err() {
            let log = || std::fs::read_to_string(dir.with_extension("log")).unwrap();
            assert!(Instant::now() < deadline, "the master is not ready: {}", log());
            std::thread::yield_now();
        }
        master
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.dir.join("admin.kubeconfig")).args(arguments);
        command
    }

    fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.command(arguments).output().unwrap();
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout).unwrap());
        }
        Err(String::from_utf8(output.stderr).unwrap())
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    /// Every object of some kinds: its resource version, and itself without it.
    fn objects(&self) -> BTreeMap<String, (u64, Value)> {
        let kinds =
            "namespaces,configmaps,secrets,serviceaccounts,services,deployments,clusterroles";
        let list: Value =
            serde_json::from_str(&self.kubectl(&["get", kinds, "-A", "-o", "json"])).unwrap();
        let object = |object: &Value| {
            let mut object = object.clone();
            let version = object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
            let version = version.unwrap().as_str().unwrap().parse().unwrap();
            (object["metadata"]["uid"].as_str().unwrap().to_owned(), (version, object))
        };
        list["items"].as_array().unwrap().iter().map(object).collect()
    }

    /// SIGTERM, and waits.
    fn stop(mut self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        assert!(self.process.wait().unwrap().success());
    }
}

fn migrate(dir: &Path, to: &str, endpoints: &str, further: &[&str]) -> Result<String, String> {
    let mut command = Command::new(CONTROLPLANE);
    command.args(["datastore", "migrate", "--to", to, "--datastore-endpoints", endpoints]);
    command.arg("--data-dir").arg(dir).args(["--config", NO_CONFIG]).args(further);
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn moved_on(was: &BTreeMap<String, (u64, Value)>, is: &BTreeMap<String, (u64, Value)>) {
    for (uid, (version, object)) in was {
        let (now, same) = &is.get(uid).unwrap_or_else(|| panic!("lost: {object}"));
        assert!(now >= version, "{version} became {now}: {object}");
        assert_eq!(object, same);
    }
}

fn create(master: &Master, name: &str) {
    // A write whose answer was lost is looked for, as a person would.
    let deadline = Instant::now() + WITHIN;
    while let Err(error) = master.try_kubectl(&["create", "configmap", name]) {
        let there = error.contains("already exists");
        if there {
            return;
        }
        assert!(Instant::now() < deadline, "{error}");
    }
}

/// Both masters write, read and watch, while a member dies and comes back.
fn live([one, two]: [&Master; 2], etcd: &mut RealEtcd) {
    let watching = |master: &Master| {
        let name = ["get", "configmaps", "-w", "-o", "jsonpath={.metadata.name}{\"\\n\"}"];
        master.command(&name).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut watches = [watching(one), watching(two)];
    for number in 0..30 {
        let (here, there) = if number % 2 == 0 { (one, two) } else { (two, one) };
        let name = format!("w-{number:02}");
        create(here, &name);
        // What one acknowledged, the other reads at once.
        there.kubectl(&["get", "configmap", &name]);
        if number == 10 {
            etcd.kill_member(0);
        }
        if number == 20 {
            etcd.start_member(0);
        }
    }
    two.kubectl(&["annotate", "configmap", "w-00", "seen=yes"]);
    one.kubectl(&["delete", "configmap", "w-01"]);
    let gone = two.try_kubectl(&["get", "configmap", "w-01"]).unwrap_err();
    assert!(gone.contains("NotFound"), "{gone}");
    for watch in &mut watches {
        let (mut seen, mut output) = (String::new(), watch.stdout.take().unwrap());
        let mut buffer = [0; 4096];
        // The last thing that happened was the deletion, which prints the name once more.
        while seen.matches("w-01\n").count() < 2 {
            let read = output.read(&mut buffer).unwrap();
            assert!(read > 0, "the watch ended: {seen}");
            seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
        for number in 0..30 {
            let name = format!("w-{number:02}\n");
            assert!(seen.contains(&name), "{name} is missing in {seen}");
        }
        watch.kill().unwrap();
        watch.wait().unwrap();
    }
}

/// A cluster with something in it, in a log of its own; stopped.
fn begin(first: &Path) -> BTreeMap<String, (u64, Value)> {
    let master = Master::start(first, &[]);
    master.kubectl(&["create", "namespace", "shop"]);
    master.kubectl(&["-n", "shop", "create", "configmap", "settings", "--from-literal=a=1"]);
    master.kubectl(&[
        "-n",
        "shop",
        "create",
        "secret",
        "generic",
        "key",
        "--from-literal=p=hunter2",
    ]);
    master.kubectl(&["-n", "shop", "create", "deployment", "web", "--image=web", "--replicas=0"]);
    let running = migrate(first, "etcd", "http://127.0.0.1:1", &[]).unwrap_err();
    assert!(running.contains("in use by another process"), "{running}");
    // Its status follows; then nothing changes any more.
    master.kubectl(&["-n", "shop", "rollout", "status", "deployment/web", "--timeout=30s"]);
    let was = master.objects();
    master.stop();
    was
}

/// Reads of what is here go on; what needs the others fails, and works again when they are back.
fn without_a_quorum(master: &Master, etcd: &mut RealEtcd) {
    let ready = "/readyz";
    let here = "/api/v1/namespaces/shop/configmaps?resourceVersion=0";
    let raw = |path| master.try_kubectl(&["get", "--request-timeout=4s", "--raw", path]);
    etcd.kill_member(0);
    etcd.kill_member(1);
    let deadline = Instant::now() + WITHIN;
    while raw(ready).is_ok() {
        assert!(Instant::now() < deadline, "a master without its datastore is not ready");
    }
    assert!(raw(here).unwrap().contains("settings"));
    raw("/api/v1/namespaces/shop/configmaps").unwrap_err();
    let create = ["create", "configmap", "lonely", "--request-timeout=4s"];
    master.try_kubectl(&create).unwrap_err();
    etcd.start_member(0);
    etcd.start_member(1);
    while raw(ready).is_err() {
        assert!(Instant::now() < deadline, "the datastore is back");
    }
    master.kubectl(&["get", "configmaps"]);
}

#[test]
fn a_cluster_moves_to_etcd_lives_there_and_moves_back() {
    let kubectl =
        Command::new("kubectl").args(["version", "--client"]).stdout(Stdio::null()).status();
    if kubectl.is_err() {
        eprintln!("SKIPPED: kubectl is not installed");
        return;
    }
    if !RealEtcd::is_here() {
        return;
    }
    let own = tempfile::tempdir().unwrap();
    let (first, second) = (own.path().join("first"), own.path().join("second"));
    let was = begin(&first);
    let mut etcd = RealEtcd::start(3);
    let endpoints = etcd.endpoints().join(",");
    let told = migrate(&first, "etcd", &endpoints, &[]).unwrap();
    assert!(told.contains("compared by SHA-256"), "{told}");
    let flags = |further: &[&str]| -> Vec<String> {
        let own = ["--datastore-endpoints", &endpoints];
        own.iter().chain(further).map(|flag| (*flag).to_owned()).collect()
    };
    let one = Master::start(&first, &flags(&[]));
    moved_on(&was, &one.objects());
    let running = migrate(&second, "embedded", &endpoints, &[]).unwrap_err();
    assert!(running.contains("masters run on"), "{running}");
    let secret = first.join("cluster-secret");
    let two = Master::start(&second, &flags(&["--cluster-secret-file", secret.to_str().unwrap()]));
    let read = two.kubectl(&["-n", "shop", "get", "secret", "key", "-o", "jsonpath={.data.p}"]);
    assert_eq!(read, "aHVudGVyMg==");
    let sealed = etcd.get("/registry/secrets/shop/key");
    assert!(
        !sealed.windows(12).any(|bytes| bytes == b"aHVudGVyMg=="),
        "a Secret is sealed in etcd"
    );

    live([&one, &two], &mut etcd);
    without_a_quorum(&one, &mut etcd);
    let there = one.objects();
    one.stop();
    two.stop();

    // A master that was stopped says so at once or is forgotten within its lease.
    let deadline = Instant::now() + WITHIN;
    while let Err(error) = migrate(&first, "embedded", &endpoints, &[]) {
        assert!(error.contains("masters run on") && Instant::now() < deadline, "{error}");
    }
    let master = Master::start(&first, &[]);
    moved_on(&there, &master.objects());
    master.kubectl(&["-n", "shop", "create", "configmap", "home"]);
    master.stop();
    let mut left = Command::new(CONTROLPLANE);
    left.arg("run").arg("--data-dir").arg(&second).args(["--secure-port", "0"]);
    left.args(["--config", NO_CONFIG]).args(flags(&[]));
    let left = left.output().unwrap();
    let said = String::from_utf8(left.stderr).unwrap();
    assert!(!left.status.success() && said.contains("was moved into a master's own log"), "{said}");
}

/// A CA, and a pair for a server and one for a client, as files.
struct Certificates {
    dir: tempfile::TempDir,
}

impl Certificates {
    fn make() -> Self {
        let own = Self { dir: tempfile::tempdir().unwrap() };
        let key = || rcgen::KeyPair::generate().unwrap();
        let ca_key = key();
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        own.write("ca.crt", &ca.self_signed(&ca_key).unwrap().pem());
        let issuer = rcgen::Issuer::new(ca, ca_key);
        for (name, usage) in [
            ("server", rcgen::ExtendedKeyUsagePurpose::ServerAuth),
            ("client", rcgen::ExtendedKeyUsagePurpose::ClientAuth),
        ] {
            let own_key = key();
            let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
            params.extended_key_usages = vec![usage, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            let certificate = params.signed_by(&own_key, &issuer).unwrap();
            own.write(&format!("{name}.crt"), &certificate.pem());
            own.write(&format!("{name}.key"), &own_key.serialize_pem());
        }
        own
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn text(&self, name: &str) -> Option<String> {
        Some(std::fs::read_to_string(self.path(name)).unwrap())
    }
}

#[test]
fn a_datastore_with_tls_knows_its_masters() {
    if !RealEtcd::is_here() {
        return;
    }
    let files = Certificates::make();
    let mut tls = vec!["--client-cert-auth".to_owned()];
    for (flag, name) in [
        ("--trusted-ca-file", "ca.crt"),
        ("--cert-file", "server.crt"),
        ("--key-file", "server.key"),
    ] {
        tls.extend([flag.to_owned(), files.path(name)]);
    }
    let etcd = RealEtcd::start_with(1, tls);
    let whole = EtcdConfig {
        ca_pem: files.text("ca.crt"),
        certificate_pem: files.text("client.crt"),
        key_pem: files.text("client.key"),
        ..etcd.config()
    };
    let stranger = EtcdConfig {
        certificate_pem: None,
        key_pem: None,
        open_timeout: Duration::from_secs(2),
        ..whole.clone()
    };
    let other_ca = Certificates::make();
    let impostor = EtcdConfig { ca_pem: other_ca.text("ca.crt"), ..stranger.clone() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let open = |etcd: EtcdConfig| Store::open_etcd(etcd, store::Config::new(""));
        let store = Box::pin(open(whole)).await.unwrap();
        let put = Txn::of(vec![Op::put("/registry/a", "1")]);
        store.txn(put).await.unwrap();
        store.close().await;
        // etcd hangs up on a stranger; whether its alert is read before that is a matter of luck.
        for (refused, says) in [(stranger, "https://127.0.0.1"), (impostor, "certificate")] {
            let error = Box::pin(open(refused)).await.unwrap_err().to_string().to_lowercase();
            assert!(error.contains(says), "{error}");
        }
    });
}
