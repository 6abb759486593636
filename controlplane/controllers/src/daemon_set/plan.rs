//! Which nodes a DaemonSet's pods belong to, what to create and delete, and the status. Pure.

use super::{FAILED_GRACE, body};
use crate::{
    history::HASH,
    kinds::{DaemonSet, DaemonSetStatus, Node, Pod},
    runtime::{object::Kind, template},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Affinity, NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// Taints that a daemon pod stands (effect, key), as upstream adds them.
const TOLERATED: [(&str, &str); 6] = [
    ("NoExecute", "node.kubernetes.io/not-ready"),
    ("NoExecute", "node.kubernetes.io/unreachable"),
    ("NoSchedule", "node.kubernetes.io/disk-pressure"),
    ("NoSchedule", "node.kubernetes.io/memory-pressure"),
    ("NoSchedule", "node.kubernetes.io/pid-pressure"),
    ("NoSchedule", "node.kubernetes.io/unschedulable"),
];
const NETWORK_UNAVAILABLE: (&str, &str) = ("NoSchedule", "node.kubernetes.io/network-unavailable");

/// What of a template decides where its pods may be.
pub(super) struct Fit {
    selector: BTreeMap<String, String>,
    terms: Option<Vec<NodeSelectorTerm>>,
    tolerations: Vec<Toleration>,
}

fn tolerations(template: &Value) -> Vec<Toleration> {
    let own = &template["spec"]["tolerations"];
    let mut all: Vec<Toleration> = serde_json::from_value(own.clone()).unwrap_or_default();
    let host = template["spec"]["hostNetwork"] == true;
    let added = TOLERATED.iter().chain(host.then_some(&NETWORK_UNAVAILABLE));
    all.extend(added.map(|(effect, key)| Toleration {
        effect: Some((*effect).into()),
        key: Some((*key).into()),
        operator: Some("Exists".into()),
        ..Toleration::default()
    }));
    all
}

impl Fit {
    pub(super) fn read(template: &Value) -> Self {
        let spec = &template["spec"];
        let affinity: Option<Affinity> =
            serde_json::from_value(spec["affinity"].clone()).unwrap_or_default();
        let required = affinity
            .and_then(|a| a.node_affinity)
            .and_then(|n| n.required_during_scheduling_ignored_during_execution);
        Self {
            selector: serde_json::from_value(spec["nodeSelector"].clone()).unwrap_or_default(),
            terms: required.map(|r| r.node_selector_terms),
            tolerations: tolerations(template),
        }
    }

    fn matches(&self, node: &Node) -> bool {
        self.selector.iter().all(|(k, v)| node.labels().get(k) == Some(v))
            && self.terms.as_ref().is_none_or(|terms| terms.iter().any(|t| term(t, node)))
    }

    fn stands(&self, taint: &Taint) -> bool {
        self.tolerations.iter().any(|t| {
            let effect = t.effect.as_deref().unwrap_or_default();
            let key = t.key.as_deref().unwrap_or_default();
            let value = t.value.as_deref().unwrap_or_default();
            (effect.is_empty() || effect == taint.effect)
                && (key.is_empty() || key == taint.key)
                && match t.operator.as_deref().unwrap_or_default() {
                    "Exists" => true,
                    "" | "Equal" => {
                        !key.is_empty() && value == taint.value.as_deref().unwrap_or_default()
                    }
                    _ => false,
                }
        })
    }

    /// Whether a pod belongs on the node.
    fn should_run(&self, node: &Node) -> bool {
        let hard = |t: &&Taint| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute");
        self.matches(node) && node.spec.taints.iter().filter(hard).all(|t| self.stands(t))
    }

    /// Whether a pod that is there may stay.
    fn may_stay(&self, node: &Node) -> bool {
        let mut fatal = node.spec.taints.iter().filter(|t| t.effect == "NoExecute");
        self.matches(node) && fatal.all(|t| self.stands(t))
    }
}

fn term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let name = node.name().to_owned();
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|r| requirement(r, node.labels().get(&r.key)))
        && fields.iter().all(|r| requirement(r, (r.key == "metadata.name").then_some(&name)))
}

fn requirement(r: &NodeSelectorRequirement, value: Option<&String>) -> bool {
    let listed = || value.is_some_and(|v| r.values.iter().flatten().any(|w| w == v));
    let numbers = || {
        let wanted = r.values.iter().flatten().next()?.parse::<i64>().ok()?;
        Some((value?.parse::<i64>().ok()?, wanted))
    };
    match r.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(v, w)| v > w),
        "Lt" => numbers().is_some_and(|(v, w)| v < w),
        _ => false,
    }
}

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Acts {
    /// Nodes that lack their pod.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Failed pods, deleted so that new ones are made.
    pub(super) failed: Vec<Arc<Pod>>,
    /// Some pod failed just now and is left for a while.
    pub(super) wait_for_failed: bool,
}

fn by_node(pods: &[Arc<Pod>]) -> BTreeMap<&str, Vec<&Arc<Pod>>> {
    let mut map: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in pods {
        map.entry(pod.target_node()).or_default().push(pod);
    }
    // The oldest first: it is the one that stays.
    for pods in map.values_mut() {
        pods.sort_by_key(|p| p.metadata.creation_timestamp.as_ref().map(|t| t.0));
    }
    map
}

/// Creations and deletions; `hash` names the current template.
pub(super) fn acts(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    (fit, hash): (&Fit, &str),
    (pods, now): (&[Arc<Pod>], Timestamp),
) -> Acts {
    let mut acts = Acts::default();
    let mut map = by_node(pods);
    for node in nodes {
        let here = map.remove(node.name()).unwrap_or_default();
        if !fit.may_stay(node) {
            acts.delete.extend(here.into_iter().filter(|p| !p.is_deleting()).cloned());
            continue;
        }
        let mut living = Vec::new();
        for pod in &here {
            if pod.is_deleting() {
                continue;
            }
            if !pod.is_finished() {
                living.push(*pod);
            } else if recent(pod, now) {
                acts.wait_for_failed = true;
            } else {
                acts.failed.push(Arc::clone(pod));
            }
        }
        // A pod that still ends holds its ports and volumes; the new one comes after it.
        if here.is_empty() && fit.should_run(node) {
            acts.create.push(node.name().to_owned());
        }
        acts.delete.extend(living.into_iter().skip(1).cloned());
    }
    // Pods meant for nodes that are gone.
    let stranded = map.into_values().flatten().filter(|p| p.node().is_empty() && !p.is_deleting());
    acts.delete.extend(stranded.cloned());
    if acts.create.is_empty() && acts.delete.is_empty() && acts.failed.is_empty() {
        acts.delete = outdated(set, nodes, (fit, hash), (pods, now));
    }
    acts
}

fn recent(pod: &Pod, now: Timestamp) -> bool {
    let born = pod.metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second());
    now.as_second() - born < i64::try_from(FAILED_GRACE.as_secs()).unwrap_or(0)
}

fn is_current(pod: &Pod, hash: &str) -> bool {
    pod.labels().get(HASH).is_some_and(|h| h == hash)
}

fn is_available(set: &DaemonSet, pod: &Pod, now: Timestamp) -> bool {
    pod.is_ready() && template::until_available(pod, set.spec.min_ready_seconds, now).is_none()
}

/// Pods of older templates that a rolling update may delete now.
fn outdated(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    (fit, hash): (&Fit, &str),
    (pods, now): (&[Arc<Pod>], Timestamp),
) -> Vec<Arc<Pod>> {
    if set.spec.update_strategy.kind.as_deref() == Some("OnDelete") {
        return Vec::new();
    }
    let wanted: Vec<_> = nodes.iter().filter(|n| fit.should_run(n)).collect();
    let rolling = set.spec.update_strategy.rolling_update.as_ref();
    let limit = match rolling.and_then(|r| r.max_unavailable.as_ref()) {
        None => 1,
        Some(IntOrString::Int(n)) => usize::try_from(*n).unwrap_or(0),
        Some(IntOrString::String(text)) => {
            let percent: usize = text.trim_end_matches('%').parse().unwrap_or(0);
            (wanted.len() * percent).div_ceil(100)
        }
    }
    .max(1);
    let map = by_node(pods);
    let mut unavailable = 0;
    let mut broken = Vec::new();
    let mut candidates = Vec::new();
    for node in wanted {
        let pod = map.get(node.name()).and_then(|p| p.iter().find(|p| !p.is_deleting()));
        let Some(pod) = pod else {
            unavailable += 1;
            continue;
        };
        match (is_current(pod, hash), is_available(set, pod, now)) {
            (true, true) => {}
            (true, false) => unavailable += 1,
            (false, true) => candidates.push(Arc::clone(pod)),
            (false, false) => {
                unavailable += 1;
                broken.push(Arc::clone(pod));
            }
        }
    }
    let room = limit.saturating_sub(unavailable);
    broken.extend(candidates.into_iter().take(room));
    broken
}

/// The pod for a node: bound to it by its name through the scheduler.
pub(super) fn pod(set: &DaemonSet, node: &str, hash: &str) -> Value {
    let mut pod = body(set);
    pod["metadata"]["labels"][HASH] = json!(hash);
    pod["spec"]["tolerations"] = json!(tolerations(&set.spec.template));
    let required = json!({"nodeSelectorTerms": [{"matchFields": [
        {"key": "metadata.name", "operator": "In", "values": [node]}
    ]}]});
    for field in ["affinity", "nodeAffinity"] {
        let slot =
            if field == "affinity" { &mut pod["spec"] } else { &mut pod["spec"]["affinity"] };
        if slot[field].is_null() {
            slot[field] = json!({});
        }
    }
    pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
        required;
    pod
}

/// The status that nodes and pods make.
pub(super) fn status(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    (fit, hash): (&Fit, &str),
    (pods, now): (&[Arc<Pod>], Timestamp),
) -> DaemonSetStatus {
    let map = by_node(pods);
    let mut s =
        DaemonSetStatus { observed_generation: set.generation(), ..DaemonSetStatus::default() };
    for node in nodes {
        let pod = map.get(node.name()).and_then(|p| p.first());
        if !fit.should_run(node) {
            s.number_misscheduled += i32::from(pod.is_some());
            continue;
        }
        s.desired_number_scheduled += 1;
        let Some(pod) = pod else { continue };
        s.current_number_scheduled += 1;
        s.number_ready += i32::from(pod.is_ready());
        s.number_available += i32::from(is_available(set, pod, now));
        s.updated_number_scheduled += i32::from(is_current(pod, hash));
    }
    s.number_unavailable = s.desired_number_scheduled - s.number_available;
    s
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(text: &str) -> Vec<Arc<Node>> {
        let one = |line: &str| {
            let (name, taint) = line.split_once('/').unwrap_or((line, ""));
            let taints = match taint {
                "" => json!([]),
                "cordoned" => {
                    json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}])
                }
                effect => json!([{"key": "mine", "effect": effect}]),
            };
            Arc::new(
                serde_json::from_value(
                    json!({"metadata": {"name": name}, "spec": {"taints": taints}}),
                )
                .unwrap(),
            )
        };
        text.split_whitespace().map(one).collect()
    }

    /// `node/hash/state`: r(eady), n(ot), d(eleting), f(ailed).
    fn pods(text: &str) -> Vec<Arc<Pod>> {
        let one = |(i, line): (usize, &str)| {
            let f: Vec<&str> = line.split('/').collect();
            let mut p = json!({
                "metadata": {"name": line, "labels": {HASH: f[1]}, "creationTimestamp": format!("2020-01-01T00:00:{i:02}Z")},
                "spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                    {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [f[0]]}]}]}}}},
                "status": {"phase": if f[2] == "f" { "Failed" } else { "Running" },
                    "conditions": [{"type": "Ready", "status": if f[2] == "r" { "True" } else { "False" }}]},
            });
            if f[2] == "d" {
                p["metadata"]["deletionTimestamp"] = json!("2020-01-01T00:00:00Z");
            }
            Arc::new(serde_json::from_value(p).unwrap())
        };
        text.split_whitespace().enumerate().map(one).collect()
    }

    #[test]
    fn pods_go_where_they_belong() {
        let set: DaemonSet = serde_json::from_value(json!({
            "metadata": {"name": "ds"}, "spec": {"selector": {}, "template": {"spec": {}}},
        }))
        .unwrap();
        let fit = Fit::read(&set.spec.template);
        let now = Timestamp::now();
        for (on, have, expected) in [
            ("a b", "", "+a +b"),
            ("a b/cordoned", "a/x/r", "+b"),
            ("a b/NoSchedule", "a/x/r b/x/r", ""),
            ("a b/NoExecute", "a/x/r b/x/r", "-b/x/r"),
            ("a", "a/x/d", ""),
            ("a", "a/x/f", "!a/x/f"),
            ("a", "a/x/r a/y/r", "-a/y/r"),
            ("a", "a/x/r gone/x/n", "-gone/x/n"),
            ("a b c", "a/old/r b/old/r c/x/r", "-a/old/r"),
            ("a b c", "a/old/r b/old/n c/x/r", "-b/old/n"),
            ("a b c", "a/old/r b/x/n c/x/r", ""),
        ] {
            let acts = acts(&set, &nodes(on), (&fit, "x"), (&pods(have), now));
            let mut all: Vec<String> = acts.create.iter().map(|n| format!("+{n}")).collect();
            all.extend(acts.delete.iter().map(|p| format!("-{}", p.name())));
            all.extend(acts.failed.iter().map(|p| format!("!{}", p.name())));
            assert_eq!(all.join(" "), expected, "{on}: {have}");
        }
    }

    #[test]
    fn a_pod_keeps_its_other_affinities() {
        let set: DaemonSet = serde_json::from_value(json!({
            "metadata": {"name": "ds"},
            "spec": {"selector": {}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"affinity": {"podAffinity": {}}}}},
        }))
        .unwrap();
        let made = pod(&set, "n1", "h");
        assert_eq!(made["metadata"]["labels"], json!({"a": "b", HASH: "h"}));
        assert_eq!(made["spec"]["affinity"]["podAffinity"], json!({}));
        let read: Pod = serde_json::from_value(made).unwrap();
        assert_eq!(read.target_node(), "n1");
    }
}
