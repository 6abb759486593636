//! Reads stored objects as small projections, straight from the store's bytes.
//!
//! Owns the way from (storage prefix, namespace, name) to a decoded projection. It never writes and never
//! builds a whole object tree; authentication, authorization and admission ask it on the request path.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use store::{KeyRange, Range, Store};

/// Storage prefixes of the resources that the edge of the server itself reads.
pub(crate) mod prefix {
    pub(crate) const CLUSTER_ROLES: &str = "clusterroles";
    pub(crate) const CLUSTER_ROLE_BINDINGS: &str = "clusterrolebindings";
    pub(crate) const INGRESS_CLASSES: &str = "ingressclasses";
    pub(crate) const LIMIT_RANGES: &str = "limitranges";
    pub(crate) const NAMESPACES: &str = "namespaces";
    pub(crate) const NODES: &str = "minions";
    pub(crate) const PERSISTENT_VOLUMES: &str = "persistentvolumes";
    pub(crate) const PODS: &str = "pods";
    pub(crate) const PRIORITY_CLASSES: &str = "priorityclasses";
    pub(crate) const ROLES: &str = "roles";
    pub(crate) const ROLE_BINDINGS: &str = "rolebindings";
    pub(crate) const RUNTIME_CLASSES: &str = "runtimeclasses";
    pub(crate) const SECRETS: &str = "secrets";
    pub(crate) const SERVICE_ACCOUNTS: &str = "serviceaccounts";
    pub(crate) const STORAGE_CLASSES: &str = "storageclasses";
}

/// Why a stored object could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The bytes in the store are not the object they should be.
    #[error("decode stored object {key}")]
    Decode {
        /// The object's key.
        key: String,
        /// What the decoder said.
        source: serde_json::Error,
    },
    /// The store refused the range.
    #[error("read {prefix}")]
    Read {
        /// The prefix that was listed.
        prefix: String,
        /// The store's answer.
        source: store::ReadError,
    },
}

/// The part of `metadata` that references are checked by.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Meta {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) deletion_timestamp: Option<jiff::Timestamp>,
}

/// An object of which only the metadata matters.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct MetaOnly {
    pub(crate) metadata: Meta,
}

/// Typed reads of the store.
#[derive(Clone)]
pub(crate) struct Lookup {
    store: Store,
}

impl Lookup {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }

    pub(crate) fn get<T: DeserializeOwned>(
        &self,
        prefix: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<T>, LookupError> {
        let key = object_key(prefix, namespace, name);
        let Some(entry) = self.store.get(key.as_bytes()) else { return Ok(None) };
        decode(&entry.value).map(Some).map_err(|source| LookupError::Decode { key, source })
    }

    pub(crate) fn list<T: DeserializeOwned>(
        &self,
        prefix: &str,
        namespace: Option<&str>,
    ) -> Result<Vec<T>, LookupError> {
        let prefix = list_prefix(prefix, namespace);
        let range =
            Range { keys: KeyRange::Prefix(prefix.clone().into_bytes()), revision: None, limit: 0 };
        let found =
            self.store.range(&range).map_err(|source| LookupError::Read { prefix, source })?;
        found
            .entries
            .iter()
            .map(|entry| {
                decode(&entry.value).map_err(|source| LookupError::Decode {
                    key: String::from_utf8_lossy(&entry.key).into_owned(),
                    source,
                })
            })
            .collect()
    }
}

impl std::fmt::Debug for Lookup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lookup").finish_non_exhaustive()
    }
}

/// Decodes stored bytes into a projection. A member that is `null` reads as absent, as in Kubernetes.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    match serde_json::from_slice(bytes) {
        Ok(object) => Ok(object),
        Err(_) => {
            let mut tree: Value = serde_json::from_slice(bytes)?;
            drop_nulls(&mut tree);
            serde_json::from_value(tree)
        }
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, member| !member.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// `/registry/<prefix>/[<namespace>/]<name>`.
pub(crate) fn object_key(prefix: &str, namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("/registry/{prefix}/{namespace}/{name}"),
        None => format!("/registry/{prefix}/{name}"),
    }
}

/// `/registry/<prefix>/[<namespace>/]`.
pub(crate) fn list_prefix(prefix: &str, namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("/registry/{prefix}/{namespace}/"),
        None => format!("/registry/{prefix}/"),
    }
}
