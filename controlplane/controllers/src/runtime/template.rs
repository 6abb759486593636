//! Pod templates: comparing, naming, and the pods they make. Pure.

use super::object::Kind;
use crate::kinds::{Pod, condition};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;

/// Label that keeps the pods of a Deployment's ReplicaSets apart.
pub(crate) const HASH_LABEL: &str = "pod-template-hash";

/// Whether both templates make the same pods; the hash label and explicit nulls don't count.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    normalized(a) == normalized(b)
}

/// Without nulls and the hash label.
pub(crate) fn normalized(template: &Value) -> Value {
    let mut template = without_nulls(template);
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove(HASH_LABEL);
    }
    template
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter()
                .filter(|(_, v)| !v.is_null())
                .map(|(k, v)| (k.clone(), without_nulls(v)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

/// The letters that upstream names are made of: no vowels, nothing that reads as a word.
const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Name suffix of the template: FNV-1a over its canonical text and the collision count, in safe letters.
pub(crate) fn hash(template: &Value, collisions: i32) -> String {
    let mut state: u32 = 0x811c_9dc5;
    let mut feed = |bytes: &[u8]| {
        for byte in bytes {
            state = (state ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    };
    canonical(&normalized(template), &mut feed);
    if collisions > 0 {
        feed(&collisions.to_le_bytes());
    }
    let letter = |b: u8| char::from(SAFE[usize::from(b) % SAFE.len()]);
    state.to_string().bytes().map(letter).collect()
}

/// Feeds the value with sorted keys, whatever order the map keeps.
fn canonical(value: &Value, feed: &mut impl FnMut(&[u8])) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            feed(b"{");
            for key in keys {
                feed(key.as_bytes());
                feed(b":");
                canonical(&map[key], feed);
                feed(b",");
            }
            feed(b"}");
        }
        Value::Array(items) => {
            feed(b"[");
            for item in items {
                canonical(item, feed);
                feed(b",");
            }
            feed(b"]");
        }
        other => feed(other.to_string().as_bytes()),
    }
}

/// The pod that the template describes, controlled by `owner` and named after it.
pub(crate) fn pod<K: Kind>(owner: &K, template: &Value) -> Value {
    let mut metadata = json!({
        "generateName": format!("{}-", owner.name()),
        "ownerReferences": [owner.as_controller()],
    });
    for field in ["labels", "annotations", "finalizers"] {
        let value = &template["metadata"][field];
        if !value.is_null() {
            metadata[field] = value.clone();
        }
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

/// Time until a ready pod counts as available; `None` when it does already or is not ready.
pub(crate) fn until_available(pod: &Pod, seconds: i32, now: Timestamp) -> Option<Duration> {
    let ready = condition(&pod.status.conditions, "Ready").filter(|c| c.status == "True")?;
    if seconds <= 0 {
        return None;
    }
    let since = ready.last_transition_time.as_ref()?;
    let left = since.0.as_millisecond() + i64::from(seconds) * 1000 - now.as_millisecond();
    u64::try_from(left).ok().filter(|left| *left > 0).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_ignores_key_order_nulls_and_its_own_label() {
        let a = json!({"metadata": {"labels": {"a": "b"}, "creationTimestamp": null}, "spec": {"x": 1, "y": 2}});
        let b =
            json!({"spec": {"y": 2, "x": 1}, "metadata": {"labels": {"a": "b", HASH_LABEL: "z"}}});
        assert!(same(&a, &b));
        assert_eq!(hash(&a, 0), hash(&b, 0));
        assert_ne!(hash(&a, 0), hash(&a, 1));
        assert_ne!(hash(&a, 0), hash(&json!({"spec": {"x": 2}}), 0));
    }
}
