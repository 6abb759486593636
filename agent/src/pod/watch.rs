//! Probes and hooks of a pod's running containers: begun with them, heard here, ended with them.

use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use monitor::protocol::ContainerState;

use crate::events::Kind;
use crate::pod::state::{ContainerObserved, KillReason, Life};
use crate::pod::stop::parse_signal;
use crate::pod::worker::{Done, Input, Worker};
use crate::pod::{container, spec};
use crate::probe;

const POST_START_MAX: Duration = Duration::from_secs(3600);

impl Worker {
    /// Probes and hook of a container that runs now.
    pub(crate) fn watch_container(&mut self, name: &str, id: &str, fresh: bool) {
        let Some(target) = self.target(name, id) else { return };
        let container = &target.container;
        let Some(observed) = self.observed.containers.get_mut(name) else { return };
        let hook = container.lifecycle.as_ref().and_then(|all| all.post_start.clone());
        if let Some(hook) = hook.filter(|_| fresh) {
            observed.hook = true;
            let (target, container, id) = (target.clone(), name.to_owned(), id.to_owned());
            self.ops.push(Box::pin(async move {
                let result = probe::run_hook(&hook, &target, POST_START_MAX).await;
                Done::Hook { container, id, result: result.map_err(|error| error.to_string()) }
            }));
            return;
        }
        if fresh {
            begin(observed, container);
        }
        let Life::Running { started_at, .. } = observed.life else { return };
        let started = observed.started;
        let kinds: &[probe::Kind] = if started {
            &[probe::Kind::Liveness, probe::Kind::Readiness]
        } else {
            &[probe::Kind::Startup]
        };
        let tasks = self.tasks.entry(name.to_owned()).or_default();
        tasks.keep_probes(|_| false);
        for kind in kinds {
            let task =
                probe::spawn(*kind, target.clone(), started_at, self.tell.clone(), Input::Probe);
            tasks.probes.extend(task.map(|task| (*kind, task)));
        }
    }

    /// Containers found running at the agent's start get their probes back, once there is an address to probe.
    pub(crate) fn watch_adopted(&mut self) {
        let running: Vec<(String, String)> = self
            .observed
            .containers
            .iter()
            .filter_map(|(name, container)| match &container.life {
                Life::Running { id, .. } if !container.hook && !self.is_watched(name) => {
                    Some((name.clone(), id.clone()))
                }
                _ => None,
            })
            .collect();
        for (name, id) in running {
            self.watch_container(&name, &id, false);
        }
    }

    fn is_watched(&self, name: &str) -> bool {
        self.tasks.get(name).is_some_and(|tasks| !tasks.probes.is_empty())
    }

    pub(crate) fn remember_signals(&mut self, found: &[ContainerState]) {
        for state in found {
            if let Some(signal) = state.annotations.get(container::STOP_SIGNAL) {
                self.stop_signals.insert(state.id.clone(), parse_signal(signal));
            }
        }
    }

    /// The hook is through: from here on the container counts as started, or is ended for it.
    pub(crate) fn take_hook(&mut self, name: &str, id: &str, result: Result<(), String>) {
        let declared = self.pod.spec.as_ref().and_then(|spec| spec::find_container(spec, name));
        let current = self.observed.containers.get_mut(name);
        let (Some(declared), Some(container)) = (
            declared,
            current.filter(|c| matches!(&c.life, Life::Running { id: have, .. } if have == id)),
        ) else {
            return;
        };
        container.hook = false;
        match result {
            Ok(()) => {
                begin(container, declared);
                self.watch_container(name, id, false);
            }
            Err(why) => {
                container.kill = Some(KillReason::PostStartHook(why));
                let event = (Kind::Warning, "FailedPostStartHook");
                self.context.recorder.pod(&self.pod, Some(name), event, "PostStartHook failed");
            }
        }
    }

    pub(crate) fn take_probe(&mut self, report: probe::Report) {
        let name = report.container.as_str();
        let Some(container) = self.observed.containers.get_mut(name) else { return };
        // What is being stopped is still asked whether it serves.
        let current = match &container.life {
            Life::Running { id, .. } => *id == report.id,
            Life::Stopping { id, .. } => *id == report.id && report.kind == probe::Kind::Readiness,
            _ => false,
        };
        if !current {
            return;
        }
        if let Some(failure) = &report.failure {
            let message = format!("{} probe failed: {failure}", report.kind.title());
            let event = (Kind::Warning, "Unhealthy");
            self.context.recorder.pod(&self.pod, Some(name), event, message);
        }
        match (report.kind, report.verdict) {
            (probe::Kind::Readiness, Some(ready)) => container.ready = ready,
            (probe::Kind::Startup, Some(true)) => {
                container.started = true;
                container.ready = self
                    .pod
                    .spec
                    .as_ref()
                    .and_then(|spec| spec::find_container(spec, name))
                    .is_none_or(|container| container.readiness_probe.is_none());
                let id = report.id.clone();
                self.watch_container(name, &id, false);
            }
            (kind, Some(false)) => container.kill = Some(KillReason::Probe(kind.name())),
            _ => {}
        }
    }
}

/// What holds before any probe has spoken.
fn begin(observed: &mut ContainerObserved, container: &Container) {
    observed.started = container.startup_probe.is_none();
    observed.ready = container.readiness_probe.is_none();
}
