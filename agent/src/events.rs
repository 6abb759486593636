//! Events about pods and the node, written in the background in order. Repeats of one event raise
//! its count. It never delays or fails the one who tells it something.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::pod::spec;

/// Events waiting to be written; more are dropped (they are a courtesy, not a record).
const QUEUE_EVENTS_MAX: usize = 512;
/// Distinct events remembered to count repeats.
const REMEMBERED_MAX: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Normal,
    Warning,
}

#[derive(Debug)]
struct Told {
    object: ObjectReference,
    kind: Kind,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Told>,
}

impl Recorder {
    /// The recorder and the task that writes, to be spawned by the caller.
    pub(crate) fn new(
        client: kube::Client,
        node_name: String,
    ) -> (Recorder, impl Future<Output = ()> + Send) {
        let (queue, told) = mpsc::channel(QUEUE_EVENTS_MAX);
        (Recorder { queue }, write(client, node_name, told))
    }

    /// Tells something about a pod, or one container of it.
    pub(crate) fn pod(
        &self,
        pod: &Pod,
        container: Option<&str>,
        (kind, reason): (Kind, &'static str),
        message: impl Into<String>,
    ) {
        let field_path = container.map(|name| {
            let init = pod.spec.as_ref().is_some_and(|spec| {
                spec::init_containers(spec).iter().any(|container| container.name == name)
            });
            let list = if init { "initContainers" } else { "containers" };
            format!("spec.{list}{{{name}}}")
        });
        let object = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path,
        };
        self.tell(object, kind, reason, message.into());
    }

    /// Tells something about the node.
    pub(crate) fn node(&self, name: &str, kind: Kind, reason: &'static str, message: String) {
        let object = ObjectReference {
            kind: Some("Node".into()),
            name: Some(name.to_owned()),
            uid: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        self.tell(object, kind, reason, message);
    }

    fn tell(&self, object: ObjectReference, kind: Kind, reason: &'static str, message: String) {
        debug!(object = ?object.name, reason, message, "event");
        let told = Told { object, kind, reason, message, at: Timestamp::now() };
        if self.queue.try_send(told).is_err() {
            warn!(reason, "an event was dropped: too many are waiting");
        }
    }
}

type Key = (Option<String>, Option<String>, &'static str, String);

async fn write(client: kube::Client, node_name: String, mut told: mpsc::Receiver<Told>) {
    let mut seen: HashMap<Key, (String, i32)> = HashMap::new();
    while let Some(event) = told.recv().await {
        let namespace = event.object.namespace.clone().unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let key = (
            event.object.uid.clone(),
            event.object.field_path.clone(),
            event.reason,
            event.message.clone(),
        );
        let result = match seen.get_mut(&key) {
            Some((name, count)) => {
                *count += 1;
                repeat(&api, name, *count, event.at).await
            }
            None => Err(None),
        };
        let result = match result {
            Ok(()) => Ok(()),
            Err(Some(error)) if !is_not_found(&error) => Err(error),
            Err(_) => {
                let object = render(event, &node_name, &namespace);
                let name = object.metadata.name.clone().unwrap_or_default();
                if seen.len() >= REMEMBERED_MAX {
                    seen.clear();
                }
                seen.insert(key, (name, 1));
                api.create(&PostParams::default(), &object).await.map(|_| ())
            }
        };
        if let Err(error) = result {
            warn!(error = %crate::connection::chain(&error), "an event could not be written");
        }
    }
}

fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

async fn repeat(
    api: &Api<Event>,
    name: &str,
    count: i32,
    at: Timestamp,
) -> Result<(), Option<kube::Error>> {
    let patch = serde_json::json!({"count": count, "lastTimestamp": Time(at)});
    let patched = api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await;
    patched.map(|_| ()).map_err(Some)
}

fn render(told: Told, node_name: &str, namespace: &str) -> Event {
    let base = told.object.name.clone().unwrap_or_default();
    let suffix = told.at.as_nanosecond();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{base}.{suffix:x}")),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: told.object,
        reason: Some(told.reason.to_owned()),
        message: Some(told.message),
        type_: Some(if told.kind == Kind::Normal { "Normal" } else { "Warning" }.to_owned()),
        count: Some(1),
        first_timestamp: Some(Time(told.at)),
        last_timestamp: Some(Time(told.at)),
        source: Some(EventSource {
            component: Some("kubelet".into()),
            host: Some(node_name.to_owned()),
        }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(node_name.to_owned()),
        ..Event::default()
    }
}
