//! Owns what stands in files and in etcd instead of the values of some keys: the seam [`Seal`] and the envelope of a sealed
//! value. Knows no prefix and no file; which keys are sealed, and with what, is told to the [`Keyring`].
//!
//! A sealed value:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | 0, `FSV`: no JSON text and no Kubernetes protobuf begins so |
//! | 4 | 1 | format version, 1 |
//! | 5 | 1 | length `n` of the name of the key, 1–255 |
//! | 6 | n | name of the key that sealed it, UTF-8 |
//! | 6+n | 16 | salt, random |
//! | 22+n | | the value, encrypted with AES-256-GCM, and 16 bytes of tag |
//!
//! Each value has an encryption key of its own, HKDF-SHA-256 of the named key with that salt and the info `flotilla value 1`: that key
//! encrypts once, so its nonce is always zero and can't repeat. Bytes 0 to 22+n and then the store's key are the associated data: a sealed
//! value opens under the key it was stored at, and nowhere else.

mod keyring;
mod secret;

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom, SystemRandom};

pub use self::keyring::{KeyInfo, Keyring};
pub use self::secret::{ClusterSecret, SECRET_BYTES};
use crate::revision::Revision;

const MAGIC: [u8; 4] = *b"\0FSV";
/// The version of the envelope that this program writes.
const FORMAT_VERSION: u8 = 1;
const HEAD_BYTES: usize = 6;
const SALT_BYTES: usize = 16;
/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 32;
const INFO: &[u8] = b"flotilla value 1";

/// What the log, checkpoints, snapshots and etcd hold instead of the values of some keys. The map in memory holds them plain.
pub trait Seal: Send + Sync + fmt::Debug {
    /// Whether the value of this key is sealed.
    fn applies(&self, key: &[u8]) -> bool;
    /// What is stored instead of `value`. `revision` is that of the state which the result becomes a part of: only a key that is
    /// in this state may seal it, or nobody who has no more than that state could open it.
    ///
    /// # Errors
    /// There is no key yet, or no randomness.
    fn seal(&self, key: &[u8], value: &[u8], revision: Revision) -> Result<Vec<u8>, SealError>;
    /// What was given to [`Seal::seal`]; a value that was stored before values were sealed comes back as it is.
    ///
    /// # Errors
    /// The key that sealed it isn't there, or it was changed, or belongs to another key of the store.
    fn open(&self, key: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError>;
    /// Told every value that isn't sealed, in the order of revisions, where it is recovered from files or comes from etcd. What is
    /// learned here opens the values that come later.
    fn observe(&self, key: &[u8], value: &[u8], revision: Revision);
}

/// Why a value can't be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Nothing to seal with.
    #[error("there is no key to seal it with yet")]
    NoKey,
    /// The machine has no randomness.
    #[error("the machine gives no random numbers")]
    NoRandomness,
    /// The key that sealed it was never seen.
    #[error("it is sealed with the key {name:?}, which is not there")]
    UnknownKey {
        /// The key's name.
        name: String,
    },
    /// The key that sealed it is there, but can't be opened itself.
    #[error("it is sealed with the key {name:?}, which can't be opened: {why}")]
    SealedKey {
        /// The key's name.
        name: String,
        /// Why.
        why: Box<SealError>,
    },
    /// Another cluster secret sealed it.
    #[error("it is sealed with the cluster secret {name}, and this one is {own}")]
    OtherSecret {
        /// Name of the secret that sealed it.
        name: String,
        /// Name of the one at hand.
        own: String,
    },
    /// Not what was sealed, or not under this key of the store.
    #[error(
        "it is not what was sealed with the key {name:?}: changed, or moved from another place"
    )]
    Changed {
        /// The key's name.
        name: String,
    },
    /// No whole envelope.
    #[error("it is not a whole sealed value")]
    NoEnvelope,
    /// Sealed by a newer program.
    #[error("it is sealed in format {version}; this program reads up to {FORMAT_VERSION}")]
    Newer {
        /// The format's version.
        version: u8,
    },
}

/// A sealed value's parts.
struct Envelope<'a> {
    name: &'a str,
    head: &'a [u8],
    salt: &'a [u8],
    encrypted: &'a [u8],
}

/// Whether the bytes claim to be sealed.
fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

fn parse(sealed: &[u8]) -> Result<Envelope<'_>, SealError> {
    let head = sealed.get(..HEAD_BYTES).filter(|head| is_sealed(head));
    let head = head.ok_or(SealError::NoEnvelope)?;
    if head[4] != FORMAT_VERSION {
        return Err(SealError::Newer { version: head[4] });
    }
    let (name_end, tag) = (HEAD_BYTES + usize::from(head[5]), AES_256_GCM.tag_len());
    let salt_end = name_end + SALT_BYTES;
    if name_end == HEAD_BYTES || sealed.len() < salt_end + tag {
        return Err(SealError::NoEnvelope);
    }
    let name = std::str::from_utf8(&sealed[HEAD_BYTES..name_end]);
    Ok(Envelope {
        name: name.map_err(|_| SealError::NoEnvelope)?,
        head: &sealed[..salt_end],
        salt: &sealed[name_end..salt_end],
        encrypted: &sealed[salt_end..],
    })
}

/// Seals `value` for its place `at` with the key `name`.
fn encrypt(
    (name, key): (&str, &[u8; KEY_BYTES]),
    at: &[u8],
    value: &[u8],
) -> Result<Vec<u8>, SealError> {
    let name_bytes = u8::try_from(name.len()).map_err(|_| SealError::NoEnvelope)?;
    let mut salt = [0; SALT_BYTES];
    SystemRandom::new().fill(&mut salt).map_err(|_| SealError::NoRandomness)?;
    let mut out = Vec::with_capacity(HEAD_BYTES + name.len() + SALT_BYTES + value.len() + 16);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[FORMAT_VERSION, name_bytes]);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(&salt);
    let data = associated(&out, at);
    let mut encrypted = value.to_vec();
    let changed = || SealError::Changed { name: name.to_owned() };
    let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
    one_time_key(key, &salt)
        .and_then(|key| key.seal_in_place_append_tag(nonce, Aad::from(data), &mut encrypted).ok())
        .ok_or_else(changed)?;
    out.append(&mut encrypted);
    Ok(out)
}

fn decrypt(
    envelope: &Envelope<'_>,
    key: &[u8; KEY_BYTES],
    at: &[u8],
) -> Result<Vec<u8>, SealError> {
    let data = associated(envelope.head, at);
    let mut bytes = envelope.encrypted.to_vec();
    let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
    let plain = one_time_key(key, envelope.salt)
        .and_then(|key| Some(key.open_in_place(nonce, Aad::from(data), &mut bytes).ok()?.len()));
    let plain = plain.ok_or_else(|| SealError::Changed { name: envelope.name.to_owned() })?;
    bytes.truncate(plain);
    Ok(bytes)
}

fn associated(head: &[u8], at: &[u8]) -> Vec<u8> {
    [head, at].concat()
}

/// `None` only if ring refuses its own lengths.
fn one_time_key(key: &[u8; KEY_BYTES], salt: &[u8]) -> Option<LessSafeKey> {
    let derived = Salt::new(HKDF_SHA256, salt).extract(key);
    let derived = derived.expand(&[INFO], &AES_256_GCM).ok()?;
    Some(LessSafeKey::new(UnboundKey::from(derived)))
}
