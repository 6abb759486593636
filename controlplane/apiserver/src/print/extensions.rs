//! Rows of the other groups: networking, policy, RBAC, storage, certificates. Pure; Kubernetes 1.36.

use super::columns::{AGE, Column, NAME, boolean, integer, text as column, wide};
use super::core::load_balancer;
use super::read::{NONE, Printed, UNSET, at, list, or, selector, text, three_of};
use super::{Cells, Printer, duration};
use serde_json::{Value, json};

pub(super) const ENDPOINT_SLICES: Printer =
    (&[NAME, column("AddressType"), column("Ports"), column("Endpoints"), AGE], endpoint_slices);
pub(super) const INGRESSES: Printer =
    (&[NAME, column("Class"), column("Hosts"), column("Address"), column("Ports"), AGE], ingresses);
pub(super) const INGRESS_CLASSES: Printer =
    (&[NAME, column("Controller"), column("Parameters"), AGE], ingress_classes);
pub(super) const NETWORK_POLICIES: Printer =
    (&[NAME, column("Pod-Selector"), AGE], network_policies);
pub(super) const IP_ADDRESSES: Printer = (&[NAME, column("ParentRef")], ip_addresses);
pub(super) const SERVICE_CIDRS: Printer = (&[NAME, column("CIDRs"), AGE], service_cidrs);
pub(super) const DISRUPTION_BUDGETS: Printer = (
    &[
        NAME,
        column("Min Available"),
        column("Max Unavailable"),
        integer("Allowed Disruptions"),
        AGE,
    ],
    disruption_budgets,
);
pub(super) const BINDINGS: Printer = (
    &[NAME, column("Role"), AGE, wide("Users"), wide("Groups"), wide("ServiceAccounts")],
    bindings,
);
pub(super) const SIGNING_REQUESTS: Printer = (
    &[
        NAME,
        AGE,
        column("SignerName"),
        column("Requestor"),
        column("RequestedDuration"),
        column("Condition"),
    ],
    signing_requests,
);
pub(super) const PRIORITY_CLASSES: Printer = (
    &[NAME, integer("Value"), boolean("Global-Default"), AGE, column("PreemptionPolicy")],
    priority_classes,
);
pub(super) const LEASES: Printer = (&[NAME, column("Holder"), AGE], leases);
pub(super) const RUNTIME_CLASSES: Printer = (&[NAME, column("Handler"), AGE], runtime_classes);
pub(super) const STORAGE_CLASSES: Printer = (
    &[
        NAME,
        column("Provisioner"),
        column("ReclaimPolicy"),
        column("VolumeBindingMode"),
        column("AllowVolumeExpansion"),
        AGE,
    ],
    storage_classes,
);
pub(super) const CSI_NODES: Printer = (&[NAME, integer("Drivers"), AGE], csi_nodes);
pub(super) const CSI_DRIVERS: Printer = (
    &[
        NAME,
        boolean("AttachRequired"),
        boolean("PodInfoOnMount"),
        boolean("StorageCapacity"),
        column("TokenRequests"),
        boolean("RequiresRepublish"),
        column("Modes"),
        AGE,
    ],
    csi_drivers,
);
pub(super) const VOLUME_ATTACHMENTS: Printer = (
    &[
        NAME,
        Column { format: "name", ..column("Attacher") },
        column("PV"),
        column("Node"),
        boolean("Attached"),
        AGE,
    ],
    volume_attachments,
);
pub(super) const VOLUME_ATTRIBUTES_CLASSES: Printer =
    (&[NAME, column("DriverName"), AGE], volume_attributes_classes);

fn strings(items: &[Value]) -> Vec<String> {
    items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn endpoint_slices(printed: &Printed<'_>) -> Cells {
    let ports: Vec<String> = printed
        .list("/ports")
        .iter()
        .map(|port| match at(port, "/port").as_i64() {
            Some(number) => number.to_string(),
            None => or(text(port, "/name"), "*").to_owned(),
        })
        .collect();
    let addresses: Vec<String> = printed
        .list("/endpoints")
        .iter()
        .flat_map(|endpoint| strings(list(endpoint, "/addresses")))
        .collect();
    vec![
        json!(printed.name()),
        json!(printed.text("/addressType")),
        json!(or(&three_of(&ports), UNSET)),
        json!(or(&three_of(&addresses), UNSET)),
        json!(printed.age()),
    ]
}

fn ingresses(printed: &Printed<'_>) -> Cells {
    let hosts: Vec<String> = printed
        .list("/spec/rules")
        .iter()
        .map(|rule| text(rule, "/host").to_owned())
        .filter(|host| !host.is_empty())
        .collect();
    let ports = if printed.list("/spec/tls").is_empty() { "80" } else { "80, 443" };
    vec![
        json!(printed.name()),
        json!(or(printed.text("/spec/ingressClassName"), NONE)),
        json!(or(&three_of(&hosts), "*")),
        json!(load_balancer(printed.object)),
        json!(ports),
        json!(printed.age()),
    ]
}

fn ingress_classes(printed: &Printed<'_>) -> Cells {
    let parameters = match printed.has("/spec/parameters") {
        false => NONE.to_owned(),
        true => {
            let kind = printed.text("/spec/parameters/kind");
            let name = printed.text("/spec/parameters/name");
            match printed.text("/spec/parameters/apiGroup") {
                "" => format!("{kind}/{name}"),
                group => format!("{kind}.{group}/{name}"),
            }
        }
    };
    vec![
        json!(printed.name()),
        json!(printed.text("/spec/controller")),
        json!(parameters),
        json!(printed.age()),
    ]
}

fn network_policies(printed: &Printed<'_>) -> Cells {
    let selector = selector(at(printed.object, "/spec/podSelector"));
    vec![json!(printed.name()), json!(selector), json!(printed.age())]
}

fn ip_addresses(printed: &Printed<'_>) -> Cells {
    let parent = ["group", "resource", "namespace", "name"]
        .map(|member| printed.text(&format!("/spec/parentRef/{member}")))
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("/");
    vec![json!(printed.name()), json!(parent)]
}

fn service_cidrs(printed: &Printed<'_>) -> Cells {
    let cidrs = strings(printed.list("/spec/cidrs")).join(",");
    vec![json!(printed.name()), json!(cidrs), json!(printed.age())]
}

/// A number or a percentage.
fn int_or_percent(value: &Value) -> String {
    match value {
        Value::Null => "N/A".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn disruption_budgets(printed: &Printed<'_>) -> Cells {
    vec![
        json!(printed.name()),
        json!(int_or_percent(at(printed.object, "/spec/minAvailable"))),
        json!(int_or_percent(at(printed.object, "/spec/maxUnavailable"))),
        json!(printed.int("/status/disruptionsAllowed")),
        json!(printed.age()),
    ]
}

fn bindings(printed: &Printed<'_>) -> Cells {
    let role = format!("{}/{}", printed.text("/roleRef/kind"), printed.text("/roleRef/name"));
    let subjects = |kind: &str| {
        let named = printed.list("/subjects").iter().filter(|s| text(s, "/kind") == kind);
        let shown: Vec<String> = named
            .map(|subject| match kind {
                "ServiceAccount" => {
                    format!("{}/{}", text(subject, "/namespace"), text(subject, "/name"))
                }
                _ => text(subject, "/name").to_owned(),
            })
            .collect();
        json!(shown.join(", "))
    };
    vec![
        json!(printed.name()),
        json!(role),
        json!(printed.age()),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

fn signing_requests(printed: &Printed<'_>) -> Cells {
    let requested = match at(printed.object, "/spec/expirationSeconds").as_i64() {
        Some(seconds) => duration::human(seconds),
        None => NONE.to_owned(),
    };
    let has =
        |kind: &str| printed.list("/status/conditions").iter().any(|c| text(c, "/type") == kind);
    let mut condition = if has("Denied") {
        "Denied".to_owned()
    } else if has("Approved") {
        "Approved".to_owned()
    } else {
        "Pending".to_owned()
    };
    if has("Failed") {
        condition.push_str(",Failed");
    }
    if !printed.text("/status/certificate").is_empty() {
        condition.push_str(",Issued");
    }
    vec![
        json!(printed.name()),
        json!(printed.age()),
        json!(or(printed.text("/spec/signerName"), NONE)),
        json!(printed.text("/spec/username")),
        json!(requested),
        json!(condition),
    ]
}

fn priority_classes(printed: &Printed<'_>) -> Cells {
    vec![
        json!(printed.name()),
        json!(printed.int("/value")),
        json!(at(printed.object, "/globalDefault") == true),
        json!(printed.age()),
        json!(printed.text("/preemptionPolicy")),
    ]
}

fn leases(printed: &Printed<'_>) -> Cells {
    let holder = printed.text("/spec/holderIdentity");
    vec![json!(printed.name()), json!(holder), json!(printed.age())]
}

fn runtime_classes(printed: &Printed<'_>) -> Cells {
    vec![json!(printed.name()), json!(printed.text("/handler")), json!(printed.age())]
}

fn storage_classes(printed: &Printed<'_>) -> Cells {
    let default =
        ["storageclass.kubernetes.io", "storageclass.beta.kubernetes.io"].iter().any(|group| {
            printed.text(&format!("/metadata/annotations/{group}~1is-default-class")) == "true"
        });
    let name = match default {
        true => format!("{} (default)", printed.name()),
        false => printed.name().to_owned(),
    };
    vec![
        json!(name),
        json!(printed.text("/provisioner")),
        json!(or(printed.text("/reclaimPolicy"), "Delete")),
        json!(or(printed.text("/volumeBindingMode"), "Immediate")),
        json!(at(printed.object, "/allowVolumeExpansion") == true),
        json!(printed.age()),
    ]
}

fn csi_nodes(printed: &Printed<'_>) -> Cells {
    vec![json!(printed.name()), json!(printed.count("/spec/drivers")), json!(printed.age())]
}

fn csi_drivers(printed: &Printed<'_>) -> Cells {
    let flag = |pointer: &str, default: bool| {
        json!(at(printed.object, pointer).as_bool().unwrap_or(default))
    };
    let audiences: Vec<String> = printed
        .list("/spec/tokenRequests")
        .iter()
        .map(|request| text(request, "/audience").to_owned())
        .collect();
    let modes = strings(printed.list("/spec/volumeLifecycleModes")).join(",");
    vec![
        json!(printed.name()),
        flag("/spec/attachRequired", true),
        flag("/spec/podInfoOnMount", false),
        flag("/spec/storageCapacity", false),
        json!(or(&audiences.join(","), UNSET)),
        flag("/spec/requiresRepublish", false),
        json!(or(&modes, NONE)),
        json!(printed.age()),
    ]
}

fn volume_attachments(printed: &Printed<'_>) -> Cells {
    vec![
        json!(printed.name()),
        json!(printed.text("/spec/attacher")),
        json!(printed.text("/spec/source/persistentVolumeName")),
        json!(printed.text("/spec/nodeName")),
        json!(at(printed.object, "/status/attached") == true),
        json!(printed.age()),
    ]
}

fn volume_attributes_classes(printed: &Printed<'_>) -> Cells {
    vec![json!(printed.name()), json!(printed.text("/driverName")), json!(printed.age())]
}
