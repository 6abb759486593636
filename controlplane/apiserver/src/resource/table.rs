//! Owns what a resource is (one declarative row) and the table of all of them. Discovery, OpenAPI, routing, RBAC,
//! printing and garbage collection derive from it. Must not know HTTP or the store.

use std::{collections::HashMap, sync::Arc};

use super::strategy::{Convert, Strategy};

/// Whether objects of a resource live in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One per cluster.
    Cluster,
    /// In a namespace.
    Namespaced,
}

/// Verbs of an ordinary resource, in discovery's order.
pub const VERBS_ALL: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// Verbs of a status-like subresource.
pub const VERBS_READ_WRITE: &[&str] = &["get", "patch", "update"];
/// Verbs of a proxy subresource.
pub const VERBS_PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

/// A part of an object, or an action on it, with a path and verbs of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subresource {
    /// `status`, `scale`, `log`.
    pub name: &'static str,
    /// Group, version and kind of what it takes and gives; `None` for the resource's own.
    pub response: Option<(&'static str, &'static str, &'static str)>,
    /// Its verbs, in discovery's order.
    pub verbs: &'static [&'static str],
}

/// Where a selectable field's value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectableField {
    /// Its name in selectors: `spec.nodeName`.
    pub name: &'static str,
    /// The dotted path in the object.
    pub path: &'static str,
    /// What an object without it is taken to have.
    pub default: &'static str,
}

/// One resource of one version of one group.
#[derive(Debug, Clone)]
pub struct Resource {
    /// API group; empty for core.
    pub group: String,
    /// Version of that group.
    pub version: String,
    /// `Deployment`.
    pub kind: String,
    /// Kind of the list; `DeploymentList`.
    pub list_kind: String,
    /// `deployments`.
    pub plural: String,
    /// `deployment`.
    pub singular: String,
    /// `deploy`.
    pub short_names: Vec<String>,
    /// `all`.
    pub categories: Vec<String>,
    /// Namespaced or of the cluster.
    pub scope: Scope,
    /// In discovery's order.
    pub verbs: Vec<String>,
    /// In discovery's order.
    pub subresources: Vec<Subresource>,
    /// `/registry/<prefix>/…`; `deployments`. Empty for resources that are not stored (reviews, bindings).
    pub prefix: String,
    /// Selectable fields besides `metadata.name` and `metadata.namespace`.
    pub fields: Vec<SelectableField>,
    /// What this resource does differently on writes.
    pub strategy: Strategy,
    /// How this version differs from the stored one; `None` where it is the stored one.
    pub convert: Option<Convert>,
}

impl Resource {
    /// A row with the usual verbs and no subresources.
    pub fn new(group: &str, version: &str, kind: &str, plural: &str) -> Self {
        Self {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            list_kind: format!("{kind}List"),
            plural: plural.into(),
            singular: kind.to_ascii_lowercase(),
            short_names: Vec::new(),
            categories: Vec::new(),
            scope: Scope::Namespaced,
            verbs: VERBS_ALL.iter().map(|v| (*v).to_owned()).collect(),
            subresources: Vec::new(),
            prefix: plural.into(),
            fields: Vec::new(),
            strategy: Strategy::default(),
            convert: None,
        }
    }

    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `deployments.apps`, `pods`: how upstream's messages name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// Whether objects live in a namespace.
    pub fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    /// Whether there is anything of it in the store.
    pub fn is_stored(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether the resource offers `verb`.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    pub(super) fn cluster(mut self) -> Self {
        self.scope = Scope::Cluster;
        self
    }

    pub(super) fn short(mut self, names: &[&str]) -> Self {
        self.short_names = names.iter().map(|n| (*n).to_owned()).collect();
        self
    }

    pub(super) fn category(mut self, name: &str) -> Self {
        self.categories.push(name.into());
        self
    }

    pub(super) fn singular(mut self, name: &str) -> Self {
        self.singular = name.into();
        self
    }

    pub(super) fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.into();
        self
    }

    pub(super) fn only(mut self, verbs: &[&str]) -> Self {
        self.verbs = verbs.iter().map(|v| (*v).to_owned()).collect();
        self
    }

    /// A `status` subresource, isolated from the rest of the object.
    pub(super) fn status(self) -> Self {
        self.sub("status", None, VERBS_READ_WRITE)
    }

    pub(super) fn scale(self) -> Self {
        self.sub("scale", Some(("autoscaling", "v1", "Scale")), VERBS_READ_WRITE)
    }

    pub(super) fn sub(
        mut self,
        name: &'static str,
        response: Option<(&'static str, &'static str, &'static str)>,
        verbs: &'static [&'static str],
    ) -> Self {
        self.subresources.push(Subresource { name, response, verbs });
        self.subresources.sort_by_key(|s| s.name);
        self
    }

    pub(super) fn field(self, name: &'static str, default: &'static str) -> Self {
        self.field_at(name, name, default)
    }

    pub(super) fn field_at(
        mut self,
        name: &'static str,
        path: &'static str,
        default: &'static str,
    ) -> Self {
        self.fields.push(SelectableField { name, path, default });
        self
    }

    pub(super) fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    pub(super) fn convert(mut self, convert: Convert) -> Self {
        self.convert = Some(convert);
        self
    }
}

/// All rows, in discovery's order, with the look-ups that a request needs.
#[derive(Debug, Clone)]
pub struct ResourceTable {
    rows: Vec<Arc<Resource>>,
    by_path: HashMap<(String, String, String), usize>,
    by_prefix: HashMap<String, usize>,
}

impl ResourceTable {
    /// The resources built into this server.
    pub fn builtin() -> Self {
        Self::from_rows(super::rows())
    }

    /// A table of the given rows.
    pub fn from_rows(rows: Vec<Resource>) -> Self {
        let rows: Vec<Arc<Resource>> = rows.into_iter().map(Arc::new).collect();
        let mut by_path = HashMap::new();
        let mut by_prefix = HashMap::new();
        for (i, r) in rows.iter().enumerate() {
            by_path.insert((r.group.clone(), r.version.clone(), r.plural.clone()), i);
            if r.is_stored() && r.convert.is_none() {
                by_prefix.insert(r.prefix.clone(), i);
            }
        }
        Self { rows, by_path, by_prefix }
    }

    /// The row behind a path.
    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.by_path
            .get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
            .and_then(|i| self.rows.get(*i))
    }

    /// The row of that plural in a group, whatever its version; the stored version first.
    pub fn find(&self, group: &str, plural: &str) -> Option<&Arc<Resource>> {
        let of = || self.rows.iter().filter(|r| r.group == group && r.plural == plural);
        of().find(|r| r.convert.is_none()).or_else(|| of().next())
    }

    /// The row of a kind.
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Resource>> {
        self.rows.iter().find(|r| r.group == group && r.version == version && r.kind == kind)
    }

    /// The row whose version is stored under `/registry/<prefix>/`.
    pub fn by_prefix(&self, prefix: &str) -> Option<&Arc<Resource>> {
        self.by_prefix.get(prefix).and_then(|i| self.rows.get(*i))
    }

    /// All rows, in discovery's order of groups.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.rows.iter()
    }
}
