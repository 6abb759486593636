//! Every verb of the real kubectl that the README promises, against a lab of two nodes.
#![allow(clippy::print_stdout, reason = "a test reports")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::fixture::{CONVERGE, Fixture, run_suite, text, web};
use tests::scenario::{Scenario, Verdict};
use tests::shell::wait_for;

const SCENARIOS: &[Scenario<Fixture>] = &[
    ("version, cluster-info, config", about),
    ("api-resources, api-versions, explain", discovery),
    ("create, get in every output, describe", create_get_describe),
    ("get -w sees every change", get_watch),
    ("apply: create, change, unchanged, prune a field", apply),
    ("edit", edit),
    ("patch: strategic, merge, JSON", patch),
    ("label, annotate", label_annotate),
    ("replace and its conflict", replace),
    ("set image, env, resources", set),
    ("scale, rollout status, history, pause, resume, restart, undo", rollout),
    ("expose", expose),
    ("run, wait, logs -f -p --tail, delete", run_logs),
    ("exec: exit codes, stdin, tty", exec),
    ("cp in both directions", cp),
    ("port-forward", port_forward),
    ("events", events),
    ("auth can-i, whoami", auth),
    ("service account tokens and RBAC", service_accounts),
    ("cordon, uncordon, taint, drain", nodes),
    ("delete by selector, cascade, finalizers", delete),
];

fn main() -> ExitCode {
    run_suite("kubectl", 2, SCENARIOS)
}

fn passed() -> Result<Verdict> {
    Ok(Verdict::Passed)
}

/// `kubectl ARGUMENTS` prints something that contains each of `wanted`.
fn prints(f: &Fixture, arguments: &[&str], wanted: &[&str]) -> Result<()> {
    let output = f.kubectl(arguments)?;
    for word in wanted {
        ensure!(
            output.contains(word),
            "`kubectl {}`: no {word:?} in\n{output}",
            arguments.join(" ")
        );
    }
    Ok(())
}

fn about(f: &Fixture) -> Result<Verdict> {
    prints(f, &["version"], &["Server Version: v1.36"])?;
    prints(f, &["cluster-info"], &["Kubernetes control plane", "is running at"])?;
    prints(f, &["config", "view", "--minify"], &["server: https://", "DATA+OMITTED"])?;
    prints(f, &["config", "current-context"], &["flotilla"])?;
    prints(f, &["get", "--raw", "/readyz?verbose"], &["readyz check passed"])?;
    passed()
}

fn discovery(f: &Fixture) -> Result<Verdict> {
    prints(f, &["api-resources"], &["deployments", "deploy", "apps/v1", "poddisruptionbudgets"])?;
    prints(f, &["api-resources", "--namespaced=false"], &["nodes", "clusterroles"])?;
    prints(f, &["api-versions"], &["v1", "apps/v1", "rbac.authorization.k8s.io/v1"])?;
    prints(
        f,
        &["explain", "pod.spec.containers.image"],
        &["FIELD: image", "Container image name"],
    )?;
    let old = ["explain", "pod.spec.containers.image", "--output=plaintext-openapiv2"];
    prints(f, &old, &["FIELD:    image", "Container image name"])?;
    prints(f, &["explain", "deployment.spec.strategy"], &["DESCRIPTION", "rollingUpdate"])?;
    passed()
}

fn create_get_describe(f: &Fixture) -> Result<Verdict> {
    f.kubectl(&["create", "namespace", "verbs"])?;
    f.kubectl(&["create", "configmap", "m", "-n", "verbs", "--from-literal=a=b"])?;
    f.kubectl(&["create", "secret", "generic", "s", "-n", "verbs", "--from-literal=p=q"])?;
    f.kubectl(&["create", "deployment", "d", "-n", "verbs", "--image=testserver", "--replicas=2"])?;
    f.kubectl(&["create", "serviceaccount", "sa", "-n", "verbs"])?;
    f.kubectl(&["create", "role", "r", "-n", "verbs", "--verb=get", "--resource=pods"])?;
    f.kubectl(&["create", "job", "j", "-n", "verbs", "--image=busybox:1.35", "--", "true"])?;
    f.kubectl_fails(&["create", "configmap", "m", "-n", "verbs"])?;
    f.wait_ready("verbs", "app=d", 2)?;
    f.kubectl(&["rollout", "status", "deployment/d", "-n", "verbs", "--timeout=60s"])?;
    prints(f, &["get", "deployments", "-n", "verbs"], &["NAME", "READY", "UP-TO-DATE", "2/2"])?;
    prints(
        f,
        &["get", "pods", "-n", "verbs", "-o", "wide"],
        &["NOMINATED NODE", "Running", "node"],
    )?;
    prints(f, &["get", "pods", "-A", "--show-labels"], &["LABELS", "pod-template-hash="])?;
    prints(f, &["get", "nodes", "-o", "wide"], &["INTERNAL-IP", "Ready", "flotilla://"])?;
    prints(f, &["get", "cm", "m", "-n", "verbs", "-o", "yaml"], &["a: b", "resourceVersion:"])?;
    prints(f, &["get", "cm", "m", "-n", "verbs", "-o", "jsonpath={.data.a}"], &["b"])?;
    prints(f, &["get", "cm", "m", "-n", "verbs", "-o", "name"], &["configmap/m"])?;
    let columns = "custom-columns=N:.metadata.name,C:.spec.replicas";
    prints(f, &["get", "deploy", "d", "-n", "verbs", "-o", columns], &["N", "C", "d", "2"])?;
    prints(f, &["get", "deploy,cm", "-n", "verbs"], &["deployment.apps/d", "configmap/m"])?;
    prints(f, &["get", "pods", "-n", "verbs", "--sort-by=.metadata.name"], &["d-"])?;
    prints(f, &["get", "all", "-n", "verbs"], &["replicaset.apps/d-", "pod/d-"])?;
    prints(
        f,
        &["describe", "deployment", "d", "-n", "verbs"],
        &["ScalingReplicaSet", "RollingUpdate"],
    )?;
    prints(
        f,
        &["describe", "pods", "-n", "verbs", "-l", "app=d"],
        &["Scheduled", "Container started"],
    )?;
    prints(f, &["describe", "node", "node1"], &["Allocated resources", "PodCIDR", "KubeletReady"])?;
    prints(f, &["describe", "svc", "kubernetes"], &["10.96.0.1", "Endpoints"])?;
    let missing = f.kubectl_fails(&["get", "pod", "nosuch", "-n", "verbs"])?;
    ensure!(
        missing.contains("Error from server (NotFound): pods \"nosuch\" not found"),
        "{missing}"
    );
    passed()
}

fn get_watch(f: &Fixture) -> Result<Verdict> {
    let mut command = f.lab.kubectl_command();
    command.args(["get", "cm", "-n", "verbs", "-w", "--output-watch-events"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    let mut next = |kind: &str, name: &str| -> Result<()> {
        for line in lines.by_ref() {
            let line = line?;
            let mut words = line.split_whitespace();
            if words.next() == Some(kind) && words.next() == Some(name) {
                return Ok(());
            }
        }
        anyhow::bail!("the watch ended before {kind} {name}")
    };
    let outcome = (|| {
        next("ADDED", "m")?; // from the list that the watch begins with
        f.kubectl(&["create", "cm", "w", "-n", "verbs"])?;
        next("ADDED", "w")?;
        f.kubectl(&["label", "cm", "w", "-n", "verbs", "x=y"])?;
        next("MODIFIED", "w")?;
        f.kubectl(&["delete", "cm", "w", "-n", "verbs"])?;
        next("DELETED", "w")
    })();
    child.kill()?;
    child.wait()?;
    outcome?;
    passed()
}

fn apply(f: &Fixture) -> Result<Verdict> {
    let manifest = |value: &str, extra: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: ConfigMap, metadata: {{name: ap, namespace: verbs}}, \
             data: {{k: '{value}'{extra}}}}}"
        )
    };
    ensure!(f.apply(&manifest("1", ", gone: soon"))?.contains("created"));
    ensure!(f.apply(&manifest("1", ", gone: soon"))?.contains("unchanged"));
    let dry = f.kubectl_with(&["apply", "--dry-run=server", "-f", "-"], &manifest("9", ""))?;
    ensure!(dry.success()?.contains("(server dry run)"));
    ensure!(f.apply(&manifest("2", ""))?.contains("configured"));
    let data = f.kubectl(&["get", "cm", "ap", "-n", "verbs", "-o", "jsonpath={.data}"])?;
    ensure!(data == r#"{"k":"2"}"#, "{data}");
    let diff = f.kubectl_with(&["diff", "-f", "-"], &manifest("3", ""))?;
    ensure!(diff.code == 1 && diff.stdout.contains("+  k: \"3\""), "{diff:?}");
    passed()
}

fn edit(f: &Fixture) -> Result<Verdict> {
    let editor = f.lab.dir.join("editor");
    fs::write(&editor, "#!/bin/sh\nsed -i 's/k: \"2\"/k: edited/' \"$1\"\n")?;
    tests::shell::run(&["chmod", "+x", &editor.to_string_lossy()])?;
    let mut command = f.lab.kubectl_command();
    command.env("KUBE_EDITOR", &editor).args(["edit", "cm", "ap", "-n", "verbs"]);
    tests::shell::capture(&mut command)?.success()?;
    prints(f, &["get", "cm", "ap", "-n", "verbs", "-o", "jsonpath={.data.k}"], &["edited"])?;
    passed()
}

fn patch(f: &Fixture) -> Result<Verdict> {
    let on = |kind: &str, body: &str| {
        f.kubectl(&["patch", "deployment", "d", "-n", "verbs", "--type", kind, "-p", body])
    };
    on(
        "strategic",
        r#"{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":1,"containers":[{"name":"testserver","env":[{"name":"A","value":"1"}]}]}}}}"#,
    )?;
    on("merge", r#"{"metadata":{"annotations":{"merged":"yes"}}}"#)?;
    on("json", r#"[{"op":"replace","path":"/spec/revisionHistoryLimit","value":3}]"#)?;
    let d = f.get(&["deployment", "d", "-n", "verbs"])?;
    let container = &d["spec"]["template"]["spec"]["containers"][0];
    ensure!(
        container["image"] == "testserver" && container["env"][0]["value"] == "1",
        "{container}"
    );
    ensure!(text(&d, "/metadata/annotations/merged") == "yes");
    ensure!(d["spec"]["revisionHistoryLimit"] == 3);
    let bad = f.kubectl_fails(&[
        "patch",
        "deployment",
        "d",
        "-n",
        "verbs",
        "--type=json",
        "-p",
        r#"[{"op":"replace","path":"/nosuch/x","value":3}]"#,
    ])?;
    ensure!(bad.contains("the server rejected our request") || bad.contains("nosuch"), "{bad}");
    passed()
}

fn label_annotate(f: &Fixture) -> Result<Verdict> {
    f.kubectl(&["label", "cm", "ap", "-n", "verbs", "stage=one"])?;
    let twice = f.kubectl_fails(&["label", "cm", "ap", "-n", "verbs", "stage=two"])?;
    ensure!(twice.contains("already has a value"), "{twice}");
    f.kubectl(&["label", "cm", "ap", "-n", "verbs", "stage=two", "--overwrite"])?;
    prints(f, &["get", "cm", "-n", "verbs", "-l", "stage in (two,three)"], &["ap"])?;
    f.kubectl(&["label", "cm", "ap", "-n", "verbs", "stage-"])?;
    let left = f.kubectl(&["get", "cm", "-n", "verbs", "-l", "stage", "-o", "name"])?;
    ensure!(left.is_empty(), "{left}");
    f.kubectl(&["annotate", "cm", "ap", "-n", "verbs", "note=x"])?;
    let path = "jsonpath={.metadata.annotations.note}";
    prints(f, &["get", "cm", "ap", "-n", "verbs", "-o", path], &["x"])?;
    passed()
}

fn replace(f: &Fixture) -> Result<Verdict> {
    let old = f.kubectl(&["get", "cm", "ap", "-n", "verbs", "-o", "json"])?;
    let mut new: serde_json::Value = serde_json::from_str(&old)?;
    new["data"]["k"] = "replaced".into();
    f.kubectl_with(&["replace", "-f", "-"], &new.to_string())?.success()?;
    let stale = f.kubectl_with(&["replace", "-f", "-"], &old)?;
    ensure!(stale.code != 0 && stale.stderr.contains("the object has been modified"), "{stale:?}");
    passed()
}

fn set(f: &Fixture) -> Result<Verdict> {
    f.kubectl(&["set", "env", "deployment/d", "-n", "verbs", "B=2"])?;
    f.kubectl(&["set", "resources", "deployment/d", "-n", "verbs", "--limits=memory=64Mi"])?;
    f.kubectl(&["set", "image", "deployment/d", "-n", "verbs", "testserver=testserver:latest"])?;
    let d = f.get(&["deployment", "d", "-n", "verbs"])?;
    let container = &d["spec"]["template"]["spec"]["containers"][0];
    ensure!(text(container, "/resources/limits/memory") == "64Mi", "{container}");
    ensure!(text(container, "/image") == "testserver:latest", "{container}");
    f.kubectl(&["rollout", "status", "deployment/d", "-n", "verbs", "--timeout=90s"])?;
    passed()
}

fn rollout(f: &Fixture) -> Result<Verdict> {
    let on = |arguments: &[&str]| -> Result<String> {
        let mut words = vec!["rollout"];
        words.extend(arguments);
        words.extend(["deployment/d", "-n", "verbs"]);
        f.kubectl(&words)
    };
    f.kubectl(&["scale", "deployment/d", "-n", "verbs", "--replicas=3"])?;
    on(&["status", "--timeout=90s"])?;
    ensure!(on(&["history"])?.contains("REVISION"));
    on(&["pause"])?;
    f.kubectl(&["set", "env", "deployment/d", "-n", "verbs", "PAUSED=yes"])?;
    let pods = f.wait_ready("verbs", "app=d", 3)?;
    ensure!(!pods[0].to_string().contains("PAUSED"), "rolled out while paused");
    on(&["resume"])?;
    on(&["status", "--timeout=90s"])?;
    let pods = f.wait_ready("verbs", "app=d", 3)?;
    ensure!(pods[0].to_string().contains("PAUSED"), "not rolled out after resume");
    on(&["restart"])?;
    on(&["status", "--timeout=90s"])?;
    on(&["undo"])?;
    on(&["status", "--timeout=90s"])?;
    passed()
}

fn expose(f: &Fixture) -> Result<Verdict> {
    f.kubectl(&["expose", "deployment", "d", "-n", "verbs", "--port=80", "--target-port=8080"])?;
    let ip = f.kubectl(&["get", "svc", "d", "-n", "verbs", "-o", "jsonpath={.spec.clusterIP}"])?;
    let host = f.lab.host("node2")?;
    wait_for("the exposed service", CONVERGE, || {
        host.run(&["curl", "-sS", "--fail", "--max-time", "2", &format!("http://{ip}/hostname")])
    })?;
    passed()
}

fn run_logs(f: &Fixture) -> Result<Verdict> {
    let script = "for i in $(seq 1 50); do echo line $i; done; sleep 1000";
    f.kubectl(&["run", "talk", "-n", "verbs", "--image=busybox:1.35", "--", "sh", "-c", script])?;
    f.kubectl(&["wait", "pod/talk", "-n", "verbs", "--for=condition=Ready", "--timeout=60s"])?;
    wait_for("fifty lines", CONVERGE, || {
        let lines = f.kubectl(&["logs", "talk", "-n", "verbs"])?;
        ensure!(lines.lines().count() == 50, "{} lines", lines.lines().count());
        Ok(())
    })?;
    let tail = f.kubectl(&["logs", "talk", "-n", "verbs", "--tail=2"])?;
    ensure!(tail == "line 49\nline 50\n", "{tail:?}");
    let stamped = f.kubectl(&["logs", "talk", "-n", "verbs", "--tail=1", "--timestamps"])?;
    ensure!(stamped.starts_with("20") && stamped.ends_with("Z line 50\n"), "{stamped:?}");
    let recent = f.kubectl(&["logs", "talk", "-n", "verbs", "--since=1h"])?;
    ensure!(recent.lines().count() == 50, "{recent}");
    ensure!(
        f.kubectl_fails(&["logs", "talk", "-n", "verbs", "-p"])?.contains("previous terminated")
    );
    let script = "echo run; sleep 2; exit 1";
    f.kubectl(&["run", "again", "-n", "verbs", "--image=busybox:1.35", "--", "sh", "-c", script])?;
    let followed = f.kubectl(&[
        "run",
        "f",
        "-n",
        "verbs",
        "--image=busybox:1.35",
        "--restart=Never",
        "--attach",
        "--rm",
        "--pod-running-timeout=60s",
        "--",
        "sh",
        "-c",
        "sleep 2; echo attached",
    ])?;
    ensure!(followed.contains("attached"), "{followed:?}");
    wait_for("a previous log", CONVERGE, || {
        let previous = f.kubectl(&["logs", "again", "-n", "verbs", "-p"])?;
        ensure!(previous == "run\n", "{previous:?}");
        Ok(())
    })?;
    follow(f)?;
    f.kubectl(&["delete", "pod", "talk", "again", "-n", "verbs", "--grace-period=1"])?;
    passed()
}

/// `logs -f` ends by itself when the container does, and has everything.
fn follow(f: &Fixture) -> Result<()> {
    let script = "for i in 1 2 3; do echo $i; sleep 3; done";
    f.kubectl(&[
        "run",
        "short",
        "-n",
        "verbs",
        "--image=busybox:1.35",
        "--restart=Never",
        "--",
        "sh",
        "-c",
        script,
    ])?;
    let ready = "--for=jsonpath={.status.phase}=Running";
    f.kubectl(&["wait", "pod/short", "-n", "verbs", ready, "--timeout=60s"])?;
    let all = f.kubectl(&["logs", "-f", "short", "-n", "verbs"])?;
    ensure!(all == "1\n2\n3\n", "{all:?}");
    f.kubectl(&["delete", "pod", "short", "-n", "verbs"]).map(drop)
}

fn exec(f: &Fixture) -> Result<Verdict> {
    let pods = f.wait_ready("verbs", "app=d", 3)?;
    let pod = text(&pods[0], "/metadata/name");
    ensure!(f.exec("verbs", pod, &["sh", "-c", "echo out; echo err >&2"])?.contains("out"));
    let output = f.lab.kubectl_output(&["exec", "-n", "verbs", pod, "--", "sh", "-c", "exit 7"])?;
    ensure!(output.code == 7, "{output:?}");
    let output =
        f.kubectl_with(&["exec", "-i", "-n", "verbs", pod, "--", "cat"], "through stdin")?;
    ensure!(output.stdout == "through stdin", "{output:?}");
    let large = "x".repeat(3 << 20);
    let output = f.kubectl_with(&["exec", "-i", "-n", "verbs", pod, "--", "cat"], &large)?;
    ensure!(output.stdout.len() == large.len(), "{} bytes came back", output.stdout.len());
    let missing = f.kubectl_fails(&["exec", "-n", "verbs", pod, "--", "/no/such"])?;
    ensure!(missing.contains("no such file") || missing.contains("not found"), "{missing}");
    let mut command = std::process::Command::new("script");
    let line = format!("kubectl exec -it -n verbs {pod} -- sh -c 'tty; stty size'");
    command.env("KUBECONFIG", f.lab.kubeconfig()).args(["-qec", &line, "/dev/null"]);
    let output = tests::shell::capture(&mut command)?;
    ensure!(
        output.stdout.contains("/dev/pts/") || output.stdout.contains("/dev/console"),
        "{output:?}"
    );
    passed()
}

fn cp(f: &Fixture) -> Result<Verdict> {
    let pods = f.wait_ready("verbs", "app=d", 3)?;
    let pod = text(&pods[0], "/metadata/name");
    let (from, to) = (f.lab.dir.join("sent"), f.lab.dir.join("received"));
    fs::write(&from, vec![7_u8; 300_000])?;
    let there = format!("{pod}:/tmp/file");
    f.kubectl(&["cp", "-n", "verbs", &from.to_string_lossy(), &there])?;
    f.kubectl(&["cp", "-n", "verbs", &there, &to.to_string_lossy()])?;
    ensure!(fs::read(&to)? == fs::read(&from)?, "the file changed on its way");
    passed()
}

fn port_forward(f: &Fixture) -> Result<Verdict> {
    let mut command = f.lab.kubectl_command();
    command.args(["port-forward", "-n", "verbs", "svc/d", ":80"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    let outcome = (|| {
        let line = lines.next().context("port-forward said nothing")??;
        let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next());
        let url = format!("http://127.0.0.1:{}/hostname", port.context("no port")?);
        for _ in 0..3 {
            let answer = tests::shell::run(&["curl", "-sS", "--max-time", "10", &url])?;
            ensure!(answer.starts_with("d-"), "{answer:?}");
        }
        Ok(())
    })();
    child.kill()?;
    child.wait()?;
    outcome?;
    passed()
}

fn events(f: &Fixture) -> Result<Verdict> {
    prints(f, &["events", "-n", "verbs"], &["LAST SEEN", "Scheduled", "ScalingReplicaSet"])?;
    prints(f, &["get", "events", "-n", "verbs", "--field-selector=reason=Started"], &["Started"])?;
    passed()
}

fn auth(f: &Fixture) -> Result<Verdict> {
    prints(f, &["auth", "can-i", "create", "pods"], &["yes"])?;
    prints(f, &["auth", "can-i", "--list"], &["*.*"])?;
    let other = ["auth", "can-i", "list", "secrets", "--as=nobody", "-A"];
    ensure!(f.kubectl_fails(&other)?.contains("no"));
    prints(f, &["auth", "whoami"], &["system:masters"])?;
    passed()
}

fn service_accounts(f: &Fixture) -> Result<Verdict> {
    f.kubectl(&[
        "create",
        "rolebinding",
        "rb",
        "-n",
        "verbs",
        "--role=r",
        "--serviceaccount=verbs:sa",
    ])?;
    let token = f.kubectl(&["create", "token", "sa", "-n", "verbs"])?;
    let mut command = std::process::Command::new("kubectl");
    command.env("HOME", &f.lab.dir).args([
        "--insecure-skip-tls-verify",
        "--server",
        &f.lab.server(),
    ]);
    command.args(["--token", token.trim(), "-n", "verbs"]);
    let mut refused = std::process::Command::new("kubectl");
    refused.env("HOME", &f.lab.dir).args(command.get_args());
    let pods = f.wait_ready("verbs", "app=d", 3)?;
    let pod = text(&pods[0], "/metadata/name");
    tests::shell::capture(command.args(["get", "pod", pod]))?.success()?;
    let output = tests::shell::capture(refused.args(["get", "secrets"]))?;
    let wanted = "User \"system:serviceaccount:verbs:sa\" cannot list resource \"secrets\"";
    ensure!(output.code != 0 && output.stderr.contains(wanted), "{output:?}");
    passed()
}

fn nodes(f: &Fixture) -> Result<Verdict> {
    f.kubectl(&["cordon", "node1"])?;
    prints(f, &["get", "node", "node1"], &["SchedulingDisabled"])?;
    f.kubectl(&["uncordon", "node1"])?;
    f.kubectl(&["taint", "node", "node1", "k=v:NoSchedule"])?;
    prints(f, &["describe", "node", "node1"], &["k=v:NoSchedule"])?;
    f.kubectl(&["taint", "node", "node1", "k-"])?;
    f.kubectl_with(&["apply", "-n", "verbs", "-f", "-"], &web("drained", 4, "x"))?.success()?;
    f.wait_ready("verbs", "app=drained", 4)?;
    f.kubectl(&[
        "drain",
        "node1",
        "--ignore-daemonsets",
        "--force",
        "--delete-emptydir-data",
        "--timeout=60s",
    ])?;
    let pods = f.wait_ready("verbs", "app=drained", 4)?;
    ensure!(pods.iter().all(|pod| text(pod, "/spec/nodeName") == "node2"), "pods on node1");
    f.kubectl(&["uncordon", "node1"])?;
    passed()
}

fn delete(f: &Fixture) -> Result<Verdict> {
    f.kubectl(&["delete", "deployment", "drained", "-n", "verbs", "--cascade=foreground"])?;
    f.kubectl(&["delete", "svc", "-n", "verbs", "--all"])?;
    let gone = f.kubectl(&["get", "rs", "-n", "verbs", "-l", "app=drained", "-o", "name"])?;
    ensure!(gone.is_empty(), "{gone}");
    f.kubectl(&["delete", "deployment", "d", "-n", "verbs", "--cascade=orphan"])?;
    let kept = f.kubectl(&["get", "rs", "-n", "verbs", "-l", "app=d", "-o", "name"])?;
    ensure!(!kept.is_empty(), "orphaned replica sets are gone");
    f.kubectl(&[
        "patch",
        "cm",
        "ap",
        "-n",
        "verbs",
        "-p",
        r#"{"metadata":{"finalizers":["x.io/y"]}}"#,
    ])?;
    f.kubectl(&["delete", "cm", "ap", "-n", "verbs", "--wait=false"])?;
    let cm = f.get(&["cm", "ap", "-n", "verbs"])?;
    ensure!(!cm["metadata"]["deletionTimestamp"].is_null(), "{cm}");
    f.kubectl(&["patch", "cm", "ap", "-n", "verbs", "-p", r#"{"metadata":{"finalizers":null}}"#])?;
    f.kubectl_fails(&["get", "cm", "ap", "-n", "verbs"])?;
    f.delete_namespace("verbs")?;
    wait_for("the namespace's pods to go", Duration::from_secs(30), || {
        let left = f.kubectl(&["get", "pods", "-n", "verbs", "-o", "name"])?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })?;
    passed()
}
