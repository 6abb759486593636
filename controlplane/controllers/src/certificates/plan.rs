//! What a request asks for and what to answer. Pure.

use crate::kinds::{CertificateSigningRequest, condition};
use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use rcgen::{CertificateSigningRequestParams, DnType, DnValue, PublicKeyData, SanType};
use std::{net::IpAddr, time::Duration};

pub(super) const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub(super) const SERVING: &str = "kubernetes.io/kubelet-serving";
const NODE_USER: &str = "system:node:";
const NODE_GROUP: &str = "system:nodes";
const BOOTSTRAP_USER: &str = "system:bootstrap:";
/// Shortest life that may be asked for (Kubernetes: 10 minutes).
const LIFETIME_MIN: Duration = Duration::from_secs(600);

/// A signing request, read and its signature verified.
pub(super) struct Request {
    pub(super) node: String,
    organizations: Vec<String>,
    pub(super) dns: Vec<String>,
    pub(super) ips: Vec<IpAddr>,
    other_names: bool,
    /// Lower-case hex SHA-256 of the SubjectPublicKeyInfo.
    pub(super) fingerprint: String,
    pub(super) params: CertificateSigningRequestParams,
}

/// The device that has a node's name.
#[derive(Debug)]
pub(super) struct Holder {
    /// Fingerprint of its key.
    pub(super) key: String,
    /// The object that holds the name for it, as kubectl takes it: `node pi-3`.
    pub(super) object: String,
}

/// What to do with a pending request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Approve(&'static str),
    Deny {
        reason: &'static str,
        message: String,
    },
    /// Not ours to decide.
    Leave,
}

fn text(value: &DnValue) -> Option<String> {
    match value {
        DnValue::Utf8String(s) => Some(s.clone()),
        DnValue::PrintableString(s) => Some(s.as_str().to_owned()),
        DnValue::Ia5String(s) => Some(s.as_str().to_owned()),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl Request {
    pub(super) fn read(csr: &CertificateSigningRequest) -> Result<Self, String> {
        let pem = BASE64_STANDARD
            .decode(&csr.spec.request)
            .ok()
            .and_then(|b| String::from_utf8(b).ok())
            .ok_or("spec.request is not base64 of a PEM text")?;
        let params = CertificateSigningRequestParams::from_pem(&pem)
            .map_err(|e| format!("not a PKCS#10 request with a valid signature: {e}"))?;
        let mut common_names = Vec::new();
        let mut organizations = Vec::new();
        for (kind, value) in params.params.distinguished_name.iter() {
            match kind {
                DnType::CommonName => common_names.extend(text(value)),
                DnType::OrganizationName => organizations.extend(text(value)),
                _ => {}
            }
        }
        let node = match common_names.as_slice() {
            [one] => one.strip_prefix(NODE_USER).filter(|n| !n.is_empty()).map(str::to_owned),
            _ => None,
        };
        let node = node.ok_or("the subject's common name is not system:node:<name>")?;
        let (mut dns, mut ips, mut other_names) = (Vec::new(), Vec::new(), false);
        for name in &params.params.subject_alt_names {
            match name {
                SanType::DnsName(name) => dns.push(name.as_str().to_owned()),
                SanType::IpAddress(ip) => ips.push(*ip),
                _ => other_names = true,
            }
        }
        let spki = params.public_key.subject_public_key_info();
        let fingerprint = hex(ring::digest::digest(&ring::digest::SHA256, &spki).as_ref());
        Ok(Self { node, organizations, dns, ips, other_names, fingerprint, params })
    }
}

/// Whether one of our signers is asked.
pub(super) fn is_for_us(csr: &CertificateSigningRequest) -> bool {
    [CLIENT, SERVING].contains(&csr.spec.signer_name.as_str())
}

/// Whether nothing is left to do but to remove it one day.
pub(super) fn is_settled(csr: &CertificateSigningRequest) -> bool {
    csr.status.certificate.is_some()
        || ["Denied", "Failed"].iter().any(|c| condition(&csr.status.conditions, c).is_some())
}

/// Why the signer refuses what was approved.
pub(super) fn unsignable(request: &Request, csr: &CertificateSigningRequest) -> Option<String> {
    let usages: Vec<&str> = csr.spec.usages.iter().map(String::as_str).collect();
    let purpose = if csr.spec.signer_name == CLIENT { "client auth" } else { "server auth" };
    let allowed = ["digital signature", "key encipherment", purpose];
    if request.organizations != [NODE_GROUP] {
        return Some("the subject's organization is not system:nodes".into());
    }
    if usages.iter().any(|u| !allowed.contains(u)) || !usages.contains(&purpose) {
        return Some(format!("usages must be digital signature and {purpose}"));
    }
    if request.other_names {
        return Some("only DNS and IP subject alternative names are allowed".into());
    }
    let named = !request.dns.is_empty() || !request.ips.is_empty();
    match csr.spec.signer_name.as_str() {
        CLIENT if named => Some("a client certificate has no subject alternative names".into()),
        SERVING if !named => Some("a serving certificate needs a subject alternative name".into()),
        _ => None,
    }
}

/// The answer to a pending request.
pub(super) fn verdict(
    request: &Request,
    csr: &CertificateSigningRequest,
    holder: Option<&Holder>,
    addresses: &[String],
) -> Verdict {
    let itself = csr.spec.username == format!("{NODE_USER}{}", request.node)
        && csr.spec.groups.iter().any(|g| g == NODE_GROUP);
    let bootstrap = csr.spec.username.starts_with(BOOTSTRAP_USER);
    if !itself && !bootstrap {
        return Verdict::Leave;
    }
    if let Some(problem) = unsignable(request, csr) {
        return Verdict::Deny { reason: "InvalidRequest", message: problem };
    }
    if csr.spec.signer_name == SERVING {
        let own =
            |ip: &IpAddr| addresses.iter().any(|a| a.parse::<IpAddr>().ok().as_ref() == Some(ip));
        let names = request.dns.iter().all(|d| *d == request.node || addresses.contains(d));
        return if itself && names && request.ips.iter().all(own) {
            Verdict::Approve(
                "Auto approving kubelet serving certificate: names and addresses are the node's own.",
            )
        } else {
            Verdict::Leave
        };
    }
    if itself {
        return Verdict::Approve("Auto approving self kubelet client certificate.");
    }
    match holder.filter(|h| h.key != request.fingerprint) {
        None => Verdict::Approve("Auto approving kubelet client certificate."),
        Some(holder) => Verdict::Deny {
            reason: "NodeNameTaken",
            message: format!(
                "node name {:?} is taken by another device; join with another --node-name, or, if that device is \
                 gone for good or was set up anew, free the name: kubectl delete {}",
                request.node, holder.object
            ),
        },
    }
}

/// How long the certificate lives.
pub(super) fn lifetime(asked_seconds: Option<i64>, default: Duration) -> Duration {
    let asked = asked_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
    asked.map_or(default, |a| a.clamp(LIFETIME_MIN.min(default), default))
}

/// Time until the request is old enough to be removed, zero when it is; upstream's limits.
pub(super) fn until_removal(csr: &CertificateSigningRequest, now: Timestamp) -> Option<Duration> {
    let hours = |h: i64| h * 3600;
    let (since, limit) = match () {
        () if csr.status.certificate.is_some() => (last_update(csr, "Approved")?, hours(1)),
        () if condition(&csr.status.conditions, "Denied").is_some() => {
            (last_update(csr, "Denied")?, hours(1))
        }
        () if condition(&csr.status.conditions, "Failed").is_some() => {
            (last_update(csr, "Failed")?, hours(1))
        }
        () => (csr.metadata.creation_timestamp.as_ref()?.0, hours(24)),
    };
    let left = since.as_second() + limit - now.as_second();
    Some(Duration::from_secs(u64::try_from(left).unwrap_or(0)))
}

fn last_update(csr: &CertificateSigningRequest, kind: &str) -> Option<Timestamp> {
    let c = condition(&csr.status.conditions, kind)?;
    c.last_update_time.as_ref().or(c.last_transition_time.as_ref()).map(|t| t.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, KeyPair};
    use serde_json::json;

    fn csr(
        user: &str,
        subject: (&str, &str),
        sans: &[&str],
        key: &KeyPair,
    ) -> CertificateSigningRequest {
        let mut params =
            CertificateParams::new(sans.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
                .unwrap();
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, subject.0);
        name.push(DnType::CommonName, subject.1);
        params.distinguished_name = name;
        let pem = params.serialize_request(key).unwrap().pem().unwrap();
        let serving = !sans.is_empty();
        serde_json::from_value(json!({
            "metadata": {"name": "csr", "uid": "u"},
            "spec": {
                "request": BASE64_STANDARD.encode(pem), "username": user,
                "groups": if user.starts_with(NODE_USER) { [NODE_GROUP] } else { ["system:bootstrappers"] },
                "signerName": if serving { SERVING } else { CLIENT },
                "usages": ["digital signature", if serving { "server auth" } else { "client auth" }],
            },
        }))
        .unwrap()
    }

    fn answer(csr: &CertificateSigningRequest, holder: Option<&str>) -> String {
        let holder = holder.map(|key| Holder { key: key.into(), object: "node pi".into() });
        match Request::read(csr) {
            Err(problem) => problem,
            Ok(request) => match verdict(&request, csr, holder.as_ref(), &["192.168.1.9".into()]) {
                Verdict::Approve(_) => "approved".into(),
                Verdict::Deny { reason, .. } => reason.into(),
                Verdict::Leave => "left".into(),
            },
        }
    }

    #[test]
    fn verdicts() {
        let key = KeyPair::generate().unwrap();
        let node = ("system:nodes", "system:node:pi");
        let token = "system:bootstrap:abcdef";
        for (user, subject, sans, expected) in [
            (token, node, &[][..], "approved"),
            ("system:node:pi", node, &[], "approved"),
            ("system:node:other", node, &[], "left"),
            ("alice", node, &[], "left"),
            (token, ("system:masters", "system:node:pi"), &[], "InvalidRequest"),
            (
                token,
                ("system:nodes", "admin"),
                &[],
                "the subject's common name is not system:node:<name>",
            ),
            ("system:node:pi", node, &["pi", "192.168.1.9"], "approved"),
            ("system:node:pi", node, &["pi", "10.96.0.1"], "left"),
            ("system:node:pi", node, &["kubernetes"], "left"),
            (token, node, &["pi"], "left"),
        ] {
            assert_eq!(
                answer(&csr(user, subject, sans, &key), None),
                expected,
                "{user} {subject:?} {sans:?}"
            );
        }
    }

    #[test]
    fn a_name_belongs_to_its_device() {
        let key = KeyPair::generate().unwrap();
        let c = csr("system:bootstrap:abcdef", ("system:nodes", "system:node:pi"), &[], &key);
        let own = Request::read(&c).unwrap().fingerprint;
        assert_eq!(answer(&c, Some(&own)), "approved");
        assert_eq!(answer(&c, Some("another")), "NodeNameTaken");
        let again = csr("system:node:pi", ("system:nodes", "system:node:pi"), &[], &key);
        assert_eq!(answer(&again, Some("another")), "approved", "a node may renew with a new key");
    }

    #[test]
    fn lives_are_bounded() {
        let year = Duration::from_secs(365 * 86400);
        assert_eq!(lifetime(None, year), year);
        assert_eq!(lifetime(Some(3600), year), Duration::from_secs(3600));
        assert_eq!(lifetime(Some(1), year), LIFETIME_MIN);
        assert_eq!(lifetime(Some(i64::MAX), year), year);
    }
}
