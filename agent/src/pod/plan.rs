//! The next steps of a pod: a pure function of its spec, what is observed, and the time. Level,
//! not edge: called after every event, it says what is still missing.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::pod::spec::{self, RestartPolicy};
use crate::pod::state::{Backoff, ContainerObserved, KillReason, Life, Observed, Sandbox, Waiting};

/// kubelet's least time for a container to end, whatever is left of the pod's grace.
const GRACE_MIN_SECONDS: i64 = 2;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Namespaces, network, cgroup and volumes.
    PrepareSandbox,
    Start {
        container: String,
        restart: bool,
    },
    Kill {
        container: String,
        why: Why,
        grace_seconds: i64,
    },
    /// All processes are gone: network, volumes and cgroup may go.
    RemoveSandbox,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Why {
    PodEnds,
    Reason(KillReason),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    /// Plan again then, even if nothing happens.
    pub(crate) wake_at: Option<Timestamp>,
    /// Containers held back by back-off, with what their status says.
    pub(crate) held_back: Vec<(String, Waiting)>,
    /// Nothing will ever run again and nothing of the pod is left in the kernel.
    pub(crate) finished: bool,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |have| have.min(at)));
    }
}

pub(crate) fn plan_pod(pod: &Pod, observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &pod.spec else { return plan };
    if observed.terminate.is_some() || is_over(spec, observed) {
        plan_end(spec, observed, now, &mut plan);
        return plan;
    }
    deadline(pod, spec, &mut plan);
    match observed.sandbox {
        Sandbox::Ready => {
            plan_kills(spec, observed, &mut plan);
            plan_starts(pod, spec, observed, now, &mut plan);
        }
        Sandbox::Absent => match observed.sandbox_retry_at {
            Some(at) if at > now => plan.wake(at),
            _ => plan.steps.push(Step::PrepareSandbox),
        },
        Sandbox::Preparing | Sandbox::Removing | Sandbox::Gone => {}
    }
    plan
}

/// `activeDeadlineSeconds` counts from the pod's start; the worker turns it into a `Terminate`.
fn deadline(pod: &Pod, spec: &PodSpec, plan: &mut Plan) {
    let start = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    if let (Some(seconds), Some(start)) = (spec.active_deadline_seconds, start)
        && let Ok(at) = start.0.checked_add(SignedDuration::from_secs(seconds))
    {
        plan.wake(at);
    }
}

fn of<'a>(observed: &'a Observed, name: &str) -> std::borrow::Cow<'a, ContainerObserved> {
    observed.containers.get(name).map_or_else(
        || std::borrow::Cow::Owned(ContainerObserved::default()),
        std::borrow::Cow::Borrowed,
    )
}

/// Whether a container that ended so is started again.
pub(crate) fn restarts(spec: &PodSpec, container: &Container, code: i32) -> bool {
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.iter().flatten().any(|value| *value == code);
        if listed == (codes.operator == "In") {
            return rule.action == "Restart";
        }
    }
    let policy = match container.restart_policy.as_deref() {
        Some("Always") => RestartPolicy::Always,
        Some("OnFailure") => RestartPolicy::OnFailure,
        Some("Never") => RestartPolicy::Never,
        _ => spec::restart_policy(spec),
    };
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => code != 0,
        RestartPolicy::Never => false,
    }
}

/// An init container has only "again until it succeeds" or not.
fn init_restarts(spec: &PodSpec, container: &Container, code: i32) -> bool {
    spec::is_sidecar(container)
        || (code != 0
            && match container.restart_policy.as_deref() {
                Some("Never") => restarts(spec, container, code),
                _ => spec::restart_policy(spec) != RestartPolicy::Never,
            })
}

/// Whether a container of the pod, init or not, is started again after such an end.
fn goes_on(spec: &PodSpec, container: &Container, code: i32) -> bool {
    let init = spec::init_containers(spec).iter().any(|init| init.name == container.name);
    if init { init_restarts(spec, container, code) } else { restarts(spec, container, code) }
}

/// Whether it must not run twice: what an end nobody saw (137) leaves ended.
pub(crate) fn runs_once(spec: &PodSpec, container: &Container) -> bool {
    !goes_on(spec, container, 137)
}

/// Whether such an end is kept over a reboot. Init containers that succeeded run again then, as
/// kubelet's do for a new sandbox, unless they are of those that run once.
pub(crate) fn is_kept(spec: &PodSpec, container: &Container, code: i32) -> bool {
    let init = !spec.containers.iter().any(|main| main.name == container.name);
    !goes_on(spec, container, code) && (!init || runs_once(spec, container))
}

/// Whether a container that has ended stays so: by its policy, or since its pod ends.
pub(crate) fn stays_ended(spec: &PodSpec, observed: &Observed, container: &Container) -> bool {
    let state = of(observed, &container.name);
    state.exited().is_some_and(|end| {
        let again = state.again || goes_on(spec, container, end.code);
        !again || observed.terminate.is_some() || is_over(spec, observed)
    })
}

/// Whether an init container has failed for good.
pub(crate) fn init_failed(spec: &PodSpec, observed: &Observed) -> bool {
    spec::init_containers(spec).iter().any(|container| {
        of(observed, &container.name)
            .exited()
            .is_some_and(|end| end.code != 0 && !init_restarts(spec, container, end.code))
    })
}

/// Whether every container of the pod has ended for good.
pub(crate) fn is_over(spec: &PodSpec, observed: &Observed) -> bool {
    init_failed(spec, observed) || mains_over(spec, observed)
}

/// Whether the pod's own containers, init ones aside, have ended for good.
pub(crate) fn mains_over(spec: &PodSpec, observed: &Observed) -> bool {
    let mut all = spec.containers.iter();
    !spec.containers.is_empty()
        && all.all(|container| is_done(spec, container, &of(observed, &container.name)))
}

fn is_done(spec: &PodSpec, container: &Container, state: &ContainerObserved) -> bool {
    !state.again && state.exited().is_some_and(|end| !restarts(spec, container, end.code))
}

/// A pod whose containers have been started once doesn't run its init containers again.
pub(crate) fn has_initialized(spec: &PodSpec, observed: &Observed) -> bool {
    spec.containers.iter().any(|container| {
        let container = of(observed, &container.name);
        container.tried || !container.idle()
    })
}

fn plan_kills(spec: &PodSpec, observed: &Observed, plan: &mut Plan) {
    let grace_seconds = spec.termination_grace_period_seconds.unwrap_or(30);
    for (name, container) in &observed.containers {
        let (Some(reason), Life::Running { .. }) = (&container.kill, &container.life) else {
            continue;
        };
        let grace_seconds = probe_grace(spec, name, reason).unwrap_or(grace_seconds);
        let why = Why::Reason(reason.clone());
        plan.steps.push(Step::Kill { container: name.clone(), why, grace_seconds });
    }
}

fn probe_grace(spec: &PodSpec, name: &str, reason: &KillReason) -> Option<i64> {
    let container = spec::find_container(spec, name)?;
    let probe = match reason {
        KillReason::Probe("startup") => container.startup_probe.as_ref(),
        KillReason::Probe(_) => container.liveness_probe.as_ref(),
        KillReason::PostStartHook(_) | KillReason::Changed => None,
    };
    probe?.termination_grace_period_seconds
}

fn plan_starts(pod: &Pod, spec: &PodSpec, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    let initialized = has_initialized(spec, observed);
    for container in spec::init_containers(spec) {
        let sidecar = spec::is_sidecar(container);
        if initialized && !sidecar {
            continue;
        }
        let state = of(observed, &container.name);
        let passed = match &state.life {
            Life::Running { .. } => sidecar && state.started,
            Life::Exited(end) => !sidecar && end.code == 0,
            _ => false,
        };
        if !passed {
            plan_start(pod, container, &state, now, plan);
            if !initialized {
                return;
            }
        }
        if holds_others(container, &state, plan) {
            return;
        }
    }
    for container in &spec.containers {
        let state = of(observed, &container.name);
        if !is_done(spec, container, &state) {
            plan_start(pod, container, &state, now, plan);
        }
        if holds_others(container, &state, plan) {
            return;
        }
    }
}

/// With a `postStart` hook a container's start isn't over before the hook is; until then those
/// listed after it wait.
fn holds_others(container: &Container, state: &ContainerObserved, plan: &Plan) -> bool {
    let hook = container.lifecycle.as_ref().is_some_and(|all| all.post_start.is_some());
    let begins = |step: &Step| matches!(step, Step::Start { container: name, .. } if *name == container.name);
    hook && (state.hook || state.life == Life::Starting || plan.steps.iter().any(begins))
}

fn plan_start(
    pod: &Pod,
    container: &Container,
    state: &ContainerObserved,
    now: Timestamp,
    plan: &mut Plan,
) {
    if !state.idle() {
        return;
    }
    if let Some(at) = state.retry_at.filter(|at| *at > now) {
        plan.wake(at);
        return;
    }
    let name = &container.name;
    if let Some(end) = state.exited()
        && let Some(until) = Backoff::until(state.backoff, end.finished_at).filter(|t| *t > now)
    {
        plan.wake(until);
        let delay = state.backoff.map_or(Duration::ZERO, |entry| entry.delay);
        let message = format!(
            "back-off {} restarting failed container={name} pod={}",
            go_duration(delay),
            spec::describe(pod)
        );
        plan.held_back.push((name.clone(), Waiting::new("CrashLoopBackOff", message)));
        return;
    }
    let restart = state.exited().is_some();
    plan.steps.push(Step::Start { container: name.clone(), restart });
}

/// The pod ends: its containers first, all at once; then sidecars, last one first; then the rest.
fn plan_end(spec: &PodSpec, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    let grace_seconds = match &observed.terminate {
        Some(end) => {
            let passed = now.duration_since(end.since).as_secs();
            end.grace_seconds.saturating_sub(passed).max(GRACE_MIN_SECONDS.min(end.grace_seconds))
        }
        None => spec.termination_grace_period_seconds.unwrap_or(30),
    };
    let kill = |name: &str, plan: &mut Plan| {
        let state = of(observed, name);
        if let Life::Running { .. } = state.life {
            let why = Why::PodEnds;
            plan.steps.push(Step::Kill { container: name.to_owned(), why, grace_seconds });
        }
        !state.idle()
    };
    let sidecars: Vec<&Container> =
        spec::init_containers(spec).iter().filter(|c| spec::is_sidecar(c)).collect();
    let is_last = |name: &str| sidecars.iter().any(|sidecar| sidecar.name == name);
    let mut alive = false;
    for name in observed.containers.keys().filter(|name| !is_last(name)) {
        alive |= kill(name, plan);
    }
    for sidecar in sidecars.iter().rev() {
        if alive {
            break;
        }
        alive = kill(&sidecar.name, plan);
    }
    if alive {
        return;
    }
    match observed.sandbox {
        // What wasn't made, or not by this life of the agent, may be there in part.
        Sandbox::Ready | Sandbox::Absent => plan.steps.push(Step::RemoveSandbox),
        Sandbox::Gone => plan.finished = true,
        Sandbox::Preparing | Sandbox::Removing => {}
    }
}

/// `10s`, `1m20s`, `5m0s`: Go's way to write a duration of whole seconds.
pub(crate) fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
