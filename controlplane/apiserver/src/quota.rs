//! ResourceQuota: what a namespace may use, accounted in the same transaction that stores or removes an object.
//!
//! Owns `status` of quotas. Use is counted from the stored objects at each write, and the transaction compares the quota, so
//! `status.used` is exact at every revision, with several masters too, and needs no controller. It costs a scan of one
//! resource's objects in namespaces that have a quota, and nothing elsewhere. Texts are Kubernetes 1.36's
//! (`k8s.io/apiserver/pkg/admission/plugin/resourcequota`). Must not write by itself.

mod scope;
mod usage;

use std::sync::Arc;

use apimachinery::{gvk::GroupResource, object, quantity::Quantity, status::ApiError};
use serde_json::{Map, Value, json};
use store::{Compare, Entry, KeyRange, Op, Range};

use crate::{
    ApiServer, Resource,
    admission::pod_usage::{Amounts, add, amounts},
    key,
    registry::Alongside,
    stored,
};

/// A quota as stored.
struct Quota {
    entry: Arc<Entry>,
    value: Value,
}

impl Quota {
    fn name(&self) -> &str {
        object::name(&self.value)
    }

    fn hard(&self) -> Amounts {
        amounts(&self.value["spec"]["hard"])
    }
}

/// A write that may change what is used.
#[derive(Clone, Copy)]
struct Change<'a> {
    resource: &'a Resource,
    old: Option<&'a Value>,
    new: Option<&'a Value>,
}

/// Accounts a new object; refuses it when it is too much.
pub(crate) fn on_create(
    server: &ApiServer,
    resource: &Resource,
    object: &mut Value,
) -> Result<Alongside, ApiError> {
    if is_quota(resource) {
        set_status(server, object)?;
    }
    account(server, Change { resource, old: None, new: Some(object) })
}

/// Accounts a changed object; refuses it when it uses more and that is too much.
pub(crate) fn on_update(
    server: &ApiServer,
    resource: &Resource,
    object: &mut Value,
    old: &Value,
) -> Result<Alongside, ApiError> {
    if is_quota(resource) && object["spec"] != old["spec"] {
        set_status(server, object)?;
    }
    if usage::of(resource, object) == usage::of(resource, old) {
        return Ok(Alongside::default());
    }
    account(server, Change { resource, old: Some(old), new: Some(object) })
}

/// Accounts a removed object. What can't be accounted is not held back.
pub(crate) fn on_delete(server: &ApiServer, resource: &Resource, old: &Value) -> Alongside {
    account(server, Change { resource, old: Some(old), new: None }).unwrap_or_else(|error| {
        let name = object::name(old);
        tracing::error!(resource = resource.plural, name, %error, "quota not updated on a delete");
        Alongside::default()
    })
}

fn is_quota(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.plural == "resourcequotas"
}

fn entries(
    server: &ApiServer,
    resource: &Resource,
    namespace: &str,
) -> Result<Vec<Arc<Entry>>, ApiError> {
    let keys = KeyRange::Prefix(key::collection(resource, namespace));
    let range = Range { keys, revision: None, limit: 0 };
    let found = server.registry().store().range(&range);
    found.map(|found| found.entries).map_err(|error| ApiError::internal(error.to_string()))
}

fn quotas(server: &ApiServer, namespace: &str) -> Result<Vec<Quota>, ApiError> {
    let row = server.row("", "resourcequotas")?;
    entries(server, &row, namespace)?
        .into_iter()
        .map(|entry| Ok(Quota { value: stored::decode(&entry)?, entry }))
        .collect()
}

fn account(server: &ApiServer, change: Change<'_>) -> Result<Alongside, ApiError> {
    let mut alongside = Alongside::default();
    let Some(object) = change.new.or(change.old) else { return Ok(alongside) };
    if !change.resource.is_namespaced() {
        return Ok(alongside);
    }
    let (namespace, name) = (object::namespace(object), object::name(object));
    for quota in quotas(server, namespace)? {
        // A quota that is written or removed here has its own put or delete in this transaction.
        if is_quota(change.resource) && quota.name() == name {
            continue;
        }
        if let Some(used) = used_after(server, &quota, change)? {
            let key = quota.entry.key.to_vec();
            alongside.compare.push(Compare::unchanged(key.clone(), quota.entry.mod_revision));
            let mut value = quota.value;
            write_status(&mut value, &used);
            alongside.ops.push(Op::put(key, stored::encode(&value)));
        }
    }
    Ok(alongside)
}

/// What is used of the quota's resources after the change; `None` when the quota has nothing to do with it.
fn used_after(
    server: &ApiServer,
    quota: &Quota,
    change: Change<'_>,
) -> Result<Option<Amounts>, ApiError> {
    let hard = quota.hard();
    let counted = |object: &Value| -> Amounts {
        if !scope::matches(&quota.value, change.resource, object) {
            return Amounts::new();
        }
        let mut used = usage::of(change.resource, object);
        used.retain(|name, _| hard.contains_key(name));
        used
    };
    let (before, after) = (
        change.old.map(&counted).unwrap_or_default(),
        change.new.map(&counted).unwrap_or_default(),
    );
    if before.is_empty() && after.is_empty() {
        return Ok(None);
    }
    let subject = change.new.or(change.old).unwrap_or(&Value::Null);
    let mut others = Amounts::new();
    for entry in entries(server, change.resource, object::namespace(subject))? {
        let other = stored::decode(&entry)?;
        if object::name(&other) != object::name(subject) {
            add(&mut others, &counted(&other));
        }
    }
    if let Some(new) = change.new {
        let refuse = |why: String| refused(change.resource, new, why);
        // A pod from before the quota goes on as it is.
        if change.old.is_none() {
            usage::check_specified(change.resource, new, &hard)
                .map_err(|why| refuse(format!("failed quota: {}: {why}", quota.name())))?;
        }
        check(quota.name(), &hard, (&others, &before, &after)).map_err(refuse)?;
    }
    let mut used = amounts(&quota.value["status"]["used"]);
    used.retain(|name, _| hard.contains_key(name));
    for name in hard.keys().filter(|name| usage::concerns(change.resource, name)) {
        used.insert(name.clone(), Quantity::default());
    }
    for name in before.keys().chain(after.keys()).chain(others.keys()) {
        let of = |amounts: &Amounts| amounts.get(name).copied().unwrap_or_default();
        used.insert(name.clone(), of(&others).plus(of(&after)));
    }
    Ok(Some(used))
}

fn refused(resource: &Resource, object: &Value, why: String) -> ApiError {
    let resource = GroupResource::new(&resource.group, &resource.plural);
    ApiError::forbidden(resource, object::name(object), why)
}

/// Only what grows can be too much.
fn check(
    quota: &str,
    hard: &Amounts,
    (others, before, after): (&Amounts, &Amounts, &Amounts),
) -> Result<(), String> {
    let of = |amounts: &Amounts, name: &str| amounts.get(name).copied().unwrap_or_default();
    let (mut requested, mut used, mut limited) = (Vec::new(), Vec::new(), Vec::new());
    for (name, bound) in hard {
        let (was, is) = (of(before, name), of(after, name));
        if is > was && of(others, name).plus(is) > *bound {
            requested.push(format!("{name}={}", is.minus(was)));
            used.push(format!("{name}={}", of(others, name).plus(was)));
            limited.push(format!("{name}={bound}"));
        }
    }
    if requested.is_empty() {
        return Ok(());
    }
    Err(format!(
        "exceeded quota: {quota}, requested: {}, used: {}, limited: {}",
        requested.join(","),
        used.join(","),
        limited.join(",")
    ))
}

fn write_status(quota: &mut Value, used: &Amounts) {
    let used: Map<String, Value> =
        used.iter().map(|(name, amount)| (name.clone(), json!(amount.to_string()))).collect();
    quota["status"] = json!({"hard": quota["spec"]["hard"], "used": used});
}

/// Counts everything that a new or changed quota is about.
fn set_status(server: &ApiServer, quota: &mut Value) -> Result<(), ApiError> {
    let hard = amounts(&quota["spec"]["hard"]);
    let mut used: Amounts = hard.keys().map(|name| (name.clone(), Quantity::default())).collect();
    for row in server.table().iter() {
        let concerned = row.is_namespaced()
            && row.is_stored()
            && row.convert.is_none()
            && hard.keys().any(|name| usage::concerns(row, name));
        if !concerned {
            continue;
        }
        for entry in entries(server, row, object::namespace(quota))? {
            let object = stored::decode(&entry)?;
            if scope::matches(quota, row, &object) {
                let mut amounts = usage::of(row, &object);
                amounts.retain(|name, _| hard.contains_key(name));
                add(&mut used, &amounts);
            }
        }
    }
    if used.contains_key("resourcequotas") && registry_lacks(server, quota)? {
        add(&mut used, &Amounts::from([("resourcequotas".to_owned(), usage::one())]));
    }
    write_status(quota, &used);
    Ok(())
}

/// Whether the quota itself is not stored yet.
fn registry_lacks(server: &ApiServer, quota: &Value) -> Result<bool, ApiError> {
    let row = server.row("", "resourcequotas")?;
    let (namespace, name) = (object::namespace(quota), object::name(quota));
    Ok(server.registry().find(&row, namespace, name).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_growth_is_refused_and_the_text_is_upstreams() {
        let of = |text: Value| amounts(&text);
        let hard = of(json!({"pods": "2", "requests.cpu": "1"}));
        let none = Amounts::new();
        let one = of(json!({"pods": "1", "requests.cpu": "600m"}));
        let error = check("q", &hard, (&of(json!({"pods": "2"})), &none, &one)).unwrap_err();
        assert_eq!(error, "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2");
        let error =
            check("q", &hard, (&of(json!({"requests.cpu": "500m"})), &none, &one)).unwrap_err();
        assert_eq!(
            error,
            "exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=500m, limited: requests.cpu=1"
        );
        check("q", &hard, (&of(json!({"pods": "5"})), &one, &one)).unwrap();
        check("q", &hard, (&of(json!({"pods": "1"})), &none, &of(json!({"pods": "1"})))).unwrap();
    }
}
