//! Acting as somebody else: the `Impersonate-*` headers and the rights they need.
//!
//! Owns which questions are asked of the authorizer and the user that comes out. The caller's own identity has been proven
//! before. Kubernetes 1.36, `k8s.io/apiserver/pkg/endpoints/filters/impersonation`.

use super::{anonymous, service_account, with_authenticated_group};
use crate::User;
use crate::authz::{Attributes, Authorizer, ResourceTarget, Target};
use apimachinery::status::ApiError;
use http::HeaderMap;
use std::collections::BTreeMap;

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA: &str = "impersonate-extra-";
const AUTHENTICATION_GROUP: &str = "authentication.k8s.io";
const UNAUTHENTICATED: &str = "system:unauthenticated";

/// The user to act as, when the headers name one and `caller` may do that.
pub fn impersonate(
    authorizer: &Authorizer,
    caller: &User,
    headers: &HeaderMap,
) -> Result<Option<User>, ApiError> {
    let Some(wanted) = wanted(headers)? else { return Ok(None) };
    for question in questions(&wanted) {
        let attributes =
            Attributes { user: caller, verb: "impersonate", target: Target::Resource(question) };
        let decision = authorizer.authorize(&attributes);
        if !decision.is_allowed() {
            return Err(attributes.forbidden(decision.reason()));
        }
    }
    Ok(Some(finished(wanted)))
}

/// Whether a header asks for impersonation.
pub fn is_header(name: &str) -> bool {
    [USER, UID, GROUP].contains(&name) || name.starts_with(EXTRA)
}

fn wanted(headers: &HeaderMap) -> Result<Option<User>, ApiError> {
    let text = |name: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let name = text(USER).into_iter().next().unwrap_or_default();
    let uid = text(UID).into_iter().next().unwrap_or_default();
    let groups = text(GROUP);
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (header, value) in headers {
        let Some(key) = header.as_str().strip_prefix(EXTRA) else { continue };
        let value = value.to_str().unwrap_or_default().to_owned();
        extra.entry(percent_decoded(key)).or_default().push(value);
    }
    if name.is_empty() {
        if uid.is_empty() && groups.is_empty() && extra.is_empty() {
            return Ok(None);
        }
        return Err(ApiError::internal("requested impersonation without impersonating a user"));
    }
    Ok(Some(User { name, uid, groups, extra }))
}

/// Everything that the caller must be allowed to impersonate.
fn questions(wanted: &User) -> Vec<ResourceTarget<'_>> {
    let mut questions = Vec::new();
    questions.push(match service_account::split_user_name(&wanted.name) {
        Some((namespace, name)) => ResourceTarget {
            resource: "serviceaccounts",
            version: "v1",
            namespace,
            name,
            ..ResourceTarget::default()
        },
        None => ResourceTarget {
            resource: "users",
            version: "v1",
            name: &wanted.name,
            ..ResourceTarget::default()
        },
    });
    let of = |group, resource, subresource, name| ResourceTarget {
        group,
        version: "v1",
        resource,
        subresource,
        name,
        ..ResourceTarget::default()
    };
    questions.extend(wanted.groups.iter().map(|group| of("", "groups", "", group.as_str())));
    if !wanted.uid.is_empty() {
        questions.push(of(AUTHENTICATION_GROUP, "uids", "", &wanted.uid));
    }
    for (key, values) in &wanted.extra {
        let extras = values.iter();
        questions.extend(extras.map(|value| of(AUTHENTICATION_GROUP, "userextras", key, value)));
    }
    questions
}

fn finished(mut user: User) -> User {
    if let Some((namespace, _)) = service_account::split_user_name(&user.name)
        && user.groups.is_empty()
    {
        user.groups = service_account::groups(namespace);
    }
    if user.name == anonymous::NAME && !user.groups.iter().any(|group| group == UNAUTHENTICATED) {
        user.groups.push(UNAUTHENTICATED.to_owned());
    }
    if user.groups.iter().any(|group| group == UNAUTHENTICATED) {
        return user;
    }
    with_authenticated_group(user)
}

/// Header names can't carry every character; clients write the others as `%2F`.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn headers_become_a_user_and_questions() {
        let given = headers(&[
            ("impersonate-user", "eve"),
            ("impersonate-group", "dev"),
            ("impersonate-group", "ops"),
            ("impersonate-extra-acme.com%2fteam", "a"),
        ]);
        let user = wanted(&given).unwrap().unwrap();
        assert_eq!(user.groups, ["dev", "ops"]);
        assert_eq!(user.extra["acme.com/team"], ["a"]);
        let asked: Vec<_> = questions(&user)
            .iter()
            .map(|q| (q.resource, q.subresource, q.name.to_owned()))
            .collect();
        assert_eq!(
            asked,
            [
                ("users", "", "eve".to_owned()),
                ("groups", "", "dev".to_owned()),
                ("groups", "", "ops".to_owned()),
                ("userextras", "acme.com/team", "a".to_owned()),
            ]
        );
        assert_eq!(finished(user).groups, ["dev", "ops", "system:authenticated"]);
    }

    #[test]
    fn a_service_account_gets_its_groups() {
        let name = "system:serviceaccount:ci:builder";
        let user = wanted(&headers(&[("impersonate-user", name)])).unwrap().unwrap();
        assert_eq!(questions(&user)[0].namespace, "ci");
        assert_eq!(
            finished(user).groups,
            ["system:serviceaccounts", "system:serviceaccounts:ci", "system:authenticated"]
        );
    }

    #[test]
    fn groups_without_a_user_are_refused_and_nothing_is_nothing() {
        assert!(wanted(&headers(&[("impersonate-group", "system:masters")])).is_err());
        assert_eq!(wanted(&headers(&[])).unwrap(), None);
    }
}
