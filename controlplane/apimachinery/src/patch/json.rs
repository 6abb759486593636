//! JSON patch (RFC 6902, `application/json-patch+json`).

use json_patch::Patch;
use serde_json::Value;

use super::PatchError;

/// Upstream's limit.
pub const OPERATIONS_MAX: usize = 10_000;

/// Applies `patch`, a list of operations, to `target`; on an error `target` is unchanged.
pub fn apply(target: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let got = patch.as_array().map_or(0, Vec::len);
    if got > OPERATIONS_MAX {
        return Err(PatchError::TooManyOperations { max: OPERATIONS_MAX, got });
    }
    let patch: Patch = serde_json::from_value(patch.clone())
        .map_err(|error| PatchError::Malformed(format!("error decoding patch: {error}")))?;
    json_patch::patch(target, &patch).map_err(|error| PatchError::DoesNotApply(error.to_string()))
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
}
