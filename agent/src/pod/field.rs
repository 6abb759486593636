//! `fieldRef` and `resourceFieldRef`: what a pod says of itself to its containers, in variables
//! and in downward API volumes. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, ResourceFieldSelector};

use crate::pod::spec::{self, Side};

/// What the node adds to what the pod says.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeFacts {
    pub(crate) host_ips: Vec<IpAddr>,
    pub(crate) cpu_milli: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) ephemeral_storage_bytes: u64,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum FieldError {
    #[error("unsupported fieldPath: {0}")]
    Path(String),
    #[error("container {0} not found")]
    Container(String),
    #[error("unsupported container resource : {0}")]
    Resource(String),
    #[error("divisor {0:?} is not a quantity")]
    Divisor(String),
}

/// The text of a `fieldRef`.
pub(crate) fn field(
    pod: &Pod,
    path: &str,
    pod_ips: &[IpAddr],
    node: &NodeFacts,
) -> Result<String, FieldError> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    if let Some((base, key)) = subscript(path) {
        let map = match base {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(FieldError::Path(path.to_owned())),
        };
        return Ok(map.and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    Ok(match path {
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => text(spec.and_then(|spec| spec.node_name.as_ref())),
        "spec.serviceAccountName" => text(spec.and_then(|spec| spec.service_account_name.as_ref())),
        "status.hostIP" => first(&node.host_ips),
        "status.hostIPs" => join(&node.host_ips),
        "status.podIP" => first(pod_ips),
        "status.podIPs" => join(pod_ips),
        _ => return Err(FieldError::Path(path.to_owned())),
    })
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    let (base, rest) = path.split_once("['")?;
    Some((base, rest.strip_suffix("']")?))
}

fn join(ips: &[IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// `key="value"` lines, sorted, values quoted as Go does.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", quote(value)))
        .collect::<Vec<_>>()
        .join("\n")
}

fn quote(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('"');
    for ch in value.chars() {
        match ch {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            control if control.is_control() => {
                quoted.push_str(&format!("\\x{:02x}", u32::from(control)));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// The text of a `resourceFieldRef`; limits that are not set are the node's.
pub(crate) fn resource(
    pod: &Pod,
    default_container: &str,
    selector: &ResourceFieldSelector,
    node: &NodeFacts,
) -> Result<String, FieldError> {
    let name = selector.container_name.as_deref().filter(|n| !n.is_empty());
    let name = name.unwrap_or(default_container);
    let container = pod
        .spec
        .as_ref()
        .and_then(|spec| spec::find_container(spec, name))
        .ok_or_else(|| FieldError::Container(name.to_owned()))?;
    let unsupported = || FieldError::Resource(selector.resource.clone());
    let (side, kind) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let side = match side {
        "limits" => Side::Limits,
        "requests" => Side::Requests,
        _ => return Err(unsupported()),
    };
    let resources = container.resources.as_ref();
    let fallback = |of_node: u64| if side == Side::Limits { of_node } else { 0 };
    let divisor = selector.divisor.as_ref().map_or("1", |quantity| quantity.0.as_str());
    let divisor = if divisor.is_empty() || divisor == "0" { "1" } else { divisor };
    let invalid = || FieldError::Divisor(divisor.to_owned());
    let (value, divisor) = if kind == "cpu" {
        let milli = spec::milli(resources, kind, side).filter(|v| *v > 0 || side == Side::Requests);
        let milli = milli.unwrap_or_else(|| fallback(node.cpu_milli));
        (milli, spec::parse_milli(divisor).ok_or_else(invalid)?)
    } else {
        let of_node = match kind {
            "memory" => node.memory_bytes,
            "ephemeral-storage" => node.ephemeral_storage_bytes,
            _ if kind.starts_with("hugepages-") => 0,
            _ => return Err(unsupported()),
        };
        let bytes = spec::bytes(resources, kind, side).filter(|v| *v > 0 || side == Side::Requests);
        let bytes = bytes.unwrap_or_else(|| fallback(of_node));
        (bytes, spec::parse_units(divisor).ok_or_else(invalid)?)
    };
    Ok(value.div_ceil(divisor.max(1)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_resources() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u",
                         "labels": {"b": "2", "a": "say \"x\"\n"}},
            "spec": {"nodeName": "node", "serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"limits": {"memory": "64Mi"},
                                            "requests": {"cpu": "250m"}}}]}
        }))
        .unwrap();
        let node = NodeFacts {
            host_ips: vec!["10.0.0.1".parse().unwrap()],
            cpu_milli: 2000,
            memory_bytes: 1 << 30,
            ephemeral_storage_bytes: 1 << 33,
        };
        let ips = ["10.1.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        for (path, expected) in [
            ("metadata.name", "p"),
            ("metadata.labels['b']", "2"),
            ("metadata.labels['none']", ""),
            ("metadata.labels", "a=\"say \\\"x\\\"\\n\"\nb=\"2\""),
            ("spec.nodeName", "node"),
            ("status.podIPs", "10.1.0.2,fd00::2"),
            ("status.hostIP", "10.0.0.1"),
        ] {
            assert_eq!(field(&pod, path, &ips, &node).as_deref(), Ok(expected), "{path}");
        }
        assert!(field(&pod, "spec.nope", &ips, &node).is_err());
        for (what, divisor, expected) in [
            ("limits.cpu", "", "2"),
            ("requests.cpu", "", "1"),
            ("requests.cpu", "1m", "250"),
            ("limits.memory", "1Mi", "64"),
            ("requests.memory", "1", "0"),
            ("limits.ephemeral-storage", "1Gi", "8"),
        ] {
            let selector = ResourceFieldSelector {
                resource: what.into(),
                divisor: Some(k8s_openapi::apimachinery::pkg::api::resource::Quantity(
                    divisor.into(),
                )),
                container_name: None,
            };
            assert_eq!(resource(&pod, "c", &selector, &node).as_deref(), Ok(expected), "{what}");
        }
    }
}
