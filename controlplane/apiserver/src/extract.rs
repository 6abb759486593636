//! Owns what the store reads from a value once: labels, selectable fields, owners, index keys and where the revision is
//! spliced in. Must stay pure, and quick: it runs for each commit and for each object when the store is opened.

use std::sync::Arc;

use apimachinery::scan::scan;
use store::{Extract, Extracted};

use crate::{
    key,
    resource::{Resource, ResourceTable},
};

/// What the index key of a pod's node begins with.
pub const INDEX_NODE: &str = "node/";

/// The API server's reading of stored objects.
#[derive(Debug, Clone)]
pub struct ObjectExtract {
    table: Arc<ResourceTable>,
}

impl ObjectExtract {
    /// Reads by the rows of `table`.
    pub fn new(table: Arc<ResourceTable>) -> Self {
        Self { table }
    }

    /// Reads by the built-in rows.
    pub fn builtin() -> Self {
        Self::new(Arc::new(ResourceTable::builtin()))
    }
}

impl Extract for ObjectExtract {
    fn extract(&self, key: &[u8], value: &[u8]) -> Extracted {
        let Some(parsed) = key::parse(&self.table, key) else { return Extracted::default() };
        let paths: Vec<&str> = parsed.resource.fields.iter().map(|f| f.path).collect();
        let Ok(scan) = scan(value, &paths) else { return Extracted::default() };
        let index = index(parsed.resource, &scan.fields);
        Extracted {
            labels: scan.labels,
            fields: scan.fields,
            owners: scan.owners,
            index,
            splice_at: scan.splice_at.unwrap_or_default(),
        }
    }
}

fn index(resource: &Resource, fields: &[(Box<str>, Box<str>)]) -> Vec<Box<str>> {
    if resource.prefix != "pods" {
        return Vec::new();
    }
    fields
        .iter()
        .filter(|(path, node)| &**path == "spec.nodeName" && !node.is_empty())
        .map(|(_, node)| format!("{INDEX_NODE}{node}").into())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_indexed_by_its_node() {
        let value = br#"{"kind":"Pod","metadata":{"name":"p","labels":{"a":"b"}},"spec":{"nodeName":"n1"}}"#;
        let found = ObjectExtract::builtin().extract(b"/registry/pods/default/p", value);
        assert_eq!(found.index, ["node/n1".into()]);
        assert_eq!(found.labels, [("a".into(), "b".into())]);
        let at = found.splice_at as usize;
        assert!(value[..at].ends_with(b"\"metadata\":{"));
        assert!(ObjectExtract::builtin().extract(b"/registry/secrets/a/b", value).index.is_empty());
    }
}
