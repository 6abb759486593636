//! Bootstrap tokens: `<id>.<secret>`, kept as Secret `kube-system/bootstrap-token-<id>`.
//!
//! Owns the check of such a token and the identity it gives (`system:bootstrap:<id>`). It creates no tokens
//! and deletes none: the token cleaner does. The secret is compared in constant time.

use crate::User;
use crate::lookup::{Lookup, LookupError, Meta, prefix};
use base64::Engine as _;
use jiff::Timestamp;
use serde::Deserialize;
use std::collections::BTreeMap;

const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;
const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const DEFAULT_GROUP: &str = "system:bootstrappers";
const GROUP_PREFIX: &str = "system:bootstrappers:";
const GROUP_LENGTH_MAX: usize = GROUP_PREFIX.len() + 256;
const USER_PREFIX: &str = "system:bootstrap:";

/// Why a bootstrap token was refused.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapTokenError {
    /// No such token, or it is being deleted.
    #[error("token {id} does not exist")]
    Unknown {
        /// The token's id.
        id: String,
    },
    /// The secret object is not a token of this id.
    #[error("secret of token {id} is not valid: {problem}")]
    Malformed {
        /// The token's id.
        id: String,
        /// What is wrong with the object.
        problem: String,
    },
    /// The secret part is wrong.
    #[error("token {id}: wrong secret")]
    WrongSecret {
        /// The token's id.
        id: String,
    },
    /// The token's time is over.
    #[error("token {id} expired")]
    Expired {
        /// The token's id.
        id: String,
    },
    /// The token is not meant for authentication.
    #[error("token {id} is not for authentication")]
    WrongUsage {
        /// The token's id.
        id: String,
    },
    /// The secret could not be read.
    #[error(transparent)]
    Lookup(#[from] LookupError),
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TokenSecret {
    metadata: Meta,
    #[serde(rename = "type")]
    kind: String,
    data: BTreeMap<String, String>,
}

impl TokenSecret {
    fn field(&self, key: &str) -> Option<String> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(self.data.get(key)?).ok()?;
        String::from_utf8(bytes).ok()
    }
}

/// Whether the text has the form of a bootstrap token.
pub fn looks_like_token(token: &str) -> bool {
    let of = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
    };
    token.split_once('.').is_some_and(|(id, secret)| of(id, ID_LENGTH) && of(secret, SECRET_LENGTH))
}

/// The identity of a bootstrap token's holder.
pub(crate) fn authenticate(
    lookup: &Lookup,
    token: &str,
    now: Timestamp,
) -> Result<User, BootstrapTokenError> {
    let (id, secret) = token.split_once('.').unwrap_or((token, ""));
    let name = format!("bootstrap-token-{id}");
    let found: Option<TokenSecret> = lookup.get(prefix::SECRETS, Some("kube-system"), &name)?;
    let object = found
        .filter(|object| object.metadata.deletion_timestamp.is_none())
        .ok_or_else(|| BootstrapTokenError::Unknown { id: id.to_owned() })?;
    check(&object, id, secret, now)
}

fn check(
    object: &TokenSecret,
    id: &str,
    secret: &str,
    now: Timestamp,
) -> Result<User, BootstrapTokenError> {
    let id_owned = || id.to_owned();
    let malformed = |problem: String| BootstrapTokenError::Malformed { id: id.to_owned(), problem };
    if object.kind != SECRET_TYPE {
        return Err(malformed(format!("its type is {:?}", object.kind)));
    }
    let stored = object
        .field("token-secret")
        .filter(|stored| !stored.is_empty())
        .ok_or_else(|| malformed("token-secret is missing".to_owned()))?;
    if !constant_time_eq(stored.as_bytes(), secret.as_bytes()) {
        return Err(BootstrapTokenError::WrongSecret { id: id_owned() });
    }
    if object.field("token-id").as_deref() != Some(id) {
        return Err(malformed("token-id differs from the name".to_owned()));
    }
    if let Some(text) = object.field("expiration") {
        let until: Timestamp =
            text.parse().map_err(|_| malformed(format!("expiration {text:?} is no time")))?;
        if until <= now {
            return Err(BootstrapTokenError::Expired { id: id_owned() });
        }
    }
    if object.field("usage-bootstrap-authentication").as_deref() != Some("true") {
        return Err(BootstrapTokenError::WrongUsage { id: id_owned() });
    }
    let groups = groups(&object.field("auth-extra-groups").unwrap_or_default())
        .map_err(|group| malformed(format!("group {group:?} must match {GROUP_PREFIX}...")))?;
    Ok(User { name: format!("{USER_PREFIX}{id}"), groups, ..User::default() })
}

/// The default group and the extra ones; the first wrong group is the error.
fn groups(extra: &str) -> Result<Vec<String>, String> {
    let mut groups = vec![DEFAULT_GROUP.to_owned()];
    for group in extra.split(',').map(str::trim).filter(|group| !group.is_empty()) {
        if !is_extra_group(group) {
            return Err(group.to_owned());
        }
        if !groups.iter().any(|known| known == group) {
            groups.push(group.to_owned());
        }
    }
    Ok(groups)
}

fn is_extra_group(group: &str) -> bool {
    let Some(rest) = group.strip_prefix(GROUP_PREFIX) else { return false };
    let alphanumeric = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase();
    group.len() <= GROUP_LENGTH_MAX
        && rest.bytes().all(|b| alphanumeric(b) || b == b':' || b == b'-')
        && rest.bytes().last().is_some_and(alphanumeric)
}

/// Compares without telling by its duration where the texts differ.
fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0u8, |acc, (x, y)| acc | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(pairs: &[(&str, &str)]) -> TokenSecret {
        let encode = |v: &str| base64::engine::general_purpose::STANDARD.encode(v);
        TokenSecret {
            metadata: Meta::default(),
            kind: SECRET_TYPE.to_owned(),
            data: pairs.iter().map(|(k, v)| ((*k).to_owned(), encode(v))).collect(),
        }
    }

    const GOOD: [(&str, &str); 4] = [
        ("token-id", "abcdef"),
        ("token-secret", "0123456789abcdef"),
        ("usage-bootstrap-authentication", "true"),
        ("auth-extra-groups", "system:bootstrappers:flotilla:nodes"),
    ];

    fn with(key: &'static str, value: &'static str) -> TokenSecret {
        let mut pairs: Vec<_> = GOOD.iter().copied().filter(|(k, _)| *k != key).collect();
        pairs.push((key, value));
        secret(&pairs)
    }

    fn run(object: &TokenSecret, given: &str) -> Result<User, BootstrapTokenError> {
        check(object, "abcdef", given, "2026-01-01T00:00:00Z".parse().unwrap())
    }

    #[test]
    fn a_good_token_gives_its_identity() {
        let user = run(&secret(&GOOD), "0123456789abcdef").unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert_eq!(user.groups, ["system:bootstrappers", "system:bootstrappers:flotilla:nodes"]);
    }

    #[test]
    fn bad_tokens_are_refused_with_the_reason() {
        let cases = [
            (secret(&GOOD), "0123456789abcdeX", "wrong secret"),
            (secret(&GOOD), "0123456789abcde", "wrong secret"),
            (with("expiration", "2025-12-31T23:59:59Z"), "0123456789abcdef", "expired"),
            (with("expiration", "2026-01-01T00:00:00Z"), "0123456789abcdef", "expired"),
            (with("expiration", "soon"), "0123456789abcdef", "is no time"),
            (with("usage-bootstrap-authentication", "false"), "0123456789abcdef", "not for auth"),
            (with("token-id", "abcdeg"), "0123456789abcdef", "token-id differs"),
            (with("auth-extra-groups", "system:masters"), "0123456789abcdef", "must match"),
            (with("token-secret", ""), "", "token-secret is missing"),
        ];
        for (object, given, expected) in cases {
            let text = run(&object, given).unwrap_err().to_string();
            assert!(text.contains(expected), "{text} should say {expected}");
        }
    }

    #[test]
    fn form_of_a_token() {
        assert!(looks_like_token("abcdef.0123456789abcdef"));
        assert!(!looks_like_token("abcdef.0123456789abcdeF"));
        assert!(!looks_like_token("abcdef.0123456789abcdef.0011"));
        assert!(!looks_like_token("abcde.0123456789abcdef"));
    }
}
