//! Counts the uses of join tokens that are limited in them: one per approved request. The count stands in the token's Secret as
//! `uses-left`, and beside it as `last-use` the request that was counted last, so that a repeated reconcile counts once. A used-up
//! token stays until it expires: its last node still asks for its certificate with it.

use crate::{
    cluster::Cluster,
    kinds::CertificateSigningRequest,
    runtime::{Error, Key, object::Kind},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;
use std::collections::BTreeMap;

const USES_LEFT: &str = "uses-left";
const LAST_USE: &str = "last-use";

/// What one more request means for a token.
#[derive(Debug, PartialEq, Eq)]
enum Use {
    /// Unlimited, or counted already.
    Free,
    /// So many are left after it.
    Count(u64),
    UsedUp,
}

fn plan_use(data: &BTreeMap<String, String>, request: &str) -> Use {
    let text = |key| {
        let bytes = BASE64_STANDARD.decode(data.get(key)?).ok()?;
        String::from_utf8(bytes).ok()
    };
    let Some(left) = text(USES_LEFT) else { return Use::Free };
    if text(LAST_USE).as_deref() == Some(request) {
        return Use::Free;
    }
    // A count that can't be read was meant as a limit.
    match left.trim().parse::<u64>() {
        Ok(left) if left > 0 => Use::Count(left - 1),
        Ok(_) | Err(_) => Use::UsedUp,
    }
}

/// Counts a request that is about to be approved; the text says why it must not be.
pub(super) async fn count(
    cluster: &Cluster,
    csr: &CertificateSigningRequest,
) -> Result<Option<String>, Error> {
    let Some(id) = csr.spec.username.strip_prefix("system:bootstrap:") else { return Ok(None) };
    let key = Key::new("kube-system", format!("bootstrap-token-{id}"));
    let Some(token) = cluster.tokens.get(&key) else { return Ok(None) };
    match plan_use(&token.data, csr.uid()) {
        Use::Free => Ok(None),
        Use::UsedUp => Ok(Some(format!(
            "token {id} has no uses left; make another with: controlplane token create"
        ))),
        Use::Count(left) => {
            let encode = |text: &str| BASE64_STANDARD.encode(text);
            let data = json!({USES_LEFT: encode(&left.to_string()), LAST_USE: encode(csr.uid())});
            // Of the version that was read: two requests never share one use.
            cluster.tokens.patch_object(&token.metadata, json!({ "data": data })).await?;
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_counts_once_and_none_beyond_the_last() {
        let data = |left: Option<&str>, last: &str| {
            let mut data = BTreeMap::from([(LAST_USE.to_owned(), BASE64_STANDARD.encode(last))]);
            data.extend(left.map(|left| (USES_LEFT.to_owned(), BASE64_STANDARD.encode(left))));
            data
        };
        for (left, last, expected) in [
            (None, "", Use::Free),
            (Some("2"), "", Use::Count(1)),
            (Some("1"), "other", Use::Count(0)),
            (Some("0"), "this", Use::Free),
            (Some("0"), "other", Use::UsedUp),
            (Some("many"), "", Use::UsedUp),
        ] {
            assert_eq!(plan_use(&data(left, last), "this"), expected, "{left:?} {last}");
        }
    }
}
