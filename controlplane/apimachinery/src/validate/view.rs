//! Short accessors over the JSON being validated, and the pushing of errors. The JSON conforms to its schema already: what has
//! the wrong type counts as absent.

use serde_json::{Map, Value};

use super::semantic::same;
use super::text::Wrong;
use crate::field::{FieldError, FieldErrors, Path};

/// A member that is there and not null.
pub(super) fn get<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    value.get(key).filter(|value| !value.is_null())
}

static NULL: Value = Value::Null;

/// A member, or null, for looking into.
pub(super) fn sub<'a>(value: &'a Value, key: &str) -> &'a Value {
    value.get(key).unwrap_or(&NULL)
}

pub(super) fn has(value: &Value, key: &str) -> bool {
    get(value, key).is_some()
}

/// `""` when absent.
pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn int(value: &Value, key: &str) -> Option<i64> {
    value.get(key).and_then(Value::as_i64)
}

pub(super) fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or_default()
}

/// Empty when absent.
pub(super) fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The texts of a list.
pub(super) fn texts<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a str> + use<'a> {
    items(value, key).iter().map(|item| item.as_str().unwrap_or_default())
}

pub(super) fn map<'a>(value: &'a Value, key: &str) -> Option<&'a Map<String, Value>> {
    value.get(key).and_then(Value::as_object)
}

/// The entries of a map; none when absent.
pub(super) fn entries<'a>(
    value: &'a Value,
    key: &str,
) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
    map(value, key).into_iter().flatten()
}

/// True when there is at least one entry or item, or a text that isn't empty.
pub(super) fn filled(value: &Value, key: &str) -> bool {
    match value.get(key) {
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
        Some(Value::String(text)) => !text.is_empty(),
        _ => false,
    }
}

/// A member, or null, for showing.
pub(super) fn shown(value: &Value, key: &str) -> Value {
    value.get(key).cloned().unwrap_or_default()
}

/// An error for each text of what is wrong.
pub(super) fn invalid(errors: &mut FieldErrors, path: &Path<'_>, value: &str, wrong: Wrong) {
    for why in wrong {
        errors.push(FieldError::invalid(path, value, why));
    }
}

/// Like [`invalid`], for numbers.
pub(super) fn invalid_number(errors: &mut FieldErrors, path: &Path<'_>, value: i64, wrong: Wrong) {
    for why in wrong {
        errors.push(FieldError::invalid(path, value, why));
    }
}

/// `must be greater than or equal to 0`
pub(super) const NEGATIVE: &str = "must be greater than or equal to 0";
/// `field is immutable`
pub(super) const IMMUTABLE: &str = "field is immutable";

/// Members that must not be negative, absent ones are fine.
pub(super) fn not_negative(
    errors: &mut FieldErrors,
    value: &Value,
    keys: &[&str],
    path: &Path<'_>,
) {
    for key in keys {
        if let Some(number) = int(value, key).filter(|number| *number < 0) {
            errors.push(FieldError::invalid(&path.child(key), number, NEGATIVE));
        }
    }
}

/// A member that must be one of `known`; `""` counts as missing.
pub(super) fn one_of(
    errors: &mut FieldErrors,
    value: &Value,
    key: &str,
    known: &[&str],
    path: &Path<'_>,
) {
    match text(value, key) {
        "" => errors.push(FieldError::required(&path.child(key), "")),
        text if known.contains(&text) => {}
        text => errors.push(FieldError::not_supported(&path.child(key), text, known)),
    }
}

/// Like [`one_of`] for a member that may be absent.
pub(super) fn one_of_if_there(
    errors: &mut FieldErrors,
    value: &Value,
    key: &str,
    known: &[&str],
    path: &Path<'_>,
) {
    if has(value, key) {
        one_of(errors, value, key, known, path);
    }
}

/// A member that must keep its value.
pub(super) fn immutable(
    errors: &mut FieldErrors,
    (new, old): (&Value, &Value),
    key: &str,
    path: &Path<'_>,
) {
    if !same(get(new, key), get(old, key)) {
        errors.push(FieldError::invalid(&path.child(key), shown(new, key), IMMUTABLE));
    }
}
