//! InterPodAffinity: required terms reject, preferred terms and the preferences of pods already placed add score.
//!
//! Terms are turned into counts per (topology key, value) once per pod, so a node costs a few look-ups.

use crate::{
    node::NodeInfo,
    plugin::{Check, ClusterEvent, Plugin, Reason, SCORE_MAX},
    pod::PodInfo,
    selector::{Labels, matches_labels},
    snapshot::Snapshot,
};
use k8s_openapi::api::core::v1::{PodAffinityTerm, WeightedPodAffinityTerm};
use std::collections::HashMap;

/// Score of a placed pod's required affinity toward the pod (Kubernetes: hardPodAffinityWeight).
const HARD_AFFINITY_WEIGHT: i64 = 1;

#[derive(Debug)]
pub(crate) struct InterPodAffinity;

type Domains<'a> = HashMap<(&'a str, &'a str), i64>;

struct Prepared<'a> {
    affinity: &'a [PodAffinityTerm],
    anti_affinity: &'a [PodAffinityTerm],
    /// Pods matching all required affinity terms, per domain.
    wanted: Domains<'a>,
    /// Pods matching a required anti-affinity term, per domain.
    unwanted: Domains<'a>,
    /// Placed pods whose own anti-affinity matches the pod, per domain.
    unwelcome: Domains<'a>,
    scores: Domains<'a>,
    matches_own_affinity: bool,
}

fn required_affinity(pod: &PodInfo) -> &[PodAffinityTerm] {
    let terms = pod.needs.affinity.as_ref().and_then(|a| a.pod_affinity.as_ref());
    terms
        .and_then(|t| t.required_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default()
}

fn required_anti_affinity(pod: &PodInfo) -> &[PodAffinityTerm] {
    let terms = pod.needs.affinity.as_ref().and_then(|a| a.pod_anti_affinity.as_ref());
    terms
        .and_then(|t| t.required_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default()
}

/// Preferred terms with the sign of their effect.
fn preferred(pod: &PodInfo) -> impl Iterator<Item = (&WeightedPodAffinityTerm, i64)> {
    let affinity = pod.needs.affinity.as_ref();
    let near = affinity
        .and_then(|a| a.pod_affinity.as_ref())
        .and_then(|t| t.preferred_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default();
    let far = affinity
        .and_then(|a| a.pod_anti_affinity.as_ref())
        .and_then(|t| t.preferred_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default();
    near.iter().map(|t| (t, 1)).chain(far.iter().map(|t| (t, -1)))
}

/// Whether `target` is meant by a term of `owner`.
fn selects(
    term: &PodAffinityTerm,
    owner: &PodInfo,
    target: &PodInfo,
    namespaces: &HashMap<String, Labels>,
) -> bool {
    let named = term.namespaces.as_deref().unwrap_or_default();
    let in_namespace = match &term.namespace_selector {
        None if named.is_empty() => target.namespace == owner.namespace,
        selector => {
            named.contains(&target.namespace)
                || selector.as_ref().is_some_and(|s| {
                    namespaces.get(&target.namespace).is_some_and(|l| matches_labels(s, l))
                })
        }
    };
    if !in_namespace
        || !term.label_selector.as_ref().is_some_and(|s| matches_labels(s, &target.labels))
    {
        return false;
    }
    let same =
        |key: &String| owner.labels.get(key).is_none_or(|v| target.labels.get(key) == Some(v));
    let differs =
        |key: &String| owner.labels.get(key).is_none_or(|v| target.labels.get(key) != Some(v));
    term.match_label_keys.iter().flatten().all(same)
        && term.mismatch_label_keys.iter().flatten().all(differs)
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }
    fn weight(&self) -> i64 {
        2
    }
    fn prepare<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Check + 'a>> {
        let mine = pod.needs.affinity.as_ref();
        let has_terms =
            mine.is_some_and(|a| a.pod_affinity.is_some() || a.pod_anti_affinity.is_some());
        if !has_terms && !snapshot.has_affinity_pods() {
            return None;
        }
        let names = &snapshot.namespaces;
        let affinity = required_affinity(pod);
        let mut prepared = Prepared {
            affinity,
            anti_affinity: required_anti_affinity(pod),
            wanted: HashMap::new(),
            unwanted: HashMap::new(),
            unwelcome: HashMap::new(),
            scores: HashMap::new(),
            matches_own_affinity: affinity.iter().all(|t| selects(t, pod, pod, names)),
        };
        for node in snapshot.nodes() {
            for placed in node.pods.values() {
                prepared.count(node, pod, placed, names);
            }
        }
        Some(Box::new(prepared))
    }
    fn wakes(&self, _: ClusterEvent) -> bool {
        true
    }
}

fn bump<'a>(domains: &mut Domains<'a>, node: &'a NodeInfo, key: &'a str, by: i64) {
    if let Some(value) = node.labels.get(key) {
        *domains.entry((key, value)).or_default() += by;
    }
}

impl<'a> Prepared<'a> {
    fn count(
        &mut self,
        node: &'a NodeInfo,
        pod: &'a PodInfo,
        placed: &'a PodInfo,
        names: &HashMap<String, Labels>,
    ) {
        if !self.affinity.is_empty() && self.affinity.iter().all(|t| selects(t, pod, placed, names))
        {
            for term in self.affinity {
                bump(&mut self.wanted, node, &term.topology_key, 1);
            }
        }
        for term in self.anti_affinity.iter().filter(|t| selects(t, pod, placed, names)) {
            bump(&mut self.unwanted, node, &term.topology_key, 1);
        }
        for (term, sign) in preferred(pod) {
            let inner = &term.pod_affinity_term;
            if selects(inner, pod, placed, names) {
                bump(&mut self.scores, node, &inner.topology_key, sign * i64::from(term.weight));
            }
        }
        if placed.needs.affinity.is_none() {
            return;
        }
        for term in required_anti_affinity(placed) {
            if selects(term, placed, pod, names) {
                bump(&mut self.unwelcome, node, &term.topology_key, 1);
            }
        }
        for term in required_affinity(placed) {
            if selects(term, placed, pod, names) {
                bump(&mut self.scores, node, &term.topology_key, HARD_AFFINITY_WEIGHT);
            }
        }
        for (term, sign) in preferred(placed) {
            let inner = &term.pod_affinity_term;
            if selects(inner, placed, pod, names) {
                bump(&mut self.scores, node, &inner.topology_key, sign * i64::from(term.weight));
            }
        }
    }

    fn at(domains: &Domains<'_>, node: &NodeInfo, key: &str) -> i64 {
        let value = node.labels.get(key);
        value.and_then(|v| domains.get(&(key, v.as_str()))).copied().unwrap_or(0)
    }

    fn affinity_holds(&self, node: &NodeInfo) -> bool {
        if !self.affinity.iter().all(|t| node.labels.contains_key(&t.topology_key)) {
            return false;
        }
        // The first pod of a group that wants to be near itself may go anywhere.
        self.affinity.iter().all(|t| Self::at(&self.wanted, node, &t.topology_key) > 0)
            || self.wanted.is_empty() && self.matches_own_affinity
    }
}

impl Check for Prepared<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Vec<Reason>> {
        if !self.affinity.is_empty() && !self.affinity_holds(node) {
            return Err(vec!["node(s) didn't match pod affinity rules".into()]);
        }
        if self.anti_affinity.iter().any(|t| Self::at(&self.unwanted, node, &t.topology_key) > 0) {
            return Err(vec!["node(s) didn't match pod anti-affinity rules".into()]);
        }
        let hostile = |((key, value), n): (&(&str, &str), &i64)| {
            *n > 0 && node.labels.get(*key).is_some_and(|v| v == value)
        };
        if self.unwelcome.iter().any(hostile) {
            return Err(vec!["node(s) didn't satisfy existing pods anti-affinity rules".into()]);
        }
        Ok(())
    }
    fn scores(&self) -> bool {
        !self.scores.is_empty()
    }
    fn score(&self, node: &NodeInfo) -> i64 {
        let here = |((key, value), _): &(&(&str, &str), &i64)| {
            node.labels.get(*key).is_some_and(|v| v == value)
        };
        self.scores.iter().filter(here).map(|(_, n)| *n).sum()
    }
    fn normalize(&self, scores: &mut [i64]) {
        let (min, max) = (scores.iter().copied().min(), scores.iter().copied().max());
        let (min, max) = (min.unwrap_or(0), max.unwrap_or(0));
        for score in scores {
            *score = if max > min { SCORE_MAX * (*score - min) / (max - min) } else { 0 };
        }
    }
}
