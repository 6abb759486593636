//! The steps of a pod's plan, done beside its worker, and what their results change. The effectful
//! half of the worker.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use monitor::protocol::ContainerState;
use tracing::{debug, info, warn};

use crate::connection::chain;
use crate::context::Context;
use crate::events::Kind;
use crate::pod::ended::now;
use crate::pod::plan::{Step, Why};
use crate::pod::start::{Start, StartFailure, Started};
use crate::pod::state::{
    Backoff, Ended, KillReason, Life, Sandbox as SandboxState, Waiting, signed,
};
use crate::pod::stop::{Stop, parse_signal};
use crate::pod::worker::{Done, Input, Worker};
use crate::pod::{container, rootfs, sandbox, spec};
use crate::probe::{self, Target};
use crate::volume;

/// A configuration that can't be used is looked at again after this (kubelet's sync period).
const CONFIG_RETRY: SignedDuration = SignedDuration::from_secs(10);
/// How long `ErrImagePull` is shown before it becomes `ImagePullBackOff`.
const PULL_ERROR_SHOWN: SignedDuration = SignedDuration::from_secs(2);
/// A sandbox that could not be made is tried again after this, doubled up to the maximum
/// (Kubernetes 1.36, volume operations' back-off).
const SANDBOX_RETRY_FIRST: Duration = Duration::from_millis(500);
const SANDBOX_RETRY_MAX: Duration = Duration::from_secs(122);
const REMOVE_RETRY: Duration = Duration::from_secs(1);
const POST_START_MAX: Duration = Duration::from_secs(3600);

impl Worker {
    pub(crate) fn apply(&mut self, step: Step, now: Timestamp) {
        match step {
            Step::PrepareSandbox => self.prepare_sandbox(),
            Step::Start { container, restart } => self.start(&container, restart, now),
            Step::Kill { container, why, grace_seconds } => {
                self.stop(&container, why, grace_seconds, false);
            }
            Step::RemoveSandbox => self.remove_sandbox(),
        }
    }

    fn prepare_sandbox(&mut self) {
        self.observed.sandbox = SandboxState::Preparing;
        let (context, pod) = (self.context.clone(), self.pod.clone());
        let (references, pod_dir) = (self.references.clone(), self.pod_dir());
        self.ops.push(Box::pin(async move {
            let host_ips = context.host_ips();
            let sandbox = async {
                make_sandbox(&context, &pod, (&host_ips, &pod_dir))
                    .await
                    .map_err(|error| format!("Failed to create pod sandbox: {}", chain(&error)))
            };
            let volumes = async {
                references.ready().await;
                let facts = context.node_facts();
                volume::ensure(&volume::Inputs {
                    pod: &pod,
                    pod_dir: &pod_dir,
                    objects: &references,
                    tokens: &context.tokens,
                    pod_ips: &[],
                    node: &facts,
                })
                .await
                .map_err(|error| error.to_string())
            };
            Done::Sandbox(futures::try_join!(sandbox, volumes))
        }));
    }

    fn start(&mut self, name: &str, restart: bool, at: Timestamp) {
        let Some(container) =
            self.pod.spec.as_ref().and_then(|spec| spec::find_container(spec, name)).cloned()
        else {
            return;
        };
        let Some(sandbox) = self.sandbox.clone() else { return };
        let observed = self.observed.containers.entry(name.to_owned()).or_default();
        if let Life::Exited(end) = &observed.life {
            observed.backoff = Some(Backoff::next(observed.backoff, end.finished_at, at));
            observed.last = Some(end.clone());
            observed.restarts += 1;
        }
        let first_of_pair = observed.restarts.checked_sub(2);
        observed.life = Life::Starting;
        observed.retry_at = None;
        observed.tried = true;
        observed.kill = None;
        observed.started = false;
        observed.ready = false;
        let attempt = observed.restarts;
        debug!(pod = %spec::describe(&self.pod), container = name, attempt, restart, "starting");
        let start = Start {
            context: self.context.clone(),
            pod: self.pod.clone(),
            container,
            attempt,
            sandbox,
            mounted: self.mounted.clone(),
            references: self.references.clone(),
            pod_dir: self.pod_dir(),
        };
        let cancel = self.tasks.entry(name.to_owned()).or_default().pull.clone();
        let container = name.to_owned();
        self.ops.push(Box::pin(async move {
            let result = start.run(cancel).await;
            Done::Started { container, result }
        }));
        if let Some(old) = first_of_pair {
            self.forget_attempt(name, old);
        }
    }

    /// Two attempts are kept: the current one and the one before it.
    fn forget_attempt(&mut self, name: &str, attempt: u32) {
        let context = self.context.clone();
        let (uid, name) = (spec::uid(&self.pod).to_owned(), name.to_owned());
        let log = container::log_path(&context.config, &self.pod, &name, attempt);
        let dir = self.pod_dir().join("containers").join(&name).join(attempt.to_string());
        self.ops.push(Box::pin(async move {
            let pods = context.engine.list().await.unwrap_or_default();
            let own = pods.get(&uid).into_iter().flatten();
            for state in own.filter(|s| s.name == name && s.attempt <= attempt) {
                if let Err(error) = context.engine.delete(&state.id).await {
                    warn!(id = %state.id, error = %chain(&error), "an old container was not deleted");
                }
            }
            remove_logs(&log);
            if let Err(error) = rootfs::remove(&dir) {
                warn!(error = %chain(&error), "an old container's folder was not removed");
            }
            Done::Nothing
        }));
    }

    pub(crate) fn target(&self, name: &str, id: &str) -> Option<Target> {
        let container = spec::find_container(self.pod.spec.as_ref()?, name)?.clone();
        Some(Target {
            engine: self.context.engine.clone(),
            id: id.to_owned(),
            ip: self.sandbox.as_ref().and_then(|sandbox| sandbox.ips.first().copied()),
            container,
        })
    }

    pub(crate) fn stop(&mut self, name: &str, why: Why, grace_seconds: i64, again: bool) {
        let Some(observed) = self.observed.containers.get_mut(name) else { return };
        let (Life::Running { id, started_at } | Life::Stopping { id, started_at }) = &observed.life
        else {
            return;
        };
        let (id, started_at) = (id.clone(), *started_at);
        observed.life = Life::Stopping { id: id.clone(), started_at };
        observed.ready = false;
        let Some(target) = self.target(name, &id) else { return };
        let stop = Stop {
            context: self.context.clone(),
            pod: self.pod.clone(),
            target,
            why,
            grace: Duration::from_secs(u64::try_from(grace_seconds).unwrap_or(0)),
            signal: self.stop_signals.get(&id).copied().unwrap_or(libc::SIGTERM),
            again,
        };
        let task = tokio::spawn(stop.run());
        let tasks = self.tasks.entry(name.to_owned()).or_default();
        tasks.probes.drain(..).for_each(|probe| probe.abort());
        if let Some(old) = tasks.stop.replace(task.abort_handle()) {
            old.abort();
        }
    }

    /// The grace was shortened while containers were being stopped.
    pub(crate) fn stop_sooner(&mut self, grace_seconds: i64) {
        let all = self.observed.containers.iter();
        let stopping: Vec<String> = all
            .filter(|(_, container)| matches!(container.life, Life::Stopping { .. }))
            .map(|(name, _)| name.clone())
            .collect();
        for name in stopping {
            self.stop(&name, Why::PodEnds, grace_seconds, true);
        }
    }

    fn remove_sandbox(&mut self) {
        self.observed.sandbox = SandboxState::Removing;
        let (context, pod, pod_dir) = (self.context.clone(), self.pod.clone(), self.pod_dir());
        self.ops.push(Box::pin(async move {
            let result = async {
                let init = sandbox::init_id(&pod);
                context.engine.delete(&init).await.map_err(|error| chain(&error))?;
                if !spec::host_network(&pod) {
                    context.netd.detach(spec::uid(&pod)).await.map_err(|error| chain(&error))?;
                }
                volume::remove(&pod_dir).map_err(|error| chain(&error))?;
                sandbox::remove(&context.config, &pod).map_err(|error| chain(&error))
            };
            let result = result.await;
            if result.is_err() {
                tokio::time::sleep(REMOVE_RETRY).await;
            }
            Done::SandboxRemoved(result)
        }));
    }

    pub(crate) fn refresh_volumes(&mut self) {
        if self.refreshing || self.observed.sandbox != SandboxState::Ready {
            return;
        }
        self.refreshing = true;
        let (context, pod) = (self.context.clone(), self.pod.clone());
        let (references, pod_dir) = (self.references.clone(), self.pod_dir());
        self.ops.push(Box::pin(async move {
            let facts = context.node_facts();
            let inputs = volume::Inputs {
                pod: &pod,
                pod_dir: &pod_dir,
                objects: &references,
                tokens: &context.tokens,
                pod_ips: &[],
                node: &facts,
            };
            Done::Refreshed(volume::ensure(&inputs).await.map_err(|error| error.to_string()))
        }));
    }

    /// What a missing object held back may go on now.
    pub(crate) fn retry_configuration(&mut self) {
        for container in self.observed.containers.values_mut() {
            let config = container
                .waiting
                .as_ref()
                .is_some_and(|waiting| waiting.reason == "CreateContainerConfigError");
            if config {
                container.retry_at = None;
            }
        }
        self.observed.sandbox_retry_at = None;
    }

    /// Takes a result in. True when the worker is done.
    pub(crate) fn take_done(&mut self, done: Done) -> bool {
        match done {
            Done::Sandbox(result) => self.take_sandbox(result),
            Done::Started { container, result } => self.take_started(&container, result),
            Done::HookFailed { container, id, why } => {
                self.take_hook_failure(&container, &id, &why)
            }
            Done::Refreshed(result) => {
                self.refreshing = false;
                match result {
                    Ok(mounted) => self.mounted = mounted,
                    Err(why) => {
                        warn!(pod = %spec::describe(&self.pod), why, "volumes were not refreshed");
                        self.mounted.refresh_at = Some(now() + CONFIG_RETRY);
                    }
                }
            }
            Done::SandboxRemoved(Ok(())) => self.observed.sandbox = SandboxState::Gone,
            Done::SandboxRemoved(Err(why)) => {
                warn!(pod = %spec::describe(&self.pod), why, "the sandbox was not removed");
                self.observed.sandbox = SandboxState::Ready;
            }
            Done::Written(written) => self.take_written(written),
            Done::Finished => return true,
            Done::Nothing => {}
        }
        false
    }

    fn take_sandbox(&mut self, result: Result<(sandbox::Sandbox, volume::Mounted), String>) {
        match result {
            Ok((sandbox, mounted)) => {
                info!(pod = %spec::describe(&self.pod), ips = ?sandbox.ips, "the sandbox is ready");
                self.sandbox = Some(sandbox);
                self.mounted = mounted;
                self.sandbox_failures = 0;
                self.observed.sandbox = SandboxState::Ready;
                self.watch_adopted();
            }
            Err(message) => {
                warn!(pod = %spec::describe(&self.pod), message, "no sandbox");
                let volume = message.starts_with("MountVolume");
                let reason = if volume { "FailedMount" } else { "FailedCreatePodSandBox" };
                self.context.recorder.pod(&self.pod, None, (Kind::Warning, reason), message);
                let delay = SANDBOX_RETRY_FIRST
                    .saturating_mul(1 << self.sandbox_failures.min(8))
                    .min(SANDBOX_RETRY_MAX);
                self.sandbox_failures += 1;
                // What was made so far is taken down if the pod ends now.
                let ends = self.observed.terminate.is_some();
                self.observed.sandbox =
                    if ends { SandboxState::Ready } else { SandboxState::Absent };
                self.observed.sandbox_retry_at = Some(Timestamp::now() + signed(delay));
            }
        }
    }

    fn take_started(&mut self, name: &str, result: Result<Started, StartFailure>) {
        let describe = spec::describe(&self.pod);
        let Some(container) = self.observed.containers.get_mut(name) else { return };
        match result {
            Ok(started) => {
                info!(pod = %describe, container = name, id = %started.id, "a container runs");
                container.image = started.image;
                container.image_id = started.image_id;
                container.waiting = None;
                container.waiting_next = None;
                container.pull_backoff = None;
                container.life =
                    Life::Running { id: started.id.clone(), started_at: started.started_at };
                self.stop_signals.insert(
                    started.id.clone(),
                    started.stop_signal.as_deref().map_or(libc::SIGTERM, parse_signal),
                );
                self.watch_container(name, &started.id, true);
                if let Some(state) = started.ended {
                    // It ended before anybody listened for it.
                    self.tell_exit(state);
                }
            }
            Err(StartFailure::Image(first, then)) => {
                let at = Timestamp::now();
                let entry = Backoff::next(container.pull_backoff, at, at);
                container.pull_backoff = Some(entry);
                container.life = Life::Absent;
                container.retry_at = Some(at + signed(entry.delay));
                let shown_again = container.waiting.as_ref() == Some(&then);
                container.waiting_next = Some((at + PULL_ERROR_SHOWN, then));
                container.waiting = Some(first);
                if !shown_again {
                    let image = spec::find_container_image(&self.pod, name);
                    let event = (Kind::Normal, "BackOff");
                    let message = format!("Back-off pulling image {image:?}");
                    self.context.recorder.pod(&self.pod, Some(name), event, message);
                }
            }
            Err(StartFailure::Config(waiting)) => {
                container.life = Life::Absent;
                container.retry_at = Some(Timestamp::now() + CONFIG_RETRY);
                container.waiting = Some(waiting);
            }
            Err(StartFailure::Cancelled) => {
                container.life = Life::Absent;
            }
            Err(StartFailure::Run { id, message, image, image_id }) => {
                warn!(pod = %describe, container = name, message, "a container can't run");
                container.image = image;
                container.image_id = image_id;
                container.waiting = Some(Waiting::new("RunContainerError", message.clone()));
                container.life = Life::Exited(Ended {
                    id,
                    code: 128,
                    signal: None,
                    reason: "StartError".into(),
                    message,
                    started_at: None,
                    finished_at: now(),
                });
            }
        }
    }

    fn tell_exit(&mut self, state: Box<ContainerState>) {
        let tell = self.tell.clone();
        self.ops.push(Box::pin(async move {
            // The worker itself holds the other end.
            tell.send(Input::Exited(state)).await.ok();
            Done::Nothing
        }));
    }

    /// Probes and hook of a container that runs now.
    fn watch_container(&mut self, name: &str, id: &str, fresh: bool) {
        let Some(target) = self.target(name, id) else { return };
        let container = &target.container;
        let Some(observed) = self.observed.containers.get_mut(name) else { return };
        if fresh {
            observed.started = container.startup_probe.is_none();
            observed.ready = container.readiness_probe.is_none();
        }
        let Life::Running { started_at, .. } = observed.life else { return };
        let started = observed.started;
        let hook = container.lifecycle.as_ref().and_then(|all| all.post_start.clone());
        if let Some(hook) = hook.filter(|_| fresh) {
            let (target, container, id) = (target.clone(), name.to_owned(), id.to_owned());
            self.ops.push(Box::pin(async move {
                match probe::run_hook(&hook, &target, POST_START_MAX).await {
                    Ok(()) => Done::Nothing,
                    Err(error) => Done::HookFailed { container, id, why: error.to_string() },
                }
            }));
        }
        let kinds: &[probe::Kind] = if started {
            &[probe::Kind::Liveness, probe::Kind::Readiness]
        } else {
            &[probe::Kind::Startup]
        };
        let tasks = self.tasks.entry(name.to_owned()).or_default();
        tasks.probes.drain(..).for_each(|old| old.abort());
        for kind in kinds {
            let task =
                probe::spawn(*kind, target.clone(), started_at, self.tell.clone(), Input::Probe);
            tasks.probes.extend(task);
        }
    }

    /// Containers found running at the agent's start get their probes back, once there is an address to probe.
    fn watch_adopted(&mut self) {
        let running: Vec<(String, String)> = self
            .observed
            .containers
            .iter()
            .filter_map(|(name, container)| match &container.life {
                Life::Running { id, .. } if !self.is_watched(name) => {
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

    fn take_hook_failure(&mut self, name: &str, id: &str, why: &str) {
        let current = self.observed.containers.get_mut(name);
        let Some(container) =
            current.filter(|c| matches!(&c.life, Life::Running { id: have, .. } if have == id))
        else {
            return;
        };
        container.kill = Some(KillReason::PostStartHook(why.to_owned()));
        let event = (Kind::Warning, "FailedPostStartHook");
        self.context.recorder.pod(&self.pod, Some(name), event, "PostStartHook failed");
    }

    pub(crate) fn take_probe(&mut self, report: probe::Report) {
        let name = report.container.as_str();
        let Some(container) = self.observed.containers.get_mut(name) else { return };
        if !matches!(&container.life, Life::Running { id, .. } if *id == report.id) {
            return;
        }
        if let Some(failure) = &report.failure {
            let message = format!("{} probe failed: {failure}", report.kind.title());
            let event = (Kind::Warning, "Unhealthy");
            self.context.recorder.pod(&self.pod, Some(name), event, message);
        }
        if let Some(warning) = &report.warning {
            let message = format!("{} probe warning: {warning}", report.kind.title());
            let event = (Kind::Warning, "ProbeWarning");
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

    /// The root of a container that has ended is of no more use; its record stays for the logs.
    pub(crate) fn release_root(&mut self, state: &ContainerState) {
        let Some(dir) = state.annotations.get(container::ATTEMPT_DIR) else { return };
        let dir = std::path::PathBuf::from(dir);
        self.ops.push(Box::pin(async move {
            for part in ["sub-paths", "rootfs", "upper", "work"] {
                if let Err(error) = volume::remove(&dir.join(part)) {
                    debug!(error = %chain(&error), "a root is still busy");
                }
            }
            Done::Nothing
        }));
    }

    /// Everything that outlives the pod's processes: records, logs, checkpoint, the API object.
    pub(crate) fn finalize(&self) -> impl Future<Output = ()> + Send + 'static {
        let (context, pod) = (self.context.clone(), self.pod.clone());
        let (origin, gone) = (self.origin.clone(), self.gone);
        async move {
            if !gone {
                crate::pod::report::delete_from_api(&context, &pod, &origin).await;
            }
            let uid = spec::uid(&pod).to_owned();
            let pods = context.engine.list().await.unwrap_or_default();
            for state in pods.get(&uid).into_iter().flatten() {
                if let Err(error) = context.engine.delete(&state.id).await {
                    warn!(id = %state.id, error = %chain(&error), "a container was not deleted");
                }
            }
            let logs = container::log_dir(&context.config, &pod);
            for dir in [logs, context.config.pods_dir().join(&uid)] {
                if let Err(error) = volume::remove(&dir) {
                    warn!(error = %chain(&error), "a folder of a pod was not removed");
                }
            }
            context.tokens.forget(&pod);
            context.checkpoint.remove_pod(&uid);
            info!(pod = %spec::describe(&pod), "the pod is gone");
        }
    }
}

async fn make_sandbox(
    context: &Context,
    pod: &Pod,
    (host_ips, pod_dir): (&[IpAddr], &Path),
) -> Result<sandbox::Sandbox, sandbox::SandboxError> {
    let mut made = sandbox::ensure(&context.config, &context.netd, pod, host_ips).await?;
    sandbox::ensure_init(&context.engine.runtime, pod, &mut made).await?;
    sandbox::write_name_files(&context.config, pod, &made, pod_dir)?;
    Ok(made)
}

/// An attempt's log and what was rotated away from it (`0.log`, `0.log.20260101-…`).
fn remove_logs(log: &Path) {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|n| n.to_str())) else {
        return;
    };
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let file = entry.file_name();
        let own = file.to_str().is_some_and(|file| {
            file == name || file.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))
        });
        if own && let Err(error) = std::fs::remove_file(entry.path()) {
            warn!(path = %entry.path().display(), %error, "an old log was not removed");
        }
    }
}
