//! The loop: watch events in, one decision at a time, writes out. Owns all state; decides nothing itself.

use crate::{
    Config, RunError,
    bind::{Bound, Note, Recorder, apply_binding, apply_unschedulable},
    cycle::{Decision, Diagnosis, plan_placement},
    node::NodeObject,
    plugin::ClusterEvent,
    pod::{PodInfo, PodObject},
    queue::Queue,
    selector::Labels,
    snapshot::Snapshot,
};
use futures::{FutureExt, Stream, StreamExt, stream::BoxStream};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, ResourceExt,
    core::PartialObjectMeta,
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

/// Notes and conditions waiting to be written; beyond it they are dropped, as events may be.
const NOTES_MAX: usize = 1024;
/// How long bindings in flight may take after the shutdown was asked for.
const DRAIN: Duration = Duration::from_secs(2);
/// Decisions made before watch events get a turn.
const DECISIONS_PER_TURN: usize = 16;
/// Upper bound of a sleep, whatever the queue says.
const IDLE_MAX: Duration = Duration::from_secs(3600);

#[allow(
    clippy::large_enum_variant,
    reason = "one lives at a time; boxing would cost an allocation per event"
)]
enum Incoming {
    Pod(Event<PodObject>),
    Node(Event<NodeObject>),
    Namespace(Event<PartialObjectMeta<Namespace>>),
}

struct BindResult {
    pod: Arc<PodInfo>,
    node: Arc<str>,
    bound: Bound,
}

enum Report {
    Note(Note),
    Unschedulable { pod: Arc<PodInfo>, message: String },
}

pub(crate) struct Driver {
    client: Client,
    config: Config,
    snapshot: Snapshot,
    queue: Queue,
    bindings: JoinSet<BindResult>,
    reports: mpsc::Sender<Report>,
    /// Seen since a watch began anew; what is missing at its end is gone.
    relisted_pods: HashSet<Arc<str>>,
    relisted_nodes: HashSet<Arc<str>>,
    relisted_namespaces: HashMap<String, Labels>,
    pods_ready: bool,
    nodes_ready: bool,
    namespaces_ready: bool,
    wake_at: Option<Instant>,
}

/// Schedules until `shutdown` turns true.
pub(crate) async fn drive(
    client: Client,
    config: Config,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), RunError> {
    let (reports, inbox) = mpsc::channel(NOTES_MAX);
    let recorder = Recorder::new(client.clone(), config.scheduler_name.clone());
    let reporter = tokio::spawn(report(client.clone(), recorder, inbox));
    let mut incoming = watches(&client);
    let mut driver = Driver {
        queue: Queue::new(config.backoff_initial, config.backoff_max),
        client,
        config,
        snapshot: Snapshot::default(),
        bindings: JoinSet::new(),
        reports,
        relisted_pods: HashSet::new(),
        relisted_nodes: HashSet::new(),
        relisted_namespaces: HashMap::new(),
        pods_ready: false,
        nodes_ready: false,
        namespaces_ready: false,
        wake_at: None,
    };
    let result = driver.turn_until(&mut incoming, &mut shutdown).await;
    driver.drain().await;
    reporter.abort();
    result
}

fn watches(client: &Client) -> BoxStream<'static, Incoming> {
    let unfinished = "status.phase!=Succeeded,status.phase!=Failed";
    let pods = watcher(
        Api::<PodObject>::all(client.clone()),
        watcher::Config::default().fields(unfinished),
    );
    let nodes = watcher(Api::<NodeObject>::all(client.clone()), watcher::Config::default());
    let names = watcher(
        Api::<PartialObjectMeta<Namespace>>::all(client.clone()),
        watcher::Config::default(),
    );
    futures::stream::select_all([
        kept("pods", pods).map(Incoming::Pod).boxed(),
        kept("nodes", nodes).map(Incoming::Node).boxed(),
        kept("namespaces", names).map(Incoming::Namespace).boxed(),
    ])
    .boxed()
}

/// The watch with backoff; its errors are logged here and retried by the watcher.
fn kept<K: Send + 'static>(
    what: &'static str,
    stream: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
) -> impl Stream<Item = Event<K>> + Send {
    stream.default_backoff().filter_map(move |item| async move {
        item.inspect_err(|error| tracing::warn!(what, %error, "watch failed; trying again")).ok()
    })
}

impl Driver {
    async fn turn_until(
        &mut self,
        incoming: &mut BoxStream<'static, Incoming>,
        shutdown: &mut watch::Receiver<bool>,
    ) -> Result<(), RunError> {
        loop {
            // Everything that is already known comes before the next decision.
            while let Some(next) = incoming.next().now_or_never() {
                self.take_in(next.ok_or(RunError::WatchEnded("pods, nodes or namespaces"))?);
            }
            while let Some(Some(done)) = self.bindings.join_next().now_or_never() {
                self.on_bound(done);
            }
            if self.wake_at.is_none_or(|at| at <= Instant::now()) {
                self.wake_at = self.queue.advance(Instant::now());
            }
            if *shutdown.borrow() {
                return Ok(());
            }
            if self.decide() {
                tokio::task::yield_now().await;
                continue;
            }
            let idle = self.wake_at.unwrap_or_else(|| Instant::now() + IDLE_MAX);
            tokio::select! {
                next = incoming.next() => {
                    self.take_in(next.ok_or(RunError::WatchEnded("pods, nodes or namespaces"))?);
                }
                Some(done) = self.bindings.join_next() => self.on_bound(done),
                () = tokio::time::sleep_until(idle) => {}
                changed = shutdown.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    }

    async fn drain(&mut self) {
        let all = async { while self.bindings.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, all).await.is_err() {
            tracing::warn!(count = self.bindings.len(), "bindings given up at shutdown");
        }
    }

    fn take_in(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Pod(event) => self.on_pod(event),
            Incoming::Node(event) => self.on_node(event),
            Incoming::Namespace(event) => self.on_namespace(event),
        }
    }

    fn on_pod(&mut self, event: Event<PodObject>) {
        match event {
            Event::Init => self.relisted_pods.clear(),
            Event::InitApply(pod) => {
                let pod = PodInfo::from(pod);
                self.relisted_pods.insert(Arc::clone(&pod.uid));
                self.on_pod_state(pod);
            }
            Event::InitDone => {
                let known = self.snapshot.confirmed_pods().into_iter().chain(self.queue.uids());
                let relisted = std::mem::take(&mut self.relisted_pods);
                for uid in known.filter(|u| !relisted.contains(u)).collect::<Vec<_>>() {
                    self.on_pod_gone(&uid);
                }
                self.pods_ready = true;
            }
            Event::Apply(pod) => self.on_pod_state(pod.into()),
            Event::Delete(pod) => self.on_pod_gone(&PodInfo::from(pod).uid),
        }
    }

    fn on_pod_state(&mut self, pod: PodInfo) {
        if pod.finished {
            self.on_pod_gone(&pod.uid);
        } else if let Some(node) = pod.node.clone() {
            self.queue.remove(&pod.uid);
            if self.snapshot.confirm(Arc::new(pod), &node) {
                self.happened(ClusterEvent::PodAssigned);
            }
        } else if pod.scheduler_name == self.config.scheduler_name && !pod.gated && !pod.terminating
        {
            self.queue.put(pod, Instant::now());
        } else {
            self.queue.remove(&pod.uid);
        }
    }

    fn on_pod_gone(&mut self, uid: &str) {
        self.queue.remove(uid);
        if self.snapshot.remove_pod(uid) {
            self.happened(ClusterEvent::PodGone);
        }
    }

    fn on_node(&mut self, event: Event<NodeObject>) {
        match event {
            Event::Init => self.relisted_nodes.clear(),
            Event::InitApply(node) => {
                let name = self.on_node_state(node);
                self.relisted_nodes.insert(name);
            }
            Event::InitDone => {
                let relisted = std::mem::take(&mut self.relisted_nodes);
                for name in self.snapshot.node_names().difference(&relisted) {
                    self.snapshot.remove_node(name);
                    self.happened(ClusterEvent::NodeDeleted);
                }
                self.nodes_ready = true;
            }
            Event::Apply(node) => {
                self.on_node_state(node);
            }
            Event::Delete(node) => {
                self.snapshot.remove_node(&node.name_any());
                self.happened(ClusterEvent::NodeDeleted);
            }
        }
    }

    fn on_node_state(&mut self, node: NodeObject) -> Arc<str> {
        let (name, facts) = node.into_facts();
        let known = self.snapshot.has_node(&name);
        if self.snapshot.set_node(&name, facts) {
            self.happened(if known { ClusterEvent::NodeUpdated } else { ClusterEvent::NodeAdded });
        }
        name
    }

    fn on_namespace(&mut self, event: Event<PartialObjectMeta<Namespace>>) {
        match event {
            Event::InitApply(n) => {
                let labels = n.metadata.labels.unwrap_or_default();
                self.relisted_namespaces.insert(n.metadata.name.unwrap_or_default(), labels);
            }
            Event::Apply(n) => {
                let labels = n.metadata.labels.unwrap_or_default();
                self.snapshot.namespaces.insert(n.metadata.name.unwrap_or_default(), labels);
            }
            Event::Delete(n) => {
                self.snapshot.namespaces.remove(&n.name_any());
            }
            Event::Init => self.relisted_namespaces.clear(),
            Event::InitDone => {
                self.snapshot.namespaces = std::mem::take(&mut self.relisted_namespaces);
                self.namespaces_ready = true;
            }
        }
    }

    fn happened(&mut self, event: ClusterEvent) {
        self.queue.on_event(event, Instant::now());
        self.wake_at = None;
    }

    /// Makes a few decisions; false when there is nothing to decide or no binding may start.
    fn decide(&mut self) -> bool {
        if !self.pods_ready || !self.nodes_ready || !self.namespaces_ready {
            return false;
        }
        for turn in 0..DECISIONS_PER_TURN {
            if self.bindings.len() >= self.config.bindings_max {
                return turn > 0;
            }
            let Some(pod) = self.queue.pop() else { return turn > 0 };
            match plan_placement(&self.snapshot, &pod) {
                Decision::Place(node) => self.bind(pod, node),
                Decision::Unschedulable(diagnosis) => self.park(pod, diagnosis),
            }
        }
        true
    }

    fn bind(&mut self, pod: Arc<PodInfo>, node: Arc<str>) {
        tracing::debug!(pod = %pod.name, namespace = %pod.namespace, %node, "placed");
        self.snapshot.assume(&pod, &node);
        let client = self.client.clone();
        self.bindings.spawn(async move {
            let bound = apply_binding(&client, &pod, &node).await;
            BindResult { pod, node, bound }
        });
    }

    fn on_bound(&mut self, done: Result<BindResult, tokio::task::JoinError>) {
        let BindResult { pod, node, bound } = match done {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(%error, "a binding task died");
                return;
            }
        };
        match bound {
            Bound::Yes => {
                let message =
                    format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
                self.tell(Note { pod, warning: false, reason: "Scheduled", message });
            }
            Bound::Overtaken => {
                self.snapshot.forget(&pod.uid);
                self.queue.retry(&pod.uid, Instant::now());
            }
            Bound::Failed(error) => {
                tracing::warn!(pod = %pod.name, namespace = %pod.namespace, %node, %error, "binding failed");
                self.snapshot.forget(&pod.uid);
                self.queue.retry(&pod.uid, Instant::now());
                let message = format!("binding rejected: {error}");
                self.tell(Note { pod, warning: true, reason: "FailedScheduling", message });
            }
        }
        self.wake_at = None;
    }

    fn park(&mut self, pod: Arc<PodInfo>, diagnosis: Diagnosis) {
        let message = diagnosis.message();
        tracing::debug!(pod = %pod.name, namespace = %pod.namespace, %message, "unschedulable");
        self.queue.unschedulable(&pod.uid, diagnosis.plugins, Instant::now());
        self.wake_at = None;
        self.send(Report::Unschedulable { pod: Arc::clone(&pod), message: message.clone() });
        self.tell(Note { pod, warning: true, reason: "FailedScheduling", message });
    }

    fn tell(&self, note: Note) {
        self.send(Report::Note(note));
    }

    fn send(&self, report: Report) {
        if self.reports.try_send(report).is_err() {
            tracing::debug!("too many reports wait; one is left out");
        }
    }
}

async fn report(client: Client, mut recorder: Recorder, mut inbox: mpsc::Receiver<Report>) {
    while let Some(report) = inbox.recv().await {
        let (pod, result) = match report {
            Report::Note(note) => (Arc::clone(&note.pod), recorder.apply(note).await),
            Report::Unschedulable { pod, message } => {
                let result = apply_unschedulable(&client, &pod, &message).await;
                (pod, result)
            }
        };
        // A namespace in deletion refuses new events; that is no news for anybody.
        if let Err(error) = result {
            tracing::debug!(pod = %pod.name, namespace = %pod.namespace, %error, "report not written");
        }
    }
}
