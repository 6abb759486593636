//! Accessors over the JSON of an API object, and the making of names, UIDs and timestamps.
//! Time and randomness come from the caller. Must not validate: an accessor of a malformed field answers as if it were absent.

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::gvk::GroupVersionKind;

/// A JSON object.
pub type Object = Map<String, Value>;

/// The string at `pointer`-like path of names, `""` when absent.
pub fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    at(value, path).and_then(Value::as_str).unwrap_or_default()
}

/// The value at a path of names; `None` when absent or null.
pub fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, name| value.get(name)).filter(|value| !value.is_null())
}

/// The value at a path of names, made (with objects on the way) when absent; what is not an object on the way is replaced.
pub fn at_mut<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Value {
    path.iter().fold(value, |value, name| entry(value, name))
}

/// The object in `value`, made when it is something else.
pub fn map_mut(value: &mut Value) -> &mut Object {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object just above"),
    }
}

fn entry<'a>(value: &'a mut Value, name: &str) -> &'a mut Value {
    map_mut(value).entry(name).or_insert(Value::Null)
}

/// `apiVersion`
pub fn api_version(object: &Value) -> &str {
    text(object, &["apiVersion"])
}

/// `kind`
pub fn kind(object: &Value) -> &str {
    text(object, &["kind"])
}

/// `apiVersion` and `kind` as one.
pub fn gvk(object: &Value) -> GroupVersionKind<'_> {
    GroupVersionKind::from_api_version(api_version(object), kind(object))
}

/// `metadata`
pub fn metadata(object: &Value) -> Option<&Object> {
    object.get("metadata").and_then(Value::as_object)
}

/// `metadata`, made when absent.
pub fn metadata_mut(object: &mut Value) -> &mut Object {
    map_mut(entry(object, "metadata"))
}

/// `metadata.name`
pub fn name(object: &Value) -> &str {
    text(object, &["metadata", "name"])
}

/// `metadata.generateName`
pub fn generate_name(object: &Value) -> &str {
    text(object, &["metadata", "generateName"])
}

/// `metadata.namespace`
pub fn namespace(object: &Value) -> &str {
    text(object, &["metadata", "namespace"])
}

/// `metadata.uid`
pub fn uid(object: &Value) -> &str {
    text(object, &["metadata", "uid"])
}

/// `metadata.resourceVersion`
pub fn resource_version(object: &Value) -> &str {
    text(object, &["metadata", "resourceVersion"])
}

/// `metadata.generation`, 0 when absent.
pub fn generation(object: &Value) -> i64 {
    at(object, &["metadata", "generation"]).and_then(Value::as_i64).unwrap_or_default()
}

/// `metadata.creationTimestamp`
pub fn creation_timestamp(object: &Value) -> Option<Timestamp> {
    parse_time(text(object, &["metadata", "creationTimestamp"]))
}

/// `metadata.deletionTimestamp`
pub fn deletion_timestamp(object: &Value) -> Option<Timestamp> {
    parse_time(text(object, &["metadata", "deletionTimestamp"]))
}

/// True when the object is being deleted.
pub fn is_terminating(object: &Value) -> bool {
    at(object, &["metadata", "deletionTimestamp"]).is_some()
}

/// `metadata.deletionGracePeriodSeconds`
pub fn deletion_grace_period_seconds(object: &Value) -> Option<i64> {
    at(object, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64)
}

/// `metadata.labels`
pub fn labels(object: &Value) -> Option<&Object> {
    at(object, &["metadata", "labels"]).and_then(Value::as_object)
}

/// One label.
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    labels(object)?.get(key)?.as_str()
}

/// `metadata.annotations`
pub fn annotations(object: &Value) -> Option<&Object> {
    at(object, &["metadata", "annotations"]).and_then(Value::as_object)
}

/// One annotation.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    annotations(object)?.get(key)?.as_str()
}

/// Sets an annotation.
pub fn set_annotation(object: &mut Value, key: &str, value: &str) {
    map_mut(metadata_mut(object).entry("annotations").or_insert(Value::Null))
        .insert(key.to_owned(), value.into());
}

/// `metadata.finalizers`
pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    list(object, &["metadata", "finalizers"]).filter_map(Value::as_str)
}

/// The items of a list at a path; none when it is absent.
pub fn list<'a>(object: &'a Value, path: &[&str]) -> impl Iterator<Item = &'a Value> + use<'a> {
    at(object, path).and_then(Value::as_array).into_iter().flatten()
}

/// One of `metadata.ownerReferences`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerReference<'a> {
    /// The owner's `apiVersion`.
    pub api_version: &'a str,
    /// The owner's kind.
    pub kind: &'a str,
    /// The owner's name.
    pub name: &'a str,
    /// The owner's UID.
    pub uid: &'a str,
    /// True for the one managing controller.
    pub controller: bool,
    /// True when foreground deletion of the owner waits for this object.
    pub block_owner_deletion: bool,
}

/// `metadata.ownerReferences`
pub fn owner_references(object: &Value) -> impl Iterator<Item = OwnerReference<'_>> {
    list(object, &["metadata", "ownerReferences"]).map(|owner| OwnerReference {
        api_version: text(owner, &["apiVersion"]),
        kind: text(owner, &["kind"]),
        name: text(owner, &["name"]),
        uid: text(owner, &["uid"]),
        controller: owner.get("controller").and_then(Value::as_bool).unwrap_or_default(),
        block_owner_deletion: owner
            .get("blockOwnerDeletion")
            .and_then(Value::as_bool)
            .unwrap_or_default(),
    })
}

/// The owner that is the managing controller.
pub fn controller_of(object: &Value) -> Option<OwnerReference<'_>> {
    owner_references(object).find(|owner| owner.controller)
}

/// `metadata.managedFields` is dropped.
pub fn strip_managed_fields(object: &mut Value) {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.remove("managedFields");
    }
}

/// Longest name that `generateName` yields, as upstream.
pub const GENERATED_NAME_LEN_MAX: usize = 63;
const SUFFIX_LEN: usize = 5;
/// No vowels and nothing that looks like one: no words by accident.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// `base` (cut when too long) and five random characters.
pub fn generated_name(base: &str, random: [u8; SUFFIX_LEN]) -> String {
    let mut end = base.len().min(GENERATED_NAME_LEN_MAX - SUFFIX_LEN);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = base[..end].to_owned();
    name.extend(random.map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()])));
    name
}

/// A version 4 UUID from random bytes.
pub fn uid_from(random: [u8; 16]) -> String {
    let mut number = u128::from_be_bytes(random);
    number &= !(0xf000 << 64) & !(0xc000 << 48);
    number |= (0x4000 << 64) | (0x8000 << 48);
    let hex = format!("{number:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// `metav1.Time`: RFC 3339 in UTC, whole seconds.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `metav1.MicroTime`: RFC 3339 in UTC with six digits.
pub fn micro_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Reads an RFC 3339 time.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_cut_and_suffixed() {
        assert_eq!(generated_name("web-", [0, 1, 2, 26, 27]), "web-bcd9b");
        let long = generated_name(&"x".repeat(100), [0; 5]);
        assert_eq!(long.len(), GENERATED_NAME_LEN_MAX);
        assert_eq!(generated_name(&"é".repeat(40), [0; 5]).len(), 63);
    }

    #[test]
    fn uids_are_version_4() {
        assert_eq!(uid_from([0; 16]), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uid_from([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    #[test]
    fn times_have_upstreams_digits() {
        let at: Timestamp = "2026-11-20T15:54:17.123456789Z".parse().unwrap();
        assert_eq!(time(at), "2026-11-20T15:54:17Z");
        assert_eq!(micro_time(at), "2026-11-20T15:54:17.123456Z");
        assert_eq!(
            parse_time("2026-11-20T15:54:17+01:00").map(time).unwrap(),
            "2026-11-20T14:54:17Z"
        );
        assert_eq!(parse_time("yesterday"), None);
    }

    #[test]
    fn accessors_take_malformed_fields_as_absent() {
        for object in [json!(null), json!({"metadata": 1}), json!({"metadata": {"labels": []}})] {
            assert_eq!(name(&object), "");
            assert_eq!(labels(&object), None);
            assert_eq!(owner_references(&object).count(), 0);
            assert_eq!(finalizers(&object).count(), 0);
        }
        let mut object = json!({"metadata": null});
        set_annotation(&mut object, "a", "b");
        assert_eq!(annotation(&object, "a"), Some("b"));
        *at_mut(&mut object, &["spec", "replicas"]) = 3.into();
        assert_eq!(object["spec"], json!({"replicas": 3}));
    }

    #[test]
    fn the_controller_is_the_owner_marked_so() {
        let object = json!({"metadata": {"ownerReferences": [
            {"apiVersion": "v1", "kind": "A", "name": "a", "uid": "1"},
            {"apiVersion": "apps/v1", "kind": "B", "name": "b", "uid": "2", "controller": true}]}});
        assert_eq!(controller_of(&object).map(|owner| owner.uid), Some("2"));
    }
}
