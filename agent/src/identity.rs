//! Who this node is: the device key, its certificate and the cluster's CA, all under
//! `identity/` of the data folder, and what is sealed with the device key. It opens no connection.
//!
//! The node certificate is issued for the device key itself, so a node whose certificate ran out
//! proves itself again with the same key. The certificate's `notBefore` is the clock's floor: a
//! device without a clock battery still validates its master.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::time_provider::TimeProvider;

use crate::config::write_atomic;

/// First byte of everything sealed; a newer format has another.
const SEAL_VERSION: u8 = 1;
const GROUP: &str = "system:nodes";
const USER_PREFIX: &str = "system:node:";

#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{path} holds no usable PEM")]
    Pem { path: PathBuf },
    #[error("the device key cannot be used")]
    Key(#[from] rcgen::Error),
    #[error("the TLS configuration was refused")]
    Tls(#[from] rustls::Error),
    #[error("the node certificate cannot be read")]
    Certificate,
    #[error("sealed data was not sealed with this device's key, or is damaged")]
    Unseal,
    #[error("sealed data has format {0}; this agent reads {SEAL_VERSION}")]
    SealVersion(u8),
    #[error("the system gave no random bytes or refused the key")]
    Crypto,
}

impl From<ring::error::Unspecified> for IdentityError {
    fn from(_: ring::error::Unspecified) -> Self {
        IdentityError::Crypto
    }
}

/// The key made on this device once; it never leaves it.
#[derive(Debug)]
pub(crate) struct DeviceKey {
    pair: KeyPair,
}

impl DeviceKey {
    /// The key in `dir`, made now when there is none.
    pub(crate) fn ensure(dir: &Path) -> Result<DeviceKey, IdentityError> {
        let path = dir.join("device.key");
        match std::fs::read_to_string(&path) {
            Ok(pem) => Ok(DeviceKey { pair: KeyPair::from_pem(&pem)? }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let pair = KeyPair::generate()?;
                write_atomic(&path, pair.serialize_pem().as_bytes(), 0o600)
                    .map_err(|source| IdentityError::Write { path, source })?;
                Ok(DeviceKey { pair })
            }
            Err(source) => Err(IdentityError::Read { path, source }),
        }
    }

    /// Lower-case hex SHA-256 of the key's SubjectPublicKeyInfo; the annotation
    /// `flotilla.dev/device-key` of the Node holds it.
    pub(crate) fn fingerprint(&self) -> String {
        hex(ring::digest::digest(&ring::digest::SHA256, &self.pair.subject_public_key_info())
            .as_ref())
    }

    /// A PKCS#10 request for `O=system:nodes, CN=system:node:<name>`, as PEM.
    pub(crate) fn certificate_request(&self, node_name: &str) -> Result<String, IdentityError> {
        let mut params = CertificateParams::default();
        let mut subject = DistinguishedName::new();
        subject.push(DnType::OrganizationName, GROUP);
        subject.push(DnType::CommonName, format!("{USER_PREFIX}{node_name}"));
        params.distinguished_name = subject;
        Ok(params.serialize_request(&self.pair)?.pem()?)
    }

    /// Certificate and key as ureq wants them.
    pub(crate) fn client_certificate(
        &self,
        node_pem: &str,
    ) -> Result<ureq::tls::ClientCert, IdentityError> {
        let chain: Vec<ureq::tls::Certificate<'static>> =
            certificates(node_pem, Path::new("node.crt"))?
                .iter()
                .map(|certificate| ureq::tls::Certificate::from_der(certificate).to_owned())
                .collect();
        let key = ureq::tls::PrivateKey::from_pem(self.pair.serialize_pem().as_bytes())
            .map_err(|_| IdentityError::Crypto)?;
        Ok(ureq::tls::ClientCert::new_with_certs(&chain, key))
    }

    /// AES-256-GCM with a key derived from the device key: version, nonce, ciphertext and tag.
    pub(crate) fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, IdentityError> {
        let mut nonce = [0u8; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce)?;
        let mut body = plain.to_vec();
        self.sealing_key()?.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from([SEAL_VERSION]),
            &mut body,
        )?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + body.len());
        sealed.push(SEAL_VERSION);
        sealed.extend_from_slice(&nonce);
        sealed.append(&mut body);
        Ok(sealed)
    }

    pub(crate) fn unseal(&self, sealed: &[u8]) -> Result<Vec<u8>, IdentityError> {
        let (&version, rest) = sealed.split_first().ok_or(IdentityError::Unseal)?;
        if version != SEAL_VERSION {
            return Err(IdentityError::SealVersion(version));
        }
        let (nonce, body) = rest.split_at_checked(NONCE_LEN).ok_or(IdentityError::Unseal)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| IdentityError::Unseal)?;
        let mut body = body.to_vec();
        let plain = self
            .sealing_key()?
            .open_in_place(nonce, Aad::from([SEAL_VERSION]), &mut body)
            .map_err(|_| IdentityError::Unseal)?;
        Ok(plain.to_vec())
    }

    fn sealing_key(&self) -> Result<LessSafeKey, IdentityError> {
        let salt = ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, b"flotilla checkpoint v1");
        let secret = salt.extract(self.pair.serialized_der());
        let key: UnboundKey = secret.expand(&[b"seal"], &AES_256_GCM)?.into();
        Ok(LessSafeKey::new(key))
    }
}

/// What `agent join` left: the CA and the certificate issued for the device key.
#[derive(Debug)]
pub(crate) struct Identity {
    dir: PathBuf,
    pub(crate) key: DeviceKey,
    pub(crate) ca_pem: String,
    certificate_pem: std::sync::Mutex<String>,
}

impl Identity {
    pub(crate) fn load(dir: &Path) -> Result<Identity, IdentityError> {
        Ok(Identity {
            dir: dir.to_owned(),
            key: DeviceKey::ensure(dir)?,
            ca_pem: read(&dir.join("ca.crt"))?,
            certificate_pem: read(&dir.join("node.crt"))?.into(),
        })
    }

    pub(crate) fn write(dir: &Path, ca_pem: &str, node_pem: &str) -> Result<(), IdentityError> {
        for (name, text, mode) in [("ca.crt", ca_pem, 0o644), ("node.crt", node_pem, 0o600)] {
            let path = dir.join(name);
            write_atomic(&path, text.as_bytes(), mode)
                .map_err(|source| IdentityError::Write { path, source })?;
        }
        Ok(())
    }

    /// Takes a renewed certificate into use for the next connection.
    pub(crate) fn renew(&self, node_pem: &str) -> Result<(), IdentityError> {
        let path = self.dir.join("node.crt");
        write_atomic(&path, node_pem.as_bytes(), 0o600)
            .map_err(|source| IdentityError::Write { path, source })?;
        *self.certificate() = node_pem.to_owned();
        Ok(())
    }

    fn certificate(&self) -> std::sync::MutexGuard<'_, String> {
        self.certificate_pem.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// When the node certificate was issued and when it runs out.
    pub(crate) fn validity(&self) -> Result<(SystemTime, SystemTime), IdentityError> {
        validity(&self.certificate())
    }

    /// TLS toward the master: the cluster's CA alone is trusted, the node certificate shown.
    pub(crate) fn tls(&self) -> Result<rustls::ClientConfig, IdentityError> {
        let pem = self.certificate().clone();
        let chain = certificates(&pem, &self.dir.join("node.crt"))?;
        let floor = validity(&pem)?.0;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.pair.serialize_der()));
        let roots = roots(&self.ca_pem, &self.dir.join("ca.crt"))?;
        let mut tls = client_builder(floor)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(tls)
    }
}

fn client_builder(
    floor: SystemTime,
) -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_details(provider, Arc::new(FlooredClock { floor }))
        .with_safe_default_protocol_versions()
}

/// The system's clock, never earlier than `floor`.
#[derive(Debug)]
struct FlooredClock {
    floor: SystemTime,
}

impl TimeProvider for FlooredClock {
    fn current_time(&self) -> Option<UnixTime> {
        let now = SystemTime::now().max(self.floor);
        Some(UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).ok()?))
    }
}

fn roots(pem: &str, path: &Path) -> Result<rustls::RootCertStore, IdentityError> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(pem, path)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

pub(crate) fn certificates(
    pem: &str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(IdentityError::Pem { path: path.to_owned() }),
    }
}

/// `notBefore` and `notAfter` of the first certificate in `pem`.
pub(crate) fn validity(pem: &str) -> Result<(SystemTime, SystemTime), IdentityError> {
    let chain = certificates(pem, Path::new("node.crt"))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(chain[0].as_ref())
        .map_err(|_| IdentityError::Certificate)?;
    let at = |time: x509_parser::time::ASN1Time| {
        UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
    };
    let validity = parsed.validity();
    Ok((at(validity.not_before), at(validity.not_after)))
}

fn read(path: &Path) -> Result<String, IdentityError> {
    std::fs::read_to_string(path)
        .map_err(|source| IdentityError::Read { path: path.to_owned(), source })
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        text.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
        text.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_the_same_key_only() {
        let one = tempfile::tempdir().unwrap();
        let two = tempfile::tempdir().unwrap();
        let key = DeviceKey::ensure(one.path()).unwrap();
        let sealed = key.seal(b"a secret").unwrap();
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        let again = DeviceKey::ensure(one.path()).unwrap();
        assert_eq!(again.fingerprint(), key.fingerprint());
        assert_eq!(again.unseal(&sealed).unwrap(), b"a secret");
        let other = DeviceKey::ensure(two.path()).unwrap();
        assert!(matches!(other.unseal(&sealed), Err(IdentityError::Unseal)));
        for cut in 0..sealed.len() {
            assert!(again.unseal(&sealed[..cut]).is_err());
        }
    }

    #[test]
    fn the_request_names_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let pem = DeviceKey::ensure(dir.path()).unwrap().certificate_request("pi-3").unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let text = String::from_utf8_lossy(&pem.contents).into_owned();
        assert!(text.contains("system:node:pi-3") && text.contains("system:nodes"));
    }
}
