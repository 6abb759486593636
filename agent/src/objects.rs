//! ConfigMaps and Secrets that the node's pods use: each watched while somebody uses it, kept in the
//! checkpoint, forgotten with its last user. It asks for nothing that no pod refers to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::Api;
use kube::runtime::watcher;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::checkpoint::Checkpoint;
use crate::connection::{Link, chain};
use crate::pod::env::{Lookup, Objects};
use crate::pod::spec;

/// How long a pod waits for an object that the master has not shown yet.
const FIRST_SIGHT_TIMEOUT: Duration = Duration::from_secs(10);
const WATCH_RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    ConfigMap,
    Secret,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) kind: Kind,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    fn file(&self) -> String {
        let kind = match self.kind {
            Kind::ConfigMap => "configmap",
            Kind::Secret => "secret",
        };
        format!("{kind}.{}.{}", self.namespace, self.name)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    ConfigMap(Arc<ConfigMap>),
    Secret(Arc<Secret>),
}

#[derive(Debug, Clone, PartialEq)]
enum Seen {
    NotYet,
    Missing,
    Present(Value),
}

struct Entry {
    users: usize,
    seen: watch::Receiver<Seen>,
    task: tokio::task::JoinHandle<()>,
}

pub(crate) struct ObjectStore {
    client: kube::Client,
    link: Arc<Link>,
    checkpoint: Arc<Checkpoint>,
    entries: Mutex<HashMap<Key, Entry>>,
}

impl ObjectStore {
    pub(crate) fn new(
        client: kube::Client,
        link: Arc<Link>,
        checkpoint: Arc<Checkpoint>,
    ) -> Arc<ObjectStore> {
        Arc::new(ObjectStore { client, link, checkpoint, entries: Mutex::default() })
    }

    /// Begins to follow everything that `pod` refers to.
    pub(crate) fn acquire(self: &Arc<Self>, pod: &Pod) -> References {
        let keys = referenced(pod);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = HashMap::new();
        for key in keys {
            let entry = entries.entry(key.clone()).or_insert_with(|| self.follow(&key));
            entry.users += 1;
            seen.insert(key, entry.seen.clone());
        }
        drop(entries);
        References { store: self.clone(), seen, namespace: spec::namespace(pod).to_owned() }
    }

    fn follow(self: &Arc<Self>, key: &Key) -> Entry {
        let (tell, seen) = watch::channel(Seen::NotYet);
        let known = self.saved(key);
        if let (Some(value), false) = (&known, self.link.connected()) {
            tell.send_replace(Seen::Present(value.clone()));
        }
        let (client, namespace) = (self.client.clone(), key.namespace.clone());
        let (key, checkpoint) = (key.clone(), self.checkpoint.clone());
        let task = tokio::spawn(async move {
            match key.kind {
                Kind::ConfigMap => {
                    let api = Api::<ConfigMap>::namespaced(client, &namespace);
                    watch_one(api, key, tell, checkpoint, |o| Value::ConfigMap(Arc::new(o))).await;
                }
                Kind::Secret => {
                    let api = Api::<Secret>::namespaced(client, &namespace);
                    watch_one(api, key, tell, checkpoint, |o| Value::Secret(Arc::new(o))).await;
                }
            }
        });
        Entry { users: 0, seen, task }
    }

    fn saved(&self, key: &Key) -> Option<Value> {
        let file = key.file();
        Some(match key.kind {
            Kind::ConfigMap => Value::ConfigMap(Arc::new(self.checkpoint.object(&file)?)),
            Kind::Secret => Value::Secret(Arc::new(self.checkpoint.object(&file)?)),
        })
    }

    fn release<'a>(&self, keys: impl Iterator<Item = &'a Key>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            let Some(entry) = entries.get_mut(key) else { continue };
            entry.users -= 1;
            if entry.users == 0 {
                entry.task.abort();
                entries.remove(key);
            }
        }
    }

    /// Removes from the checkpoint what no pod uses any more.
    pub(crate) fn forget_unused(&self, pod: &Pod) {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        for key in referenced(pod).iter().filter(|key| !entries.contains_key(key)) {
            self.checkpoint.remove_object(&key.file());
        }
    }
}

/// Follows one object by name and keeps the checkpoint's copy.
async fn watch_one<T>(
    api: Api<T>,
    key: Key,
    tell: watch::Sender<Seen>,
    checkpoint: Arc<Checkpoint>,
    wrap: impl Fn(T) -> Value,
) where
    T: kube::Resource
        + Clone
        + DeserializeOwned
        + serde::Serialize
        + std::fmt::Debug
        + Send
        + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.name));
    let mut stream = Box::pin(watcher(api, config));
    let mut listed = false;
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => listed = false,
            Ok(watcher::Event::InitApply(mut object) | watcher::Event::Apply(mut object)) => {
                listed = true;
                object.meta_mut().managed_fields = None;
                checkpoint.save_object(&key.file(), &object);
                let value = Seen::Present(wrap(object));
                tell.send_if_modified(|seen| std::mem::replace(seen, value.clone()) != value);
            }
            Ok(watcher::Event::InitDone) if listed => {}
            Ok(watcher::Event::InitDone | watcher::Event::Delete(_)) => {
                checkpoint.remove_object(&key.file());
                tell.send_replace(Seen::Missing);
            }
            Err(error) => {
                debug!(?key, error = %chain(&error), "an object's watch failed");
                if is_forbidden(&error) {
                    warn!(?key, "the master does not let this node read an object of its pods");
                }
                tokio::time::sleep(WATCH_RETRY).await;
            }
        }
    }
}

fn is_forbidden(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 403,
        _ => false,
    }
}

/// A pod's hold on the objects it refers to.
pub(crate) struct References {
    store: Arc<ObjectStore>,
    seen: HashMap<Key, watch::Receiver<Seen>>,
    namespace: String,
}

impl References {
    /// Waits until each object was looked for once, but not for ever.
    pub(crate) async fn ready(&self) {
        let waits = self.seen.values().cloned().map(|mut seen| async move {
            // A closed channel leaves the value as it is, which the lookup then tells.
            seen.wait_for(|seen| *seen != Seen::NotYet).await.ok();
        });
        let all = futures::future::join_all(waits);
        if tokio::time::timeout(FIRST_SIGHT_TIMEOUT, all).await.is_err() {
            debug!(namespace = self.namespace, "some objects were not seen in time");
        }
    }

    /// What tells of changes from now on.
    pub(crate) fn changes(&self) -> Changes {
        Changes { seen: self.seen.values().cloned().collect() }
    }

    pub(crate) fn value(&self, kind: Kind, name: &str) -> Lookup<Value> {
        let key = Key { kind, namespace: self.namespace.clone(), name: name.to_owned() };
        let seen = self.seen.get(&key).map_or(Seen::NotYet, |seen| seen.borrow().clone());
        match seen {
            Seen::Present(value) => Lookup::Found(value),
            Seen::Missing => Lookup::Missing,
            Seen::NotYet => match self.store.saved(&key) {
                Some(value) => Lookup::Found(value),
                None => Lookup::Unknown("timed out waiting for the condition".to_owned()),
            },
        }
    }
}

/// Tells when one of a pod's objects changes.
pub(crate) struct Changes {
    seen: Vec<watch::Receiver<Seen>>,
}

impl Changes {
    pub(crate) async fn next(&mut self) {
        if self.seen.is_empty() {
            return std::future::pending().await;
        }
        let waits = self.seen.iter_mut().map(|seen| Box::pin(seen.changed()));
        let (result, ..) = futures::future::select_all(waits).await;
        if result.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for References {
    fn drop(&mut self) {
        self.store.release(self.seen.keys());
    }
}

impl Objects for References {
    fn config_map(&self, name: &str) -> Lookup<Arc<ConfigMap>> {
        match self.value(Kind::ConfigMap, name) {
            Lookup::Found(Value::ConfigMap(found)) => Lookup::Found(found),
            Lookup::Unknown(why) => Lookup::Unknown(why),
            _ => Lookup::Missing,
        }
    }

    fn secret(&self, name: &str) -> Lookup<Arc<Secret>> {
        match self.value(Kind::Secret, name) {
            Lookup::Found(Value::Secret(found)) => Lookup::Found(found),
            Lookup::Unknown(why) => Lookup::Unknown(why),
            _ => Lookup::Missing,
        }
    }
}

/// Every ConfigMap and Secret that a pod's containers, volumes and pulls name.
pub(crate) fn referenced(pod: &Pod) -> Vec<Key> {
    let mut found: Vec<(Kind, String)> = Vec::new();
    let Some(spec) = &pod.spec else { return Vec::new() };
    for secret in spec.image_pull_secrets.iter().flatten() {
        found.push((Kind::Secret, secret.name.clone()));
    }
    for container in spec::init_containers(spec).iter().chain(&spec.containers) {
        for from in container.env_from.iter().flatten() {
            let map = from.config_map_ref.as_ref().map(|from| from.name.clone());
            let secret = from.secret_ref.as_ref().map(|from| from.name.clone());
            found.extend(map.map(|name| (Kind::ConfigMap, name)));
            found.extend(secret.map(|name| (Kind::Secret, name)));
        }
        for from in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
            let map = from.config_map_key_ref.as_ref().map(|from| from.name.clone());
            let secret = from.secret_key_ref.as_ref().map(|from| from.name.clone());
            found.extend(map.map(|name| (Kind::ConfigMap, name)));
            found.extend(secret.map(|name| (Kind::Secret, name)));
        }
    }
    for volume in spec.volumes.iter().flatten() {
        found.extend(volume.config_map.as_ref().map(|map| (Kind::ConfigMap, map.name.clone())));
        let secret = volume.secret.as_ref().and_then(|secret| secret.secret_name.clone());
        found.extend(secret.map(|name| (Kind::Secret, name)));
        let sources = volume.projected.iter().filter_map(|all| all.sources.as_ref()).flatten();
        for source in sources {
            let map = source.config_map.as_ref().map(|map| map.name.clone());
            let secret = source.secret.as_ref().map(|secret| secret.name.clone());
            found.extend(map.map(|name| (Kind::ConfigMap, name)));
            found.extend(secret.map(|name| (Kind::Secret, name)));
        }
    }
    let namespace = spec::namespace(pod);
    let mut keys: Vec<Key> = found
        .into_iter()
        .filter(|(_, name)| !name.is_empty())
        .map(|(kind, name)| Key { kind, namespace: namespace.to_owned(), name })
        .collect();
    keys.sort();
    keys.dedup();
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_of_a_pod_is_found_once() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "ns"},
            "spec": {
                "imagePullSecrets": [{"name": "pull"}],
                "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "s1"}}]}],
                "containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": "c1"}}], "env": [
                    {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c2", "key": "k"}}},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s1", "key": "k"}}}]}],
                "volumes": [
                    {"name": "a", "configMap": {"name": "c3"}},
                    {"name": "b", "secret": {"secretName": "s2"}},
                    {"name": "d", "projected": {"sources": [
                        {"configMap": {"name": "kube-root-ca.crt"}}, {"secret": {"name": "s3"}}]}}]
            }
        }))
        .unwrap();
        let names: Vec<String> = referenced(&pod).iter().map(Key::file).collect();
        assert_eq!(
            names,
            [
                "configmap.ns.c1",
                "configmap.ns.c2",
                "configmap.ns.c3",
                "configmap.ns.kube-root-ca.crt",
                "secret.ns.pull",
                "secret.ns.s1",
                "secret.ns.s2",
                "secret.ns.s3"
            ]
        );
    }
}
