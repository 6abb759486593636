//! Which pods belong to an owner that selects them: orphans that fit are adopted, own ones that no longer match are released.

use crate::{
    cluster::{Cluster, may_adopt},
    kinds::Pod,
    runtime::{Error, cache::Cache, error::gone_is_fine, object::Kind, selector},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::json;
use std::sync::Arc;

/// The pods of `owner`, after adopting and releasing.
pub(crate) async fn pods<K: Kind>(
    cluster: &Cluster,
    owners: &Cache<K>,
    owner: &K,
    selector: &LabelSelector,
) -> Result<Vec<Arc<Pod>>, Error> {
    let mut claimed = Vec::new();
    for pod in cluster.pods.owned_by(owner.uid()) {
        if selector::matches(selector, pod.labels()) {
            claimed.push(pod);
        } else if !owner.is_deleting() && !pod.is_deleting() {
            release(cluster, owner, &pod).await?;
        }
    }
    if owner.is_deleting() {
        return Ok(claimed);
    }
    let fits = |p: &Arc<Pod>| {
        !p.is_deleting() && !p.is_finished() && selector::matches(selector, p.labels())
    };
    let orphans: Vec<_> =
        cluster.pods.orphans_in(owner.namespace()).into_iter().filter(fits).collect();
    if orphans.is_empty() || !may_adopt(owners, owner).await? {
        return Ok(claimed);
    }
    for orphan in orphans {
        let patch = json!({"metadata": {"ownerReferences": adopted(owner, &*orphan)}});
        claimed.push(cluster.pods.patch_object(&orphan.metadata, patch).await?);
    }
    Ok(claimed)
}

/// The owner references of an orphan with `owner` as its controller.
pub(crate) fn adopted<K: Kind, O: Kind>(owner: &K, orphan: &O) -> serde_json::Value {
    let others = orphan.meta().owner_references.iter().flatten().map(|other| json!(other));
    others.chain([owner.as_controller()]).collect()
}

async fn release<K: Kind>(cluster: &Cluster, owner: &K, pod: &Pod) -> Result<(), Error> {
    let others: Vec<_> =
        pod.metadata.owner_references.iter().flatten().filter(|o| o.uid != owner.uid()).collect();
    let patch = json!({"metadata": {"ownerReferences": others}});
    gone_is_fine(cluster.pods.patch_object(&pod.metadata, patch).await)
}
