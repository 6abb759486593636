//! Equality as upstream's `apiequality.Semantic`: what Go's encoding leaves out counts as absent, since typed clients send an
//! object back without the empty and zero parts that its author wrote.

use std::borrow::Cow;

use serde_json::{Map, Value};

/// Plain booleans in Go: `false` is not written. Pointers (`automountServiceAccountToken`, `runAsNonRoot`, …) are not here.
const PLAIN_FLAGS: [&str; 9] = [
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "paused",
    "publishNotReadyAddresses",
    "readOnly",
    "stdin",
    "stdinOnce",
    "tty",
];
/// Plain numbers in Go: 0 is not written.
const PLAIN_NUMBERS: [&str; 5] =
    ["hostPort", "initialDelaySeconds", "minReadySeconds", "nodePort", "healthCheckNodePort"];
/// Maps: `{}` is not written. Structs behind pointers (`emptyDir`, `podSelector`, …) mean something when empty.
const MAPS: [&str; 10] = [
    "annotations",
    "data",
    "labels",
    "limits",
    "matchLabels",
    "nodeSelector",
    "overhead",
    "parameters",
    "requests",
    "selector",
];

/// True when the two mean the same.
pub(super) fn same(one: Option<&Value>, other: Option<&Value>) -> bool {
    let (one, other) =
        (one.filter(|one| !is_left_out("", one)), other.filter(|one| !is_left_out("", one)));
    match (one, other) {
        (Some(Value::Object(one)), Some(Value::Object(other))) => same_map(one, other),
        (Some(Value::Array(one)), Some(Value::Array(other))) => {
            one.len() == other.len() && one.iter().zip(other).all(|(a, b)| same(Some(a), Some(b)))
        }
        (one, other) => one == other,
    }
}

fn same_map(one: &Map<String, Value>, other: &Map<String, Value>) -> bool {
    let covered = |a: &Map<String, Value>, b: &Map<String, Value>| {
        a.iter().filter(|(key, value)| !is_left_out(key, value)).all(|(key, value)| {
            let there = b.get(key).filter(|there| !is_left_out(key, there));
            there.is_some_and(|there| same(Some(value), Some(there)))
        })
    };
    covered(one, other) && covered(other, one)
}

fn is_left_out(key: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Bool(flag) => !flag && PLAIN_FLAGS.contains(&key),
        Value::Number(number) => number.as_i64() == Some(0) && PLAIN_NUMBERS.contains(&key),
        Value::Object(map) => map.is_empty() && MAPS.contains(&key),
    }
}

/// A copy without what counts as absent, for showing what really changed.
pub(super) fn written(value: &Value) -> Cow<'_, Value> {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(key, value)| !is_left_out(key, value));
            let kept = kept.map(|(key, value)| (key.clone(), written(value).into_owned()));
            Cow::Owned(Value::Object(kept.collect()))
        }
        Value::Array(list) => {
            Cow::Owned(list.iter().map(|item| written(item).into_owned()).collect())
        }
        _ => Cow::Borrowed(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_go_leaves_out_makes_no_difference() {
        let cases = [
            (json!({"tolerations": [], "a": 1}), json!({"a": 1}), true),
            (json!({"hostNetwork": false}), json!({}), true),
            (json!({"nodeName": "", "nodeSelector": {}}), json!({"x": null}), true),
            (json!({"c": [{"tty": false, "name": "a"}]}), json!({"c": [{"name": "a"}]}), true),
            (json!({"emptyDir": {}}), json!({}), false),
            (json!({"runAsUser": 0}), json!({}), false),
            (json!({"automountServiceAccountToken": false}), json!({}), false),
            (json!({"a": [1]}), json!({"a": [1, 2]}), false),
        ];
        for (one, other, want) in cases {
            assert_eq!(same(Some(&one), Some(&other)), want, "{one} {other}");
            assert_eq!(written(&one) == written(&other), want, "{one} {other}");
        }
        assert!(same(None, Some(&Value::Null)));
    }
}
