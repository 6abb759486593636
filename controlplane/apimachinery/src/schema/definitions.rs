//! The definitions of one group version for OpenAPI, with descriptions: made for one document and dropped with it.
//! Must not be called on the write path.

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::{Extension, Kind, ListType, MapType, extensions, kinds};
use crate::gvk::GroupVersionKind;

/// Which OpenAPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `#/definitions/…`
    V2,
    /// `#/components/schemas/…`
    V3,
}

/// Every definition that the kinds of `group` and `version` need, by upstream's name, lists included.
pub fn definitions(group: &str, version: &str, dialect: Dialect) -> BTreeMap<String, Value> {
    let mut settings = match dialect {
        Dialect::V2 => SchemaSettings::draft07(),
        Dialect::V3 => SchemaSettings::openapi3(),
    };
    settings.definitions_path = match dialect {
        Dialect::V2 => "/definitions".into(),
        Dialect::V3 => "/components/schemas".into(),
    };
    let mut generator = settings.into_generator();
    let own = |row: &&Kind| row.gvk.group == group && row.gvk.version == version;
    let rows: Vec<&Kind> = kinds::KINDS.iter().filter(own).collect();
    for row in rows.iter().copied().chain(kinds::META) {
        (row.generate)(&mut generator);
    }
    let mut made: BTreeMap<String, Value> = generator.take_definitions(false).into_iter().collect();
    for (name, schema) in &mut made {
        finish(name, schema, dialect);
    }
    for row in rows {
        let name = row.type_name();
        if let Some(Value::Object(schema)) = made.get_mut(&*name) {
            schema.insert(GVK.to_owned(), gvk_list(row.gvk));
        }
        if row.listed {
            made.insert(format!("{name}List"), list_of(row, dialect));
        }
    }
    made
}

const GVK: &str = "x-kubernetes-group-version-kind";

fn gvk_list(gvk: GroupVersionKind<'_>) -> Value {
    json!([{"group": gvk.group, "kind": gvk.kind, "version": gvk.version}])
}

/// Upstream's text for `items` differs by kind; the shape does not.
fn list_of(row: &Kind, dialect: Dialect) -> Value {
    let kind = row.gvk.kind;
    let list = GroupVersionKind { kind: &format!("{kind}List"), ..row.gvk };
    let text = |description: &str| json!({"type": "string", "description": description});
    let meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
    let metadata = described(
        reference(meta, dialect),
        "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds",
        dialect,
    );
    json!({
        "description": format!("{kind}List is a list of {kind}."),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": text("APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources"),
            "items": {
                "description": format!("Items is the list of {kind}."),
                "type": "array",
                "items": reference(&row.type_name(), dialect),
            },
            "kind": text("Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds"),
            "metadata": metadata,
        },
        GVK: gvk_list(list),
    })
}

fn reference(name: &str, dialect: Dialect) -> Value {
    let path = match dialect {
        Dialect::V2 => "#/definitions/",
        Dialect::V3 => "#/components/schemas/",
    };
    json!({"$ref": format!("{path}{name}")})
}

/// OpenAPI v3 allows no siblings of `$ref`.
fn described(reference: Value, description: &str, dialect: Dialect) -> Value {
    match dialect {
        Dialect::V2 => {
            let mut schema = reference;
            schema["description"] = description.into();
            schema
        }
        Dialect::V3 => json!({"allOf": [reference], "default": {}, "description": description}),
    }
}

fn finish(name: &str, schema: &mut Value, dialect: Dialect) {
    let rows = extensions::of(name);
    let Value::Object(schema) = schema else { return };
    schema.remove("$schema");
    schema.remove("title");
    if schema.remove("x-kubernetes-int-or-string").is_some() {
        int_or_string(name, schema, dialect);
    }
    if let Some((_, extension)) = rows.iter().find(|(field, _)| *field == extensions::TYPE) {
        extend(schema, extension);
    }
    let Some(Value::Object(properties)) = schema.get_mut("properties") else { return };
    for (name, property) in properties {
        let description = property.get("description").and_then(Value::as_str).map(str::to_owned);
        if let (Dialect::V3, Some(target)) = (dialect, property.get("$ref").cloned()) {
            let target = json!({"$ref": target});
            *property = described(target, description.as_deref().unwrap_or_default(), dialect);
        }
        if let (Some((_, extension)), Value::Object(property)) =
            (rows.iter().find(|(field, _)| field == name), property)
        {
            extend(property, extension);
        }
    }
}

fn int_or_string(name: &str, schema: &mut Map<String, Value>, dialect: Dialect) {
    let quantity = name.ends_with("Quantity");
    match dialect {
        Dialect::V2 => {
            schema.insert("type".to_owned(), "string".into());
        }
        Dialect::V3 if quantity => {
            schema.insert("oneOf".to_owned(), json!([{"type": "string"}, {"type": "number"}]));
        }
        Dialect::V3 => {
            schema.insert("oneOf".to_owned(), json!([{"type": "integer"}, {"type": "string"}]));
        }
    }
    if !quantity {
        schema.insert("format".to_owned(), "int-or-string".into());
    }
}

fn extend(schema: &mut Map<String, Value>, extension: &Extension) {
    let mut add = |key: &str, value: Value| schema.insert(format!("x-kubernetes-{key}"), value);
    match extension.list_type {
        Some(ListType::Atomic) => drop(add("list-type", "atomic".into())),
        Some(ListType::Set) => drop(add("list-type", "set".into())),
        Some(ListType::Map) => drop(add("list-type", "map".into())),
        None => {}
    }
    if !extension.map_keys.is_empty() {
        add("list-map-keys", extension.map_keys.to_vec().into());
    }
    if let Some(key) = extension.merge_key {
        add("patch-merge-key", key.into());
    }
    match (extension.merge, extension.retain_keys, extension.replace) {
        (true, true, _) => drop(add("patch-strategy", "merge,retainKeys".into())),
        (true, false, _) => drop(add("patch-strategy", "merge".into())),
        (false, true, _) => drop(add("patch-strategy", "retainKeys".into())),
        (false, false, true) => drop(add("patch-strategy", "replace".into())),
        (false, false, false) => {}
    }
    match extension.map_type {
        Some(MapType::Atomic) => drop(add("map-type", "atomic".into())),
        Some(MapType::Granular) => drop(add("map-type", "granular".into())),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_version_is_complete() {
        for (dialect, path) in
            [(Dialect::V2, "#/definitions/"), (Dialect::V3, "#/components/schemas/")]
        {
            let made = definitions("apps", "v1", dialect);
            let text = serde_json::to_string(&made).unwrap();
            for target in text.split("\"$ref\":\"").skip(1) {
                let target = target.split('"').next().unwrap();
                let name = target.strip_prefix(path).unwrap();
                assert!(made.contains_key(name), "{name}");
            }
            assert!(!text.contains("$schema"));
            let deployment = &made["io.k8s.api.apps.v1.Deployment"];
            assert_eq!(
                deployment[GVK],
                json!([{"group": "apps", "kind": "Deployment", "version": "v1"}])
            );
            assert_eq!(made["io.k8s.api.apps.v1.DeploymentList"][GVK][0]["kind"], "DeploymentList");
            let containers = &made["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
            assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
            assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
            assert!(
                containers["description"]
                    .as_str()
                    .is_some_and(|text| text.starts_with("List of containers"))
            );
            assert!(!made.contains_key("io.k8s.api.core.v1.Service"));
        }
    }
}
