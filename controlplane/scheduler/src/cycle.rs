//! One scheduling decision: filter, score, choose. Pure, so it can be called, logged and tested on its own.

use crate::{
    node::NodeInfo,
    plugin::{Check, Plugin, Reason},
    plugins,
    pod::PodInfo,
    snapshot::Snapshot,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

/// Where a pod goes, or why nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The best node.
    Place(Arc<str>),
    /// No node is feasible.
    Unschedulable(Diagnosis),
}

/// Why no node is feasible.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnosis {
    /// Nodes looked at.
    pub nodes: usize,
    /// How many nodes gave each reason.
    pub reasons: BTreeMap<Reason, usize>,
    /// Plugins that rejected a node; empty when there was no node at all.
    pub plugins: BTreeSet<&'static str>,
}

impl Diagnosis {
    /// Upstream's text of the FailedScheduling event and the PodScheduled condition.
    #[must_use]
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".into();
        }
        let mut reasons: Vec<String> =
            self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        reasons.sort_unstable();
        format!("0/{} nodes are available: {}.", self.nodes, reasons.join(", "))
    }
}

struct Prepared<'a> {
    plugin: &'static dyn Plugin,
    check: Box<dyn Check + 'a>,
}

/// Decides where `pod` goes. Equal inputs give equal decisions; ties are broken by the pod's UID.
#[must_use]
pub fn plan_placement(snapshot: &Snapshot, pod: &PodInfo) -> Decision {
    let mut prepared: Vec<Prepared<'_>> = plugins::DEFAULT
        .iter()
        .filter_map(|p| Some(Prepared { plugin: *p, check: p.prepare(snapshot, pod)? }))
        .collect();
    let mut diagnosis = Diagnosis::default();
    let mut feasible: Vec<&NodeInfo> = Vec::new();
    for node in snapshot.nodes() {
        diagnosis.nodes += 1;
        match first_rejection(&prepared, node) {
            None => feasible.push(node),
            Some((plugin, reasons)) => {
                diagnosis.plugins.insert(plugin);
                for reason in reasons {
                    *diagnosis.reasons.entry(reason).or_default() += 1;
                }
            }
        }
    }
    match feasible.as_slice() {
        [] => Decision::Unschedulable(diagnosis),
        [only] => Decision::Place(Arc::clone(&only.name)),
        several => best(&mut prepared, several, pod),
    }
}

fn first_rejection(
    prepared: &[Prepared<'_>],
    node: &NodeInfo,
) -> Option<(&'static str, Vec<Reason>)> {
    prepared.iter().find_map(|p| Some((p.plugin.name(), p.check.filter(node).err()?)))
}

fn best(prepared: &mut [Prepared<'_>], feasible: &[&NodeInfo], pod: &PodInfo) -> Decision {
    let mut totals = vec![0i64; feasible.len()];
    for p in prepared.iter_mut().filter(|p| p.check.scores()) {
        p.check.before_score(feasible);
        let mut scores: Vec<i64> = feasible.iter().map(|n| p.check.score(n)).collect();
        p.check.normalize(&mut scores);
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += p.plugin.weight() * score;
        }
    }
    let top = totals.iter().copied().max().unwrap_or(0);
    let mut tied: Vec<&NodeInfo> =
        feasible.iter().zip(&totals).filter(|(_, t)| **t == top).map(|(n, _)| *n).collect();
    tied.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let mut hasher = DefaultHasher::new();
    pod.uid.hash(&mut hasher);
    let pick = usize::try_from(hasher.finish() % (tied.len().max(1) as u64)).unwrap_or(0);
    Decision::Place(Arc::clone(&tied[pick].name))
}

#[cfg(test)]
#[path = "cycle_tests.rs"]
mod tests;
