//! Rows of the groups that extend the node and the cluster: RBAC, storage, scheduling, coordination, node.
//! Must not touch the store.

use serde_json::json;

use super::{
    strategy::{Generation, Strategy},
    table::Resource,
};

/// rbac.authorization.k8s.io.
pub(super) fn rbac() -> Vec<Resource> {
    let strategy = Strategy { create_on_update: true, ..Strategy::PLAIN };
    let row = |kind, plural| {
        Resource::new("rbac.authorization.k8s.io", "v1", kind, plural).strategy(strategy)
    };
    vec![
        row("ClusterRoleBinding", "clusterrolebindings").cluster(),
        row("ClusterRole", "clusterroles").cluster(),
        row("RoleBinding", "rolebindings"),
        row("Role", "roles"),
    ]
}

/// storage.k8s.io.
pub(super) fn storage() -> Vec<Resource> {
    let row = |kind, plural| Resource::new("storage.k8s.io", "v1", kind, plural);
    let careful =
        Strategy { unconditional_update: false, returns_deleted: true, ..Strategy::PLAIN };
    let plain = Strategy { returns_deleted: true, ..Strategy::PLAIN };
    vec![
        row("CSIDriver", "csidrivers").cluster().strategy(careful),
        row("CSINode", "csinodes").cluster().strategy(careful),
        row("CSIStorageCapacity", "csistoragecapacities").strategy(careful),
        row("StorageClass", "storageclasses").cluster().short(&["sc"]).strategy(plain),
        row("VolumeAttachment", "volumeattachments")
            .cluster()
            .status()
            .strategy(Strategy { empty_status: Some(|| json!({"attached": false})), ..careful }),
        row("VolumeAttributesClass", "volumeattributesclasses").cluster().short(&["vac"]),
    ]
}

/// scheduling.k8s.io.
pub(super) fn scheduling() -> Vec<Resource> {
    vec![
        Resource::new("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses")
            .cluster()
            .short(&["pc"])
            .strategy(Strategy { generation: Generation::Content, ..Strategy::PLAIN }),
    ]
}

/// coordination.k8s.io.
pub(super) fn coordination() -> Vec<Resource> {
    vec![Resource::new("coordination.k8s.io", "v1", "Lease", "leases").strategy(Strategy {
        create_on_update: true,
        unconditional_update: false,
        ..Strategy::PLAIN
    })]
}

/// node.k8s.io.
pub(super) fn node() -> Vec<Resource> {
    vec![
        Resource::new("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses")
            .cluster()
            .strategy(Strategy { unconditional_update: false, ..Strategy::PLAIN }),
    ]
}
