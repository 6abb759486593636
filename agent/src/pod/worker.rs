//! One pod's worker: it owns what is observed, asks for the plan after each event, has the steps done
//! beside it, and keeps the status written. Steps live in `work`, the status in `report`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use monitor::protocol::ContainerState;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::context::Context;
use crate::events::Kind;
use crate::objects::{Changes, References};
use crate::pod::container;
use crate::pod::ended;
use crate::pod::memory::{self, Memory, Run, Verdicts};
use crate::pod::plan::{self, Plan, plan_pod};
use crate::pod::registry::Registry;
use crate::pod::report::{Report, Written};
use crate::pod::sandbox::{self, Sandbox};
use crate::pod::spec;
use crate::pod::start::{StartFailure, Started};
use crate::pod::state::{KillReason, Life, Observed, Sandbox as SandboxState, Terminate, Waiting};
use crate::probe;
use crate::volume::Mounted;

/// Events that may wait for one worker.
pub(crate) const INPUTS_MAX: usize = 64;
/// Without any wake-up the worker looks again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// Where a pod came from decides whom its status and its end are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Api,
    /// From the manifests folder; the UID of its mirror on the master, once there is one.
    Static {
        mirror: Option<String>,
    },
}

#[derive(Debug)]
pub(crate) enum Input {
    /// A newer version of the pod.
    Pod(Arc<Pod>),
    /// Nobody wants the pod any more.
    Gone,
    Mirror(Option<String>),
    Exited(Box<ContainerState>),
    Probe(probe::Report),
}

/// Results of steps done beside the worker.
pub(crate) enum Done {
    Sandbox(Result<(Sandbox, Mounted), String>),
    Started { container: String, result: Result<Started, StartFailure> },
    Hook { container: String, id: String, result: Result<(), String> },
    Refreshed(Result<Mounted, String>),
    SandboxRemoved(Result<(), String>),
    Written(Written),
    Finished,
    Nothing,
}

/// What runs for one container beside the worker.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    pub(crate) probes: Vec<(probe::Kind, AbortHandle)>,
    pub(crate) stop: Option<AbortHandle>,
    pub(crate) pull: CancellationToken,
}

impl Tasks {
    pub(crate) fn keep_probes(&mut self, keep: impl Fn(probe::Kind) -> bool) {
        for (_, task) in self.probes.extract_if(.., |(kind, _)| !keep(*kind)) {
            task.abort();
        }
    }
}

pub(crate) struct Worker {
    pub(crate) context: Arc<Context>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) origin: Origin,
    pub(crate) inputs: mpsc::Receiver<Input>,
    pub(crate) tell: mpsc::Sender<Input>,
    pub(crate) observed: Observed,
    pub(crate) sandbox: Option<Sandbox>,
    pub(crate) mounted: Mounted,
    pub(crate) references: Arc<References>,
    pub(crate) changes: Changes,
    pub(crate) ops: FuturesUnordered<BoxFuture<'static, Done>>,
    pub(crate) tasks: HashMap<String, Tasks>,
    pub(crate) report: Report,
    pub(crate) sandbox_failures: u32,
    pub(crate) removal_failures: u32,
    /// What the run folder has of the containers' probes.
    pub(crate) verdicts: Verdicts,
    /// Signals to stop with, by container id.
    pub(crate) stop_signals: HashMap<String, i32>,
    pub(crate) gone: bool,
    pub(crate) refreshing: bool,
    finalizing: bool,
}

impl Worker {
    pub(crate) fn new(
        (context, registry): (Arc<Context>, Arc<Registry>),
        pod: Arc<Pod>,
        origin: Origin,
        (tell, inputs): (mpsc::Sender<Input>, mpsc::Receiver<Input>),
        found: &[ContainerState],
    ) -> Worker {
        let references = Arc::new(context.objects.acquire(&pod));
        let changes = references.changes();
        let logs = container::log_dir(&context.config, &pod);
        let pins = sandbox::run_dir(&context.config, spec::uid(&pod));
        let memory = Memory::load(&context.checkpoint, &pod, &pins);
        let containers = ended::adopt(&pod, found, &logs, &memory);
        let observed = Observed { containers, ..Observed::default() };
        let mut worker = Worker {
            report: Report::new(&pod),
            context,
            registry,
            pod,
            origin,
            inputs,
            tell,
            observed,
            sandbox: None,
            mounted: Mounted::default(),
            references,
            changes,
            ops: FuturesUnordered::new(),
            tasks: HashMap::new(),
            sandbox_failures: 0,
            removal_failures: 0,
            verdicts: memory.verdicts,
            stop_signals: HashMap::new(),
            gone: false,
            refreshing: false,
            finalizing: false,
        };
        worker.remember_signals(found);
        worker.notice_terminal_phase();
        worker.notice_deletion();
        worker
    }

    pub(crate) fn pod_dir(&self) -> PathBuf {
        self.context.config.pods_dir().join(spec::uid(&self.pod))
    }

    /// Runs until the pod is gone from this node and from the master.
    pub(crate) async fn run(mut self) {
        loop {
            let now = Timestamp::now();
            self.notice_deadline(now);
            let plan = plan_pod(&self.pod, &self.observed, now);
            if !plan.steps.is_empty() {
                debug!(pod = %spec::describe(&self.pod), ?plan, "plan");
            }
            self.show_held_back(&plan);
            let again = !plan.steps.is_empty();
            for step in plan.steps {
                self.apply(step, now);
            }
            self.publish();
            self.remember_verdicts();
            if plan.finished && self.finish() {
                return;
            }
            // Steps change what is observed, so the plan is asked for again before waiting.
            if again {
                continue;
            }
            let wake = [plan.wake_at, self.next_waiting(), self.refresh_at()];
            let wake = wake.into_iter().flatten().min();
            if self.wait(wake).await {
                return;
            }
        }
    }

    /// Waits for the next event and takes it in. True when the worker is done.
    async fn wait(&mut self, wake: Option<Timestamp>) -> bool {
        let pause = wake.map_or(LOOK_AGAIN, until);
        tokio::select! {
            input = self.inputs.recv() => match input {
                Some(input) => self.take(input),
                None => return true,
            },
            Some(done) = self.ops.next(), if !self.ops.is_empty() => return self.take_done(done),
            () = self.changes.next() => {
                self.retry_configuration();
                self.refresh_volumes();
            }
            () = tokio::time::sleep(pause) => self.on_time(),
        }
        false
    }

    fn on_time(&mut self) {
        let now = Timestamp::now();
        for container in self.observed.containers.values_mut() {
            if let Some((_, next)) = container.waiting_next.take_if(|(at, _)| *at <= now) {
                container.waiting = Some(next);
            }
        }
        if self.refresh_at().is_some_and(|at| at <= now) {
            self.refresh_volumes();
        }
    }

    fn next_waiting(&self) -> Option<Timestamp> {
        let all = self.observed.containers.values();
        all.filter_map(|container| container.waiting_next.as_ref().map(|(at, _)| *at)).min()
    }

    fn refresh_at(&self) -> Option<Timestamp> {
        let idle = self.refreshing || self.observed.sandbox != SandboxState::Ready;
        self.mounted.refresh_at.filter(|_| !idle)
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Pod(pod) => self.take_pod(pod),
            Input::Gone => {
                self.gone = true;
                let grace = spec::grace_seconds(&self.pod);
                self.terminate(grace, None);
            }
            Input::Mirror(mirror) => {
                self.origin = Origin::Static { mirror };
                self.report.rewrite();
            }
            Input::Exited(state) => self.take_exit(&state),
            Input::Probe(report) => self.take_probe(report),
        }
    }

    fn take_pod(&mut self, pod: Arc<Pod>) {
        let old = std::mem::replace(&mut self.pod, pod);
        if self.report.is_first(&self.pod) {
            self.notice_terminal_phase();
        }
        self.report.take_foreign(&self.pod);
        if self.origin == Origin::Api {
            self.report.reconcile(&self.pod);
        }
        if let (Some(before), Some(after)) = (&old.spec, &self.pod.spec) {
            for container in spec::init_containers(after).iter().chain(&after.containers) {
                let was = spec::find_container(before, &container.name);
                let observed = self.observed.containers.get_mut(&container.name);
                if let (Some(was), Some(observed)) = (was, observed)
                    && was.image != container.image
                {
                    observed.retry_at = None;
                    observed.pull_backoff = None;
                    if matches!(observed.life, Life::Running { .. })
                        && (spec::is_sidecar(container) || after.containers.contains(container))
                    {
                        observed.backoff = None;
                        observed.kill = Some(KillReason::Changed);
                    }
                }
            }
        }
        if old.metadata.labels != self.pod.metadata.labels
            || old.metadata.annotations != self.pod.metadata.annotations
        {
            self.refresh_volumes();
        }
        self.notice_deletion();
    }

    fn notice_deletion(&mut self) {
        if self.pod.metadata.deletion_timestamp.is_some() {
            self.terminate(spec::grace_seconds(&self.pod), None);
        }
    }

    fn notice_deadline(&mut self, now: Timestamp) {
        let seconds = self.pod.spec.as_ref().and_then(|spec| spec.active_deadline_seconds);
        let start = self.report.start_time();
        if let (Some(seconds), Some(start)) = (seconds, start)
            && self.observed.terminate.is_none()
            && now.duration_since(start) >= SignedDuration::from_secs(seconds)
        {
            let message = "Pod was active on the node longer than the specified deadline";
            self.context.recorder.pod(&self.pod, None, (Kind::Normal, "DeadlineExceeded"), message);
            let grace = spec::grace_seconds(&self.pod);
            self.terminate(grace, Some(Waiting::new("DeadlineExceeded", message)));
        }
    }

    /// A pod that had ended before the agent started stays ended.
    fn notice_terminal_phase(&mut self) {
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if !matches!(phase, Some("Succeeded" | "Failed")) {
            return;
        }
        self.report.freeze();
        let grace = spec::grace_seconds(&self.pod);
        self.terminate(grace, None);
    }

    /// Begins the end, or brings it nearer.
    fn terminate(&mut self, grace_seconds: i64, failed: Option<Waiting>) {
        let grace_seconds = grace_seconds.max(0);
        for tasks in self.tasks.values() {
            tasks.pull.cancel();
        }
        match &mut self.observed.terminate {
            Some(end) if end.grace_seconds <= grace_seconds => return,
            Some(end) => {
                end.grace_seconds = grace_seconds;
                end.since = Timestamp::now();
            }
            none => {
                info!(pod = %spec::describe(&self.pod), grace_seconds, "the pod ends");
                *none = Some(Terminate { since: Timestamp::now(), grace_seconds, failed });
                return;
            }
        }
        self.stop_sooner(grace_seconds);
    }

    fn take_exit(&mut self, state: &ContainerState) {
        if state.id == sandbox::init_id(&self.pod) && self.observed.terminate.is_none() {
            // Its namespace died with it; a new one is made for the next containers.
            self.observed.sandbox = SandboxState::Absent;
            return;
        }
        let Some(container) = self.observed.containers.get_mut(&state.name) else { return };
        let current = match &container.life {
            Life::Running { id, .. } | Life::Stopping { id, .. } => *id == state.id,
            _ => false,
        };
        let Some(end) = ended::ended(state).filter(|_| current) else { return };
        info!(pod = %spec::describe(&self.pod), container = %state.name, code = end.code,
            reason = %end.reason, "a container ended");
        container.again = container.kill == Some(KillReason::Changed);
        let run = Run::Ended(end.clone());
        let kept = self.pod.spec.as_ref().is_some_and(|spec| {
            spec::find_container(spec, &state.name)
                .is_some_and(|declared| plan::is_kept(spec, declared, end.code))
        });
        let kept = kept && !container.again;
        container.life = Life::Exited(end);
        container.kill = None;
        container.hook = false;
        container.ready = false;
        container.started = false;
        container.waiting = None;
        if let Some(mut tasks) = self.tasks.remove(&state.name) {
            tasks.keep_probes(|_| false);
            if let Some(stop) = tasks.stop {
                stop.abort();
            }
        }
        if kept {
            self.remember_run(&state.name, run);
        }
        self.release_root(state);
    }

    /// Beside the worker: a device's storage may take seconds.
    fn remember_run(&mut self, name: &str, run: Run) {
        let (context, name) = (self.context.clone(), name.to_owned());
        let uid = spec::uid(&self.pod).to_owned();
        self.ops.push(Box::pin(async move {
            memory::save_run(&context.checkpoint, (uid, name), run).await;
            Done::Nothing
        }));
    }

    fn remember_verdicts(&mut self) {
        let verdicts = memory::verdicts(&self.observed.containers);
        if verdicts != self.verdicts {
            let pins = sandbox::run_dir(&self.context.config, spec::uid(&self.pod));
            memory::save_verdicts(&pins, &verdicts);
            self.verdicts = verdicts;
        }
    }

    fn show_held_back(&mut self, plan: &Plan) {
        for (name, waiting) in &plan.held_back {
            let Some(container) = self.observed.containers.get_mut(name) else { continue };
            if container.waiting.as_ref() == Some(waiting) {
                continue;
            }
            container.waiting = Some(waiting.clone());
            let message = format!(
                "Back-off restarting failed container {name} in pod {}",
                spec::describe(&self.pod)
            );
            let event = (Kind::Warning, "BackOff");
            self.context.recorder.pod(&self.pod, Some(name), event, message);
        }
    }

    /// What is left to do once nothing of the pod runs. True when the worker can go.
    fn finish(&mut self) -> bool {
        let deleted = self.pod.metadata.deletion_timestamp.is_some();
        if self.finalizing || !(deleted || self.gone) {
            return false;
        }
        if !self.gone && self.report.pending() {
            return false;
        }
        self.finalizing = true;
        let finalize = self.finalize();
        self.ops.push(Box::pin(async move {
            finalize.await;
            Done::Finished
        }));
        false
    }
}

fn until(at: Timestamp) -> Duration {
    let left = at.duration_since(Timestamp::now());
    Duration::try_from(left).unwrap_or(Duration::ZERO)
}
