//! NodeRestriction: what a node may put into the objects that the Node authorizer lets it write.
//!
//! Kubernetes 1.36 (`plugin/pkg/admission/noderestriction`).

use super::{AdmissionRequest, Operation, unreadable};
use crate::authz::PodReferences;
use crate::lookup::{Lookup, Meta, MetaOnly, prefix};
use apimachinery::field::quote;
use apimachinery::gvk::GroupResource;
use apimachinery::status::ApiError;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
const LEASE_NAMESPACE: &str = "kube-node-lease";
const RESTRICTED: &str = "node-restriction.kubernetes.io";
/// Kubernetes 1.36, `k8s.io/kubelet/pkg/apis`: labels of Kubernetes' own that a node may set on itself.
const KUBELET_LABELS: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
const KUBELET_LABEL_NAMESPACES: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pod {
    metadata: Meta,
    spec: PodSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: String,
}

/// A request of a node.
struct NodeWrite<'a> {
    lookup: &'a Lookup,
    request: &'a AdmissionRequest<'a>,
    object: &'a Value,
    node: &'a str,
}

pub(super) fn admit(
    lookup: &Lookup,
    request: &AdmissionRequest<'_>,
    object: &Value,
) -> Result<(), ApiError> {
    let Some(node) = request.user.node_name() else { return Ok(()) };
    let write = NodeWrite { lookup, request, object, node };
    match (request.resource.group.as_str(), request.resource.plural.as_str()) {
        ("", "pods") => match request.subresource {
            "" => write.pod(),
            "status" => write.pod_status(),
            "eviction" => write.pod_eviction(),
            other => write.refuse(format!(
                "unexpected pod subresource {}, only 'status' and 'eviction' are allowed",
                quote(other)
            )),
        },
        ("", "nodes") => write.own_node(),
        ("", "persistentvolumeclaims") => match request.subresource {
            "status" => write.claim_status(),
            _ => write.refuse("may only update PVC status"),
        },
        ("", "serviceaccounts") => write.token(),
        ("coordination.k8s.io", "leases") if request.namespace != LEASE_NAMESPACE => write.refuse(
            format!("can only access leases in the {} system namespace", quote(LEASE_NAMESPACE)),
        ),
        ("coordination.k8s.io", "leases") => write.same_name("node lease"),
        ("storage.k8s.io", "csinodes") => write.same_name("CSINode"),
        _ => Ok(()),
    }
}

impl NodeWrite<'_> {
    fn refuse(&self, why: impl AsRef<str>) -> Result<(), ApiError> {
        Err(self.request.forbidden(self.object, why))
    }

    fn quoted(&self) -> String {
        quote(self.node)
    }

    fn find_pod(&self, name: &str) -> Result<Pod, ApiError> {
        self.lookup
            .get(prefix::PODS, Some(self.request.namespace), name)
            .map_err(|error| unreadable(&error))?
            .ok_or_else(|| ApiError::not_found(GroupResource::new("", "pods"), name))
    }

    fn pod(&self) -> Result<(), ApiError> {
        match self.request.operation {
            Operation::Create => self.pod_create(),
            Operation::Delete => {
                let pod = self.find_pod(self.request.name)?;
                if pod.spec.node_name != self.node {
                    return self.refuse(format!(
                        "node {} can only delete pods with spec.nodeName set to itself",
                        self.quoted()
                    ));
                }
                Ok(())
            }
            _ => self.refuse(format!(
                "unexpected operation \"UPDATE\", node {} can only create and delete mirror pods",
                self.quoted()
            )),
        }
    }

    fn pod_create(&self) -> Result<(), ApiError> {
        let node = self.quoted();
        let spec = &self.object["spec"];
        if self.object["metadata"]["annotations"][MIRROR_ANNOTATION].is_null() {
            return self.refuse(format!(
                "pod does not have {} annotation, node {node} can only create mirror pods",
                quote(MIRROR_ANNOTATION)
            ));
        }
        if spec["nodeName"] != self.node {
            return self.refuse(format!(
                "node {node} can only create pods with spec.nodeName set to itself"
            ));
        }
        self.pod_owner()?;
        if spec["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty()) {
            return self.refuse(format!(
                "node {node} can not create pods that reference a service account"
            ));
        }
        let references = PodReferences::of_spec(spec)
            .map_err(|error| ApiError::bad_request(error.to_string()))?;
        match references.first_kind() {
            Some(kind) => {
                self.refuse(format!("node {node} can not create pods that reference {kind}"))
            }
            None => Ok(()),
        }
    }

    /// A mirror pod belongs to its node, by UID.
    fn pod_owner(&self) -> Result<(), ApiError> {
        let node = self.quoted();
        let owners = self.object["metadata"]["ownerReferences"].as_array();
        let owner = match owners.map(Vec::as_slice).unwrap_or_default() {
            [owner] => owner,
            [] => {
                return self.refuse(format!(
                    "node {node} can only create pods with an owner reference set to itself"
                ));
            }
            _ => {
                return self.refuse(format!(
                    "node {node} can only create pods with a single owner reference set to itself"
                ));
            }
        };
        if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != self.node {
            return self.refuse(format!(
                "node {node} can only create pods with an owner reference set to itself"
            ));
        }
        if owner["controller"] != true {
            return self.refuse(format!(
                "node {node} can only create pods with a controller owner reference set to itself"
            ));
        }
        if owner["blockOwnerDeletion"] == true {
            return self.refuse(format!(
                "node {node} must not set blockOwnerDeletion on an owner reference"
            ));
        }
        let found: Option<MetaOnly> =
            self.lookup.get(prefix::NODES, None, self.node).map_err(|error| unreadable(&error))?;
        let uid = found
            .ok_or_else(|| ApiError::not_found(GroupResource::new("", "nodes"), self.node))?
            .metadata
            .uid;
        if owner["uid"] != uid {
            let got = owner["uid"].as_str().unwrap_or_default();
            return self
                .refuse(format!("node {} UID mismatch: expected {got} got {uid}", self.node));
        }
        Ok(())
    }

    fn pod_status(&self) -> Result<(), ApiError> {
        let node = self.quoted();
        let old = self.request.old.unwrap_or(&Value::Null);
        if self.request.operation != Operation::Update {
            return self.refuse("unexpected operation");
        }
        if old["spec"]["nodeName"] != self.node {
            return self.refuse(format!(
                "node {node} can only update pod status for pods with spec.nodeName set to itself"
            ));
        }
        if !labels_of(old).eq(&labels_of(self.object)) {
            return self.refuse(format!("node {node} cannot update labels through pod status"));
        }
        if old["status"]["resourceClaimStatuses"] != self.object["status"]["resourceClaimStatuses"]
        {
            return self.refuse(format!("node {node} cannot update resource claim statues"));
        }
        Ok(())
    }

    fn pod_eviction(&self) -> Result<(), ApiError> {
        let name = match self.request.name {
            "" => self.object["metadata"]["name"].as_str().unwrap_or_default(),
            name => name,
        };
        let pod = self.find_pod(name)?;
        if pod.spec.node_name != self.node {
            return self.refuse(format!(
                "node {} can only evict pods with spec.nodeName set to itself",
                self.node
            ));
        }
        Ok(())
    }

    fn own_node(&self) -> Result<(), ApiError> {
        let node = self.quoted();
        let name = match self.request.name {
            "" => self.object["metadata"]["name"].as_str().unwrap_or_default(),
            name => name,
        };
        if name != self.node {
            return self
                .refuse(format!("node {node} is not allowed to modify node {}", quote(name)));
        }
        let old = match self.request.operation {
            Operation::Create => None,
            Operation::Update => self.request.old,
            Operation::Delete | Operation::Connect => return Ok(()),
        };
        if !self.object["spec"]["configSource"].is_null() {
            return self
                .refuse(format!("node {node} is not allowed to set a non-nil configSource"));
        }
        let before = old.map(labels_of).unwrap_or_default();
        let wrong = forbidden_labels(&labels_of(self.object), &before).join(", ");
        let Some(old) = old else {
            return match wrong.is_empty() {
                true => Ok(()),
                false => self.refuse(format!(
                    "node {node} is not allowed to set the following labels: {wrong}"
                )),
            };
        };
        let taints = |node: &Value| node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        if taints(old) != taints(self.object) {
            return self.refuse(format!("node {node} is not allowed to modify taints"));
        }
        if !wrong.is_empty() {
            return self.refuse(format!("is not allowed to modify labels: {wrong}"));
        }
        Ok(())
    }

    fn claim_status(&self) -> Result<(), ApiError> {
        let without = |claim: &Value| {
            let mut claim = claim.clone();
            if let Some(metadata) = claim["metadata"].as_object_mut() {
                metadata.retain(|name, _| name != "resourceVersion" && name != "managedFields");
            }
            if let Some(status) = claim["status"].as_object_mut() {
                let own =
                    ["capacity", "conditions", "allocatedResourceStatuses", "allocatedResources"];
                status.retain(|name, _| !own.contains(&name.as_str()));
            }
            claim
        };
        let old = self.request.old.unwrap_or(&Value::Null);
        if without(old) != without(self.object) {
            return self.refuse(format!(
                "node {} is not allowed to update fields other than status.capacity and status.conditions",
                self.quoted()
            ));
        }
        Ok(())
    }

    fn token(&self) -> Result<(), ApiError> {
        if self.request.operation != Operation::Create || self.request.subresource != "token" {
            return Ok(());
        }
        let reference = &self.object["spec"]["boundObjectRef"];
        let text = |member: &str| reference[member].as_str().unwrap_or_default();
        let (name, uid) = (text("name"), text("uid"));
        if text("apiVersion") != "v1" || text("kind") != "Pod" || name.is_empty() {
            return self.refuse("node requested token not bound to a pod");
        }
        if uid.is_empty() {
            return self.refuse("node requested token with a pod binding without a uid");
        }
        let pod = self.find_pod(name)?;
        if pod.metadata.uid != uid {
            return self.refuse(format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            ));
        }
        if pod.spec.node_name != self.node {
            return self
                .refuse("node requested token bound to a pod scheduled on a different node");
        }
        Ok(())
    }

    fn same_name(&self, what: &str) -> Result<(), ApiError> {
        let name = match self.request.operation {
            Operation::Create => self.object["metadata"]["name"].as_str().unwrap_or_default(),
            _ => self.request.name,
        };
        if name != self.node {
            return self.refuse(format!(
                "can only access {what} with the same name as the requesting node"
            ));
        }
        Ok(())
    }
}

fn labels_of(object: &Value) -> Map<String, Value> {
    object["metadata"]["labels"].as_object().cloned().unwrap_or_default()
}

/// Changed labels that are not a node's to change, sorted.
fn forbidden_labels(now: &Map<String, Value>, before: &Map<String, Value>) -> Vec<String> {
    let changed: BTreeSet<&String> =
        now.keys().chain(before.keys()).filter(|key| now.get(*key) != before.get(*key)).collect();
    changed.into_iter().filter(|key| is_forbidden_label(key)).cloned().collect()
}

fn is_forbidden_label(key: &str) -> bool {
    let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
    let within = |domain: &str| {
        namespace == domain
            || namespace.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
    };
    if within(RESTRICTED) {
        return true;
    }
    let kubernetes = within("kubernetes.io") || within("k8s.io");
    let kubelets = KUBELET_LABELS.contains(&key)
        || KUBELET_LABEL_NAMESPACES.iter().any(|domain| within(domain));
    kubernetes && !kubelets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_steer_workloads_are_not_a_nodes() {
        for (key, forbidden) in [
            ("kubernetes.io/hostname", false),
            ("topology.kubernetes.io/zone", false),
            ("node.kubernetes.io/anything", false),
            ("x.kubelet.kubernetes.io/anything", false),
            ("example.com/team", false),
            ("plain", false),
            ("node-role.kubernetes.io/control-plane", true),
            ("node-restriction.kubernetes.io/secret", true),
            ("x.node-restriction.kubernetes.io/secret", true),
            ("example.k8s.io/x", true),
            ("notkubernetes.io/x", false),
        ] {
            assert_eq!(is_forbidden_label(key), forbidden, "{key}");
        }
    }
}
