//! A cluster of three nodes does its main job: a Deployment behind its Service, from everywhere.
#![allow(clippy::print_stdout, reason = "a test reports")]

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use tests::fixture::{CONVERGE, Fixture, run_suite, text, web};
use tests::load::Requests;
use tests::scenario::{Scenario, Verdict};
use tests::shell::wait_for;

const NS: &str = "spine";
const NODES: [&str; 3] = ["node1", "node2", "node3"];

const SCENARIOS: &[Scenario<Fixture>] = &[
    ("a deployment of six and its service become ready", becomes_ready),
    ("replicas are spread over the nodes", spread),
    ("every pod reaches every pod by its address", pod_to_pod),
    ("200 requests to the cluster address reach all six", balanced),
    ("the service answers on the node itself, without a default route too", from_the_node),
    ("the node port answers on each node", node_port),
    ("UDP through the service", udp),
    ("names resolve in a pod", dns),
    ("hairpin: a pod reaches itself through its service", hairpin),
    ("scale up and down", scale),
    ("a rolling update fails no request under load", rolling_update),
    ("rollback", rollback),
    ("environment, volumes, init containers and security context", pod_features),
    ("restarts back off, exit codes and reasons are told", restarts),
    ("limits are cgroup limits, too much memory is OOMKilled", limits),
    ("bad manifests get the errors that Kubernetes gives", bad_manifests),
    ("bad pods get the states and events that Kubernetes gives", bad_pods),
    ("delete takes everything away", delete),
];

fn main() -> ExitCode {
    run_suite("cluster", 3, SCENARIOS)
}

fn passed() -> Result<Verdict> {
    Ok(Verdict::Passed)
}

fn cluster_ip(f: &Fixture) -> Result<String> {
    f.kubectl(&["get", "svc", "web", "-n", NS, "-o", "jsonpath={.spec.clusterIP}"])
}

fn apply_in(f: &Fixture, manifest: &str) -> Result<()> {
    f.kubectl_with(&["apply", "-n", NS, "-f", "-"], manifest)?.success().map(drop)
}

fn becomes_ready(f: &Fixture) -> Result<Verdict> {
    f.namespace(NS)?;
    apply_in(f, &web("web", 6, "one"))?;
    f.kubectl(&["rollout", "status", "-n", NS, "deployment/web", "--timeout=90s"])?;
    f.wait_ready(NS, "app=web", 6)?;
    wait_for("six endpoints", CONVERGE, || {
        let list = f.get(&["endpointslices", "-n", NS, "-l", "kubernetes.io/service-name=web"])?;
        let count: usize = list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|slice| slice["endpoints"].as_array().map_or(0, Vec::len))
            .sum();
        ensure!(count == 6, "{count} endpoints");
        Ok(())
    })?;
    passed()
}

fn spread(f: &Fixture) -> Result<Verdict> {
    let pods = f.pods(NS, "app=web")?;
    for node in NODES {
        let here = pods.iter().filter(|pod| text(pod, "/spec/nodeName") == node).count();
        ensure!(here == 2, "{here} of 6 replicas on {node}");
    }
    passed()
}

fn pod_to_pod(f: &Fixture) -> Result<Verdict> {
    let pods = f.wait_ready(NS, "app=web", 6)?;
    for from in &pods {
        for to in &pods {
            let url = format!("http://{}:8080/hostname", text(to, "/status/podIP"));
            let name = text(from, "/metadata/name");
            let answer = f.exec(NS, name, &["testserver", "get", &url])?;
            ensure!(answer.trim() == text(to, "/metadata/name"), "{name} to {url}: {answer:?}");
        }
    }
    passed()
}

fn balanced(f: &Fixture) -> Result<Verdict> {
    let ip = cluster_ip(f)?;
    let pods = f.wait_ready(NS, "app=web", 6)?;
    let from = text(&pods[0], "/metadata/name");
    let script =
        format!("for i in $(busybox seq 200); do testserver get http://{ip}/ || exit 1; done");
    let answers = f.exec(NS, from, &["sh", "-c", &script])?;
    let names: Vec<&str> = answers.lines().collect();
    ensure!(names.len() == 200, "{} answers of 200", names.len());
    let distinct: BTreeSet<&str> = names.into_iter().collect();
    ensure!(distinct.len() == 6, "only {distinct:?} answered");
    passed()
}

fn from_the_node(f: &Fixture) -> Result<Verdict> {
    let url = format!("http://{}/hostname", cluster_ip(f)?);
    let host = f.lab.host("node1")?;
    let pods = f.wait_ready(NS, "app=web", 6)?;
    let known = |answer: &str| pods.iter().any(|pod| text(pod, "/metadata/name") == answer.trim());
    let answer = host.run(&["curl", "-sS", "--max-time", "5", &url])?;
    ensure!(known(&answer), "{answer:?}");
    let gateway = f.lab.addresses().ip(1).to_string();
    host.run(&["ip", "route", "del", "default"])?;
    let answer = host.run(&["curl", "-sS", "--max-time", "5", &url]);
    host.run(&["ip", "route", "add", "default", "via", &gateway])?;
    ensure!(known(&answer?), "wrong answer without a default route");
    passed()
}

fn node_port(f: &Fixture) -> Result<Verdict> {
    let path = "jsonpath={.spec.ports[0].nodePort}";
    let port = f.kubectl(&["get", "svc", "web", "-n", NS, "-o", path])?;
    for node in NODES {
        let url = format!("http://{}:{port}/hostname", f.lab.host(node)?.ip);
        let answer = tests::shell::run(&["curl", "-sS", "--max-time", "5", &url])?;
        ensure!(answer.starts_with("web-"), "{url}: {answer:?}");
    }
    passed()
}

fn udp(f: &Fixture) -> Result<Verdict> {
    let address = format!("{}:81", cluster_ip(f)?);
    let pods = f.wait_ready(NS, "app=web", 6)?;
    let from = text(&pods[0], "/metadata/name");
    let answer = f.exec(NS, from, &["testserver", "udp", &address, "hello"])?;
    ensure!(answer.starts_with("web-") && answer.trim().ends_with("hello"), "{answer:?}");
    passed()
}

fn dns(f: &Fixture) -> Result<Verdict> {
    let ip = cluster_ip(f)?;
    let pods = f.wait_ready(NS, "app=web", 6)?;
    let from = text(&pods[0], "/metadata/name");
    for name in ["web", "web.spine", "web.spine.svc.cluster.local"] {
        let answer =
            f.exec(NS, from, &["testserver", "get", &format!("http://{name}/hostname")])?;
        ensure!(answer.starts_with("web-"), "{name}: {answer:?}");
    }
    let answer = f.exec(NS, from, &["nslookup", "web.spine.svc.cluster.local"])?;
    ensure!(answer.contains(&ip), "nslookup: {answer}");
    let dashed = text(&pods[0], "/status/podIP").replace('.', "-");
    let url = format!("http://{dashed}.spine.pod.cluster.local:8080/hostname");
    ensure!(f.exec(NS, from, &["testserver", "get", &url])?.trim() == from, "pod name");
    passed()
}

fn hairpin(f: &Fixture) -> Result<Verdict> {
    apply_in(f, &web("alone", 1, "one"))?;
    let pods = f.wait_ready(NS, "app=alone", 1)?;
    let name = text(&pods[0], "/metadata/name");
    wait_for("the hairpin", CONVERGE, || {
        let answer = f.exec(NS, name, &["testserver", "get", "http://alone/hostname"])?;
        ensure!(answer.trim() == name, "{answer:?}");
        Ok(())
    })?;
    f.kubectl(&["delete", "-n", NS, "deployment,service", "alone"])?;
    passed()
}

fn scale(f: &Fixture) -> Result<Verdict> {
    f.kubectl(&["scale", "-n", NS, "deployment/web", "--replicas=9"])?;
    f.wait_ready(NS, "app=web", 9)?;
    f.kubectl(&["scale", "-n", NS, "deployment/web", "--replicas=6"])?;
    f.wait_ready(NS, "app=web", 6)?;
    passed()
}

fn rolling_update(f: &Fixture) -> Result<Verdict> {
    let ip = cluster_ip(f)?;
    let load = Requests::start(f, (NS, "web"), "node2")?;
    let outcome = apply_in(f, &web("web", 6, "two")).and_then(|()| {
        f.kubectl(&["rollout", "status", "-n", NS, "deployment/web", "--timeout=120s"])
    });
    let settled = outcome.and_then(|_| {
        wait_for("the old pods to go", CONVERGE, || {
            let all = f.get(&["pods", "-n", NS, "-l", "app=web"])?;
            let count = all["items"].as_array().map_or(0, Vec::len);
            ensure!(count == 6, "{count} pods");
            Ok(())
        })?;
        f.wait_ready(NS, "app=web", 6)
    });
    let requests = load.finish()?;
    let pods = settled?;
    requests.judge(100)?;
    let from = text(&pods[0], "/metadata/name");
    let answer = f.exec(NS, from, &["testserver", "get", &format!("http://{ip}/env?REVISION")])?;
    ensure!(answer.trim() == "two", "{answer:?}");
    println!("         {} requests during the update, none failed", requests.good());
    passed()
}

fn rollback(f: &Fixture) -> Result<Verdict> {
    let history = f.kubectl(&["rollout", "history", "-n", NS, "deployment/web"])?;
    ensure!(history.contains("1  ") && history.contains("2  "), "{history}");
    f.kubectl(&["rollout", "undo", "-n", NS, "deployment/web"])?;
    f.kubectl(&["rollout", "status", "-n", NS, "deployment/web", "--timeout=90s"])?;
    let pods = f.wait_ready(NS, "app=web", 6)?;
    for pod in &pods {
        let value = text(pod, "/spec/containers/0/env/0/value");
        ensure!(value == "one", "{value:?} after the rollback");
    }
    passed()
}

fn pod_features(f: &Fixture) -> Result<Verdict> {
    apply_in(f, include_str!("manifests/features.yaml"))?;
    f.wait_ready(NS, "app=features", 1)?;
    let script = include_str!("manifests/features.sh");
    let answer = f.exec(NS, "features", &["sh", "-c", script])?;
    ensure!(answer.trim() == "all good", "{answer}");
    f.kubectl(&["delete", "pod", "-n", NS, "features"])?;
    passed()
}

fn restarts(f: &Fixture) -> Result<Verdict> {
    apply_in(f, include_str!("manifests/crash.yaml"))?;
    wait_for("CrashLoopBackOff", CONVERGE, || {
        let pod = f.get(&["pod", "crash", "-n", NS])?;
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(text(status, "/state/waiting/reason") == "CrashLoopBackOff", "{status}");
        let last = &status["lastState"]["terminated"];
        ensure!(last["exitCode"] == 3 && last["reason"] == "Error", "{last}");
        ensure!(status["restartCount"].as_u64() >= Some(1), "{status}");
        Ok(())
    })?;
    let listed = f.kubectl(&["get", "pod", "crash", "-n", NS])?;
    ensure!(listed.contains("CrashLoopBackOff"), "{listed}");
    wait_for("Succeeded", CONVERGE, || {
        let pod = f.get(&["pod", "done", "-n", NS])?;
        ensure!(text(&pod, "/status/phase") == "Succeeded", "{}", pod["status"]);
        let reason = text(&pod, "/status/containerStatuses/0/state/terminated/reason");
        ensure!(reason == "Completed", "{reason:?}");
        Ok(())
    })?;
    f.kubectl(&["delete", "pod", "-n", NS, "crash", "done", "--grace-period=1"])?;
    passed()
}

fn limits(f: &Fixture) -> Result<Verdict> {
    apply_in(f, include_str!("manifests/oom.yaml"))?;
    wait_for("OOMKilled", CONVERGE, || {
        let pod = f.get(&["pod", "oom", "-n", NS])?;
        let state = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        ensure!(state["reason"] == "OOMKilled" && state["exitCode"] == 137, "{}", pod["status"]);
        Ok(())
    })?;
    f.kubectl(&["delete", "pod", "-n", NS, "oom"])?;
    passed()
}

fn bad_manifests(f: &Fixture) -> Result<Verdict> {
    let cases: &[(&str, &str)] = &[
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: [{name: c, image: i, imagee: j}]}}",
            "unknown field \"spec.containers[0].imagee\"",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {hostNetwork: 'yes please', containers: [{name: c, image: i}]}}",
            "cannot unmarshal string into Go struct field PodSpec.spec.hostNetwork of type bool",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: 'X_y'}, spec: {containers: [{name: c, image: i}]}}",
            "metadata.name: Invalid value: \"X_y\": a lowercase RFC 1123 subdomain",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: []}}",
            "spec.containers: Required value",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /v}]}]}}",
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {restartPolicy: Sometimes, containers: [{name: c, image: i}]}}",
            "spec.restartPolicy: Unsupported value: \"Sometimes\"",
        ),
        (
            "{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: c, image: i}]}}}}",
            "`selector` does not match template `labels`",
        ),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: x}, spec: {ports: [{port: 70000}]}}",
            "must be between 1 and 65535, inclusive",
        ),
        (
            "{apiVersion: v1, kind: Nonsense, metadata: {name: x}}",
            "no matches for kind \"Nonsense\" in version \"v1\"",
        ),
    ];
    for (manifest, wanted) in cases {
        // What begins with a brace is JSON to kubectl; these are YAML.
        let document = format!("---\n{manifest}");
        let output = f.kubectl_with(&["apply", "-n", NS, "-f", "-"], &document)?;
        ensure!(output.code != 0, "accepted: {manifest}");
        let told = output.stdout + &output.stderr;
        ensure!(told.contains(wanted), "{manifest}\n  told:   {told}\n  wanted: {wanted}");
    }
    passed()
}

fn bad_pods(f: &Fixture) -> Result<Verdict> {
    apply_in(f, include_str!("manifests/bad-pods.yaml"))?;
    let cases: &[(&str, &str, &str)] = &[
        ("no-image", "ImagePullBackOff", "Failed"),
        ("bad-reference", "InvalidImageName", "InspectFailed"),
        ("no-command", "CrashLoopBackOff", "Failed"),
        ("no-config-key", "CreateContainerConfigError", "Failed"),
        ("never-pull", "ErrImageNeverPull", "ErrImageNeverPull"),
        ("root-refused", "CreateContainerConfigError", "Failed"),
    ];
    for (name, reason, event) in cases {
        wait_for(&format!("{name}: {reason}"), CONVERGE, || {
            let pod = f.get(&["pod", name, "-n", NS])?;
            let told = text(&pod, "/status/containerStatuses/0/state/waiting/reason");
            ensure!(told == *reason, "{}", pod["status"]);
            Ok(())
        })?;
        wait_for(&format!("{name}: {event}"), CONVERGE, || has_event(f, name, event))?;
    }
    wait_for("no-volume: FailedMount", CONVERGE, || has_event(f, "no-volume", "FailedMount"))?;
    wait_for("no-node: FailedScheduling", CONVERGE, || {
        has_event(f, "no-node", "FailedScheduling")
    })?;
    f.kubectl(&["delete", "pod", "-n", NS, "-l", "app=bad", "--timeout=60s"])?;
    passed()
}

fn has_event(f: &Fixture, pod: &str, reason: &str) -> Result<()> {
    let selector = format!("involvedObject.name={pod},reason={reason}");
    let list = f.get(&["events", "-n", NS, "--field-selector", &selector])?;
    if list["items"].as_array().is_some_and(|items| !items.is_empty()) {
        return Ok(());
    }
    bail!("no event {reason} of {pod}: {}", f.kubectl(&["get", "events", "-n", NS])?)
}

fn delete(f: &Fixture) -> Result<Verdict> {
    f.delete_namespace(NS)?;
    let left = f.kubectl(&["get", "all", "-n", NS])?;
    ensure!(left.trim().is_empty(), "{left}");
    for node in NODES {
        wait_for("containers to be gone", CONVERGE, || {
            let running = f.lab.host(node)?.pids(&["testserver"]).context("pids")?;
            ensure!(running.is_empty(), "{running:?} on {node}");
            Ok(())
        })?;
    }
    passed()
}
