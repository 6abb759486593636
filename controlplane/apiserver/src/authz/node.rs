//! The Node authorizer: a node reads only what its pods refer to, and writes only what is its own.
//!
//! Owns the projection of pods per node with their references, and upstream's rules for `system:node:<name>`
//! (Kubernetes 1.36, `plugin/pkg/auth/authorizer/node`). What a node may *put into* its objects is the admission
//! plugin NodeRestriction's. Ours, beyond upstream: a node may delete its own Node (it leaves the cluster).
//! Invariant: a secret, config map, claim or volume that no pod of the node refers to is never readable by it.

use super::attributes::{Attributes, ResourceTarget, Target};
use super::feed::Projection;
use super::pod_references::{PodReferences, ReferenceKind};
use super::rules::Rule;
use crate::lookup::{Lookup, prefix};
use serde::Deserialize;
use std::collections::HashMap;
use store::Entry;

const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Pods by node.
#[derive(Debug, Default)]
pub(crate) struct NodeGraph {
    /// Node, then the pod's key (`<namespace>/<name>`).
    nodes: HashMap<Box<str>, HashMap<Box<str>, PodReferences>>,
    node_of: HashMap<Box<str>, Box<str>>,
}

impl NodeGraph {
    fn put(&mut self, pod: Box<str>, node: Box<str>, references: PodReferences) {
        self.forget(&pod);
        self.node_of.insert(pod.clone(), node.clone());
        self.nodes.entry(node).or_default().insert(pod, references);
    }

    fn forget(&mut self, pod: &str) {
        let Some(node) = self.node_of.remove(pod) else { return };
        if let Some(pods) = self.nodes.get_mut(&node) {
            pods.remove(pod);
            if pods.is_empty() {
                self.nodes.remove(&node);
            }
        }
    }

    fn has_pod(&self, node: &str, namespace: &str, name: &str) -> bool {
        let key = format!("{namespace}/{name}");
        self.nodes.get(node).is_some_and(|pods| pods.contains_key(key.as_str()))
    }

    /// Whether a pod of the node, in that namespace, refers to it.
    fn refers(&self, node: &str, kind: ReferenceKind, namespace: &str, name: &str) -> bool {
        self.pods_in(node, namespace).any(|pod| pod.refers(kind, name))
    }

    fn pods_in<'a>(
        &'a self,
        node: &str,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a PodReferences> {
        self.nodes.get(node).into_iter().flatten().filter_map(move |(key, pod)| {
            let (of, _) = key.split_once('/')?;
            (of == namespace).then_some(pod)
        })
    }
}

fn pod_key(entry: &Entry) -> Option<&str> {
    std::str::from_utf8(&entry.key).ok()?.strip_prefix("/registry/pods/")
}

impl Projection for NodeGraph {
    fn clear(&mut self, _: &'static str) {
        self.nodes.clear();
        self.node_of.clear();
    }

    fn insert(&mut self, _: &'static str, entry: &Entry) {
        let Some(key) = pod_key(entry) else { return };
        match PodReferences::of_pod(&entry.value) {
            Ok((node, _)) if node.is_empty() => self.forget(key),
            Ok((node, references)) => self.put(key.into(), node, references),
            Err(error) => {
                tracing::error!(pod = key, %error, "pod can't be decoded; its node may read nothing of it");
                self.forget(key);
            }
        }
    }

    fn remove(&mut self, _: &'static str, entry: &Entry) {
        if let Some(key) = pod_key(entry) {
            self.forget(key);
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Volume {
    spec: VolumeSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct VolumeSpec {
    claim_ref: ClaimRef,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ClaimRef {
    namespace: String,
    name: String,
}

/// One question to the Node authorizer.
pub(crate) struct NodeRequest<'a> {
    pub(crate) node: &'a str,
    pub(crate) attributes: &'a Attributes<'a>,
    pub(crate) graph: &'a NodeGraph,
    pub(crate) lookup: &'a Lookup,
    /// What all nodes may do alike.
    pub(crate) rules: &'a [Rule],
}

/// Allowed, or why there is no opinion.
type Opinion = Result<(), String>;

fn no(reason: &str) -> Opinion {
    Err(reason.to_owned())
}

impl NodeRequest<'_> {
    pub(crate) fn authorize(&self) -> Opinion {
        let Target::Resource(target) = &self.attributes.target else { return self.by_rules() };
        match (target.group, target.resource) {
            ("", "secrets") => self.read(target, ReferenceKind::Secret),
            ("", "configmaps") => self.read(target, ReferenceKind::ConfigMap),
            ("", "persistentvolumeclaims") if target.subresource == "status" => {
                match self.attributes.verb {
                    "update" | "patch" => self.related(target, ReferenceKind::Claim),
                    _ => no("can only get/update/patch this type"),
                }
            }
            ("", "persistentvolumeclaims") => {
                self.only_get(target)?;
                self.related(target, ReferenceKind::Claim)
            }
            ("", "persistentvolumes") => {
                self.only_get(target)?;
                self.volume(target)
            }
            ("", "serviceaccounts") => self.create_token(target),
            ("coordination.k8s.io", "leases") => self.lease(target),
            ("storage.k8s.io", "csinodes") => self.csi_node(target),
            ("storage.k8s.io", "volumeattachments") | ("resource.k8s.io", "resourceclaims") => {
                self.only_get(target)?;
                self.unrelated()
            }
            ("", "nodes") => self.own_node(target),
            ("", "pods") => self.own_pods(target),
            _ => self.by_rules(),
        }
    }

    fn by_rules(&self) -> Opinion {
        match self.rules.iter().any(|rule| rule.allows(self.attributes)) {
            true => Ok(()),
            false => no(""),
        }
    }

    fn unrelated(&self) -> Opinion {
        Err(format!("no relationship found between node '{}' and this object", self.node))
    }

    fn only_get(&self, target: &ResourceTarget<'_>) -> Opinion {
        if self.attributes.verb != "get" {
            return no("can only get individual resources of this type");
        }
        if !target.subresource.is_empty() {
            return no("cannot get subresource");
        }
        Ok(())
    }

    fn read(&self, target: &ResourceTarget<'_>, kind: ReferenceKind) -> Opinion {
        if !matches!(self.attributes.verb, "get" | "list" | "watch") {
            return no("can only read resources of this type");
        }
        if !target.subresource.is_empty() {
            return no("cannot read subresource");
        }
        if target.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.related(target, kind)
    }

    fn related(&self, target: &ResourceTarget<'_>, kind: ReferenceKind) -> Opinion {
        if target.name.is_empty() {
            return no("No Object name found");
        }
        match self.graph.refers(self.node, kind, target.namespace, target.name) {
            true => Ok(()),
            false => self.unrelated(),
        }
    }

    fn volume(&self, target: &ResourceTarget<'_>) -> Opinion {
        if target.name.is_empty() {
            return no("No Object name found");
        }
        let found: Option<Volume> =
            match self.lookup.get(prefix::PERSISTENT_VOLUMES, None, target.name) {
                Ok(found) => found,
                Err(error) => {
                    tracing::error!(volume = target.name, %error, "volume can't be read");
                    return self.unrelated();
                }
            };
        let claim = found.unwrap_or_default().spec.claim_ref;
        let related = !claim.name.is_empty()
            && self.graph.refers(self.node, ReferenceKind::Claim, &claim.namespace, &claim.name);
        if related { Ok(()) } else { self.unrelated() }
    }

    fn create_token(&self, target: &ResourceTarget<'_>) -> Opinion {
        if self.attributes.verb != "create" || target.name.is_empty() {
            return no("can only create tokens for individual service accounts");
        }
        if target.subresource != "token" {
            return no("can only create token subresource of serviceaccount");
        }
        self.related(target, ReferenceKind::ServiceAccount)
    }

    fn lease(&self, target: &ResourceTarget<'_>) -> Opinion {
        let verb = self.attributes.verb;
        if !matches!(verb, "get" | "create" | "update" | "patch" | "delete") {
            return no("can only get, create, update, patch, or delete a node lease");
        }
        if target.namespace != LEASE_NAMESPACE {
            return Err(format!(
                "can only access leases in the {LEASE_NAMESPACE:?} system namespace"
            ));
        }
        if verb != "create" && target.name != self.node {
            return no("can only access node lease with the same name as the requesting node");
        }
        Ok(())
    }

    fn csi_node(&self, target: &ResourceTarget<'_>) -> Opinion {
        let verb = self.attributes.verb;
        if !matches!(verb, "get" | "create" | "update" | "patch" | "delete") {
            return no("can only get, create, update, patch, or delete a CSINode");
        }
        if !target.subresource.is_empty() {
            return no("cannot authorize CSINode subresources");
        }
        if verb != "create" && target.name != self.node {
            return no("can only access CSINode with the same name as the requesting node");
        }
        Ok(())
    }

    fn own_node(&self, target: &ResourceTarget<'_>) -> Opinion {
        let node = self.node;
        match (target.subresource, self.attributes.verb) {
            ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
            ("", "delete") if target.name == node => Ok(()),
            ("", "get" | "list" | "watch") => match target.name {
                name if name == node => Ok(()),
                "" => Err(format!("node '{node}' cannot read all nodes, only its own Node object")),
                other => {
                    Err(format!("node '{node}' cannot read '{other}', only its own Node object"))
                }
            },
            _ => no(""),
        }
    }

    fn own_pods(&self, target: &ResourceTarget<'_>) -> Opinion {
        let known = || match self.graph.has_pod(self.node, target.namespace, target.name) {
            true => Ok(()),
            false => self.unrelated(),
        };
        match (target.subresource, self.attributes.verb) {
            ("", "get") if target.name.is_empty() => no("No Object name found"),
            ("", "get") => known(),
            ("", "list" | "watch") => {
                if target.selects("spec.nodeName", self.node) {
                    Ok(())
                } else if target.name.is_empty() {
                    no("can only list/watch pods with spec.nodeName field selector")
                } else {
                    known()
                }
            }
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => {
                Ok(())
            }
            _ => no(""),
        }
    }
}
