//! What the node's pods look like right now, for those who only look: the agent's server, the local
//! commands, the image collector. Workers publish; nobody else writes.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Pod, PodStatus};

use crate::pod::spec;

#[derive(Debug, Clone)]
pub(crate) struct PodView {
    pub(crate) pod: Arc<Pod>,
    pub(crate) status: PodStatus,
    pub(crate) netns: Option<PathBuf>,
    pub(crate) cgroup: String,
}

#[derive(Debug, Default)]
pub(crate) struct Registry {
    views: Mutex<HashMap<String, Arc<PodView>>>,
}

impl Registry {
    fn views(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<PodView>>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn publish(&self, view: PodView) {
        self.views().insert(spec::uid(&view.pod).to_owned(), Arc::new(view));
    }

    pub(crate) fn remove(&self, uid: &str) {
        self.views().remove(uid);
    }

    pub(crate) fn all(&self) -> Vec<Arc<PodView>> {
        let mut all: Vec<Arc<PodView>> = self.views().values().cloned().collect();
        all.sort_by(|a, b| {
            let key = |view: &PodView| {
                (spec::namespace(&view.pod).to_owned(), spec::name(&view.pod).to_owned())
            };
            key(a).cmp(&key(b))
        });
        all
    }

    /// The pod of that name; of several (one on its way out) the one that isn't deleted. `uid` is the
    /// API's, which for a static pod is its mirror's.
    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<Arc<PodView>> {
        let views = self.views();
        let mut found: Vec<&Arc<PodView>> = views
            .values()
            .filter(|view| spec::namespace(&view.pod) == namespace && spec::name(&view.pod) == name)
            .collect();
        found.sort_by_key(|view| view.pod.metadata.deletion_timestamp.is_some());
        found.first().map(|view| Arc::clone(view))
    }

    /// Images that pods of this node use: those they name, and those their containers were made of. A
    /// tag may have moved on since.
    pub(crate) fn images_in_use(&self) -> BTreeSet<String> {
        self.views().values().flat_map(|view| images_of(view)).collect()
    }
}

fn images_of(view: &PodView) -> impl Iterator<Item = String> {
    let specs = view.pod.spec.iter();
    let containers =
        specs.flat_map(|spec| spec::init_containers(spec).iter().chain(&spec.containers));
    let named = containers.filter_map(|container| container.image.clone());
    let status = &view.status;
    let statuses = [
        &status.init_container_statuses,
        &status.container_statuses,
        &status.ephemeral_container_statuses,
    ];
    let made_of = statuses.into_iter().flatten().flatten().map(|status| status.image_id.clone());
    named.chain(made_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_in_use_by_name_and_by_what_runs() {
        let pod = serde_json::from_value(serde_json::json!({
            "metadata": {"uid": "1"},
            "spec": {
                "initContainers": [{"name": "i", "image": "init"}],
                "containers": [{"name": "c", "image": "app:latest"}],
            },
            "status": {"containerStatuses": [{
                "name": "c", "image": "app:latest", "imageID": "docker.io/library/app@sha256:01",
                "ready": true, "restartCount": 0,
            }]},
        }));
        let pod: Pod = pod.unwrap();
        let status = pod.status.clone().unwrap();
        let registry = Registry::default();
        registry.publish(PodView {
            pod: Arc::new(pod),
            status,
            netns: None,
            cgroup: String::new(),
        });
        let used: Vec<String> = registry.images_in_use().into_iter().collect();
        assert_eq!(used, ["app:latest", "docker.io/library/app@sha256:01", "init"]);
    }
}
