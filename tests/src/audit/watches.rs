//! A watcher that resumes from the last revision it saw, at the next master each time its stream ends. It judges what must
//! hold of every watch: revisions only grow, and a revision that was seen is never too old to resume from.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, DynamicObject, WatchEvent, WatchParams};
use kube::core::ApiResource;
use tokio::sync::watch;

use super::{Ways, revision};

/// A stream that is so long without any event, under constant load, is dead.
const QUIET: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub what: &'static str,
    /// The object's name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its revision.
    pub revision: i64,
}

pub(super) struct Watch {
    pub(super) ways: Ways,
    pub(super) resource: ApiResource,
    pub(super) namespace: String,
    pub(super) from: i64,
}

impl Watch {
    /// Follows until everything up to the revision that `until` says was seen.
    pub(super) async fn run(
        mut self,
        mut until: watch::Receiver<Option<i64>>,
    ) -> Result<Vec<Seen>> {
        let mut seen = Vec::new();
        loop {
            let end = *until.borrow_and_update();
            // Another kind's last event is older than the end; a stream that stays quiet then has no more.
            let done = end.is_some_and(|end| self.from >= end);
            if done {
                return Ok(seen);
            }
            tokio::select! {
                followed = self.follow(&mut seen, end.is_some()) => {
                    if followed? {
                        return Ok(seen);
                    }
                }
                _ = until.changed() => continue,
            }
            self.ways.turn();
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// One stream, to its end; true when it was open and had nothing more to say at the end of all.
    async fn follow(&mut self, seen: &mut Vec<Seen>, ending: bool) -> Result<bool> {
        let client = self.ways.client().await?;
        let api: Api<DynamicObject> = Api::namespaced_with(client, &self.namespace, &self.resource);
        let params = WatchParams::default();
        let from = self.from.to_string();
        let opened = tokio::time::timeout(QUIET, api.watch(&params, &from)).await;
        let Ok(Ok(stream)) = opened else { return Ok(false) };
        let mut stream = stream.boxed();
        loop {
            let event = match tokio::time::timeout(QUIET, stream.try_next()).await {
                Ok(Ok(Some(event))) => event,
                Err(_) => return Ok(ending),
                Ok(Ok(None) | Err(_)) => return Ok(false),
            };
            let (what, object) = match event {
                WatchEvent::Added(object) => ("ADDED", object),
                WatchEvent::Modified(object) => ("MODIFIED", object),
                WatchEvent::Deleted(object) => ("DELETED", object),
                WatchEvent::Bookmark(bookmark) => {
                    let at: i64 = bookmark.metadata.resource_version.parse()?;
                    ensure!(at >= self.from, "a bookmark went back from {} to {at}", self.from);
                    self.from = at;
                    continue;
                }
                WatchEvent::Error(status) if status.code == 410 => {
                    bail!("a gap: {} can't be resumed from: {}", self.from, status.message)
                }
                WatchEvent::Error(_) => return Ok(false),
            };
            let at = revision(&object)?;
            ensure!(at > self.from, "after {} came {what} at {at}", self.from);
            self.from = at;
            let (name, uid) = (object.metadata.name, object.metadata.uid);
            let name = name.context("no name")?;
            seen.push(Seen { what, name, uid: uid.unwrap_or_default(), revision: at });
        }
    }
}
