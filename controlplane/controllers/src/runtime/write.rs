//! Guarded writes: create, patch with UID and resourceVersion, delete with UID. No write without a precondition.
//!
//! The answers go into the cache of the kind at once (see `cache`).

use super::{Cache, Error, Key, object::Kind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Resource,
    core::{
        Request,
        params::{Patch, PatchParams, PostParams},
    },
};
use serde_json::{Value, json};
use std::sync::Arc;

/// Which patch format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Merge,
    /// Lists of maps are merged by their key; for conditions that belong to several writers.
    Strategic,
}

/// How to delete.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Deletion {
    /// Seconds instead of the object's own.
    pub(crate) grace_seconds: Option<u32>,
    /// Only if the object is still at the version that was read.
    pub(crate) same_version: bool,
}

fn path<K: Kind>(namespace: &str) -> String {
    let namespace = (!namespace.is_empty()).then_some(namespace);
    K::url_path(&(), namespace)
}

/// `patch` with the preconditions that it is this object at this version.
pub(crate) fn guarded(mut patch: Value, meta: &ObjectMeta) -> Value {
    let slot = &mut patch["metadata"];
    if slot.is_null() {
        *slot = json!({});
    }
    slot["uid"] = json!(meta.uid);
    slot["resourceVersion"] = json!(meta.resource_version);
    patch
}

/// A status as Kubernetes writes it: zero counts and empty lists are left out, except those named.
pub(crate) fn without_zeros(mut status: Value, kept: &[&str]) -> Value {
    for (field, value) in status.as_object_mut().into_iter().flatten() {
        let empty = *value == json!(0) || value.as_array().is_some_and(Vec::is_empty);
        if empty && !kept.contains(&field.as_str()) {
            *value = Value::Null;
        }
    }
    status
}

impl<K: Kind> Cache<K> {
    /// Creates an object.
    pub(crate) async fn create(&self, namespace: &str, body: &Value) -> Result<Arc<K>, Error> {
        let request = Request::new(path::<K>(namespace))
            .create(&PostParams::default(), body.to_string().into_bytes())
            .map_err(kube::Error::BuildRequest)?;
        let made: K = self.client.request(request).await?;
        Ok(self.observe_write(made))
    }

    /// Patches the object, if it is still the one at the version in `meta`.
    pub(crate) async fn patch(
        &self,
        meta: &ObjectMeta,
        subresource: Option<&str>,
        format: Format,
        patch: Value,
    ) -> Result<Arc<K>, Error> {
        let patch = guarded(patch, meta);
        let patch = match format {
            Format::Merge => Patch::Merge(patch),
            Format::Strategic => Patch::Strategic(patch),
        };
        let key = Key::of(meta);
        let request = Request::new(path::<K>(&key.namespace));
        let params = PatchParams::default();
        let request = match subresource {
            Some(sub) => request.patch_subresource(sub, &key.name, &params, &patch),
            None => request.patch(&key.name, &params, &patch),
        }
        .map_err(kube::Error::BuildRequest)?;
        let after: K = self.client.request(request).await?;
        Ok(self.observe_write(after))
    }

    /// Merge patch of the object itself.
    pub(crate) async fn patch_object(
        &self,
        meta: &ObjectMeta,
        patch: Value,
    ) -> Result<Arc<K>, Error> {
        self.patch(meta, None, Format::Merge, patch).await
    }

    /// Merge patch of the status.
    pub(crate) async fn patch_status(
        &self,
        meta: &ObjectMeta,
        status: Value,
    ) -> Result<Arc<K>, Error> {
        self.patch(meta, Some("status"), Format::Merge, json!({ "status": status })).await
    }

    /// Deletes this very object. That it is gone already is no error.
    pub(crate) async fn delete(&self, meta: &ObjectMeta, how: Deletion) -> Result<(), Error> {
        let mut preconditions = json!({ "uid": meta.uid });
        if how.same_version {
            preconditions["resourceVersion"] = json!(meta.resource_version);
        }
        let mut body = json!({
            "apiVersion": "v1", "kind": "DeleteOptions",
            "preconditions": preconditions, "propagationPolicy": "Background",
        });
        if let Some(seconds) = how.grace_seconds {
            body["gracePeriodSeconds"] = json!(seconds);
        }
        let key = Key::of(meta);
        let uid = meta.uid.as_deref().unwrap_or_default();
        match self.client.request::<Value>(delete_request::<K>(&key, &body)?).await {
            Ok(answer) => {
                // The answer is the object while it goes on living (grace period, finalizers), else a Status or the
                // object as it was.
                let lives_on = !answer["metadata"]["deletionTimestamp"].is_null();
                match serde_json::from_value::<K>(answer) {
                    Ok(object) if lives_on => drop(self.observe_write(object)),
                    _ => self.observe_removal(&key, uid),
                }
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.observe_removal(&key, uid);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Asks the API server itself; `None` when it says that there is no such object.
    pub(crate) async fn live(&self, key: &Key) -> Result<Option<K>, Error> {
        let request = Request::new(path::<K>(&key.namespace))
            .get(&key.name, &kube::core::params::GetParams::default())
            .map_err(kube::Error::BuildRequest)?;
        match self.client.request(request).await {
            Ok(object) => Ok(Some(object)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn delete_request<K: Resource<DynamicType = ()>>(
    key: &Key,
    body: &Value,
) -> Result<http::Request<Vec<u8>>, Error> {
    let namespace = (!key.namespace.is_empty()).then_some(key.namespace.as_str());
    raw_delete(&format!("{}/{}", K::url_path(&(), namespace), key.name), body)
}

/// A DELETE with options in the body.
pub(crate) fn raw_delete(path: &str, body: &Value) -> Result<http::Request<Vec<u8>>, Error> {
    http::Request::delete(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body.to_string().into_bytes())
        .map_err(|error| kube::Error::HttpError(error).into())
}
