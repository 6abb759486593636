//! JSON patch (RFC 6902, `application/json-patch+json`).

use json_patch::{Patch, PatchOperation, patch_unsafe};
use serde_json::Value;

use super::PatchError;

/// Upstream's limit.
pub const OPERATIONS_MAX: usize = 10_000;
/// What the operations of a patch copy or move, together, as JSON. Upstream's limit, of what is copied: that of a request's body.
const COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;
/// As deep as the JSON of a body may be.
const DEPTH_MAX: usize = 128;

/// Applies `patch`, a list of operations, to `target`; on an error `target` is unchanged.
pub fn apply(target: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let got = patch.as_array().map_or(0, Vec::len);
    if got > OPERATIONS_MAX {
        return Err(PatchError::TooManyOperations { max: OPERATIONS_MAX, got });
    }
    let patch: Patch = serde_json::from_value(patch.clone())
        .map_err(|error| PatchError::Malformed(format!("error decoding patch: {error}")))?;
    let mut copied = 0;
    // On a copy: undoing operations is not always possible.
    let mut patched = target.clone();
    for operation in patch.iter() {
        copied += check(&patched, operation, copied)?;
        patch_unsafe(&mut patched, std::slice::from_ref(operation))
            .map_err(|error| PatchError::DoesNotApply(error.to_string()))?;
    }
    *target = patched;
    Ok(())
}

/// The bytes that the operation copies, when what it puts into the target keeps that within its bounds.
fn check(target: &Value, operation: &PatchOperation, copied: usize) -> Result<usize, PatchError> {
    let (value, path, size) = match operation {
        PatchOperation::Add(op) => (Some(&op.value), &op.path, 0),
        PatchOperation::Replace(op) => (Some(&op.value), &op.path, 0),
        PatchOperation::Copy(op) => weigh(target, op.from.as_str(), &op.path),
        PatchOperation::Move(op) => weigh(target, op.from.as_str(), &op.path),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => return Ok(0),
    };
    if copied + size > COPIED_BYTES_MAX {
        let why = format!("more than {COPIED_BYTES_MAX} bytes would be copied");
        return Err(PatchError::DoesNotApply(why));
    }
    let above = path.as_str().matches('/').count();
    if value.is_some_and(|value| above + depth(value) > DEPTH_MAX) {
        let why = format!("the object would be deeper than {DEPTH_MAX}");
        return Err(PatchError::DoesNotApply(why));
    }
    Ok(size)
}

fn weigh<'a, P>(target: &'a Value, from: &str, path: &'a P) -> (Option<&'a Value>, &'a P, usize) {
    let value = target.pointer(from);
    (value, path, value.map_or(0, |value| value.to_string().len()))
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::ApiError;
    use serde_json::json;

    #[test]
    fn operations_act_in_order_or_not_at_all() {
        let mut target = json!({"a": {"b": [1, 2]}, "m~/": 1});
        let patch = json!([
            {"op": "add", "path": "/a/b/-", "value": 3},
            {"op": "remove", "path": "/a/b/0"},
            {"op": "replace", "path": "/m~0~1", "value": 2},
            {"op": "copy", "from": "/a/b", "path": "/c"},
            {"op": "test", "path": "/c/0", "value": 2},
        ]);
        apply(&mut target, &patch).unwrap();
        assert_eq!(target, json!({"a": {"b": [2, 3]}, "m~/": 2, "c": [2, 3]}));

        let before = target.clone();
        let patch = json!([
            {"op": "remove", "path": "/a"},
            {"op": "test", "path": "/c/0", "value": 9},
        ]);
        let error = apply(&mut target, &patch).unwrap_err();
        assert_eq!(target, before);
        assert_eq!(ApiError::from(error).code, 422);
    }

    #[test]
    fn malformed_and_endless_patches_are_refused() {
        let mut target = json!({});
        for patch in [json!({}), json!([{"op": "jump", "path": "/a"}]), json!([{"op": "add"}])] {
            let error = apply(&mut target, &patch).unwrap_err();
            assert_eq!(ApiError::from(error).code, 400);
        }
        let op = json!({"op": "add", "path": "/a", "value": 1});
        let error = apply(&mut target, &vec![op; OPERATIONS_MAX + 1].into()).unwrap_err();
        let error = ApiError::from(error);
        assert_eq!(error.code, 413);
        assert_eq!(
            error.message,
            "Request entity is too large: The allowed maximum operations in a JSON patch is 10000, got 10001"
        );
    }

    #[test]
    fn no_patch_grows_an_object_without_bounds() {
        let refused = |operations: Vec<Value>| {
            let mut target = json!({"a": {"text": "x".repeat(1000)}, "list": []});
            let before = target.clone();
            let error = apply(&mut target, &operations.into()).unwrap_err();
            assert_eq!(target, before);
            assert_eq!(ApiError::from(error).code, 422);
        };
        refused(vec![json!({"op": "copy", "from": "/a", "path": "/list/-"}); 4000]);
        refused(vec![json!({"op": "copy", "from": "", "path": "/a/text"}); 100]);
        refused(vec![json!({"op": "copy", "from": "/list", "path": "/list/0"}); 40]);
        let deeper = |n: usize| json!({"op": "add", "path": "/a".repeat(n), "value": {}});
        refused((1..200).map(deeper).collect());
        let mut target = json!({});
        apply(&mut target, &(1..100).map(deeper).collect::<Vec<Value>>().into()).unwrap();
        assert_eq!(depth(&target), 100);
    }

    #[test]
    fn a_patch_that_cannot_be_undone_leaves_the_object_alone() {
        let mut target = json!({"a": {"b": 1}});
        let patch = json!([
            {"op": "move", "from": "/a", "path": ""},
            {"op": "test", "path": "/none", "value": 1},
        ]);
        assert!(apply(&mut target, &patch).is_err());
        assert_eq!(target, json!({"a": {"b": 1}}));
    }
}
