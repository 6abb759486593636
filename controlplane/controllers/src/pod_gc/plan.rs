//! Which pods are garbage. Pure.

use crate::{kinds::Pod, runtime::object::Kind};
use std::{collections::BTreeSet, sync::Arc};

/// Why a pod goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    NodeGone,
    NeverScheduled,
    TooManyFinished,
}

/// Nodes that pods are bound to and nobody knows.
pub(super) fn absent_nodes(pods: &[Arc<Pod>], known: &dyn Fn(&str) -> bool) -> Vec<String> {
    let nodes: BTreeSet<&str> = pods.iter().map(|p| p.node()).filter(|n| !n.is_empty()).collect();
    nodes.into_iter().filter(|n| !known(n)).map(str::to_owned).collect()
}

/// Pods to be deleted at once.
pub(super) fn doomed(
    pods: &[Arc<Pod>],
    gone: &[String],
    finished_max: usize,
) -> Vec<(Arc<Pod>, Reason)> {
    let mut doomed: Vec<(Arc<Pod>, Reason)> = Vec::new();
    let mut finished = Vec::new();
    for pod in pods {
        if gone.iter().any(|g| g == pod.node()) {
            doomed.push((Arc::clone(pod), Reason::NodeGone));
        } else if pod.is_deleting() && pod.node().is_empty() {
            doomed.push((Arc::clone(pod), Reason::NeverScheduled));
        } else if pod.is_finished() && !pod.is_deleting() {
            finished.push(Arc::clone(pod));
        }
    }
    let surplus = finished.len().saturating_sub(finished_max);
    finished.sort_by_key(|p| p.metadata.creation_timestamp.as_ref().map(|t| t.0));
    doomed.extend(finished.into_iter().take(surplus).map(|p| (p, Reason::TooManyFinished)));
    doomed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn garbage() {
        let pod = |name: &str, node: &str, phase: &str, deleting: bool| {
            let mut p = json!({
                "metadata": {"name": name, "creationTimestamp": format!("2020-01-01T00:00:0{}Z", name.len())},
                "spec": {"nodeName": node}, "status": {"phase": phase},
            });
            if deleting {
                p["metadata"]["deletionTimestamp"] = json!("2020-01-01T00:00:00Z");
            }
            Arc::new(serde_json::from_value::<Pod>(p).unwrap())
        };
        let pods = [
            pod("a", "here", "Running", false),
            pod("bb", "gone", "Running", false),
            pod("ccc", "", "Pending", true),
            pod("dddd", "", "Pending", false),
            pod("eeeee", "here", "Succeeded", false),
            pod("ffffff", "here", "Failed", false),
            pod("ggggggg", "here", "Running", true),
        ];
        assert_eq!(absent_nodes(&pods, &|n| n == "here"), ["gone"]);
        let found: Vec<String> = doomed(&pods, &["gone".into()], 1)
            .iter()
            .map(|(p, r)| format!("{}:{r:?}", p.name()))
            .collect();
        assert_eq!(found.join(" "), "bb:NodeGone ccc:NeverScheduled eeeee:TooManyFinished");
    }
}
