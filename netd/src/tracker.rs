//! Follows services, endpoint slices and nodes, and keeps what was seen last on disk.
//!
//! Level-triggered: a change only bumps a number; whoever waits for it reads the cluster again. Until a kind's first list
//! is complete, the saved state stands, so a node that boots without its master serves what it served before.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::TryStreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, Key, Object, Service, Slice};
use crate::link::fnv1a;
use crate::projection::{NodeObject, Projection, ServiceObject, SliceObject};
use crate::saved;
use crate::services::stopped;
use crate::topology::NodeView;
use crate::worker;

/// Between a change and its being saved, and so between two writes: flash wears out.
const SAVE_DELAY: Duration = Duration::from_secs(10);

/// The shared state and its version.
#[derive(Debug, Clone)]
pub(crate) struct Tracker {
    cluster: Arc<Mutex<Cluster>>,
    version: watch::Sender<u64>,
    /// How many kinds have been listed whole.
    listed: watch::Sender<u32>,
}

/// Services, slices, nodes.
const KINDS: u32 = 3;

/// The file's form: lists, since JSON has no maps by namespace and name.
#[derive(Default, Deserialize)]
struct Saved {
    services: Vec<(Key, Service)>,
    slices: Vec<(Key, Box<str>, Slice)>,
    nodes: Vec<(Box<str>, NodeView)>,
}

/// The same, borrowed.
#[derive(Serialize)]
struct SavedRef<'a> {
    services: Vec<(&'a Key, &'a Service)>,
    slices: Vec<(&'a Key, &'a str, &'a Slice)>,
    nodes: Vec<(&'a str, &'a NodeView)>,
}

impl Tracker {
    /// Begins with the saved state.
    pub(crate) fn load(state_dir: &Path) -> io::Result<Tracker> {
        let saved: Saved = saved::load(&state_dir.join(saved::CLUSTER))?.unwrap_or_default();
        let mut cluster = Cluster::default();
        cluster.services.extend(saved.services);
        cluster.nodes.extend(saved.nodes);
        for (service, name, slice) in saved.slices {
            cluster.insert(Object::Slice(Key { namespace: service.namespace, name }, slice));
        }
        Ok(Tracker {
            cluster: Arc::new(Mutex::new(cluster)),
            version: watch::Sender::new(1),
            listed: watch::Sender::new(0),
        })
    }

    /// The state; never held over an await.
    pub(crate) fn read(&self) -> MutexGuard<'_, Cluster> {
        // A panicked writer can't leave the maps half-changed in a way that matters: each insert is whole.
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes at each change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Returns when all kinds have been listed once.
    pub(crate) async fn listed(&self) {
        // The sender lives in `self`.
        drop(self.listed.subscribe().wait_for(|listed| *listed >= KINDS).await);
    }

    /// Changes the state by hand, as an event would.
    fn change(&self, change: impl FnOnce(&mut Cluster) -> bool) {
        let changed = change(&mut self.read());
        if changed {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// Starts the watches.
    pub(crate) fn spawn(&self, tasks: &mut JoinSet<()>, client: &Client) {
        tasks.spawn(self.clone().follow::<ServiceObject>(client.clone()));
        tasks.spawn(self.clone().follow::<SliceObject>(client.clone()));
        tasks.spawn(self.clone().follow::<NodeObject>(client.clone()));
    }

    /// Starts the saving; it ends, with all saved, when `stop` says so.
    pub(crate) fn spawn_saving(
        &self,
        tasks: &mut JoinSet<()>,
        state_dir: &Path,
        stop: watch::Receiver<bool>,
    ) {
        tasks.spawn(self.clone().save(state_dir.join(saved::CLUSTER), stop));
    }

    async fn follow<K: Projection>(self, client: Client) {
        let api: Api<K> = Api::all(client);
        let mut stream = std::pin::pin!(
            watcher(api, watcher::Config::default().any_semantic()).default_backoff()
        );
        let mut listed: Vec<Object> = Vec::new();
        let mut first = true;
        loop {
            match stream.try_next().await {
                Ok(Some(watcher::Event::Init)) => listed.clear(),
                Ok(Some(watcher::Event::InitApply(object))) => listed.extend(object.object()),
                Ok(Some(watcher::Event::InitDone)) => {
                    let objects = std::mem::take(&mut listed);
                    self.change(|cluster| cluster.replace(K::KIND, objects));
                    if std::mem::take(&mut first) {
                        self.listed.send_modify(|listed| *listed += 1);
                    }
                }
                Ok(Some(watcher::Event::Apply(object))) => {
                    let key = object.key();
                    self.change(|cluster| match object.object() {
                        Some(object) => cluster.insert(object),
                        None => cluster.remove(K::KIND, &key),
                    });
                }
                Ok(Some(watcher::Event::Delete(object))) => {
                    self.change(|cluster| cluster.remove(K::KIND, &object.key()));
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(kind = %K::kind(&()), %error, "watch interrupted; retrying");
                }
            }
        }
    }

    async fn save(self, path: PathBuf, mut stop: watch::Receiver<bool>) {
        let mut changes = self.changes();
        let mut last = std::fs::read(&path).map(|text| fnv1a(&text)).ok();
        loop {
            let ending = tokio::select! {
                changed = changes.changed() => changed.is_err(),
                () = stopped(&mut stop) => true,
            };
            if !ending {
                tokio::select! {
                    () = tokio::time::sleep(SAVE_DELAY) => {}
                    () = stopped(&mut stop) => {}
                }
            }
            changes.mark_unchanged();
            let (tracker, file) = (self.clone(), path.clone());
            // A flush can take long on flash; the thread of all other tasks doesn't wait for it.
            let work = move || tracker.write_if_changed(&file, last);
            match worker::run("netd-save", work).await.and_then(|written| written) {
                Ok(hash) => last = Some(hash),
                Err(error) => {
                    tracing::warn!(file = %path.display(), %error, "cluster state not saved");
                }
            }
            if ending {
                return;
            }
        }
    }

    /// Writes the state when its text's hash isn't `before`; returns the hash of what the file has.
    fn write_if_changed(&self, path: &Path, before: Option<u64>) -> io::Result<u64> {
        let text = self.encode()?;
        let hash = fnv1a(&text);
        if Some(hash) != before {
            saved::write(path, &text)?;
        }
        Ok(hash)
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        let cluster = self.read();
        let slices = cluster.slices.iter().flat_map(|(service, slices)| {
            slices.iter().map(move |(name, slice)| (service, &**name, slice))
        });
        saved::encode(&SavedRef {
            services: cluster.services.iter().collect(),
            slices: slices.collect(),
            nodes: cluster.nodes.iter().map(|(name, node)| (&**name, node)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_state_comes_back_whole() {
        let dir = tempfile::tempdir().unwrap();
        let tracker = Tracker::load(dir.path()).unwrap();
        let service = Service { headless: true, ..Service::default() };
        let slice = Slice { service: "web".into(), ..Slice::default() };
        let node =
            NodeView { internal_ips: vec!["192.0.2.1".parse().unwrap()], ..NodeView::default() };
        tracker.change(|cluster| {
            cluster.insert(Object::Service(Key::new("a", "web"), service));
            cluster.insert(Object::Slice(Key::new("a", "web-x1"), slice));
            cluster.insert(Object::Node("n1".into(), node))
        });
        saved::write(&dir.path().join(saved::CLUSTER), &tracker.encode().unwrap()).unwrap();
        let again = Tracker::load(dir.path()).unwrap();
        assert_eq!(*again.read(), *tracker.read());
        assert_eq!(again.read().slices[&Key::new("a", "web")].len(), 1);
    }

    #[test]
    fn a_slice_that_changes_its_service_leaves_the_old_one() {
        let mut cluster = Cluster::default();
        let slice = |service: &str| Slice { service: service.into(), ..Slice::default() };
        cluster.insert(Object::Slice(Key::new("a", "s1"), slice("old")));
        assert!(cluster.insert(Object::Slice(Key::new("a", "s1"), slice("new"))));
        assert_eq!(cluster.slices.keys().collect::<Vec<_>>(), [&Key::new("a", "new")]);
        assert!(cluster.remove(crate::cluster::Kind::Slice, &Key::new("a", "s1")));
        assert!(cluster.slices.is_empty());
    }
}
