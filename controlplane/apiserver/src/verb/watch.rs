//! `watch`: the events of a collection from a revision on, as JSON lines, each rendered once for all plain watchers.
//! Must not skip, repeat or reorder an event; a client that is too slow is told so and ends.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use apimachinery::status::ApiError;
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use store::{Entry, Event, ReadError, Revision, WatchError, WatchRequest, Watcher};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::{Call, list};
use crate::{
    ApiServer, Resource,
    body::{Body, BodyError},
    filter::Filter,
    view::View,
};

/// Events that may wait for one watcher; past that it has to list again.
const EVENTS_WAITING_MAX: usize = 4096;
/// Kubernetes 1.36: a watch without `timeoutSeconds` ends after 30 to 60 minutes.
const TIMEOUT_MIN: Duration = Duration::from_secs(1800);
/// No watch is promised to last longer, whatever it asks for.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Kubernetes 1.36: a bookmark a minute, when there is something to say.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Marks the end of the initial events of a streaming list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// What a watch begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// The present as `ADDED`, then what follows.
    Present { bookmark: bool },
    /// What follows a revision.
    After(Revision),
}

struct Watch {
    view: View,
    filter: Filter,
    watcher: Watcher,
    ready: VecDeque<Bytes>,
    initial: std::vec::IntoIter<Arc<Entry>>,
    initial_end: Option<Revision>,
    bookmarks: bool,
    tick: Interval,
    ends: Instant,
    /// The highest revision the client knows of.
    told: Revision,
    over: bool,
    server: ApiServer,
}

pub(crate) fn run(call: &Call) -> Result<Response<Body>, ApiError> {
    let filter = Filter::parse(&call.resource, &call.query, call.name())?;
    let start = start(call)?;
    let timeout = timeout(call.query.number("timeoutSeconds")?);
    let body = match open(call, &filter, start)? {
        Ok(Opened { watcher, page, after }) => {
            let mut tick = tokio::time::interval(BOOKMARK_EVERY);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            tick.reset();
            let bookmark_at_end = start == Start::Present { bookmark: true };
            let watch = Watch {
                view: View { resource: Arc::clone(&call.resource), form: call.form },
                filter,
                watcher,
                ready: VecDeque::new(),
                initial_end: bookmark_at_end.then_some(after),
                initial: page.map(|p| p.entries).unwrap_or_default().into_iter(),
                bookmarks: call.query.flag("allowWatchBookmarks"),
                tick,
                ends: Instant::now() + timeout,
                told: after,
                over: false,
                server: call.server.clone(),
            };
            let frames = stream::unfold(watch, |mut watch| async move {
                let bytes = watch.next().await?;
                Some((Ok::<_, BodyError>(Frame::data(bytes)), watch))
            });
            BodyExt::boxed_unsync(StreamBody::new(frames))
        }
        Err(error) => crate::body::full(error_line(&error)),
    };
    let mut response = Response::new(body);
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

fn timeout(asked: Option<i64>) -> Duration {
    match u64::try_from(asked.unwrap_or_default()) {
        Ok(0) | Err(_) => {
            TIMEOUT_MIN + Duration::from_secs(crate::random::below(TIMEOUT_MIN.as_secs()))
        }
        Ok(seconds) => Duration::from_secs(seconds).min(TIMEOUT_MAX),
    }
}

/// Kubernetes 1.36, `ListOptions` of a watch.
fn start(call: &Call) -> Result<Start, ApiError> {
    let query = &call.query;
    let initial = query.find("sendInitialEvents").is_some();
    let matching = query.get("resourceVersionMatch");
    let revision = list::parse_revision(query.get("resourceVersion"))?;
    if !initial {
        if !matching.is_empty() {
            return Err(list::forbidden_match(
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        return Ok(if revision == 0 {
            Start::Present { bookmark: false }
        } else {
            Start::After(revision)
        });
    }
    if matching != "NotOlderThan" {
        return Err(list::forbidden_match(
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    if !query.flag("sendInitialEvents") {
        let now = call.server.registry().store().revision();
        return Ok(Start::After(if revision == 0 { now } else { revision }));
    }
    let current = call.server.registry().store().revision();
    if revision > current {
        return Err(ApiError::too_large_resource_version(revision, current, 1));
    }
    Ok(Start::Present { bookmark: query.flag("allowWatchBookmarks") })
}

/// An open watch with what it begins with.
struct Opened {
    watcher: Watcher,
    page: Option<list::Page>,
    after: Revision,
}

/// Opens the store's watch; an error inside is one that a client gets as an event.
fn open(call: &Call, filter: &Filter, start: Start) -> Result<Result<Opened, ApiError>, ApiError> {
    let page = match start {
        Start::Present { .. } => Some(list::all(call, filter)?),
        Start::After(_) => None,
    };
    let after = match (start, &page) {
        (Start::After(revision), _) => revision,
        (_, Some(page)) => page.revision,
        (_, None) => call.server.registry().store().revision(),
    };
    let request = WatchRequest {
        keys: filter.keys(&call.resource, call.namespace()),
        from: Some(after.saturating_add(1)),
        index: filter.index(&call.resource),
        events_max: EVENTS_WAITING_MAX,
    };
    match call.server.registry().store().watch(request) {
        Ok(watcher) => Ok(Ok(Opened { watcher, page, after })),
        Err(ReadError::Compacted { compact_revision, .. }) => {
            Ok(Err(too_old(after, compact_revision)))
        }
        Err(ReadError::Future { requested, current }) => {
            Err(ApiError::too_large_resource_version(requested, current, 1))
        }
    }
}

fn too_old(asked: Revision, oldest: Revision) -> ApiError {
    ApiError::expired(format!("too old resource version: {asked} ({oldest})"))
}

impl Watch {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(bytes);
            }
            if self.over {
                return None;
            }
            if let Some(entry) = self.initial.next() {
                let line = self.line("ADDED", &entry, entry.mod_revision);
                self.take(line);
                continue;
            }
            if let Some(revision) = self.initial_end.take() {
                self.ready.push_back(bookmark(&self.view.resource, revision, true));
                continue;
            }
            self.wait().await;
        }
    }

    /// Waits for events, the next bookmark or the end.
    async fn wait(&mut self) {
        let mut closing = self.server.closing();
        tokio::select! {
            biased;
            events = self.watcher.next() => match events {
                Ok(events) => self.push(&events),
                Err(error) => {
                    self.over = true;
                    if let Some(error) = watch_error(&error, self.told) {
                        self.ready.push_back(error_line(&error));
                    }
                }
            },
            _ = self.tick.tick(), if self.bookmarks => self.bookmark(),
            () = tokio::time::sleep_until(self.ends) => {
                self.over = true;
                if self.bookmarks {
                    self.bookmark();
                }
            }
            _ = closing.wait_for(|closing| *closing) => self.over = true,
        }
    }

    fn bookmark(&mut self) {
        let revision = self.watcher.progress();
        if revision > self.told {
            self.told = revision;
            self.ready.push_back(bookmark(&self.view.resource, revision, false));
        }
    }

    fn push(&mut self, events: &[Arc<Event>]) {
        for event in events {
            self.told = self.told.max(event.revision);
            if let Some(line) = self.event(event).transpose() {
                self.take(line);
            }
            if self.over {
                return;
            }
        }
    }

    fn take(&mut self, line: Result<Bytes, ApiError>) {
        let line = line.unwrap_or_else(|error| {
            self.over = true;
            error_line(&error)
        });
        self.ready.push_back(line);
    }

    /// The event as this watcher sees it: an object that begins to match is added, one that no longer matches deleted.
    fn event(&self, event: &Event) -> Result<Option<Bytes>, ApiError> {
        let wanted = |e: &&Arc<Entry>| self.filter.matches(&self.view.resource, e);
        let before = event.before.as_ref().filter(wanted);
        let after = event.after.as_ref().filter(wanted);
        let (kind, entry) = match (before, after) {
            (None, None) => return Ok(None),
            (None, Some(after)) => ("ADDED", after),
            (Some(_), Some(after)) => ("MODIFIED", after),
            (Some(before), None) => ("DELETED", before),
        };
        let plain =
            event.before.is_some() == before.is_some() && event.after.is_some() == after.is_some();
        if !plain || !self.view.is_raw() {
            return self.line(kind, entry, event.revision).map(Some);
        }
        if let Some(line) = event.rendered.get() {
            return Ok(Some(line.clone()));
        }
        let line = self.line(kind, entry, event.revision)?;
        Ok(Some(event.rendered.get_or_init(|| line).clone()))
    }

    fn line(&self, kind: &str, entry: &Entry, revision: Revision) -> Result<Bytes, ApiError> {
        let object = self.view.one(entry, revision)?;
        let mut out = Vec::with_capacity(object.len() + 32);
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\",\"object\":");
        out.extend_from_slice(&object);
        out.extend_from_slice(b"}\n");
        Ok(out.into())
    }
}

/// What ends a watch, as the client is told; `None`: it simply ends.
fn watch_error(error: &WatchError, told: Revision) -> Option<ApiError> {
    match error {
        WatchError::Closed => None,
        WatchError::Compacted { .. } => Some(too_old(told, told)),
        WatchError::Expired { .. } => {
            Some(ApiError::expired("The watch fell too far behind; list again."))
        }
    }
}

fn error_line(error: &ApiError) -> Bytes {
    line_of(&json!({"type": "ERROR", "object": error.to_status()}))
}

fn bookmark(resource: &Resource, revision: Revision, initial_end: bool) -> Bytes {
    let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
    if initial_end {
        metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
    }
    line_of(&json!({"type": "BOOKMARK", "object": {"kind": resource.kind,
        "apiVersion": resource.api_version(), "metadata": metadata}}))
}

fn line_of(value: &Value) -> Bytes {
    let mut line = value.to_string();
    line.push('\n');
    line.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_ends_in_reasonable_time() {
        assert_eq!(timeout(Some(5)), Duration::from_secs(5));
        assert_eq!(timeout(Some(i64::MAX)), TIMEOUT_MAX);
        for asked in [None, Some(0), Some(-1)] {
            assert!((TIMEOUT_MIN..TIMEOUT_MIN * 2).contains(&timeout(asked)), "{asked:?}");
        }
    }
}
