//! Owns the keys that seal values: learned from entries of the store, each sealed with the cluster secret. The newest one that a state
//! has seals, all open. Keys are never forgotten while the program runs: files may hold what they sealed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use super::{ClusterSecret, KEY_BYTES, Seal, SealError, decrypt, encrypt, is_sealed, parse};
use crate::revision::Revision;

/// A key that seals values, or why it can't.
struct Key {
    name: String,
    /// The revision that made it.
    revision: Revision,
    bytes: Result<[u8; KEY_BYTES], SealError>,
}

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    /// Its name: what stands behind the prefix of keys in the store's key.
    pub name: String,
    /// The revision that made it.
    pub revision: Revision,
}

/// The keys of a cluster.
pub struct Keyring {
    secret: ClusterSecret,
    keys_prefix: Vec<u8>,
    sealed_prefixes: Vec<Vec<u8>>,
    /// Oldest first.
    keys: RwLock<Vec<Key>>,
    met_plain: AtomicBool,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").field("keys", &self.keys()).finish_non_exhaustive()
    }
}

impl Keyring {
    /// A ring without keys. It learns those under `keys_prefix`, and seals values under `sealed_prefixes`.
    pub fn new(
        secret: ClusterSecret,
        keys_prefix: impl Into<Vec<u8>>,
        sealed_prefixes: Vec<Vec<u8>>,
    ) -> Self {
        let (keys, met_plain) = (RwLock::default(), AtomicBool::new(false));
        Self { secret, keys_prefix: keys_prefix.into(), sealed_prefixes, keys, met_plain }
    }

    /// Whether a value was opened that was stored before values were sealed.
    pub fn met_plain(&self) -> bool {
        self.met_plain.load(Ordering::Relaxed)
    }

    /// What seals the keys.
    pub fn secret(&self) -> &ClusterSecret {
        &self.secret
    }

    /// A new key for a place in the store: what to put there.
    ///
    /// # Errors
    /// The machine has no randomness.
    pub fn make_key(&self, key: &[u8]) -> Result<Vec<u8>, SealError> {
        let bytes = ClusterSecret::generate()?.into_bytes();
        self.secret.seal(key, &bytes)
    }

    /// The keys that can be used, oldest first.
    pub fn keys(&self) -> Vec<KeyInfo> {
        self.with(|keys| {
            let usable = keys.iter().filter(|key| key.bytes.is_ok());
            usable.map(|key| KeyInfo { name: key.name.clone(), revision: key.revision }).collect()
        })
    }

    fn with<T>(&self, read: impl FnOnce(&[Key]) -> T) -> T {
        read(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn learn(&self, key: Key) {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        keys.retain(|known| known.name != key.name);
        let at = keys.partition_point(|known| known.revision <= key.revision);
        keys.insert(at, key);
    }
}

impl Seal for Keyring {
    fn applies(&self, key: &[u8]) -> bool {
        self.sealed_prefixes.iter().any(|prefix| key.starts_with(prefix))
    }

    fn seal(&self, key: &[u8], value: &[u8], revision: Revision) -> Result<Vec<u8>, SealError> {
        self.with(|keys| {
            let mut usable = keys.iter().rev().filter(|key| key.revision <= revision);
            let found = usable.find_map(|key| Some((key.name.as_str(), key.bytes.as_ref().ok()?)));
            encrypt(found.ok_or(SealError::NoKey)?, key, value)
        })
    }

    fn open(&self, key: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        if !is_sealed(sealed) {
            self.met_plain.store(true, Ordering::Relaxed);
            return Ok(sealed.to_vec());
        }
        let envelope = parse(sealed)?;
        let name = || envelope.name.to_owned();
        self.with(|keys| {
            let found = keys.iter().find(|key| key.name == envelope.name);
            match &found.ok_or_else(|| SealError::UnknownKey { name: name() })?.bytes {
                Ok(bytes) => decrypt(&envelope, bytes, key),
                Err(why) => Err(SealError::SealedKey { name: name(), why: Box::new(why.clone()) }),
            }
        })
    }

    fn observe(&self, key: &[u8], value: &[u8], revision: Revision) {
        let Some(name) = key.strip_prefix(&*self.keys_prefix) else { return };
        let Ok(name) = String::from_utf8(name.to_vec()) else { return };
        let opened = self.secret.open(key, value);
        let bytes = opened.and_then(|bytes| {
            bytes.try_into().map_err(|_| SealError::Changed { name: name.clone() })
        });
        self.learn(Key { name, revision, bytes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::MAGIC;

    const KEYS: &[u8] = b"/keys/";
    const AT: &[u8] = b"/s/a";

    fn ring(secret: u8) -> Keyring {
        let secret = ClusterSecret::from_bytes([secret; KEY_BYTES]);
        Keyring::new(secret, KEYS, vec![b"/s/".to_vec()])
    }

    fn unknown(name: &str) -> Result<Vec<u8>, SealError> {
        Err(SealError::UnknownKey { name: name.to_owned() })
    }

    #[test]
    fn the_newest_key_of_the_state_seals_and_all_open() {
        let ring = ring(1);
        assert!(ring.applies(AT) && !ring.applies(b"/t/a"));
        assert_eq!(ring.seal(AT, b"value", 9), Err(SealError::NoKey));
        for (name, revision) in [("/keys/one", 5), ("/keys/two", 8)] {
            ring.observe(name.as_bytes(), &ring.make_key(name.as_bytes()).unwrap(), revision);
        }
        assert_eq!(ring.seal(AT, b"value", 4), Err(SealError::NoKey));
        let (old, new) = (ring.seal(AT, b"value", 7).unwrap(), ring.seal(AT, b"value", 8).unwrap());
        assert_eq!((parse(&old).unwrap().name, parse(&new).unwrap().name), ("one", "two"));
        for sealed in [&old, &new] {
            assert_eq!(ring.open(AT, sealed).unwrap(), b"value");
            assert!(!sealed.windows(5).any(|bytes| bytes == b"value"));
            let moved = ring.open(b"/s/b", sealed);
            assert!(matches!(moved, Err(SealError::Changed { .. })), "{moved:?}");
        }
        assert_ne!(ring.seal(AT, b"value", 8).unwrap(), new, "the salt is another each time");
    }

    #[test]
    fn no_flipped_bit_and_no_cut_passes() {
        let ring = ring(1);
        ring.observe(b"/keys/k", &ring.make_key(b"/keys/k").unwrap(), 1);
        let sealed = ring.seal(AT, b"some value", 1).unwrap();
        // What does not begin as a sealed value was stored plain.
        for at in MAGIC.len()..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[at] ^= 1;
            assert!(ring.open(AT, &flipped).is_err(), "byte {at}");
            assert!(ring.open(AT, &sealed[..at]).is_err(), "cut at {at}");
        }
        assert!(!ring.met_plain());
        assert_eq!(ring.open(AT, b"{}").unwrap(), b"{}", "stored before values were sealed");
        assert!(ring.met_plain());
    }

    #[test]
    fn what_cannot_be_opened_says_which_key_it_needs() {
        let (own, other) = (ring(1), ring(2));
        let made = own.make_key(b"/keys/k").unwrap();
        own.observe(b"/keys/k", &made, 1);
        let sealed = own.seal(AT, b"value", 1).unwrap();
        assert_eq!(other.open(AT, &sealed), unknown("k"));
        other.observe(b"/keys/k", &made, 1);
        let error = other.open(AT, &sealed).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(own.secret().name()) && text.contains("\"k\""), "{text}");
        assert_eq!(other.seal(AT, b"value", 1), Err(SealError::NoKey));
        assert!(other.keys().is_empty());
        let mut newer = sealed;
        newer[4] = 9;
        assert_eq!(own.open(AT, &newer), Err(SealError::Newer { version: 9 }));
    }
}
