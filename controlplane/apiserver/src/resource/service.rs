//! The row and strategy of Service; addresses and node ports are `allocate`'s. Must not touch the store.

use serde_json::json;

use super::{
    strategy::Strategy,
    table::{Resource, VERBS_PROXY},
};

/// The row of services.
pub(super) fn row() -> Resource {
    Resource::new("", "v1", "Service", "services")
        .short(&["svc"])
        .category("all")
        .prefix("services/specs")
        .sub("proxy", Some(("", "v1", "ServiceProxyOptions")), VERBS_PROXY)
        .status()
        .field("spec.clusterIP", "")
        .field("spec.type", "")
        .strategy(Strategy {
            create_on_update: true,
            returns_deleted: true,
            empty_status: Some(|| json!({"loadBalancer": {}})),
            ..Strategy::PLAIN
        })
}
