//! The resources this server knows: the table, and one file of rows and strategies per API group.
//! Must not know verbs, HTTP or the store.

mod apps;
mod batch;
mod core;
mod events;
mod extension;
mod networking;
mod pod;
mod policy;
mod reviews;
mod service;
pub mod strategy;
pub mod table;

pub(crate) use pod::qos_class as pod_qos_class;
pub use table::{Resource, ResourceTable, Scope, Subresource};

/// The rows of every group, in discovery's order.
fn rows() -> Vec<Resource> {
    [
        core::rows(),
        apps::rows(),
        events::rows(),
        reviews::rows(),
        batch::rows(),
        policy::certificates(),
        networking::rows(),
        policy::rows(),
        extension::rbac(),
        extension::storage(),
        extension::scheduling(),
        extension::coordination(),
        extension::node(),
        networking::discovery(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
