//! A cluster with nothing to do: events end, nobody writes, and what lives in memory only costs no revision after a crash.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::Value;
use tests::fixture::{Fixture, Shape, run_suite_on, text};
use tests::idle::{self, Look};
use tests::lab::MASTER;
use tests::scenario::{Scenario, Verdict};

const NS: &str = "idle";
const PODS: usize = 6;
/// Longer than any heartbeat, look and bookmark of ours has as its period.
const WINDOW: Duration = Duration::from_secs(65);

const SCENARIOS: &[Scenario<Fixture>] = &[
    ("what is written is seen", control),
    ("events end, and then nobody writes anything", nothing),
    ("revisions do not go back after a crash, and a watch resumes", resumes),
];

fn main() -> ExitCode {
    let shape = Shape { nodes: 3, masters: 1, etcds: 0, arguments: &["--event-ttl=20s"] };
    run_suite_on("idle", shape, SCENARIOS)
}

fn control(f: &Fixture) -> Result<Verdict> {
    f.namespace(NS)?;
    let replicas = format!("--replicas={PODS}");
    let words = ["create", "deployment", "idle", "-n", NS, "--image=busybox:1.35", &replicas];
    let before = Look::at(&f.lab)?;
    f.kubectl(&[&words[..], &["--", "sleep", "1000000"]].concat())?;
    f.wait_ready(NS, "app=idle", PODS)?;
    let change = Look::at(&f.lab)?.since(&before)?;
    for role in ["master", "agent"] {
        ensure!(change.roles[role].written > 0, "{role} wrote nothing: {change:?}");
    }
    ensure!(change.files.iter().any(|path| path.starts_with(f.lab.dir.join("master/store"))));
    ensure!(change.is_nothing().is_err(), "{change:?}");
    let events = f.get(&["events", "-n", NS])?;
    ensure!(events["items"].as_array().is_some_and(|items| !items.is_empty()), "no events");
    Ok(Verdict::Passed)
}

fn nothing(f: &Fixture) -> Result<Verdict> {
    let change = idle::watch(&f.lab, WINDOW)?;
    change.is_nothing()?;
    f.wait_ready(NS, "app=idle", PODS)?;
    Ok(Verdict::Passed)
}

/// The revision of a list, which the nodes' heartbeats raise.
fn revision(f: &Fixture) -> Result<i64> {
    let list: Value =
        serde_json::from_str(&f.kubectl(&["get", "--raw", "/api/v1/nodes?limit=1"])?)?;
    Ok(text(&list, "/metadata/resourceVersion").parse()?)
}

fn resumes(f: &Fixture) -> Result<Verdict> {
    let from = revision(f)?;
    f.kubectl(&["create", "cm", "before", "-n", NS])?;
    // A heartbeat is a revision that no disk knows.
    let last = tests::shell::wait_for("heartbeats", Duration::from_secs(30), || {
        let now = revision(f)?;
        if now > from + 3 { Ok(now) } else { bail!("{from} then, {now} now") }
    })?;
    f.lab.kill_and_wait(MASTER, libc::SIGKILL)?;
    f.lab.start(MASTER)?;
    let first = revision(f)?;
    ensure!(first >= last, "{last} before the crash, {first} after it");
    f.kubectl(&["create", "cm", "after", "-n", NS])?;
    let path = format!(
        "/api/v1/namespaces/{NS}/configmaps?watch=1&resourceVersion={from}&timeoutSeconds=3"
    );
    let lines = f.kubectl(&["get", "--raw", &path])?;
    let mut seen = Vec::new();
    for line in lines.lines() {
        let event: Value = serde_json::from_str(line)?;
        let name = text(&event, "/object/metadata/name").to_owned();
        ensure!(text(&event, "/type") == "ADDED", "{line}");
        seen.push(name);
    }
    ensure!(seen == ["before", "after"], "the watch gave {seen:?}");
    Ok(Verdict::Passed)
}
