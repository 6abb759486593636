//! The ordered chain of admission plugins: what changes a request's object, and what refuses the request.
//!
//! Owns the order (Kubernetes 1.36's) and the request that plugins see. Plugins read the store and write nothing,
//! except the quota, which accounts. Mutating plugins run before validation, validating ones after it.

mod certificates;
mod ingress_class;
mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
mod pod_defaults;
pub(crate) mod pod_usage;
mod priority;
mod runtime_class;
mod service_account;
mod storage_class;

use crate::User;
use crate::authz::{Authorizer, escalation};
use crate::lookup::{Lookup, LookupError};
use crate::resource::Resource;
use apimachinery::gvk::GroupResource;
use apimachinery::status::ApiError;
use serde_json::Value;
use store::Store;

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A new object, or a subresource that is created (binding, eviction, token).
    Create,
    /// A change of an object or of its subresource.
    Update,
    /// A removal.
    Delete,
    /// A stream (exec, attach, port-forward, proxy).
    Connect,
}

/// A request as admission plugins see it, without the object that they may change.
#[derive(Debug, Clone, Copy)]
pub struct AdmissionRequest<'a> {
    /// Who asks.
    pub user: &'a User,
    /// What is done.
    pub operation: Operation,
    /// To what.
    pub resource: &'a Resource,
    /// Or empty.
    pub subresource: &'a str,
    /// Empty for resources of the cluster.
    pub namespace: &'a str,
    /// Empty while a name is still to be generated.
    pub name: &'a str,
    /// The object as stored: on update and delete.
    pub old: Option<&'a Value>,
    /// Nothing will be stored.
    pub dry_run: bool,
}

impl AdmissionRequest<'_> {
    /// Whether this is about that resource itself (no subresource).
    pub(crate) fn is(&self, group: &str, plural: &str) -> bool {
        self.is_part(group, plural, "")
    }

    /// Whether this is about that subresource.
    pub(crate) fn is_part(&self, group: &str, plural: &str, subresource: &str) -> bool {
        self.resource.group == group
            && self.resource.plural == plural
            && self.subresource == subresource
    }

    pub(crate) fn writes(&self) -> bool {
        matches!(self.operation, Operation::Create | Operation::Update)
    }

    /// Upstream's refusal of an admission plugin; names an object that has no name yet by its prefix.
    pub(crate) fn forbidden(&self, object: &Value, why: impl AsRef<str>) -> ApiError {
        let member = |name: &str| object["metadata"][name].as_str().filter(|text| !text.is_empty());
        let name = match self.name {
            "" => member("name").or_else(|| member("generateName")).unwrap_or("Unknown"),
            name => name,
        };
        let resource = GroupResource::new(&self.resource.group, &self.resource.plural);
        ApiError::forbidden(resource, name, why)
    }
}

/// An object that admission needs and that can't be read is the server's fault.
pub(crate) fn unreadable(error: &LookupError) -> ApiError {
    tracing::error!(%error, "admission can't read an object");
    ApiError::internal(error.to_string())
}

/// The plugins and what they read.
#[derive(Debug, Clone)]
pub struct Chain {
    lookup: Lookup,
    authorizer: Authorizer,
}

impl Chain {
    /// A chain over the objects of `store`.
    pub fn new(store: Store, authorizer: Authorizer) -> Self {
        Self { lookup: Lookup::new(store), authorizer }
    }

    /// The mutating plugins, in order. On a delete `object` is the stored one and changes to it are lost.
    pub async fn mutate(
        &self,
        request: &AdmissionRequest<'_>,
        object: &mut Value,
    ) -> Result<(), ApiError> {
        let lookup = &self.lookup;
        namespace_lifecycle::admit(lookup, request, object)?;
        limit_ranger::admit(lookup, request, object)?;
        service_account::admit(lookup, request, object).await?;
        node_restriction::admit(lookup, request, object)?;
        pod_defaults::taint_new_node(request, object);
        priority::admit(lookup, request, object)?;
        pod_defaults::default_tolerations(request, object);
        storage_class::admit(lookup, request, object)?;
        runtime_class::admit(lookup, request, object)?;
        ingress_class::admit(lookup, request, object)
    }

    /// The validating plugins, in order, on the object as it will be stored.
    pub fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> Result<(), ApiError> {
        limit_ranger::validate(&self.lookup, request, object)?;
        certificates::validate(&self.authorizer, request, object)?;
        self.check_escalation(request, object)
    }

    fn check_escalation(
        &self,
        request: &AdmissionRequest<'_>,
        object: &Value,
    ) -> Result<(), ApiError> {
        if !request.writes() || request.resource.group != "rbac.authorization.k8s.io" {
            return Ok(());
        }
        let grant = escalation::Grant {
            user: request.user,
            resource: &request.resource.plural,
            namespace: request.namespace,
            name: object["metadata"]["name"].as_str().unwrap_or(request.name),
            object,
            old: request.old,
        };
        escalation::check(&self.authorizer, &grant)
    }
}
