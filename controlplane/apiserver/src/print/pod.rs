//! The row of a pod. Pure; Kubernetes 1.36 (`pkg/printers/internalversion`, `printPod`).

use super::duration;
use super::read::{NONE, Printed, at, int, list, or, text};
use jiff::Timestamp;
use serde_json::{Value, json};

/// Restarts counted, and when the last one's predecessor ended.
#[derive(Default, Clone, Copy)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += int(status, "/restartCount");
        let finished = text(status, "/lastState/terminated/finishedAt").parse::<Timestamp>().ok();
        self.last = self.last.max(finished);
    }

    fn shown(&self, now: Timestamp) -> String {
        match self.last {
            Some(last) if self.count != 0 => {
                format!("{} ({} ago)", self.count, duration::human(duration::between(last, now)))
            }
            _ => self.count.to_string(),
        }
    }
}

/// What has been found out about the pod.
struct Summary {
    reason: String,
    ready: usize,
    restarts: Restarts,
    /// Of init containers that go on running.
    sidecar_restarts: Restarts,
    initializing: bool,
}

pub(super) fn cells(printed: &Printed<'_>) -> Vec<Value> {
    let pod = printed.object;
    let sidecars = list(pod, "/spec/initContainers").iter().filter(|c| is_sidecar(c)).count();
    let total = printed.count("/spec/containers") + sidecars;
    let mut summary = Summary {
        reason: first_reason(pod),
        ready: 0,
        restarts: Restarts::default(),
        sidecar_restarts: Restarts::default(),
        initializing: false,
    };
    summary.init_containers(pod);
    if !summary.initializing || condition(pod, "Initialized") == "True" {
        summary.containers(pod);
    }
    summary.deletion(pod);
    vec![
        json!(printed.name()),
        json!(format!("{}/{total}", summary.ready)),
        json!(summary.reason),
        json!(summary.restarts.shown(printed.now)),
        json!(printed.age()),
        json!(or(text(pod, "/status/podIPs/0/ip"), NONE)),
        json!(or(text(pod, "/spec/nodeName"), NONE)),
        json!(or(text(pod, "/status/nominatedNodeName"), NONE)),
        json!(readiness_gates(pod)),
    ]
}

fn first_reason(pod: &Value) -> String {
    let gated = list(pod, "/status/conditions").iter().any(|condition| {
        text(condition, "/type") == "PodScheduled"
            && text(condition, "/reason") == "SchedulingGated"
    });
    if gated {
        return "SchedulingGated".to_owned();
    }
    or(text(pod, "/status/reason"), text(pod, "/status/phase")).to_owned()
}

fn is_sidecar(container: &Value) -> bool {
    text(container, "/restartPolicy") == "Always"
}

fn condition<'a>(pod: &'a Value, kind: &str) -> &'a str {
    list(pod, "/status/conditions")
        .iter()
        .find(|condition| text(condition, "/type") == kind)
        .map_or("", |condition| text(condition, "/status"))
}

/// `Signal:9` or `ExitCode:1`, for a termination without a reason.
fn bare_end(terminated: &Value) -> String {
    match int(terminated, "/signal") {
        0 => format!("ExitCode:{}", int(terminated, "/exitCode")),
        signal => format!("Signal:{signal}"),
    }
}

impl Summary {
    fn init_containers(&mut self, pod: &Value) {
        let specs = list(pod, "/spec/initContainers");
        for (index, status) in list(pod, "/status/initContainerStatuses").iter().enumerate() {
            self.restarts.add(status);
            let name = text(status, "/name");
            let sidecar = specs.iter().any(|spec| text(spec, "/name") == name && is_sidecar(spec));
            if sidecar {
                self.sidecar_restarts.add(status);
            }
            let terminated = at(status, "/state/terminated");
            if !terminated.is_null() && int(terminated, "/exitCode") == 0 {
                continue;
            }
            if sidecar && at(status, "/started") == true {
                self.ready += usize::from(at(status, "/ready") == true);
                continue;
            }
            let waiting = text(status, "/state/waiting/reason");
            let why = if !terminated.is_null() {
                match text(terminated, "/reason") {
                    "" => bare_end(terminated),
                    reason => reason.to_owned(),
                }
            } else if !matches!(waiting, "" | "PodInitializing") {
                waiting.to_owned()
            } else {
                format!("{index}/{}", specs.len())
            };
            self.reason = format!("Init:{why}");
            self.initializing = true;
            break;
        }
    }

    fn containers(&mut self, pod: &Value) {
        self.restarts = self.sidecar_restarts;
        let mut has_running = false;
        for status in list(pod, "/status/containerStatuses").iter().rev() {
            self.restarts.add(status);
            let terminated = at(status, "/state/terminated");
            let waiting = text(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if !terminated.is_null() {
                self.reason = match text(terminated, "/reason") {
                    "" => bare_end(terminated),
                    reason => reason.to_owned(),
                };
            } else if at(status, "/ready") == true && !at(status, "/state/running").is_null() {
                has_running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && has_running {
            let ready = condition(pod, "Ready") == "True";
            self.reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }

    fn deletion(&mut self, pod: &Value) {
        if text(pod, "/metadata/deletionTimestamp").is_empty() {
            return;
        }
        if text(pod, "/status/reason") == "NodeLost" {
            self.reason = "Unknown".to_owned();
        } else if !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") {
            self.reason = "Terminating".to_owned();
        }
    }
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let met =
        gates.iter().filter(|gate| condition(pod, text(gate, "/conditionType")) == "True").count();
    format!("{met}/{}", gates.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pod: Value) -> (String, String, String) {
        let now = "2026-01-01T01:00:00Z".parse().unwrap();
        let cells = cells(&Printed { object: &pod, now });
        let of = |index: usize| cells[index].as_str().unwrap().to_owned();
        (of(1), of(2), of(3))
    }

    fn pod(statuses: Value, phase: &str) -> Value {
        json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}]},
            "status": {"phase": phase, "containerStatuses": statuses},
        })
    }

    fn expect(pod: Value, ready: &str, status: &str, restarts: &str) {
        assert_eq!(row(pod), (ready.to_owned(), status.to_owned(), restarts.to_owned()));
    }

    #[test]
    fn the_states_of_containers_make_the_status() {
        let running = json!({"ready": true, "state": {"running": {}}});
        expect(pod(json!([running, running]), "Running"), "2/2", "Running", "0");
        expect(pod(json!([]), "Pending"), "0/2", "Pending", "0");
        let crashing = json!({
            "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:55:00Z"}},
        });
        let crash = pod(json!([crashing, running]), "Running");
        expect(crash.clone(), "1/2", "CrashLoopBackOff", "3 (5m ago)");
        let done = json!({"state": {"terminated": {"reason": "Completed", "exitCode": 0}}});
        expect(pod(json!([done, done]), "Succeeded"), "0/2", "Completed", "0");
        expect(pod(json!([done, running]), "Running"), "1/2", "NotReady", "0");
        let bare = json!({"state": {"terminated": {"exitCode": 3}}});
        expect(pod(json!([bare]), "Failed"), "0/2", "ExitCode:3", "0");
        let mut deleted = crash;
        deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:59:00Z");
        expect(deleted, "1/2", "Terminating", "3 (5m ago)");
    }

    #[test]
    fn init_containers_come_first() {
        let with = |init: Value, specs: Value| {
            let mut pod = pod(json!([]), "Pending");
            pod["spec"]["initContainers"] = specs;
            pod["status"]["initContainerStatuses"] = init;
            pod
        };
        let specs = json!([{"name": "i"}, {"name": "j"}]);
        let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0}}});
        let waiting = json!({"name": "j", "state": {"waiting": {"reason": "PodInitializing"}}});
        expect(with(json!([done, waiting]), specs.clone()), "0/2", "Init:1/2", "0");
        let failed = json!({"name": "i", "restartCount": 2,
            "state": {"terminated": {"exitCode": 1, "reason": "Error"}}});
        expect(with(json!([failed]), specs.clone()), "0/2", "Init:Error", "2");
        let pulling = json!({"name": "i", "state": {"waiting": {"reason": "ImagePullBackOff"}}});
        expect(with(json!([pulling]), specs), "0/2", "Init:ImagePullBackOff", "0");
        let sidecar = json!([{"name": "s", "restartPolicy": "Always"}]);
        let started = json!({"name": "s", "started": true, "ready": true, "restartCount": 1,
            "state": {"running": {}}});
        expect(with(json!([started]), sidecar), "1/3", "Pending", "1");
    }
}
