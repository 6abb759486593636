//! The row and strategy of Pod. Must not touch the store.

use apimachinery::{object, quantity::Quantity};
use serde_json::{Value, json};

use super::{
    strategy::{Generation, Strategy},
    table::{Resource, VERBS_PROXY, VERBS_READ_WRITE},
};

/// Verbs of exec, attach and port-forward.
const VERBS_STREAM: &[&str] = &["create", "get"];

/// The row of pods.
pub(super) fn row() -> Resource {
    Resource::new("", "v1", "Pod", "pods")
        .short(&["po"])
        .category("all")
        .sub("attach", Some(("", "v1", "PodAttachOptions")), VERBS_STREAM)
        .sub("binding", Some(("", "v1", "Binding")), &["create"])
        .sub("ephemeralcontainers", None, VERBS_READ_WRITE)
        .sub("eviction", Some(("policy", "v1", "Eviction")), &["create"])
        .sub("exec", Some(("", "v1", "PodExecOptions")), VERBS_STREAM)
        .sub("log", None, &["get"])
        .sub("portforward", Some(("", "v1", "PodPortForwardOptions")), VERBS_STREAM)
        .sub("proxy", Some(("", "v1", "PodProxyOptions")), VERBS_PROXY)
        .sub("resize", None, VERBS_READ_WRITE)
        .status()
        .field("spec.nodeName", "")
        .field("spec.restartPolicy", "")
        .field("spec.schedulerName", "")
        .field("spec.serviceAccountName", "")
        .field("spec.hostNetwork", "false")
        .field("status.phase", "")
        .field("status.podIP", "")
        .field_at("status.podIPs", "status.podIP", "")
        .field("status.nominatedNodeName", "")
        .strategy(Strategy {
            generation: Generation::Content,
            empty_status: Some(|| json!({"phase": "Pending"})),
            prepare_create,
            returns_deleted: true,
            grace_seconds: Some(grace_seconds),
            ..Strategy::PLAIN
        })
}

fn prepare_create(object: &mut Value) {
    let class = qos_class(&object["spec"]);
    *object::at_mut(object, &["status", "qosClass"]) = class.into();
    if object["spec"]["nodeName"].as_str() == Some("")
        && let Some(spec) = object["spec"].as_object_mut()
    {
        spec.remove("nodeName");
    }
}

/// Kubernetes 1.36, pod strategy: the spec's grace, none where no node runs it or it has ended.
fn grace_seconds(object: &Value) -> i64 {
    let scheduled = object["spec"]["nodeName"].as_str().is_some_and(|n| !n.is_empty());
    let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !scheduled || ended {
        return 0;
    }
    object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30)
}

/// Guaranteed, Burstable or BestEffort by the cpu and memory of all containers (Kubernetes 1.36, `ComputePodQOS`).
pub(crate) fn qos_class(spec: &Value) -> &'static str {
    let containers = ["initContainers", "containers"]
        .iter()
        .filter_map(|k| spec[*k].as_array())
        .flatten()
        .map(|c| &c["resources"]);
    let mut any = false;
    let mut guaranteed = true;
    for resources in containers {
        for name in ["cpu", "memory"] {
            let limit = &resources["limits"][name];
            let request = &resources["requests"][name];
            any |= is_set(limit) || is_set(request);
            let same = !is_set(request) || same_quantity(limit, request);
            guaranteed &= is_set(limit) && same;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn is_set(quantity: &Value) -> bool {
    match quantity {
        Value::String(s) => !s.is_empty() && s != "0",
        Value::Number(n) => n.as_f64().is_some_and(|n| n > 0.0),
        _ => false,
    }
}

fn same_quantity(a: &Value, b: &Value) -> bool {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    match (text(a).parse::<Quantity>(), text(b).parse::<Quantity>()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn qos_classes() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}});
        let limits = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let some = json!({"requests": {"cpu": "1"}});
        for (containers, want) in [
            (vec![json!({})], "BestEffort"),
            (vec![full.clone()], "Guaranteed"),
            (vec![limits], "Guaranteed"),
            (vec![full.clone(), some.clone()], "Burstable"),
            (vec![full, json!({})], "Burstable"),
            (vec![some], "Burstable"),
        ] {
            let containers: Vec<_> =
                containers.into_iter().map(|r| json!({"resources": r})).collect();
            assert_eq!(super::qos_class(&json!({"containers": containers})), want);
        }
    }
}
