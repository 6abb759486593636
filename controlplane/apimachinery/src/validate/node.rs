//! Nodes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::resources::quantity;
use super::schedule;
use super::text::cidr;
use super::view::{entries, get, invalid, items, shown, sub, text, texts};
use crate::field::{FieldError, FieldErrors, Path};

/// A Node, new or changed.
pub(super) fn node(errors: &mut FieldErrors, object: &Value) {
    let spec = sub(object, "spec");
    // Upstream's path for taints really is below metadata.
    let metadata = Path::new("metadata");
    schedule::taints(errors, items(spec, "taints"), &metadata.child("taints"));
    resources(errors, object);
    let root = Path::new("spec");
    let path = root.child("podCIDRs");
    let all: Vec<&str> = texts(spec, "podCIDRs").collect();
    for (index, range) in all.iter().enumerate() {
        invalid(errors, &path.index(index), range, cidr(range));
        if all[..index].contains(range) {
            errors.push(FieldError::duplicate(&path.index(index), *range));
        }
    }
    let sixes = all.iter().filter(|range| range.contains(':')).count();
    if all.len() > 2 || (all.len() == 2 && sixes != 1) {
        let why = "may specify no more than one CIDR for each IP family";
        errors.push(FieldError::invalid(&path, shown(spec, "podCIDRs"), why));
    }
}

/// Capacity and allocatable amounts.
pub(super) fn resources(errors: &mut FieldErrors, object: &Value) {
    let (status, root) = (sub(object, "status"), Path::new("status"));
    for list in ["capacity", "allocatable"] {
        let path = root.child(list);
        for (name, value) in entries(status, list) {
            quantity(errors, name, value, &path.child(name));
        }
    }
}

/// What of a Node must not change.
pub(super) fn update(errors: &mut FieldErrors, (object, old): (&Value, &Value)) {
    let (spec, before) = (sub(object, "spec"), sub(old, "spec"));
    let (status, status_path) = (sub(object, "status"), Path::new("status"));
    let path = status_path.child("addresses");
    let mut seen = BTreeSet::new();
    for (index, address) in items(status, "addresses").iter().enumerate() {
        let (kind, value) = (text(address, "type"), text(address, "address"));
        if !seen.insert((kind, value)) {
            let shown = serde_json::json!({"Type": kind, "Address": value});
            errors.push(FieldError::duplicate(&path.index(index), shown));
        }
    }
    let root = Path::new("spec");
    let had_ranges = !items(before, "podCIDRs").is_empty();
    if had_ranges && get(spec, "podCIDRs") != get(before, "podCIDRs") {
        let why = "node updates may not change podCIDR except from \"\" to valid";
        errors.push(FieldError::forbidden(&root.child("podCIDRs"), why));
    }
    let provider = text(before, "providerID");
    if !provider.is_empty() && text(spec, "providerID") != provider {
        let why = "node updates may not change providerID except from \"\" to valid";
        errors.push(FieldError::forbidden(&root.child("providerID"), why));
    }
}
