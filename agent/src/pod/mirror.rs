//! Mirrors: what the master shows of static pods. Planned from both sides, applied one object at a
//! time; a mirror never makes anything run.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use tracing::warn;

use crate::connection::chain;
use crate::context::Context;
use crate::pod::spec;
use crate::pod::state::doubled;
use crate::source::{HASH_ANNOTATION, MIRROR_ANNOTATION, annotation};

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirror {
    pub(crate) uid: String,
    /// Which version of the static pod it shows.
    pub(crate) hash: String,
    pub(crate) deleted: bool,
}

impl Mirror {
    pub(crate) fn of(pod: &Pod) -> Mirror {
        Mirror {
            uid: spec::uid(pod).to_owned(),
            hash: annotation(pod, MIRROR_ANNOTATION).unwrap_or_default().to_owned(),
            deleted: pod.metadata.deletion_timestamp.is_some(),
        }
    }
}

pub(crate) type Key = (String, String);

pub(crate) fn key(pod: &Pod) -> Key {
    (spec::namespace(pod).to_owned(), spec::name(pod).to_owned())
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Create(Arc<Pod>),
    Delete { key: Key, uid: String },
}

/// What is missing on the master, and what is too much.
pub(crate) fn plan(statics: &[Arc<Pod>], mirrors: &HashMap<Key, Mirror>) -> Vec<Step> {
    let mut steps = Vec::new();
    for (key_, mirror) in mirrors {
        let wanted = statics.iter().find(|pod| key(pod) == *key_);
        let same = wanted.and_then(|pod| annotation(pod, HASH_ANNOTATION)) == Some(&mirror.hash);
        if !same || mirror.deleted {
            steps.push(Step::Delete { key: key_.clone(), uid: mirror.uid.clone() });
        }
    }
    for pod in statics.iter().filter(|pod| !mirrors.contains_key(&key(pod))) {
        steps.push(Step::Create(pod.clone()));
    }
    steps
}

/// Does every step, again after a while those that failed; their effect comes back through the watch.
pub(crate) async fn apply(context: Arc<Context>, mut steps: Vec<Step>) {
    let mut failures = 0;
    while !steps.is_empty() {
        let mut left = Vec::new();
        for step in steps {
            let result = match &step {
                Step::Create(pod) => create(&context, pod).await,
                Step::Delete { key, uid } => delete(&context, key, uid).await,
            };
            if let Err(error) = result
                && !is_settled(&step, &error)
            {
                warn!(error = %chain(&error), "a mirror pod is not up to date");
                left.push(step);
            }
        }
        steps = left;
        if !steps.is_empty() {
            tokio::time::sleep(doubled(RETRY_FIRST, failures, RETRY_MAX)).await;
            failures += 1;
        }
    }
}

/// Whether there is nothing left to do: the watch tells of the object that is there.
fn is_settled(step: &Step, error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    match step {
        // What isn't found is the node or the namespace, which may come.
        Step::Create(_) => status.code == 409,
        Step::Delete { .. } => [404, 409].contains(&status.code),
    }
}

async fn create(context: &Context, pod: &Pod) -> Result<(), kube::Error> {
    let node: Node = Api::all(context.client.clone()).get(&context.config.node_name).await?;
    let mut annotations: BTreeMap<String, String> =
        pod.metadata.annotations.clone().unwrap_or_default();
    let hash = annotations.get(HASH_ANNOTATION).cloned().unwrap_or_default();
    annotations.insert(MIRROR_ANNOTATION.to_owned(), hash);
    let mirror = Pod {
        metadata: ObjectMeta {
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            labels: pod.metadata.labels.clone(),
            annotations: Some(annotations),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: context.config.node_name.clone(),
                uid: node.metadata.uid.unwrap_or_default(),
                controller: Some(true),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: pod.spec.clone(),
        status: None,
    };
    let api: Api<Pod> = Api::namespaced(context.client.clone(), spec::namespace(pod));
    api.create(&PostParams::default(), &mirror).await.map(|_| ())
}

async fn delete(context: &Context, key: &Key, uid: &str) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &key.0);
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
        ..DeleteParams::default()
    };
    api.delete(&key.1, &params).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_master_shows_exactly_the_static_pods() {
        let pod = |name: &str, hash: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(serde_json::json!({"metadata": {
                    "name": name, "namespace": "n", "annotations": {HASH_ANNOTATION: hash}}}))
                .unwrap(),
            )
        };
        let mirror = |hash: &str, deleted| Mirror { uid: "m".into(), hash: hash.into(), deleted };
        let mirrors = HashMap::from([
            (("n".to_owned(), "same".to_owned()), mirror("1", false)),
            (("n".to_owned(), "old".to_owned()), mirror("1", false)),
            (("n".to_owned(), "orphan".to_owned()), mirror("1", false)),
            (("n".to_owned(), "deleted".to_owned()), mirror("1", true)),
        ]);
        let statics = [pod("same", "1"), pod("old", "2"), pod("deleted", "1"), pod("new", "1")];
        let mut steps: Vec<String> = plan(&statics, &mirrors)
            .into_iter()
            .map(|step| match step {
                Step::Create(pod) => format!("create {}", spec::name(&pod)),
                Step::Delete { key, .. } => format!("delete {}", key.1),
            })
            .collect();
        steps.sort();
        assert_eq!(steps, ["create new", "delete deleted", "delete old", "delete orphan"]);
    }

    #[test]
    fn only_what_the_watch_will_tell_of_is_not_tried_again() {
        let create = Step::Create(Arc::default());
        let delete = Step::Delete { key: ("n".into(), "p".into()), uid: "u".into() };
        for (step, code, settled) in [
            (&create, 409, true),
            (&create, 404, false),
            (&create, 503, false),
            (&delete, 404, true),
            (&delete, 409, true),
            (&delete, 500, false),
        ] {
            let status = kube::core::Status { code, ..Default::default() };
            assert_eq!(is_settled(step, &kube::Error::Api(Box::new(status))), settled, "{code}");
        }
    }
}
