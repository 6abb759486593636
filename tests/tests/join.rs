//! Joining: fast, by one token; each way to fail names its cause and its remedy.
#![allow(clippy::print_stdout, reason = "a test reports")]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::fixture::{CONVERGE, Fixture, Shape, run_suite_on};
use tests::lab::Host;
use tests::scenario::{Scenario, Verdict};
use tests::shell::{Output, capture, wait_for};

/// One command from a token to a Ready node; a third of it is usual where nothing else runs.
const JOIN_MAX: Duration = Duration::from_secs(9);

const SCENARIOS: &[Scenario<Fixture>] = &[
    ("a node joins and is Ready", joins),
    ("joining again with the same device is fine", joins_again),
    ("one command joins, without systemd", joins_alone),
    ("one command joins again", joins_alone_again),
    ("a wrong secret", wrong_secret),
    ("a wrong fingerprint", wrong_fingerprint),
    ("an expired token", expired),
    ("a revoked token", revoked),
    ("a token that is none", malformed),
    ("a taken node name", taken_name),
    ("a wrong clock", wrong_clock),
    ("no cgroup memory controller", no_memory_controller),
    ("no master", no_master),
    ("a static pod runs and is mirrored", static_pod),
    ("pods ask the DNS that the master told their node of", told_dns),
    ("nodes use the ranges that the master told them", told_ranges),
];

fn main() -> ExitCode {
    // Not the usual ones: a node has to be told.
    let arguments = &[
        "--service-cluster-ip-range=10.77.0.0/16",
        "--cluster-cidr=10.42.0.0/16",
        "--cluster-domain=fleet.example",
    ];
    run_suite_on("join", Shape { nodes: 2, masters: 1, etcds: 0, arguments }, SCENARIOS)
}

/// Makes `node2` a device that has never been in a cluster.
fn fresh(f: &Fixture) -> Result<Host> {
    let host = f.lab.host("node2")?;
    if !host.pids(&["agent run"])?.is_empty() {
        leave(f, &host)?;
    }
    Ok(host)
}

fn leave(f: &Fixture, host: &Host) -> Result<String> {
    let agent = f.lab.bin_dir.join("agent");
    host.run(&[&agent.to_string_lossy(), "leave"])
}

fn attempt(f: &Fixture, host: &Host, server: &str, token: &str) -> Result<Output> {
    attempt_with(f, host, (server, token), &["--no-service"])
}

fn attempt_with(
    f: &Fixture,
    host: &Host,
    (server, token): (&str, &str),
    arguments: &[&str],
) -> Result<Output> {
    let mut command = host.command(f.lab.bin_dir.join("agent"))?;
    command.args(["join", server, "--token", token, "--node-name", "node2"]).args(arguments);
    command.args(["--node-ip", &host.ip.to_string()]);
    command.args(["--cgroup-parent", &f.lab.addresses().cgroup("node2")]);
    capture(&mut command)
}

/// The attempt fails, its message has all of `wanted`, and nothing of it stays on the device.
fn refused(f: &Fixture, server: &str, token: &str, wanted: &[&str]) -> Result<Verdict> {
    let host = fresh(f)?;
    let output = attempt(f, &host, server, token)?;
    ensure!(output.code != 0, "the node joined: {output:?}");
    for word in wanted {
        ensure!(output.stderr.contains(word), "no {word:?} in {:?}", output.stderr);
    }
    let left = host.run(&["sh", "-c", "ls /etc/flotilla/agent.toml 2>/dev/null || true"])?;
    ensure!(left.is_empty(), "a configuration was left behind");
    Ok(Verdict::Passed)
}

fn joins(f: &Fixture) -> Result<Verdict> {
    fresh(f)?;
    wait_for("the old Node to go", CONVERGE, || {
        f.kubectl_fails(&["get", "node", "node2"]).map(drop)
    })?;
    let start = Instant::now();
    let told = f.lab.join("node2", &["--labels", "zone=a", "--taints", "edge=yes:NoSchedule"])?;
    f.lab.start_agent("node2")?;
    wait_for("Ready", CONVERGE, || f.lab.node_ready("node2"))?;
    println!("         joined and Ready after {:.2?}", start.elapsed());
    ensure!(told.contains("node2"), "{told:?}");
    let node = f.get(&["node", "node2"])?;
    ensure!(node["metadata"]["labels"]["zone"] == "a", "{}", node["metadata"]);
    ensure!(node["spec"]["taints"].to_string().contains("edge"), "{}", node["spec"]);
    Ok(Verdict::Passed)
}

fn joins_again(f: &Fixture) -> Result<Verdict> {
    let host = f.lab.host("node2")?;
    host.kill(&["agent run"], libc::SIGTERM)?;
    f.lab.join("node2", &[])?;
    wait_for("the old agent to go", CONVERGE, || {
        ensure!(host.pids(&["agent run"])?.is_empty(), "it runs");
        Ok(())
    })?;
    f.lab.start_agent("node2")?;
    wait_for("Ready", CONVERGE, || f.lab.node_ready("node2"))?;
    Ok(Verdict::Passed)
}

/// The agent that the pid file names, as the host sees it, and its command line.
fn running_agent(host: &Host) -> Result<(String, String)> {
    let pid = host.run(&["cat", "/run/flotilla/agent.pid"])?.trim().to_owned();
    let line = host.run(&["cat", &format!("/proc/{pid}/cmdline")])?;
    ensure!(line.contains("agent\0run\0"), "process {pid} is {line:?}");
    Ok((pid, line))
}

fn one_command(f: &Fixture, host: &Host) -> Result<String> {
    let token = f.lab.token(&[])?;
    let start = Instant::now();
    let told = attempt_with(f, host, (&f.lab.server(), &token), &[])?.success()?;
    let took = start.elapsed();
    println!("         joined and Ready after {took:.2?}");
    f.lab.node_ready("node2")?;
    ensure!(took < JOIN_MAX, "{told}");
    for word in ["signed", "no systemd", "agent.log", "Ready after"] {
        ensure!(told.contains(word), "no {word:?} in {told:?}");
    }
    Ok(told)
}

fn joins_alone(f: &Fixture) -> Result<Verdict> {
    let host = fresh(f)?;
    wait_for("the old Node to go", CONVERGE, || {
        f.kubectl_fails(&["get", "node", "node2"]).map(drop)
    })?;
    one_command(f, &host)?;
    let (pid, _) = running_agent(&host)?;
    let session = host.run(&["ps", "-o", "sid=", "-p", &pid])?;
    ensure!(session.trim() == pid, "the agent is in the session {session} of its starter");
    let log = host.run(&["cat", "/run/flotilla/agent.log"])?;
    ensure!(log.contains("the agent runs"), "{log:?}");
    Ok(Verdict::Passed)
}

/// Renews the identity, takes the place of the running agent, and leaves one agent and one monitor.
fn joins_alone_again(f: &Fixture) -> Result<Verdict> {
    let host = f.lab.host("node2")?;
    let (before, _) = running_agent(&host)?;
    one_command(f, &host)?;
    let (after, _) = running_agent(&host)?;
    ensure!(before != after, "the agent was not restarted");
    for role in ["agent run", "monitor --run-dir"] {
        let pids = host.pids(&[role])?;
        ensure!(pids.len() == 1, "{role:?}: {pids:?}");
    }
    leave(f, &host)?;
    let left =
        host.run(&["sh", "-c", "ls -d /run/flotilla /var/lib/flotilla 2>/dev/null; ps -eo args"])?;
    ensure!(!left.contains("flotilla\n") && !left.contains("agent"), "{left}");
    Ok(Verdict::Passed)
}

fn wrong_secret(f: &Fixture) -> Result<Verdict> {
    let token = f.lab.token(&[])?;
    let parts: Vec<&str> = token.split('.').collect();
    let wrong = format!("{}.{}.{}", parts[0], "0".repeat(16), parts[2]);
    refused(f, &f.lab.server(), &wrong, &["token", "token create"])
}

fn wrong_fingerprint(f: &Fixture) -> Result<Verdict> {
    let token = f.lab.token(&[])?;
    let parts: Vec<&str> = token.split('.').collect();
    let wrong = format!("{}.{}.{}", parts[0], parts[1], "0".repeat(64));
    refused(f, &f.lab.server(), &wrong, &["fingerprint", "token"])
}

fn expired(f: &Fixture) -> Result<Verdict> {
    let token = f.lab.token(&["--ttl", "1s"])?;
    let id = token.split('.').next().unwrap_or_default().to_owned();
    wait_for("the token to expire", CONVERGE, || {
        let list = f.lab.host("master")?.run(&[
            &f.lab.bin_dir.join("controlplane").to_string_lossy(),
            "token",
            "list",
            "--data-dir",
            &f.lab.dir.join("master").to_string_lossy(),
        ])?;
        let live = list.lines().any(|line| line.contains(&id) && !line.contains("expired"));
        ensure!(!live, "{list}");
        Ok(())
    })?;
    refused(f, &f.lab.server(), &token, &["token", "expired", "token create"])
}

fn revoked(f: &Fixture) -> Result<Verdict> {
    let token = f.lab.token(&[])?;
    let id = token.split('.').next().unwrap_or_default().to_owned();
    f.lab.host("master")?.run(&[
        &f.lab.bin_dir.join("controlplane").to_string_lossy(),
        "token",
        "revoke",
        &id,
        "--data-dir",
        &f.lab.dir.join("master").to_string_lossy(),
    ])?;
    refused(f, &f.lab.server(), &token, &["token", "token create"])
}

fn malformed(f: &Fixture) -> Result<Verdict> {
    refused(f, &f.lab.server(), "nonsense", &["token", "<id>.<secret>.<fingerprint>"])
}

fn taken_name(f: &Fixture) -> Result<Verdict> {
    let host = fresh(f)?;
    let token = f.lab.token(&[])?;
    let mut command = host.command(f.lab.bin_dir.join("agent"))?;
    command.args(["join", &f.lab.server(), "--token", &token, "--no-service"]);
    command.args(["--node-name", "node1", "--node-ip", &host.ip.to_string()]);
    command.args(["--cgroup-parent", &f.lab.addresses().cgroup("node2")]);
    let output = capture(&mut command)?;
    ensure!(output.code != 0, "two devices are node1");
    for word in ["node1", "taken", "--node-name", "kubectl delete node node1"] {
        ensure!(output.stderr.contains(word), "no {word:?} in {:?}", output.stderr);
    }
    f.lab.node_ready("node1")?;
    Ok(Verdict::Passed)
}

/// A device without a clock battery that believes in 2001.
fn wrong_clock(f: &Fixture) -> Result<Verdict> {
    let host = fresh(f)?;
    let token = f.lab.token(&[])?;
    if !tests::shell::has_program("faketime") {
        return Ok(Verdict::Skipped("faketime is not installed".to_owned()));
    }
    let mut command = host.command("faketime")?;
    command.arg("2001-01-01 00:00:00").arg(f.lab.bin_dir.join("agent"));
    command.args(["join", &f.lab.server(), "--token", &token, "--no-service"]);
    command.args(["--node-name", "node2", "--node-ip", &host.ip.to_string()]);
    command.args(["--cgroup-parent", &f.lab.addresses().cgroup("node2")]);
    let output = capture(&mut command)?;
    ensure!(output.code != 0, "joined in 2001");
    for word in ["clock", "2001"] {
        ensure!(output.stderr.contains(word), "no {word:?} in {:?}", output.stderr);
    }
    Ok(Verdict::Passed)
}

fn no_memory_controller(f: &Fixture) -> Result<Verdict> {
    let host = fresh(f)?;
    let token = f.lab.token(&[])?;
    let join = format!(
        "mount -t tmpfs none /sys/fs/cgroup && sed 's/^memory.*/memory 0 1 0/' /proc/cgroups > /run/cgroups && \
         mount --bind /run/cgroups /proc/cgroups && exec {} join {} --token {token} --no-service --node-name node2",
        f.lab.bin_dir.join("agent").display(),
        f.lab.server()
    );
    let mut command = host.command("unshare")?;
    command.args(["--mount", "sh", "-c", &join]);
    let output = capture(&mut command)?;
    ensure!(output.code != 0, "joined without the memory controller");
    for word in ["memory", "cgroup_enable=memory", "cmdline.txt"] {
        ensure!(output.stderr.contains(word), "no {word:?} in {:?}", output.stderr);
    }
    Ok(Verdict::Passed)
}

fn no_master(f: &Fixture) -> Result<Verdict> {
    let token = f.lab.token(&[])?;
    let nobody = format!("https://{}:6443", f.lab.addresses().ip(200));
    refused(f, &nobody, &token, &["cannot reach", "198.18."])
}

fn static_pod(f: &Fixture) -> Result<Verdict> {
    let host = f.lab.host("node1")?;
    let dir = host.dir.join("etc/flotilla/manifests");
    std::fs::create_dir_all(&dir)?;
    let manifest = "{apiVersion: v1, kind: Pod, metadata: {name: fixed}, \
        spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: testserver, imagePullPolicy: IfNotPresent}]}}";
    host.run(&["sh", "-c", &format!("echo '{manifest}' > /etc/flotilla/manifests/fixed.yaml")])?;
    wait_for("the mirror pod", CONVERGE, || {
        let pod = f.get(&["pod", "fixed-node1"])?;
        ensure!(pod["status"]["phase"] == "Running", "{}", pod["status"]);
        Ok(())
    })?;
    host.run(&["rm", "/etc/flotilla/manifests/fixed.yaml"])?;
    wait_for("the mirror pod to go", CONVERGE, || {
        f.kubectl_fails(&["get", "pod", "fixed-node1"]).map(drop)
    })?;
    Ok(Verdict::Passed)
}

fn told_dns(f: &Fixture) -> Result<Verdict> {
    let image = ["--image=busybox:1.35", "--restart=Never"];
    let script = "ip addr show dev eth0; cat /etc/resolv.conf; nslookup kubernetes.default.svc.fleet.example";
    let command = ["--", "sh", "-c", script];
    f.kubectl(&[&["run", "asks", "--attach=false"][..], &image, &command].concat())?;
    wait_for("the answer", CONVERGE, || {
        let pod = f.get(&["pod", "asks"])?;
        ensure!(pod["status"]["phase"] == "Succeeded", "{}", pod["status"]);
        Ok(())
    })?;
    let said = f.kubectl(&["logs", "asks"])?;
    let dns = ["nameserver 10.77.0.10", "search default.svc.fleet.example", "10.77.0.1"];
    for wanted in dns.into_iter().chain(["inet 10.42."]) {
        ensure!(said.contains(wanted), "no {wanted:?} in {said:?}");
    }
    f.kubectl(&["delete", "pod", "asks", "--now"])?;
    Ok(Verdict::Passed)
}

fn told_ranges(f: &Fixture) -> Result<Verdict> {
    let host = f.lab.host("node1")?;
    let routes = host.run(&["ip", "route"])?;
    ensure!(routes.contains("10.77.0.0/16") && !routes.contains("10.96.0.0/12"), "{routes}");
    let rules = host.run(&["nft", "list", "table", "ip", "flotilla"])?;
    ensure!(rules.contains("10.42.0.0/16") && !rules.contains("10.244.0.0/16"), "{rules}");
    Ok(Verdict::Passed)
}
