//! From sources to workers: which pods run here, which worker hears of what, and what a former life
//! of the agent left behind. One task owns it all.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use monitor::protocol::{ContainerState, Phase};
use tokio::sync::{broadcast, mpsc};
use tokio::task::AbortHandle;
use tracing::{info, warn};

use crate::connection::chain;
use crate::context::Context;
use crate::pod::mirror::{self, Mirror};
use crate::pod::registry::Registry;
use crate::pod::state::doubled;
use crate::pod::worker::{INPUTS_MAX, Input, Origin, Worker};
use crate::pod::{clean, sandbox, spec};
use crate::runtime::RuntimeEvent;
use crate::source::{Update, is_mirror};

const LIST_RETRY_FIRST: Duration = Duration::from_millis(200);
const LIST_RETRY_MAX: Duration = Duration::from_secs(10);

struct Handle {
    input: mpsc::Sender<Input>,
    pod: Arc<Pod>,
    fixed: bool,
}

pub(crate) struct Dispatcher {
    context: Arc<Context>,
    registry: Arc<Registry>,
    tell: mpsc::Sender<Update>,
    workers: HashMap<String, Handle>,
    /// Pods that have come to their end here, while the master may still show them.
    finished: HashSet<String>,
    /// Containers of a former life that no pod has claimed yet.
    found: HashMap<String, Vec<ContainerState>>,
    statics: Vec<Arc<Pod>>,
    mirrors: HashMap<(String, String), Mirror>,
    /// Brings the mirrors up to date, until it is done or there is newer to do.
    mirroring: Option<AbortHandle>,
    listed: bool,
    read_manifests: bool,
}

impl Dispatcher {
    /// Takes over what the monitor has, and runs the checkpoint's pods. Ends with its sources.
    pub(crate) async fn run(
        context: Arc<Context>,
        registry: Arc<Registry>,
        (tell, mut updates): (mpsc::Sender<Update>, mpsc::Receiver<Update>),
    ) {
        let mut events = context.engine.runtime.events();
        let mut dispatcher = Dispatcher {
            found: HashMap::new(),
            context,
            registry,
            tell,
            workers: HashMap::new(),
            finished: HashSet::new(),
            statics: Vec::new(),
            mirrors: HashMap::new(),
            mirroring: None,
            listed: false,
            read_manifests: false,
        };
        dispatcher.take_over().await;
        for pod in dispatcher.context.checkpoint.pods() {
            dispatcher.apply(Arc::new(pod)).await;
        }
        loop {
            tokio::select! {
                update = updates.recv() => match update {
                    Some(update) => dispatcher.take(update).await,
                    None => return,
                },
                event = events.recv() => match event {
                    Ok(RuntimeEvent::Exited(state)) => dispatcher.exited(state).await,
                    Ok(RuntimeEvent::Reconnected) | Err(broadcast::error::RecvError::Lagged(_)) => {
                        dispatcher.exited_meanwhile().await;
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                },
            }
        }
    }

    /// What runs already. Those that were made but never begun hold nothing but their place.
    async fn take_over(&mut self) {
        self.found = self.list().await;
        for state in self.found.values_mut().flatten().filter(|s| s.phase == Phase::Created) {
            if let Err(error) = self.context.engine.delete(&state.id).await {
                warn!(id = %state.id, error = %chain(&error), "an unbegun container was not deleted");
            }
        }
        for states in self.found.values_mut() {
            states.retain(|state| state.phase != Phase::Created);
        }
    }

    /// Not knowing is no answer: pods that run would be started a second time.
    async fn list(&self) -> HashMap<String, Vec<ContainerState>> {
        listed(|| self.context.engine.list()).await
    }

    async fn exited(&self, state: Box<ContainerState>) {
        if let Some(handle) = self.workers.get(&state.pod_uid) {
            handle.tell(Input::Exited(state)).await;
        }
    }

    async fn exited_meanwhile(&self) {
        let all = self.list().await;
        for state in all.into_values().flatten().filter(|state| state.exit.is_some()) {
            self.exited(Box::new(state)).await;
        }
    }

    async fn take(&mut self, update: Update) {
        match update {
            Update::Listed(pods) => self.take_list(pods).await,
            Update::Applied(pod) if is_mirror(&pod) => self.take_mirror(&pod, true).await,
            Update::Applied(pod) => self.apply(pod).await,
            Update::Deleted(pod) if is_mirror(&pod) => self.take_mirror(&pod, false).await,
            Update::Deleted(pod) => self.forget(spec::uid(&pod), Some(pod.clone())).await,
            Update::Manifests(pods) => self.take_manifests(pods).await,
            Update::Finished(uid) => self.take_finished(&uid).await,
        }
    }

    async fn take_list(&mut self, pods: Vec<Arc<Pod>>) {
        let (mirrors, pods): (Vec<_>, Vec<_>) = pods.into_iter().partition(|pod| is_mirror(pod));
        let uids: HashSet<String> = pods.iter().map(|pod| spec::uid(pod).to_owned()).collect();
        self.finished.retain(|uid| uids.contains(uid));
        let gone: Vec<String> = self
            .workers
            .iter()
            .filter(|(uid, handle)| !handle.fixed && !uids.contains(*uid))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in gone {
            self.forget(&uid, None).await;
        }
        for pod in pods {
            self.apply(pod).await;
        }
        self.mirrors = mirrors.iter().map(|pod| (mirror::key(pod), Mirror::of(pod))).collect();
        self.listed = true;
        self.reconcile_mirrors().await;
        self.clear_leftovers();
    }

    /// A pod the master assigns to this node.
    async fn apply(&mut self, pod: Arc<Pod>) {
        let uid = spec::uid(&pod).to_owned();
        if uid.is_empty() || self.finished.contains(&uid) {
            return;
        }
        self.save(pod.clone()).await;
        match self.workers.get_mut(&uid) {
            Some(handle) => {
                handle.pod = pod.clone();
                handle.tell(Input::Pod(pod)).await;
            }
            None => self.begin(pod, Origin::Api),
        }
    }

    /// Off the agent's thread: a device's storage may take seconds.
    async fn save(&self, pod: Arc<Pod>) {
        let checkpoint = self.context.checkpoint.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || checkpoint.save_pod(&pod)).await {
            warn!(%error, "the agent ends before a pod was written down");
        }
    }

    fn begin(&mut self, pod: Arc<Pod>, origin: Origin) {
        let uid = spec::uid(&pod).to_owned();
        info!(pod = %spec::describe(&pod), "a pod for this node");
        let (input, inputs) = mpsc::channel(INPUTS_MAX);
        let found = self.found.remove(&uid).unwrap_or_default();
        let fixed = origin != Origin::Api;
        let parts = (self.context.clone(), self.registry.clone());
        let worker = Worker::new(parts, pod.clone(), origin, (input.clone(), inputs), &found);
        let (tell, name) = (self.tell.clone(), uid.clone());
        tokio::spawn(async move {
            Box::pin(worker.run()).await;
            // Without a dispatcher the agent is ending.
            tell.send(Update::Finished(name)).await.ok();
        });
        self.workers.insert(uid, Handle { input, pod, fixed });
    }

    /// Nobody wants the pod any more; a last version may shorten its grace.
    async fn forget(&mut self, uid: &str, last: Option<Arc<Pod>>) {
        self.finished.remove(uid);
        if let Some(handle) = self.workers.get(uid) {
            if let Some(pod) = last {
                handle.tell(Input::Pod(pod)).await;
            }
            handle.tell(Input::Gone).await;
        }
    }

    async fn take_finished(&mut self, uid: &str) {
        self.registry.remove(uid);
        let Some(handle) = self.workers.remove(uid) else { return };
        self.context.objects.forget_unused(&handle.pod);
        if !handle.fixed {
            self.finished.insert(uid.to_owned());
        }
        self.begin_statics();
    }

    async fn take_manifests(&mut self, pods: Vec<Arc<Pod>>) {
        let uids: HashSet<&str> = pods.iter().map(|pod| spec::uid(pod)).collect();
        let gone: Vec<String> = self
            .workers
            .iter()
            .filter(|(uid, handle)| handle.fixed && !uids.contains(uid.as_str()))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in gone {
            self.forget(&uid, None).await;
        }
        self.statics = pods;
        self.read_manifests = true;
        self.begin_statics();
        self.reconcile_mirrors().await;
        self.clear_leftovers();
    }

    /// A changed static pod begins when the one before it has gone.
    fn begin_statics(&mut self) {
        for pod in self.statics.clone() {
            let taken = self
                .workers
                .values()
                .any(|handle| handle.fixed && mirror::key(&handle.pod) == mirror::key(&pod));
            if !taken {
                let mirror = self.mirrors.get(&mirror::key(&pod)).map(|m| m.uid.clone());
                self.begin(pod, Origin::Static { mirror });
            }
        }
    }

    async fn take_mirror(&mut self, pod: &Pod, there: bool) {
        let key = mirror::key(pod);
        if there {
            self.mirrors.insert(key, Mirror::of(pod));
        } else if self.mirrors.get(&key).is_some_and(|known| known.uid == spec::uid(pod)) {
            self.mirrors.remove(&key);
        }
        self.reconcile_mirrors().await;
    }

    async fn reconcile_mirrors(&mut self) {
        if !(self.listed && self.read_manifests) {
            return;
        }
        let steps = mirror::plan(&self.statics, &self.mirrors);
        let task = tokio::spawn(mirror::apply(self.context.clone(), steps));
        if let Some(old) = self.mirroring.replace(task.abort_handle()) {
            old.abort();
        }
        for pod in &self.statics {
            let mirror = self.mirrors.get(&mirror::key(pod)).filter(|mirror| !mirror.deleted);
            if let Some(handle) = self.workers.get(spec::uid(pod)) {
                handle.tell(Input::Mirror(mirror.map(|mirror| mirror.uid.clone()))).await;
            }
        }
    }

    /// Once every source has spoken: what no pod has claimed is nobody's.
    fn clear_leftovers(&mut self) {
        if !(self.listed && self.read_manifests) {
            return;
        }
        let mut uids: HashSet<String> = self.found.keys().cloned().collect();
        uids.extend(self.context.netd.attached());
        let folder = std::fs::read_dir(self.context.config.pods_dir());
        let names = folder.into_iter().flatten().flatten().map(|entry| entry.file_name());
        uids.extend(names.filter_map(|name| name.into_string().ok()));
        uids.retain(|uid| !self.workers.contains_key(uid));
        for uid in uids {
            let states = self.found.remove(&uid).unwrap_or_default();
            info!(uid, containers = states.len(), "clearing what a former pod left");
            tokio::spawn(clear(self.context.clone(), uid, states));
        }
    }
}

impl Handle {
    async fn tell(&self, input: Input) {
        // A worker that has ended hears nothing; its end is on its way here.
        self.input.send(input).await.ok();
    }
}

/// Asks until there is an answer.
async fn listed<T, E, F>(mut ask: impl FnMut() -> F) -> T
where
    E: std::error::Error + 'static,
    F: Future<Output = Result<T, E>>,
{
    let mut failures = 0;
    loop {
        match ask().await {
            Ok(found) => return found,
            Err(error) => {
                warn!(error = %chain(&error), "the monitor's containers are not known");
                tokio::time::sleep(doubled(LIST_RETRY_FIRST, failures, LIST_RETRY_MAX)).await;
                failures += 1;
            }
        }
    }
}

async fn clear(context: Arc<Context>, uid: String, states: Vec<ContainerState>) {
    for state in states {
        if let Err(error) = context.engine.delete(&state.id).await {
            warn!(id = %state.id, error = %chain(&error), "a leftover container was not deleted");
        }
    }
    if let Err(error) = context.netd.detach(&uid).await {
        warn!(uid, error = %chain(&error), "a leftover network was not removed");
    }
    if let Err(error) = clean::remove(context.config.pods_dir().join(&uid)).await {
        warn!(uid, error = %chain(&error), "a leftover folder was not removed");
    }
    if let Err(error) = sandbox::remove_uid(&context.config, &uid) {
        warn!(uid, error = %chain(&error), "leftover namespaces were not removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failed_list_is_asked_for_again() {
        let mut answers = vec![Ok(7), Err(std::fmt::Error), Err(std::fmt::Error)];
        let found = listed(|| std::future::ready(answers.pop().unwrap())).await;
        assert_eq!((found, answers.len()), (7, 0));
    }
}
