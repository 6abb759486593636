//! Owns who makes a request. Must not decide what that user may do.

use std::collections::BTreeMap;

use crate::Fence;

/// An authenticated (or anonymous) user as authorization, admission and audit see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// `system:node:pi-3`, `system:serviceaccount:default:builder`, `admin`.
    pub name: String,
    /// Unique over time; empty where the method of authentication has none.
    pub uid: String,
    /// Groups, `system:authenticated` or `system:unauthenticated` included.
    pub groups: Vec<String>,
    /// What the method of authentication adds, such as the pod of a bound token.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// The group of users with all rights, checked ahead of RBAC.
pub const GROUP_MASTERS: &str = "system:masters";
/// Every user who has shown a credential.
pub const GROUP_AUTHENTICATED: &str = "system:authenticated";
/// Requests without any credential.
pub const GROUP_UNAUTHENTICATED: &str = "system:unauthenticated";

impl User {
    /// A user of the given groups, `system:authenticated` added.
    pub fn authenticated(name: impl Into<String>, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        if !groups.iter().any(|g| g == GROUP_AUTHENTICATED) {
            groups.push(GROUP_AUTHENTICATED.to_owned());
        }
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// The user of requests without a credential.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".into(),
            groups: vec![GROUP_UNAUTHENTICATED.into()],
            ..Self::default()
        }
    }

    /// Whether the user is in `group`.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node's name when this is a node's identity: `system:node:<name>` in `system:nodes`.
    pub fn node_name(&self) -> Option<&str> {
        let name = self.name.strip_prefix("system:node:")?;
        (self.is_in("system:nodes") && !name.is_empty()).then_some(name)
    }
}

/// Who calls: made by authentication on a socket, or by the in-process client.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The user the request acts as.
    pub user: User,
    /// The term that its writes depend on.
    pub fence: Option<Fence>,
}

impl Caller {
    /// A caller that acts as `user`.
    pub fn new(user: User) -> Self {
        Self { user, fence: None }
    }

    /// The same, writing only while a term lasts.
    #[must_use]
    pub fn fenced(self, fence: Fence) -> Self {
        Self { fence: Some(fence), ..self }
    }
}
