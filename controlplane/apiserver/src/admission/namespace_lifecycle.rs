//! NamespaceLifecycle: nothing is made in a namespace that is not there or is going away; system namespaces stay.

use super::{AdmissionRequest, Operation, unreadable};
use crate::lookup::{Lookup, Meta, prefix};
use apimachinery::gvk::GroupResource;
use apimachinery::status::{ApiError, Cause};
use serde::Deserialize;
use serde_json::Value;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];
const TERMINATING: &str = "Terminating";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Namespace {
    metadata: Meta,
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: String,
}

pub(super) fn admit(
    lookup: &Lookup,
    request: &AdmissionRequest<'_>,
    object: &Value,
) -> Result<(), ApiError> {
    if request.resource.group.is_empty() && request.resource.plural == "namespaces" {
        let immortal = request.operation == Operation::Delete && IMMORTAL.contains(&request.name);
        return match immortal {
            true => Err(request.forbidden(object, "this namespace may not be deleted")),
            false => Ok(()),
        };
    }
    let review = request.resource.plural == "localsubjectaccessreviews";
    if request.namespace.is_empty() || request.operation == Operation::Delete || review {
        return Ok(());
    }
    let found: Option<Namespace> = lookup
        .get(prefix::NAMESPACES, None, request.namespace)
        .map_err(|error| unreadable(&error))?;
    let Some(namespace) = found else {
        return Err(ApiError::not_found(GroupResource::new("", "namespaces"), request.namespace));
    };
    let terminating =
        namespace.status.phase == TERMINATING || namespace.metadata.deletion_timestamp.is_some();
    if request.operation != Operation::Create || !terminating {
        return Ok(());
    }
    let name = request.namespace;
    let why =
        format!("unable to create new content in namespace {name} because it is being terminated");
    Err(request.forbidden(object, why).with_cause(Cause {
        reason: "NamespaceTerminating".into(),
        message: format!("namespace {name} is being terminated"),
        field: "metadata.namespace".to_owned(),
    }))
}
