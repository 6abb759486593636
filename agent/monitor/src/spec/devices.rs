//! Devices of a container: nodes below `/dev`, and the cgroup rules that make them usable.
//!
//! Owns the rules (deny all, allow the usual ones and those asked for); must not make nodes.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Host, SpecError};
use crate::protocol::ContainerSpec;

/// A device node of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostDevice {
    pub(crate) path: PathBuf,
    /// `c` or `b`.
    pub(crate) kind: char,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Character devices that every container may use: null, zero, full, random, urandom, tty, console,
/// ptmx, and its own ptys.
const USUAL: &[(u32, Option<u32>)] = &[
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// Device nodes beyond the ones libcontainer always makes.
pub(super) fn nodes(spec: &ContainerSpec, host: &Host) -> Result<Vec<Value>, SpecError> {
    let mut nodes = Vec::new();
    if spec.privileged {
        nodes.extend(host.devices.iter().map(|device| node(device, &device.path)));
    }
    for wanted in &spec.devices {
        let device = host
            .devices
            .iter()
            .find(|device| device.path == wanted.host_path)
            .ok_or_else(|| SpecError::Device(wanted.host_path.display().to_string()))?;
        nodes.push(node(device, &wanted.container_path));
    }
    Ok(nodes)
}

fn node(device: &HostDevice, path: &std::path::Path) -> Value {
    json!({
        "path": path, "type": device.kind.to_string(), "major": device.major, "minor": device.minor,
        "fileMode": device.mode & 0o7777, "uid": device.uid, "gid": device.gid,
    })
}

/// Rules of the device cgroup, in order.
pub(super) fn rules(spec: &ContainerSpec, host: &Host) -> Value {
    if spec.privileged {
        return json!([{ "allow": true, "type": "a", "access": "rwm" }]);
    }
    let mut rules = vec![
        json!({ "allow": false, "type": "a", "access": "rwm" }),
        json!({ "allow": true, "type": "c", "access": "m" }),
        json!({ "allow": true, "type": "b", "access": "m" }),
    ];
    for (major, minor) in USUAL {
        let mut rule = json!({ "allow": true, "type": "c", "major": major, "access": "rwm" });
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rules.push(rule);
    }
    for wanted in &spec.devices {
        let found = host.devices.iter().find(|device| device.path == wanted.host_path);
        if let Some(device) = found {
            rules.push(json!({
                "allow": true, "type": device.kind.to_string(), "major": device.major,
                "minor": device.minor, "access": wanted.permissions,
            }));
        }
    }
    json!(rules)
}
