//! Faults under load: killed processes, cut links, lost power. No container restarts that need not,
//! nothing acknowledged is lost, the service answers, all converges.
#![allow(clippy::print_stdout, reason = "a test reports")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tests::fixture::{CONVERGE, Fixture, run_suite, text, web};
use tests::load::{Outcome, Requests};
use tests::scenario::{Scenario, Verdict};
use tests::shell::wait_for;

const NS: &str = "faults";
/// How long a node's rules may lag behind what the API tells.
const RULES_LAG: Duration = Duration::from_secs(2);

const SCENARIOS: &[Scenario<Fixture>] = &[
    ("a deployment runs", prepare),
    ("SIGKILL of the master", |f| killed(f, &["master"])),
    ("SIGKILL of an agent", |f| killed(f, &["node1"])),
    ("SIGKILL of a monitor", |f| killed(f, &["node1/monitor"])),
    ("SIGKILL of all three at once", |f| killed(f, &["master", "node1", "node1/monitor"])),
    ("containers answer to exec and logs after all that", still_ours),
    ("a cut node loses its endpoints and pods; healed, nothing runs twice", cut),
    ("a node boots with the master gone and runs its pods", cold_boot),
];

fn main() -> ExitCode {
    run_suite("faults", 3, SCENARIOS)
}

fn prepare(f: &Fixture) -> Result<Verdict> {
    f.namespace(NS)?;
    f.kubectl_with(&["apply", "-n", NS, "-f", "-"], &web("web", 6, "x"))?.success()?;
    f.wait_ready(NS, "app=web", 6)?;
    Ok(Verdict::Passed)
}

/// What must outlive whatever happens to processes of ours.
#[derive(Debug, PartialEq, Eq)]
struct Life {
    pod: String,
    restarts: i64,
    /// PIDs of its test server, as the machine sees them.
    servers: Vec<u32>,
}

/// Every pod of the selector by UID.
fn lives(f: &Fixture, selector: &str) -> Result<BTreeMap<String, Life>> {
    let mut found = BTreeMap::new();
    for pod in f.wait_ready(NS, selector, 6)? {
        let status = &pod["status"]["containerStatuses"][0];
        let id = text(status, "/containerID").trim_start_matches("flotilla://").to_owned();
        ensure!(!id.is_empty(), "no container ID: {status}");
        let restarts = status["restartCount"].as_i64().context("no restart count")?;
        let servers = servers_in(&id)?;
        ensure!(servers.len() == 1, "container {id} has the servers {servers:?}");
        let life = Life { pod: text(&pod, "/metadata/name").to_owned(), restarts, servers };
        found.insert(text(&pod, "/metadata/uid").to_owned(), life);
    }
    Ok(found)
}

/// PIDs, as the machine sees them, of the test servers in a container's cgroup.
fn servers_in(container: &str) -> Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let Ok(groups) = std::fs::read_to_string(format!("/proc/{pid}/cgroup")) else { continue };
        if line.starts_with(b"/bin/testserver") && groups.contains(container) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// Constant load on the cluster: requests to a node port, and ConfigMaps whose creation was acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<String>>>,
    requests: Requests,
    writes: JoinHandle<()>,
}

impl Load {
    fn start(f: &Fixture, prefix: &str, node: &str) -> Result<Load> {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let requests = Requests::start(f, (NS, "web"), node)?;
        let writes = thread::spawn({
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            let (lab, prefix) = (f.lab.clone(), prefix.to_owned());
            move || {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let name = format!("{prefix}-{number}");
                    let made =
                        lab.kubectl(&["create", "cm", &name, "-n", NS, "--request-timeout=5s"]);
                    if let (Ok(_), Ok(mut list)) = (made, acknowledged.lock()) {
                        list.push(name);
                    }
                }
            }
        });
        Ok(Load { stop, acknowledged, requests, writes })
    }

    fn wait_for_writes(&self, least: usize) -> Result<()> {
        wait_for("some acknowledged writes", CONVERGE, || {
            let count = self.acknowledged.lock().map_err(|_| anyhow!("poisoned"))?.len();
            ensure!(count >= least, "{count}");
            Ok(())
        })
    }

    /// Names of acknowledged objects, and how the requests went.
    fn finish(self) -> Result<(Vec<String>, Outcome)> {
        self.stop.store(true, Ordering::Relaxed);
        self.writes.join().map_err(|_| anyhow!("the load panicked"))?;
        let mut names = self.acknowledged.lock().map_err(|_| anyhow!("poisoned"))?;
        Ok((std::mem::take(&mut *names), self.requests.finish()?))
    }
}

/// A Deployment of its own for each fault: the master decides and the nodes act, and `web` is left alone.
fn proves_life(f: &Fixture, name: &str) -> Result<()> {
    let words = ["create", "deployment", name, "-n", NS, "--image=busybox:1.35", "--replicas=3"];
    f.kubectl(&[&words[..], &["--", "sleep", "100000"]].concat())?;
    f.wait_ready(NS, &format!("app={name}"), 3)?;
    f.kubectl(&["delete", "deployment", name, "-n", NS, "--cascade=foreground", "--timeout=90s"])?;
    Ok(())
}

fn killed(f: &Fixture, targets: &[&str]) -> Result<Verdict> {
    let before = lives(f, "app=web")?;
    let name = targets.join("-").replace('/', "-");
    let load = Load::start(f, &format!("cm-{name}"), "node2")?;
    load.wait_for_writes(3)?;
    for target in targets {
        f.lab.kill_and_wait(target, libc::SIGKILL)?;
    }
    for target in targets {
        if !target.ends_with("/monitor") {
            f.lab.start(target)?;
        }
    }
    proves_life(f, &format!("after-{name}"))?;
    let (acknowledged, requests) = load.finish()?;
    requests.judge(100)?;
    all_there(f, &acknowledged)?;
    let (writes, good) = (acknowledged.len(), requests.good());
    println!("         {writes} acknowledged writes, all there; {good} requests, none failed");
    let after = lives(f, "app=web")?;
    ensure!(before == after, "before {before:?}, after {after:?}");
    Ok(Verdict::Passed)
}

fn all_there(f: &Fixture, acknowledged: &[String]) -> Result<()> {
    let list = f.get(&["cm", "-n", NS])?;
    let items = list["items"].as_array().context("no items")?;
    let names: BTreeSet<&str> = items.iter().map(|item| text(item, "/metadata/name")).collect();
    for name in acknowledged {
        ensure!(names.contains(name.as_str()), "{name} was acknowledged and is lost");
    }
    Ok(())
}

fn still_ours(f: &Fixture) -> Result<Verdict> {
    for pod in f.wait_ready(NS, "app=web", 6)? {
        let name = text(&pod, "/metadata/name");
        ensure!(f.exec(NS, name, &["cat", "/proc/sys/kernel/hostname"])?.trim() == name);
        let logs = f.kubectl(&["logs", "-n", NS, name])?;
        ensure!(logs.contains("serving on 8080"), "{name}: {logs:?}");
    }
    Ok(Verdict::Passed)
}

fn cut(f: &Fixture) -> Result<Verdict> {
    let host = f.lab.host("node3")?;
    let manifest = web("mobile", 3, "x").replace(
        "      containers:",
        "      tolerations:\n      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 5}\n      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 5}\n      containers:",
    );
    f.kubectl_with(&["apply", "-n", NS, "-f", "-"], &manifest)?.success()?;
    let before = f.wait_ready(NS, "app=mobile", 3)?;
    let there: Vec<&str> = before
        .iter()
        .filter(|pod| text(pod, "/spec/nodeName") == "node3")
        .map(|pod| text(pod, "/metadata/name"))
        .collect();
    ensure!(!there.is_empty(), "no replica on node3");
    let load = Load::start(f, "cm-cut", "node2")?;
    load.wait_for_writes(3)?;
    let cut = Instant::now();
    host.set_link("down")?;
    let outcome = wait_for("replacements elsewhere", CONVERGE, || {
        let pods = f.pods(NS, "app=mobile")?;
        let ready = pods
            .iter()
            .filter(|pod| tests::fixture::is_ready(pod) && text(pod, "/spec/nodeName") != "node3")
            .count();
        ensure!(ready == 3, "{ready} ready elsewhere");
        endpoints_without(f, "mobile", "node3")?;
        endpoints_without(f, "web", "node3")
    });
    let known = Instant::now() + RULES_LAG;
    host.set_link("up")?;
    outcome?;
    wait_for("node3 to be Ready again", CONVERGE, || f.lab.node_ready("node3"))?;
    f.wait_ready(NS, "app=mobile", 3)?;
    wait_for("the stale pods to go", CONVERGE, || {
        for name in &there {
            f.kubectl_fails(&["get", "pod", "-n", NS, name])?;
        }
        let agent = f.lab.bin_dir.join("agent");
        let listed = host.run(&[&agent.to_string_lossy(), "ps"])?;
        match there.iter().find(|name| listed.contains(**name)) {
            Some(name) => bail!("{name} runs on node3 still: {listed}"),
            None => Ok(()),
        }
    })?;
    let (acknowledged, requests) = load.finish()?;
    // Until its endpoints are gone, a part of the requests goes to the node that nobody can reach.
    requests.judge_outside(100, cut..known)?;
    all_there(f, &acknowledged)?;
    let (writes, good) = (acknowledged.len(), requests.good());
    println!("         {writes} acknowledged writes, all there; {good} requests answered");
    f.kubectl(&["delete", "deployment,svc", "mobile", "-n", NS])?;
    Ok(Verdict::Passed)
}

fn endpoints_without(f: &Fixture, service: &str, node: &str) -> Result<()> {
    let selector = format!("kubernetes.io/service-name={service}");
    let list = f.get(&["endpointslices", "-n", NS, "-l", &selector])?;
    for slice in list["items"].as_array().into_iter().flatten() {
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let ready = endpoint["conditions"]["ready"].as_bool().unwrap_or(true);
            ensure!(!(ready && text(endpoint, "/nodeName") == node), "{endpoint}");
        }
    }
    Ok(())
}

fn cold_boot(f: &Fixture) -> Result<Verdict> {
    let pods = f.wait_ready(NS, "app=web", 6)?;
    let here: Vec<String> = pods
        .iter()
        .filter(|pod| text(pod, "/spec/nodeName") == "node2")
        .map(|pod| text(pod, "/status/podIP").to_owned())
        .collect();
    ensure!(!here.is_empty(), "no replica on node2");
    let ip = f.kubectl(&["get", "svc", "web", "-n", NS, "-o", "jsonpath={.spec.clusterIP}"])?;
    let host = f.lab.host("node2")?;
    let load = Load::start(f, "cm-boot", "node1")?;
    load.wait_for_writes(3)?;
    let dark = Instant::now();
    f.lab.host("master")?.power_off()?;
    host.power_off()?;
    f.lab.start("node2")?;
    let outcome = wait_for("the pods of node2 without a master", CONVERGE, || {
        let agent = f.lab.bin_dir.join("agent");
        let listed = host.run(&[&agent.to_string_lossy(), "ps", "--output", "json"])?;
        ensure!(listed.matches("\"running\"").count() >= here.len(), "{listed}");
        host.run(&["curl", "-sS", "--fail", "--max-time", "2", &format!("http://{ip}/hostname")])
    });
    f.lab.start("master")?;
    outcome?;
    for node in &f.lab.nodes {
        wait_for(&format!("{node} to be Ready"), CONVERGE, || f.lab.node_ready(node))?;
    }
    let bright = Instant::now() + RULES_LAG;
    wait_for("the restarts of node2 to be told, and no other", CONVERGE, || {
        for pod in f.wait_ready(NS, "app=web", 6)? {
            let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_i64();
            let expected = i64::from(text(&pod, "/spec/nodeName") == "node2");
            ensure!(restarts == Some(expected), "{}: {restarts:?}", text(&pod, "/metadata/name"));
        }
        Ok(())
    })?;
    let writes = load.acknowledged.lock().map_err(|_| anyhow!("poisoned"))?.len();
    load.wait_for_writes(writes + 3)?;
    wait_for("some requests when all is well again", CONVERGE, || {
        ensure!(bright.elapsed() > RULES_LAG);
        Ok(())
    })?;
    let (acknowledged, requests) = load.finish()?;
    // Nobody can tell node1 that node2's pods are gone while the master is.
    requests.judge_outside(100, dark..bright)?;
    all_there(f, &acknowledged)?;
    let (writes, good) = (acknowledged.len(), requests.good());
    println!("         {writes} acknowledged writes, all there; {good} requests answered");
    Ok(Verdict::Passed)
}
