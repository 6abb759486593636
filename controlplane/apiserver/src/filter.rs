//! Owns which objects of a collection a list or watch wants: selectors over what was extracted, and the narrowest range of
//! keys that can hold them. Must not decode objects.

use apimachinery::{
    selector::{FieldSelector, LabelSelector},
    status::ApiError,
};
use store::{Entry, KeyRange};

use crate::{extract::INDEX_NODE, key, query::Query, resource::Resource};

/// What a list, watch or delete-collection is restricted to.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    labels: LabelSelector,
    fields: FieldSelector,
    everything: bool,
}

impl Filter {
    /// Reads `labelSelector` and `fieldSelector`; `name` is that of a watch on one object's path.
    pub(crate) fn parse(resource: &Resource, query: &Query, name: &str) -> Result<Self, ApiError> {
        let labels = LabelSelector::parse(query.get("labelSelector"))
            .map_err(|e| ApiError::bad_request(e.to_string()))?;
        let mut text = query.get("fieldSelector").to_owned();
        if !name.is_empty() && text.is_empty() {
            text = format!("metadata.name={name}");
        }
        let fields =
            FieldSelector::parse(&text).map_err(|e| ApiError::bad_request(e.to_string()))?;
        // The path's name is what the caller was authorized for.
        if !name.is_empty() && fields.exact("metadata.name") != Some(name) {
            return Err(ApiError::bad_request(
                "fieldSelector metadata.name doesn't match requested name",
            ));
        }
        fields.check(|field| is_selectable(resource, field)).map_err(|e| {
            ApiError::bad_request(format!(
                "Unable to find \"{}\" that match label selector \"{}\", field selector \"{text}\": {e}",
                group_version_resource(resource),
                query.get("labelSelector"),
            ))
        })?;
        let everything = labels.is_everything() && fields.is_everything();
        Ok(Self { labels, fields, everything })
    }

    /// Whether nothing is left out.
    pub(crate) fn is_everything(&self) -> bool {
        self.everything
    }

    /// Whether the object is wanted.
    pub(crate) fn matches(&self, resource: &Resource, entry: &Entry) -> bool {
        if self.everything {
            return true;
        }
        self.labels.matches(entry.extracted.labels.as_slice())
            && self.fields.matches(|name| Some(field(resource, entry, name)))
    }

    /// The keys that can match, within a namespace when one is given.
    pub(crate) fn keys(&self, resource: &Resource, namespace: &str) -> KeyRange {
        let namespace = match (namespace, self.fields.exact("metadata.namespace")) {
            ("", Some(namespace)) if resource.is_namespaced() => namespace,
            (namespace, _) => namespace,
        };
        let placed = !resource.is_namespaced() || !namespace.is_empty();
        match self.fields.exact("metadata.name").filter(|name| placed && !name.is_empty()) {
            Some(name) => KeyRange::Key(key::object(resource, namespace, name)),
            None => KeyRange::Prefix(key::collection(resource, namespace)),
        }
    }

    /// The index key of watches by node.
    pub(crate) fn index(&self, resource: &Resource) -> Option<Box<str>> {
        if resource.prefix != "pods" {
            return None;
        }
        let node = self.fields.exact("spec.nodeName").filter(|node| !node.is_empty())?;
        Some(format!("{INDEX_NODE}{node}").into())
    }
}

fn group_version_resource(resource: &Resource) -> String {
    let (group, version) = (&resource.group, &resource.version);
    format!("{group}/{version}, Resource={}", resource.plural)
}

fn is_selectable(resource: &Resource, field: &str) -> bool {
    field == "metadata.name"
        || field == "metadata.namespace"
        || resource.fields.iter().any(|f| f.name == field)
}

fn field<'a>(resource: &'a Resource, entry: &'a Entry, name: &str) -> &'a str {
    let key = std::str::from_utf8(&entry.key).unwrap_or_default();
    match name {
        "metadata.name" => return key.rsplit('/').next().unwrap_or_default(),
        "metadata.namespace" if resource.is_namespaced() => {
            return key.rsplit('/').nth(1).unwrap_or_default();
        }
        "metadata.namespace" => return "",
        _ => {}
    }
    let Some(row) = resource.fields.iter().find(|f| f.name == name) else { return "" };
    let found = entry.extracted.fields.iter().find(|(path, _)| **path == *row.path);
    found.map_or(row.default, |(_, value)| value)
}
