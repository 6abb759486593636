//! The EndpointSlice and Endpoints controllers: which addresses stand behind a service.
//! One reconcile per service writes its slices and its legacy Endpoints; both are decided purely.

pub(crate) mod endpoints;
mod plan;

use crate::{
    cluster::Cluster,
    kinds::{EndpointSlice, Pod, Service},
    runtime::{
        Error, Key, Next, WorkQueue, error::gone_is_fine, events::Tone, object::Kind, run_workers,
        selector, write::Deletion,
    },
};
use plan::Change;
use serde_json::json;
use std::sync::Arc;

const COMPONENT: &str = "endpoint-slice-controller";
/// Services worked on at one time.
const WORKERS: usize = 4;
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";

/// Registers the handlers and gives the work to be run.
pub(crate) fn start(cluster: &Arc<Cluster>) -> impl Future<Output = ()> + use<> {
    let queue = WorkQueue::new();
    let q = Arc::clone(&queue);
    cluster.services.on_change(move |change| {
        if let Some(service) = change.latest() {
            q.add(service.key());
        }
    });
    let q = Arc::clone(&queue);
    cluster.endpoint_slices.on_change(move |change| {
        for slice in change.both().filter(|s| is_ours(s)) {
            if let Some(name) = slice.labels().get(SERVICE_NAME) {
                q.add(Key::new(slice.namespace(), name));
            }
        }
    });
    let q = Arc::clone(&queue);
    cluster.endpoints.on_change(move |change| {
        if let Some(endpoints) = change.latest() {
            q.add(endpoints.key());
        }
    });
    let q = Arc::clone(&queue);
    let services = Arc::clone(&cluster.services);
    cluster.pods.on_change(move |change| {
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && !plan::matters(old, new)
        {
            return;
        }
        let Some(pod) = change.latest() else { return };
        for service in services.in_namespace(pod.namespace()) {
            if change.both().any(|p| selects(&service, p)) {
                q.add(service.key());
            }
        }
    });
    let q = Arc::clone(&queue);
    let services = Arc::clone(&cluster.services);
    cluster.nodes.on_change(move |change| {
        let zone = |n: &Option<Arc<crate::kinds::Node>>| {
            n.as_ref().and_then(|n| n.labels().get(plan::ZONE).cloned())
        };
        if zone(&change.old) != zone(&change.new) {
            services.list().iter().for_each(|s| q.add(s.key()));
        }
    });
    let cluster = Arc::clone(cluster);
    run_workers(COMPONENT, queue, WORKERS, move |key| {
        let cluster = Arc::clone(&cluster);
        async move { reconcile(&cluster, &key).await }
    })
}

fn is_ours(slice: &EndpointSlice) -> bool {
    slice.labels().get(MANAGED_BY).is_some_and(|m| m == MANAGER)
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let Some(wanted) = service.spec.selector.as_ref().filter(|s| !s.is_empty()) else {
        return false;
    };
    selector::matches_map(Some(wanted), pod.labels())
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Result<Next, Error> {
    let service = cluster.services.get(key).filter(|s| !s.is_deleting());
    let wants = |s: &Arc<Service>| {
        s.spec.selector.as_ref().is_some_and(|l| !l.is_empty())
            && s.spec.kind.as_deref() != Some("ExternalName")
    };
    let Some(service) = service else {
        // The garbage collector takes the slices; the Endpoints have no owner.
        return endpoints::remove(cluster, key).await.map(|()| Next::Done);
    };
    if !wants(&service) {
        return Ok(Next::Done);
    }
    let pods: Vec<Arc<Pod>> = cluster
        .pods
        .in_namespace(&key.namespace)
        .into_iter()
        .filter(|p| selects(&service, p))
        .collect();
    let result = write_slices(cluster, &service, &pods).await;
    if let Err(error) = &result
        && !error.is_expected()
    {
        let message = format!("Error updating Endpoint Slices for Service {key}: {error}");
        let what = ("FailedToUpdateEndpointSlices", message);
        cluster.events.tell(COMPONENT, &*service, Tone::Warning, what);
    }
    endpoints::write(cluster, &service, &pods).await?;
    result.map(|()| Next::Done)
}

async fn write_slices(
    cluster: &Cluster,
    service: &Service,
    pods: &[Arc<Pod>],
) -> Result<(), Error> {
    let mine = |s: &Arc<EndpointSlice>| {
        !s.is_deleting()
            && is_ours(s)
            && s.labels().get(SERVICE_NAME).is_some_and(|n| n == service.name())
    };
    let existing: Vec<_> = cluster
        .endpoint_slices
        .in_namespace(service.namespace())
        .into_iter()
        .filter(mine)
        .collect();
    let zone = |node: &str| {
        cluster.nodes.get(&Key::new("", node)).and_then(|n| n.labels().get(plan::ZONE).cloned())
    };
    let changes = plan::slices(service, pods, &existing, &zone);
    let trigger = cluster.now().to_string();
    // Creations and updates before deletions: an address is rather in two slices than in none.
    for change in changes {
        match change {
            Change::Create(mut body) => {
                body["metadata"]["annotations"] = json!({ plan::TRIGGER_TIME: trigger });
                cluster.endpoint_slices.create(service.namespace(), &body).await?;
            }
            Change::Update(slice, mut patch) => {
                patch["metadata"]["annotations"] = json!({ plan::TRIGGER_TIME: trigger });
                gone_is_fine(cluster.endpoint_slices.patch_object(&slice.metadata, patch).await)?;
            }
            Change::Delete(slice) => {
                let how = Deletion { same_version: true, ..Deletion::default() };
                cluster.endpoint_slices.delete(&slice.metadata, how).await?;
            }
        }
    }
    Ok(())
}
