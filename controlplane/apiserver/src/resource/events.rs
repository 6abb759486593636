//! Rows of Event in core and events.k8s.io, which are one stored kind, and the conversion between the two.
//! Must not touch the store.

use serde_json::Value;

use super::{
    strategy::{Convert, Strategy},
    table::Resource,
};

const STRATEGY: Strategy = Strategy { create_on_update: true, expires: true, ..Strategy::PLAIN };

fn fields(row: Resource) -> Resource {
    row.prefix("events")
        .short(&["ev"])
        .field("involvedObject.kind", "")
        .field("involvedObject.namespace", "")
        .field("involvedObject.name", "")
        .field("involvedObject.uid", "")
        .field("involvedObject.apiVersion", "")
        .field("involvedObject.resourceVersion", "")
        .field("involvedObject.fieldPath", "")
        .field("reason", "")
        .field("reportingComponent", "")
        .field_at("source", "source.component", "")
        .field("type", "")
        .strategy(STRATEGY)
}

/// core/v1 Event: the stored version.
pub(super) fn core_row() -> Resource {
    fields(Resource::new("", "v1", "Event", "events"))
}

/// events.k8s.io/v1 Event.
pub(super) fn rows() -> Vec<Resource> {
    vec![
        fields(Resource::new("events.k8s.io", "v1", "Event", "events"))
            .convert(Convert { to_stored, from_stored }),
    ]
}

/// (events.k8s.io/v1, core/v1): the fields that bear another name.
const RENAMED: &[(&str, &str)] = &[
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("deprecatedCount", "count"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
];

fn rename(object: &mut Value, pairs: impl Iterator<Item = (&'static str, &'static str)>) {
    let Some(map) = object.as_object_mut() else { return };
    for (from, to) in pairs {
        if let Some(v) = map.remove(from) {
            map.insert(to.to_owned(), v);
        }
    }
}

fn to_stored(object: &mut Value) {
    rename(object, RENAMED.iter().copied());
    object["apiVersion"] = "v1".into();
}

fn from_stored(object: &mut Value) {
    rename(object, RENAMED.iter().map(|(a, b)| (*b, *a)));
    object["apiVersion"] = "events.k8s.io/v1".into();
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn conversion_there_and_back_is_identity() {
        let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "hello",
            "regarding": {"name": "p"}, "deprecatedCount": 2, "reason": "Started",
            "reportingController": "kubelet", "reportingInstance": "n1"});
        let mut stored = event.clone();
        super::to_stored(&mut stored);
        assert_eq!(stored["message"], "hello");
        assert_eq!(stored["involvedObject"]["name"], "p");
        assert_eq!(stored["apiVersion"], "v1");
        super::from_stored(&mut stored);
        assert_eq!(stored, event);
    }
}
