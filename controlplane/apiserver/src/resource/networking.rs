//! Rows of networking.k8s.io and discovery.k8s.io. Must not touch the store.

use serde_json::json;

use super::{
    strategy::{Generation, Strategy},
    table::Resource,
};

fn networking(kind: &str, plural: &str) -> Resource {
    Resource::new("networking.k8s.io", "v1", kind, plural)
}

/// networking.k8s.io, in discovery's order.
pub(super) fn rows() -> Vec<Resource> {
    let counted = Strategy { generation: Generation::Content, ..Strategy::PLAIN };
    vec![
        networking("IngressClass", "ingressclasses").cluster().strategy(counted),
        networking("Ingress", "ingresses")
            .prefix("ingress")
            .short(&["ing"])
            .status()
            .strategy(Strategy { empty_status: Some(|| json!({"loadBalancer": {}})), ..counted }),
        networking("IPAddress", "ipaddresses").cluster().short(&["ip"]),
        networking("NetworkPolicy", "networkpolicies").short(&["netpol"]).strategy(counted),
        networking("ServiceCIDR", "servicecidrs")
            .cluster()
            .status()
            .strategy(Strategy { empty_status: Some(|| json!({})), ..Strategy::PLAIN }),
    ]
}

/// discovery.k8s.io. An EndpointSlice's generation counts its changes of content.
pub(super) fn discovery() -> Vec<Resource> {
    vec![
        Resource::new("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
            .strategy(Strategy { generation: Generation::Content, ..Strategy::PLAIN }),
    ]
}
