//! Where pods come from: the master, and a folder of manifests. Each source tells the dispatcher
//! what is wanted; neither acts on pods.

pub(crate) mod api;
pub(crate) mod manifests;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

/// Annotations of static pods and their mirrors, as kubelet's.
pub(crate) const SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";
pub(crate) const HASH_ANNOTATION: &str = "kubernetes.io/config.hash";
pub(crate) const SEEN_ANNOTATION: &str = "kubernetes.io/config.seen";
pub(crate) const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// Updates that may wait for the dispatcher.
pub(crate) const UPDATES_MAX: usize = 256;

#[derive(Debug)]
pub(crate) enum Update {
    /// Everything the master assigns to this node.
    Listed(Vec<Arc<Pod>>),
    Applied(Arc<Pod>),
    Deleted(Arc<Pod>),
    /// Everything in the manifests folder.
    Manifests(Vec<Arc<Pod>>),
    /// A worker has finished.
    Finished(String),
}

pub(crate) fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

pub(crate) fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, MIRROR_ANNOTATION).is_some()
}
