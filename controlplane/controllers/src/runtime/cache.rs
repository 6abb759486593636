//! The shared picture of one kind: filled by its watch, and by the answers to our own writes.
//!
//! *Own writes*: a controller that just wrote an object must not decide on the state before it. So the answer to a
//! write goes into the cache at once ([`Cache::observe_write`]), and a watch event older than what is there is ignored.
//! resourceVersions of one kind come in order on a watch, so a write whose version the watch has passed is old news.

use super::object::{Key, Kind};
use futures::{Stream, StreamExt, pin_mut};
use kube::runtime::{
    WatchStreamExt,
    watcher::{self, Event},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// After this the watch has long told of a deletion, and its UID need not be remembered.
const TOMBSTONE_AGE_MAX: Duration = Duration::from_secs(60);

/// An object before and after; absent before when added, absent after when deleted.
#[derive(Debug)]
pub(crate) struct Change<K> {
    pub(crate) old: Option<Arc<K>>,
    pub(crate) new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The newest state that is known.
    pub(crate) fn latest(&self) -> Option<&Arc<K>> {
        self.new.as_ref().or(self.old.as_ref())
    }

    /// Both states.
    pub(crate) fn both(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.iter().chain(&self.new)
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

/// The picture of one kind.
pub(crate) struct Cache<K: Kind> {
    pub(super) client: kube::Client,
    state: RwLock<State<K>>,
    handlers: RwLock<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

struct State<K> {
    objects: BTreeMap<Key, Arc<K>>,
    /// Keys by UID of the controlling owner; objects without one stand under [`orphans`].
    owned: HashMap<String, BTreeSet<Key>>,
    seen_version: u64,
    tombstones: HashMap<String, Instant>,
    relisted: BTreeMap<Key, Arc<K>>,
}

fn orphans(namespace: &str) -> String {
    format!("orphans of {namespace}")
}

fn number(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}

impl<K: Kind> State<K> {
    fn owner_slot(object: &K) -> String {
        match object.controller() {
            Some(owner) => owner.uid.clone(),
            None => orphans(object.namespace()),
        }
    }

    fn unindex(&mut self, object: &K) {
        let slot = Self::owner_slot(object);
        if let Some(keys) = self.owned.get_mut(&slot) {
            keys.remove(&object.key());
            if keys.is_empty() {
                self.owned.remove(&slot);
            }
        }
    }

    fn insert(&mut self, object: Arc<K>) -> Change<K> {
        let key = object.key();
        let slot = Self::owner_slot(&object);
        let old = self.objects.insert(key.clone(), Arc::clone(&object));
        if let Some(old) = &old {
            self.unindex(old);
        }
        self.owned.entry(slot).or_default().insert(key);
        Change { old, new: Some(object) }
    }

    fn take(&mut self, key: &Key) -> Option<Change<K>> {
        let old = self.objects.remove(key)?;
        self.unindex(&old);
        Some(Change { old: Some(old), new: None })
    }

    fn is_news(&self, object: &K) -> bool {
        if self.tombstones.contains_key(object.uid()) {
            return false;
        }
        let version = number(object.version());
        let Some(known) = self.objects.get(&object.key()) else { return true };
        version == 0 || number(known.version()) < version
    }

    fn apply(&mut self, object: K) -> Option<Change<K>> {
        self.seen_version = self.seen_version.max(number(object.version()));
        self.is_news(&object).then(|| self.insert(Arc::new(object)))
    }

    fn delete(&mut self, object: &K) -> Option<Change<K>> {
        self.seen_version = self.seen_version.max(number(object.version()));
        self.tombstones.remove(object.uid());
        let key = object.key();
        if self.objects.get(&key)?.uid() != object.uid() {
            return None;
        }
        self.take(&key)
    }

    fn relist_done(&mut self) -> Vec<Change<K>> {
        let relisted = std::mem::take(&mut self.relisted);
        let gone: Vec<Key> =
            self.objects.keys().filter(|k| !relisted.contains_key(k)).cloned().collect();
        let mut changes: Vec<_> = gone.iter().filter_map(|k| self.take(k)).collect();
        for object in relisted.into_values() {
            self.seen_version = self.seen_version.max(number(object.version()));
            if self.is_news(&object) {
                changes.push(self.insert(object));
            }
        }
        changes
    }

    fn bury(&mut self, key: &Key, uid: &str) -> Option<Change<K>> {
        let now = Instant::now();
        self.tombstones.retain(|_, since| now.duration_since(*since) < TOMBSTONE_AGE_MAX);
        self.tombstones.insert(uid.to_owned(), now);
        if self.objects.get(key)?.uid() != uid {
            return None;
        }
        self.take(key)
    }
}

impl<K: Kind> Cache<K> {
    pub(crate) fn new(client: kube::Client) -> Arc<Self> {
        Arc::new(Self {
            client,
            state: RwLock::new(State {
                objects: BTreeMap::new(),
                owned: HashMap::new(),
                seen_version: 0,
                tombstones: HashMap::new(),
                relisted: BTreeMap::new(),
            }),
            handlers: RwLock::new(Vec::new()),
            synced: watch::channel(false).0,
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, State<K>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<K>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `handler` on every change from now on; handlers only mark keys to be looked at.
    pub(crate) fn on_change(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        self.handlers.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(handler));
    }

    fn notify(&self, changes: impl IntoIterator<Item = Change<K>>) {
        let handlers = self.handlers.read().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            handlers.iter().for_each(|handle| handle(&change));
        }
    }

    /// Waits until the first list is complete.
    pub(crate) async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives in `self`; this cannot fail while it is borrowed.
        if synced.wait_for(|done| *done).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.read().objects.get(key).cloned()
    }

    pub(crate) fn list(&self) -> Vec<Arc<K>> {
        self.read().objects.values().cloned().collect()
    }

    /// All objects of a namespace.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let state = self.read();
        let from = state.objects.range(Key::new(namespace, "")..);
        from.take_while(|(k, _)| k.namespace == namespace).map(|(_, o)| Arc::clone(o)).collect()
    }

    /// Objects controlled by the owner.
    pub(crate) fn owned_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.slot(uid)
    }

    /// Objects of the namespace that nobody controls.
    pub(crate) fn orphans_in(&self, namespace: &str) -> Vec<Arc<K>> {
        self.slot(&orphans(namespace))
    }

    fn slot(&self, slot: &str) -> Vec<Arc<K>> {
        let state = self.read();
        let keys = state.owned.get(slot).into_iter().flatten();
        keys.filter_map(|k| state.objects.get(k).cloned()).collect()
    }

    /// Takes the answer to a write over, before the watch tells of it.
    pub(crate) fn observe_write(&self, object: K) -> Arc<K> {
        let object = Arc::new(object);
        let change = {
            let mut state = self.write();
            let passed = number(object.version()) <= state.seen_version;
            (!passed && state.is_news(&object)).then(|| state.insert(Arc::clone(&object)))
        };
        self.notify(change);
        object
    }

    /// The object was removed at our request.
    pub(crate) fn observe_removal(&self, key: &Key, uid: &str) {
        let change = self.write().bury(key, uid);
        self.notify(change);
    }

    fn observe_event(&self, event: Event<K>) {
        let changes: Vec<Change<K>> = {
            let mut state = self.write();
            match event {
                Event::Apply(object) => state.apply(object).into_iter().collect(),
                Event::Delete(object) => state.delete(&object).into_iter().collect(),
                Event::Init => {
                    state.relisted.clear();
                    Vec::new()
                }
                Event::InitApply(object) => {
                    state.relisted.insert(object.key(), Arc::new(object));
                    Vec::new()
                }
                Event::InitDone => state.relist_done(),
            }
        };
        self.notify(changes);
    }

    /// Keeps the cache filled from a watch, for ever.
    pub(crate) async fn reflect(
        self: Arc<Self>,
        events: impl Stream<Item = watcher::Result<Event<K>>>,
    ) {
        let events = events.default_backoff();
        pin_mut!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    let complete = matches!(event, Event::InitDone);
                    self.observe_event(event);
                    if complete {
                        self.synced.send_replace(true);
                    }
                }
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "watch failed; trying again");
                }
            }
        }
        tracing::error!(kind = %K::kind(&()), "watch ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Pod;
    use serde_json::json;

    fn pod(name: &str, uid: &str, version: u64) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "d", "uid": uid, "resourceVersion": version.to_string()},
            "spec": {},
        }))
        .unwrap()
    }

    fn cache() -> Arc<Cache<Pod>> {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::empty()))
        });
        Cache::new(kube::Client::new(service, "default"))
    }

    fn state(c: &Cache<Pod>) -> String {
        let show = |p: &Arc<Pod>| format!("{}:{}@{}", p.name(), p.uid(), p.version());
        c.list().iter().map(show).collect::<Vec<_>>().join(" ")
    }

    #[tokio::test]
    async fn own_writes_are_seen_at_once_and_never_undone_by_older_events() {
        let c = cache();
        c.observe_event(Event::Apply(pod("a", "1", 5)));
        c.observe_write(pod("a", "1", 9));
        c.observe_event(Event::Apply(pod("a", "1", 7)));
        assert_eq!(state(&c), "a:1@9");
        c.observe_event(Event::Apply(pod("a", "1", 10)));
        c.observe_write(pod("b", "2", 8));
        assert_eq!(state(&c), "a:1@10", "the watch is past 8, so b was deleted meanwhile");
        c.observe_removal(&Key::new("d", "a"), "1");
        c.observe_event(Event::Apply(pod("a", "1", 11)));
        assert_eq!(state(&c), "", "an update from before our deletion does not revive it");
        c.observe_event(Event::Apply(pod("a", "3", 12)));
        c.observe_event(Event::Delete(pod("a", "1", 13)));
        assert_eq!(state(&c), "a:3@12", "the deletion of the predecessor is not ours");
    }

    #[tokio::test]
    async fn a_relist_removes_what_is_gone_and_keeps_newer_writes() {
        let c = cache();
        for event in [
            Event::Init,
            Event::InitApply(pod("a", "1", 1)),
            Event::InitApply(pod("b", "2", 2)),
            Event::InitDone,
        ] {
            c.observe_event(event);
        }
        c.observe_write(pod("a", "1", 9));
        for event in [Event::Init, Event::InitApply(pod("a", "1", 8)), Event::InitDone] {
            c.observe_event(event);
        }
        assert_eq!(state(&c), "a:1@9");
        assert_eq!(c.orphans_in("d").len(), 1);
    }
}
