//! Owns the generic verbs over the store: read, create, replace and remove one object under its preconditions, together with
//! whatever must change with it. Must not know HTTP, users or strategies.

use std::sync::Arc;

use apimachinery::{
    gvk::GroupResource,
    status::{ApiError, Details},
};
use serde_json::Value;
use store::{Compare, Entry, Op, OpResult, ReadError, Store, Txn, WriteError};

use crate::{fence, key, resource::Resource, stored};

/// What must hold and change in the same transaction as an object.
#[derive(Debug, Default)]
pub(crate) struct Alongside {
    pub(crate) compare: Vec<Compare>,
    pub(crate) ops: Vec<Op>,
    /// The lease that the object goes under instead of the one that it is under already.
    pub(crate) lease: Option<i64>,
}

impl Alongside {
    pub(crate) fn merge(&mut self, other: Self) {
        self.compare.extend(other.compare);
        self.ops.extend(other.ops);
        self.lease = other.lease.or(self.lease);
    }
}

/// What became of a conditional write.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Done; the object as it now stands, or as it stood when it was removed.
    Done(Arc<Entry>),
    /// A precondition did not hold, or the lease is gone; nothing changed.
    Lost,
}

/// The resource as errors name it.
pub(crate) fn group_resource(resource: &Resource) -> GroupResource<'_> {
    GroupResource::new(&resource.group, &resource.plural)
}

/// Reads and writes objects.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    store: Store,
}

impl Registry {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The object, or upstream's 404.
    pub(crate) fn get(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Entry>, ApiError> {
        self.find(resource, namespace, name)
            .ok_or_else(|| ApiError::not_found(group_resource(resource), name))
    }

    /// The object, if there is one.
    pub(crate) fn find(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<Entry>> {
        self.store.get(&key::object(resource, namespace, name))
    }

    /// Stores an object that is not there yet.
    pub(crate) async fn create(
        &self,
        key: Vec<u8>,
        object: &Value,
        alongside: Alongside,
    ) -> Result<Outcome, ApiError> {
        let compare = Compare::absent(key.clone());
        let value = stored::encode(object);
        let put = Op::Put { key, value, lease: alongside.lease.unwrap_or_default() };
        self.write(compare, put, alongside).await
    }

    /// Stores `object` over `current` unless somebody was quicker.
    pub(crate) async fn replace(
        &self,
        current: &Entry,
        object: &Value,
        alongside: Alongside,
    ) -> Result<Outcome, ApiError> {
        let compare = Compare::unchanged(current.key.to_vec(), current.mod_revision);
        let (key, value) = (current.key.to_vec(), stored::encode(object));
        let put = Op::Put { key, value, lease: alongside.lease.unwrap_or(current.lease) };
        self.write(compare, put, alongside).await
    }

    /// Removes `current` unless somebody was quicker. The entry that comes back bears the revision of the removal.
    pub(crate) async fn remove(
        &self,
        current: &Entry,
        alongside: Alongside,
    ) -> Result<Outcome, ApiError> {
        let compare = Compare::unchanged(current.key.to_vec(), current.mod_revision);
        self.write(compare, Op::delete(current.key.to_vec()), alongside).await
    }

    async fn write(
        &self,
        compare: Compare,
        op: Op,
        alongside: Alongside,
    ) -> Result<Outcome, ApiError> {
        let mut txn = Txn { compare: vec![compare], success: vec![op], failure: Vec::new() };
        txn.compare.extend(alongside.compare);
        txn.success.extend(alongside.ops);
        let fence = fence::current();
        if let Some(fence) = &fence {
            fence.guard(&mut txn);
        }
        let result = match self.store.txn(txn).await {
            Err(WriteError::LeaseNotFound { .. }) => return Ok(Outcome::Lost),
            result => result.map_err(write_error)?,
        };
        if !result.succeeded {
            if let Some(error) = fence.and_then(|fence| fence.broken(&result.responses)) {
                return Err(error);
            }
            return Ok(Outcome::Lost);
        }
        match result.responses.into_iter().next() {
            Some(OpResult::Put { entry, .. }) => Ok(Outcome::Done(entry)),
            Some(OpResult::Delete { deleted }) => match deleted.into_iter().next() {
                Some(entry) => {
                    let entry = Entry { mod_revision: result.revision, ..Entry::clone(&entry) };
                    Ok(Outcome::Done(Arc::new(entry)))
                }
                None => Ok(Outcome::Lost),
            },
            _ => Err(ApiError::internal("the store answered a write with a read")),
        }
    }
}

/// A read that the store can't answer, as the API says it.
pub(crate) fn read_error(error: ReadError) -> ApiError {
    match error {
        ReadError::Compacted { .. } => ApiError::expired(
            "The provided continue parameter is too old to display a consistent list result. \
             You can start a new list without the continue parameter.",
        ),
        ReadError::Future { requested, current } => {
            ApiError::too_large_resource_version(requested, current, 1)
        }
    }
}

/// A write that the store refused, as the API says it.
pub(crate) fn write_error(error: WriteError) -> ApiError {
    match error {
        WriteError::TooLarge { .. } => ApiError::request_entity_too_large(error.to_string()),
        WriteError::Refused { .. } | WriteError::Closed => {
            ApiError::service_unavailable(error.to_string())
        }
        WriteError::Unavailable { .. } => {
            // Nothing was done, so clients may repeat it by themselves.
            let details = Details { retry_after_seconds: 1, ..Details::default() };
            let error = ApiError::service_unavailable(error.to_string());
            ApiError { details: Some(Box::new(details)), ..error }
        }
        WriteError::Read(error) => read_error(error),
        other => ApiError::internal(other.to_string()),
    }
}
