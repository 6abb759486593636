//! What authorization judges: who wants to do what to what. And the exact text of a refusal.

use crate::User;
use apimachinery::field::quote;
use apimachinery::gvk::GroupResource;
use apimachinery::status::ApiError;

/// One question to the authorizer; empty strings mean "none".
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// Who.
    pub user: &'a User,
    /// `get`, `list`, …; for paths the lower-case HTTP method.
    pub verb: &'a str,
    /// What the verb is done to.
    pub target: Target<'a>,
}

/// A resource or a path.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// An API resource.
    Resource(ResourceTarget<'a>),
    /// A path that is no resource's, such as `/healthz`.
    Path(&'a str),
}

/// Which resource, or which of its objects.
#[derive(Debug, Clone, Copy, Default)]
pub struct ResourceTarget<'a> {
    /// API group.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Plural.
    pub resource: &'a str,
    /// Or empty.
    pub subresource: &'a str,
    /// Or empty: the whole cluster, or a resource of the cluster.
    pub namespace: &'a str,
    /// Or empty: all.
    pub name: &'a str,
    /// The raw field selector of a list or watch.
    pub field_selector: &'a str,
}

impl ResourceTarget<'_> {
    /// Whether the field selector demands exactly this value.
    pub(crate) fn selects(&self, field: &str, value: &str) -> bool {
        self.field_selector.split(',').any(|term| {
            if term.contains("!=") {
                return false;
            }
            term.split_once('=').is_some_and(|(key, wanted)| {
                key.trim() == field && wanted.strip_prefix('=').unwrap_or(wanted).trim() == value
            })
        })
    }
}

impl Attributes<'_> {
    /// The refusal that the client gets; `reason` is the authorizers' and may be empty.
    pub fn forbidden(&self, reason: &str) -> ApiError {
        let mut text = self.refusal();
        if !reason.is_empty() {
            text.push_str(": ");
            text.push_str(reason);
        }
        match self.target {
            Target::Path(_) => ApiError::forbidden(GroupResource::new("", ""), "", text),
            Target::Resource(target) => ApiError::forbidden(
                GroupResource::new(target.group, target.resource),
                target.name,
                text,
            ),
        }
    }

    fn refusal(&self) -> String {
        let user = quote(&self.user.name);
        let target = match self.target {
            Target::Path(path) => {
                return format!("User {user} cannot {} path {}", self.verb, quote(path));
            }
            Target::Resource(target) => target,
        };
        let resource = match target.subresource {
            "" => target.resource.to_owned(),
            subresource => format!("{}/{subresource}", target.resource),
        };
        let place = match target.namespace {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {}", quote(namespace)),
        };
        format!(
            "User {user} cannot {} resource {} in API group {} {place}",
            self.verb,
            quote(&resource),
            quote(target.group)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_upstreams() {
        let user = User { name: "x".into(), ..User::default() };
        let ask = |verb, target| Attributes { user: &user, verb, target }.forbidden("").message;
        let pods = ResourceTarget { resource: "pods", namespace: "default", ..Default::default() };
        assert_eq!(
            ask("list", Target::Resource(pods)),
            r#"pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default""#
        );
        let scale = ResourceTarget {
            group: "apps",
            resource: "deployments",
            subresource: "scale",
            name: "web",
            ..Default::default()
        };
        assert_eq!(
            ask("update", Target::Resource(scale)),
            r#"deployments.apps "web" is forbidden: User "x" cannot update resource "deployments/scale" in API group "apps" at the cluster scope"#
        );
        assert_eq!(
            ask("get", Target::Path("/metrics")),
            r#"forbidden: User "x" cannot get path "/metrics""#
        );
    }

    #[test]
    fn only_an_equality_selects() {
        let of = |field_selector| ResourceTarget { field_selector, ..Default::default() };
        assert!(of("spec.nodeName=n1").selects("spec.nodeName", "n1"));
        assert!(of("status.phase!=Failed,spec.nodeName==n1").selects("spec.nodeName", "n1"));
        assert!(!of("spec.nodeName!=n1").selects("spec.nodeName", "n1"));
        assert!(!of("spec.nodeName=n10").selects("spec.nodeName", "n1"));
        assert!(!of("").selects("spec.nodeName", "n1"));
    }
}
