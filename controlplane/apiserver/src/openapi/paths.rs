//! The `paths` of an OpenAPI document: operations on one group version's resources. Pure.
//!
//! What clients rely on: an operation names its kind (`kubectl explain` finds the kind of a resource by it), and a PATCH
//! offers `fieldValidation` (kubectl asks for it before it lets the server validate).

use crate::resource::{Resource, Subresource};
use apimachinery::gvk::GroupVersionKind;
use apimachinery::schema::{Dialect, Schemas};
use serde_json::{Map, Value, json};

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PATCHES: [&str; 3] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// Group, version and kind that an operation is about.
type Gvk<'a> = (&'a str, &'a str, &'a str);

/// One operation to be written down.
struct Operation<'a> {
    verb: &'a str,
    kind: Gvk<'a>,
    /// Definition of what is taken and given.
    schema: Option<String>,
    row: &'a Resource,
    id: String,
}

/// The paths of the rows, all of one group version. `defined` says which definitions the document has.
pub(super) fn of_rows(
    rows: &[&Resource],
    dialect: Dialect,
    defined: &dyn Fn(&str) -> bool,
) -> Map<String, Value> {
    let mut paths = Map::new();
    for row in rows {
        let root = root(&row.group, &row.version);
        let plural = &row.plural;
        let own = (row.group.as_str(), row.version.as_str(), row.kind.as_str());
        let base = match row.is_namespaced() {
            true => format!("{root}/namespaces/{{namespace}}/{plural}"),
            false => format!("{root}/{plural}"),
        };
        let mut put = |path: String, pairs: &[(&str, &str)], kind: Gvk<'_>, listed: bool| {
            let schema = definition(kind, listed).filter(|name| defined(name));
            let operations: Vec<(String, Value)> = pairs
                .iter()
                .map(|(method, verb)| {
                    let id = operation_id(verb, row, &path);
                    let operation = Operation { verb, kind, schema: schema.clone(), row, id };
                    ((*method).to_owned(), operation.value(dialect))
                })
                .collect();
            if operations.is_empty() {
                return;
            }
            let mut item: Map<String, Value> = operations.into_iter().collect();
            item.insert("parameters".to_owned(), json!(path_parameters(&path, dialect)));
            match paths.get_mut(&path).and_then(Value::as_object_mut) {
                Some(known) => known.extend(item),
                None => drop(paths.insert(path, Value::Object(item))),
            }
        };
        let with = |wanted: &[(&'static str, &'static str)]| -> Vec<(&str, &str)> {
            wanted.iter().copied().filter(|(_, verb)| row.has_verb(verb)).collect()
        };
        put(base.clone(), &with(&[("get", "list"), ("delete", "deletecollection")]), own, true);
        put(base.clone(), &with(&[("post", "create")]), own, false);
        if row.is_namespaced() {
            put(format!("{root}/{plural}"), &with(&[("get", "list")]), own, true);
        }
        let item = format!("{base}/{{name}}");
        let verbs = [("get", "get"), ("put", "update"), ("patch", "patch"), ("delete", "delete")];
        put(item.clone(), &with(&verbs), own, false);
        for subresource in &row.subresources {
            let pairs = subresource_methods(subresource);
            let kind = subresource.response.unwrap_or(own);
            put(format!("{item}/{}", subresource.name), &pairs, kind, false);
        }
    }
    paths
}

/// `/api/v1` or `/apis/<group>/<version>`.
pub(super) fn root(group: &str, version: &str) -> String {
    match group {
        "" => format!("/api/{version}"),
        group => format!("/apis/{group}/{version}"),
    }
}

fn subresource_methods(subresource: &Subresource) -> Vec<(&'static str, &'static str)> {
    [
        ("get", "get"),
        ("put", "update"),
        ("patch", "patch"),
        ("post", "create"),
        ("delete", "delete"),
    ]
    .into_iter()
    .filter(|(_, verb)| subresource.verbs.contains(verb))
    .collect()
}

fn definition((group, version, kind): Gvk<'_>, listed: bool) -> Option<String> {
    let wanted = GroupVersionKind::new(group, version, kind);
    let found = Schemas::builtin().kinds().iter().find(|row| row.gvk == wanted)?;
    let name = found.type_name();
    Some(if listed { format!("{name}List") } else { name.into_owned() })
}

/// `readCoreV1NamespacedPod`: unique within a document.
fn operation_id(verb: &str, row: &Resource, path: &str) -> String {
    let verb = match verb {
        "get" => "read",
        "update" => "replace",
        "deletecollection" => "deleteCollection",
        other => other,
    };
    let mut id = verb.to_owned();
    let group = match row.group.split('.').next().unwrap_or_default() {
        "" => "core",
        group => group,
    };
    let all = row.is_namespaced() && !path.contains("{namespace}");
    let namespaced = if row.is_namespaced() && !all { "Namespaced" } else { "" };
    let part = path.rsplit_once("{name}/").map_or("", |(_, part)| part);
    for word in [group, &row.version, namespaced, &row.kind, part] {
        let mut letters = word.chars();
        if let Some(first) = letters.next() {
            id.extend(first.to_uppercase());
            id.push_str(letters.as_str());
        }
    }
    if all {
        id.push_str("ForAllNamespaces");
    }
    id
}

impl Operation<'_> {
    fn value(&self, dialect: Dialect) -> Value {
        let (group, version, kind) = self.kind;
        let mut operation = json!({
            "description": format!("{} {}", self.verb, self.row.kind),
            "operationId": self.id,
            "tags": [tag(self.row)],
            "responses": {"200": self.response(dialect), "401": {"description": "Unauthorized"}},
            "x-kubernetes-action": action(self.verb),
            "x-kubernetes-group-version-kind": {"group": group, "kind": kind, "version": version},
        });
        let mut parameters = query_parameters(self.verb, dialect);
        if let Some((media, schema)) = self.body(dialect) {
            match dialect {
                Dialect::V3 => {
                    let content: Map<String, Value> = media
                        .iter()
                        .map(|media| ((*media).to_owned(), json!({"schema": schema})))
                        .collect();
                    operation["requestBody"] = json!({"content": content, "required": true});
                }
                Dialect::V2 => {
                    operation["consumes"] = json!(media);
                    parameters.push(
                        json!({"name": "body", "in": "body", "required": true, "schema": schema}),
                    );
                }
            }
        }
        if !parameters.is_empty() {
            operation["parameters"] = Value::Array(parameters);
        }
        operation
    }

    fn schema(&self, dialect: Dialect) -> Value {
        match (&self.schema, dialect) {
            (None, _) => json!({"type": "object"}),
            (Some(name), Dialect::V2) => json!({"$ref": format!("#/definitions/{name}")}),
            (Some(name), Dialect::V3) => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }

    fn response(&self, dialect: Dialect) -> Value {
        let schema = self.schema(dialect);
        match dialect {
            Dialect::V2 => json!({"description": "OK", "schema": schema}),
            Dialect::V3 => json!({
                "description": "OK",
                "content": {JSON: {"schema": schema}, YAML: {"schema": schema}},
            }),
        }
    }

    fn body(&self, dialect: Dialect) -> Option<(Vec<&'static str>, Value)> {
        match self.verb {
            "create" | "update" => Some((vec![JSON, YAML], self.schema(dialect))),
            "patch" => Some((PATCHES.to_vec(), json!({"type": "object"}))),
            _ => None,
        }
    }
}

fn action(verb: &str) -> &str {
    match verb {
        "create" => "post",
        "update" => "put",
        other => other,
    }
}

fn tag(row: &Resource) -> String {
    let group = match row.group.split('.').next().unwrap_or_default() {
        "" => "core",
        group => group,
    };
    format!("{group}_{}", row.version)
}

fn parameter(
    (name, kind): (&str, &str),
    place: &str,
    description: &str,
    dialect: Dialect,
) -> Value {
    let mut parameter = json!({"name": name, "in": place, "description": description});
    match dialect {
        Dialect::V2 => {
            parameter["type"] = json!(kind);
            parameter["uniqueItems"] = json!(true);
        }
        Dialect::V3 => parameter["schema"] = json!({"type": kind, "uniqueItems": true}),
    }
    if place == "path" {
        parameter["required"] = json!(true);
    }
    parameter
}

fn path_parameters(path: &str, dialect: Dialect) -> Vec<Value> {
    let namespace = "object name and auth scope, such as for teams and projects";
    let mut list = Vec::new();
    if path.contains("{namespace}") {
        list.push(parameter(("namespace", "string"), "path", namespace, dialect));
    }
    if path.contains("{name}") {
        list.push(parameter(("name", "string"), "path", "name of the object", dialect));
    }
    list.push(parameter(
        ("pretty", "string"),
        "query",
        "If 'true', then the output is pretty printed.",
        dialect,
    ));
    list
}

fn query_parameters(verb: &str, dialect: Dialect) -> Vec<Value> {
    const DRY_RUN: (&str, &str, &str) = (
        "dryRun",
        "string",
        "When present, indicates that modifications should not be persisted. Valid values are: - All: all dry run stages will be processed",
    );
    const MANAGER: (&str, &str, &str) = (
        "fieldManager",
        "string",
        "fieldManager is a name associated with the actor or entity that is making these changes.",
    );
    const VALIDATION: (&str, &str, &str) = (
        "fieldValidation",
        "string",
        "fieldValidation instructs the server on how to handle objects in the request (POST/PUT/PATCH) containing unknown or duplicate fields. Valid values are: Ignore, Warn, Strict.",
    );
    const FORCE: (&str, &str, &str) = (
        "force",
        "boolean",
        "Force is going to \"force\" Apply requests. It means user will re-acquire conflicting fields owned by other people.",
    );
    const LABELS: (&str, &str, &str) = (
        "labelSelector",
        "string",
        "A selector to restrict the list of returned objects by their labels. Defaults to everything.",
    );
    const FIELDS: (&str, &str, &str) = (
        "fieldSelector",
        "string",
        "A selector to restrict the list of returned objects by their fields. Defaults to everything.",
    );
    const LIMIT: (&str, &str, &str) =
        ("limit", "integer", "limit is a maximum number of responses to return for a list call.");
    const CONTINUE: (&str, &str, &str) = (
        "continue",
        "string",
        "The continue option should be set when retrieving more results from the server.",
    );
    const VERSION: (&str, &str, &str) = (
        "resourceVersion",
        "string",
        "resourceVersion sets a constraint on what resource versions a request may be served from.",
    );
    const WATCH: (&str, &str, &str) = (
        "watch",
        "boolean",
        "Watch for changes to the described resources and return them as a stream of add, update, and remove notifications.",
    );
    const GRACE: (&str, &str, &str) = (
        "gracePeriodSeconds",
        "integer",
        "The duration in seconds before the object should be deleted.",
    );
    const PROPAGATION: (&str, &str, &str) = (
        "propagationPolicy",
        "string",
        "Whether and how garbage collection will be performed. Acceptable values are: 'Orphan', 'Background', 'Foreground'.",
    );
    let list: &[(&str, &str, &str)] = match verb {
        "create" | "update" => &[DRY_RUN, MANAGER, VALIDATION],
        "patch" => &[DRY_RUN, MANAGER, VALIDATION, FORCE],
        "list" => &[CONTINUE, FIELDS, LABELS, LIMIT, VERSION, WATCH],
        "delete" => &[DRY_RUN, GRACE, PROPAGATION],
        "deletecollection" => &[DRY_RUN, FIELDS, GRACE, LABELS, PROPAGATION],
        _ => &[],
    };
    list.iter().map(|(name, kind, text)| parameter((name, kind), "query", text, dialect)).collect()
}
