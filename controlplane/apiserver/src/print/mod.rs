//! Server-side tables: which columns a resource has, and an object's cells.
//!
//! Pure; columns and cell logic are Kubernetes 1.36's (`pkg/printers/internalversion`). It never chooses objects and
//! never decides what a row carries besides its cells.

mod columns;
mod core;
mod duration;
mod extensions;
mod pod;
mod read;
mod workloads;

pub use columns::Column;

use crate::resource::Resource;
use jiff::Timestamp;
use read::Printed;
use serde_json::{Value, json};

type Cells = Vec<Value>;
/// The columns, and the function that fills one row of them.
type Printer = (&'static [Column], fn(&Printed<'_>) -> Cells);

/// Resources without a printer of their own, such as roles.
const DEFAULT: Printer = (&[columns::NAME, columns::CREATED_AT], default_cells);

fn default_cells(printed: &Printed<'_>) -> Cells {
    let created = printed.text("/metadata/creationTimestamp");
    vec![json!(printed.name()), json!(created)]
}

fn printer(resource: &Resource) -> Printer {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", plural) => core_printer(plural),
        ("events.k8s.io", "events") => core::EVENTS,
        ("apps", "deployments") => workloads::DEPLOYMENTS,
        ("apps", "replicasets") => workloads::REPLICA_SETS,
        ("apps", "statefulsets") => workloads::STATEFUL_SETS,
        ("apps", "daemonsets") => workloads::DAEMON_SETS,
        ("apps", "controllerrevisions") => workloads::CONTROLLER_REVISIONS,
        ("batch", "jobs") => workloads::JOBS,
        ("batch", "cronjobs") => workloads::CRON_JOBS,
        ("autoscaling", "horizontalpodautoscalers") => workloads::AUTOSCALERS,
        ("discovery.k8s.io", "endpointslices") => extensions::ENDPOINT_SLICES,
        ("networking.k8s.io", "ingresses") => extensions::INGRESSES,
        ("networking.k8s.io", "ingressclasses") => extensions::INGRESS_CLASSES,
        ("networking.k8s.io", "networkpolicies") => extensions::NETWORK_POLICIES,
        ("networking.k8s.io", "ipaddresses") => extensions::IP_ADDRESSES,
        ("networking.k8s.io", "servicecidrs") => extensions::SERVICE_CIDRS,
        ("policy", "poddisruptionbudgets") => extensions::DISRUPTION_BUDGETS,
        ("rbac.authorization.k8s.io", "clusterrolebindings" | "rolebindings") => {
            extensions::BINDINGS
        }
        ("certificates.k8s.io", "certificatesigningrequests") => extensions::SIGNING_REQUESTS,
        ("scheduling.k8s.io", "priorityclasses") => extensions::PRIORITY_CLASSES,
        ("coordination.k8s.io", "leases") => extensions::LEASES,
        ("node.k8s.io", "runtimeclasses") => extensions::RUNTIME_CLASSES,
        ("storage.k8s.io", "storageclasses") => extensions::STORAGE_CLASSES,
        ("storage.k8s.io", "csinodes") => extensions::CSI_NODES,
        ("storage.k8s.io", "csidrivers") => extensions::CSI_DRIVERS,
        ("storage.k8s.io", "volumeattachments") => extensions::VOLUME_ATTACHMENTS,
        ("storage.k8s.io", "volumeattributesclasses") => extensions::VOLUME_ATTRIBUTES_CLASSES,
        _ => DEFAULT,
    }
}

fn core_printer(plural: &str) -> Printer {
    match plural {
        "pods" => core::PODS,
        "nodes" => core::NODES,
        "services" => core::SERVICES,
        "namespaces" => core::NAMESPACES,
        "configmaps" => core::CONFIG_MAPS,
        "secrets" => core::SECRETS,
        "serviceaccounts" => core::SERVICE_ACCOUNTS,
        "endpoints" => core::ENDPOINTS,
        "events" => core::EVENTS,
        "persistentvolumes" => core::VOLUMES,
        "persistentvolumeclaims" => core::CLAIMS,
        "podtemplates" => core::POD_TEMPLATES,
        "resourcequotas" => core::QUOTAS,
        "componentstatuses" => core::COMPONENT_STATUSES,
        "replicationcontrollers" => workloads::REPLICATION_CONTROLLERS,
        _ => DEFAULT,
    }
}

/// The `columnDefinitions` of the resource's table.
pub fn columns(resource: &Resource) -> Value {
    printer(resource).0.iter().map(Column::definition).collect()
}

/// The cells of one object, in the order of the columns.
pub fn cells(resource: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    (printer(resource).1)(&Printed { object, now })
}

#[cfg(test)]
mod tests;
