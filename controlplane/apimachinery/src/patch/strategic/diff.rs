//! The strategic merge patch that makes one object of another.

use serde_json::{Map, Value, json};

use super::{DELETE_PRIMITIVES, PATCH, RETAIN_KEYS, SET_ORDER, Shape};
use crate::schema::{Extension, Node, Type};

/// The patch from `from` to `to`, both without nulls; `{}` when they are equal.
pub fn diff(from: &Value, to: &Value, schema: &Type) -> Value {
    match (from, to) {
        (Value::Object(from), Value::Object(to)) => {
            Value::Object(diff_map(from, to, Shape::Struct(schema)))
        }
        (_, to) => to.clone(),
    }
}

fn diff_map(
    from: &Map<String, Value>,
    to: &Map<String, Value>,
    shape: Shape<'_>,
) -> Map<String, Value> {
    let mut patch = Map::new();
    for key in from.keys().filter(|key| !to.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in to {
        let (node, extension) = shape.field(key);
        match (from.get(key), value) {
            (Some(before), value) if before == value => {}
            (Some(Value::Object(before)), Value::Object(after)) if !extension.replace => {
                let mut changes = diff_map(before, after, Shape::of(node));
                if extension.retain_keys {
                    let keys: Value = after.keys().map(|key| json!(key)).collect();
                    changes.insert(RETAIN_KEYS.to_owned(), keys);
                }
                patch.insert(key.clone(), Value::Object(changes));
            }
            (Some(Value::Array(before)), Value::Array(after)) if extension.merge => {
                let items = node.and_then(Node::inner);
                diff_list(&mut patch, key, (before, after), items, extension);
            }
            (_, value) => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    patch
}

fn diff_list(
    patch: &mut Map<String, Value>,
    key: &str,
    (before, after): (&[Value], &[Value]),
    items: Option<&Node>,
    extension: Extension,
) {
    let Some(merge_key) = extension.merge_key else {
        let gone: Vec<_> = before.iter().filter(|item| !after.contains(item)).cloned().collect();
        let new: Vec<_> = after.iter().filter(|item| !before.contains(item)).cloned().collect();
        if !gone.is_empty() {
            patch.insert(format!("{DELETE_PRIMITIVES}{key}"), gone.into());
        }
        if !new.is_empty() {
            patch.insert(key.to_owned(), new.into());
        }
        patch.insert(format!("{SET_ORDER}{key}"), after.to_vec().into());
        return;
    };
    let mut changes = Vec::new();
    for item in after {
        let name = item.get(merge_key);
        match (before.iter().find(|one| one.get(merge_key) == name), item) {
            (Some(old), item) if old == item => {}
            (Some(Value::Object(old)), Value::Object(new)) => {
                let mut change = diff_map(old, new, Shape::of(items));
                change.extend(name.map(|name| (merge_key.to_owned(), name.clone())));
                changes.push(Value::Object(change));
            }
            (_, item) => changes.push(item.clone()),
        }
    }
    for item in before {
        let name = item.get(merge_key);
        if !after.iter().any(|one| one.get(merge_key) == name) {
            changes.push(json!({PATCH: "delete", merge_key: name}));
        }
    }
    let order: Value = after
        .iter()
        .filter_map(|item| item.get(merge_key))
        .map(|name| json!({merge_key: name}))
        .collect();
    if !changes.is_empty() {
        patch.insert(key.to_owned(), changes.into());
    }
    patch.insert(format!("{SET_ORDER}{key}"), order);
}
