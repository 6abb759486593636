//! Nobody grants what it doesn't hold: the check on writes of roles and bindings.
//!
//! Owns `escalate` and `bind` and the texts of refusal (Kubernetes 1.36, `pkg/registry/rbac`). Pure apart from
//! asking the authorizer. Masters pass.

use super::rbac::RoleRef;
use super::rules::{Rule, uncovered};
use super::{Attributes, Authorizer, ResourceTarget, Target};
use crate::User;
use crate::user::GROUP_MASTERS;
use apimachinery::gvk::GroupResource;
use apimachinery::object;
use apimachinery::status::ApiError;
use serde_json::Value;
use std::collections::BTreeSet;

const GROUP: &str = "rbac.authorization.k8s.io";

/// A write of a role or binding.
#[derive(Debug, Clone, Copy)]
pub struct Grant<'a> {
    /// Who writes.
    pub user: &'a User,
    /// `roles`, `clusterroles`, `rolebindings` or `clusterrolebindings`.
    pub resource: &'a str,
    /// Empty for the cluster's.
    pub namespace: &'a str,
    /// The object's name.
    pub name: &'a str,
    /// The object as it would be.
    pub object: &'a Value,
    /// As it is, on an update.
    pub old: Option<&'a Value>,
}

/// Refuses the write when it grants more than the writer holds or may grant.
pub fn check(authorizer: &Authorizer, grant: &Grant<'_>) -> Result<(), ApiError> {
    if grant.user.is_in(GROUP_MASTERS) {
        return Ok(());
    }
    match grant.resource {
        "roles" | "clusterroles" => check_role(authorizer, grant),
        "rolebindings" | "clusterrolebindings" => check_binding(authorizer, grant),
        _ => Ok(()),
    }
}

fn check_role(authorizer: &Authorizer, grant: &Grant<'_>) -> Result<(), ApiError> {
    if is_unchanged(grant) || may(authorizer, grant, "escalate", (grant.resource, grant.name)) {
        return Ok(());
    }
    // Its rules are made of others', now or once it is selected.
    let aggregates = |role: &Value| role.get("aggregationRule").is_some_and(|rule| !rule.is_null());
    if aggregates(grant.object) || grant.old.is_some_and(aggregates) {
        let everything = [Rule::everything(), Rule::every_path()];
        confirm(
            authorizer,
            grant,
            &everything,
            "must have cluster-admin privileges to use an aggregationRule",
        )?;
    }
    confirm(authorizer, grant, &rules_of(grant.object), "")
}

/// Whether nothing changes but what the garbage collector changes. Labels do count: by them a role's rules get into others.
fn is_unchanged(grant: &Grant<'_>) -> bool {
    let content = |object: &Value| {
        let mut object = object.clone();
        let metadata = object::metadata_mut(&mut object);
        for key in ["ownerReferences", "finalizers", "resourceVersion"] {
            metadata.remove(key);
        }
        object
    };
    grant.old.is_some_and(|old| content(old) == content(grant.object))
}

fn check_binding(authorizer: &Authorizer, grant: &Grant<'_>) -> Result<(), ApiError> {
    if is_unchanged(grant) {
        return Ok(());
    }
    let role: RoleRef = serde_json::from_value(grant.object["roleRef"].clone()).unwrap_or_default();
    let resource = match role.kind.as_str() {
        "ClusterRole" => "clusterroles",
        "Role" => "roles",
        _ => {
            return Err(forbidden(
                grant,
                &format!("unsupported role reference kind: {:?}", role.kind),
            ));
        }
    };
    if may(authorizer, grant, "bind", (resource, &role.name)) {
        return Ok(());
    }
    let namespace = (!grant.namespace.is_empty()).then_some(grant.namespace);
    let rules = authorizer
        .rules_of_role(&role, namespace)
        .map_err(|_| ApiError::not_found(GroupResource::new(GROUP, resource), &role.name))?;
    confirm(authorizer, grant, &rules, "")
}

fn may(
    authorizer: &Authorizer,
    grant: &Grant<'_>,
    verb: &str,
    (resource, name): (&str, &str),
) -> bool {
    let target = ResourceTarget {
        group: GROUP,
        version: "v1",
        resource,
        namespace: grant.namespace,
        name,
        ..ResourceTarget::default()
    };
    let attributes = Attributes { user: grant.user, verb, target: Target::Resource(target) };
    authorizer.authorize(&attributes).is_allowed()
}

fn rules_of(role: &Value) -> Vec<Rule> {
    role.get("rules")
        .cloned()
        .and_then(|rules| serde_json::from_value(rules).ok())
        .unwrap_or_default()
}

fn confirm(
    authorizer: &Authorizer,
    grant: &Grant<'_>,
    wanted: &[Rule],
    instead: &str,
) -> Result<(), ApiError> {
    let held = authorizer.rules_for(grant.user, grant.namespace);
    let missing = uncovered(&held.rules, wanted);
    if missing.is_empty() {
        return Ok(());
    }
    if !instead.is_empty() {
        return Err(forbidden(grant, instead));
    }
    Err(forbidden(grant, &refusal(grant.user, &missing, &held.errors)))
}

fn forbidden(grant: &Grant<'_>, why: &str) -> ApiError {
    ApiError::forbidden(GroupResource::new(GROUP, grant.resource), grant.name, why)
}

fn refusal(user: &User, missing: &[Rule], errors: &[String]) -> String {
    let described: BTreeSet<String> = compact(missing).iter().map(Rule::describe).collect();
    let described: Vec<String> = described.into_iter().collect();
    let groups: Vec<String> = user.groups.iter().map(|group| format!("{group:?}")).collect();
    let mut text = format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        groups.join(" "),
        described.join("\n")
    );
    if !errors.is_empty() {
        text.push_str(&format!("; resolution errors: [{}]", errors.join(" ")));
    }
    text
}

/// Rules about the same one resource become one rule with all its verbs.
fn compact(rules: &[Rule]) -> Vec<Rule> {
    let mut compacted: Vec<Rule> = Vec::new();
    for rule in rules {
        let same = compacted.iter_mut().find(|other| {
            rule.non_resource_urls.is_empty()
                && other.api_groups == rule.api_groups
                && other.resources == rule.resources
                && other.resource_names == rule.resource_names
                && other.non_resource_urls.is_empty()
        });
        match same {
            Some(other) => other.verbs.extend(rule.verbs.iter().cloned()),
            None => compacted.push(rule.clone()),
        }
    }
    compacted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_lists_what_is_missing() {
        let user = User::authenticated("eve", &["dev"]);
        let rule = |verb: &str| Rule {
            verbs: vec![verb.into()],
            api_groups: vec![String::new()],
            resources: vec!["pods".into()],
            ..Rule::default()
        };
        let text = refusal(&user, &[rule("get"), rule("list")], &[]);
        assert_eq!(
            text,
            "user \"eve\" (groups=[\"dev\" \"system:authenticated\"]) is attempting to grant RBAC \
             permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\" \"list\"]}"
        );
    }
}
