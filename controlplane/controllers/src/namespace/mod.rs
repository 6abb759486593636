//! The namespace controller: empties a namespace in deletion, then lets it go.
//! Finds the content by discovery; each object is deleted by its UID. Conditions are planned in [`plan`].

mod plan;

use crate::{
    cluster::Cluster,
    kinds::Namespace,
    runtime::{
        Error, Key, Next, WorkQueue,
        discovery::{ServedKind, discover},
        object::Kind,
        run_workers,
        write::raw_delete,
    },
};
use futures::{StreamExt, TryStreamExt, stream};
use kube::core::{ObjectList, ObjectMeta, PartialObjectMeta, Request, params::ListParams};
use plan::Findings;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// Namespaces worked on at one time.
const WORKERS: usize = 2;
/// Kinds, and objects of one kind, deleted at one time.
const DELETIONS_MAX: usize = 8;
/// Objects of one page of a list.
const PAGE: u32 = 500;
/// Objects that end by themselves (grace periods, finalizers) are looked at again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
const FINALIZER: &str = "kubernetes";

/// Registers the handlers and gives the work to be run.
pub(crate) fn start(cluster: &Arc<Cluster>) -> impl Future<Output = ()> + use<> {
    let queue = WorkQueue::new();
    let q = Arc::clone(&queue);
    cluster.namespaces.on_change(move |change| {
        if let Some(namespace) = change.new.as_ref().filter(|n| n.is_deleting()) {
            q.add(namespace.key());
        }
    });
    // The last pod is mostly what a namespace waits for.
    let q = Arc::clone(&queue);
    let namespaces = Arc::clone(&cluster.namespaces);
    cluster.pods.on_change(move |change| {
        if let (Some(pod), None) = (&change.old, &change.new) {
            let key = Key::new("", pod.namespace());
            if namespaces.get(&key).is_some_and(|n| n.is_deleting()) {
                q.add(key);
            }
        }
    });
    let cluster = Arc::clone(cluster);
    run_workers("namespace-controller", queue, WORKERS, move |key| {
        let cluster = Arc::clone(&cluster);
        async move { reconcile(&cluster, &key).await }
    })
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Result<Next, Error> {
    let Some(namespace) = cluster.namespaces.get(key).filter(|n| n.is_deleting()) else {
        return Ok(Next::Done);
    };
    if !namespace.spec.finalizers.iter().any(|f| f == FINALIZER) {
        return Ok(Next::Done);
    }
    let findings = empty(cluster, &key.name).await;
    let namespace = write_status(cluster, &namespace, &findings).await?;
    if findings.is_empty() {
        finalize(cluster, &namespace).await?;
        return Ok(Next::Done);
    }
    Ok(Next::After(LOOK_AGAIN))
}

/// Deletes everything in the namespace and says what is left.
async fn empty(cluster: &Cluster, namespace: &str) -> Findings {
    let mut findings = Findings::default();
    let served = match discover(&cluster.client).await {
        Ok(served) => served,
        Err(error) => {
            findings.discovery_errors.push(error.to_string());
            return findings;
        }
    };
    findings.discovery_errors.extend(
        served
            .unanswered
            .iter()
            .map(|v| format!("unable to retrieve the complete list of server APIs: {v}")),
    );
    let deletable = |k: &ServedKind| k.namespaced && k.can("list") && k.can("delete");
    let kinds: Vec<ServedKind> = served.kinds.into_iter().filter(deletable).collect();
    let results: Vec<_> = stream::iter(kinds)
        .map(|kind| async move {
            let result = delete_all(cluster, &kind, namespace).await;
            (kind, result)
        })
        .buffer_unordered(DELETIONS_MAX)
        .collect()
        .await;
    for (kind, result) in results {
        match result {
            Ok(left) => findings.note(&kind.api, &left),
            Err(error) if error.is_not_found() => {}
            Err(error) => findings.deletion_errors.push(format!("{}: {error}", kind.api.plural)),
        }
    }
    findings
}

/// Deletes all objects of the kind; those that go on living are returned.
async fn delete_all(
    cluster: &Cluster,
    kind: &ServedKind,
    namespace: &str,
) -> Result<Vec<ObjectMeta>, Error> {
    let path = kind.path(namespace);
    let found = list(cluster, &path).await?;
    let deletions = found.into_iter().map(|meta| {
        let path = format!("{path}/{}", meta.name.as_deref().unwrap_or_default());
        async move { delete_one(cluster, &path, meta).await }
    });
    let left: Vec<Option<ObjectMeta>> =
        stream::iter(deletions).buffer_unordered(DELETIONS_MAX).try_collect().await?;
    Ok(left.into_iter().flatten().collect())
}

async fn list(cluster: &Cluster, path: &str) -> Result<Vec<ObjectMeta>, Error> {
    let mut all = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let request =
            Request::new(path).list_metadata(&params).map_err(kube::Error::BuildRequest)?;
        let page: ObjectList<PartialObjectMeta> = cluster.client.request(request).await?;
        all.extend(page.items.into_iter().map(|o| o.metadata));
        match page.metadata.continue_.filter(|c| !c.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(all),
        }
    }
}

async fn delete_one(
    cluster: &Cluster,
    path: &str,
    meta: ObjectMeta,
) -> Result<Option<ObjectMeta>, Error> {
    if meta.deletion_timestamp.is_some() {
        return Ok(Some(meta));
    }
    let body = json!({
        "apiVersion": "v1", "kind": "DeleteOptions",
        "preconditions": {"uid": meta.uid}, "propagationPolicy": "Background",
    });
    match cluster.client.request::<Value>(raw_delete(path, &body)?).await {
        Ok(answer) if answer["metadata"]["deletionTimestamp"].is_null() => Ok(None),
        Ok(_) => Ok(Some(meta)),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn write_status(
    cluster: &Cluster,
    namespace: &Arc<Namespace>,
    findings: &Findings,
) -> Result<Arc<Namespace>, Error> {
    let conditions = plan::conditions(&namespace.status.conditions, findings, cluster.now());
    let terminating = namespace.status.phase.as_deref() == Some("Terminating");
    match conditions {
        None if terminating => Ok(Arc::clone(namespace)),
        conditions => {
            let conditions = conditions.unwrap_or_else(|| namespace.status.conditions.clone());
            let status = json!({"phase": "Terminating", "conditions": conditions});
            cluster.namespaces.patch_status(&namespace.metadata, status).await
        }
    }
}

/// Takes our finalizer off; the API server removes the namespace with the last one.
async fn finalize(cluster: &Cluster, namespace: &Namespace) -> Result<(), Error> {
    let left: Vec<&String> = namespace.spec.finalizers.iter().filter(|f| *f != FINALIZER).collect();
    let body = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": namespace.name(), "uid": namespace.uid(),
            "resourceVersion": namespace.version(),
        },
        "spec": {"finalizers": left},
    });
    let request = Request::new("/api/v1/namespaces")
        .replace_subresource(
            "finalize",
            namespace.name(),
            &kube::core::params::PostParams::default(),
            body.to_string().into_bytes(),
        )
        .map_err(kube::Error::BuildRequest)?;
    match cluster.client.request::<Value>(request).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}
