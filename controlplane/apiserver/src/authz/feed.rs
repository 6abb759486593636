//! Keeps a small projection of one storage prefix current with the store.
//!
//! Owns the list-then-watch of the prefix. It holds no objects itself. There is no task: whoever is about to read
//! the projection first drains what has been committed since, so a reader sees every write that was
//! acknowledged before it asked.

use crate::lookup::list_prefix;
use futures::FutureExt as _;
use store::{Entry, KeyRange, Range, ReadError, Store, WatchRequest, Watcher};

/// Events that may wait between two reads of a projection; beyond that the prefix is listed again. They hold their objects in
/// memory, so a few megabytes at most.
const EVENTS_MAX: usize = 512;

/// What a feed keeps current.
pub(crate) trait Projection {
    /// Forgets everything under the prefix.
    fn clear(&mut self, prefix: &'static str);
    /// The object is now this; it may have been there before.
    fn insert(&mut self, prefix: &'static str, entry: &Entry);
    /// The object is gone.
    fn remove(&mut self, prefix: &'static str, entry: &Entry);
}

/// The place up to which one prefix has been read.
pub(crate) struct Feed {
    prefix: &'static str,
    watcher: Option<Watcher>,
}

impl Feed {
    pub(crate) fn new(prefix: &'static str) -> Self {
        Self { prefix, watcher: None }
    }

    /// Brings the projection up to what the store has published.
    pub(crate) fn refresh(
        &mut self,
        store: &Store,
        target: &mut impl Projection,
    ) -> Result<(), ReadError> {
        loop {
            let Some(watcher) = self.watcher.as_mut() else {
                self.watcher = Some(self.relist(store, target)?);
                continue;
            };
            match watcher.next().now_or_never() {
                None => return Ok(()),
                Some(Ok(events)) => {
                    for event in events {
                        match (&event.after, &event.before) {
                            (Some(after), _) => target.insert(self.prefix, after),
                            (None, Some(before)) => target.remove(self.prefix, before),
                            (None, None) => {}
                        }
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(prefix = self.prefix, %error, "projection is listed again");
                    self.watcher = None;
                }
            }
        }
    }

    fn relist(&self, store: &Store, target: &mut impl Projection) -> Result<Watcher, ReadError> {
        let keys = KeyRange::Prefix(list_prefix(self.prefix, None).into_bytes());
        let found = store.range(&Range { keys: keys.clone(), revision: None, limit: 0 })?;
        target.clear(self.prefix);
        for entry in &found.entries {
            target.insert(self.prefix, entry);
        }
        store.watch(WatchRequest {
            keys,
            from: Some(found.revision + 1),
            index: None,
            events_max: EVENTS_MAX,
        })
    }
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
