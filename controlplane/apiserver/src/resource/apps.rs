//! Rows of the apps group. Must not touch the store.

use serde_json::json;

use super::{
    strategy::{Generation, Strategy},
    table::Resource,
};

fn apps(kind: &str, plural: &str) -> Resource {
    Resource::new("apps", "v1", kind, plural)
}

/// The group's rows, in discovery's order.
pub(super) fn rows() -> Vec<Resource> {
    let plain = Strategy { generation: Generation::Content, ..Strategy::default() };
    vec![
        apps("ControllerRevision", "controllerrevisions"),
        apps("DaemonSet", "daemonsets").short(&["ds"]).category("all").status().strategy(
            Strategy {
                empty_status: Some(|| {
                    json!({"currentNumberScheduled": 0, "numberMisscheduled": 0,
                       "desiredNumberScheduled": 0, "numberReady": 0})
                }),
                ..plain
            },
        ),
        apps("Deployment", "deployments")
            .short(&["deploy"])
            .category("all")
            .scale()
            .status()
            .strategy(Strategy {
                generation: Generation::ContentAndAnnotations,
                empty_status: Some(|| json!({})),
                ..plain
            }),
        apps("ReplicaSet", "replicasets")
            .short(&["rs"])
            .category("all")
            .scale()
            .status()
            .field("status.replicas", "0")
            .strategy(Strategy { empty_status: Some(|| json!({"replicas": 0})), ..plain }),
        apps("StatefulSet", "statefulsets")
            .short(&["sts"])
            .category("all")
            .scale()
            .status()
            .strategy(Strategy {
                empty_status: Some(|| json!({"replicas": 0, "availableReplicas": 0})),
                ..plain
            }),
    ]
}
