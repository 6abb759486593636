//! RBAC: roles and bindings as a projection of the store, and the question whether a user's rules allow a request.
//!
//! Owns the evaluation order and reasons of Kubernetes 1.36 (`plugin/pkg/auth/authorizer/rbac`). It writes
//! nothing. Aggregated cluster roles are the union of the roles that their selectors name, at evaluation.

use super::attributes::{Attributes, Target};
use super::feed::Projection;
use super::rules::Rule;
use crate::User;
use crate::authn::service_account;
use crate::lookup::{self, list_prefix, prefix};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use store::Entry;

/// The prefixes this projection reads.
pub(crate) const PREFIXES: [&str; 4] =
    [prefix::CLUSTER_ROLES, prefix::CLUSTER_ROLE_BINDINGS, prefix::ROLES, prefix::ROLE_BINDINGS];
/// An aggregated role may select another aggregated one this deep.
const AGGREGATION_DEPTH_MAX: usize = 4;

/// Who a binding is for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subject {
    /// `User`, `Group` or `ServiceAccount`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Of a service account.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

/// Which role a binding gives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RoleRef {
    /// `Role` or `ClusterRole`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StoredMeta {
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Role {
    metadata: StoredMeta,
    rules: Vec<Rule>,
    aggregation_rule: Option<AggregationRule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AggregationRule {
    cluster_role_selectors: Vec<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Binding {
    subjects: Vec<Subject>,
    role_ref: RoleRef,
}

/// All roles and bindings, ready to be asked.
#[derive(Debug, Default)]
pub(crate) struct Rbac {
    cluster_roles: BTreeMap<String, Role>,
    cluster_bindings: BTreeMap<String, Binding>,
    /// By namespace, then name.
    roles: HashMap<String, HashMap<String, Role>>,
    bindings: HashMap<String, BTreeMap<String, Binding>>,
}

/// What the visitor of bindings meets.
struct Found<'a> {
    rules: Result<Vec<&'a Rule>, String>,
    binding: &'a Binding,
    subject: &'a Subject,
    /// Namespace and name; no namespace for a cluster role binding.
    place: (Option<&'a str>, &'a str),
}

impl Rbac {
    /// `Ok(reason)` when a rule allows it; otherwise the errors met, which may be an empty text.
    pub(crate) fn authorize(&self, attributes: &Attributes<'_>) -> Result<String, String> {
        let namespace = match attributes.target {
            Target::Resource(target) => target.namespace,
            Target::Path(_) => "",
        };
        let mut errors = Vec::new();
        for found in self.bindings_of(attributes.user, namespace) {
            match &found.rules {
                Ok(rules) if rules.iter().any(|rule| rule.allows(attributes)) => {
                    return Ok(format!("RBAC: allowed by {}", found.describe()));
                }
                Ok(_) => {}
                Err(error) => errors.push(error.clone()),
            }
        }
        Err(match errors.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        })
    }

    /// All rules of the user in a namespace (cluster-wide ones only, when empty), and the errors met.
    pub(crate) fn rules_for(&self, user: &User, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let mut rules = Vec::new();
        let mut errors = Vec::new();
        for found in self.bindings_of(user, namespace) {
            match found.rules {
                Ok(found) => rules.extend(found.into_iter().cloned()),
                Err(error) => errors.push(error),
            }
        }
        (rules, errors)
    }

    /// The rules of a role that a binding in `namespace` (or of the cluster) refers to.
    pub(crate) fn rules_of_role(
        &self,
        role: &RoleRef,
        namespace: Option<&str>,
    ) -> Result<Vec<Rule>, String> {
        Ok(self.resolve(role, namespace)?.into_iter().cloned().collect())
    }

    /// Aggregated cluster roles with the rules they have now, each rule once, ordered by name of the selected roles.
    pub(crate) fn aggregated(&self) -> Vec<(&str, Vec<Rule>)> {
        let mut all = Vec::new();
        for (name, role) in self.cluster_roles.iter().filter(|(_, r)| r.aggregation_rule.is_some())
        {
            let mut found = Vec::new();
            self.collect(role, &mut found, 0);
            let mut rules: Vec<Rule> = Vec::new();
            for rule in found {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
            all.push((name.as_str(), rules));
        }
        all
    }

    fn bindings_of<'a>(&'a self, user: &'a User, namespace: &'a str) -> Vec<Found<'a>> {
        let cluster = self.cluster_bindings.iter().map(|(name, binding)| (None, name, binding));
        let local = self
            .bindings
            .get(namespace)
            .into_iter()
            .flatten()
            .map(|(name, binding)| (Some(namespace), name, binding));
        let mut found = Vec::new();
        for (place, name, binding) in cluster.chain(local) {
            let applies = |subject: &&Subject| applies(subject, user, place.unwrap_or_default());
            if let Some(subject) = binding.subjects.iter().find(applies) {
                let rules = self.resolve(&binding.role_ref, place);
                found.push(Found { rules, binding, subject, place: (place, name) });
            }
        }
        found
    }

    fn resolve(&self, role: &RoleRef, namespace: Option<&str>) -> Result<Vec<&Rule>, String> {
        let missing =
            |kind: &str| format!("{kind}.rbac.authorization.k8s.io {:?} not found", role.name);
        match (role.kind.as_str(), namespace) {
            ("ClusterRole", _) => {
                let found =
                    self.cluster_roles.get(&role.name).ok_or_else(|| missing("clusterrole"))?;
                let mut rules = Vec::new();
                self.collect(found, &mut rules, 0);
                Ok(rules)
            }
            ("Role", Some(namespace)) => self
                .roles
                .get(namespace)
                .and_then(|roles| roles.get(&role.name))
                .map(|role| role.rules.iter().collect())
                .ok_or_else(|| missing("role")),
            (kind, _) => Err(format!("unsupported role reference kind: {kind:?}")),
        }
    }

    fn collect<'a>(&'a self, role: &'a Role, into: &mut Vec<&'a Rule>, depth: usize) {
        // What an aggregated role has in `rules` is a copy for people, and may be stale.
        let Some(aggregation) = &role.aggregation_rule else {
            into.extend(&role.rules);
            return;
        };
        if depth >= AGGREGATION_DEPTH_MAX {
            return;
        }
        for selector in &aggregation.cluster_role_selectors {
            for other in self.cluster_roles.values() {
                if !std::ptr::eq(role, other) && selects(selector, &other.metadata.labels) {
                    self.collect(other, into, depth + 1);
                }
            }
        }
    }
}

impl Found<'_> {
    fn describe(&self) -> String {
        let role = &self.binding.role_ref;
        let (kind, name) = match self.place {
            (None, name) => ("ClusterRoleBinding", name.to_owned()),
            (Some(namespace), name) => ("RoleBinding", format!("{name}/{namespace}")),
        };
        let subject = match self.subject.kind.as_str() {
            "ServiceAccount" => {
                let namespace = match self.subject.namespace.as_str() {
                    "" => self.place.0.unwrap_or_default(),
                    namespace => namespace,
                };
                format!("{}/{namespace}", self.subject.name)
            }
            _ => self.subject.name.clone(),
        };
        format!(
            "{kind} {name:?} of {} {:?} to {} {subject:?}",
            role.kind, role.name, self.subject.kind
        )
    }
}

fn applies(subject: &Subject, user: &User, binding_namespace: &str) -> bool {
    match subject.kind.as_str() {
        "User" => user.name == subject.name,
        "Group" => user.is_in(&subject.name),
        "ServiceAccount" => {
            let namespace = match subject.namespace.as_str() {
                "" => binding_namespace,
                namespace => namespace,
            };
            !namespace.is_empty()
                && service_account::split_user_name(&user.name)
                    == Some((namespace, subject.name.as_str()))
        }
        _ => false,
    }
}

fn selects(selector: &serde_json::Value, labels: &BTreeMap<String, String>) -> bool {
    let wanted = selector.get("matchLabels").and_then(serde_json::Value::as_object);
    let expressions = selector.get("matchExpressions").and_then(serde_json::Value::as_array);
    let by_label = wanted.into_iter().flatten().all(|(key, value)| {
        value.as_str().is_some_and(|value| labels.get(key).is_some_and(|label| label == value))
    });
    by_label && expressions.into_iter().flatten().all(|term| selects_term(term, labels))
}

fn selects_term(term: &serde_json::Value, labels: &BTreeMap<String, String>) -> bool {
    let text = |name: &str| term.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    let label = labels.get(text("key"));
    let listed = |label: &String| {
        term.get("values")
            .and_then(serde_json::Value::as_array)
            .is_some_and(|values| values.iter().any(|value| value.as_str() == Some(label)))
    };
    match text("operator") {
        "In" => label.is_some_and(listed),
        "NotIn" => !label.is_some_and(listed),
        "Exists" => label.is_some(),
        "DoesNotExist" => label.is_none(),
        _ => false,
    }
}

/// Namespace (empty for the cluster's) and name in a key below the prefix.
fn place<'a>(prefix: &str, key: &'a [u8]) -> Option<(&'a str, &'a str)> {
    let key = std::str::from_utf8(key).ok()?;
    let rest = key.strip_prefix(&list_prefix(prefix, None))?;
    Some(rest.split_once('/').unwrap_or(("", rest)))
}

fn decode<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    match lookup::decode(&entry.value) {
        Ok(object) => Some(object),
        Err(error) => {
            let key = String::from_utf8_lossy(&entry.key);
            tracing::error!(%key, %error, "RBAC object can't be decoded and grants nothing");
            None
        }
    }
}

impl Projection for Rbac {
    fn clear(&mut self, prefix: &'static str) {
        match prefix {
            prefix::CLUSTER_ROLES => self.cluster_roles.clear(),
            prefix::CLUSTER_ROLE_BINDINGS => self.cluster_bindings.clear(),
            prefix::ROLES => self.roles.clear(),
            _ => self.bindings.clear(),
        }
    }

    fn insert(&mut self, prefix: &'static str, entry: &Entry) {
        let Some((namespace, name)) = place(prefix, &entry.key) else { return };
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        match prefix {
            prefix::CLUSTER_ROLES | prefix::ROLES => {
                let Some(role) = decode(entry) else { return self.remove(prefix, entry) };
                if prefix == prefix::ROLES {
                    self.roles.entry(namespace).or_default().insert(name, role);
                } else {
                    self.cluster_roles.insert(name, role);
                }
            }
            _ => {
                let Some(binding) = decode(entry) else { return self.remove(prefix, entry) };
                if prefix == prefix::ROLE_BINDINGS {
                    self.bindings.entry(namespace).or_default().insert(name, binding);
                } else {
                    self.cluster_bindings.insert(name, binding);
                }
            }
        }
    }

    fn remove(&mut self, prefix: &'static str, entry: &Entry) {
        let Some((namespace, name)) = place(prefix, &entry.key) else { return };
        match prefix {
            prefix::CLUSTER_ROLES => {
                self.cluster_roles.remove(name);
            }
            prefix::CLUSTER_ROLE_BINDINGS => {
                self.cluster_bindings.remove(name);
            }
            prefix::ROLES => {
                if let Some(roles) = self.roles.get_mut(namespace) {
                    roles.remove(name);
                }
            }
            _ => {
                if let Some(bindings) = self.bindings.get_mut(namespace) {
                    bindings.remove(name);
                }
            }
        }
    }
}
