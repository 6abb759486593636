//! Whether a caller may do what it asks: masters, then the Node authorizer, then RBAC, in that order.
//!
//! Owns the projections of roles, bindings and pods and keeps them current with the store at each question. It
//! writes nothing. Invariant: whatever can't be read grants nothing.

pub mod attributes;
pub mod escalation;
mod feed;
mod node;
mod pod_references;
pub mod rbac;
pub mod reviews;
pub mod rules;

pub use attributes::{Attributes, ResourceTarget, Target};
pub(crate) use pod_references::PodReferences;
pub use rules::Rule;

use crate::User;
use crate::lookup::{Lookup, prefix};
use crate::user::GROUP_MASTERS;
use feed::Feed;
use node::{NodeGraph, NodeRequest};
use rbac::{Rbac, RoleRef};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::Store;

/// What the authorizers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Allowed, and by what.
    Allow(String),
    /// Forbidden, whatever others would say, and why.
    Deny(String),
    /// Nobody allows it; the reasons, which may be an empty text.
    NoOpinion(String),
}

impl Decision {
    /// Whether the request may go on.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    /// The reason given.
    pub fn reason(&self) -> &str {
        match self {
            Self::Allow(reason) | Self::Deny(reason) | Self::NoOpinion(reason) => reason,
        }
    }
}

/// All rules of a user, for SelfSubjectRulesReview and escalation checks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserRules {
    /// What is allowed.
    pub rules: Vec<Rule>,
    /// Why the list may be incomplete.
    pub errors: Vec<String>,
    /// Whether some authorizer can't list its rules.
    pub incomplete: bool,
}

struct Projections {
    rbac: Rbac,
    nodes: NodeGraph,
    rbac_feeds: [Feed; 4],
    pods_feed: Feed,
}

/// Answers questions of authorization. Clones share their projections.
#[derive(Clone)]
pub struct Authorizer {
    store: Store,
    lookup: Lookup,
    node_rules: Arc<[Rule]>,
    projections: Arc<Mutex<Projections>>,
}

impl Authorizer {
    /// An authorizer over the roles, bindings and pods of `store`.
    pub fn new(store: Store) -> Self {
        let projections = Projections {
            rbac: Rbac::default(),
            nodes: NodeGraph::default(),
            rbac_feeds: rbac::PREFIXES.map(Feed::new),
            pods_feed: Feed::new(prefix::PODS),
        };
        Self {
            lookup: Lookup::new(store.clone()),
            store,
            node_rules: crate::bootstrap::node_rules().into(),
            projections: Arc::new(Mutex::new(projections)),
        }
    }

    /// Whether this may be done.
    pub fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes.user.is_in(GROUP_MASTERS) {
            return Decision::Allow(String::new());
        }
        let mut reasons = Vec::new();
        let mut projections = self.lock();
        if let Some(node) = attributes.user.node_name() {
            if let Err(error) = projections.refresh_pods(&self.store) {
                return unavailable(&error);
            }
            let request = NodeRequest {
                node,
                attributes,
                graph: &projections.nodes,
                lookup: &self.lookup,
                rules: &self.node_rules,
            };
            match request.authorize() {
                Ok(()) => return Decision::Allow(String::new()),
                Err(reason) => reasons.push(reason),
            }
        }
        if let Err(error) = projections.refresh_rbac(&self.store) {
            return unavailable(&error);
        }
        match projections.rbac.authorize(attributes) {
            Ok(reason) => Decision::Allow(reason),
            Err(reason) => {
                reasons.push(reason);
                reasons.retain(|reason| !reason.is_empty());
                Decision::NoOpinion(reasons.join("\n"))
            }
        }
    }

    /// All rules of the user in a namespace; cluster-wide ones only, when it is empty.
    pub fn rules_for(&self, user: &User, namespace: &str) -> UserRules {
        let mut projections = self.lock();
        if let Err(error) = projections.refresh_rbac(&self.store) {
            let errors = vec![error.to_string()];
            return UserRules { rules: Vec::new(), errors, incomplete: true };
        }
        let (mut rules, mut errors) = projections.rbac.rules_for(user, namespace);
        if user.is_in(GROUP_MASTERS) {
            rules.push(Rule::everything());
            rules.push(Rule::every_path());
        }
        let incomplete = user.node_name().is_some();
        if incomplete {
            errors.push("node authorizer does not support user rule resolution".to_owned());
        }
        UserRules { rules, errors, incomplete }
    }

    /// The rules of the role that a binding in `namespace` (of the cluster, when `None`) refers to.
    pub fn rules_of_role(
        &self,
        role: &RoleRef,
        namespace: Option<&str>,
    ) -> Result<Vec<Rule>, String> {
        let mut projections = self.lock();
        projections.refresh_rbac(&self.store).map_err(|error| error.to_string())?;
        projections.rbac.rules_of_role(role, namespace)
    }

    /// Aggregated cluster roles by name, with the rules they have now.
    pub(crate) fn aggregated_roles(&self) -> Vec<(String, Vec<Rule>)> {
        let mut projections = self.lock();
        if let Err(error) = projections.refresh_rbac(&self.store) {
            tracing::error!(%error, "roles can't be read");
            return Vec::new();
        }
        let all = projections.rbac.aggregated();
        all.into_iter().map(|(name, rules)| (name.to_owned(), rules)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Projections> {
        self.projections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorizer").finish_non_exhaustive()
    }
}

impl Projections {
    fn refresh_rbac(&mut self, store: &Store) -> Result<(), store::ReadError> {
        self.rbac_feeds.iter_mut().try_for_each(|feed| feed.refresh(store, &mut self.rbac))
    }

    fn refresh_pods(&mut self, store: &Store) -> Result<(), store::ReadError> {
        self.pods_feed.refresh(store, &mut self.nodes)
    }
}

fn unavailable(error: &store::ReadError) -> Decision {
    tracing::error!(%error, "authorization state can't be read");
    Decision::Deny(format!("authorization state can't be read: {error}"))
}

#[cfg(test)]
mod tests;
