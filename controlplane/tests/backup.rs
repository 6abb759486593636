//! Backups as an administrator makes them: what is secret stands in no file, a snapshot and the cluster secret are a whole cluster, and
//! nothing less than both is.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../store/tests/real_etcd/mod.rs"]
mod real_etcd;
mod running;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use controlplane::datastore::settings;
use controlplane::secrets::Loaded;
use real_etcd::RealEtcd;
use running::{DEADLINE, Master, controlplane, free_port, told};
use store::{Op, Store, Txn};

fn refused(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

fn json(mut command: Command) -> serde_json::Value {
    serde_json::from_str(&told(command.args(["--output", "json"]).output().unwrap())).unwrap()
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
        match entry.file_type().unwrap().is_dir() {
            true => files(&entry.path(), found),
            false => found.push(entry.path()),
        }
    }
}

/// The files under `dir` that hold one of the texts.
fn holding(dir: &Path, texts: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(dir, &mut found);
    found.retain(|path| {
        let bytes = fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        texts.iter().any(|wanted| text.contains(wanted))
    });
    found
}

struct Cluster {
    dir: PathBuf,
    port: String,
    /// Secret of a token, and as Secrets have it.
    secret: [String; 2],
    token_id: String,
}

impl Cluster {
    /// A running master with a Secret.
    fn start(dir: PathBuf) -> (Self, Master) {
        Self::start_with(dir, &[])
    }

    fn start_with(dir: PathBuf, further: &[&str]) -> (Self, Master) {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let port = free_port();
        let master = Master::start(&dir, &port, further);
        let token = json(controlplane(&dir, &["token", "create"]));
        let mut parts = token["token"].as_str().unwrap().split('.').map(str::to_owned);
        let (token_id, secret) = (parts.next().unwrap(), parts.next().unwrap());
        let secret = [secret.clone(), STANDARD.encode(&secret)];
        (Self { dir, port, secret, token_id }, master)
    }

    fn secret_is_in_no_file(&self) {
        let found = holding(&self.dir, &[&self.secret[0], &self.secret[1]]);
        assert!(found.is_empty(), "{found:?}");
        let control = holding(&self.dir, &["kube-system"]);
        assert!(!control.is_empty(), "the search finds what is there");
    }

    fn snapshot(&self, command: &str, file: &Path) -> Command {
        let mut command = controlplane(&self.dir, &["snapshot", command]);
        command.arg(file);
        command
    }
}

fn verify(file: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_controlplane"));
    command.args(["snapshot", "verify"]).arg(file);
    command
}

#[test]
fn a_snapshot_and_the_cluster_secret_are_the_whole_cluster() {
    let temporary = tempfile::tempdir().unwrap();
    let (cluster, mut master) = Cluster::start(temporary.path().join("first"));
    cluster.secret_is_in_no_file();
    let file = temporary.path().join("online.snapshot");
    let online = json(cluster.snapshot("save", &file));
    let status = &json(controlplane(&cluster.dir, &["status"]))["store"];
    assert!(online["revision"].as_i64() <= status["revision"].as_i64(), "{online} {status}");
    assert_eq!(json(verify(&file)), online);
    assert!(holding(temporary.path(), &[&cluster.secret[0], &cluster.secret[1]]).is_empty());
    let ca = fs::read_to_string(cluster.dir.join("pki/ca.crt")).unwrap();
    let occupied = refused(cluster.snapshot("restore", &file));
    assert!(occupied.contains("stop the master first"), "{occupied}");
    assert!(master.terminate());
    cluster.secret_is_in_no_file();
    let occupied = refused(cluster.snapshot("restore", &file));
    assert!(occupied.contains("holds a cluster's state already; --force"), "{occupied}");
    let offline = temporary.path().join("offline.snapshot");
    json(cluster.snapshot("save", &offline));

    let secret = cluster.dir.join("cluster-secret");
    let second = Cluster { dir: temporary.path().join("second"), ..cluster };
    let missing = refused(second.snapshot("restore", &offline));
    assert!(
        missing.contains("second/cluster-secret: the cluster secret is not there"),
        "{missing}"
    );
    let (other, _other) = Cluster::start(temporary.path().join("other"));
    let wrong = other.dir.join("cluster-secret");
    let mut restore = second.snapshot("restore", &offline);
    let error = refused({
        restore.arg("--cluster-secret-file").arg(wrong);
        restore
    });
    assert!(error.contains("holds the cluster secret") && error.contains("sealed with"), "{error}");
    assert!(!second.dir.join("store").exists() && !second.dir.join("cluster-secret").exists());
    let mut restore = second.snapshot("restore", &offline);
    let restored = json({
        restore.arg("--cluster-secret-file").arg(&secret);
        restore
    });
    assert!(restored["revision"].as_i64() > online["revision"].as_i64().map(|r| r + 999_999_999));

    let mut master = Master::start(&second.dir, &second.port, &[]);
    let list = told(controlplane(&second.dir, &["token", "list"]).output().unwrap());
    assert!(list.contains(&second.token_id), "{list}");
    assert_eq!(fs::read_to_string(second.dir.join("pki/ca.crt")).unwrap(), ca);
    second.secret_is_in_no_file();
    assert!(master.terminate());
    json({
        let mut again = second.snapshot("restore", &file);
        again.arg("--force");
        again
    });
    let kept = fs::read_dir(&second.dir).unwrap().filter(|entry| {
        entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("store.replaced-")
    });
    assert_eq!(kept.count(), 1);
}

#[test]
fn a_damaged_snapshot_is_refused_by_name_and_offset() {
    let temporary = tempfile::tempdir().unwrap();
    let (cluster, mut master) = Cluster::start(temporary.path().join("data"));
    assert!(master.terminate());
    let file = temporary.path().join("whole.snapshot");
    json(cluster.snapshot("save", &file));
    let whole = fs::read(&file).unwrap();
    let bad = temporary.path().join("bad.snapshot");
    // Every byte is tried by the store's own tests; here the whole way to the person who reads it.
    for at in [0, 40, whole.len() / 2, whole.len() - 40, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        fs::write(&bad, &bytes).unwrap();
        let error = refused(verify(&bad));
        assert!(error.contains("bad.snapshot"), "byte {at}: {error}");
        assert!(at == 0 || error.contains("damaged at offset"), "byte {at}: {error}");
    }
    fs::write(&bad, &whole[..whole.len() - 100]).unwrap();
    let error = refused(verify(&bad));
    assert!(error.contains("damaged at offset"), "{error}");
    let mut restore = cluster.snapshot("restore", &bad);
    restore.arg("--force");
    assert!(refused(restore).contains("damaged at offset"));
    let master = Master::start(&cluster.dir, &cluster.port, &[]);
    drop(master);
}

#[test]
fn a_rotation_reaches_every_secret() {
    let temporary = tempfile::tempdir().unwrap();
    let (cluster, mut master) = Cluster::start(temporary.path().join("data"));
    let rotate = controlplane(&cluster.dir, &["encryption", "rotate"]).output().unwrap();
    let text = told(rotate);
    assert!(text.contains("Every Secret is encrypted with the key 0002"), "{text}");
    let begun = Instant::now();
    loop {
        let store = &json(controlplane(&cluster.dir, &["status"]))["store"];
        if store["encryptionKeys"] == serde_json::json!(["0001", "0002"])
            && store["valuesBehind"] == 0
        {
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "{store}");
    }
    cluster.secret_is_in_no_file();
    assert!(master.terminate());
    let mut master = Master::start(&cluster.dir, &cluster.port, &[]);
    let list = told(controlplane(&cluster.dir, &["token", "list"]).output().unwrap());
    assert!(list.contains(&cluster.token_id), "{list}");
    cluster.secret_is_in_no_file();
    assert!(master.terminate());
}

#[test]
fn masters_on_one_etcd_share_the_cluster_secret_and_nothing_stands_there_plain() {
    if !RealEtcd::is_here() {
        return;
    }
    let (temporary, etcd) = (tempfile::tempdir().unwrap(), RealEtcd::start(1));
    let endpoints = etcd.endpoints().join(",");
    let datastore = ["--datastore-endpoints", &endpoints];
    let (first, _master) = Cluster::start_with(temporary.path().join("first"), &datastore);
    let texts = first.secret.clone();
    let texts = [&*texts[0], &*texts[1]];
    assert!(holding(etcd.dir(), &texts).is_empty());
    assert!(!holding(etcd.dir(), &["kube-system"]).is_empty(), "the search finds what is there");

    let second = Cluster { dir: temporary.path().join("second"), port: free_port(), ..first };
    let secret = temporary.path().join("first/cluster-secret");
    let run = ["run", "--bind-address", "127.0.0.1", "--secure-port", &second.port];
    let mut without = controlplane(&second.dir, &run);
    let error = refused({
        without.args(datastore);
        without
    });
    assert!(error.contains("second/cluster-secret is missing"), "{error}");
    assert!(!second.dir.join("cluster-secret").exists());
    let further = [&datastore[..], &["--cluster-secret-file", secret.to_str().unwrap()]].concat();
    let _second = Master::start(&second.dir, &second.port, &further);
    let list = told(controlplane(&second.dir, &["token", "list"]).output().unwrap());
    assert!(list.contains(&second.token_id), "{list}");
    let mut rotate = controlplane(&second.dir, &["encryption", "rotate"]);
    told(rotate.arg("--cluster-secret-file").arg(&secret).output().unwrap());
    let file = temporary.path().join("etcd.snapshot");
    json(second.snapshot("save", &file));
    assert!(holding(etcd.dir(), &texts).is_empty());

    let third = Cluster { dir: temporary.path().join("third"), port: free_port(), ..second };
    let mut restore = third.snapshot("restore", &file);
    json({
        restore.arg("--cluster-secret-file").arg(&secret);
        restore
    });
    let _third = Master::start(&third.dir, &third.port, &[]);
    let list = told(controlplane(&third.dir, &["token", "list"]).output().unwrap());
    assert!(list.contains(&third.token_id), "{list}");
}

#[test]
fn secrets_from_before_there_was_encryption_leave_every_file() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("data");
    let key = "/registry/secrets/default/old";
    let value = r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"old","namespace":"default","uid":"u"},"data":{"a":"b2xkLXZhbHVl"}}"#;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(store::Config::new(dir.join("store"))).unwrap();
        store.txn(Txn::of(vec![Op::put(key, value)])).await.unwrap();
        store.close().await;
    });
    assert!(!holding(&dir, &["b2xkLXZhbHVl"]).is_empty(), "the search finds what is there");
    let port = free_port();
    let mut master = Master::start(&dir, &port, &[]);
    let found = holding(&dir, &["b2xkLXZhbHVl"]);
    assert!(found.is_empty(), "{found:?}");
    assert!(master.terminate());
    let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert!(!names.iter().any(|name| name.to_string_lossy().contains("renewed")), "{names:?}");
    let loaded = Loaded::read(&dir, None).unwrap();
    let store = Store::open(settings(dir.join("store"), &loaded)).unwrap();
    assert_eq!(store.get(key.as_bytes()).unwrap().value, value);
    assert!(!loaded.ring().met_plain());
}
