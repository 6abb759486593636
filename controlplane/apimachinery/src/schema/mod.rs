//! The shapes of the built-in kinds: a compact graph of types, made per kind when it is first asked for.
//! Descriptions are not kept; `definitions` renders them anew for OpenAPI. Invariant: fields are sorted by name.

mod definitions;
mod extensions;
mod kinds;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

pub use definitions::{Dialect, definitions};
pub use kinds::Kind;

use crate::gvk::GroupVersionKind;

/// How a list is merged by server-side apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListType {
    /// Replaced as a whole.
    Atomic,
    /// Scalars, each once.
    Set,
    /// Objects told apart by their map keys.
    Map,
}

/// How an object is merged by server-side apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapType {
    /// Replaced as a whole.
    Atomic,
    /// Field by field.
    Granular,
}

/// What a field (or type) says beyond its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extension {
    /// `x-kubernetes-list-type`
    pub list_type: Option<ListType>,
    /// `x-kubernetes-list-map-keys`
    pub map_keys: &'static [&'static str],
    /// `x-kubernetes-patch-merge-key`
    pub merge_key: Option<&'static str>,
    /// `x-kubernetes-patch-strategy` has `merge`.
    pub merge: bool,
    /// `x-kubernetes-patch-strategy` has `retainKeys`.
    pub retain_keys: bool,
    /// `x-kubernetes-patch-strategy` has `replace`.
    pub replace: bool,
    /// `x-kubernetes-map-type`
    pub map_type: Option<MapType>,
}

/// What a value may be.
#[derive(Debug, Clone)]
pub enum Node {
    /// `true`, `false`
    Bool,
    /// 32-bit integer
    Int32,
    /// 64-bit integer
    Int64,
    /// Floating point
    Number,
    /// Text
    String,
    /// Base64
    Bytes,
    /// RFC 3339, seconds
    Time,
    /// RFC 3339, microseconds
    MicroTime,
    /// `resource.Quantity`
    Quantity,
    /// A 32-bit integer or text
    IntOrString,
    /// Anything: raw extensions
    Any,
    /// A list of one sort of item
    List(Box<Node>),
    /// A map from text to one sort of value
    Map(Box<Node>),
    /// A struct
    Object(Arc<Type>),
}

impl Node {
    /// The struct, if it is one.
    pub fn object(&self) -> Option<&Arc<Type>> {
        match self {
            Self::Object(inner) => Some(inner),
            _ => None,
        }
    }

    /// The items of a list or values of a map.
    pub fn inner(&self) -> Option<&Node> {
        match self {
            Self::List(inner) | Self::Map(inner) => Some(inner),
            _ => None,
        }
    }
}

/// One field of a struct.
#[derive(Debug, Clone)]
pub struct Field {
    /// JSON name.
    pub name: Box<str>,
    /// Shape of the value.
    pub node: Node,
    /// Go's type has no `omitempty`.
    pub required: bool,
    /// List type, merge key and the like.
    pub extension: Extension,
}

/// A named struct. Its fields are set once, after all types of a batch exist, since types refer to each other.
pub struct Type {
    name: Box<str>,
    extension: Extension,
    fields: OnceLock<Box<[Field]>>,
}

impl Type {
    /// Upstream's definition name, such as `io.k8s.api.core.v1.PodSpec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Go's name in its package, such as `PodSpec`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }

    /// Map type of the struct itself.
    pub fn extension(&self) -> Extension {
        self.extension
    }

    /// Sorted by name.
    pub fn fields(&self) -> &[Field] {
        self.fields.get().map(AsRef::as_ref).unwrap_or_default()
    }

    /// One field.
    pub fn field(&self, name: &str) -> Option<&Field> {
        let fields = self.fields();
        fields.binary_search_by(|field| (*field.name).cmp(name)).ok().map(|at| &fields[at])
    }
}

/// Only the name: types refer to each other in circles.
impl std::fmt::Debug for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Type").field(&self.name).finish()
    }
}

/// The types made so far.
#[derive(Debug, Default)]
pub struct Schemas {
    types: Mutex<HashMap<Box<str>, Arc<Type>>>,
}

impl Schemas {
    /// Those of the built-in kinds, one set per process.
    pub fn builtin() -> &'static Self {
        static BUILTIN: OnceLock<Schemas> = OnceLock::new();
        BUILTIN.get_or_init(Self::default)
    }

    /// The type of a built-in kind, made on the first call.
    pub fn get(&self, group: &str, version: &str, kind: &str) -> Option<Arc<Type>> {
        self.of(GroupVersionKind::new(group, version, kind))
    }

    /// Like [`Schemas::get`].
    pub fn of(&self, gvk: GroupVersionKind<'_>) -> Option<Arc<Type>> {
        let kind = kinds::find(gvk).or_else(|| meta_kind(gvk))?;
        let mut types = self.types.lock().unwrap_or_else(PoisonError::into_inner);
        let name = kind.type_name();
        if !types.contains_key(&*name) {
            add(&mut types, kind);
        }
        types.get(&*name).cloned()
    }

    /// A type that some kind asked for before refers to, by upstream's definition name.
    pub fn named(&self, name: &str) -> Option<Arc<Type>> {
        self.types.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// The built-in kinds, sorted by group, version and kind.
    pub fn kinds(&self) -> &'static [Kind] {
        kinds::KINDS
    }
}

/// `DeleteOptions` and its like are kinds of every group.
fn meta_kind(gvk: GroupVersionKind<'_>) -> Option<&'static Kind> {
    kinds::META.iter().find(|row| row.gvk.kind == gvk.kind)
}

const DEFINITIONS_PATH: &str = "/$defs";

/// Makes the types of `kind` that are not there yet.
fn add(types: &mut HashMap<Box<str>, Arc<Type>>, kind: &Kind) {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = DEFINITIONS_PATH.into();
    let mut generator = settings.into_generator();
    // What is known needs no second generation: the generator descends only into absent definitions.
    for name in types.keys() {
        generator.definitions_mut().insert(name.to_string(), Value::Bool(true));
    }
    (kind.generate)(&mut generator);
    let made: Vec<(String, Value)> = generator
        .take_definitions(false)
        .into_iter()
        .filter(|(name, _)| !types.contains_key(name.as_str()))
        .collect();
    for (name, _) in &made {
        let extension = extensions::of(name)
            .iter()
            .find(|(field, _)| *field == extensions::TYPE)
            .map(|(_, extension)| *extension)
            .unwrap_or_default();
        let made = Type { name: name.as_str().into(), extension, fields: OnceLock::new() };
        types.insert(name.as_str().into(), Arc::new(made));
    }
    for (name, schema) in &made {
        if let Some(owner) = types.get(name.as_str()) {
            // Set just above as empty, so this is the first time.
            owner.fields.get_or_init(|| fields(types, name, schema));
        }
    }
}

fn fields(types: &HashMap<Box<str>, Arc<Type>>, name: &str, schema: &Value) -> Box<[Field]> {
    let required = schema.get("required").and_then(Value::as_array);
    let required = |name: &str| {
        required.is_some_and(|names| names.iter().any(|one| one.as_str() == Some(name)))
    };
    let extensions = extensions::of(name);
    let empty = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    let mut fields: Box<[Field]> = properties
        .iter()
        .map(|(name, schema)| Field {
            name: name.as_str().into(),
            node: node(types, schema),
            required: required(name),
            extension: extensions
                .iter()
                .find(|(field, _)| field == name)
                .map(|(_, extension)| *extension)
                .unwrap_or_default(),
        })
        .collect();
    fields.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    fields
}

fn node(types: &HashMap<Box<str>, Arc<Type>>, schema: &Value) -> Node {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let name = reference.rsplit('/').next().unwrap_or_default();
        return well_known(name).unwrap_or_else(|| {
            types.get(name).map_or(Node::Any, |referred| Node::Object(Arc::clone(referred)))
        });
    }
    let text = |key: &str| schema.get(key).and_then(Value::as_str).unwrap_or_default();
    match (text("type"), text("format")) {
        ("boolean", _) => Node::Bool,
        ("integer", "int32") => Node::Int32,
        ("integer", _) => Node::Int64,
        ("number", _) => Node::Number,
        ("string", "byte") => Node::Bytes,
        ("string", "date-time") => Node::Time,
        ("string", _) => Node::String,
        ("array", _) => {
            Node::List(Box::new(schema.get("items").map_or(Node::Any, |items| node(types, items))))
        }
        ("object", _) => schema
            .get("additionalProperties")
            .map_or(Node::Any, |values| Node::Map(Box::new(node(types, values)))),
        _ => Node::Any,
    }
}

/// Types whose JSON is not that of a struct.
fn well_known(name: &str) -> Option<Node> {
    Some(match name.strip_prefix("io.k8s.").unwrap_or(name) {
        "apimachinery.pkg.api.resource.Quantity" => Node::Quantity,
        "apimachinery.pkg.util.intstr.IntOrString" => Node::IntOrString,
        "apimachinery.pkg.apis.meta.v1.Time" => Node::Time,
        "apimachinery.pkg.apis.meta.v1.MicroTime" => Node::MicroTime,
        "apimachinery.pkg.apis.meta.v1.FieldsV1"
        | "apimachinery.pkg.runtime.RawExtension"
        | "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON"
        | "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray"
        | "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool"
        | "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray" => {
            Node::Any
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// The facts about upstream's extensions, where the machine has them.
    fn spec(file: &str) -> Option<Value> {
        let folder = std::env::var_os("FLOTILLA_SPEC_DIR").map_or_else(
            || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../spec"),
            PathBuf::from,
        );
        let bytes = std::fs::read(folder.join(file)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    #[test]
    fn tables_are_sorted() {
        assert!(kinds::KINDS.is_sorted_by_key(|row| row.gvk));
        assert!(extensions::TABLE.is_sorted_by_key(|(name, _)| *name));
    }

    #[test]
    fn every_kind_has_a_shape() {
        for kind in Schemas::builtin().kinds() {
            let made = Schemas::builtin().of(kind.gvk).unwrap();
            assert_eq!(made.name(), kind.type_name());
            assert!(
                made.field("metadata").is_some_and(|field| field.node.object().is_some()),
                "{made:?}"
            );
        }
    }

    #[test]
    fn shapes_are_upstreams() {
        let schemas = Schemas::default();
        let pod = schemas.get("", "v1", "Pod").unwrap();
        let spec = pod.field("spec").unwrap().node.object().unwrap().clone();
        assert_eq!(spec.name(), "io.k8s.api.core.v1.PodSpec");
        let containers = spec.field("containers").unwrap();
        assert!(containers.required);
        assert_eq!(containers.extension.merge_key, Some("name"));
        let container = containers.node.inner().unwrap().object().unwrap();
        let shape = |name: &str| format!("{:?}", container.field(name).map(|field| &field.node));
        assert_eq!(shape("image"), "Some(String)");
        assert_eq!(shape("args"), "Some(List(String))");
        assert_eq!(shape("stdin"), "Some(Bool)");
        assert_eq!(shape("none"), "None");
        let resources = container.field("resources").unwrap().node.object().unwrap().clone();
        assert!(
            matches!(&resources.field("limits").unwrap().node, Node::Map(of) if matches!(**of, Node::Quantity))
        );
        // A second kind shares what the first one made.
        let deployment = schemas.get("apps", "v1", "Deployment").unwrap();
        assert_eq!(deployment.short_name(), "Deployment");
        assert!(Arc::ptr_eq(&schemas.named("io.k8s.api.core.v1.PodSpec").unwrap(), &spec));
        let secret = schemas.get("", "v1", "Secret").unwrap();
        assert!(
            matches!(&secret.field("data").unwrap().node, Node::Map(of) if matches!(**of, Node::Bytes))
        );
        assert!(schemas.get("", "v1", "Nope").is_none());
        let crd = schemas.get("apiextensions.k8s.io", "v1", "CustomResourceDefinition").unwrap();
        assert!(crd.field("spec").is_some());
    }

    fn facts(extension: &Extension) -> Value {
        let mut facts = Map::new();
        if let Some(list_type) = extension.list_type {
            let name = match list_type {
                ListType::Atomic => "atomic",
                ListType::Set => "set",
                ListType::Map => "map",
            };
            facts.insert("list-type".into(), name.into());
        }
        if !extension.map_keys.is_empty() {
            facts.insert("list-map-keys".into(), extension.map_keys.to_vec().into());
        }
        if let Some(key) = extension.merge_key {
            facts.insert("patch-merge-key".into(), key.into());
        }
        let strategies = [
            (extension.merge, "merge"),
            (extension.retain_keys, "retainKeys"),
            (extension.replace, "replace"),
        ];
        let strategy: Vec<_> =
            strategies.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        if !strategy.is_empty() {
            facts.insert("patch-strategy".into(), strategy.join(",").into());
        }
        if let Some(map_type) = extension.map_type {
            let name = if map_type == MapType::Atomic { "atomic" } else { "granular" };
            facts.insert("map-type".into(), name.into());
        }
        Value::Object(facts)
    }

    #[test]
    fn extensions_are_those_captured_from_upstream() {
        let Some(Value::Object(captured)) = spec("merge-keys.json") else {
            println!("SKIPPED: no merge-keys.json (set FLOTILLA_SPEC_DIR)");
            return;
        };
        let schemas = Schemas::builtin();
        for kind in schemas.kinds() {
            schemas.of(kind.gvk).unwrap();
        }
        let mut compared = 0;
        for (name, wanted) in &captured {
            let Some(made) = schemas.named(name) else { continue };
            for (field, wanted) in wanted.as_object().unwrap() {
                let have = match field.as_str() {
                    "(type)" => made.extension(),
                    field => {
                        made.field(field).unwrap_or_else(|| panic!("{name}.{field}")).extension
                    }
                };
                let mut wanted = wanted.clone();
                wanted.as_object_mut().unwrap().remove("unions");
                assert_eq!(facts(&have), wanted, "{name}.{field}");
                compared += 1;
            }
            for field in
                made.fields().iter().filter(|field| field.extension != Extension::default())
            {
                assert!(wanted.get(&*field.name).is_some(), "{name}.{}", field.name);
            }
        }
        assert!(compared > 250, "{compared}");
    }
}
