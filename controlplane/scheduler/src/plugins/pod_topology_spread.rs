//! PodTopologySpread: the pod's own constraints, and by default a soft spread of replicas over hosts and zones.
//!
//! The default constraints (as upstream: hostname with skew 3, zone with skew 5, ScheduleAnyway) count the pods
//! of the same controlling owner, which the nodes keep ready, instead of looking up services that select the pod.

use crate::{
    node::NodeInfo,
    plugin::{Check, ClusterEvent, Plugin, Reason, SCORE_MAX},
    plugins::{node_affinity, taint_toleration::tolerates},
    pod::PodInfo,
    selector::matches_labels,
    snapshot::Snapshot,
};
use k8s_openapi::{
    api::core::v1::TopologySpreadConstraint, apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use std::collections::HashMap;

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

#[derive(Debug)]
pub(crate) struct PodTopologySpread;

enum Who<'a> {
    Replicas(&'a str),
    Selected(LabelSelector),
}

struct Constraint<'a> {
    key: &'a str,
    max_skew: i64,
    hard: bool,
    min_domains: Option<i64>,
    who: Who<'a>,
    honor_taints: bool,
    honor_affinity: bool,
    matches_itself: bool,
    /// Matching pods per value of the key.
    counts: HashMap<&'a str, i64>,
    /// ln(number of domains + 2), so that a constraint over few domains does not drown the others.
    weight: f64,
}

struct Prepared<'a> {
    pod: &'a PodInfo,
    constraints: Vec<Constraint<'a>>,
    /// The pod has no constraints of its own: nodes without the keys are fine.
    by_default: bool,
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }
    fn weight(&self) -> i64 {
        2
    }
    fn prepare<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Check + 'a>> {
        let by_default = pod.needs.spread.is_empty();
        let mut constraints: Vec<Constraint<'a>> = if by_default {
            let owner = pod.owner.as_deref()?;
            vec![by_owner(HOSTNAME, 3, owner), by_owner(ZONE, 5, owner)]
        } else {
            pod.needs.spread.iter().map(|c| from_spec(c, pod)).collect()
        };
        for node in snapshot.nodes() {
            for constraint in &mut constraints {
                constraint.count(pod, node);
            }
        }
        for c in &mut constraints {
            c.weight = domains_weight(c.counts.len());
        }
        Some(Box::new(Prepared { pod, constraints, by_default }))
    }
    fn wakes(&self, _: ClusterEvent) -> bool {
        true
    }
}

fn domains_weight(domains: usize) -> f64 {
    f64::from(u32::try_from(domains).unwrap_or(u32::MAX)).mul_add(1.0, 2.0).ln()
}

fn by_owner<'a>(key: &'static str, max_skew: i64, owner: &'a str) -> Constraint<'a> {
    Constraint {
        key,
        max_skew,
        hard: false,
        min_domains: None,
        who: Who::Replicas(owner),
        honor_taints: false,
        honor_affinity: true,
        matches_itself: true,
        counts: HashMap::new(),
        weight: 0.0,
    }
}

fn from_spec<'a>(spec: &'a TopologySpreadConstraint, pod: &'a PodInfo) -> Constraint<'a> {
    let mut selector = spec.label_selector.clone();
    if let Some(selector) = &mut selector {
        for key in spec.match_label_keys.iter().flatten() {
            if let Some(value) = pod.labels.get(key) {
                let equal = selector.match_labels.get_or_insert_default();
                equal.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
    }
    // No selector selects nothing: an impossible requirement expresses that.
    let selector = selector.unwrap_or_else(|| LabelSelector {
        match_labels: Some([(String::new(), String::new())].into()),
        match_expressions: None,
    });
    Constraint {
        key: &spec.topology_key,
        max_skew: i64::from(spec.max_skew),
        hard: spec.when_unsatisfiable == "DoNotSchedule",
        min_domains: spec.min_domains.map(i64::from),
        honor_taints: spec.node_taints_policy.as_deref() == Some("Honor"),
        honor_affinity: spec.node_affinity_policy.as_deref() != Some("Ignore"),
        matches_itself: matches_labels(&selector, &pod.labels),
        who: Who::Selected(selector),
        counts: HashMap::new(),
        weight: 0.0,
    }
}

impl<'a> Constraint<'a> {
    fn count(&mut self, pod: &PodInfo, node: &'a NodeInfo) {
        let Some(domain) = node.labels.get(self.key) else { return };
        if self.honor_affinity && !node_affinity::admits(pod, node) {
            return;
        }
        if self.honor_taints && !tolerated(pod, node) {
            return;
        }
        let here = match &self.who {
            Who::Replicas(owner) => node.replicas.get(*owner).copied().unwrap_or(0),
            Who::Selected(selector) => {
                let mine = |p: &&PodInfo| {
                    p.namespace == pod.namespace
                        && !p.terminating
                        && matches_labels(selector, &p.labels)
                };
                let pods = node.pods.values().map(AsRef::as_ref).filter(mine).count();
                i64::try_from(pods).unwrap_or(i64::MAX)
            }
        };
        *self.counts.entry(domain).or_default() += here;
    }

    fn min(&self) -> i64 {
        let domains = i64::try_from(self.counts.len()).unwrap_or(i64::MAX);
        if self.min_domains.is_some_and(|min| domains < min) {
            return 0;
        }
        self.counts.values().copied().min().unwrap_or(0)
    }
}

fn tolerated(pod: &PodInfo, node: &NodeInfo) -> bool {
    let hard = |e: &str| matches!(e, "NoSchedule" | "NoExecute");
    node.taints.iter().filter(|t| hard(&t.effect)).all(|t| tolerates(&pod.needs.tolerations, t))
}

impl Check for Prepared<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Vec<Reason>> {
        for c in self.constraints.iter().filter(|c| c.hard) {
            let Some(domain) = node.labels.get(c.key) else {
                let why =
                    "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(vec![why.into()]);
            };
            let here = c.counts.get(domain.as_str()).copied().unwrap_or(0);
            if here + i64::from(c.matches_itself) - c.min() > c.max_skew {
                return Err(vec!["node(s) didn't match pod topology spread constraints".into()]);
            }
        }
        Ok(())
    }
    fn scores(&self) -> bool {
        self.constraints.iter().any(|c| !c.hard)
    }
    fn before_score(&mut self, nodes: &[&NodeInfo]) {
        for c in self.constraints.iter_mut().filter(|c| !c.hard) {
            let mut domains: Vec<_> = nodes.iter().filter_map(|n| n.labels.get(c.key)).collect();
            domains.sort_unstable();
            domains.dedup();
            c.weight = domains_weight(domains.len());
        }
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "counts of pods are far below 2^52, as upstream"
    )]
    fn score(&self, node: &NodeInfo) -> i64 {
        let soft = || self.constraints.iter().filter(|c| !c.hard);
        if !self.by_default && soft().any(|c| !node.labels.contains_key(c.key)) {
            return IGNORED;
        }
        let cost = |c: &Constraint<'_>| {
            let here = node.labels.get(c.key).and_then(|d| c.counts.get(d.as_str()));
            here.map_or(0.0, |n| (*n as f64).mul_add(c.weight, (c.max_skew - 1) as f64))
        };
        // Hundredths keep the fractions that upstream rounds away; only the order matters.
        (soft().map(cost).sum::<f64>() * 100.0).round() as i64
    }
    fn normalize(&self, scores: &mut [i64]) {
        let real = || scores.iter().copied().filter(|s| *s != IGNORED);
        let (Some(min), Some(max)) = (real().min(), real().max()) else {
            scores.fill(0);
            return;
        };
        for score in scores {
            *score = match *score {
                IGNORED => 0,
                _ if max == 0 => SCORE_MAX,
                s => SCORE_MAX * (max + min - s) / max,
            };
        }
        tracing::trace!(pod = %self.pod.name, min, max, "spread scores");
    }
}

/// Score of a node that lacks a topology key of the pod's own constraints.
const IGNORED: i64 = -1;
