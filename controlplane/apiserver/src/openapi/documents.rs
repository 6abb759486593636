//! The OpenAPI documents as bytes: made on request from the schemas and the resource table, and kept nowhere.

use super::paths;
use crate::meta::GIT_VERSION;
use crate::resource::{Resource, ResourceTable};
use apimachinery::schema::{Dialect, definitions};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The rows of one group version.
fn rows<'a>(table: &'a ResourceTable, group: &str, version: &str) -> Vec<&'a Resource> {
    table
        .iter()
        .map(AsRef::as_ref)
        .filter(|row: &&Resource| row.group == group && row.version == version)
        .collect()
}

/// Group and version of every row, each once, in the table's order.
pub(super) fn group_versions(table: &ResourceTable) -> Vec<(&str, &str)> {
    let mut all: Vec<(&str, &str)> = Vec::new();
    for row in table.iter() {
        let of = (row.group.as_str(), row.version.as_str());
        if !all.contains(&of) {
            all.push(of);
        }
    }
    all
}

/// The version 3 document of one group version; `None` when there is no such.
pub(super) fn v3(
    table: &ResourceTable,
    group: &str,
    version: &str,
) -> Option<Result<Vec<u8>, serde_json::Error>> {
    let rows = rows(table, group, version);
    if rows.is_empty() {
        return None;
    }
    let schemas = definitions(group, version, Dialect::V3);
    let paths = paths::of_rows(&rows, Dialect::V3, &|name| schemas.contains_key(name));
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": GIT_VERSION},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"BearerToken": {
            "type": "apiKey", "name": "authorization", "in": "header",
            "description": "Bearer Token authentication",
        }}},
    });
    Some(serde_json::to_vec(&document))
}

/// What `/openapi/v3` lists: path of the group version and a key that changes with what is served there.
pub(super) fn v3_index(table: &ResourceTable) -> Value {
    let paths: Map<String, Value> = group_versions(table)
        .into_iter()
        .map(|(group, version)| {
            let path = paths::root(group, version).trim_start_matches('/').to_owned();
            let hash = served_hash(&rows(table, group, version));
            let url = format!("/openapi/v3/{path}?hash={hash}");
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({ "paths": paths })
}

/// A document is a function of this program and of its rows, so both make the key.
fn served_hash(rows: &[&Resource]) -> String {
    let mut text = GIT_VERSION.to_owned();
    for row in rows {
        text.push_str(&format!("\n{} {} {:?}", row.plural, row.kind, row.verbs));
        for subresource in &row.subresources {
            text.push_str(&format!(" {} {:?}", subresource.name, subresource.verbs));
        }
    }
    crate::discovery::hash(text.as_bytes())
}

/// The version 2 document of everything. Group versions are made one after the other and kept as text, so that the trees of
/// all of them are never in memory together.
pub(super) fn v2(table: &ResourceTable) -> Result<Vec<u8>, serde_json::Error> {
    let mut all: BTreeMap<String, Box<RawValue>> = BTreeMap::new();
    let mut paths: BTreeMap<String, Box<RawValue>> = BTreeMap::new();
    for (group, version) in group_versions(table) {
        let made = definitions(group, version, Dialect::V2);
        let rows = rows(table, group, version);
        for (path, item) in paths::of_rows(&rows, Dialect::V2, &|name| made.contains_key(name)) {
            paths.insert(path, to_raw_value(&item)?);
        }
        for (name, schema) in made {
            all.insert(name, to_raw_value(&schema)?);
        }
    }
    let document = BTreeMap::from([
        ("swagger", to_raw_value("2.0")?),
        ("info", to_raw_value(&json!({"title": "Kubernetes", "version": GIT_VERSION}))?),
        ("paths", to_raw_value(&paths)?),
        ("definitions", to_raw_value(&all)?),
    ]);
    serde_json::to_vec(&document)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(group: &str, version: &str) -> Value {
        let bytes = v3(&ResourceTable::builtin(), group, version).unwrap().unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn kubectl_finds_what_it_looks_for() {
        let apps = document("apps", "v1");
        let item = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
        let gvk = json!({"group": "apps", "kind": "Deployment", "version": "v1"});
        assert_eq!(item["patch"]["x-kubernetes-group-version-kind"], gvk);
        let parameters = item["patch"]["parameters"].as_array().unwrap();
        assert!(parameters.iter().any(|p| p["name"] == "fieldValidation" && p["in"] == "query"));
        let list = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments"];
        assert!(list["get"].is_object() && list["post"].is_object() && list["delete"].is_object());
        let name = list["get"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
            .as_str()
            .unwrap();
        assert_eq!(name, "#/components/schemas/io.k8s.api.apps.v1.DeploymentList");
    }

    #[test]
    fn references_lead_somewhere_and_operations_are_unique() {
        let table = ResourceTable::builtin();
        for (group, version) in group_versions(&table) {
            let document = document(group, version);
            let text = document.to_string();
            for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
                let name = reference.split('"').next().unwrap();
                assert!(document["components"]["schemas"][name].is_object(), "{group} {name}");
            }
            let mut ids: Vec<&str> = text
                .split("\"operationId\":\"")
                .skip(1)
                .map(|t| t.split('"').next().unwrap())
                .collect();
            let count = ids.len();
            assert!(count > 0, "{group}/{version}");
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), count, "{group}/{version}");
        }
    }

    #[test]
    fn the_old_document_holds_everything() {
        let bytes = v2(&ResourceTable::builtin()).unwrap();
        let document: Value = serde_json::from_slice(&bytes).unwrap();
        for name in ["io.k8s.api.core.v1.Pod", "io.k8s.api.apps.v1.Deployment"] {
            assert!(document["definitions"][name]["properties"]["spec"].is_object());
        }
        assert!(document["paths"]["/api/v1/nodes/{name}"]["patch"].is_object());
    }

    #[test]
    fn the_index_names_every_group_version() {
        let index = v3_index(&ResourceTable::builtin());
        let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
        assert!(url.starts_with("/openapi/v3/apis/apps/v1?hash="));
        assert!(index["paths"]["api/v1"].is_object());
    }
}
