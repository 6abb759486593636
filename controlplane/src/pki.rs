//! Owns the cluster's keys and certificates: how the shared ones are made (`secrets` keeps them), and the certificates of this master as
//! files, renewed when they are about to end or no longer say what they should. What is wanted of a certificate is decided purely
//! ([`plan`]); the rest reads and writes `pki/`.
//!
//! Every key is ECDSA P-256 (PKCS#8 PEM, 0600), the folder 0700.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use crate::secrets::{Shared, Unfit};

const DIR_MODE: u32 = 0o700;
const KEY_MODE: u32 = 0o600;
const CERTIFICATE_MODE: u32 = 0o644;
const DAY: SignedDuration = SignedDuration::from_hours(24);
/// As kubeadm's.
const CA_DAYS: i32 = 3650;
const LEAF_DAYS: i32 = 365;
/// A certificate is renewed when it has less than this left.
const RENEW_DAYS: i32 = 90;
/// A device that starts without a clock must not make a CA that is over when the clock is set.
const CLOCK_FLOOR: &str = "2026-01-01T00:00:00Z";

/// Why the PKI is not there.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what its name says.
    #[error(
        "{path} is not a usable {what}; restore it, or remove it together with its pair to have new ones made"
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
    },
    /// A certificate can't be made.
    #[error("certificate {name}: {source}")]
    Make {
        /// Its name.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
}

/// A certificate (chain) with its key, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").finish_non_exhaustive()
    }
}

impl TryFrom<Vec<String>> for Pair {
    type Error = Vec<String>;

    /// A certificate's text and its key's, in this order.
    fn try_from(texts: Vec<String>) -> Result<Self, Vec<String>> {
        <[String; 2]>::try_from(texts)
            .map(|[certificate_pem, key_pem]| Self { certificate_pem, key_pem })
    }
}

/// What a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Name of its files, without the endings.
    pub name: &'static str,
    /// `CN`: the user, for a client.
    pub common_name: String,
    /// `O`: the user's group, for a client.
    pub organization: Option<&'static str>,
    /// Names and addresses, for a server.
    pub names: BTreeSet<String>,
}

/// What is known of a certificate that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    not_before: Timestamp,
    not_after: Timestamp,
    authority: Option<Vec<u8>>,
    names: BTreeSet<String>,
}

/// What to do about a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Plan {
    Keep,
    Renew(&'static str),
}

fn plan(wanted: &Wanted, found: Option<&Facts>, authority: &[u8], now: Timestamp) -> Plan {
    let Some(found) = found else { return Plan::Renew("there is none") };
    let renew_at = days(found.not_after, -RENEW_DAYS);
    if found.authority.as_deref() != Some(authority) {
        return Plan::Renew("the CA is another");
    }
    if now >= renew_at {
        return Plan::Renew("it ends soon");
    }
    if now < found.not_before {
        return Plan::Renew("it is not valid yet: the clock was set back");
    }
    // A name too many does no harm; addresses come and go.
    if !wanted.names.is_subset(&found.names) {
        return Plan::Renew("names or addresses are missing in it");
    }
    Plan::Keep
}

/// The PKI of a cluster.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
    ca: Pair,
    /// The CA's subject key identifier.
    authority: Vec<u8>,
}

impl Pki {
    /// A PKI of a CA, as [`CA`] has it; leaves are kept in `dir`, which is made where it is missing.
    ///
    /// # Errors
    /// The folder can't be made, or the CA can't be used.
    pub fn open(dir: &Path, ca: Pair) -> Result<Self, PkiError> {
        let made = fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir);
        made.map_err(|source| PkiError::File { path: dir.to_owned(), source })?;
        let unusable = || PkiError::Unusable { path: dir.join("ca.crt"), what: "CA certificate" };
        let authority = subject_key_id(&ca.certificate_pem).ok_or_else(unusable)?;
        Ok(Self { dir: dir.to_owned(), ca, authority })
    }

    /// The CA.
    pub fn ca(&self) -> &Pair {
        &self.ca
    }

    /// Reads a certificate that the CA signed, or makes it where there is none that will do.
    ///
    /// # Errors
    /// A file can't be used.
    pub fn ensure(&self, wanted: &Wanted, now: Timestamp) -> Result<Pair, PkiError> {
        let path = self.dir.join(format!("{}.crt", wanted.name));
        let key_path = self.dir.join(format!("{}.key", wanted.name));
        let found = read(&path)?.zip(read(&key_path)?);
        let facts = found.as_ref().and_then(|(certificate_pem, key_pem)| {
            facts(certificate_pem).filter(|_| belongs(certificate_pem, key_pem))
        });
        match (plan(wanted, facts.as_ref(), &self.authority, now), found) {
            (Plan::Keep, Some((certificate_pem, key_pem))) => Ok(Pair { certificate_pem, key_pem }),
            (plan, _) => {
                let made = self.make_leaf(wanted, now)?;
                // The key first: a certificate without its key is made again, as is one with another's.
                write(&key_path, &made.key_pem, KEY_MODE)?;
                write(&path, &made.certificate_pem, CERTIFICATE_MODE)?;
                tracing::info!(certificate = wanted.name, reason = ?plan, "made a certificate");
                Ok(made)
            }
        }
    }

    /// Whether what this process holds is as wanted. Reads no file: reading one costs a write, that of its access time.
    pub fn is_good(&self, held: &Pair, wanted: &Wanted, now: Timestamp) -> bool {
        let facts = facts(&held.certificate_pem);
        matches!(plan(wanted, facts.as_ref(), &self.authority, now), Plan::Keep)
    }

    /// Writes the public half of the key that signs service-account tokens to `sa.pub`, where it isn't there.
    ///
    /// # Errors
    /// The key or the file can't be used.
    pub fn publish_service_account_key(&self, key_pem: &str) -> Result<(), PkiError> {
        let unusable = || PkiError::Unusable { path: self.dir.join("sa.key"), what: "key" };
        let public = KeyPair::from_pem(key_pem).map_err(|_| unusable())?.public_key_pem();
        let path = self.dir.join("sa.pub");
        match read(&path)? {
            Some(found) if found == public => Ok(()),
            _ => write(&path, &public, CERTIFICATE_MODE),
        }
    }

    fn make_leaf(&self, wanted: &Wanted, now: Timestamp) -> Result<Pair, PkiError> {
        let fail = |source| PkiError::Make { name: wanted.name.to_owned(), source };
        let ca_path = || self.dir.join("ca.key");
        let ca_key = KeyPair::from_pem(&self.ca.key_pem)
            .map_err(|_| PkiError::Unusable { path: ca_path(), what: "key" })?;
        let issuer = Issuer::from_ca_cert_pem(&self.ca.certificate_pem, ca_key).map_err(fail)?;
        let names: Vec<_> = wanted.names.iter().cloned().collect();
        let mut params = CertificateParams::new(names).map_err(fail)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(organization) = wanted.organization {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.distinguished_name.push(DnType::CommonName, wanted.common_name.clone());
        set_validity(&mut params, (days(now, -1), days(now, LEAF_DAYS)));
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![match wanted.names.is_empty() {
            true => ExtendedKeyUsagePurpose::ClientAuth,
            false => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        let key = new_key(wanted.name)?;
        let certificate = params.signed_by(&key, &issuer).map_err(fail)?;
        Ok(Pair { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

/// The lower-case hex SHA-256 of a certificate's DER: what a join token pins.
///
/// `None`: the text is no certificate.
pub fn fingerprint(certificate_pem: &str) -> Option<String> {
    let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).ok()?;
    let digest = ring::digest::digest(&ring::digest::SHA256, &der);
    Some(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// When a certificate ends.
pub fn not_after(certificate_pem: &str) -> Option<Timestamp> {
    facts(certificate_pem).map(|facts| facts.not_after)
}

/// The cluster's CA.
pub const CA: Shared = Shared {
    names: &["ca.crt", "ca.key"],
    make: |now| make_ca("kubernetes", now),
    check: check_ca,
};

/// The CA of the etcd protocol's TLS port: who is let in there may do everything, past the API's rules.
pub const ETCD_CA: Shared = Shared {
    names: &["etcd-ca.crt", "etcd-ca.key"],
    make: |now| make_ca("etcd-ca", now),
    check: check_ca,
};

/// The key that signs service-account tokens, as PKCS#8 PEM.
pub const SERVICE_ACCOUNT_KEY: Shared = Shared {
    names: &["sa.key"],
    make: |_| Ok(vec![new_key("sa")?.serialize_pem()]),
    check: |texts| match texts.first().map(|key_pem| KeyPair::from_pem(key_pem)) {
        Some(Ok(_)) => Ok(()),
        _ => Err((0, "key")),
    },
};

fn check_ca(texts: &[String]) -> Result<(), Unfit> {
    let [certificate_pem, key_pem] = texts else { return Err((0, "certificate with its key")) };
    if subject_key_id(certificate_pem).is_none() {
        return Err((0, "CA certificate"));
    }
    if !belongs(certificate_pem, key_pem) {
        return Err((1, "key of the certificate beside it"));
    }
    Ok(())
}

fn make_ca(name: &str, now: Timestamp) -> Result<Vec<String>, PkiError> {
    let fail = |source| PkiError::Make { name: name.to_owned(), source };
    let floor = CLOCK_FLOOR.parse().unwrap_or(now);
    let mut params = CertificateParams::new(Vec::new()).map_err(fail)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    set_validity(&mut params, (days(now.min(floor), -1), days(now.max(floor), CA_DAYS)));
    params.serial_number = Some(serial()?);
    let key = new_key(name)?;
    let certificate = params.self_signed(&key).map_err(fail)?;
    Ok(vec![certificate.pem(), key.serialize_pem()])
}

fn new_key(name: &str) -> Result<KeyPair, PkiError> {
    KeyPair::generate().map_err(|source| PkiError::Make { name: name.to_owned(), source })
}

/// 127 random bits, so that it is positive.
fn serial() -> Result<SerialNumber, PkiError> {
    let random = ring::rand::generate::<[u8; 16]>(&ring::rand::SystemRandom::new());
    let mut bytes = random
        .map_err(|_| PkiError::Make {
            name: "serial".to_owned(),
            source: rcgen::Error::RingUnspecified,
        })?
        .expose();
    bytes[0] &= 0x7f;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Sets the validity to whole days around `at`: rcgen's own type of time is not one of ours.
fn set_validity(params: &mut CertificateParams, (from, to): (Timestamp, Timestamp)) {
    let day = |at: Timestamp| {
        let date = at.to_zoned(TimeZone::UTC).date();
        let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
        rcgen::date_time_ymd(date.year().into(), month, day)
    };
    params.not_before = day(from);
    params.not_after = day(to);
}

fn days(at: Timestamp, days: i32) -> Timestamp {
    at.saturating_add(DAY * days).unwrap_or(at)
}

fn with_certificate<T>(
    pem: &str,
    read: impl FnOnce(&X509Certificate<'_>) -> Option<T>,
) -> Option<T> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    read(&certificate)
}

fn subject_key_id(pem: &str) -> Option<Vec<u8>> {
    with_certificate(pem, |certificate| {
        certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        })
    })
}

fn facts(pem: &str) -> Option<Facts> {
    with_certificate(pem, |certificate| {
        let validity = certificate.validity();
        let mut names = BTreeSet::new();
        let mut authority = None;
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    authority = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                ParsedExtension::SubjectAlternativeName(own) => {
                    names.extend(own.general_names.iter().filter_map(name_text));
                }
                _ => {}
            }
        }
        let not_before = Timestamp::from_second(validity.not_before.timestamp()).ok()?;
        let not_after = Timestamp::from_second(validity.not_after.timestamp()).ok()?;
        Some(Facts { not_before, not_after, authority, names })
    })
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from))
                .ok()
                .map(|ip| ip.to_string())
        }
        _ => None,
    }
}

/// Whether the certificate is this key's.
fn belongs(certificate_pem: &str, key_pem: &str) -> bool {
    KeyPair::from_pem(key_pem).is_ok_and(|key| {
        let same = |certificate: &X509Certificate<'_>| {
            Some(certificate.public_key().subject_public_key.data.as_ref() == key.public_key_raw())
        };
        with_certificate(certificate_pem, same) == Some(true)
    })
}

/// `None`: there is no such file.
fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File { path: path.to_owned(), source }),
    }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    write_file(path, text, mode).map_err(|source| PkiError::File { path: path.to_owned(), source })
}

/// Writes a file so that it is there whole or as it was before, also after a power cut.
///
/// # Errors
/// The disk says no.
pub fn write_file(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let unfinished = path.with_extension("unfinished");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn wanted(names: &[&str]) -> Wanted {
        Wanted {
            name: "apiserver",
            common_name: "kube-apiserver".into(),
            organization: None,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn open(dir: &Path, now: Timestamp) -> Pki {
        Pki::open(dir, (CA.make)(now).unwrap().try_into().unwrap()).unwrap()
    }

    #[test]
    fn certificates_are_made_once_and_renewed_for_a_reason() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("pki");
        let now = at("2026-06-01T12:00:00Z");
        let pki = open(&dir, now);
        let names = wanted(&["kubernetes", "10.96.0.1", "::1"]);
        let first = pki.ensure(&names, now).unwrap();
        assert!(belongs(&first.certificate_pem, &first.key_pem));
        let mode = |name| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode("apiserver.key"), mode("apiserver.crt"), mode(".")),
            (0o600, 0o644, 0o700)
        );

        let pki = Pki::open(&dir, pki.ca().clone()).unwrap();
        let fewer = wanted(&["kubernetes"]);
        assert_eq!(pki.ensure(&fewer, days(now, 200)).unwrap(), first, "kept");
        let more = pki.ensure(&wanted(&["kubernetes", "192.168.1.2"]), now).unwrap();
        assert_ne!(more, first, "an address more");
        let older = pki.ensure(&fewer, days(now, 300)).unwrap();
        assert_ne!(older, more, "near its end");
        let earlier = pki.ensure(&fewer, now).unwrap();
        assert_ne!(earlier, older, "not valid yet");
        fs::write(dir.join("apiserver.key"), &first.key_pem).unwrap();
        assert_ne!(pki.ensure(&fewer, now).unwrap().key_pem, first.key_pem, "another's key");
        let other = open(&dir, now);
        assert_ne!(other.ensure(&fewer, now).unwrap(), earlier, "another CA");
    }

    #[test]
    fn shared_secrets_are_what_their_names_say() {
        let now = at("2026-06-01T12:00:00Z");
        for shared in [CA, ETCD_CA, SERVICE_ACCOUNT_KEY] {
            let texts = (shared.make)(now).unwrap();
            assert_eq!((texts.len(), (shared.check)(&texts)), (shared.names.len(), Ok(())));
            assert!((shared.check)(&vec!["x".to_owned(); texts.len()]).is_err());
        }
        let (one, other) = ((CA.make)(now).unwrap(), (CA.make)(now).unwrap());
        let mixed = [one[0].clone(), other[1].clone()];
        assert_eq!(check_ca(&mixed), Err((1, "key of the certificate beside it")));
    }

    #[test]
    fn a_ca_of_a_device_without_a_clock_is_good_when_the_clock_is_set() {
        let dir = tempfile::tempdir().unwrap();
        let pki = open(dir.path(), at("1970-01-01T00:01:00Z"));
        let facts = facts(&pki.ca().certificate_pem).unwrap();
        assert!(facts.not_after > at("2035-01-01T00:00:00Z"), "{facts:?}");
        assert!(facts.not_before <= at("1970-01-01T00:00:00Z"), "{facts:?}");
        assert_eq!(fingerprint(&pki.ca().certificate_pem).unwrap().len(), 64);
    }
}
