//! Backup and restore: a cluster with nodes and pods, its master's machine lost, and brought back from a snapshot and the cluster
//! secret alone.
#![allow(clippy::print_stdout, reason = "a test reports")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tests::fixture::{CONVERGE, Fixture, Shape, run_suite_on, text, web};
use tests::lab::MASTER;
use tests::scenario::{Scenario, Verdict};
use tests::shell::{capture, wait_for};

const NS: &str = "backup";
const SECRET_VALUE: &str = "a-value-that-nobody-else-has";
const PODS: usize = 4;
/// What a master's folder has of the cluster.
const STATE: [&str; 6] =
    ["store", "pki", "cluster-secret", "admin.kubeconfig", "etcd.sock", "snapshots"];

const SCENARIOS: &[Scenario<Fixture>] = &[
    ("snapshots are taken by themselves, and so many are kept", scheduled),
    ("a cluster is saved while it serves", saved),
    ("a Secret's value is in no file of the master", sealed),
    ("after the loss of the machine, every object is there", restored),
    ("nodes come back by themselves and no pod restarted", nodes_return),
    ("what anybody saw before is older than everything after", revisions),
    ("the restored cluster works", works),
];

fn main() -> ExitCode {
    let arguments = &["--snapshot-schedule=10s", "--snapshot-retention=2"];
    run_suite_on("snapshot", Shape { nodes: 2, masters: 1, etcds: 0, arguments }, SCENARIOS)
}

/// What was there when the cluster was saved.
struct Before {
    objects: BTreeMap<String, Value>,
    servers: BTreeMap<String, Vec<u32>>,
    revision_max: i64,
}

static BEFORE: Mutex<Option<Before>> = Mutex::new(None);

fn with_before<T>(read: impl FnOnce(&Before) -> Result<T>) -> Result<T> {
    let before = BEFORE.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
    read(before.as_ref().context("the cluster was not saved")?)
}

fn master_dir(f: &Fixture) -> Result<PathBuf> {
    Ok(f.lab.host(MASTER)?.dir.clone())
}

fn kept(f: &Fixture) -> PathBuf {
    f.lab.dir.join("kept")
}

fn controlplane(f: &Fixture, arguments: &[&str]) -> Result<Command> {
    let host = f.lab.host(MASTER)?;
    let mut command = host.command(f.lab.bin_dir.join("controlplane"))?;
    command.args(arguments);
    if arguments.get(1) != Some(&"verify") {
        command.arg("--data-dir").arg(&host.dir);
    }
    Ok(command)
}

fn json(command: &mut Command) -> Result<Value> {
    let output = capture(command.args(["--output", "json"]))?.success()?;
    serde_json::from_str(&output).context(output)
}

fn store_status(f: &Fixture) -> Result<Value> {
    Ok(json(&mut controlplane(f, &["status"])?)?["store"].clone())
}

fn scheduled(f: &Fixture) -> Result<Verdict> {
    let dir = master_dir(f)?.join("snapshots");
    let files = || -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir)? {
            found.push(entry?.path());
        }
        found.sort();
        Ok(found)
    };
    let deadline = Duration::from_secs(60);
    let status = wait_for("three scheduled snapshots", deadline, || {
        let status = store_status(f)?;
        ensure!(status["snapshots"]["taken"].as_u64() >= Some(3), "{status}");
        Ok(status)
    })?;
    ensure!(status["snapshots"]["failures"] == 0, "{status}");
    ensure!(status["snapshots"]["last"]["bytes"].as_u64() > Some(1000), "{status}");
    let found = files()?;
    ensure!(found.len() == 2, "{found:?}");
    for file in &found {
        let file = file.to_str().context("a name")?;
        let verified = json(&mut controlplane(f, &["snapshot", "verify", file])?)?;
        ensure!(verified["keys"].as_u64() > Some(50), "{verified}");
    }
    Ok(Verdict::Passed)
}

fn saved(f: &Fixture) -> Result<Verdict> {
    f.namespace(NS)?;
    f.kubectl_with(&["apply", "-n", NS, "-f", "-"], &web("web", 4, "x"))?.success()?;
    f.wait_ready(NS, "app=web", PODS)?;
    for number in 0..30 {
        let value = format!("--from-literal=password={SECRET_VALUE}");
        f.kubectl(&["create", "secret", "generic", &format!("s{number}"), &value, "-n", NS])?;
        let value = format!("--from-literal=number={number}");
        f.kubectl(&["create", "configmap", &format!("c{number}"), &value, "-n", NS])?;
    }
    let (objects, _) = all_objects(f)?;
    ensure!(objects.len() > 200, "only {} objects", objects.len());
    fs::create_dir_all(kept(f))?;
    let file = kept(f).join("cluster.snapshot");
    let file = file.to_str().context("a name")?;
    let info = json(&mut controlplane(f, &["snapshot", "save", file])?)?;
    println!("         {info}");
    ensure!(json(&mut controlplane(f, &["snapshot", "verify", file])?)? == info);
    fs::copy(master_dir(f)?.join("cluster-secret"), kept(f).join("cluster-secret"))?;
    // What is written now is lost with the machine; that it was seen must not matter.
    f.kubectl(&["create", "configmap", "later", "-n", NS])?;
    let (_, revision_max) = all_objects(f)?;
    let servers = f.servers()?;
    ensure!(servers.values().map(Vec::len).sum::<usize>() == PODS, "{servers:?}");
    let mut before = BEFORE.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
    *before = Some(Before { objects, servers, revision_max });
    Ok(Verdict::Passed)
}

/// Every object of the API by its place, and the highest revision that anybody could have seen.
fn all_objects(f: &Fixture) -> Result<(BTreeMap<String, Value>, i64)> {
    let (mut objects, mut revision_max) = (BTreeMap::new(), 0);
    let kinds = f.kubectl(&["api-resources", "--verbs=list", "--no-headers", "-o", "name"])?;
    for kind in kinds.lines().filter(|kind| !kind.starts_with("events")) {
        let list = f.get(&[kind, "-A"])?;
        let revision = text(&list, "/metadata/resourceVersion").parse().unwrap_or(0);
        revision_max = revision_max.max(revision);
        for object in list["items"].as_array().into_iter().flatten() {
            let (namespace, name) =
                (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
            let own: i64 = text(object, "/metadata/resourceVersion").parse().unwrap_or(0);
            revision_max = revision_max.max(own);
            // Heartbeats live in memory alone: nodes make their leases again, as after any restart of the master.
            if namespace == "kube-node-lease" && kind.starts_with("leases") {
                continue;
            }
            objects.insert(format!("{kind}/{namespace}/{name}"), object.clone());
        }
    }
    Ok((objects, revision_max))
}

/// What nobody changes but who made it: status, leases and what controllers count are written again at once.
fn lasting(object: &Value) -> Value {
    let mut own = object.clone();
    if let Some(fields) = own.as_object_mut() {
        fields.remove("status");
        if object["kind"] == "Lease" {
            fields.remove("spec");
        }
    }
    if let Some(metadata) = own["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
        metadata.remove("managedFields");
    }
    own
}

fn sealed(f: &Fixture) -> Result<Verdict> {
    // As an object has it, and as it was given.
    let base64 = "YS12YWx1ZS10aGF0LW5vYm9keS1lbHNlLWhhcw==";
    let mut secrets = Vec::new();
    let mut control = 0;
    for dir in [master_dir(f)?, kept(f)] {
        visit(&dir, &mut |path| {
            let bytes = fs::read(path).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            if text.contains(SECRET_VALUE) || text.contains(base64) {
                secrets.push(path.to_owned());
            }
            control += usize::from(text.contains("testserver"));
        })?;
    }
    ensure!(secrets.is_empty(), "{secrets:?}");
    ensure!(control > 0, "the search finds what is there");
    let read = f.kubectl(&["get", "secret", "s7", "-n", NS, "-o", "jsonpath={.data.password}"])?;
    ensure!(read == base64, "{read}");
    Ok(Verdict::Passed)
}

fn visit(dir: &Path, look: &mut impl FnMut(&Path)) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            visit(&entry.path(), look)?;
        } else if kind.is_file() {
            look(&entry.path());
        }
    }
    Ok(())
}

fn restored(f: &Fixture) -> Result<Verdict> {
    let (host, dir) = (f.lab.host(MASTER)?, master_dir(f)?);
    host.power_off()?;
    for name in STATE {
        let path = dir.join(name);
        match path.is_dir() {
            true => fs::remove_dir_all(&path)?,
            false if path.exists() => fs::remove_file(&path)?,
            false => {}
        }
    }
    host.power_on()?;
    let file = kept(f).join("cluster.snapshot");
    let secret = kept(f).join("cluster-secret");
    let mut restore = controlplane(f, &["snapshot", "restore"])?;
    let info = json(restore.arg(&file).arg("--cluster-secret-file").arg(&secret))?;
    println!("         {info}");
    f.lab.start(MASTER)?;
    with_before(|before| {
        let (now, _) = all_objects(f)?;
        let mut missing = Vec::new();
        for (place, object) in &before.objects {
            match now.get(place) {
                // Heartbeats live in memory alone; nodes write them again.
                None if place.contains("/kube-node-lease/") => {}
                None => missing.push(format!("{place}: missing")),
                Some(own) if lasting(own) != lasting(object) => {
                    missing.push(format!("{place}: {} became {}", lasting(object), lasting(own)));
                }
                Some(_) => {}
            }
        }
        println!("         {} objects compared", before.objects.len());
        ensure!(missing.is_empty(), "{}", missing.join("\n"));
        let later = format!("configmaps/{NS}/later");
        ensure!(!now.contains_key(&later), "{later} came after the snapshot");
        Ok(Verdict::Passed)
    })
}

fn nodes_return(f: &Fixture) -> Result<Verdict> {
    for node in &f.lab.nodes {
        wait_for(&format!("{node} to report again"), CONVERGE, || {
            f.lab.node_ready(node)?;
            let lease = f.get(&["lease", node, "-n", "kube-node-lease"])?;
            ensure!(!text(&lease, "/spec/renewTime").is_empty(), "{lease}");
            Ok(())
        })?;
    }
    f.wait_ready(NS, "app=web", PODS)?;
    with_before(|before| {
        let now = f.servers()?;
        ensure!(now == before.servers, "{:?} became {now:?}", before.servers);
        for pod in f.pods(NS, "app=web")? {
            let restarts = pod.pointer("/status/containerStatuses/0/restartCount");
            ensure!(restarts == Some(&0.into()), "{pod}");
        }
        Ok(Verdict::Passed)
    })
}

fn revisions(f: &Fixture) -> Result<Verdict> {
    f.kubectl(&["create", "configmap", "after", "-n", NS])?;
    let made = f.get(&["configmap", "after", "-n", NS])?;
    let own: i64 = text(&made, "/metadata/resourceVersion").parse()?;
    let seen = with_before(|before| Ok(before.revision_max))?;
    ensure!(own > seen, "{own} is not behind {seen}");
    let path = format!("/api/v1/namespaces/{NS}/configmaps?watch=1&resourceVersion={seen}");
    let answer = f.lab.kubectl_output(&["get", "--raw", &path, "--request-timeout=5s"])?;
    let told = answer.stdout + &answer.stderr;
    if !told.contains("410") && !told.contains("Expired") && !told.contains("too old") {
        bail!("an older watch goes on: {told}");
    }
    Ok(Verdict::Passed)
}

fn works(f: &Fixture) -> Result<Verdict> {
    f.kubectl(&["scale", "deployment", "web", "-n", NS, "--replicas=6"])?;
    let pods = f.wait_ready(NS, "app=web", 6)?;
    for pod in &pods {
        let name = text(pod, "/metadata/name");
        f.exec(NS, name, &["/bin/busybox", "true"]).with_context(|| name.to_owned())?;
    }
    let rotated = capture(&mut controlplane(f, &["encryption", "rotate"])?)?.success()?;
    ensure!(rotated.contains("0002"), "{rotated}");
    let status = store_status(f)?;
    ensure!(status["valuesBehind"] == 0, "{status}");
    sealed(f)
}
