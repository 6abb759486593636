//! What the end-to-end suites share: a lab that goes away with its owner, and the questions that
//! they ask it through the real kubectl.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::lab::{Lab, UpOptions};
use crate::scenario::{Scenario, Tally};
use crate::shell::{Output, has_program, wait_for};

/// How long a cluster may take to converge after a change.
pub const CONVERGE: Duration = Duration::from_secs(90);

/// A lab of a suite; taken down when it is dropped, unless `FLOTILLA_KEEP_LAB` is set.
#[derive(Debug)]
pub struct Fixture {
    /// The lab.
    pub lab: Lab,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if std::env::var_os("FLOTILLA_KEEP_LAB").is_some() {
            eprintln!("the lab is kept: {}", self.lab.dir.display());
        } else if let Err(error) = self.lab.down() {
            eprintln!("the lab could not be taken down: {error:?}");
        }
    }
}

/// Why a lab cannot run on this machine, if so.
#[must_use]
pub fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    ["ip", "nsenter", "unshare", "nft", "kubectl", "docker-registry", "busybox", "curl"]
        .into_iter()
        .find(|program| !has_program(program))
        .map(|program| format!("{program} is not installed"))
}

/// A suite's whole `main`: a lab of `nodes` nodes, its scenarios in order, the count that closes it.
#[must_use]
pub fn run_suite(suite: &str, nodes: u8, scenarios: &[Scenario<Fixture>]) -> ExitCode {
    run_suite_on(suite, Shape { nodes, masters: 1, etcds: 0, arguments: &[] }, scenarios)
}

/// What a lab is made of.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// How many nodes.
    pub nodes: u8,
    /// How many masters.
    pub masters: u8,
    /// How many etcd members.
    pub etcds: u8,
    /// Further arguments of the masters.
    pub arguments: &'static [&'static str],
}

/// The same on a lab of another shape.
#[must_use]
pub fn run_suite_on(suite: &str, shape: Shape, scenarios: &[Scenario<Fixture>]) -> ExitCode {
    let mut tally = Tally::default();
    let etcd = (shape.etcds > 0 && !has_program("etcd")).then(|| "etcd is not installed".into());
    if let Some(reason) = obstacle().or(etcd) {
        tally.skip_all(suite, &reason);
        return tally.close();
    }
    match Fixture::up(suite, shape) {
        Ok(fixture) => {
            tally.run(&fixture, scenarios);
            if tally.failed() {
                println!("{}", fixture.lab.log_tails());
            }
        }
        Err(error) => tally.fail("lab up", &error),
    }
    tally.close()
}

/// Folder of the binaries under test: `FLOTILLA_BIN_DIR`, or where this test was built to.
pub fn bin_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("FLOTILLA_BIN_DIR").filter(|dir| !dir.is_empty()) {
        return Ok(PathBuf::from(dir));
    }
    let own = std::env::current_exe()?;
    let dir = own.parent().and_then(|deps| deps.parent()).context("no build folder")?;
    Ok(dir.to_path_buf())
}

impl Fixture {
    /// Brings up a lab of a shape for the suite of that name.
    pub fn up(suite: &str, shape: Shape) -> Result<Fixture> {
        let dir = std::env::temp_dir().join(format!("flotilla-{suite}-{}", std::process::id()));
        let lab = Lab::up(&UpOptions {
            nodes: shape.nodes,
            masters: shape.masters,
            etcds: shape.etcds,
            dir,
            bin_dir: bin_dir()?,
            registries: None,
            master_args: ["--node-monitor-grace-period=25s"]
                .iter()
                .chain(shape.arguments)
                .map(|argument| (*argument).to_owned())
                .collect(),
        })?;
        Ok(Fixture { lab })
    }

    /// `kubectl ARGUMENTS`, which must succeed; its standard output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.lab.kubectl(arguments)
    }

    /// `kubectl ARGUMENTS`, which must fail; both outputs.
    pub fn kubectl_fails(&self, arguments: &[&str]) -> Result<String> {
        let output = self.lab.kubectl_output(arguments)?;
        ensure!(output.code != 0, "`kubectl {}` succeeded: {}", arguments.join(" "), output.stdout);
        Ok(output.stdout + &output.stderr)
    }

    /// `kubectl ARGUMENTS` with `input` on its standard input.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let mut command = self.lab.kubectl_command();
        command.args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot run kubectl")?;
        child.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        Ok(Output {
            code: output.status.code().unwrap_or(255),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// `kubectl apply -f -`, which must succeed.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.kubectl_with(&["apply", "-f", "-"], manifest)?.success().context("kubectl apply")
    }

    /// An object (or list) as JSON.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let mut words = vec!["get", "-o", "json"];
        words.extend(arguments);
        Ok(serde_json::from_str(&self.kubectl(&words)?)?)
    }

    /// Pods of a namespace that a label selector selects and that are not being deleted.
    pub fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<Value>> {
        let list = self.get(&["pods", "-n", namespace, "-l", selector])?;
        Ok(list["items"]
            .as_array()
            .context("no items")?
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .cloned()
            .collect())
    }

    /// Waits until exactly `count` pods of the selector are Ready.
    pub fn wait_ready(&self, namespace: &str, selector: &str, count: usize) -> Result<Vec<Value>> {
        wait_for(&format!("{count} Ready pods of {selector}"), CONVERGE, || {
            let pods = self.pods(namespace, selector)?;
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            if ready == count && pods.len() == count {
                return Ok(pods);
            }
            bail!("{ready} of {} pods are Ready: {}", pods.len(), self.describe(namespace)?)
        })
    }

    fn describe(&self, namespace: &str) -> Result<String> {
        let pods = self.kubectl(&["get", "pods", "-n", namespace, "-o", "wide"])?;
        let events = self.kubectl(&["get", "events", "-n", namespace])?;
        let lines: Vec<&str> = events.lines().collect();
        Ok(format!("\n{pods}\n{}", lines[lines.len().saturating_sub(12)..].join("\n")))
    }

    /// PIDs of the test servers of every node, as the machine sees them.
    pub fn servers(&self) -> Result<BTreeMap<String, Vec<u32>>> {
        let mut found = BTreeMap::new();
        for node in &self.lab.nodes {
            let below = self.lab.addresses().cgroup(node);
            let mut pids = Vec::new();
            for entry in std::fs::read_dir("/proc")?.flatten() {
                let name = entry.file_name();
                let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
                    continue;
                };
                let Ok(groups) = std::fs::read_to_string(format!("/proc/{pid}/cgroup")) else {
                    continue;
                };
                let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
                if groups.contains(&format!("{below}/")) && line.starts_with(b"/bin/testserver") {
                    pids.push(pid);
                }
            }
            pids.sort_unstable();
            found.insert(node.clone(), pids);
        }
        Ok(found)
    }

    /// Makes a namespace of that name.
    pub fn namespace(&self, name: &str) -> Result<()> {
        self.kubectl(&["create", "namespace", name]).map(drop)
    }

    /// Deletes a namespace and waits until it is gone.
    pub fn delete_namespace(&self, name: &str) -> Result<()> {
        self.kubectl(&["delete", "namespace", name, "--timeout=90s"]).map(drop)
    }

    /// Runs a command in a pod's first container.
    pub fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<String> {
        let mut words = vec!["exec", "-n", namespace, pod, "--"];
        words.extend(command);
        self.kubectl(&words)
    }
}

/// Whether the pod's Ready condition is True.
#[must_use]
pub fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready") == "True"
}

/// Status of a condition, empty when there is none.
#[must_use]
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    object["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == kind)
        .and_then(|condition| condition["status"].as_str())
        .unwrap_or_default()
}

/// The text at a JSON pointer, empty when there is none.
#[must_use]
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A Deployment of testservers with a readiness probe, and a Service `name` in front of it.
#[must_use]
pub fn web(name: &str, replicas: u32, extra: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: web
        image: testserver
        imagePullPolicy: IfNotPresent
        env: [{{name: REVISION, value: "{extra}"}}]
        ports: [{{name: http, containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /healthz, port: http}}, periodSeconds: 1}}
        lifecycle: {{preStop: {{sleep: {{seconds: 2}}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  type: NodePort
  selector: {{app: {name}}}
  ports:
  - {{name: http, port: 80, targetPort: http}}
  - {{name: udp, port: 81, protocol: UDP, targetPort: 8082}}
"#
    )
}
