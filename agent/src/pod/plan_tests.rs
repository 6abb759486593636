//! A pod's life as a table: a line of observed state, and the steps that follow.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use super::*;
use crate::pod::state::{Ended, Terminate};

fn now() -> Timestamp {
    "2026-01-01T00:10:00Z".parse().unwrap()
}

fn ended(code: i32, seconds_ago: i64) -> Ended {
    Ended {
        id: "old".into(),
        code,
        signal: None,
        reason: "Error".into(),
        message: String::new(),
        started_at: None,
        finished_at: now() - SignedDuration::from_secs(seconds_ago),
    }
}

/// `init` and `side` are init containers (the second a sidecar), `a` and `b` the pod's own.
fn pod(policy: &str) -> Pod {
    serde_json::from_value(serde_json::json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"restartPolicy": policy, "terminationGracePeriodSeconds": 30,
            "initContainers": [{"name": "init"}, {"name": "side", "restartPolicy": "Always"}],
            "containers": [{"name": "a"}, {"name": "b"}]}
    }))
    .unwrap()
}

/// `init=0 side=up a=1@5 b=-`: ended with code (seconds ago), up (and started), starting, none.
fn observe(text: &str) -> Observed {
    let mut containers = BTreeMap::new();
    for word in text.split_whitespace() {
        let (name, state) = word.split_once('=').unwrap();
        let running = Life::Running { id: "i".into(), started_at: now() };
        let life = match state {
            "-" => Life::Absent,
            "starting" => Life::Starting,
            "up" | "new" | "bad" => running,
            "ending" => Life::Stopping { id: "i".into(), started_at: now() },
            code => {
                let (code, ago) = code.split_once('@').unwrap_or((code, "1000"));
                Life::Exited(ended(code.parse().unwrap(), ago.parse().unwrap()))
            }
        };
        let container = ContainerObserved {
            started: state == "up",
            kill: (state == "bad").then_some(KillReason::Probe("liveness")),
            life,
            ..Default::default()
        };
        containers.insert(name.to_owned(), container);
    }
    Observed { sandbox: Sandbox::Ready, containers, ..Default::default() }
}

fn steps(plan: &Plan) -> String {
    let mut words: Vec<String> = plan
        .steps
        .iter()
        .map(|step| match step {
            Step::PrepareSandbox => "prepare".into(),
            Step::Start { container, restart: false } => format!("start:{container}"),
            Step::Start { container, restart: true } => format!("restart:{container}"),
            Step::Kill { container, grace_seconds, .. } => {
                format!("kill:{container}:{grace_seconds}")
            }
            Step::RemoveSandbox => "remove".into(),
        })
        .collect();
    if plan.finished {
        words.push("finished".into());
    }
    words.join(" ")
}

#[test]
fn a_pods_life() {
    let cases = [
        ("Always", "", "start:init"),
        ("Always", "init=starting", ""),
        ("Always", "init=up", ""),
        ("Always", "init=1@1000", "restart:init"),
        ("Never", "init=1", "remove"),
        ("Always", "init=0", "start:side"),
        ("Always", "init=0 side=new", ""),
        ("Always", "init=0 side=up", "start:a start:b"),
        ("Always", "init=0 side=up a=up b=starting", ""),
        ("Always", "init=0 side=up a=0 b=up", "restart:a"),
        ("Always", "side=up a=up b=up", ""),
        ("Always", "init=0 side=1 a=up b=up", "restart:side"),
        ("Always", "init=0 side=up a=bad b=up", "kill:a:30"),
        ("Always", "init=0 side=up a=ending b=up", ""),
        ("OnFailure", "init=0 side=up a=0 b=3", "restart:b"),
        ("OnFailure", "init=0 side=up a=0 b=0", "kill:side:30"),
        ("OnFailure", "init=0 side=0 a=0 b=0", "remove"),
        ("Never", "init=0 side=up a=1 b=up", ""),
        ("Never", "init=0 side=0 a=1 b=0", "remove"),
    ];
    for (policy, text, expected) in cases {
        assert_eq!(
            steps(&plan_pod(&pod(policy), &observe(text), now())),
            expected,
            "{policy} {text}"
        );
    }
}

#[test]
fn the_end_takes_containers_before_sidecars_within_the_grace() {
    let cases = [
        (0, "init=0 side=up a=up b=up", "kill:a:30 kill:b:30"),
        (10, "init=0 side=up a=ending b=ending", ""),
        (10, "init=0 side=up a=0 b=137", "kill:side:20"),
        (100, "init=0 side=up a=0 b=137", "kill:side:2"),
        (10, "init=0 side=0 a=0 b=starting", ""),
        (10, "init=0 side=0 a=0 b=-", "remove"),
    ];
    for (passed, text, expected) in cases {
        let mut observed = observe(text);
        observed.terminate = Some(Terminate {
            since: now() - SignedDuration::from_secs(passed),
            grace_seconds: 30,
            failed: None,
        });
        assert_eq!(steps(&plan_pod(&pod("Always"), &observed, now())), expected, "{passed} {text}");
        if expected == "remove" {
            observed.sandbox = Sandbox::Absent;
            assert_eq!(steps(&plan_pod(&pod("Always"), &observed, now())), "remove", "half-made");
            observed.sandbox = Sandbox::Gone;
            assert!(plan_pod(&pod("Always"), &observed, now()).finished);
        }
    }
}

#[test]
fn crash_loops_wait_ten_seconds_then_twice_as_long_up_to_five_minutes() {
    let mut entry = None;
    let mut at = now();
    let mut delays = Vec::new();
    for _ in 0..8 {
        let until = Backoff::until(entry, at).unwrap_or(at);
        delays.push(until.duration_since(at).as_secs());
        entry = Some(Backoff::next(entry, at, until));
        at = until + SignedDuration::from_secs(1);
    }
    assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
    let later = at + SignedDuration::from_secs(601);
    assert_eq!(Backoff::until(entry, later), None);
    assert_eq!(Backoff::next(entry, later, later).delay, Duration::from_secs(10));

    let mut observed = observe("init=0 side=up a=1@4 b=up");
    let a = observed.containers.get_mut("a").unwrap();
    a.backoff = Some(Backoff { delay: Duration::from_secs(20), taken_at: now() });
    let plan = plan_pod(&pod("Always"), &observed, now());
    assert_eq!(steps(&plan), "");
    assert_eq!(plan.wake_at, Some(now() + SignedDuration::from_secs(16)));
    let (name, waiting) = &plan.held_back[0];
    assert_eq!((name.as_str(), waiting.reason.as_str()), ("a", "CrashLoopBackOff"));
    assert_eq!(waiting.message, "back-off 20s restarting failed container=a pod=p_n(u)");
    assert_eq!(go_duration(Duration::from_secs(300)), "5m0s");
}

#[test]
fn a_sandbox_comes_first_and_waits_after_a_failure() {
    let mut observed = Observed::default();
    assert_eq!(steps(&plan_pod(&pod("Always"), &observed, now())), "prepare");
    let at = now() + SignedDuration::from_secs(3);
    observed.sandbox_retry_at = Some(at);
    let plan = plan_pod(&pod("Always"), &observed, now());
    assert_eq!((steps(&plan), plan.wake_at), (String::new(), Some(at)));
}

#[test]
fn later_containers_wait_for_a_post_start_hook() {
    let mut pod = pod("Always");
    let hook = serde_json::json!({"postStart": {"exec": {"command": ["x"]}}});
    pod.spec.as_mut().unwrap().containers[0].lifecycle = serde_json::from_value(hook).unwrap();
    for (text, expected) in
        [("a=-", "start:a"), ("a=starting", ""), ("a=up", "start:b"), ("a=1@1000", "restart:a")]
    {
        let observed = observe(&format!("init=0 side=up {text}"));
        assert_eq!(steps(&plan_pod(&pod, &observed, now())), expected, "{text}");
    }
    let mut observed = observe("init=0 side=up a=up b=-");
    observed.containers.get_mut("a").unwrap().hook = true;
    assert_eq!(steps(&plan_pod(&pod, &observed, now())), "");
}

#[test]
fn a_container_ended_for_a_change_starts_again_under_every_policy() {
    for policy in ["Always", "OnFailure", "Never"] {
        let mut observed = observe("init=0 side=up a=0 b=0");
        observed.containers.get_mut("a").unwrap().again = true;
        let expected = if policy == "Always" { "restart:a restart:b" } else { "restart:a" };
        assert_eq!(steps(&plan_pod(&pod(policy), &observed, now())), expected, "{policy}");
    }
}

#[test]
fn what_a_reboot_may_not_repeat() {
    let cases = [
        ("Never", "a", 0, true, true),
        ("Never", "a", 1, true, true),
        ("Never", "init", 0, true, true),
        ("Never", "side", 0, false, false),
        ("OnFailure", "a", 0, false, true),
        ("OnFailure", "a", 1, false, false),
        ("OnFailure", "init", 0, false, false),
        ("Always", "a", 0, false, false),
    ];
    for (policy, name, code, once, kept) in cases {
        let pod = pod(policy);
        let spec = pod.spec.as_ref().unwrap();
        let container = spec::find_container(spec, name).unwrap();
        let got = (runs_once(spec, container), is_kept(spec, container, code));
        assert_eq!(got, (once, kept), "{policy} {name} {code}");
    }
}

#[test]
fn init_containers_run_again_after_a_reboot_for_what_is_left() {
    let observed = observe("a=0");
    assert_eq!(steps(&plan_pod(&pod("OnFailure"), &observed, now())), "start:init");
}
