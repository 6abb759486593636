//! Discovery's documents, derived from the resource table. Pure.
//!
//! Worked example: the row of deployments becomes one `APIResourceDiscovery` with subresources `scale` and `status`, and in
//! the plain form the three entries `deployments`, `deployments/scale` and `deployments/status`.

use crate::resource::{Resource, ResourceTable, Subresource};
use serde_json::{Map, Value, json};

/// A group's rows of one version.
struct Version<'a> {
    name: &'a str,
    rows: Vec<&'a Resource>,
}

struct Group<'a> {
    name: &'a str,
    versions: Vec<Version<'a>>,
}

/// Groups and versions in the table's order.
fn groups(table: &ResourceTable) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for row in table.iter() {
        let index = groups.iter().position(|group| group.name == row.group).unwrap_or_else(|| {
            groups.push(Group { name: &row.group, versions: Vec::new() });
            groups.len() - 1
        });
        let versions = &mut groups[index].versions;
        match versions.iter_mut().find(|version| version.name == row.version) {
            Some(version) => version.rows.push(row),
            None => versions.push(Version { name: &row.version, rows: vec![row] }),
        }
    }
    groups
}

/// `APIGroupDiscoveryList` of the core group (`/api`) or of all others (`/apis`).
pub(super) fn aggregated(table: &ResourceTable, core: bool) -> Value {
    let items: Vec<Value> = groups(table)
        .iter()
        .filter(|group| group.name.is_empty() == core)
        .map(aggregated_group)
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {}, "items": items,
    })
}

fn aggregated_group(group: &Group<'_>) -> Value {
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|version| {
            let resources: Vec<Value> =
                version.rows.iter().map(|row| aggregated_resource(row)).collect();
            json!({"version": version.name, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let metadata = match group.name {
        "" => json!({}),
        name => json!({"name": name}),
    };
    json!({"metadata": metadata, "versions": versions})
}

fn response_kind(row: &Resource, subresource: Option<&Subresource>) -> Value {
    match subresource.and_then(|subresource| subresource.response) {
        Some((group, version, kind)) if group != row.group || version != row.version => {
            json!({"group": group, "version": version, "kind": kind})
        }
        Some((_, _, kind)) => json!({"group": "", "version": "", "kind": kind}),
        None => json!({"group": "", "version": "", "kind": row.kind}),
    }
}

fn aggregated_resource(row: &Resource) -> Value {
    let mut resource = Map::new();
    let mut put = |name: &str, value: Value| resource.insert(name.to_owned(), value);
    put("resource", json!(row.plural));
    put("responseKind", response_kind(row, None));
    put("scope", json!(if row.is_namespaced() { "Namespaced" } else { "Cluster" }));
    put("singularResource", json!(row.singular));
    put("verbs", json!(row.verbs));
    if !row.short_names.is_empty() {
        put("shortNames", json!(row.short_names));
    }
    if !row.categories.is_empty() {
        put("categories", json!(row.categories));
    }
    if !row.subresources.is_empty() {
        let subresources: Vec<Value> = row
            .subresources
            .iter()
            .map(|subresource| {
                json!({
                    "subresource": subresource.name,
                    "responseKind": response_kind(row, Some(subresource)),
                    "verbs": subresource.verbs,
                })
            })
            .collect();
        put("subresources", json!(subresources));
    }
    Value::Object(resource)
}

/// `APIVersions`, the plain `/api`.
pub(super) fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `APIGroupList`, the plain `/apis`.
pub(super) fn group_list(table: &ResourceTable) -> Value {
    let all = groups(table);
    let groups: Vec<Value> =
        all.iter().filter(|group| !group.name.is_empty()).map(plain_group).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `APIGroup`, `/apis/<group>`.
pub(super) fn group(table: &ResourceTable, name: &str) -> Option<Value> {
    let all = groups(table);
    let found = all.iter().find(|group| group.name == name && !name.is_empty())?;
    let mut document = json!({"kind": "APIGroup", "apiVersion": "v1"});
    if let (Value::Object(into), Value::Object(from)) = (&mut document, plain_group(found)) {
        into.extend(from);
    }
    Some(document)
}

fn plain_group(group: &Group<'_>) -> Value {
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|version| {
            let name = format!("{}/{}", group.name, version.name);
            json!({"groupVersion": name, "version": version.name})
        })
        .collect();
    let preferred = versions.first().cloned().unwrap_or_default();
    json!({"name": group.name, "versions": versions, "preferredVersion": preferred})
}

/// `APIResourceList`, `/api/v1` or `/apis/<group>/<version>`.
pub(super) fn resource_list(table: &ResourceTable, group: &str, version: &str) -> Option<Value> {
    let mut rows = table.iter().filter(|row| row.group == group && row.version == version);
    let first = rows.next()?;
    let resources: Vec<Value> =
        std::iter::once(first).chain(rows).flat_map(|row| plain_resources(row)).collect();
    let mut list = json!({
        "kind": "APIResourceList", "groupVersion": first.api_version(), "resources": resources,
    });
    if !group.is_empty() {
        list["apiVersion"] = json!("v1");
    }
    Some(list)
}

fn plain_resources(row: &Resource) -> Vec<Value> {
    let mut own = json!({
        "name": row.plural, "singularName": row.singular, "namespaced": row.is_namespaced(),
        "kind": row.kind, "verbs": row.verbs,
    });
    if !row.short_names.is_empty() {
        own["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        own["categories"] = json!(row.categories);
    }
    let mut all = vec![own];
    all.extend(row.subresources.iter().map(|subresource| {
        let mut entry = json!({
            "name": format!("{}/{}", row.plural, subresource.name), "singularName": "",
            "namespaced": row.is_namespaced(), "kind": row.kind, "verbs": subresource.verbs,
        });
        if let Some((group, version, kind)) = subresource.response {
            entry["kind"] = json!(kind);
            if group != row.group || version != row.version {
                entry["group"] = json!(group);
                entry["version"] = json!(version);
            }
        }
        entry
    }));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Option<Value> {
        let dir = std::env::var("FLOTILLA_SPEC_DIR")
            .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../spec").to_owned());
        let path = std::path::Path::new(&dir).join("discovery.json");
        let Ok(text) = std::fs::read(&path) else {
            println!("SKIPPED: no {}", path.display());
            return None;
        };
        Some(serde_json::from_slice(&text).unwrap())
    }

    /// Groups that this server doesn't serve yet.
    const MISSING: &[&str] = &[
        "autoscaling",
        "apiregistration.k8s.io",
        "admissionregistration.k8s.io",
        "apiextensions.k8s.io",
        "resource.k8s.io",
        "flowcontrol.apiserver.k8s.io",
    ];

    #[test]
    fn aggregated_discovery_is_upstreams() {
        let Some(facts) = facts() else { return };
        let table = ResourceTable::builtin();
        assert_eq!(aggregated(&table, true), facts["core"]);
        let mut theirs = facts["apis"].clone();
        theirs["items"].as_array_mut().unwrap().retain(|group| {
            let name = group["metadata"]["name"].as_str().unwrap();
            !MISSING.contains(&name) || groups(&table).iter().any(|ours| ours.name == name)
        });
        let ours = aggregated(&table, false);
        for (ours, theirs) in
            ours["items"].as_array().unwrap().iter().zip(theirs["items"].as_array().unwrap())
        {
            assert_eq!(ours, theirs);
        }
        assert_eq!(ours, theirs);
    }

    #[test]
    fn the_plain_form_says_the_same() {
        let table = ResourceTable::builtin();
        let list = resource_list(&table, "apps", "v1").unwrap();
        let find = |name: &str| {
            list["resources"]
                .as_array()
                .unwrap()
                .iter()
                .find(|r| r["name"] == name)
                .unwrap()
                .clone()
        };
        assert_eq!(find("deployments")["shortNames"], json!(["deploy"]));
        let scale = json!({"name": "deployments/scale", "singularName": "", "namespaced": true,
            "kind": "Scale", "group": "autoscaling", "version": "v1",
            "verbs": ["get", "patch", "update"]});
        assert_eq!(find("deployments/scale"), scale);
        assert_eq!(resource_list(&table, "apps", "v9"), None);
        let group = group(&table, "batch").unwrap();
        assert_eq!(group["preferredVersion"]["groupVersion"], "batch/v1");
    }
}
