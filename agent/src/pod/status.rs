//! A pod's status as the API shows it: phase, conditions, container states. Pure; transition times
//! are carried over from the status before.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::pod::plan::{self, has_initialized};
use crate::pod::spec;
use crate::pod::state::{ContainerObserved, Ended, Life, Observed, Sandbox, Waiting};

/// Scheme of `containerID`.
pub(crate) const RUNTIME_NAME: &str = "flotilla";

pub(crate) struct Inputs<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) observed: &'a Observed,
    /// The status last written (or read), whose transition times and foreign conditions stay.
    pub(crate) previous: &'a PodStatus,
    pub(crate) pod_ips: &'a [IpAddr],
    pub(crate) host_ips: &'a [IpAddr],
    pub(crate) now: Timestamp,
}

pub(crate) fn status(inputs: &Inputs<'_>) -> PodStatus {
    let Inputs { pod, observed, previous, .. } = inputs;
    let Some(spec) = &pod.spec else { return PodStatus::default() };
    let initialized = is_initialized(spec, observed);
    let waiting_for_init = !spec::init_containers(spec).is_empty() && !initialized;
    let render = |container: &Container, init: bool| {
        render_container((spec, container), observed, waiting_for_init || init, previous)
    };
    let init: Vec<_> = spec::init_containers(spec).iter().map(|c| render(c, true)).collect();
    let mains: Vec<_> = spec.containers.iter().map(|c| render(c, false)).collect();
    let (phase, why) = phase(spec, observed, previous);
    let conditions = conditions(inputs, spec, phase, (&init, &mains));
    let ips = if inputs.pod_ips.is_empty() { Vec::new() } else { inputs.pod_ips.to_vec() };
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        reason: why.as_ref().map(|why| why.reason.clone()).or_else(|| previous.reason.clone()),
        message: why.map(|why| why.message).or_else(|| previous.message.clone()),
        qos_class: Some(spec::qos(pod).name().to_owned()),
        conditions: Some(conditions),
        container_statuses: Some(mains),
        init_container_statuses: (!init.is_empty()).then_some(init),
        observed_generation: pod.metadata.generation,
        host_ip: inputs.host_ips.first().map(ToString::to_string),
        start_time: previous.start_time.clone().or(Some(Time(inputs.now))),
        ..PodStatus::default()
    };
    if !inputs.host_ips.is_empty() {
        let all = inputs.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() });
        status.host_ips = Some(all.collect());
    }
    if !ips.is_empty() {
        status.pod_ip = ips.first().map(ToString::to_string);
        status.pod_ips = Some(ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect());
    }
    status
}

/// Whether every init container has done its part (a sidecar: is started).
fn is_initialized(spec: &PodSpec, observed: &Observed) -> bool {
    has_initialized(spec, observed)
        || plan::mains_over(spec, observed)
        || spec::init_containers(spec).iter().all(|container| {
            observed.containers.get(&container.name).is_some_and(|state| {
                if spec::is_sidecar(container) {
                    state.started
                } else {
                    state.exited().is_some_and(|end| end.code == 0)
                }
            })
        })
}

/// kubelet's `getPhase`.
fn phase(
    spec: &PodSpec,
    observed: &Observed,
    previous: &PodStatus,
) -> (&'static str, Option<Waiting>) {
    match previous.phase.as_deref() {
        Some("Succeeded") => return ("Succeeded", None),
        Some("Failed") => return ("Failed", None),
        _ => {}
    }
    if let Some(end) = &observed.terminate
        && let Some(why) = &end.failed
    {
        return ("Failed", Some(why.clone()));
    }
    if plan::init_failed(spec, observed) {
        let sidecars_idle = observed.containers.values().all(ContainerObserved::idle);
        return (if sidecars_idle { "Failed" } else { "Pending" }, None);
    }
    if !is_initialized(spec, observed) {
        return ("Pending", None);
    }
    let states = || spec.containers.iter().map(|c| observed.containers.get(&c.name));
    let never_started = states().any(|state| {
        state.is_none_or(|s| matches!(s.life, Life::Absent | Life::Starting) && s.last.is_none())
    });
    let over = states().all(|state| state.is_some_and(|s| s.exited().is_some()))
        && (observed.terminate.is_some() || plan::is_over(spec, observed));
    if over {
        let failed =
            states().any(|s| s.and_then(ContainerObserved::exited).is_some_and(|e| e.code != 0));
        let alive = observed.containers.values().any(|state| !state.idle());
        let deleted_while_running = observed.terminate.is_some() && !plan::is_over(spec, observed);
        return match (alive, failed, deleted_while_running) {
            (true, ..) => ("Running", None),
            (false, true, _) => ("Failed", None),
            // Ended by its deletion with code 0: kubelet says Succeeded.
            (false, false, _) => ("Succeeded", None),
        };
    }
    if never_started { ("Pending", None) } else { ("Running", None) }
}

fn render_container(
    (spec, container): (&PodSpec, &Container),
    observed: &Observed,
    waits_for_init: bool,
    previous: &PodStatus,
) -> ContainerStatus {
    let none = ContainerObserved::default();
    let state = observed.containers.get(&container.name).unwrap_or(&none);
    let default_reason = if waits_for_init { "PodInitializing" } else { "ContainerCreating" };
    let waiting = |reason: &str, message: &str| ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: (!message.is_empty()).then(|| message.to_owned()),
        }),
        ..Default::default()
    };
    // A restart under way shows the last end until the new process runs.
    let default_waiting =
        || state.last.as_ref().map_or_else(|| waiting(default_reason, ""), terminated);
    let explicit = state.waiting.as_ref().map(|why| waiting(&why.reason, &why.message));
    let current = match &state.life {
        Life::Absent | Life::Starting => explicit.unwrap_or_else(default_waiting),
        Life::Running { started_at, .. } | Life::Stopping { started_at, .. } => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(Time(*started_at)) }),
            ..Default::default()
        },
        Life::Exited(end) => explicit
            .filter(|_| !plan::stays_ended(spec, observed, container))
            .unwrap_or_else(|| terminated(end)),
    };
    // What waits after an end shows that end as its last state.
    let last = match &state.life {
        Life::Exited(end) if current.waiting.is_some() => Some(end),
        _ => state.last.as_ref(),
    };
    let id = match &state.life {
        Life::Running { id, .. } | Life::Stopping { id, .. } => Some(id),
        Life::Exited(end) => Some(&end.id),
        _ => state.last.as_ref().map(|end| &end.id),
    };
    let old = [&previous.container_statuses, &previous.init_container_statuses]
        .into_iter()
        .flatten()
        .flatten()
        .find(|old| old.name == container.name);
    let image = if state.image.is_empty() {
        container.image.clone().unwrap_or_default()
    } else {
        state.image.clone()
    };
    let image_id = if state.image_id.is_empty() {
        old.map(|old| old.image_id.clone()).unwrap_or_default()
    } else {
        state.image_id.clone()
    };
    let running = matches!(state.life, Life::Running { .. } | Life::Stopping { .. });
    ContainerStatus {
        name: container.name.clone(),
        image,
        image_id,
        container_id: id.filter(|id| !id.is_empty()).map(|id| format!("{RUNTIME_NAME}://{id}")),
        ready: is_ready(container, state, waits_for_init),
        started: Some(running && state.started),
        restart_count: i32::try_from(state.restarts).unwrap_or(i32::MAX),
        state: Some(current),
        last_state: Some(last.map(terminated).unwrap_or_default()),
        resources: running.then(|| container.resources.clone()).flatten(),
        ..Default::default()
    }
}

/// An init container is ready once it has succeeded; the others by their probe.
fn is_ready(container: &Container, state: &ContainerObserved, init: bool) -> bool {
    match &state.life {
        // Probed until its end: what is `serving` while it terminates.
        Life::Running { .. } | Life::Stopping { .. } => state.started && state.ready,
        Life::Exited(end) => init && !spec::is_sidecar(container) && end.code == 0,
        _ => false,
    }
}

fn terminated(end: &Ended) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: (!end.id.is_empty()).then(|| format!("{RUNTIME_NAME}://{}", end.id)),
            exit_code: end.code,
            signal: end.signal,
            reason: Some(end.reason.clone()),
            message: (!end.message.is_empty()).then(|| end.message.clone()),
            started_at: end.started_at.map(Time),
            finished_at: Some(Time(end.finished_at)),
        }),
        ..Default::default()
    }
}

type Verdict = (&'static str, bool, Option<(&'static str, String)>);

fn conditions(
    inputs: &Inputs<'_>,
    spec: &PodSpec,
    phase: &str,
    (init, mains): (&[ContainerStatus], &[ContainerStatus]),
) -> Vec<PodCondition> {
    let over = match phase {
        "Succeeded" => Some("PodCompleted"),
        "Failed" => Some("PodFailed"),
        _ => None,
    };
    let unready: Vec<&str> = mains
        .iter()
        .chain(init.iter().filter(|status| {
            spec::find_container(spec, &status.name).is_some_and(spec::is_sidecar)
        }))
        .filter(|status| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    let initialized: Verdict = if over == Some("PodCompleted") {
        ("Initialized", true, Some(("PodCompleted", String::new())))
    } else if is_initialized(spec, inputs.observed) {
        ("Initialized", true, None)
    } else {
        let names: Vec<&str> =
            init.iter().filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
        let message = format!("containers with incomplete status: [{}]", names.join(" "));
        ("Initialized", false, Some(("ContainersNotInitialized", message)))
    };
    let containers_ready: Verdict = match over {
        Some(reason) => ("ContainersReady", false, Some((reason, String::new()))),
        None if unready.is_empty() => ("ContainersReady", true, None),
        None => {
            let message = format!("containers with unready status: [{}]", unready.join(" "));
            ("ContainersReady", false, Some(("ContainersNotReady", message)))
        }
    };
    let ready = ready_verdict(spec, &containers_ready, inputs.previous);
    let sandbox = matches!(inputs.observed.sandbox, Sandbox::Ready);
    let verdicts = [
        ("PodReadyToStartContainers", sandbox, None),
        initialized,
        ready,
        containers_ready,
        ("PodScheduled", true, None),
    ];
    let mut all: Vec<PodCondition> =
        verdicts.into_iter().map(|verdict| condition(inputs, verdict)).collect();
    for foreign in inputs.previous.conditions.iter().flatten() {
        if !all.iter().any(|own| own.type_ == foreign.type_) {
            all.push(foreign.clone());
        }
    }
    all
}

/// `Ready` asks for the readiness gates beyond what `ContainersReady` asks for.
fn ready_verdict(spec: &PodSpec, containers: &Verdict, previous: &PodStatus) -> Verdict {
    if !containers.1 {
        return ("Ready", false, containers.2.clone());
    }
    let gate_open = |gate: &str| {
        let mut found = previous.conditions.iter().flatten().filter(|c| c.type_ == gate);
        found.any(|condition| condition.status == "True")
    };
    let mut gates = spec.readiness_gates.iter().flatten().map(|gate| &gate.condition_type);
    match gates.find(|gate| !gate_open(gate)) {
        None => ("Ready", true, None),
        Some(gate) => {
            let known = previous.conditions.iter().flatten().any(|c| c.type_ == *gate);
            let message = if known {
                format!("the status of pod readiness gate {gate:?} is not \"True\", but False")
            } else {
                format!("corresponding condition of pod readiness gate {gate:?} does not exist.")
            };
            ("Ready", false, Some(("ReadinessGatesNotReady", message)))
        }
    }
}

fn condition(inputs: &Inputs<'_>, (type_, holds, why): Verdict) -> PodCondition {
    let status = if holds { "True" } else { "False" };
    let old = inputs.previous.conditions.iter().flatten().find(|old| old.type_ == type_);
    let since = old
        .filter(|old| old.status == status)
        .and_then(|old| old.last_transition_time.clone())
        .unwrap_or(Time(inputs.now));
    let (reason, message) = match why {
        Some((reason, message)) => (Some(reason.to_owned()), Some(message)),
        None => (None, None),
    };
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        last_transition_time: Some(since),
        reason,
        message: message.filter(|message| !message.is_empty()),
        observed_generation: inputs.pod.metadata.generation,
        ..Default::default()
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
