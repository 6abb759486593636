//! Signing with the cluster CA. Makes the certificate from verified parts only; nothing of the request's extensions
//! gets through but the names that were checked.

use super::plan::Request;
use crate::runtime::Error;
use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use std::time::Duration;
use x509_parser::prelude::FromDer;

/// Certificates begin this much in the past, for devices whose clock is behind (Kubernetes: 5 min).
const BACKDATE: Duration = Duration::from_secs(300);
/// Bytes of a serial number: 127 random bits.
const SERIAL_BYTES: usize = 16;

/// The cluster CA, ready to sign.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    not_after: i64,
}

pub(super) fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

fn problem(error: impl std::fmt::Display) -> Error {
    Error::Certificate(error.to_string())
}

impl Authority {
    /// Reads certificate and key.
    pub(crate) fn new(cert_pem: &str, key_pem: &str) -> Result<Self, Error> {
        let key = KeyPair::from_pem(key_pem).map_err(problem)?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()).map_err(problem)?;
        let (_, cert) =
            x509_parser::certificate::X509Certificate::from_der(&pem.contents).map_err(problem)?;
        if cert.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(Error::Certificate(
                "the CA's key does not belong to its certificate".into(),
            ));
        }
        let not_after = cert.validity().not_after.timestamp();
        let issuer = Issuer::from_ca_cert_pem(cert_pem, key).map_err(problem)?;
        Ok(Self { issuer, not_after })
    }

    /// A certificate for the request, as PEM.
    pub(super) fn sign(
        &self,
        request: &Request,
        life: Duration,
        now: Timestamp,
    ) -> Result<String, Error> {
        let now = now.as_second();
        let at = |seconds: i64| {
            let since_epoch = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            rcgen::date_time_ymd(1970, 1, 1) + since_epoch
        };
        let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
        let mut serial = [0u8; SERIAL_BYTES];
        SystemRandom::new().fill(&mut serial).map_err(problem)?;
        serial[0] &= 0x7f;
        let serving = !request.dns.is_empty() || !request.ips.is_empty();
        let mut subject = DistinguishedName::new();
        subject.push(DnType::OrganizationName, "system:nodes");
        subject.push(DnType::CommonName, format!("system:node:{}", request.node));
        let mut params = CertificateParams::default();
        params.distinguished_name = subject;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = at(now - seconds(BACKDATE));
        params.not_after = at(now.saturating_add(seconds(life)).min(self.not_after));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![if serving {
            ExtendedKeyUsagePurpose::ServerAuth
        } else {
            ExtendedKeyUsagePurpose::ClientAuth
        }];
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = request.params.params.subject_alt_names.clone();
        let verified = CertificateSigningRequestParams {
            params,
            public_key: request.params.public_key.clone(),
        };
        Ok(verified.signed_by(&self.issuer).map_err(problem)?.pem())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::CertificateSigningRequest;
    use rcgen::BasicConstraints;
    use serde_json::json;

    #[test]
    fn a_node_certificate_is_for_the_node_and_no_more() {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, "cluster");
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let authority = Authority::new(&ca_pem, &ca_key.serialize_pem()).unwrap();
        let other = KeyPair::generate().unwrap();
        assert!(Authority::new(&ca_pem, &other.serialize_pem()).is_err());

        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "system:node:pi");
        let pem = params.serialize_request(&other).unwrap().pem().unwrap();
        let csr: CertificateSigningRequest = serde_json::from_value(
            json!({"metadata": {}, "spec": {"request": base64(pem.as_bytes())}}),
        )
        .unwrap();
        let request = Request::read(&csr).unwrap();
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let made = authority.sign(&request, Duration::from_secs(3600), now).unwrap();

        let (_, pem) = x509_parser::pem::parse_x509_pem(made.as_bytes()).unwrap();
        let cert = pem.parse_x509().unwrap();
        assert_eq!(cert.subject().to_string(), "O=system:nodes, CN=system:node:pi");
        assert_eq!(cert.issuer().iter_common_name().last().unwrap().as_str().unwrap(), "cluster");
        assert_eq!(cert.validity().not_before.timestamp(), 1_800_000_000 - 300);
        assert_eq!(cert.validity().not_after.timestamp(), 1_800_003_600);
        assert!(!cert.is_ca());
        let usage = cert.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth && !usage.any);
        let (_, ca) = x509_parser::pem::parse_x509_pem(ca_pem.as_bytes()).unwrap();
        let ca = ca.parse_x509().unwrap();
        assert_eq!(cert.public_key().subject_public_key.data.as_ref(), other.public_key_raw());
        assert_ne!(cert.public_key().raw, ca.public_key().raw);
    }
}
