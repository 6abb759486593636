//! How many pods a Job needs, when it is over, and its status. Pure.

use crate::{
    kinds::{Condition, Job, Pod, Uncounted, condition, is_true},
    runtime::{events::Tone, object::Kind, template},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Failures allowed where the Job does not say (Kubernetes: 6).
const BACKOFF_LIMIT: i32 = 6;
/// First wait after a failed pod (Kubernetes: 10 s), doubled by each further one.
const BACKOFF_FIRST_SECONDS: i64 = 10;
/// Longest such wait (Kubernetes: 10 min).
const BACKOFF_MAX_SECONDS: i64 = 600;

/// The effects, and when to look again.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: usize,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) status: Option<Value>,
    pub(super) event: Option<(Tone, &'static str, String)>,
    pub(super) look_again: Option<Duration>,
}

pub(super) fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// Whether the Job is Complete or Failed.
pub(super) fn is_over(job: &Job) -> bool {
    ["Complete", "Failed"].iter().any(|c| is_true(&job.status.conditions, c))
}

/// Whether the pod's end is not counted yet.
pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)
}

fn has_succeeded(pod: &Pod) -> bool {
    pod.status.phase.as_deref() == Some("Succeeded")
}

/// Whether the pod counts as a failure. One that is deleted before it ended may never come to say so itself.
fn has_failed(pod: &Pod) -> bool {
    !has_succeeded(pod) && (pod.is_finished() || pod.is_deleting())
}

/// The noted ends with those that came since; `None` when there is none.
pub(super) fn newly_ended(job: &Job, pods: &[Arc<Pod>]) -> Option<Uncounted> {
    let mut noted = job.status.uncounted_terminated_pods.clone();
    let known = |n: &Uncounted, uid: &str| n.succeeded.iter().chain(&n.failed).any(|u| u == uid);
    let mut any = false;
    for pod in pods.iter().filter(|p| (has_succeeded(p) || has_failed(p)) && is_tracked(p)) {
        if known(&noted, pod.uid()) {
            continue;
        }
        any = true;
        let side = if has_succeeded(pod) { &mut noted.succeeded } else { &mut noted.failed };
        side.push(pod.uid().to_owned());
    }
    any.then_some(noted)
}

/// The pod of the Job's template, tracked and labelled as upstream.
pub(super) fn pod(job: &Job) -> Value {
    let mut pod = template::pod(job, &job.spec.template);
    for key in ["batch.kubernetes.io/job-name", "job-name"] {
        pod["metadata"]["labels"][key] = json!(job.name());
    }
    for key in ["batch.kubernetes.io/controller-uid", "controller-uid"] {
        pod["metadata"]["labels"][key] = json!(job.uid());
    }
    pod["metadata"]["finalizers"] = json!([FINALIZER]);
    pod
}

/// Time until a finished Job is deleted; zero when it is due, `None` when it stays.
pub(super) fn until_retired(job: &Job, now: Timestamp) -> Option<Duration> {
    let ttl = i64::from(job.spec.ttl_seconds_after_finished?);
    let over = job
        .status
        .conditions
        .iter()
        .find(|c| matches!(c.kind.as_str(), "Complete" | "Failed") && c.status == "True")?;
    Some(seconds(over.last_transition_time.as_ref()?.0.as_second() + ttl - now.as_second()))
}

fn seconds(n: i64) -> Duration {
    Duration::from_secs(u64::try_from(n).unwrap_or(0))
}

/// Whether the containers of the running pods were restarted more often than the Job allows failures.
fn restarted_too_often(job: &Job, active: &[&Arc<Pod>]) -> bool {
    if job.spec.template["spec"]["restartPolicy"] != "OnFailure" {
        return false;
    }
    let statuses = active.iter().map(|p| &p.status);
    let restarts: i64 = statuses
        .flat_map(|s| s.init_container_statuses.iter().chain(&s.container_statuses))
        .map(|c| i64::from(c.restart_count))
        .sum();
    restarts > 0 && restarts >= i64::from(job.spec.backoff_limit.unwrap_or(BACKOFF_LIMIT))
}

/// When the Job's time is over, in seconds since 1970.
fn deadline(job: &Job, start: &Time) -> Option<i64> {
    Some(start.0.as_second().saturating_add(job.spec.active_deadline_seconds?))
}

/// Why the Job ends: condition, reason, message.
fn verdict(
    job: &Job,
    active: &[&Arc<Pod>],
    now: Timestamp,
) -> Option<(&'static str, &'static str, String)> {
    if let Some(target) = condition(&job.status.conditions, "FailureTarget") {
        let (reason, message) = (target.reason.clone(), target.message.clone().unwrap_or_default());
        let late = reason.as_deref() == Some("DeadlineExceeded");
        let reason = if late { "DeadlineExceeded" } else { "BackoffLimitExceeded" };
        return Some(("Failed", reason, message));
    }
    if job.status.failed > job.spec.backoff_limit.unwrap_or(BACKOFF_LIMIT)
        || restarted_too_often(job, active)
    {
        let message = "Job has reached the specified backoff limit".to_owned();
        return Some(("Failed", "BackoffLimitExceeded", message));
    }
    let deadline = job.status.start_time.as_ref().and_then(|start| deadline(job, start));
    if !job.spec.suspend && deadline.is_some_and(|deadline| deadline <= now.as_second()) {
        let message = "Job was active longer than specified deadline".to_owned();
        return Some(("Failed", "DeadlineExceeded", message));
    }
    let enough = match job.spec.completions {
        Some(completions) => job.status.succeeded >= completions,
        None => job.status.succeeded > 0 && active.is_empty(),
    };
    enough.then(|| {
        ("Complete", "CompletionsReached", "Reached expected number of succeeded pods".to_owned())
    })
}

/// What to do next.
pub(super) fn plan(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let active: Vec<_> = pods.iter().filter(|p| !p.is_finished() && !p.is_deleting()).collect();
    let ending = pods.iter().filter(|p| p.is_deleting() && !p.is_finished()).count();
    let mut plan = Plan::default();
    let mut conditions = job.status.conditions.clone();
    let mut completion = None;
    match verdict(job, &active, now) {
        Some((kind, reason, message)) => {
            plan.delete = active.iter().map(|p| Arc::clone(p)).collect();
            let target = if kind == "Failed" { "FailureTarget" } else { "SuccessCriteriaMet" };
            set(&mut conditions, (target, reason, message.clone()), now);
            // The last word is said when no pod of it runs any more.
            if active.is_empty() && ending == 0 {
                set(&mut conditions, (kind, reason, message.clone()), now);
                plan.event = Some(if kind == "Failed" {
                    (Tone::Warning, reason, message)
                } else {
                    completion = Some(Time(now));
                    (Tone::Normal, "Completed", "Job completed".to_owned())
                });
            }
        }
        None if job.spec.suspend => {
            plan.delete = active.iter().map(|p| Arc::clone(p)).collect();
            set(&mut conditions, ("Suspended", "JobSuspended", "Job suspended".into()), now);
        }
        None => {
            conditions.retain(|c| c.kind != "Suspended");
            resize(job, pods, &active, (&mut plan, now));
        }
    }
    let start =
        if job.spec.suspend { None } else { job.status.start_time.clone().or(Some(Time(now))) };
    let left = active.len() + plan.create - plan.delete.len();
    let patch = json!({
        "active": left, "ready": active.iter().filter(|p| p.is_ready()).count(),
        "terminating": ending + plan.delete.len(), "startTime": start, "conditions": conditions,
        "completionTime": completion,
    });
    let before = &job.status;
    let same = before.active == count(left)
        && before.ready
            == Some(patch["ready"].as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0))
        && before.terminating == Some(count(ending + plan.delete.len()))
        && before.start_time == start
        && before.conditions == conditions;
    plan.status = (!same).then_some(patch);
    if let Some(deadline) = start.as_ref().and_then(|start| deadline(job, start)) {
        let left = seconds(deadline.saturating_sub(now.as_second()));
        let wait = left.saturating_add(Duration::from_secs(1));
        plan.look_again = Some(plan.look_again.map_or(wait, |w| w.min(wait)));
    }
    plan
}

/// Makes or deletes pods so that as many run as are wanted, with a pause after failures.
fn resize(job: &Job, pods: &[Arc<Pod>], active: &[&Arc<Pod>], (plan, now): (&mut Plan, Timestamp)) {
    let parallelism = job.spec.parallelism.unwrap_or(1);
    let wanted = match job.spec.completions {
        Some(completions) => parallelism.min(completions - job.status.succeeded),
        None if job.status.succeeded > 0 => parallelism.min(count(active.len())),
        None => parallelism,
    };
    let wanted = usize::try_from(wanted).unwrap_or(0);
    if active.len() > wanted {
        let surplus = active.len() - wanted;
        plan.delete = active.iter().take(surplus).map(|p| Arc::clone(p)).collect();
        return;
    }
    let failed_at = pods.iter().filter(|p| p.is_finished() && !has_succeeded(p)).filter_map(|p| {
        let ready = condition(&p.status.conditions, "Ready")?;
        ready.last_transition_time.as_ref().map(|t| t.0.as_second())
    });
    let wait = failed_at.max().map_or(0, |last| {
        let doublings = u32::try_from(job.status.failed.clamp(1, 16) - 1).unwrap_or(0);
        let pause = (BACKOFF_FIRST_SECONDS << doublings).min(BACKOFF_MAX_SECONDS);
        last + pause - now.as_second()
    });
    if wait > 0 && active.len() < wanted {
        plan.look_again = Some(seconds(wait));
    } else {
        plan.create = wanted - active.len();
    }
}

fn set(all: &mut Vec<Condition>, (kind, reason, message): (&str, &str, String), now: Timestamp) {
    if is_true(all, kind) {
        return;
    }
    all.retain(|c| c.kind != kind);
    all.push(Condition {
        kind: kind.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_transition_time: Some(Time(now)),
        last_probe_time: Some(Time(now)),
        ..Condition::default()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// State of pods: r(unning), R(unning, restarted twice), s(ucceeded), f(ailed 5 s ago), d(eleting).
    fn run(spec: Value, mut status: Value, state: &str) -> String {
        let now = Timestamp::from_second(1000).unwrap();
        status["startTime"] = json!("1970-01-01T00:10:00Z");
        let job: Job = serde_json::from_value(
            json!({"metadata": {"name": "j", "uid": "j"}, "spec": spec, "status": status}),
        )
        .unwrap();
        let pod = |(i, c): (usize, char)| {
            let phase = match c {
                's' => "Succeeded",
                'f' => "Failed",
                _ => "Running",
            };
            let mut p = json!({
                "metadata": {"name": i.to_string(), "uid": i.to_string()}, "spec": {},
                "status": {"phase": phase, "conditions":
                    [{"type": "Ready", "status": "False", "lastTransitionTime": "1970-01-01T00:16:35Z"}]},
            });
            if c == 'R' {
                p["status"]["containerStatuses"] = json!([{"restartCount": 2}]);
            }
            if c == 'd' {
                p["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:16:35Z");
            }
            Arc::new(serde_json::from_value(p).unwrap())
        };
        let pods: Vec<Arc<Pod>> = state.chars().enumerate().map(pod).collect();
        let plan = plan(&job, &pods, now);
        let kinds = plan.status.iter().flat_map(|s| s["conditions"].as_array().unwrap());
        let kinds: Vec<&str> = kinds.map(|c| c["type"].as_str().unwrap()).collect();
        let wait = plan.look_again.map_or(0, |w| w.as_secs());
        format!("+{} -{} wait {wait} {}", plan.create, plan.delete.len(), kinds.join(" "))
            .trim()
            .into()
    }

    #[test]
    fn jobs_run_to_their_end() {
        let five = || json!({"completions": 5, "parallelism": 2});
        let restarting = |limit: i32| {
            let template = json!({"spec": {"restartPolicy": "OnFailure"}});
            json!({"backoffLimit": limit, "template": template})
        };
        for (spec, status, pods, expected) in [
            (five(), json!({}), "", "+2 -0 wait 0"),
            (five(), json!({"succeeded": 4}), "ssss", "+1 -0 wait 0"),
            (five(), json!({"succeeded": 5}), "sssss", "+0 -0 wait 0 SuccessCriteriaMet Complete"),
            (five(), json!({"failed": 1}), "rf", "+0 -0 wait 5"),
            (five(), json!({"failed": 2}), "rff", "+0 -0 wait 15"),
            (five(), json!({"failed": 7}), "rf", "+0 -1 wait 0 FailureTarget"),
            (five(), json!({"failed": 7}), "df", "+0 -0 wait 0 FailureTarget"),
            (five(), json!({"failed": 7}), "ff", "+0 -0 wait 0 FailureTarget Failed"),
            (json!({"parallelism": 2}), json!({"succeeded": 1}), "sr", "+0 -0 wait 0"),
            (
                json!({"parallelism": 2}),
                json!({"succeeded": 2}),
                "ss",
                "+0 -0 wait 0 SuccessCriteriaMet Complete",
            ),
            (json!({"parallelism": 1}), json!({}), "rr", "+0 -1 wait 0"),
            (json!({"suspend": true}), json!({}), "r", "+0 -1 wait 0 Suspended"),
            (json!({"activeDeadlineSeconds": 300}), json!({}), "r", "+0 -1 wait 1 FailureTarget"),
            (
                json!({"activeDeadlineSeconds": i64::MAX}),
                json!({}),
                "r",
                "+0 -0 wait 9223372036854774808",
            ),
            (restarting(2), json!({}), "R", "+0 -1 wait 0 FailureTarget"),
            (restarting(3), json!({}), "R", "+0 -0 wait 0"),
            (restarting(0), json!({}), "r", "+0 -0 wait 0"),
        ] {
            assert_eq!(run(spec.clone(), status, pods), expected, "{spec} {pods}");
        }
    }

    #[test]
    fn a_pod_that_is_deleted_before_its_end_is_a_failure() {
        let job: Job =
            serde_json::from_value(json!({"metadata": {"name": "j"}, "spec": {}})).unwrap();
        let pod = |phase: &str, deleting: bool| {
            let mut pod = json!({
                "metadata": {"name": "p", "uid": "p", "finalizers": [FINALIZER]},
                "spec": {}, "status": {"phase": phase},
            });
            if deleting {
                pod["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:00:00Z");
            }
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let ended = |phase, deleting| {
            newly_ended(&job, &[pod(phase, deleting)]).map(|n| (n.succeeded.len(), n.failed.len()))
        };
        assert_eq!(ended("Pending", false), None);
        assert_eq!(ended("Pending", true), Some((0, 1)));
        assert_eq!(ended("Running", true), Some((0, 1)));
        assert_eq!(ended("Failed", false), Some((0, 1)));
        assert_eq!(ended("Succeeded", true), Some((1, 0)));
    }
}
