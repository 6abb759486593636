//! Service-account tokens: what their claims must still prove against the store, and how a TokenRequest becomes one.
//!
//! Owns the claims (`kubernetes.io` as upstream writes it), their check and `TokenRequest`'s semantics. The
//! signature is `token_issuer`'s. Invariant: a token lives no longer than the objects it is bound to.

use super::token_issuer::{IssuerError, TokenIssuer, VerifyError};
use super::{Authenticated, CREDENTIAL_ID_KEY};
use crate::User;
use crate::lookup::{Lookup, LookupError, Meta, MetaOnly, prefix};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Kubernetes 1.36: an object counts as deleted for tokens this long after its deletion was asked for.
const DELETION_LEEWAY_SECONDS: i64 = 60;
/// What the kubelet asks for; such a token is given a longer life, so that readers that never reload keep working.
const WARN_ONLY_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 60 * 60;
const USER_PREFIX: &str = "system:serviceaccount:";
const GROUP_ALL: &str = "system:serviceaccounts";
const POD_NAME_KEY: &str = "authentication.kubernetes.io/pod-name";
const POD_UID_KEY: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME_KEY: &str = "authentication.kubernetes.io/node-name";
const NODE_UID_KEY: &str = "authentication.kubernetes.io/node-uid";

/// Why a service-account token was refused.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Its bytes.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// Another issuer's.
    #[error("issuer {0:?} is not this cluster")]
    Issuer(String),
    /// None of the wanted audiences.
    #[error("audiences {0:?} are not accepted here")]
    Audience(Vec<String>),
    /// Too old.
    #[error("token has expired")]
    Expired,
    /// Too young.
    #[error("token is not valid yet")]
    NotYet,
    /// Claims contradict each other.
    #[error("subject {0:?} contradicts the claims")]
    Subject(String),
    /// A bound object is gone, being deleted, or another one of the same name.
    #[error("{kind} {name} {problem}")]
    Bound {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A bound object could not be read.
    #[error(transparent)]
    Lookup(#[from] LookupError),
}

/// Name and UID of an object that a token is bound to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    #[serde(default)]
    pub uid: String,
}

/// The private claim `kubernetes.io`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundClaims {
    /// Of the service account.
    pub namespace: String,
    /// Set when the token is bound to a node, or to a pod on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// Set when the token is bound to a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// Set when the token is bound to a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    /// Whose token it is.
    pub serviceaccount: Reference,
    /// Seconds of the epoch from which on a use is worth a warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// All claims of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// For whom.
    pub aud: Vec<String>,
    /// Until when.
    pub exp: i64,
    /// Made when.
    pub iat: i64,
    /// By whom.
    pub iss: String,
    /// The token's own id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub jti: String,
    /// What it is bound to.
    #[serde(rename = "kubernetes.io")]
    pub bound: BoundClaims,
    /// From when on.
    pub nbf: i64,
    /// `system:serviceaccount:<namespace>:<name>`.
    pub sub: String,
}

/// What a token is to be bound to, with the objects' metadata as stored.
#[derive(Debug, Clone, Default)]
pub struct Binding {
    /// The pod, and its node.
    pub pod: Option<Reference>,
    /// The node itself, or the pod's.
    pub node: Option<Reference>,
    /// The secret.
    pub secret: Option<Reference>,
}

/// The user name of a service account.
pub fn user_name(namespace: &str, name: &str) -> String {
    format!("{USER_PREFIX}{namespace}:{name}")
}

/// Namespace and name, when the user is a service account.
pub fn split_user_name(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix(USER_PREFIX)?
        .split_once(':')
        .filter(|(ns, name)| !ns.is_empty() && !name.is_empty() && !name.contains(':'))
}

/// The groups of every service account of the namespace.
pub fn groups(namespace: &str) -> Vec<String> {
    vec![GROUP_ALL.to_owned(), format!("{GROUP_ALL}:{namespace}")]
}

/// A signed token and the moment that the client is told it lasts to.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The compact JWT.
    pub token: String,
    /// `status.expirationTimestamp`.
    pub expires: Timestamp,
}

/// Makes a token for a service account. `seconds` and `audiences` have been validated.
pub(crate) fn issue(
    issuer: &TokenIssuer,
    account: &Meta,
    binding: Binding,
    (audiences, seconds): (Vec<String>, i64),
    now: Timestamp,
) -> Result<Issued, IssuerError> {
    let now_seconds = now.as_second();
    let extend = seconds == WARN_ONLY_SECONDS
        && binding.pod.is_some()
        && audiences.iter().any(|audience| issuer.audiences().contains(audience));
    let promised = now_seconds.saturating_add(seconds);
    let claims = Claims {
        aud: audiences,
        exp: if extend { now_seconds.saturating_add(EXTENDED_SECONDS) } else { promised },
        iat: now_seconds,
        iss: issuer.issuer().to_owned(),
        jti: issuer.random_id()?,
        bound: BoundClaims {
            namespace: account.namespace.clone(),
            node: binding.node,
            pod: binding.pod,
            secret: binding.secret,
            serviceaccount: Reference { name: account.name.clone(), uid: account.uid.clone() },
            warnafter: extend.then_some(promised),
        },
        nbf: now_seconds,
        sub: user_name(&account.namespace, &account.name),
    };
    let token = issuer.sign(&claims)?;
    let expires = Timestamp::from_second(promised).unwrap_or(Timestamp::MAX);
    Ok(Issued { token, expires })
}

/// Who holds the token, when everything it claims still holds.
pub(crate) fn authenticate(
    lookup: &Lookup,
    issuer: &TokenIssuer,
    token: &str,
    (wanted, now): (&[String], Timestamp),
) -> Result<Authenticated, TokenError> {
    let claims: Claims = issuer.verify(token)?;
    let audiences = check_claims(&claims, issuer.issuer(), wanted, now)?;
    check_objects(lookup, &claims.bound, now)?;
    Ok(Authenticated { user: user_of(&claims), audiences })
}

fn check_claims(
    claims: &Claims,
    issuer: &str,
    wanted: &[String],
    now: Timestamp,
) -> Result<Vec<String>, TokenError> {
    if claims.iss != issuer {
        return Err(TokenError::Issuer(claims.iss.clone()));
    }
    let now = now.as_second();
    if now >= claims.exp {
        return Err(TokenError::Expired);
    }
    if now < claims.nbf {
        return Err(TokenError::NotYet);
    }
    let audiences: Vec<String> =
        claims.aud.iter().filter(|aud| wanted.contains(aud)).cloned().collect();
    if audiences.is_empty() {
        return Err(TokenError::Audience(claims.aud.clone()));
    }
    if claims.sub != user_name(&claims.bound.namespace, &claims.bound.serviceaccount.name) {
        return Err(TokenError::Subject(claims.sub.clone()));
    }
    Ok(audiences)
}

fn check_objects(lookup: &Lookup, bound: &BoundClaims, now: Timestamp) -> Result<(), TokenError> {
    let namespace = Some(bound.namespace.as_str());
    let check = |kind, prefix, namespace, reference: &Reference| {
        let found: Option<MetaOnly> = lookup.get(prefix, namespace, &reference.name)?;
        check_object(kind, found.map(|object| object.metadata), reference, now)
    };
    check("service account", prefix::SERVICE_ACCOUNTS, namespace, &bound.serviceaccount)?;
    if let Some(secret) = &bound.secret {
        check("secret", prefix::SECRETS, namespace, secret)?;
    }
    match (&bound.pod, &bound.node) {
        (Some(pod), _) => check("pod", prefix::PODS, namespace, pod),
        (None, Some(node)) => check("node", prefix::NODES, None, node),
        (None, None) => Ok(()),
    }
}

fn check_object(
    kind: &'static str,
    found: Option<Meta>,
    reference: &Reference,
    now: Timestamp,
) -> Result<(), TokenError> {
    let problem = match found {
        None => "does not exist",
        Some(meta) if meta.uid != reference.uid => "is another one of the same name",
        Some(meta)
            if meta.deletion_timestamp.is_some_and(|at| {
                at.as_second().saturating_add(DELETION_LEEWAY_SECONDS) < now.as_second()
            }) =>
        {
            "has been deleted"
        }
        Some(_) => return Ok(()),
    };
    Err(TokenError::Bound { kind, name: reference.name.clone(), problem })
}

fn user_of(claims: &Claims) -> User {
    let bound = &claims.bound;
    let mut extra = BTreeMap::new();
    let mut put = |key: &str, value: String| extra.insert(key.to_owned(), vec![value]);
    if !claims.jti.is_empty() {
        put(CREDENTIAL_ID_KEY, format!("JTI={}", claims.jti));
    }
    if let Some(pod) = &bound.pod {
        put(POD_NAME_KEY, pod.name.clone());
        put(POD_UID_KEY, pod.uid.clone());
    }
    if let Some(node) = &bound.node {
        put(NODE_NAME_KEY, node.name.clone());
        put(NODE_UID_KEY, node.uid.clone());
    }
    User {
        name: claims.sub.clone(),
        uid: bound.serviceaccount.uid.clone(),
        groups: groups(&bound.namespace),
        extra,
    }
}

#[cfg(test)]
mod tests {
    use super::super::token_issuer::tests::issuer;
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn account() -> Meta {
        Meta {
            name: "builder".into(),
            namespace: "ci".into(),
            uid: "u1".into(),
            deletion_timestamp: None,
        }
    }

    fn pod() -> Binding {
        let of = |name: &str| Some(Reference { name: name.into(), uid: format!("{name}-uid") });
        Binding { pod: of("p"), node: of("n"), secret: None }
    }

    fn claims(binding: Binding, audience: &str, seconds: i64) -> Claims {
        let issuer = issuer();
        let issued =
            issue(&issuer, &account(), binding, (vec![audience.into()], seconds), at(0)).unwrap();
        assert_eq!(issued.expires, at(seconds));
        issuer.verify(&issued.token).unwrap()
    }

    const API: &str = "https://kubernetes.default.svc.cluster.local";

    #[test]
    fn claims_are_judged() {
        let good = claims(Binding::default(), API, 600);
        let wanted = [API.to_owned()];
        let check = |claims: &Claims, seconds| check_claims(claims, API, &wanted, at(seconds));
        assert_eq!(check(&good, 599).unwrap(), wanted);
        assert!(matches!(check(&good, 600), Err(TokenError::Expired)));
        assert!(matches!(check(&good, -1), Err(TokenError::NotYet)));
        let changed = Claims { iss: "https://other".into(), ..good.clone() };
        assert!(matches!(check(&changed, 1), Err(TokenError::Issuer(_))));
        let changed = Claims { sub: user_name("kube-system", "builder"), ..good.clone() };
        assert!(matches!(check(&changed, 1), Err(TokenError::Subject(_))));
        let vault = claims(Binding::default(), "vault", 600);
        assert!(matches!(check(&vault, 1), Err(TokenError::Audience(_))));
    }

    #[test]
    fn only_a_pods_api_token_of_the_kubelets_length_is_extended() {
        assert_eq!(claims(pod(), API, 3607).exp, at(EXTENDED_SECONDS).as_second());
        assert_eq!(claims(pod(), API, 3607).bound.warnafter, Some(at(3607).as_second()));
        assert_eq!(claims(pod(), "vault", 3607).exp, at(3607).as_second());
        assert_eq!(claims(Binding::default(), API, 3607).exp, at(3607).as_second());
        assert_eq!(claims(pod(), API, 3600).exp, at(3600).as_second());
    }

    #[test]
    fn a_bound_object_must_be_the_same_and_alive() {
        let reference = Reference { name: "p".into(), uid: "u".into() };
        let meta = |uid: &str, deleted: Option<i64>| {
            Some(Meta { uid: uid.into(), deletion_timestamp: deleted.map(at), ..account() })
        };
        let cases = [
            (meta("u", None), None),
            (meta("u", Some(-60)), None),
            (meta("u", Some(-61)), Some("has been deleted")),
            (meta("other", None), Some("is another one of the same name")),
            (None, Some("does not exist")),
        ];
        for (found, expected) in cases {
            let answer = check_object("pod", found, &reference, at(0));
            match expected {
                None => answer.unwrap(),
                Some(text) => assert!(answer.unwrap_err().to_string().ends_with(text)),
            }
        }
    }

    #[test]
    fn the_user_carries_what_the_token_is_bound_to() {
        let user = user_of(&claims(pod(), API, 600));
        assert_eq!(user.name, "system:serviceaccount:ci:builder");
        assert_eq!(user.uid, "u1");
        assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:ci"]);
        assert_eq!(user.extra[POD_NAME_KEY], ["p"]);
        assert_eq!(user.extra[NODE_UID_KEY], ["n-uid"]);
    }
}
