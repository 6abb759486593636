//! Brings a tree into the shape of a type, as decoding into Go's struct and encoding it again would: unknown fields and nulls
//! go, quantities, times and bytes become canonical, wrong types are refused with Go's texts.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Map, Value};

use super::PROBLEMS_MAX;
use crate::object;
use crate::quantity;
use crate::schema::{Field, Node, Type};

/// Conforms `object` to `schema`; answers `unknown field "…"` for what was dropped ([`PROBLEMS_MAX`] of it), or why the object can't be of that type.
pub fn conform(object: &mut Value, schema: &Type) -> Result<Vec<String>, String> {
    let mut walk = Walk { path: String::new(), field: String::new(), unknown: Vec::new() };
    match object {
        Value::Object(map) => walk.structure(map, schema)?,
        other => {
            return Err(format!(
                "json: cannot unmarshal {} into Go value of type {}",
                sort_of(other),
                go_struct(schema)
            ));
        }
    }
    Ok(walk.unknown)
}

/// Go's word for what a value is.
pub(super) fn sort_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// `v1.Container` of `io.k8s.api.core.v1.Container`.
fn go_struct(schema: &Type) -> &str {
    let name = schema.name();
    name.rmatch_indices('.').nth(1).map_or(name, |(at, _)| &name[at + 1..])
}

fn go_type(node: &Node) -> String {
    match node {
        Node::Bool => "bool".to_owned(),
        Node::Int32 => "int32".to_owned(),
        Node::Int64 => "int64".to_owned(),
        Node::Number => "float64".to_owned(),
        Node::String => "string".to_owned(),
        Node::Bytes => "[]uint8".to_owned(),
        Node::Time => "v1.Time".to_owned(),
        Node::MicroTime => "v1.MicroTime".to_owned(),
        Node::Quantity => "resource.Quantity".to_owned(),
        Node::IntOrString => "intstr.IntOrString".to_owned(),
        Node::Any => "runtime.RawExtension".to_owned(),
        Node::List(items) => format!("[]{}", go_type(items)),
        Node::Map(values) if matches!(**values, Node::Quantity) => "v1.ResourceList".to_owned(),
        Node::Map(values) => format!("map[string]{}", go_type(values)),
        Node::Object(inner) => go_struct(inner).to_owned(),
    }
}

/// Fields whose Go type is a named string; the others are plain strings.
const NAMED_STRINGS: &[(&str, &str, &str)] = &[
    ("Container", "imagePullPolicy", "v1.PullPolicy"),
    ("Container", "restartPolicy", "v1.ContainerRestartPolicy"),
    ("Container", "terminationMessagePolicy", "v1.TerminationMessagePolicy"),
    ("ContainerPort", "protocol", "v1.Protocol"),
    ("CronJobSpec", "concurrencyPolicy", "v1.ConcurrencyPolicy"),
    ("DaemonSetUpdateStrategy", "type", "v1.DaemonSetUpdateStrategyType"),
    ("DeploymentStrategy", "type", "v1.DeploymentStrategyType"),
    ("EndpointPort", "protocol", "v1.Protocol"),
    ("HTTPGetAction", "scheme", "v1.URIScheme"),
    ("JobSpec", "completionMode", "v1.CompletionMode"),
    ("NetworkPolicyPort", "protocol", "v1.Protocol"),
    ("NodeSelectorRequirement", "operator", "v1.NodeSelectorOperator"),
    ("LabelSelectorRequirement", "operator", "v1.LabelSelectorOperator"),
    ("PersistentVolumeSpec", "persistentVolumeReclaimPolicy", "v1.PersistentVolumeReclaimPolicy"),
    ("PodSpec", "dnsPolicy", "v1.DNSPolicy"),
    ("PodSpec", "preemptionPolicy", "v1.PreemptionPolicy"),
    ("PodSpec", "restartPolicy", "v1.RestartPolicy"),
    ("Secret", "type", "v1.SecretType"),
    ("ServicePort", "protocol", "v1.Protocol"),
    ("ServiceSpec", "externalTrafficPolicy", "v1.ServiceExternalTrafficPolicy"),
    ("ServiceSpec", "internalTrafficPolicy", "v1.ServiceInternalTrafficPolicy"),
    ("ServiceSpec", "ipFamilyPolicy", "v1.IPFamilyPolicy"),
    ("ServiceSpec", "sessionAffinity", "v1.ServiceAffinity"),
    ("ServiceSpec", "type", "v1.ServiceType"),
    ("StatefulSetSpec", "podManagementPolicy", "v1.PodManagementPolicyType"),
    ("StatefulSetUpdateStrategy", "type", "v1.StatefulSetUpdateStrategyType"),
    ("Taint", "effect", "v1.TaintEffect"),
    ("Toleration", "effect", "v1.TaintEffect"),
    ("Toleration", "operator", "v1.TolerationOperator"),
];

/// Where the value stands, for Go's message.
#[derive(Clone, Copy)]
struct Place<'a> {
    owner: &'a Type,
    field: &'a Field,
}

struct Walk {
    /// With indices and keys: `spec.containers[0].name`.
    path: String,
    /// Struct fields alone, as Go's message has it: `spec.containers.name`.
    field: String,
    unknown: Vec<String>,
}

impl Walk {
    fn structure(&mut self, map: &mut Map<String, Value>, schema: &Type) -> Result<(), String> {
        let mut failed = None;
        let mut drop_keys = Vec::new();
        for (key, value) in map.iter_mut() {
            let lengths = (self.path.len(), self.field.len());
            append(&mut self.path, key);
            match schema.field(key) {
                None => {
                    if self.unknown.len() < PROBLEMS_MAX {
                        self.unknown.push(format!("unknown field \"{}\"", self.path));
                    }
                    drop_keys.push(key.clone());
                }
                Some(_) if value.is_null() => drop_keys.push(key.clone()),
                Some(field) => {
                    append(&mut self.field, key);
                    failed = self.value(value, &field.node, Place { owner: schema, field }).err();
                }
            }
            self.path.truncate(lengths.0);
            self.field.truncate(lengths.1);
            if let Some(why) = failed {
                return Err(why);
            }
        }
        for key in drop_keys {
            map.remove(&key);
        }
        Ok(())
    }

    fn value(&mut self, value: &mut Value, node: &Node, at: Place<'_>) -> Result<(), String> {
        match (node, &mut *value) {
            (Node::Any, _) | (Node::Bool, Value::Bool(_)) | (Node::String, Value::String(_)) => {
                Ok(())
            }
            (Node::Number, Value::Number(_)) => Ok(()),
            (Node::Int32 | Node::Int64, Value::Number(number)) => {
                let (low, high) = if matches!(node, Node::Int32) {
                    (i64::from(i32::MIN), i64::from(i32::MAX))
                } else {
                    (i64::MIN, i64::MAX)
                };
                let whole = number.as_i64().filter(|value| (low..=high).contains(value));
                if whole.is_some() {
                    return Ok(());
                }
                Err(self.mismatch(&format!("number {number}"), node, at))
            }
            (Node::List(items), Value::Array(list)) => self.list(list, items, at),
            (Node::Map(values), Value::Object(map)) => self.map(map, values, at),
            (Node::Object(inner), Value::Object(map)) => self.structure(map, inner),
            (
                Node::Bytes | Node::Time | Node::MicroTime | Node::Quantity | Node::IntOrString,
                _,
            ) => match scalar(value, node) {
                Some(result) => {
                    if let Some(canonical) = result? {
                        *value = canonical;
                    }
                    Ok(())
                }
                None => Err(self.mismatch(sort_of(value), node, at)),
            },
            _ => Err(self.mismatch(sort_of(value), node, at)),
        }
    }

    fn list(&mut self, list: &mut [Value], items: &Node, at: Place<'_>) -> Result<(), String> {
        for (index, item) in list.iter_mut().enumerate() {
            let before = self.path.len();
            // Writing to a String does not fail.
            write!(self.path, "[{index}]").unwrap_or_default();
            if item.is_null() {
                *item = zero(items);
            }
            let result = self.value(item, items, at);
            self.path.truncate(before);
            result?;
        }
        Ok(())
    }

    fn map(
        &mut self,
        map: &mut Map<String, Value>,
        values: &Node,
        at: Place<'_>,
    ) -> Result<(), String> {
        for (key, item) in map.iter_mut() {
            let before = self.path.len();
            append(&mut self.path, key);
            if item.is_null() {
                *item = zero(values);
            }
            let result = self.value(item, values, at);
            self.path.truncate(before);
            result?;
        }
        Ok(())
    }

    fn mismatch(&self, sort: &str, node: &Node, at: Place<'_>) -> String {
        let named = NAMED_STRINGS.iter().find(|(owner, field, _)| {
            matches!(node, Node::String)
                && *owner == at.owner.short_name()
                && *field == &*at.field.name
        });
        let target = named.map_or_else(|| go_type(node), |(_, _, name)| (*name).to_owned());
        format!(
            "json: cannot unmarshal {sort} into Go struct field {}.{} of type {target}",
            at.owner.short_name(),
            self.field
        )
    }
}

fn append(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

/// What Go makes of a null within a list or map.
fn zero(node: &Node) -> Value {
    match node {
        Node::Bool => Value::Bool(false),
        Node::Int32 | Node::Int64 | Node::Number | Node::IntOrString => 0.into(),
        Node::String | Node::Bytes => "".into(),
        Node::Quantity => "0".into(),
        Node::List(_) => Value::Array(Vec::new()),
        Node::Map(_) | Node::Object(_) => Value::Object(Map::new()),
        Node::Any | Node::Time | Node::MicroTime => Value::Null,
    }
}

/// Values that Go decodes by functions of their own: the canonical value where it differs, or why not; `None` where Go
/// would name the field.
fn scalar(value: &Value, node: &Node) -> Option<Result<Option<Value>, String>> {
    let plain = |sort: &str, target: &str| {
        Some(Err(format!("json: cannot unmarshal {sort} into Go value of type {target}")))
    };
    match (node, value) {
        (_, Value::Null) => Some(Ok(None)),
        (Node::Bytes, Value::String(text)) => Some(bytes(text)),
        (Node::Bytes, _) => None,
        (Node::Time | Node::MicroTime, Value::String(text)) => Some(time(text, node)),
        (Node::Time | Node::MicroTime, other) => plain(sort_of(other), "string"),
        (Node::Quantity, other) => {
            let text = match other {
                Value::String(text) => text.trim().to_owned(),
                other => other.to_string(),
            };
            Some(match quantity::canonical(&text) {
                Ok(canonical) => Ok(Some(canonical.into())),
                Err(error) => Err(error.to_string()),
            })
        }
        (Node::IntOrString, Value::String(_)) => Some(Ok(None)),
        (Node::IntOrString, Value::Number(number)) => {
            let fits = number.as_i64().is_some_and(|value| i32::try_from(value).is_ok());
            if fits { Some(Ok(None)) } else { plain(&format!("number {number}"), "int32") }
        }
        (Node::IntOrString, other) => plain(sort_of(other), "int32"),
        _ => None,
    }
}

fn bytes(text: &str) -> Result<Option<Value>, String> {
    // Go skips line ends within base64.
    let clean: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    match STANDARD.decode(&clean) {
        Ok(_) if clean.len() == text.len() => Ok(None),
        Ok(_) => Ok(Some(clean.into())),
        Err(error) => {
            let at = match error {
                base64::DecodeError::InvalidByte(at, _)
                | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                base64::DecodeError::InvalidLength(len) => len / 4 * 4,
                base64::DecodeError::InvalidPadding => clean.len() / 4 * 4,
            };
            Err(format!("illegal base64 data at input byte {at}"))
        }
    }
}

fn time(text: &str, node: &Node) -> Result<Option<Value>, String> {
    if text.is_empty() && matches!(node, Node::Time) {
        // Go's zero time.
        return Ok(Some(Value::Null));
    }
    let layout = if matches!(node, Node::Time) {
        "2006-01-02T15:04:05Z07:00"
    } else {
        "2006-01-02T15:04:05.000000Z07:00"
    };
    // Go writes four digits of a year; what has more or less could not be read again.
    let readable = |at: &Timestamp| (0..=9999).contains(&at.to_zoned(TimeZone::UTC).year());
    let Some(at) = object::parse_time(text).filter(readable) else {
        let quoted = crate::field::quote(text);
        return Err(format!(
            "parsing time {quoted} as \"{layout}\": cannot parse {quoted} as \"2006\""
        ));
    };
    let canonical =
        if matches!(node, Node::Time) { object::time(at) } else { object::micro_time(at) };
    Ok((canonical != text).then(|| canonical.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schemas;
    use serde_json::json;

    fn conformed(kind: (&str, &str), mut value: Value) -> Result<Value, String> {
        let schema = Schemas::builtin().get(kind.0, "v1", kind.1).unwrap();
        conform(&mut value, &schema).map(|_| value)
    }

    #[test]
    fn wrong_types_have_gos_texts() {
        let cases = [
            (
                json!({"spec": {"containers": "no"}}),
                "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
            (
                json!({"spec": {"hostNetwork": "yes"}}),
                "json: cannot unmarshal string into Go struct field PodSpec.spec.hostNetwork of type bool",
            ),
            (
                json!({"spec": {"containers": [{"ports": [{"containerPort": "80"}]}]}}),
                "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
            ),
            (
                json!({"spec": {"containers": [{"ports": [{"containerPort": 1.5}]}]}}),
                "json: cannot unmarshal number 1.5 into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
            ),
            (
                json!({"spec": {"priority": 3_000_000_000_i64}}),
                "json: cannot unmarshal number 3000000000 into Go struct field PodSpec.spec.priority of type int32",
            ),
            (
                json!({"metadata": {"labels": {"a": 1}}}),
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                json!({"metadata": []}),
                "json: cannot unmarshal array into Go struct field Pod.metadata of type v1.ObjectMeta",
            ),
            (
                json!({"spec": {"restartPolicy": 5}}),
                "json: cannot unmarshal number into Go struct field PodSpec.spec.restartPolicy of type v1.RestartPolicy",
            ),
            (
                json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}}),
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
            (
                json!({"spec": {"containers": [{"livenessProbe": {"httpGet": {"port": true}}}]}}),
                "json: cannot unmarshal bool into Go value of type int32",
            ),
            (
                json!({"metadata": {"creationTimestamp": "x"}}),
                "parsing time \"x\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"x\" as \"2006\"",
            ),
        ];
        for (value, want) in cases {
            assert_eq!(conformed(("", "Pod"), value).unwrap_err(), want);
        }
        for year in ["-000001", "-009999", "+010000", "99999"] {
            let time = format!("{year}-01-01T00:00:00Z");
            let value = json!({"metadata": {"creationTimestamp": time}});
            assert!(conformed(("", "Pod"), value).is_err(), "{time}");
        }
        let secret = conformed(("", "Secret"), json!({"data": {"a": "x=y"}})).unwrap_err();
        assert_eq!(secret, "illegal base64 data at input byte 1");
    }

    #[test]
    fn values_become_canonical() {
        let pod = conformed(
            ("", "Pod"),
            json!({"metadata": {"creationTimestamp": null, "labels": {"a": null}, "annotations": null},
                "spec": {"nodeName": null, "containers": [null, {"args": ["a", null],
                    "resources": {"limits": {"cpu": 1, "memory": "1024Mi"}, "requests": {"cpu": "0.50"}}}]},
                "status": {"startTime": "2026-11-20T16:00:00+01:00"}}),
        );
        assert_eq!(
            pod.unwrap(),
            json!({"metadata": {"labels": {"a": ""}},
                "spec": {"containers": [{}, {"args": ["a", ""],
                    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}}]},
                "status": {"startTime": "2026-11-20T15:00:00Z"}})
        );
        let lease = conformed(
            ("coordination.k8s.io", "Lease"),
            json!({"spec": {"renewTime": "2026-11-20T16:00:00.5Z"}}),
        );
        assert_eq!(lease.unwrap(), json!({"spec": {"renewTime": "2026-11-20T16:00:00.500000Z"}}));
        let secret = conformed(("", "Secret"), json!({"data": {"a": "YQ\n==", "b": ""}}));
        assert_eq!(secret.unwrap(), json!({"data": {"a": "YQ==", "b": ""}}));
    }

    #[test]
    fn raw_extensions_are_left_alone() {
        let revision = json!({"data": {"spec": {"x": null}, "y": [1, "a"]}, "revision": 1});
        assert_eq!(conformed(("apps", "ControllerRevision"), revision.clone()).unwrap(), revision);
    }
}
