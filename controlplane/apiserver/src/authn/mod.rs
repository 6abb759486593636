//! Who is calling: turns what a connection and a request's headers prove into a `User`.
//!
//! Owns the order in which proofs are tried (client certificate, bearer token, nobody) and the groups that
//! every caller gets. It decides nothing about what the caller may do. Invariant: a proof that was offered and
//! is wrong fails the request; it never falls back to the anonymous user.

pub mod anonymous;
pub mod bootstrap;
pub mod impersonation;
pub mod service_account;
pub mod token_issuer;
pub mod token_request;
pub mod x509;

use crate::User;
use crate::lookup::{Lookup, LookupError};
use apimachinery::status::ApiError;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use jiff::Timestamp;
use std::sync::Arc;
use store::Store;
use token_issuer::TokenIssuer;

/// The group of everybody who proved who they are.
pub const ALL_AUTHENTICATED: &str = "system:authenticated";
/// The group of everybody else.
pub const ALL_UNAUTHENTICATED: &str = "system:unauthenticated";
/// The extra key under which the credential itself is named.
pub const CREDENTIAL_ID_KEY: &str = "authentication.kubernetes.io/credential-id";

/// A bearer token longer than this is refused before anything parses it.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
const WEBSOCKET_PROTOCOL: &str = "sec-websocket-protocol";
pub(crate) const WEBSOCKET_BEARER_PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// Why a proof was not accepted. The client only ever learns `Unauthorized`.
#[derive(Debug, thiserror::Error)]
pub enum AuthnError {
    /// The client certificate can't be read or names nobody.
    #[error("client certificate: {0}")]
    Certificate(String),
    /// The token is of no known form.
    #[error("bearer token is of no known form")]
    UnknownToken,
    /// The token's form is known, and it is not valid.
    #[error("bearer token: {0}")]
    Token(#[from] service_account::TokenError),
    /// The bootstrap token is not valid.
    #[error("bootstrap token: {0}")]
    Bootstrap(#[from] bootstrap::BootstrapTokenError),
    /// A referred object could not be read.
    #[error(transparent)]
    Lookup(#[from] LookupError),
}

impl AuthnError {
    /// The answer to the client.
    pub fn to_api_error(&self) -> ApiError {
        ApiError::unauthorized("Unauthorized")
    }
}

/// A user together with the audiences that the token was meant for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authenticated {
    /// Who.
    pub user: User,
    /// The audiences of the token that this server accepts; empty for certificates.
    pub audiences: Vec<String>,
}

/// Tries the proofs of a request in order.
#[derive(Debug, Clone)]
pub struct Authenticator {
    lookup: Lookup,
    issuer: Arc<TokenIssuer>,
}

impl Authenticator {
    /// An authenticator that reads secrets, service accounts, pods and nodes of `store`.
    pub fn new(store: Store, issuer: Arc<TokenIssuer>) -> Self {
        Self { lookup: Lookup::new(store), issuer }
    }

    /// The audiences that the API server accepts.
    pub fn api_audiences(&self) -> &[String] {
        self.issuer.audiences()
    }

    /// The document of `/openid/v1/jwks`.
    pub fn jwks(&self) -> serde_json::Value {
        self.issuer.jwks()
    }

    /// The document of `/.well-known/openid-configuration`; `external` is `https://host:port` of the API server.
    pub fn openid_configuration(&self, external: &str) -> serde_json::Value {
        self.issuer.openid_configuration(external)
    }

    /// Who sends a request with these headers over a connection with this verified client certificate (DER).
    pub fn authenticate(
        &self,
        certificate: Option<&[u8]>,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<User, AuthnError> {
        if let Some(der) = certificate {
            return x509::user_of(der).map(with_authenticated_group);
        }
        let Some(token) = bearer_token(headers) else { return Ok(anonymous::user()) };
        let audiences = self.issuer.audiences().to_vec();
        Ok(self.authenticate_token(&token, &audiences, now)?.user)
    }

    /// Who holds this token, accepted for one of `audiences`. TokenReview asks this too.
    pub fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<Authenticated, AuthnError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthnError::UnknownToken);
        }
        let found = if bootstrap::looks_like_token(token) {
            let user = bootstrap::authenticate(&self.lookup, token, now)?;
            Authenticated { user, audiences: Vec::new() }
        } else if token.split('.').count() == 3 {
            service_account::authenticate(&self.lookup, &self.issuer, token, (audiences, now))?
        } else {
            return Err(AuthnError::UnknownToken);
        };
        Ok(Authenticated { user: with_authenticated_group(found.user), ..found })
    }
}

pub(crate) fn with_authenticated_group(mut user: User) -> User {
    if user.name != anonymous::NAME && !user.groups.iter().any(|g| g == ALL_AUTHENTICATED) {
        user.groups.push(ALL_AUTHENTICATED.to_owned());
    }
    user
}

/// The bearer token of `Authorization`, or of a WebSocket's protocol list (browsers can't set headers).
fn bearer_token(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        let text = value.to_str().ok()?.trim();
        let (scheme, token) = text.split_once(' ')?;
        let token = token.trim();
        return (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
            .then(|| token.to_owned());
    }
    headers
        .get_all(WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|protocol| protocol.trim().strip_prefix(WEBSOCKET_BEARER_PREFIX))
        .find_map(|encoded| {
            use base64::Engine as _;
            let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).ok()?;
            String::from_utf8(bytes).ok()
        })
}
