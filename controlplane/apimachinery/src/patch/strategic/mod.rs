//! Strategic merge patch (`application/strategic-merge-patch+json`): merges lists by their keys, as the schema says, with upstream's
//! directives (`k8s.io/apimachinery/pkg/util/strategicpatch`). The result still has to be conformed to the schema.

mod diff;
mod list;

use std::collections::HashSet;

use serde_json::{Map, Value};

pub use diff::diff;

use super::PatchError;
use crate::schema::{Extension, Node, Type};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

/// Applies `patch` to `target`, an object of the type `schema`.
pub fn apply(target: &mut Value, patch: &Value, schema: &Type) -> Result<(), PatchError> {
    let (Value::Object(original), Value::Object(patch)) = (&mut *target, patch) else {
        return Err(PatchError::Malformed("Invalid JSON document".to_owned()));
    };
    merge_map(original, patch.clone(), Shape::Struct(schema))
}

/// Where field metadata comes from.
#[derive(Clone, Copy)]
pub(super) enum Shape<'a> {
    /// A struct: field by field.
    Struct(&'a Type),
    /// A map: one node for every key.
    Values(&'a Node),
    /// No schema.
    Unknown,
}

impl<'a> Shape<'a> {
    pub(super) fn of(node: Option<&'a Node>) -> Self {
        match node {
            Some(Node::Object(inner)) => Self::Struct(inner),
            Some(Node::Map(values)) => Self::Values(values),
            _ => Self::Unknown,
        }
    }

    pub(super) fn field(self, key: &str) -> (Option<&'a Node>, Extension) {
        match self {
            Self::Struct(schema) => match schema.field(key) {
                Some(field) => (Some(&field.node), field.extension),
                None => (None, Extension::default()),
            },
            Self::Values(node) => (Some(node), Extension::default()),
            Self::Unknown => (None, Extension::default()),
        }
    }
}

fn merge_map(
    original: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
    shape: Shape<'_>,
) -> Result<(), PatchError> {
    if let Some(directive) = patch.remove(PATCH) {
        match directive.as_str() {
            Some("replace") => {
                *original = without_directives(patch);
                return Ok(());
            }
            Some("delete") => {
                original.clear();
                return Ok(());
            }
            // A plain merge, said aloud.
            Some("merge") => {}
            _ => return Err(bad_type(&directive)),
        }
    }
    retain_keys(original, &mut patch)?;
    order_lists(original, &mut patch, shape)?;
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_PRIMITIVES) {
            if let (Some(Value::Array(have)), Value::Array(gone)) =
                (original.get_mut(field), &value)
            {
                without(have, gone);
            } else if !value.is_array() {
                return Err(malformed("invalid patch format of primitive list"));
            }
            continue;
        }
        merge_field(original, key, value, shape)?;
    }
    Ok(())
}

fn merge_field(
    original: &mut Map<String, Value>,
    key: String,
    value: Value,
    shape: Shape<'_>,
) -> Result<(), PatchError> {
    if value.is_null() {
        original.remove(&key);
        return Ok(());
    }
    let (node, extension) = shape.field(&key);
    match (original.get_mut(&key), value) {
        (Some(Value::Object(have)), Value::Object(patch)) if !extension.replace => {
            merge_map(have, patch, Shape::of(node))
        }
        (Some(Value::Array(have)), Value::Array(patch)) if extension.merge => {
            let items = node.and_then(Node::inner);
            *have = list::merge(std::mem::take(have), patch, items, extension)?;
            Ok(())
        }
        (_, value) => {
            if let Some(value) = stripped(value) {
                original.insert(key, value);
            }
            Ok(())
        }
    }
}

/// `$retainKeys`: fields of the original that are not listed go away.
fn retain_keys(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
) -> Result<(), PatchError> {
    let Some(listed) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(listed) = listed else {
        return Err(malformed("invalid patch format of retainKeys"));
    };
    let listed: HashSet<&str> = listed.iter().filter_map(Value::as_str).collect();
    let retained = |key: &str| listed.contains(key);
    for (key, value) in patch.iter() {
        let directive = key.starts_with(DELETE_PRIMITIVES) || key.starts_with(SET_ORDER);
        if !value.is_null() && !directive && !retained(key) {
            return Err(malformed("invalid patch format of retainKeys"));
        }
    }
    original.retain(|key, _| retained(key));
    Ok(())
}

/// `$setElementOrder/<list>`: the list is merged here and brought into that order, and not merged again.
fn order_lists(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    shape: Shape<'_>,
) -> Result<(), PatchError> {
    let directives: Vec<String> =
        patch.keys().filter(|key| key.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(malformed("invalid patch format of setElementOrder list"));
        };
        let key = &directive[SET_ORDER.len()..];
        let (node, extension) = shape.field(key);
        let changes = match patch.remove(key) {
            None => None,
            Some(Value::Array(changes)) => Some(changes),
            // A list that goes away, or becomes something else, has no order.
            Some(other) => {
                patch.insert(key.to_owned(), other);
                continue;
            }
        };
        let deleted = match patch.get(&format!("{DELETE_PRIMITIVES}{key}")) {
            Some(Value::Array(gone)) => gone.as_slice(),
            _ => &[],
        };
        list::check_order(changes.as_deref().unwrap_or_default(), &order, extension)?;
        let have = match original.get_mut(key) {
            Some(Value::Array(have)) => Some(std::mem::take(have)),
            _ => None,
        };
        let merged = match (have, changes) {
            (None, None) => continue,
            (None, Some(changes)) => (Vec::new(), stripped_items(changes)),
            (Some(mut have), None) => {
                without(&mut have, deleted);
                (have.clone(), have)
            }
            (Some(mut have), Some(changes)) => {
                without(&mut have, deleted);
                let items = node.and_then(Node::inner);
                (have.clone(), list::merge(have, changes, items, extension)?)
            }
        };
        let (before, merged) = merged;
        let ordered = list::in_order(merged, &order, &before, extension);
        original.insert(key.to_owned(), Value::Array(ordered));
    }
    Ok(())
}

fn without(have: &mut Vec<Value>, gone: &[Value]) {
    let gone: HashSet<&Value> = gone.iter().collect();
    have.retain(|item| !gone.contains(item));
}

fn malformed(text: &str) -> PatchError {
    PatchError::Malformed(text.to_owned())
}

fn bad_type(directive: &Value) -> PatchError {
    PatchError::DoesNotApply(format!("unknown patch type: {directive}"))
}

fn is_directive(key: &str) -> bool {
    key == PATCH
        || key == RETAIN_KEYS
        || key.starts_with(SET_ORDER)
        || key.starts_with(DELETE_PRIMITIVES)
}

/// A value that is taken over as it is: without directives and nulls; `None` when it only says that something is deleted.
fn stripped(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) => {
            if map.get(PATCH).and_then(Value::as_str) == Some("delete") {
                return None;
            }
            Some(Value::Object(without_directives(map)))
        }
        Value::Array(items) => Some(Value::Array(stripped_items(items))),
        other => Some(other),
    }
}

fn stripped_items(items: Vec<Value>) -> Vec<Value> {
    let only_directive = |item: &Value| {
        item.as_object().is_some_and(|map| map.len() == 1 && map.contains_key(PATCH))
    };
    items.into_iter().filter(|item| !only_directive(item)).filter_map(stripped).collect()
}

fn without_directives(map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter()
        .filter(|(key, value)| !is_directive(key) && !value.is_null())
        .filter_map(|(key, value)| Some((key, stripped(value)?)))
        .collect()
}

#[cfg(test)]
mod tests;
