//! Owns the cluster's keys and certificates as files: made at the first start, renewed when they are about to end or no longer say
//! what they should. What is wanted of a certificate is decided purely ([`plan`]); the rest reads and writes `pki/`.
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
    /// Reads the CA in `dir`, or makes the folder and the CA.
    ///
    /// # Errors
    /// A file can't be used.
    pub fn open(dir: &Path, now: Timestamp) -> Result<Self, PkiError> {
        let made = fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir);
        made.map_err(|source| PkiError::File { path: dir.to_owned(), source })?;
        let (path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        let ca = match (read(&path)?, read(&key_path)?) {
            (Some(certificate_pem), Some(key_pem)) => Pair { certificate_pem, key_pem },
            (None, None) => {
                let ca = make_ca(now)?;
                write(&key_path, &ca.key_pem, KEY_MODE)?;
                write(&path, &ca.certificate_pem, CERTIFICATE_MODE)?;
                tracing::info!(file = %path.display(), "made the cluster's CA");
                ca
            }
            // Half a CA is a damaged one; a new one would shut every node out.
            (None, Some(_)) => return Err(PkiError::Unusable { path, what: "certificate" }),
            (Some(_), None) => return Err(PkiError::Unusable { path: key_path, what: "key" }),
        };
        let authority = subject_key_id(&ca.certificate_pem);
        let authority = authority.ok_or(PkiError::Unusable { path, what: "CA certificate" })?;
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

    /// The key that signs service-account tokens, as PKCS#8 PEM; its public half stands in `sa.pub`.
    ///
    /// # Errors
    /// A file can't be used.
    pub fn service_account_key(&self) -> Result<String, PkiError> {
        let path = self.dir.join("sa.key");
        if let Some(key_pem) = read(&path)? {
            return match KeyPair::from_pem(&key_pem) {
                Ok(_) => Ok(key_pem),
                Err(_) => Err(PkiError::Unusable { path, what: "key" }),
            };
        }
        let key = new_key("sa")?;
        write(&path, &key.serialize_pem(), KEY_MODE)?;
        write(&self.dir.join("sa.pub"), &key.public_key_pem(), CERTIFICATE_MODE)?;
        Ok(key.serialize_pem())
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

fn make_ca(now: Timestamp) -> Result<Pair, PkiError> {
    let fail = |source| PkiError::Make { name: "ca".to_owned(), source };
    let floor = CLOCK_FLOOR.parse().unwrap_or(now);
    let mut params = CertificateParams::new(Vec::new()).map_err(fail)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "kubernetes");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    set_validity(&mut params, (days(now.min(floor), -1), days(now.max(floor), CA_DAYS)));
    params.serial_number = Some(serial()?);
    let key = new_key("ca")?;
    let certificate = params.self_signed(&key).map_err(fail)?;
    Ok(Pair { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
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

    #[test]
    fn certificates_are_made_once_and_renewed_for_a_reason() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("pki");
        let now = at("2026-06-01T12:00:00Z");
        let pki = Pki::open(&dir, now).unwrap();
        let names = wanted(&["kubernetes", "10.96.0.1", "::1"]);
        let first = pki.ensure(&names, now).unwrap();
        assert!(belongs(&first.certificate_pem, &first.key_pem));
        let mode = |name| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("ca.key"), mode("apiserver.key"), mode(".")), (0o600, 0o600, 0o700));

        let pki = Pki::open(&dir, now).unwrap();
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
        let key = pki.service_account_key().unwrap();
        assert_eq!(pki.service_account_key().unwrap(), key);
    }

    #[test]
    fn half_a_ca_is_refused_and_a_new_ca_signs_anew() {
        let dir = tempfile::tempdir().unwrap();
        let now = at("2026-06-01T12:00:00Z");
        let first = Pki::open(dir.path(), now).unwrap();
        let leaf = first.ensure(&wanted(&["a"]), now).unwrap();
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        let error = Pki::open(dir.path(), now).unwrap_err().to_string();
        assert!(error.contains("ca.key is not a usable key"), "{error}");
        fs::remove_file(dir.path().join("ca.crt")).unwrap();
        let second = Pki::open(dir.path(), now).unwrap();
        assert_ne!(second.ensure(&wanted(&["a"]), now).unwrap(), leaf);
    }

    #[test]
    fn a_ca_of_a_device_without_a_clock_is_good_when_the_clock_is_set() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), at("1970-01-01T00:01:00Z")).unwrap();
        let facts = facts(&pki.ca().certificate_pem).unwrap();
        assert!(facts.not_after > at("2035-01-01T00:00:00Z"), "{facts:?}");
        assert!(facts.not_before <= at("1970-01-01T00:00:00Z"), "{facts:?}");
        assert_eq!(fingerprint(&pki.ca().certificate_pem).unwrap().len(), 64);
    }
}
