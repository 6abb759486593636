//! Health, conditions and taints of a node, and whether a pod must leave it. Pure.

use crate::{
    kinds::{Condition, Node, Pod, condition},
    runtime::object::Kind,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Taint, Toleration},
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::{Value, json};
use std::time::Duration;

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    Ready,
    /// It says so itself.
    NotReady,
    /// It is not heard.
    Unknown,
}

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that become NoSchedule taints while True.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
/// Conditions that a lost node no longer vouches for.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// RFC 3339 in whole seconds, as times in conditions are.
pub(super) fn stamp(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// What the node's own Ready condition says.
pub(super) fn health(node: &Node) -> Health {
    match condition(&node.status.conditions, "Ready").map(|c| c.status.as_str()) {
        Some("True") => Health::Ready,
        Some("Unknown") => Health::Unknown,
        _ => Health::NotReady,
    }
}

/// The conditions of a node that is not heard; `None` when they are so already.
pub(super) fn unknown_conditions(current: &[Condition], now: Timestamp) -> Option<Vec<Value>> {
    let changed: Vec<Value> = REPORTED
        .iter()
        .filter_map(|kind| match condition(current, kind) {
            None => Some(json!({
                "type": kind, "status": "Unknown", "reason": "NodeStatusNeverUpdated",
                "message": "Kubelet never posted node status.",
                "lastHeartbeatTime": stamp(now), "lastTransitionTime": stamp(now),
            })),
            Some(c) if c.status != "Unknown" => Some(json!({
                "type": kind, "status": "Unknown", "reason": "NodeStatusUnknown",
                "message": "Kubelet stopped posting node status.", "lastTransitionTime": stamp(now),
            })),
            Some(_) => None,
        })
        .collect();
    (!changed.is_empty()).then_some(changed)
}

/// The node's taints with ours as they must be; `None` when they are. Foreign taints stay.
pub(super) fn taints(
    node: &Node,
    health: Health,
    island: bool,
    now: Timestamp,
) -> Option<Vec<Taint>> {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let down = match health {
        Health::Ready => None,
        Health::NotReady => Some(NOT_READY),
        Health::Unknown => Some(UNREACHABLE),
    };
    if let Some(key) = down {
        wanted.push((key, "NoSchedule"));
        // An island must not start evictions; a node that itself says NotReady is heard.
        if !(island && health == Health::Unknown) {
            wanted.push((key, "NoExecute"));
        }
    }
    for (kind, key) in PRESSURES {
        if condition(&node.status.conditions, kind).is_some_and(|c| c.status == "True") {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.unschedulable {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let is_ours = |t: &Taint| {
        [NOT_READY, UNREACHABLE].contains(&t.key.as_str())
            || t.effect == "NoSchedule"
                && (t.key == UNSCHEDULABLE || PRESSURES.iter().any(|(_, k)| *k == t.key))
    };
    let is_wanted =
        |t: &Taint| wanted.iter().any(|(key, effect)| t.key == *key && t.effect == *effect);
    let current = &node.spec.taints;
    let mut next: Vec<Taint> =
        current.iter().filter(|t| !is_ours(t) || is_wanted(t)).cloned().collect();
    for (key, effect) in &wanted {
        if !next.iter().any(|t| t.key == *key && t.effect == *effect) {
            next.push(Taint {
                key: (*key).into(),
                effect: (*effect).into(),
                time_added: Some(Time(now)),
                ..Taint::default()
            });
        }
    }
    (next != *current).then_some(next)
}

fn tolerates(t: &Toleration, taint: &Taint) -> bool {
    let effect = t.effect.as_deref().unwrap_or_default();
    let key = t.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match t.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => {
            !key.is_empty()
                && t.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

/// Whether a pod may no longer stay: a taint is not tolerated, or no longer. `since` tells how long a taint is known.
pub(super) fn must_go(pod: &Pod, taints: &[Taint], since: &dyn Fn(&str) -> Duration) -> bool {
    // A mirror pod stands for a file on the node; deleting it changes nothing there.
    if pod.annotations().contains_key("kubernetes.io/config.mirror") {
        return false;
    }
    taints.iter().any(|taint| {
        let mut matching = pod.spec.tolerations.iter().filter(|t| tolerates(t, taint)).peekable();
        if matching.peek().is_none() {
            return true;
        }
        let limits = matching.filter_map(|t| t.toleration_seconds);
        let limit = limits.min().map(|s| Duration::from_secs(u64::try_from(s).unwrap_or(0)));
        limit.is_some_and(|limit| since(&taint.key) >= limit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, taints: Value, extra: Value) -> Node {
        let mut n = json!({
            "metadata": {"name": "n"}, "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        });
        n["spec"]["unschedulable"] = extra;
        serde_json::from_value(n).unwrap()
    }

    fn show(taints: Option<Vec<Taint>>) -> String {
        let Some(taints) = taints else { return "same".into() };
        let one = |t: &Taint| {
            let key = t.key.trim_start_matches("node.kubernetes.io/");
            format!("{key}:{}", t.effect)
        };
        taints.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn taints_follow_health() {
        let now = Timestamp::from_second(1).unwrap();
        let mine = || json!([{"key": "mine", "effect": "NoExecute"}]);
        let both = || json!([{"key": NOT_READY, "effect": "NoSchedule"}, {"key": NOT_READY, "effect": "NoExecute"}]);
        for (taints_now, cordoned, health, island, expected) in [
            (json!([]), false, Health::Ready, false, "same"),
            (mine(), false, Health::Ready, false, "same"),
            (
                mine(),
                false,
                Health::NotReady,
                false,
                "mine:NoExecute not-ready:NoSchedule not-ready:NoExecute",
            ),
            (both(), false, Health::Ready, false, ""),
            (both(), false, Health::NotReady, false, "same"),
            (both(), false, Health::Unknown, false, "unreachable:NoSchedule unreachable:NoExecute"),
            (both(), false, Health::Unknown, true, "unreachable:NoSchedule"),
            (json!([]), true, Health::Ready, false, "unschedulable:NoSchedule"),
        ] {
            let n = node("True", taints_now, json!(cordoned));
            assert_eq!(show(taints(&n, health, island, now)), expected);
        }
    }

    #[test]
    fn pods_leave_when_their_toleration_ends() {
        let taint =
            Taint { key: UNREACHABLE.into(), effect: "NoExecute".into(), ..Taint::default() };
        for (tolerations, known_for, expected) in [
            (json!([]), 0, true),
            (
                json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute"}]),
                9999,
                false,
            ),
            (
                json!([{"key": UNREACHABLE, "operator": "Exists", "tolerationSeconds": 300}]),
                299,
                false,
            ),
            (
                json!([{"key": UNREACHABLE, "operator": "Exists", "tolerationSeconds": 300}]),
                300,
                true,
            ),
            (json!([{"key": NOT_READY, "operator": "Exists"}]), 0, true),
        ] {
            let pod: Pod = serde_json::from_value(
                json!({"metadata": {"name": "p"}, "spec": {"tolerations": tolerations}}),
            )
            .unwrap();
            let since = |_: &str| Duration::from_secs(known_for);
            assert_eq!(
                must_go(&pod, std::slice::from_ref(&taint), &since),
                expected,
                "{known_for}"
            );
        }
    }
}
