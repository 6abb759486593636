//! What a fresh cluster holds: creates missing bootstrap objects at start and repairs roles and bindings.
//!
//! Owns the tables and their reconciliation. Permissions are only ever added, as upstream does; a role annotated
//! `rbac.authorization.kubernetes.io/autoupdate: "false"` is left alone. A start with nothing missing writes nothing.

mod bindings;
mod cluster_roles;
mod controller_roles;
mod objects;
mod reconcile;
mod spec;

use crate::authz::{Authorizer, Rule};
use crate::lookup::{object_key, prefix};
use bytes::Bytes;
use jiff::Timestamp;
use objects::BootstrapObject;
use serde_json::{Value, json};
use store::{Compare, Op, Store, Txn, WriteError};

/// How often a write is tried again when somebody else (another master) was quicker.
const ATTEMPTS_MAX: usize = 5;

/// Why the bootstrap objects can't be ensured.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The stored object can't be read.
    #[error("decode stored object {key}")]
    Decode {
        /// Its key.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The store refused.
    #[error("write {key}")]
    Write {
        /// The object's key.
        key: String,
        /// Why.
        source: WriteError,
    },
    /// Somebody else kept changing the object.
    #[error("{key} is being changed by somebody else again and again")]
    Contended {
        /// The object's key.
        key: String,
    },
}

/// What the objects depend on.
#[derive(Debug)]
pub struct Settings<'a> {
    /// The cluster's service CIDRs.
    pub service_cidrs: &'a [String],
    /// The time of creation.
    pub now: Timestamp,
    /// Makes a UID.
    pub new_uid: fn() -> String,
}

/// The rules that every node's identity has, evaluated by the Node authorizer.
pub(crate) fn node_rules() -> Vec<Rule> {
    cluster_roles::CLUSTER_ROLES
        .iter()
        .filter(|role| role.name == "system:node")
        .flat_map(|role| role.rules)
        .map(spec::RuleSpec::rule)
        .collect()
}

/// Creates what is missing and repairs what is less than it should be.
pub async fn ensure(store: &Store, settings: &Settings<'_>) -> Result<(), BootstrapError> {
    for object in objects::all(settings.service_cidrs) {
        ensure_one(store, settings, &object).await?;
    }
    show_aggregated(store).await
}

/// Writes the rules of aggregated roles into them for people to see. What they grant is evaluated from the selected roles.
async fn show_aggregated(store: &Store) -> Result<(), BootstrapError> {
    for (name, rules) in Authorizer::new(store.clone()).aggregated_roles() {
        let key = object_key(prefix::CLUSTER_ROLES, None, &name);
        let Some(entry) = store.get(key.as_bytes()) else { continue };
        let mut role: Value = serde_json::from_slice(&entry.value)
            .map_err(|source| BootstrapError::Decode { key: key.clone(), source })?;
        let rules = json!(rules);
        if role["rules"] == rules {
            continue;
        }
        role["rules"] = rules;
        let txn = Txn {
            compare: vec![Compare::unchanged(key.clone().into_bytes(), entry.mod_revision)],
            success: vec![Op::put(key.clone().into_bytes(), Bytes::from(role.to_string()))],
            failure: Vec::new(),
        };
        // Somebody who was quicker wrote something newer.
        store.txn(txn).await.map_err(|source| BootstrapError::Write { key, source })?;
    }
    Ok(())
}

async fn ensure_one(
    store: &Store,
    settings: &Settings<'_>,
    object: &BootstrapObject,
) -> Result<(), BootstrapError> {
    let key = object_key(object.prefix, object.namespace(), object.name());
    for _ in 0..ATTEMPTS_MAX {
        let (compare, value) = match store.get(key.as_bytes()) {
            None => (
                Compare::absent(key.clone().into_bytes()),
                created(&object.value, settings.now, (settings.new_uid)()),
            ),
            Some(entry) => {
                let stored: Value = serde_json::from_slice(&entry.value)
                    .map_err(|source| BootstrapError::Decode { key: key.clone(), source })?;
                let Some(repaired) = reconcile::plan_repair(&stored, &object.value) else {
                    return Ok(());
                };
                (Compare::unchanged(key.clone().into_bytes(), entry.mod_revision), repaired)
            }
        };
        let put = Op::put(key.clone().into_bytes(), Bytes::from(value.to_string()));
        let txn = Txn { compare: vec![compare], success: vec![put], failure: Vec::new() };
        let result = store
            .txn(txn)
            .await
            .map_err(|source| BootstrapError::Write { key: key.clone(), source })?;
        if result.succeeded {
            return Ok(());
        }
    }
    Err(BootstrapError::Contended { key })
}

/// The object as it is first stored.
fn created(value: &Value, now: Timestamp, uid: String) -> Value {
    let mut value = value.clone();
    let now = json!(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    value["metadata"]["uid"] = json!(uid);
    value["metadata"]["creationTimestamp"] = now.clone();
    if let Some(conditions) = value.pointer_mut("/status/conditions").and_then(Value::as_array_mut)
    {
        conditions.iter_mut().for_each(|condition| condition["lastTransitionTime"] = now.clone());
    }
    value
}

#[cfg(test)]
mod tests;
