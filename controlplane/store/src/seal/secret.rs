//! Owns the cluster secret: the one thing that opens a cluster's shared secrets, and with them everything sealed. Reads and writes no
//! file: its text is [`ClusterSecret::to_text`].

use std::fmt;

use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom, SystemRandom};

use super::{KEY_BYTES, SealError, decrypt, encrypt, parse};

/// Bytes of a cluster secret.
pub const SECRET_BYTES: usize = KEY_BYTES;
/// What the text begins with, so that a person who finds it knows what it is.
const TEXT_PREFIX: &str = "flotilla-cluster-secret-1:";
const NAME_INFO: &[u8] = b"flotilla cluster secret name 1";

/// 32 random bytes that a whole cluster shares.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterSecret {
    bytes: [u8; SECRET_BYTES],
    name: String,
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterSecret").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ClusterSecret {
    /// A new one.
    ///
    /// # Errors
    /// The machine has no randomness.
    pub fn generate() -> Result<Self, SealError> {
        let mut bytes = [0; SECRET_BYTES];
        SystemRandom::new().fill(&mut bytes).map_err(|_| SealError::NoRandomness)?;
        Ok(Self::from_bytes(bytes))
    }

    /// That of given bytes.
    pub fn from_bytes(bytes: [u8; SECRET_BYTES]) -> Self {
        let name = name(&bytes);
        Self { bytes, name }
    }

    /// What [`ClusterSecret::to_text`] made; white space around it does not matter. `None`: it is something else.
    pub fn from_text(text: &str) -> Option<Self> {
        let hex = text.trim().strip_prefix(TEXT_PREFIX)?;
        if hex.len() != SECRET_BYTES * 2 || !hex.is_ascii() {
            return None;
        }
        let mut bytes = [0; SECRET_BYTES];
        for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&hex[at..at + 2], 16).ok()?;
        }
        Some(Self::from_bytes(bytes))
    }

    /// The text of its file, one line.
    pub fn to_text(&self) -> String {
        let hex: String = self.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{TEXT_PREFIX}{hex}\n")
    }

    pub(crate) fn into_bytes(self) -> [u8; SECRET_BYTES] {
        self.bytes
    }

    /// Eight hex digits that tell secrets apart and tell nothing else.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Seals a shared secret for its place in the store.
    ///
    /// # Errors
    /// The machine has no randomness.
    pub fn seal(&self, key: &[u8], value: &[u8]) -> Result<Vec<u8>, SealError> {
        encrypt((&self.name, &self.bytes), key, value)
    }

    /// Opens a shared secret.
    ///
    /// # Errors
    /// Another cluster secret sealed it, or it was changed.
    pub fn open(&self, key: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let envelope = parse(sealed)?;
        if envelope.name != self.name {
            let (name, own) = (envelope.name.to_owned(), self.name.clone());
            return Err(SealError::OtherSecret { name, own });
        }
        decrypt(&envelope, &self.bytes, key)
    }
}

fn name(bytes: &[u8; SECRET_BYTES]) -> String {
    let mut name = [0; 4];
    let derived = Salt::new(HKDF_SHA256, &[]).extract(bytes);
    let filled =
        derived.expand(&[NAME_INFO], NameBytes).is_ok_and(|okm| okm.fill(&mut name).is_ok());
    debug_assert!(filled, "four bytes are within HKDF's bounds");
    name.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct NameBytes;

impl ring::hkdf::KeyType for NameBytes {
    fn len(&self) -> usize {
        4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_comes_back_from_its_text_and_from_nothing_else() {
        let secret = ClusterSecret::from_bytes([7; SECRET_BYTES]);
        let text = secret.to_text();
        assert_eq!(ClusterSecret::from_text(&format!(" {text}\n")), Some(secret.clone()));
        for wrong in ["", "abc", &text[..60], &text.replace("07", "0x"), &text.replace("07", "é")]
        {
            assert_eq!(ClusterSecret::from_text(wrong), None, "{wrong}");
        }
        assert_eq!(secret.name().len(), 8);
        assert!(!text.contains(secret.name()));
        assert!(!format!("{secret:?}").contains("0707"));
    }

    #[test]
    fn another_secret_is_named() {
        let (own, other) = (
            ClusterSecret::from_bytes([1; SECRET_BYTES]),
            ClusterSecret::from_bytes([2; SECRET_BYTES]),
        );
        let sealed = own.seal(b"/flotilla/secrets/ca", b"pem").unwrap();
        assert_eq!(own.open(b"/flotilla/secrets/ca", &sealed).unwrap(), b"pem");
        assert_eq!(
            other.open(b"/flotilla/secrets/ca", &sealed),
            Err(SealError::OtherSecret { name: own.name().into(), own: other.name().into() })
        );
        let moved = own.open(b"/flotilla/secrets/sa", &sealed);
        assert_eq!(moved, Err(SealError::Changed { name: own.name().into() }));
    }
}
