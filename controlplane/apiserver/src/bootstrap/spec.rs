//! How the bootstrap tables are written down, and the objects they stand for.
//!
//! Pure. Lists in a table are comma-separated texts: `rule("get,list", ",apps", "pods,deployments")` is about the core group
//! and `apps`.

use crate::authz::Rule;
use serde_json::{Map, Value, json};

const GROUP: &str = "rbac.authorization.k8s.io";
/// The annotation by which somebody can switch the reconciliation of a role off.
pub(super) const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// One rule of a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct RuleSpec {
    verbs: &'static str,
    groups: &'static str,
    resources: &'static str,
    names: &'static str,
    paths: &'static str,
}

/// A role or, without a namespace, a cluster role.
#[derive(Debug, Clone, Copy)]
pub(super) struct RoleSpec {
    pub(super) namespace: &'static str,
    pub(super) name: &'static str,
    /// The role whose rules these become part of: `view`.
    pub(super) aggregate_to: &'static str,
    /// Whose parts become this role's rules: `view`.
    pub(super) aggregates: &'static str,
    pub(super) rules: &'static [RuleSpec],
}

/// A role with nothing in it.
pub(super) const ROLE: RoleSpec =
    RoleSpec { namespace: "", name: "", aggregate_to: "", aggregates: "", rules: &[] };

/// A binding, of a role of its namespace or of a cluster role.
#[derive(Debug, Clone, Copy)]
pub(super) struct BindingSpec {
    pub(super) namespace: &'static str,
    pub(super) name: &'static str,
    pub(super) role: &'static str,
    pub(super) subjects: &'static [SubjectSpec],
}

/// A binding of nobody to nothing.
pub(super) const BINDING: BindingSpec =
    BindingSpec { namespace: "", name: "", role: "", subjects: &[] };

/// Who is bound.
#[derive(Debug, Clone, Copy)]
pub(super) enum SubjectSpec {
    User(&'static str),
    Group(&'static str),
    /// Namespace and name.
    Account(&'static str, &'static str),
}

pub(super) const fn rule(
    verbs: &'static str,
    groups: &'static str,
    resources: &'static str,
) -> RuleSpec {
    RuleSpec { verbs, groups, resources, names: "", paths: "" }
}

pub(super) const fn named(
    verbs: &'static str,
    groups: &'static str,
    resources: &'static str,
    names: &'static str,
) -> RuleSpec {
    RuleSpec { verbs, groups, resources, names, paths: "" }
}

pub(super) const fn paths(verbs: &'static str, paths: &'static str) -> RuleSpec {
    RuleSpec { verbs, groups: "", resources: "", names: "", paths }
}

pub(super) const fn user(name: &'static str) -> SubjectSpec {
    SubjectSpec::User(name)
}

pub(super) const fn group(name: &'static str) -> SubjectSpec {
    SubjectSpec::Group(name)
}

pub(super) const fn account(namespace: &'static str, name: &'static str) -> SubjectSpec {
    SubjectSpec::Account(namespace, name)
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::to_owned).collect()
}

fn list_or_none(text: &str) -> Vec<String> {
    if text.is_empty() { Vec::new() } else { list(text) }
}

impl RuleSpec {
    pub(super) fn rule(&self) -> Rule {
        let of_paths = !self.paths.is_empty();
        Rule {
            verbs: list(self.verbs),
            api_groups: if of_paths { Vec::new() } else { list(self.groups) },
            resources: list_or_none(self.resources),
            resource_names: list_or_none(self.names),
            non_resource_urls: list_or_none(self.paths),
        }
    }

    fn object(&self) -> Value {
        let rule = self.rule();
        let lists = [
            ("apiGroups", rule.api_groups),
            ("nonResourceURLs", rule.non_resource_urls),
            ("resourceNames", rule.resource_names),
            ("resources", rule.resources),
            ("verbs", rule.verbs),
        ];
        let members = lists.into_iter().filter(|(_, list)| !list.is_empty());
        Value::Object(members.map(|(name, list)| (name.to_owned(), json!(list))).collect())
    }
}

impl RoleSpec {
    pub(super) fn object(&self) -> Value {
        let kind = if self.namespace.is_empty() { "ClusterRole" } else { "Role" };
        let mut object = skeleton(kind, self.namespace, self.name);
        if !self.aggregate_to.is_empty() {
            let label = format!("{GROUP}/aggregate-to-{}", self.aggregate_to);
            object["metadata"]["labels"][label] = json!("true");
        }
        object["rules"] = Value::Null;
        if !self.aggregates.is_empty() {
            let label = format!("{GROUP}/aggregate-to-{}", self.aggregates);
            object["aggregationRule"] =
                json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
        }
        if !self.rules.is_empty() {
            object["rules"] = self.rules.iter().map(RuleSpec::object).collect();
        }
        object
    }
}

impl BindingSpec {
    pub(super) fn object(&self) -> Value {
        let (kind, role) = match self.namespace {
            "" => ("ClusterRoleBinding", "ClusterRole"),
            _ => ("RoleBinding", "Role"),
        };
        let mut object = skeleton(kind, self.namespace, self.name);
        object["roleRef"] = json!({"apiGroup": GROUP, "kind": role, "name": self.role});
        if !self.subjects.is_empty() {
            object["subjects"] = self.subjects.iter().map(SubjectSpec::object).collect();
        }
        object
    }
}

impl SubjectSpec {
    pub(super) fn object(&self) -> Value {
        match self {
            Self::User(name) => json!({"apiGroup": GROUP, "kind": "User", "name": name}),
            Self::Group(name) => json!({"apiGroup": GROUP, "kind": "Group", "name": name}),
            Self::Account(namespace, name) => {
                json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
            }
        }
    }
}

fn skeleton(kind: &str, namespace: &str, name: &str) -> Value {
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), json!(name));
    if !namespace.is_empty() {
        metadata.insert("namespace".to_owned(), json!(namespace));
    }
    metadata.insert("labels".to_owned(), json!({"kubernetes.io/bootstrapping": "rbac-defaults"}));
    metadata.insert("annotations".to_owned(), json!({AUTOUPDATE: "true"}));
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": metadata})
}
