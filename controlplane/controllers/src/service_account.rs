//! The service account and root-CA publishing controllers: each namespace has ServiceAccount `default` and ConfigMap
//! `kube-root-ca.crt`. Own nothing else in a namespace.

use crate::{
    cluster::{Cluster, ROOT_CA_MAP},
    kinds::Namespace,
    runtime::{Error, Key, Next, WorkQueue, object::Kind, run_workers},
};
use serde_json::json;
use std::sync::Arc;

/// Namespaces worked on at one time.
const WORKERS: usize = 2;
const DEFAULT: &str = "default";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

/// Registers the handlers and gives the work to be run.
pub(crate) fn start(cluster: &Arc<Cluster>) -> impl Future<Output = ()> + use<> {
    let queue = WorkQueue::new();
    let q = Arc::clone(&queue);
    cluster.namespaces.on_change(move |change| {
        if let Some(namespace) = &change.new {
            q.add(namespace.key());
        }
    });
    let q = Arc::clone(&queue);
    cluster.service_accounts.on_change(move |change| {
        if let (Some(gone), None) = (&change.old, &change.new)
            && gone.name() == DEFAULT
        {
            q.add(Key::new("", gone.namespace()));
        }
    });
    let q = Arc::clone(&queue);
    cluster.root_ca_maps.on_change(move |change| {
        if let Some(map) = change.latest() {
            q.add(Key::new("", map.namespace()));
        }
    });
    let cluster = Arc::clone(cluster);
    run_workers("serviceaccount-controller", queue, WORKERS, move |key| {
        let cluster = Arc::clone(&cluster);
        async move { reconcile(&cluster, &key).await }
    })
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Result<Next, Error> {
    let active = |n: &Arc<Namespace>| {
        !n.is_deleting() && n.status.phase.as_deref().is_none_or(|p| p == "Active")
    };
    if !cluster.namespaces.get(key).is_some_and(|n| active(&n)) {
        return Ok(Next::Done);
    }
    ensure_account(cluster, &key.name).await?;
    ensure_root_ca(cluster, &key.name).await?;
    Ok(Next::Done)
}

async fn ensure_account(cluster: &Cluster, namespace: &str) -> Result<(), Error> {
    if cluster.service_accounts.get(&Key::new(namespace, DEFAULT)).is_some() {
        return Ok(());
    }
    let body = json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": DEFAULT, "namespace": namespace},
    });
    there_is_fine(cluster.service_accounts.create(namespace, &body).await)
}

async fn ensure_root_ca(cluster: &Cluster, namespace: &str) -> Result<(), Error> {
    let pem = &cluster.config.root_ca_pem;
    match cluster.root_ca_maps.get(&Key::new(namespace, ROOT_CA_MAP)) {
        None => {
            let body = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": ROOT_CA_MAP, "namespace": namespace,
                    "annotations": {"kubernetes.io/description": DESCRIPTION}},
                "data": {"ca.crt": pem},
            });
            there_is_fine(cluster.root_ca_maps.create(namespace, &body).await)
        }
        Some(map) if map.data.len() == 1 && map.data.get("ca.crt") == Some(pem) => Ok(()),
        Some(map) => {
            let mut data = json!({});
            for key in map.data.keys() {
                data[key] = serde_json::Value::Null;
            }
            data["ca.crt"] = json!(pem);
            cluster
                .root_ca_maps
                .patch_object(&map.metadata, json!({ "data": data }))
                .await
                .map(drop)
        }
    }
}

fn there_is_fine<T>(result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_already_exists() || error.is_namespace_terminating() => Ok(()),
        other => other.map(drop),
    }
}
