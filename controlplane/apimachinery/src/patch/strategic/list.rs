//! Merging lists: by merge key, or as sets of scalars; and the order of what comes out.

use serde_json::{Map, Value};

use super::{PATCH, Shape, bad_type, merge_map, stripped, stripped_items};
use crate::patch::PatchError;
use crate::schema::{Extension, Node};

/// Merges `patch` into `have`, items of the merge strategy.
pub(super) fn merge(
    have: Vec<Value>,
    patch: Vec<Value>,
    items: Option<&Node>,
    extension: Extension,
) -> Result<Vec<Value>, PatchError> {
    let before = have.clone();
    let Some(key) = extension.merge_key else {
        let mut merged = have;
        for item in &patch {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return Ok(in_order(merged, &patch, &before, extension));
    };
    let (mut have, patch) = match special(have, patch, key)? {
        Special::Replaced(items) => return Ok(items),
        Special::Merge(have, patch) => (have, patch),
    };
    let before = have.clone();
    let order: Vec<Value> = patch.iter().cloned().map(Value::Object).collect();
    for change in patch {
        let value = change.get(key).ok_or_else(|| no_merge_key(&change, key))?;
        let found = have.iter_mut().find(|item| item.get(key) == Some(value));
        match found {
            Some(Value::Object(item)) => merge_map(item, change, Shape::of(items))?,
            _ => have.extend(stripped(Value::Object(change))),
        }
    }
    Ok(in_order(have, &order, &before, extension))
}

enum Special {
    Replaced(Vec<Value>),
    Merge(Vec<Value>, Vec<Map<String, Value>>),
}

/// Acts on items with `$patch`.
fn special(mut have: Vec<Value>, patch: Vec<Value>, key: &str) -> Result<Special, PatchError> {
    let mut plain = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        let Value::Object(mut item) = item else {
            return Err(PatchError::DoesNotApply(
                "lists of maps can only be patched with maps".to_owned(),
            ));
        };
        let Some(directive) = item.remove(PATCH) else {
            plain.push(item);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let value = item.get(key).ok_or_else(|| no_merge_key(&item, key))?;
                have.retain(|one| one.get(key) != Some(value));
            }
            Some("replace") => {
                replace = true;
                // An item that only says "replace" adds nothing itself.
                if !item.is_empty() {
                    plain.push(item);
                }
            }
            Some("merge") => plain.push(item),
            _ => return Err(bad_type(&directive)),
        }
    }
    if replace {
        let items = plain.into_iter().map(Value::Object).collect();
        return Ok(Special::Replaced(stripped_items(items)));
    }
    Ok(Special::Merge(have, plain))
}

fn no_merge_key(item: &Map<String, Value>, key: &str) -> PatchError {
    let item = Value::Object(item.clone());
    PatchError::DoesNotApply(format!("map: {item} does not contain declared merge key: {key}"))
}

/// What tells an item apart.
fn identity(item: &Value, extension: Extension) -> Option<&Value> {
    match extension.merge_key {
        Some(key) => item.get(key),
        None => Some(item),
    }
}

fn position(list: &[Value], item: &Value, extension: Extension) -> Option<usize> {
    let wanted = identity(item, extension)?;
    list.iter().position(|one| identity(one, extension) == Some(wanted))
}

/// Items that `order` names come in that order; the others keep their order in `before` and are put in where they stood.
pub(super) fn in_order(
    merged: Vec<Value>,
    order: &[Value],
    before: &[Value],
    extension: Extension,
) -> Vec<Value> {
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| position(order, item, extension).is_some());
    named.sort_by_key(|item| position(order, item, extension));
    others.sort_by_key(|item| position(before, item, extension).unwrap_or(usize::MAX));
    let mut result = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for item in named {
        let at = position(before, &item, extension);
        let stands_before = |other: &Value| match (position(before, other, extension), at) {
            (Some(other), Some(at)) => other < at,
            _ => false,
        };
        while let Some(other) = others.next_if(|other| stands_before(other)) {
            result.push(other);
        }
        result.push(item);
    }
    result.extend(others);
    result
}

/// The items of a patch list must all be named by `$setElementOrder`, in the same order.
pub(super) fn check_order(
    patch: &[Value],
    order: &[Value],
    extension: Extension,
) -> Result<(), PatchError> {
    let mut last = None;
    for item in patch.iter().filter(|item| item.get(PATCH).is_none()) {
        let at = position(order, item, extension);
        if at.is_none() || at < last {
            let patch = Value::from(patch.to_vec());
            let order = Value::from(order.to_vec());
            return Err(PatchError::Malformed(format!(
                "The order in patch list:\n{patch}\n doesn't match $setElementOrder list:\n{order}\n"
            )));
        }
        last = at;
    }
    Ok(())
}
