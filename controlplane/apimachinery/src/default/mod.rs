//! What an object gets that its author left out: upstream's defaulting functions, kind by kind, and the parts that Go always
//! writes out. Idempotent. Must not invent what depends on other objects or the cluster: that is admission and the strategies.

mod core;
mod extension;
mod pod;
mod workload;

use serde_json::{Map, Value};

use crate::gvk::GroupVersionKind;
use crate::object::{Object, map_mut};
use crate::quantity::Quantity;

/// Fills in defaults; kinds without any are left alone.
pub fn apply_defaults(gvk: GroupVersionKind<'_>, object: &mut Value) {
    let object = map_mut(object);
    match gvk.group {
        "" => core::apply(gvk.kind, object),
        "apps" | "batch" => workload::apply(gvk.kind, object),
        _ => extension::apply(gvk, object),
    }
}

/// Sets a field that is absent or null: a pointer in Go.
fn set(map: &mut Object, key: &str, value: impl Into<Value>) {
    let slot = map.entry(key).or_insert(Value::Null);
    if slot.is_null() {
        *slot = value.into();
    }
}

/// Sets a field that is absent, null, `""` or 0: a plain value in Go.
fn set_zero(map: &mut Object, key: &str, value: impl Into<Value>) {
    let slot = map.entry(key).or_insert(Value::Null);
    let zero = match slot {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        _ => false,
    };
    if zero {
        *slot = value.into();
    }
}

/// The object at `key`, made when absent.
fn made<'a>(map: &'a mut Object, key: &str) -> &'a mut Object {
    map_mut(map.entry(key).or_insert(Value::Null))
}

/// The object at `key`, if it is there.
fn child<'a>(map: &'a mut Object, key: &str) -> Option<&'a mut Object> {
    map.get_mut(key).and_then(Value::as_object_mut)
}

/// The objects in the list at `key`.
fn each<'a>(map: &'a mut Object, key: &str) -> impl Iterator<Item = &'a mut Object> + use<'a> {
    map.get_mut(key)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
}

fn is_empty(map: &Object, key: &str) -> bool {
    match map.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    }
}

fn text<'a>(map: &'a Object, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Quantities of a resource list have at most three decimal places.
fn round_resources(map: &mut Object, key: &str) {
    let Some(list) = child(map, key) else { return };
    for value in list.values_mut() {
        if let Some(Ok(quantity)) = value.as_str().map(str::parse::<Quantity>) {
            *value = quantity.round_up_milli().to_string().into();
        }
    }
}

/// Copies the entries of `from` that `to` lacks.
fn fill(map: &mut Object, to: &str, from: &str) {
    let Some(Value::Object(source)) = map.get(from).cloned() else { return };
    let target = made(map, to);
    for (key, value) in source {
        target.entry(key).or_insert(value);
    }
}

/// An empty JSON object.
fn empty() -> Value {
    Value::Object(Map::new())
}

#[cfg(test)]
mod tests;
