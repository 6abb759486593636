//! The Node object and its status as values. Pure; written by the parent module.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, Node, NodeAddress, NodeCondition, NodeSpec, NodeStatus, NodeSystemInfo, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};

use crate::config::Config;
use crate::node::host::{Headroom, Host, architecture};

/// Kubernetes 1.36, kubelet's default hard eviction thresholds.
pub(crate) const MEMORY_AVAILABLE_MIN_BYTES: u64 = 100 << 20;
const STORAGE_AVAILABLE_MIN: f64 = 0.10;
const INODES_AVAILABLE_MIN: f64 = 0.05;
/// Share of process ids that may be in use.
const PIDS_USED_MAX: f64 = 0.95;
/// Share of the storage that pods may use, as kubelet's allocatable.
const STORAGE_ALLOCATABLE_PERCENT: u64 = 90;

/// The Kubernetes release whose kubelet this agent behaves as, and its own.
pub(crate) const KUBELET_VERSION: &str = concat!("v1.36.0+flotilla-", env!("CARGO_PKG_VERSION"));
pub(crate) const DEVICE_KEY_ANNOTATION: &str = "flotilla.dev/device-key";

#[derive(Debug, thiserror::Error)]
#[error("taint {0:?} is not key[=value]:NoSchedule|PreferNoSchedule|NoExecute")]
pub(crate) struct TaintError(String);

pub(crate) fn parse_taint(text: &str) -> Result<Taint, TaintError> {
    let bad = || TaintError(text.to_owned());
    let (left, effect) = text.rsplit_once(':').ok_or_else(bad)?;
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) || left.is_empty() {
        return Err(bad());
    }
    let (key, value) = left.split_once('=').unwrap_or((left, ""));
    Ok(Taint {
        key: key.to_owned(),
        value: (!value.is_empty()).then(|| value.to_owned()),
        effect: effect.to_owned(),
        time_added: None,
    })
}

pub(crate) fn labels(config: &Config) -> BTreeMap<String, String> {
    let mut labels = config.labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

/// The Node as it is first created.
pub(crate) fn new_node(config: &Config, device_key: &str) -> Result<Node, TaintError> {
    let taints: Vec<Taint> =
        config.taints.iter().map(|text| parse_taint(text)).collect::<Result<_, _>>()?;
    Ok(Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels(config)),
            annotations: Some(BTreeMap::from([(
                DEVICE_KEY_ANNOTATION.to_owned(),
                device_key.to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: (!taints.is_empty()).then_some(taints),
            ..NodeSpec::default()
        }),
        status: None,
    })
}

pub(crate) struct Inputs<'a> {
    pub(crate) config: &'a Config,
    pub(crate) host: &'a Host,
    pub(crate) headroom: Headroom,
    pub(crate) addresses: &'a [IpAddr],
    /// What keeps pods from getting a network.
    pub(crate) network_problem: Option<String>,
    pub(crate) runtime_problem: Option<String>,
    pub(crate) images: Vec<ContainerImage>,
    pub(crate) now: Timestamp,
}

/// Bytes of memory for pods.
pub(crate) fn allocatable_memory(config: &Config, host: &Host) -> u64 {
    host.memory_bytes.saturating_sub(MEMORY_AVAILABLE_MIN_BYTES + config.reserved_memory_bytes)
}

pub(crate) fn status(inputs: &Inputs<'_>, previous: &NodeStatus) -> NodeStatus {
    let Inputs { config, host, .. } = inputs;
    let kib = |bytes: u64| Quantity(format!("{}Ki", bytes / 1024));
    let quantities = |memory: u64, storage: Quantity| {
        let mut all = BTreeMap::from([
            ("cpu".to_owned(), Quantity(host.cpus.to_string())),
            ("memory".to_owned(), kib(memory)),
            ("ephemeral-storage".to_owned(), storage),
            ("pods".to_owned(), Quantity(config.max_pods.to_string())),
        ]);
        for (name, bytes) in &host.hugepages {
            let text = if *bytes == 0 { "0".to_owned() } else { kib(*bytes).0 };
            all.insert(name.clone(), Quantity(text));
        }
        all
    };
    let storage_for_pods = host.storage_bytes / 100 * STORAGE_ALLOCATABLE_PERCENT;
    let mut addresses: Vec<NodeAddress> = inputs
        .addresses
        .iter()
        .map(|ip| NodeAddress { type_: "InternalIP".into(), address: ip.to_string() })
        .collect();
    addresses.push(NodeAddress { type_: "Hostname".into(), address: config.node_name.clone() });
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(quantities(host.memory_bytes, kib(host.storage_bytes))),
        allocatable: Some(quantities(
            allocatable_memory(config, host),
            Quantity(storage_for_pods.to_string()),
        )),
        conditions: Some(conditions(inputs, previous)),
        images: (!inputs.images.is_empty()).then(|| inputs.images.clone()),
        node_info: Some(NodeSystemInfo {
            architecture: architecture().to_owned(),
            boot_id: host.boot_id.clone(),
            container_runtime_version: concat!("flotilla://", env!("CARGO_PKG_VERSION")).to_owned(),
            kernel_version: host.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: KUBELET_VERSION.to_owned(),
            machine_id: host.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: host.os_image.clone(),
            swap: None,
            system_uuid: host.system_uuid.clone(),
        }),
        ..NodeStatus::default()
    }
}

/// What makes the Node's status this one. Merged by their type, as a strategic patch does it, two
/// addresses of one type become one; so they replace what is there (Kubernetes 1.36, `PatchNodeStatus`).
pub(crate) fn patch(uid: &str, wanted: &NodeStatus) -> Value {
    let mut patch = json!({"metadata": {"uid": uid}, "status": wanted});
    if let Some(addresses) = patch["status"]["addresses"].as_array_mut() {
        addresses.push(json!({"$patch": "replace"}));
    }
    patch
}

fn conditions(inputs: &Inputs<'_>, previous: &NodeStatus) -> Vec<NodeCondition> {
    let room = inputs.headroom;
    let memory = room.memory_available_bytes < MEMORY_AVAILABLE_MIN_BYTES;
    let disk = room.storage_available < STORAGE_AVAILABLE_MIN
        || room.inodes_available < INODES_AVAILABLE_MIN;
    #[allow(clippy::cast_precision_loss, reason = "a share of process ids")]
    let pids = room.pids as f64 > room.pids_max as f64 * PIDS_USED_MAX;
    let pressure = |type_,
                    holds: bool,
                    yes: (&'static str, &'static str),
                    no: (&'static str, &'static str)| {
        let (reason, message) = if holds { yes } else { no };
        (type_, holds, reason, message.to_owned())
    };
    let problem = inputs.runtime_problem.clone().or_else(|| {
        inputs.network_problem.as_ref().map(|why| {
            format!(
                "container runtime network not ready: NetworkReady=false \
                 reason:NetworkPluginNotReady message:Network plugin returns error: {why}"
            )
        })
    });
    let ready = match problem {
        None => ("Ready", true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        Some(why) => ("Ready", false, "KubeletNotReady", why),
    };
    let all = [
        pressure(
            "MemoryPressure",
            memory,
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        pressure(
            "DiskPressure",
            disk,
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        pressure(
            "PIDPressure",
            pids,
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
        ready,
    ];
    all.into_iter()
        .map(|(type_, holds, reason, message)| {
            let status = if holds { "True" } else { "False" };
            let old = previous.conditions.iter().flatten().find(|old| old.type_ == type_);
            let old = old.filter(|old| old.status == status);
            // The heartbeat moves only when something else of the condition does.
            let same = old.filter(|old| {
                old.reason.as_deref() == Some(reason) && old.message.as_deref() == Some(&message)
            });
            NodeCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                last_transition_time: old
                    .and_then(|old| old.last_transition_time.clone())
                    .or(Some(Time(inputs.now))),
                last_heartbeat_time: same
                    .and_then(|old| old.last_heartbeat_time.clone())
                    .or(Some(Time(inputs.now))),
                reason: Some(reason.to_owned()),
                message: Some(message),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints() {
        let taint = parse_taint("a/b=c:NoSchedule").unwrap();
        assert_eq!((taint.key.as_str(), taint.value.as_deref()), ("a/b", Some("c")));
        assert!(parse_taint("k:NoExecute").unwrap().value.is_none());
        for bad in ["k", "k=v", ":NoSchedule", "k:Nope"] {
            assert!(parse_taint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_replace_what_is_there() {
        let address = |text: &str| NodeAddress { type_: "InternalIP".into(), address: text.into() };
        let both = vec![address("10.0.0.1"), address("fd00::1")];
        let patch = patch("u", &NodeStatus { addresses: Some(both), ..NodeStatus::default() });
        let expected = json!({"metadata": {"uid": "u"}, "status": {"addresses": [
            {"type": "InternalIP", "address": "10.0.0.1"},
            {"type": "InternalIP", "address": "fd00::1"},
            {"$patch": "replace"},
        ]}});
        assert_eq!(patch, expected);
    }

    #[test]
    fn an_unchanged_host_gives_an_unchanged_status() {
        let config = Config { node_name: "n".into(), ..Config::default() };
        let host =
            Host { cpus: 2, memory_bytes: 1 << 30, storage_bytes: 1 << 34, ..Host::default() };
        let room = Headroom {
            memory_available_bytes: 1 << 29,
            storage_available: 0.5,
            inodes_available: 0.5,
            pids: 10,
            pids_max: 1000,
        };
        let at = |now: &str, headroom: Headroom, network: Option<&str>, previous: &NodeStatus| {
            let inputs = Inputs {
                config: &config,
                host: &host,
                headroom,
                addresses: &[],
                network_problem: network.map(ToOwned::to_owned),
                runtime_problem: None,
                images: Vec::new(),
                now: now.parse().unwrap(),
            };
            status(&inputs, previous)
        };
        let first = at("2026-01-01T00:00:00Z", room, Some("no CIDR"), &NodeStatus::default());
        let ready = |status: &NodeStatus| status.conditions.as_ref().unwrap()[3].clone();
        assert_eq!(ready(&first).status, "False");
        assert!(ready(&first).message.unwrap().ends_with("no CIDR"));
        let second = at("2026-01-01T00:01:00Z", room, None, &first);
        assert_eq!(ready(&second).status, "True");
        let third = at("2026-01-01T00:02:00Z", room, None, &second);
        assert_eq!(third, second);
        let low = Headroom { memory_available_bytes: 1 << 20, ..room };
        let fourth = at("2026-01-01T00:03:00Z", low, None, &third);
        assert_eq!(fourth.conditions.unwrap()[0].status, "True");
    }
}
