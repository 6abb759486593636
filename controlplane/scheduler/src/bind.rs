//! The scheduler's writes: bindings, the PodScheduled condition, events. Knows nothing of the queue.
//!
//! Each write carries the pod's UID, so that it never meets a successor of the same name.

use crate::pod::PodInfo;
use jiff::Timestamp;
use kube::{
    Client,
    core::{
        Request,
        params::{Patch, PatchParams, PostParams},
    },
};
use serde_json::{Value, json};
use std::{collections::HashMap, sync::Arc};

/// Repeated events that are counted up instead of written anew.
const EVENTS_REMEMBERED_MAX: usize = 1024;

/// How a binding ended.
#[derive(Debug)]
pub(crate) enum Bound {
    /// Written.
    Yes,
    /// The pod is gone or somebody else bound it; its watch events say the rest.
    Overtaken,
    /// Try again.
    Failed(String),
}

fn pods_path(pod: &PodInfo) -> String {
    format!("/api/v1/namespaces/{}/pods", pod.namespace)
}

/// Binds the pod to the node.
pub(crate) async fn apply_binding(client: &Client, pod: &PodInfo, node: &str) -> Bound {
    let body = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": &*pod.uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let request = Request::new(pods_path(pod)).create_subresource(
        "binding",
        &pod.name,
        &PostParams::default(),
        body.to_string().into_bytes(),
    );
    let request = match request {
        Ok(request) => request,
        Err(error) => return Bound::Failed(error.to_string()),
    };
    match client.request::<Value>(request).await {
        Ok(_) => Bound::Yes,
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Bound::Overtaken,
        Err(kube::Error::Api(status)) => Bound::Failed(status.message),
        Err(error) => Bound::Failed(error.to_string()),
    }
}

/// Writes PodScheduled=False, unless the pod says so already.
pub(crate) async fn apply_unschedulable(
    client: &Client,
    pod: &PodInfo,
    message: &str,
) -> Result<(), kube::Error> {
    if pod.unschedulable_message.as_deref() == Some(message) {
        return Ok(());
    }
    let patch = json!({
        "metadata": {"uid": &*pod.uid},
        "status": {"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastProbeTime": null, "lastTransitionTime": seconds(Timestamp::now()),
        }]},
    });
    let request = Request::new(pods_path(pod))
        .patch_subresource("status", &pod.name, &PatchParams::default(), &Patch::Strategic(patch))
        .map_err(kube::Error::BuildRequest)?;
    match client.request::<Value>(request).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other.map(drop),
    }
}

fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Something to tell people about a pod.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) pod: Arc<PodInfo>,
    pub(crate) warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct NoteKey {
    uid: Arc<str>,
    reason: &'static str,
    message: String,
}

struct Written {
    name: String,
    uid: String,
    count: u32,
}

/// Writes events and counts repetitions up.
pub(crate) struct Recorder {
    client: Client,
    component: String,
    written: HashMap<NoteKey, Written>,
}

impl Recorder {
    pub(crate) fn new(client: Client, component: String) -> Self {
        Self { client, component, written: HashMap::new() }
    }

    /// Writes one event or counts it up.
    pub(crate) async fn apply(&mut self, note: Note) -> Result<(), kube::Error> {
        let key = NoteKey {
            uid: Arc::clone(&note.pod.uid),
            reason: note.reason,
            message: note.message.clone(),
        };
        if let Some(seen) = self.written.get_mut(&key) {
            match count_up(&self.client, &note.pod.namespace, seen).await {
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                    self.written.remove(&key);
                }
                other => return other,
            }
        }
        let written = self.create(&note).await?;
        // FailedScheduling is what repeats; Scheduled comes once.
        if note.warning {
            if self.written.len() >= EVENTS_REMEMBERED_MAX {
                self.written.clear();
            }
            self.written.insert(key, written);
        }
        Ok(())
    }

    async fn create(&self, note: &Note) -> Result<Written, kube::Error> {
        let now = Timestamp::now();
        let pod = &note.pod;
        let name = format!("{}.{:x}", pod.name, now.as_nanosecond());
        let body = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": pod.namespace},
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "name": pod.name, "namespace": pod.namespace,
                "uid": &*pod.uid, "resourceVersion": pod.resource_version,
            },
            "type": if note.warning { "Warning" } else { "Normal" },
            "reason": note.reason, "message": note.message,
            "source": {"component": self.component},
            "reportingComponent": self.component, "reportingInstance": "",
            "firstTimestamp": seconds(now), "lastTimestamp": seconds(now), "count": 1,
            "eventTime": null,
        });
        let path = format!("/api/v1/namespaces/{}/events", pod.namespace);
        let request = Request::new(path)
            .create(&PostParams::default(), body.to_string().into_bytes())
            .map_err(kube::Error::BuildRequest)?;
        let made: Value = self.client.request(request).await?;
        let uid = made["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        Ok(Written { name, uid, count: 1 })
    }
}

async fn count_up(client: &Client, namespace: &str, seen: &mut Written) -> Result<(), kube::Error> {
    seen.count += 1;
    let patch = json!({
        "metadata": {"uid": seen.uid},
        "count": seen.count, "lastTimestamp": seconds(Timestamp::now()),
    });
    let request = Request::new(format!("/api/v1/namespaces/{namespace}/events"))
        .patch(&seen.name, &PatchParams::default(), &Patch::Merge(patch))
        .map_err(kube::Error::BuildRequest)?;
    client.request::<Value>(request).await.map(drop)
}
