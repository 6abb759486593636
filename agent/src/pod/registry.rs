//! What the node's pods look like right now, for those who only look: the agent's server, the local
//! commands, the image collector. Workers publish; nobody else writes.

use std::collections::HashMap;
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

    /// Images that pods of this node use.
    pub(crate) fn images_in_use(&self) -> Vec<String> {
        let views = self.views();
        let specs = views.values().filter_map(|view| view.pod.spec.as_ref());
        let containers =
            specs.flat_map(|spec| spec::init_containers(spec).iter().chain(&spec.containers));
        containers.filter_map(|container| container.image.clone()).collect()
    }
}
