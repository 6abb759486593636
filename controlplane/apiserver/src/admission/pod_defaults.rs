//! DefaultTolerationSeconds and TaintNodesByCondition: small defaults that admission gives to pods and nodes.
//!
//! Pure.

use super::{AdmissionRequest, Operation};
use serde_json::{Value, json};

/// Seconds that a pod stays on a node which is not ready or not reachable (upstream's default).
const TOLERATION_SECONDS: i64 = 300;
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Gives a pod the tolerations by which it leaves a lost node after a while, unless it has its own.
pub(super) fn default_tolerations(request: &AdmissionRequest<'_>, pod: &mut Value) {
    if !request.writes() || !request.is("", "pods") {
        return;
    }
    let tolerates = |key: &str| {
        pod["spec"]["tolerations"].as_array().into_iter().flatten().any(|toleration| {
            let text = |name: &str| toleration[name].as_str().unwrap_or_default();
            (text("key") == key || text("key").is_empty())
                && matches!(text("effect"), "NoExecute" | "")
        })
    };
    let missing: Vec<&str> =
        [NOT_READY, UNREACHABLE].into_iter().filter(|key| !tolerates(key)).collect();
    if missing.is_empty() {
        return;
    }
    if !pod["spec"]["tolerations"].is_array() {
        pod["spec"]["tolerations"] = json!([]);
    }
    let Some(tolerations) = pod["spec"]["tolerations"].as_array_mut() else { return };
    tolerations.extend(missing.into_iter().map(|key| {
        json!({
            "key": key, "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": TOLERATION_SECONDS,
        })
    }));
}

/// A new node takes no pods until the node lifecycle controller has seen it ready.
pub(super) fn taint_new_node(request: &AdmissionRequest<'_>, node: &mut Value) {
    if request.operation != Operation::Create || !request.is("", "nodes") {
        return;
    }
    let taint = json!({"key": NOT_READY, "effect": "NoSchedule"});
    match node["spec"]["taints"].as_array_mut() {
        Some(taints) => {
            let same =
                |have: &Value| have["key"] == taint["key"] && have["effect"] == taint["effect"];
            if !taints.iter().any(same) {
                taints.push(taint);
            }
        }
        None => node["spec"]["taints"] = json!([taint]),
    }
}
