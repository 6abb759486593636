//! Reads parts of an object for cells, with upstream's texts for what is missing. Pure.

use super::duration;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

pub(super) const NONE: &str = "<none>";
pub(super) const UNSET: &str = "<unset>";

/// An object and the time at which it is printed.
#[derive(Clone, Copy)]
pub(super) struct Printed<'a> {
    pub(super) object: &'a Value,
    pub(super) now: Timestamp,
}

/// The member at a JSON pointer; null when it is not there.
pub(super) fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    at(value, pointer).as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    at(value, pointer).as_str().unwrap_or_default()
}

pub(super) fn int(value: &Value, pointer: &str) -> i64 {
    at(value, pointer).as_i64().unwrap_or_default()
}

pub(super) fn or<'a>(text: &'a str, instead: &'a str) -> &'a str {
    if text.is_empty() { instead } else { text }
}

impl<'a> Printed<'a> {
    pub(super) fn text(&self, pointer: &str) -> &'a str {
        text(self.object, pointer)
    }

    pub(super) fn int(&self, pointer: &str) -> i64 {
        int(self.object, pointer)
    }

    pub(super) fn list(&self, pointer: &str) -> &'a [Value] {
        list(self.object, pointer)
    }

    pub(super) fn has(&self, pointer: &str) -> bool {
        !at(self.object, pointer).is_null()
    }

    pub(super) fn name(&self) -> &'a str {
        self.text("/metadata/name")
    }

    pub(super) fn since(&self, pointer: &str) -> String {
        duration::since(at(self.object, pointer).as_str(), self.now)
    }

    pub(super) fn age(&self) -> String {
        self.since("/metadata/creationTimestamp")
    }

    /// Number of members of an object or items of a list.
    pub(super) fn count(&self, pointer: &str) -> usize {
        match at(self.object, pointer) {
            Value::Object(map) => map.len(),
            Value::Array(items) => items.len(),
            _ => 0,
        }
    }

    /// `-o wide` columns of workloads: container names, images.
    pub(super) fn containers(&self, pod_spec: &str) -> [Value; 2] {
        let containers = self.list(&format!("{pod_spec}/containers"));
        let join = |member: &str| {
            let texts: Vec<&str> = containers.iter().map(|c| text(c, member)).collect();
            json!(texts.join(","))
        };
        [join("/name"), join("/image")]
    }
}

/// `a=b,c=d`, or `<none>`.
pub(super) fn labels(map: &Value) -> String {
    let Some(map) = map.as_object().filter(|map| !map.is_empty()) else { return NONE.to_owned() };
    pairs(map).join(",")
}

fn pairs(map: &Map<String, Value>) -> Vec<String> {
    let mut pairs: Vec<String> = map
        .iter()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    pairs.sort();
    pairs
}

/// A `metav1.LabelSelector` as a selector's text, or `<none>`.
pub(super) fn selector(selector: &Value) -> String {
    let mut terms: Vec<(String, String)> = selector["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), format!("{key}={}", value.as_str().unwrap_or_default())))
        .collect();
    for term in list(selector, "/matchExpressions") {
        let key = text(term, "/key");
        let mut values: Vec<&str> =
            list(term, "/values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let shown = match text(term, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        terms.push((key.to_owned(), shown));
    }
    if terms.is_empty() {
        return NONE.to_owned();
    }
    terms.sort_by(|a, b| a.0.cmp(&b.0));
    terms.into_iter().map(|(_, shown)| shown).collect::<Vec<_>>().join(",")
}

/// At most three items, and how many more there are.
pub(super) fn three_of(items: &[String]) -> String {
    const SHOWN_MAX: usize = 3;
    let shown = items.iter().take(SHOWN_MAX).cloned().collect::<Vec<_>>().join(",");
    match items.len().checked_sub(SHOWN_MAX) {
        Some(more) if more > 0 => format!("{shown} + {more} more..."),
        _ => shown,
    }
}

/// `True`, `False` or `<unset>`.
pub(super) fn bool_text(value: &Value) -> &'static str {
    match value.as_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => UNSET,
    }
}

/// `RWO,ROX`.
pub(super) fn access_modes(modes: &[Value]) -> String {
    let short = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let has = |long: &str| modes.iter().any(|mode| mode == long);
    let shown: Vec<&str> =
        short.iter().filter(|(long, _)| has(long)).map(|(_, short)| *short).collect();
    shown.join(",")
}
