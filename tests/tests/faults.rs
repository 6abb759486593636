//! Faults under load: killed processes, cut links, lost power. No container restarts that need not,
//! nothing acknowledged is lost, the service answers, all converges.
#![allow(clippy::print_stdout, reason = "a test reports")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tests::fixture::{CONVERGE, Fixture, run_suite, text, web};
use tests::load::{Outcome, Requests};
use tests::scenario::{Scenario, Verdict};
use tests::shell::wait_for;

const NS: &str = "faults";

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

    /// Names of acknowledged objects, and how the requests went.
    fn finish(self) -> Result<(Vec<String>, Outcome)> {
        self.stop.store(true, Ordering::Relaxed);
        self.writes.join().map_err(|_| anyhow!("the load panicked"))?;
        let mut names = self.acknowledged.lock().map_err(|_| anyhow!("poisoned"))?;
        Ok((std::mem::take(&mut *names), self.requests.finish()?))
    }
}

fn killed(f: &Fixture, targets: &[&str]) -> Result<Verdict> {
    let before = f.servers()?;
    ensure!(before.values().map(Vec::len).sum::<usize>() == 6, "not six servers: {before:?}");
    let prefix = format!("cm-{}", targets.join("-").replace('/', "-"));
    let load = Load::start(f, &prefix, "node2")?;
    wait_for("some acknowledged writes", CONVERGE, || {
        let count = load.acknowledged.lock().map_err(|_| anyhow!("poisoned"))?.len();
        ensure!(count >= 3, "{count}");
        Ok(())
    })?;
    for target in targets {
        f.lab.kill_and_wait(target, libc::SIGKILL)?;
    }
    for target in targets {
        if !target.ends_with("/monitor") {
            f.lab.start(target)?;
        }
    }
    f.kubectl(&["scale", "deployment/web", "-n", NS, "--replicas=7"])?;
    f.wait_ready(NS, "app=web", 7)?;
    f.kubectl(&["scale", "deployment/web", "-n", NS, "--replicas=6"])?;
    f.wait_ready(NS, "app=web", 6)?;
    wait_for("scaled-down servers to go", CONVERGE, || {
        let after = f.servers()?;
        let count: usize = after.values().map(Vec::len).sum();
        ensure!(count == 6, "{after:?}");
        Ok(())
    })?;
    let (acknowledged, requests) = load.finish()?;
    requests.judge(100)?;
    let list = f.get(&["cm", "-n", NS])?;
    let names: Vec<&str> = list["items"]
        .as_array()
        .context("no items")?
        .iter()
        .map(|item| text(item, "/metadata/name"))
        .collect();
    for name in &acknowledged {
        ensure!(names.contains(&name.as_str()), "{name} was acknowledged and is lost");
    }
    let (writes, good) = (acknowledged.len(), requests.good);
    println!("         {writes} acknowledged writes, all there; {good} requests, none failed");
    let pods = f.wait_ready(NS, "app=web", 6)?;
    let restarted: Vec<&str> = pods
        .iter()
        .filter(|pod| pod["status"]["containerStatuses"][0]["restartCount"] != 0)
        .map(|pod| text(pod, "/metadata/name"))
        .collect();
    ensure!(restarted.is_empty(), "restarted: {restarted:?}");
    // One may have been the seventh's victim; the others must be the same processes.
    let after = f.servers()?;
    let kept: usize = before
        .iter()
        .map(|(node, pids)| pids.iter().filter(|pid| after[node].contains(pid)).count())
        .sum();
    ensure!(kept >= 5, "before {before:?}, after {after:?}");
    Ok(Verdict::Passed)
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
    host.set_link("down")?;
    let outcome = wait_for("replacements elsewhere", CONVERGE, || {
        let pods = f.pods(NS, "app=mobile")?;
        let ready = pods
            .iter()
            .filter(|pod| tests::fixture::is_ready(pod) && text(pod, "/spec/nodeName") != "node3")
            .count();
        ensure!(ready == 3, "{ready} ready elsewhere");
        endpoints_without(f, "mobile", "node3")
    });
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
    wait_for("the restarts of node2 to be told, and no other", CONVERGE, || {
        for pod in f.wait_ready(NS, "app=web", 6)? {
            let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_i64();
            let expected = i64::from(text(&pod, "/spec/nodeName") == "node2");
            ensure!(restarts == Some(expected), "{}: {restarts:?}", text(&pod, "/metadata/name"));
        }
        Ok(())
    })?;
    Ok(Verdict::Passed)
}
