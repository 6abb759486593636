//! Merging lists: by merge key, or as sets of scalars; and the order of what comes out.

use std::collections::{HashMap, HashSet};

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
        let mut seen: HashSet<&Value> = before.iter().collect();
        let mut merged = have;
        merged.extend(patch.iter().filter(|item| seen.insert(*item)).cloned());
        return Ok(in_order(merged, &patch, &before, extension));
    };
    let (mut have, patch) = match special(have, patch, key)? {
        Special::Replaced(items) => return Ok(items),
        Special::Merge(have, patch) => (have, patch),
    };
    let before = have.clone();
    let order: Vec<Value> = patch.iter().cloned().map(Value::Object).collect();
    let mut places = HashMap::new();
    for (place, item) in have.iter().enumerate() {
        if let Some(value) = item.get(key) {
            places.entry(value.clone()).or_insert(place);
        }
    }
    for change in patch {
        let value = change.get(key).ok_or_else(|| no_merge_key(&change, key))?.clone();
        match places.get(&value).and_then(|place| have.get_mut(*place)) {
            Some(Value::Object(item)) => merge_map(item, change, Shape::of(items))?,
            _ => {
                if !value.is_null() {
                    places.insert(value, have.len());
                }
                have.extend(stripped(Value::Object(change)));
            }
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
    let mut deleted = HashSet::new();
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
                deleted.insert(value.clone());
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
    have.retain(|one| one.get(key).is_none_or(|value| !deleted.contains(value)));
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

/// Where items stand in a list, by their identity.
struct Places<'a> {
    at: HashMap<&'a Value, usize>,
    extension: Extension,
}

impl<'a> Places<'a> {
    fn of(list: &'a [Value], extension: Extension) -> Self {
        let mut at = HashMap::with_capacity(list.len());
        for (place, item) in list.iter().enumerate() {
            if let Some(identity) = identity(item, extension) {
                at.entry(identity).or_insert(place);
            }
        }
        Self { at, extension }
    }

    fn get(&self, item: &Value) -> Option<usize> {
        self.at.get(identity(item, self.extension)?).copied()
    }
}

/// Items that `order` names come in that order; the others keep their order in `before` and are put in where they stood.
pub(super) fn in_order(
    merged: Vec<Value>,
    order: &[Value],
    before: &[Value],
    extension: Extension,
) -> Vec<Value> {
    let (order, before) = (Places::of(order, extension), Places::of(before, extension));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| order.get(item).is_some());
    named.sort_by_key(|item| order.get(item));
    others.sort_by_key(|item| before.get(item).unwrap_or(usize::MAX));
    let mut result = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for item in named {
        let at = before.get(&item);
        let stands_before = |other: &Value| match (before.get(other), at) {
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
    let places = Places::of(order, extension);
    let mut last = None;
    for item in patch.iter().filter(|item| item.get(PATCH).is_none()) {
        let at = places.get(item);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_merge_in_their_size() {
        let list = |of: std::ops::Range<u32>, item: fn(u32) -> Value| of.map(item).collect();
        let begin = std::time::Instant::now();
        let scalars = Extension { merge: true, ..Extension::default() };
        let have: Vec<Value> = list(0..100_000, Value::from);
        let patch = list(50_000..150_000, Value::from);
        assert_eq!(merge(have, patch, None, scalars).unwrap().len(), 150_000);
        let keyed = Extension { merge_key: Some("name"), ..scalars };
        let item = |n: u32| serde_json::json!({"name": n});
        let have: Vec<Value> = list(0..50_000, item);
        let mut patch: Vec<Value> = list(25_000..75_000, item);
        for item in patch.iter_mut().take(10_000) {
            item[PATCH] = "delete".into();
        }
        assert_eq!(merge(have, patch, None, keyed).unwrap().len(), 65_000);
        assert!(begin.elapsed() < std::time::Duration::from_secs(30), "{:?}", begin.elapsed());
    }
}
