//! `/openapi/v2` in protobuf (`openapi.v2.Document` of gnostic): what kubectl asks for when `/openapi/v3` does not know a kind.
//!
//! Holds the definitions, not the paths: clients that read paths take version 3. Must not decide what the definitions say.

use super::documents;
use crate::meta::GIT_VERSION;
use crate::resource::ResourceTable;
use apimachinery::schema::{Dialect, definitions};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Bits of a tag below the field's number.
const TAG_SHIFT: u32 = 3;
/// Wire type of strings and messages.
const LENGTH_DELIMITED: u64 = 2;
const CONTINUATION: u8 = 0x80;

mod field {
    pub(super) mod document {
        pub(in super::super) const SWAGGER: u64 = 1;
        pub(in super::super) const INFO: u64 = 2;
        pub(in super::super) const DEFINITIONS: u64 = 9;
    }
    pub(super) mod info {
        pub(in super::super) const TITLE: u64 = 1;
        pub(in super::super) const VERSION: u64 = 2;
    }
    pub(super) mod schema {
        pub(in super::super) const REFERENCE: u64 = 1;
        pub(in super::super) const FORMAT: u64 = 2;
        pub(in super::super) const DESCRIPTION: u64 = 4;
        pub(in super::super) const DEFAULT: u64 = 5;
        pub(in super::super) const REQUIRED: u64 = 19;
        pub(in super::super) const ENUM: u64 = 20;
        pub(in super::super) const ADDITIONAL_PROPERTIES: u64 = 21;
        pub(in super::super) const TYPE: u64 = 22;
        pub(in super::super) const ITEMS: u64 = 23;
        pub(in super::super) const ALL_OF: u64 = 24;
        pub(in super::super) const PROPERTIES: u64 = 25;
        pub(in super::super) const EXTENSION: u64 = 31;
    }
    /// The only field of a wrapper, or the name in a pair.
    pub(super) const FIRST: u64 = 1;
    /// The value in a pair; the text of an `Any`.
    pub(super) const SECOND: u64 = 2;
}

/// The document of everything; one group version after the other, so that their trees are never in memory together.
pub(super) fn v2(table: &ResourceTable) -> Vec<u8> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for (group, version) in documents::group_versions(table) {
        for (name, schema) in definitions(group, version, Dialect::V2) {
            if !seen.contains(&name) {
                put(&mut all, field::FIRST, &pair(&name, &encode(&schema)));
                seen.insert(name);
            }
        }
    }
    let mut info = Vec::new();
    put(&mut info, field::info::TITLE, b"Kubernetes");
    put(&mut info, field::info::VERSION, GIT_VERSION.as_bytes());
    let mut document = Vec::with_capacity(all.len().saturating_add(info.len()));
    put(&mut document, field::document::SWAGGER, b"2.0");
    put(&mut document, field::document::INFO, &info);
    put(&mut document, field::document::DEFINITIONS, &all);
    document
}

fn encode(schema: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in schema.as_object().into_iter().flatten() {
        encode_field(&mut out, key, value);
    }
    out
}

fn encode_field(out: &mut Vec<u8>, key: &str, value: &Value) {
    use field::schema;
    let texts = || value.as_array().into_iter().flatten().filter_map(Value::as_str);
    match key {
        "$ref" => put_text(out, schema::REFERENCE, value),
        "format" => put_text(out, schema::FORMAT, value),
        "description" => put_text(out, schema::DESCRIPTION, value),
        "default" => put(out, schema::DEFAULT, &any(value)),
        "required" => texts().for_each(|text| put(out, schema::REQUIRED, text.as_bytes())),
        "enum" => {
            for one in value.as_array().into_iter().flatten() {
                put(out, schema::ENUM, &any(one));
            }
        }
        "type" => {
            let mut types = Vec::new();
            put_text(&mut types, field::FIRST, value);
            texts().for_each(|text| put(&mut types, field::FIRST, text.as_bytes()));
            put(out, schema::TYPE, &types);
        }
        "items" => put(out, schema::ITEMS, &wrapped(&encode(value))),
        "additionalProperties" if value.is_object() => {
            put(out, schema::ADDITIONAL_PROPERTIES, &wrapped(&encode(value)));
        }
        "allOf" => {
            for one in value.as_array().into_iter().flatten() {
                put(out, schema::ALL_OF, &encode(one));
            }
        }
        "properties" => put(out, schema::PROPERTIES, &properties(value.as_object())),
        _ if key.starts_with("x-") => put(out, schema::EXTENSION, &pair(key, &any(value))),
        // Bounds and the like: version 3 tells them, nothing reads them here.
        _ => {}
    }
}

fn properties(all: Option<&Map<String, Value>>) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, schema) in all.into_iter().flatten() {
        put(&mut out, field::FIRST, &pair(name, &encode(schema)));
    }
    out
}

fn pair(name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, field::FIRST, name.as_bytes());
    put(&mut out, field::SECOND, value);
    out
}

fn wrapped(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, field::FIRST, value);
    out
}

/// A value as YAML, which JSON is.
fn any(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, field::SECOND, value.to_string().as_bytes());
    out
}

fn put_text(out: &mut Vec<u8>, number: u64, value: &Value) {
    if let Some(text) = value.as_str() {
        put(out, number, text.as_bytes());
    }
}

fn put(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    varint(out, (number << TAG_SHIFT) | LENGTH_DELIMITED);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            return out.push(low & !CONTINUATION);
        }
        out.push(low | CONTINUATION);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_schema_is_encoded_as_gnostic_reads_it() {
        let schema = json!({
            "type": "array", "items": {"$ref": "#/definitions/A"}, "x-a": ["b"], "required": ["c"],
        });
        let mut wanted = [&[0xba, 1, 19, 0x0a, 17, 0x0a, 15][..], b"#/definitions/A"].concat();
        wanted.extend([&[0x9a, 1, 1][..], b"c"].concat());
        wanted.extend([&[0xb2, 1, 7, 0x0a, 5][..], b"array"].concat());
        wanted.extend(
            [&[0xfa, 1, 14, 0x0a, 3][..], b"x-a", &[0x12, 7, 0x12, 5], br#"["b"]"#].concat(),
        );
        assert_eq!(encode(&schema), wanted);
    }

    #[test]
    fn lengths_of_more_than_seven_bits() {
        let mut out = Vec::new();
        put(&mut out, 1, &[0; 300]);
        assert_eq!((&out[..3], out.len()), (&[0x0a, 0xac, 0x02][..], 303));
    }

    #[test]
    fn every_definition_is_there_once_and_has_one_type() {
        let table = ResourceTable::builtin();
        let text = String::from_utf8_lossy(&v2(&table)).into_owned();
        assert!(text.contains("io.k8s.api.apps.v1.Deployment"));
        for (group, version) in documents::group_versions(&table) {
            for (name, schema) in definitions(group, version, Dialect::V2) {
                assert!(!schema.to_string().contains("\"type\":["), "{name}");
            }
        }
    }
}
