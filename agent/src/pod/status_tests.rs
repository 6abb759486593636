//! Phases, container states and conditions of typical moments in a pod's life.

use super::*;
use crate::pod::state::Terminate;

fn now() -> Timestamp {
    "2026-01-01T00:10:00Z".parse().unwrap()
}

fn pod(policy: &str, init: bool) -> Pod {
    let mut pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 3},
        "spec": {"restartPolicy": policy, "containers": [{"name": "a", "image": "img"}]}
    }))
    .unwrap();
    if init {
        let container = Container { name: "i".into(), ..Default::default() };
        pod.spec.as_mut().unwrap().init_containers = Some(vec![container]);
    }
    pod
}

fn end(code: i32) -> Ended {
    Ended {
        id: "x1".into(),
        code,
        signal: None,
        reason: if code == 0 { "Completed".into() } else { "Error".into() },
        message: String::new(),
        started_at: Some(now()),
        finished_at: now(),
    }
}

fn up(ready: bool) -> ContainerObserved {
    ContainerObserved {
        life: Life::Running { id: "x1".into(), started_at: now() },
        started: true,
        ready,
        ..Default::default()
    }
}

fn with(containers: &[(&str, ContainerObserved)]) -> Observed {
    let containers = containers.iter().map(|(n, c)| ((*n).to_owned(), c.clone())).collect();
    Observed { sandbox: Sandbox::Ready, containers, ..Default::default() }
}

fn run(pod: &Pod, observed: &Observed, previous: &PodStatus) -> PodStatus {
    let pod_ips = ["10.1.0.2".parse().unwrap()];
    status(&Inputs { pod, observed, previous, pod_ips: &pod_ips, host_ips: &[], now: now() })
}

fn verdict(status: &PodStatus, type_: &str) -> (String, String) {
    let all = status.conditions.as_ref().unwrap();
    let found = all.iter().find(|condition| condition.type_ == type_).unwrap();
    (found.status.clone(), found.reason.clone().unwrap_or_default())
}

#[test]
fn phases() {
    let exited = |code| ContainerObserved { life: Life::Exited(end(code)), ..Default::default() };
    let looping = ContainerObserved { last: Some(end(1)), ..exited(1) };
    let none = ContainerObserved::default();
    let cases = [
        ("Always", false, with(&[]), "Pending"),
        ("Always", false, with(&[("a", none.clone())]), "Pending"),
        ("Always", false, with(&[("a", up(false))]), "Running"),
        ("Always", false, with(&[("a", looping)]), "Running"),
        ("Always", false, with(&[("a", exited(0))]), "Running"),
        ("OnFailure", false, with(&[("a", exited(0))]), "Succeeded"),
        ("Never", false, with(&[("a", exited(2))]), "Failed"),
        ("Always", true, with(&[("i", up(true))]), "Pending"),
        ("Always", true, with(&[("i", exited(0)), ("a", up(true))]), "Running"),
        ("Never", true, with(&[("i", exited(1))]), "Failed"),
        ("Always", true, with(&[("i", exited(1))]), "Pending"),
    ];
    for (policy, init, observed, expected) in cases {
        let got = run(&pod(policy, init), &observed, &PodStatus::default());
        assert_eq!(got.phase.as_deref(), Some(expected), "{policy} {init} {observed:?}");
    }
    let mut observed = with(&[("a", exited(0))]);
    observed.terminate = Some(Terminate {
        since: now(),
        grace_seconds: 30,
        failed: Some(Waiting::new(
            "DeadlineExceeded",
            "Pod was active on the node longer than the specified deadline",
        )),
    });
    let got = run(&pod("Always", false), &observed, &PodStatus::default());
    assert_eq!(
        (got.phase.as_deref(), got.reason.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"))
    );
}

#[test]
fn a_crash_loop_shows_the_last_end() {
    let mut container =
        ContainerObserved { life: Life::Exited(end(7)), restarts: 2, ..Default::default() };
    container.waiting = Some(Waiting::new("CrashLoopBackOff", "back-off 10s"));
    let got = run(&pod("Always", false), &with(&[("a", container)]), &PodStatus::default());
    let shown = &got.container_statuses.unwrap()[0];
    let waiting = shown.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    let last = shown.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, shown.restart_count, shown.ready), (7, 2, false));
    assert_eq!(shown.container_id.as_deref(), Some("flotilla://x1"));
}

#[test]
fn conditions_keep_their_time_and_foreign_ones_stay() {
    let earlier: Timestamp = "2025-12-31T00:00:00Z".parse().unwrap();
    let mut first = run(&pod("Always", false), &with(&[("a", up(false))]), &PodStatus::default());
    assert_eq!(verdict(&first, "Ready"), ("False".into(), "ContainersNotReady".into()));
    assert_eq!(verdict(&first, "Initialized"), ("True".into(), String::new()));
    for condition in first.conditions.as_mut().unwrap() {
        condition.last_transition_time = Some(Time(earlier));
    }
    let foreign = PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        ..Default::default()
    };
    first.conditions.as_mut().unwrap().push(foreign);
    let second = run(&pod("Always", false), &with(&[("a", up(true))]), &first);
    let time = |type_: &str| {
        let all = second.conditions.as_ref().unwrap();
        all.iter().find(|c| c.type_ == type_).unwrap().last_transition_time.clone().unwrap().0
    };
    assert_eq!(verdict(&second, "Ready").0, "True");
    assert_eq!((time("Ready"), time("Initialized")), (now(), earlier));
    assert_eq!(verdict(&second, "DisruptionTarget").0, "True");
    let waiting = run(&pod("Always", true), &with(&[]), &PodStatus::default());
    let state = waiting.container_statuses.unwrap()[0].state.clone().unwrap();
    assert_eq!(state.waiting.unwrap().reason.as_deref(), Some("PodInitializing"));
}

#[test]
fn what_is_being_stopped_is_ready_until_it_is_not() {
    for ready in [true, false] {
        let life = Life::Stopping { id: "x1".into(), started_at: now() };
        let container = ContainerObserved { life, ..up(ready) };
        let got = run(&pod("Always", false), &with(&[("a", container)]), &PodStatus::default());
        assert_eq!(verdict(&got, "Ready").0, if ready { "True" } else { "False" });
    }
}

#[test]
fn what_has_ended_for_good_waits_for_nothing() {
    let failed = ContainerObserved {
        life: Life::Exited(end(128)),
        waiting: Some(Waiting::new("RunContainerError", "no such file")),
        ..Default::default()
    };
    let ends = Some(Terminate { since: now(), grace_seconds: 30, failed: None });
    for (policy, terminate, waits) in
        [("Never", None, false), ("Always", None, true), ("Always", ends, false)]
    {
        let mut observed = with(&[("a", failed.clone())]);
        observed.terminate = terminate;
        let got = run(&pod(policy, false), &observed, &PodStatus::default());
        let state = got.container_statuses.unwrap()[0].state.clone().unwrap();
        assert_eq!(
            (state.waiting.is_some(), state.terminated.is_some()),
            (waits, !waits),
            "{policy}"
        );
    }
}
