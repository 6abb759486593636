//! Service-account tokens for pods: requested from the master, renewed at four fifths of their life
//! (or after a day), the first one of a run kept for a boot without a master: each further one would be a write to flash, and where
//! nobody is there to look at it, an old one does as well.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use kube::api::{Api, PostParams};
use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::connection::{Link, chain};
use crate::pod::spec;

/// Kubernetes' default for `expirationSeconds`.
const LIFETIME_SECONDS_DEFAULT: i64 = 3600;
/// kubelet renews after a day whatever the lifetime.
const AGE_SECONDS_MAX: i64 = 24 * 3600;
/// A token that could not be renewed is tried again after this.
const RETRY_SECONDS: i64 = 30;

#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("the master issued no token")]
    Api(#[from] kube::Error),
    #[error("the master's answer holds no token")]
    Empty,
    #[error("the master is away and no token was kept")]
    Away,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Token {
    pub(crate) token: String,
    pub(crate) renew_at: Timestamp,
    expires_at: Timestamp,
}

/// Tokens by pod, audience and lifetime.
pub(crate) struct Tokens {
    client: kube::Client,
    link: Arc<Link>,
    checkpoint: Arc<Checkpoint>,
    held: Mutex<HashMap<String, Token>>,
}

impl Tokens {
    pub(crate) fn new(
        client: kube::Client,
        link: Arc<Link>,
        checkpoint: Arc<Checkpoint>,
    ) -> Tokens {
        Tokens { client, link, checkpoint, held: Mutex::default() }
    }

    /// A token that is not due for renewal; an old one when the master can't be asked.
    pub(crate) async fn get(
        &self,
        pod: &Pod,
        want: &ServiceAccountTokenProjection,
    ) -> Result<Token, TokenError> {
        let key = key(pod, want);
        let held = self.held().get(&key).cloned();
        let now = Timestamp::now();
        if let Some(token) = held.as_ref().filter(|token| token.renew_at > now) {
            return Ok(token.clone());
        }
        let retry_at = now + SignedDuration::from_secs(RETRY_SECONDS);
        let old = held.or_else(|| self.checkpoint.object::<Token>(&key));
        if !self.link.connected() {
            return old.map(|token| Token { renew_at: retry_at, ..token }).ok_or(TokenError::Away);
        }
        match self.request(pod, want).await {
            Ok(token) => {
                self.keep(&key, &token);
                Ok(token)
            }
            Err(error) => match old.filter(|token| token.expires_at > now) {
                Some(token) => {
                    tracing::warn!(error = %chain(&error), "a token was not renewed");
                    Ok(Token { renew_at: retry_at, ..token })
                }
                None => Err(error),
            },
        }
    }

    fn keep(&self, key: &str, token: &Token) {
        if self.held().insert(key.to_owned(), token.clone()).is_none() {
            self.checkpoint.save_object(key, token);
        }
    }

    /// Also what an earlier run of the agent kept.
    pub(crate) fn forget(&self, pod: &Pod) {
        let prefix = format!("token.{}.", spec::uid(pod));
        self.held().retain(|key, _| !key.starts_with(&prefix));
        self.checkpoint.remove_objects(&prefix);
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<String, Token>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn request(
        &self,
        pod: &Pod,
        want: &ServiceAccountTokenProjection,
    ) -> Result<Token, TokenError> {
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
        let account = account.filter(|name| !name.is_empty()).unwrap_or("default");
        let audiences = want.audience.clone().into_iter().filter(|a| !a.is_empty());
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(audiences.collect()),
                expiration_seconds: Some(lifetime(want)),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
            }),
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), spec::namespace(pod));
        let answer: TokenRequest =
            api.create_subresource("token", account, &PostParams::default(), &request).await?;
        let status = answer.status.ok_or(TokenError::Empty)?;
        let now = Timestamp::now();
        let (Some(token), Some(expiry)) = (status.token, status.expiration_timestamp) else {
            return Err(TokenError::Empty);
        };
        let expires_at = expiry.0;
        let life = expires_at.duration_since(now).as_secs().max(0);
        let renew_in = (life / 5 * 4).clamp(RETRY_SECONDS, AGE_SECONDS_MAX);
        let renew_at = now + SignedDuration::from_secs(renew_in);
        Ok(Token { token, renew_at, expires_at })
    }
}

fn lifetime(want: &ServiceAccountTokenProjection) -> i64 {
    want.expiration_seconds.unwrap_or(LIFETIME_SECONDS_DEFAULT)
}

/// Also the name of the checkpoint's file, hence the digest of the audience.
fn key(pod: &Pod, want: &ServiceAccountTokenProjection) -> String {
    let audience = want.audience.as_deref().unwrap_or_default();
    let digest = ring::digest::digest(&ring::digest::SHA256, audience.as_bytes());
    let digest = crate::identity::hex(&digest.as_ref()[..8]);
    format!("token.{}.{digest}.{}", spec::uid(pod), lifetime(want))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    #[tokio::test]
    async fn the_first_token_is_kept_over_a_restart_until_its_pod_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let identity = dir.path().join("identity");
        Identity::write(&identity, "ca", "node").unwrap();
        let identity = Arc::new(Identity::load(&identity).unwrap());
        let checkpoint = Arc::new(Checkpoint::new(dir.path().join("checkpoint"), identity));
        let link = Link::new();
        let start = || Tokens::new(link.client(), link.clone(), checkpoint.clone());
        let pod: Pod =
            serde_json::from_value(serde_json::json!({"metadata": {"uid": "u1"}})).unwrap();
        let want = ServiceAccountTokenProjection::default();
        let tokens = start();
        for text in ["first", "next"] {
            let now = Timestamp::now();
            let token = Token { token: text.to_owned(), renew_at: now, expires_at: now };
            tokens.keep(&key(&pod, &want), &token);
        }
        let tokens = start();
        assert_eq!(tokens.get(&pod, &want).await.unwrap().token, "first");
        tokens.forget(&pod);
        assert!(matches!(start().get(&pod, &want).await, Err(TokenError::Away)));
    }
}
