//! Owns the continue token of paged lists: which revision, and where to go on. Opaque to clients. Must not read the store.

use apimachinery::status::ApiError;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use store::Revision;

/// The token's version.
const VERSION: &str = "meta.k8s.io/v1";

/// Where a paged list goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Continue {
    v: String,
    /// Revision of the whole list.
    pub(crate) rv: Revision,
    /// First key of the next page, behind the collection's prefix.
    pub(crate) start: String,
}

impl Continue {
    /// Goes on behind `last` (relative to the collection's prefix).
    pub(crate) fn behind(rv: Revision, last: &str) -> Self {
        Self { v: VERSION.to_owned(), rv, start: format!("{last}\0") }
    }

    pub(crate) fn encode(&self) -> String {
        // A struct of strings and a number always serialises.
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    pub(crate) fn decode(token: &str) -> Result<Self, ApiError> {
        let invalid = |e: &dyn std::fmt::Display| {
            ApiError::bad_request(format!("continue key is not valid: {e}"))
        };
        let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|e| invalid(&e))?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|e| invalid(&e))?;
        if token.v != VERSION || token.rv <= 0 || token.start.is_empty() {
            return Err(invalid(
                &"incorrect encoded start resourceVersion (version meta.k8s.io/v1)",
            ));
        }
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_there_and_back() {
        let token = Continue::behind(42, "default/a");
        assert_eq!(Continue::decode(&token.encode()).unwrap(), token);
        for bad in ["", "%%%", "e30", "eyJ2IjoieCJ9"] {
            assert_eq!(Continue::decode(bad).unwrap_err().code, 400, "{bad}");
        }
    }
}
