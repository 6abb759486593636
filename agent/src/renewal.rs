//! The node certificate renewed before it runs out: a signing request with the node's own identity
//! while that is good, answered by the same controller as the first one. The next connection uses it.
//! A certificate that ran out while the device was off is renewed by `agent join` with a new token.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::runtime::watcher;
use tracing::{error, info, warn};

use crate::connection::{chain, jitter};
use crate::identity::{Identity, IdentityError};

const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// How long the signing controller may take before the request is made again.
const SIGN_DEADLINE: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(60);
/// The longest sleep, so that a clock that was set is noticed.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error("the master refused the request")]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the request was denied: {0}")]
    Denied(String),
    #[error("nobody signed the request within {} s", SIGN_DEADLINE.as_secs())]
    NotSigned,
    #[error("the certificate is no text")]
    Text(#[from] std::string::FromUtf8Error),
}

/// Kubernetes 1.36: at 70 to 90 percent of the certificate's life; here at its earliest.
fn due(not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    not_before + life.mul_f64(0.7)
}

/// From a new certificate to the next request: by a wrong clock, it may be due as it comes.
fn pause(not_before: SystemTime, not_after: SystemTime) -> Duration {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    life.mul_f64(0.1).clamp(RETRY, LOOK_AGAIN)
}

/// Renews for ever.
pub(crate) async fn run(client: kube::Client, identity: Arc<Identity>, node_name: String) {
    loop {
        let (from, to) = match identity.validity() {
            Ok(validity) => validity,
            Err(error) => {
                error!(error = %chain(&error), "the node's certificate can't be read");
                return;
            }
        };
        let wait = due(from, to).duration_since(SystemTime::now()).unwrap_or_default();
        if !wait.is_zero() {
            tokio::time::sleep(wait.min(LOOK_AGAIN)).await;
            continue;
        }
        match renew(&client, &identity, &node_name).await {
            Ok(()) => {
                info!(node = node_name, "the node's certificate was renewed");
                tokio::time::sleep(pause(from, to)).await;
            }
            Err(error) => {
                warn!(error = %chain(&error), "the node's certificate was not renewed");
                tokio::time::sleep(jitter(RETRY)).await;
            }
        }
    }
}

async fn renew(
    client: &kube::Client,
    identity: &Identity,
    node_name: &str,
) -> Result<(), RenewalError> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let pem = identity.key.certificate_request(node_name)?;
    let request = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("csr-".into()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: SIGNER.into(),
            usages: Some(vec!["digital signature".into(), "client auth".into()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let created = api.create(&PostParams::default(), &request).await?;
    let name = created.metadata.name.unwrap_or_default();
    let signed = tokio::time::timeout(SIGN_DEADLINE, answer(api, &name)).await;
    let certificate = signed.map_err(|_| RenewalError::NotSigned)??;
    identity.renew(&String::from_utf8(certificate)?)?;
    Ok(())
}

async fn answer(api: Api<CertificateSigningRequest>, name: &str) -> Result<Vec<u8>, RenewalError> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut stream = Box::pin(watcher(api, config));
    while let Some(event) = stream.next().await {
        let (watcher::Event::InitApply(request) | watcher::Event::Apply(request)) = (match event {
            Ok(event) => event,
            Err(error) => {
                tracing::debug!(error = %chain(&error), "the watch of a signing request failed");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        }) else {
            continue;
        };
        let status = request.status.unwrap_or_default();
        if let Some(denied) =
            status.conditions.iter().flatten().find(|c| c.type_ == "Denied" || c.type_ == "Failed")
        {
            return Err(RenewalError::Denied(denied.message.clone().unwrap_or_default()));
        }
        if let Some(certificate) = status.certificate {
            return Ok(certificate.0);
        }
    }
    Err(RenewalError::NotSigned)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn renewal_is_due_well_before_the_end() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(due(at(1000), at(2000)), at(1700));
        for (life, seconds) in [(0, 60), (900, 90), (365 * 86400, 3600)] {
            assert_eq!(pause(at(1000), at(1000 + life)), Duration::from_secs(seconds));
        }
    }
}
