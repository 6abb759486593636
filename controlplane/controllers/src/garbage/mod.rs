//! The garbage collector: objects whose owners are gone go too, in the background, in the foreground, or are released.
//!
//! Watches the metadata of every kind that can be listed, watched and deleted; new kinds (CRDs) are found by looking at
//! discovery again. Absence of an owner is believed only after a live read.

mod graph;
mod plan;

use crate::{
    cluster::Cluster,
    runtime::{
        Error, Next, WorkQueue,
        discovery::{ServedKind, discover},
        run_workers,
        write::{guarded, raw_delete},
    },
};
use futures::{StreamExt, pin_mut};
use graph::{FOREGROUND, Graph, ORPHAN, Object, Owner, Task, Uid};
use kube::{
    Api, Client,
    core::{
        DynamicObject, ObjectMeta, PartialObjectMeta, Request,
        params::{GetParams, Patch, PatchParams},
    },
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use plan::{Found, Verdict};
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{task::JoinSet, time::Instant};

/// How often discovery is asked for new kinds (Kubernetes: 30 s).
const DISCOVERY_PERIOD: Duration = Duration::from_secs(30);
/// A new cluster may not answer discovery yet.
const DISCOVERY_RETRY: Duration = Duration::from_secs(1);
/// How soon an object is looked at again while some kind is not listed yet.
const LIST_POLL: Duration = Duration::from_millis(100);
/// Objects looked at at one time.
const WORKERS: usize = 8;
/// Kinds without owners worth following.
const IGNORED: [(&str, &str); 2] = [("", "events"), ("events.k8s.io", "events")];

struct Collector {
    client: Client,
    queue: Arc<WorkQueue<Task>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    graph: Graph,
    /// Every kind ever watched; the index stands in the graph's objects.
    kinds: Vec<ServedKind>,
    /// All kinds of the last discovery, for resolving owner references.
    served: Vec<ServedKind>,
    /// Kinds that are followed and whose first list is not complete. What depends on what is not known until then.
    unlisted: HashSet<usize>,
}

/// Gives the work to be run.
pub(crate) fn start(cluster: &Arc<Cluster>) -> impl Future<Output = ()> + use<> {
    let collector = Arc::new(Collector {
        client: cluster.client.clone(),
        queue: WorkQueue::new(),
        state: Mutex::default(),
    });
    let c = Arc::clone(&collector);
    let work =
        run_workers("garbage-collector", Arc::clone(&collector.queue), WORKERS, move |task| {
            let c = Arc::clone(&c);
            async move {
                if !c.state().unlisted.is_empty() {
                    return Ok(Next::After(LIST_POLL));
                }
                c.reconcile(&task).await.map(|()| Next::Done)
            }
        });
    async move {
        tokio::join!(collector.watch_kinds(), work);
    }
}

type Meta = PartialObjectMeta<DynamicObject>;

impl Collector {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a watch on every kind that is served.
    async fn watch_kinds(self: &Arc<Self>) {
        let mut watches: JoinSet<()> = JoinSet::new();
        let mut running: Vec<(String, tokio::task::AbortHandle, usize)> = Vec::new();
        loop {
            let wait = match discover(&self.client).await {
                Ok(served) => {
                    self.follow(&served.kinds, &mut watches, &mut running);
                    self.retire(&served, &mut running);
                    self.state().served = served.kinds;
                    DISCOVERY_PERIOD
                }
                Err(error) => {
                    tracing::debug!(%error, "no discovery yet");
                    DISCOVERY_RETRY
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    fn follow(
        self: &Arc<Self>,
        served: &[ServedKind],
        watches: &mut JoinSet<()>,
        running: &mut Vec<(String, tokio::task::AbortHandle, usize)>,
    ) {
        let collectable = |k: &&ServedKind| {
            ["list", "watch", "delete"].iter().all(|v| k.can(v))
                && !IGNORED.contains(&(k.api.group.as_str(), k.api.plural.as_str()))
        };
        for kind in served.iter().filter(collectable) {
            let path = kind.path("");
            if running.iter().any(|(p, ..)| *p == path) {
                continue;
            }
            let index = {
                let mut state = self.state();
                let index = state.kinds.len();
                state.kinds.push(kind.clone());
                state.unlisted.insert(index);
                index
            };
            let collector = Arc::clone(self);
            let api: Api<Meta> = Api::all_with(self.client.clone(), &kind.api);
            let handle = watches.spawn(async move { collector.watch(index, api).await });
            running.push((path, handle, index));
        }
    }

    /// Stops watching kinds that are served no more. A group that did not answer is no proof.
    fn retire(
        &self,
        served: &crate::runtime::discovery::Served,
        running: &mut Vec<(String, tokio::task::AbortHandle, usize)>,
    ) {
        if !served.unanswered.is_empty() {
            return;
        }
        let paths: HashSet<String> = served.kinds.iter().map(|k| k.path("")).collect();
        running.retain(|(path, handle, index)| {
            let stays = paths.contains(path);
            if !stays {
                handle.abort();
                let mut state = self.state();
                state.unlisted.remove(index);
                for uid in state.graph.of_kind(*index) {
                    let tasks = state.graph.remove(&uid);
                    tasks.into_iter().for_each(|t| self.queue.add(t));
                }
            }
            stays
        });
    }

    async fn watch(self: Arc<Self>, kind: usize, api: Api<Meta>) {
        let begin = Instant::now();
        let events = watcher(api, watcher::Config::default()).default_backoff();
        pin_mut!(events);
        let mut relisted: HashSet<Uid> = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => relisted.clear(),
                Ok(Event::InitApply(object)) => {
                    relisted.extend(object.metadata.uid.as_deref().map(Uid::from));
                    self.put(kind, &object.metadata);
                }
                Ok(Event::InitDone) => {
                    let mut state = self.state();
                    let gone: Vec<Uid> =
                        state.graph.of_kind(kind).difference(&relisted).cloned().collect();
                    relisted.clear();
                    let tasks: Vec<Task> =
                        gone.iter().flat_map(|uid| state.graph.remove(uid)).collect();
                    if state.unlisted.remove(&kind) {
                        tracing::trace!(kind = %state.kinds[kind].api.kind, after = ?begin.elapsed(), "listed");
                    }
                    drop(state);
                    tasks.into_iter().for_each(|t| self.queue.add(t));
                }
                Ok(Event::Apply(object)) => self.put(kind, &object.metadata),
                Ok(Event::Delete(object)) => {
                    let uid = object.metadata.uid.unwrap_or_default();
                    let tasks = self.state().graph.remove(&uid);
                    tasks.into_iter().for_each(|t| self.queue.add(t));
                }
                Err(error) => tracing::debug!(%error, "metadata watch failed; trying again"),
            }
        }
    }

    fn put(&self, kind: usize, meta: &ObjectMeta) {
        let Some(uid) = meta.uid.as_deref().map(Uid::from) else { return };
        let tasks = self.state().graph.put(&uid, Object::read(kind, meta));
        tasks.into_iter().for_each(|t| self.queue.add(t));
    }

    async fn reconcile(&self, task: &Task) -> Result<(), Error> {
        match task {
            Task::Attempt(uid) => self.attempt(uid).await,
            Task::Orphan(uid) => self.orphan(uid).await,
        }
    }

    /// Path of the object and its live metadata, if it is still there.
    async fn live(&self, uid: &str) -> Result<Option<(String, Object, ObjectMeta)>, Error> {
        let (path, object) = {
            let state = self.state();
            let Some(object) = state.graph.get(uid) else { return Ok(None) };
            (state.kinds[object.kind].path(&object.namespace), object.clone())
        };
        let meta = self.read(&path, &object.name).await?;
        Ok(meta.filter(|m| m.uid.as_deref() == Some(uid)).map(|m| (path, object, m)))
    }

    async fn read(&self, path: &str, name: &str) -> Result<Option<ObjectMeta>, Error> {
        let request = Request::new(path)
            .get_metadata(name, &GetParams::default())
            .map_err(kube::Error::BuildRequest)?;
        match self.client.request::<PartialObjectMeta>(request).await {
            Ok(object) => Ok(Some(object.metadata)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn attempt(&self, uid: &Uid) -> Result<(), Error> {
        let Some((path, object, meta)) = self.live(uid).await? else { return Ok(()) };
        let latest = Object::read(object.kind, &meta);
        if latest.waits_for_dependents {
            return self.release_waiting(uid, &path, &meta).await;
        }
        if latest.deleting {
            return Ok(());
        }
        let mut owners = Vec::new();
        for owner in latest.owners {
            let found = self.look_for(&owner, &object.namespace).await?;
            owners.push((owner, found));
        }
        let has_dependents = !self.state().graph.dependents(uid).is_empty();
        match plan::verdict(&owners, has_dependents) {
            Verdict::Keep => Ok(()),
            Verdict::Unlink(useless) => {
                let keep = |o: &&k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| {
                    !useless.contains(&o.uid)
                };
                let left: Vec<_> = meta.owner_references.iter().flatten().filter(keep).collect();
                let patch = json!({"metadata": {"ownerReferences": left}});
                self.patch(&path, &meta, patch).await
            }
            Verdict::DeleteForeground => self.delete(&path, &meta, "Foreground").await,
            Verdict::Delete => {
                let has = |f: &str| meta.finalizers.iter().flatten().any(|x| x == f);
                let policy = if has(ORPHAN) {
                    "Orphan"
                } else if has(FOREGROUND) {
                    "Foreground"
                } else {
                    "Background"
                };
                self.delete(&path, &meta, policy).await
            }
        }
    }

    /// The object waits for its dependents: let it go when none that blocks is left, else look at them.
    async fn release_waiting(&self, uid: &Uid, path: &str, meta: &ObjectMeta) -> Result<(), Error> {
        let dependents = self.state().graph.dependents(uid);
        let blocking =
            dependents.iter().any(|(_, d)| d.owners.iter().any(|o| o.uid == *uid && o.blocks));
        if !blocking {
            return self.drop_finalizer(path, meta, FOREGROUND).await;
        }
        for (dependent, object) in dependents {
            if !object.deleting {
                self.queue.add(Task::Attempt(dependent));
            }
        }
        Ok(())
    }

    async fn look_for(&self, owner: &Owner, namespace: &str) -> Result<Found, Error> {
        let path = {
            let state = self.state();
            if let Some(known) = state.graph.get(&owner.uid) {
                let reachable = known.namespace.is_empty() || *known.namespace == *namespace;
                return Ok(match (reachable, known.waits_for_dependents) {
                    (false, _) => Found::Impossible,
                    (true, true) => Found::Waiting,
                    (true, false) => Found::Solid,
                });
            }
            let group = owner.api_version.rsplit_once('/').map_or("", |(g, _)| g);
            let kind =
                state.served.iter().find(|k| k.api.group == group && *k.api.kind == *owner.kind);
            let Some(kind) = kind else {
                return Err(Error::Malformed {
                    kind: "ownerReference",
                    name: owner.name.to_string(),
                    what: format!(
                        "no {} of {} is served; its dependents stay",
                        owner.kind, owner.api_version
                    ),
                });
            };
            if kind.namespaced && namespace.is_empty() {
                return Ok(Found::Impossible);
            }
            kind.path(namespace)
        };
        Ok(match self.read(&path, &owner.name).await? {
            Some(meta) if meta.uid.as_deref() == Some(&*owner.uid) => {
                let waits = meta.deletion_timestamp.is_some()
                    && meta.finalizers.iter().flatten().any(|f| f == FOREGROUND);
                if waits { Found::Waiting } else { Found::Solid }
            }
            _ => Found::Absent,
        })
    }

    async fn orphan(&self, uid: &Uid) -> Result<(), Error> {
        let Some((path, object, meta)) = self.live(uid).await? else { return Ok(()) };
        if !Object::read(object.kind, &meta).orphans_dependents {
            return Ok(());
        }
        let dependents = self.state().graph.dependents(uid);
        for (dependent, _) in dependents {
            let Some((path, _, meta)) = self.live(&dependent).await? else { continue };
            let left: Vec<_> =
                meta.owner_references.iter().flatten().filter(|o| o.uid != **uid).collect();
            self.patch(&path, &meta, json!({"metadata": {"ownerReferences": left}})).await?;
        }
        self.drop_finalizer(&path, &meta, ORPHAN).await
    }

    async fn drop_finalizer(&self, path: &str, meta: &ObjectMeta, name: &str) -> Result<(), Error> {
        let left: Vec<_> = meta.finalizers.iter().flatten().filter(|f| *f != name).collect();
        self.patch(path, meta, json!({"metadata": {"finalizers": left}})).await
    }

    async fn patch(&self, path: &str, meta: &ObjectMeta, patch: Value) -> Result<(), Error> {
        let name = meta.name.as_deref().unwrap_or_default();
        let patch = Patch::Merge(guarded(patch, meta));
        let request = Request::new(path)
            .patch_metadata(name, &PatchParams::default(), &patch)
            .map_err(kube::Error::BuildRequest)?;
        ignore_gone(self.client.request::<Value>(request).await)
    }

    async fn delete(&self, path: &str, meta: &ObjectMeta, policy: &str) -> Result<(), Error> {
        let name = meta.name.as_deref().unwrap_or_default();
        tracing::debug!(path, name, policy, "garbage");
        // The version guards against an owner reference that was added since the look.
        let body = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy,
            "preconditions": {"uid": meta.uid, "resourceVersion": meta.resource_version},
        });
        let request = raw_delete(&format!("{path}/{name}"), &body)?;
        ignore_gone(self.client.request::<Value>(request).await)
    }
}

fn ignore_gone(result: Result<Value, kube::Error>) -> Result<(), Error> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}
