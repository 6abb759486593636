//! TaintToleration: NoSchedule and NoExecute taints reject, PreferNoSchedule taints cost score.

use crate::{
    node::NodeInfo,
    plugin::{Check, ClusterEvent, Plugin, Reason, normalize_by_max},
    pod::PodInfo,
    snapshot::Snapshot,
};
use k8s_openapi::api::core::v1::{Taint, Toleration};

#[derive(Debug)]
pub(crate) struct TaintToleration;

struct Prepared<'a>(&'a [Toleration]);

/// Whether one of the tolerations tolerates the taint (Kubernetes' `ToleratesTaint`).
pub(crate) fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|t| {
        let effect = t.effect.as_deref().unwrap_or_default();
        let key = t.key.as_deref().unwrap_or_default();
        if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
            return false;
        }
        let mine = t.value.as_deref().unwrap_or_default();
        let theirs = taint.value.as_deref().unwrap_or_default();
        match t.operator.as_deref().unwrap_or_default() {
            "" | "Equal" => !key.is_empty() && mine == theirs,
            "Exists" => true,
            "Gt" => number(theirs).zip(number(mine)).is_some_and(|(t, m)| t > m),
            "Lt" => number(theirs).zip(number(mine)).is_some_and(|(t, m)| t < m),
            _ => false,
        }
    })
}

fn number(text: &str) -> Option<i64> {
    text.parse().ok()
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }
    fn weight(&self) -> i64 {
        3
    }
    fn prepare<'a>(&self, _: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Check + 'a>> {
        Some(Box::new(Prepared(&pod.needs.tolerations)))
    }
    fn wakes(&self, event: ClusterEvent) -> bool {
        matches!(event, ClusterEvent::NodeAdded | ClusterEvent::NodeUpdated)
    }
}

impl Check for Prepared<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Vec<Reason>> {
        let hard = |t: &&Taint| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute");
        if node.taints.iter().filter(hard).any(|t| !tolerates(self.0, t)) {
            return Err(vec!["node(s) had untolerated taint(s)".into()]);
        }
        Ok(())
    }
    fn scores(&self) -> bool {
        true
    }
    fn score(&self, node: &NodeInfo) -> i64 {
        let soft = node.taints.iter().filter(|t| t.effect == "PreferNoSchedule");
        i64::try_from(soft.filter(|t| !tolerates(self.0, t)).count()).unwrap_or(i64::MAX)
    }
    fn normalize(&self, scores: &mut [i64]) {
        normalize_by_max(scores, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_match_as_upstream() {
        let taint = Taint {
            key: "k".into(),
            value: Some("v".into()),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        let t = |key: &str, op: &str, value: &str, effect: &str| Toleration {
            key: Some(key.into()),
            operator: Some(op.into()),
            value: Some(value.into()),
            effect: Some(effect.into()),
            toleration_seconds: None,
        };
        for (toleration, expected) in [
            (t("k", "Equal", "v", "NoSchedule"), true),
            (t("k", "", "v", ""), true),
            (t("k", "Equal", "w", ""), false),
            (t("k", "Exists", "", ""), true),
            (t("", "Exists", "", ""), true),
            (t("", "Exists", "", "NoExecute"), false),
            (t("", "Equal", "v", ""), false),
            (t("k", "Exists", "", "NoExecute"), false),
        ] {
            assert_eq!(
                tolerates(std::slice::from_ref(&toleration), &taint),
                expected,
                "{toleration:?}"
            );
        }
    }
}
