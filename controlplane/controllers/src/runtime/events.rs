//! Events for people: written by one task, repetitions counted up, a flood cut off. Never part of a decision.

use super::{Error, object::Kind};
use crate::config::Clock;
use jiff::Timestamp;
use kube::{
    Client,
    core::{
        Request,
        params::{Patch, PatchParams, PostParams},
    },
};
use serde_json::{Value, json};
use std::collections::HashMap;
use tokio::sync::mpsc;

/// Events waiting to be written; more are left out.
const WAITING_MAX: usize = 1024;
/// Repeated events that are counted up instead of written anew.
const REMEMBERED_MAX: usize = 1024;

struct Note {
    component: &'static str,
    object: Value,
    namespace: String,
    warning: bool,
    reason: String,
    message: String,
}

#[derive(PartialEq, Eq, Hash)]
struct NoteKey {
    uid: String,
    reason: String,
    message: String,
}

struct Written {
    name: String,
    uid: String,
    count: u32,
}

/// Hands events to the writing task.
#[derive(Clone)]
pub(crate) struct Recorder {
    notes: mpsc::Sender<Note>,
}

/// The receiving end, to be run as a task.
pub(crate) struct EventWriter {
    client: Client,
    clock: Clock,
    inbox: mpsc::Receiver<Note>,
    written: HashMap<NoteKey, Written>,
}

/// How an event reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Normal,
    Warning,
}

pub(crate) fn recorder(client: Client, clock: Clock) -> (Recorder, EventWriter) {
    let (notes, inbox) = mpsc::channel(WAITING_MAX);
    (Recorder { notes }, EventWriter { client, clock, inbox, written: HashMap::new() })
}

impl Recorder {
    /// Tells of something that happened to `object`.
    pub(crate) fn tell<K: Kind>(
        &self,
        component: &'static str,
        object: &K,
        tone: Tone,
        (reason, message): (&str, String),
    ) {
        let reference = json!({
            "apiVersion": K::api_version(&()), "kind": <K as kube::Resource>::kind(&()),
            "namespace": object.meta().namespace, "name": object.name(), "uid": object.uid(),
            "resourceVersion": object.version(),
        });
        let namespace = object.meta().namespace.clone().unwrap_or_else(|| "default".into());
        let warning = tone == Tone::Warning;
        let note = Note {
            component,
            object: reference,
            namespace,
            warning,
            reason: reason.into(),
            message,
        };
        if self.notes.try_send(note).is_err() {
            tracing::debug!("too many events wait; one is left out");
        }
    }
}

fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl EventWriter {
    pub(crate) async fn run(mut self) {
        while let Some(note) = self.inbox.recv().await {
            // A namespace in deletion refuses new events; that is no news for anybody.
            if let Err(error) = self.apply(&note).await {
                tracing::debug!(reason = %note.reason, %error, "event not written");
            }
        }
    }

    async fn apply(&mut self, note: &Note) -> Result<(), Error> {
        let key = NoteKey {
            uid: note.object["uid"].as_str().unwrap_or_default().into(),
            reason: note.reason.clone(),
            message: note.message.clone(),
        };
        if let Some(seen) = self.written.get_mut(&key) {
            match count_up(&self.client, &note.namespace, seen, self.clock.now()).await {
                Err(error) if error.is_not_found() || error.is_conflict() => {
                    self.written.remove(&key);
                }
                other => return other,
            }
        }
        let written = self.create(note).await?;
        if self.written.len() >= REMEMBERED_MAX {
            self.written.clear();
        }
        self.written.insert(key, written);
        Ok(())
    }

    async fn create(&self, note: &Note) -> Result<Written, Error> {
        let now = self.clock.now();
        let involved = note.object["name"].as_str().unwrap_or_default();
        let name = format!("{involved}.{:x}", now.as_nanosecond());
        let body = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": note.namespace},
            "involvedObject": note.object,
            "type": if note.warning { "Warning" } else { "Normal" },
            "reason": note.reason, "message": note.message,
            "source": {"component": note.component},
            "reportingComponent": note.component, "reportingInstance": "",
            "firstTimestamp": seconds(now), "lastTimestamp": seconds(now), "count": 1,
            "eventTime": null,
        });
        let request = Request::new(format!("/api/v1/namespaces/{}/events", note.namespace))
            .create(&PostParams::default(), body.to_string().into_bytes())
            .map_err(kube::Error::BuildRequest)?;
        let made: Value = self.client.request(request).await?;
        let uid = made["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        Ok(Written { name, uid, count: 1 })
    }
}

async fn count_up(
    client: &Client,
    namespace: &str,
    seen: &mut Written,
    now: Timestamp,
) -> Result<(), Error> {
    seen.count += 1;
    let patch = json!({
        "metadata": {"uid": seen.uid}, "count": seen.count, "lastTimestamp": seconds(now),
    });
    let request = Request::new(format!("/api/v1/namespaces/{namespace}/events"))
        .patch(&seen.name, &PatchParams::default(), &Patch::Merge(patch))
        .map_err(kube::Error::BuildRequest)?;
    client.request::<Value>(request).await?;
    Ok(())
}
