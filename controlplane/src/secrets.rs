//! Owns the secrets that the masters of a cluster share: they stand in the store under `/flotilla/secrets/<name>`, sealed with the
//! cluster secret; files under `pki/` are a cache of them. Must not know what a secret is for.
//!
//! At a start: [`Loaded::read`] (the cluster secret, from its file), then the store is opened with its key ring, then [`Secrets::open`],
//! then whoever needs a shared secret asks for it. The first start makes the cluster secret. Two masters that start on one
//! etcd at the same time both try; a transaction decides whose cluster it is.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use store::seal::{ClusterSecret, Keyring};
use store::{
    Compare, Entry, KeyRange, Op, OpenError, Range, ReadError, SealError, Store, Txn, WriteError,
};

use crate::pki::{PkiError, write_file};

/// What the store's keys of shared secrets begin with.
pub const PREFIX: &str = "/flotilla/secrets/";
/// What the store's keys of encryption keys begin with; a number follows.
pub const ENCRYPTION_PREFIX: &str = "/flotilla/secrets/encryption-";
/// Values of these keys leave the memory only sealed.
pub const SEALED_PREFIX: &str = "/registry/secrets/";
/// Name of the cluster secret's file in the data folder.
pub const FILE_NAME: &str = "cluster-secret";

const DIR_MODE: u32 = 0o700;
const SECRET_MODE: u32 = 0o600;
const PUBLIC_MODE: u32 = 0o644;
/// Another master may have been quicker; then what it made is there at the second look.
const ATTEMPTS: usize = 3;

/// Why the shared secrets are not there.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// A file can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file of the cluster secret was named, and isn't there.
    #[error(
        "{path}: the cluster secret is not there; copy it from a master of the cluster, or from where it was kept with the backups"
    )]
    NotThere {
        /// The file.
        path: PathBuf,
    },
    /// The file holds something else.
    #[error(
        "{path} holds no cluster secret; copy it from a master of the cluster, or from where it was kept with the backups"
    )]
    NoSecret {
        /// The file.
        path: PathBuf,
    },
    /// The state is sealed, and there is no cluster secret.
    #[error(
        "{path} is missing: the cluster's state is sealed with the cluster secret {name}; copy it from a master of the cluster, or from where it was kept with the backups (--cluster-secret-file names another file)"
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// Name of the secret that is needed.
        name: String,
    },
    /// The cluster secret is another cluster's.
    #[error(
        "{path} holds the cluster secret {own}, but the cluster's state is sealed with {name}; copy that one from a master of the cluster, or from where it was kept with the backups (--cluster-secret-file names another file)"
    )]
    Other {
        /// The file.
        path: PathBuf,
        /// Name of the secret in it.
        own: String,
        /// Name of the secret that is needed.
        name: String,
    },
    /// A shared secret can't be sealed or opened, for another reason.
    #[error("{key}: {source}; restore a snapshot of the cluster")]
    Seal {
        /// The store's key.
        key: String,
        /// Why.
        source: SealError,
    },
    /// Some parts of a secret are in the store and some are not.
    #[error(
        "{key} is missing in the store, while others of its kind are there; restore a snapshot of the cluster"
    )]
    Half {
        /// The store's key.
        key: String,
    },
    /// The store can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store can't be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The store can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A secret can't be made, or isn't what it should be.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// The place of a text that isn't what it should be, and what that is.
pub type Unfit = (usize, &'static str);

/// One or more files' texts that belong together and are the same at all masters.
#[derive(Debug, Clone, Copy)]
pub struct Shared {
    /// Names: of the files under `pki/`, and in the store.
    pub names: &'static [&'static str],
    /// Makes their texts.
    pub make: fn(Timestamp) -> Result<Vec<String>, PkiError>,
    /// Whether they are what they should be.
    pub check: fn(&[String]) -> Result<(), Unfit>,
}

/// A cluster secret that was read or, where there is no file, made.
#[derive(Debug)]
pub struct Loaded {
    path: PathBuf,
    ring: Arc<Keyring>,
    made: bool,
}

impl Loaded {
    /// Reads the cluster secret: from the file that was named, or from the usual one. That one may be missing: at a first start.
    ///
    /// # Errors
    /// The file can't be used.
    pub fn read(data_dir: &Path, named: Option<&Path>) -> Result<Self, SecretsError> {
        let path = named.map_or_else(|| data_dir.join(FILE_NAME), Path::to_owned);
        let (secret, made) = match read_secret(&path)? {
            Some(secret) => (secret, false),
            None if named.is_some() => return Err(SecretsError::NotThere { path }),
            None => (
                ClusterSecret::generate()
                    .map_err(|error| sealing("a new cluster secret", error))?,
                true,
            ),
        };
        let ring = Arc::new(Keyring::new(secret, ENCRYPTION_PREFIX, vec![SEALED_PREFIX.into()]));
        Ok(Self { path, ring, made })
    }

    /// What the store is to be opened with.
    pub fn ring(&self) -> &Arc<Keyring> {
        &self.ring
    }

    /// Why the store can't be opened, with what to do about it.
    pub fn explain(&self, error: OpenError) -> SecretsError {
        match error {
            OpenError::Sealed { key, source } => self.refused(&key, source),
            other => other.into(),
        }
    }

    /// Whether the cluster secret opens shared secrets of the store.
    ///
    /// # Errors
    /// It doesn't open this one.
    pub fn check(&self, sealed: &[(Bytes, Bytes)]) -> Result<(), SecretsError> {
        sealed.iter().try_for_each(|(key, value)| self.open(key, value).map(drop))
    }

    fn open(&self, key: &[u8], value: &[u8]) -> Result<Vec<u8>, SecretsError> {
        let opened = self.ring.secret().open(key, value);
        opened.map_err(|error| self.refused(&String::from_utf8_lossy(key), error))
    }

    fn refused(&self, key: &str, error: SealError) -> SecretsError {
        let path = self.path.clone();
        match innermost(error) {
            SealError::OtherSecret { name, .. } if self.made => {
                SecretsError::Missing { path, name }
            }
            SealError::OtherSecret { name, own } => SecretsError::Other { path, own, name },
            source => sealing(key, source),
        }
    }
}

fn innermost(error: SealError) -> SealError {
    match error {
        SealError::SealedKey { why, .. } => innermost(*why),
        other => other,
    }
}

fn sealing(key: &str, source: SealError) -> SecretsError {
    SecretsError::Seal { key: key.to_owned(), source }
}

/// Reads a cluster secret's file. `None`: it isn't there.
///
/// # Errors
/// It can't be read, or is something else.
pub fn read_secret(path: &Path) -> Result<Option<ClusterSecret>, SecretsError> {
    let Some(text) = read(path)? else { return Ok(None) };
    let metadata = fs::metadata(path).map_err(|source| file(path, source))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!(file = %path.display(), "others than root can read the cluster secret; `chmod 600` it");
    }
    let secret = ClusterSecret::from_text(&text);
    secret.map(Some).ok_or_else(|| SecretsError::NoSecret { path: path.to_owned() })
}

/// Writes a cluster secret's file.
///
/// # Errors
/// The disk says no.
pub fn write_secret(path: &Path, secret: &ClusterSecret) -> Result<(), SecretsError> {
    write_file(path, &secret.to_text(), SECRET_MODE).map_err(|source| file(path, source))
}

fn file(path: &Path, source: io::Error) -> SecretsError {
    SecretsError::File { path: path.to_owned(), source }
}

/// `None`: there is no such file.
fn read(path: &Path) -> Result<Option<String>, SecretsError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(file(path, source)),
    }
}

/// The shared secrets of an open store.
#[derive(Debug)]
pub struct Secrets {
    store: Store,
    loaded: Loaded,
}

impl Secrets {
    /// Checks that the cluster secret is this store's, keeps it in its file when it was made now, and makes the first encryption key
    /// where there is none.
    ///
    /// # Errors
    /// The cluster secret is another's, or the store or the disk says no.
    pub async fn open(store: Store, loaded: Loaded) -> Result<Self, SecretsError> {
        let secrets = Self { store, loaded };
        secrets.check_all()?;
        if secrets.loaded.made {
            write_secret(&secrets.loaded.path, secrets.loaded.ring.secret())?;
            tracing::info!(
                file = %secrets.loaded.path.display(),
                "made the cluster secret; keep a copy of it with the backups: without it nobody can open them"
            );
        }
        if secrets.loaded.ring.keys().is_empty() {
            // Its number is given: of two masters, each with a cluster secret of its own, one can make it.
            if secrets.make_encryption_key(encryption_key(1)).await? {
                tracing::info!("made the first encryption key");
            }
            secrets.lost_race()?;
        }
        Ok(secrets)
    }

    /// The encryption keys.
    pub fn ring(&self) -> &Arc<Keyring> {
        &self.loaded.ring
    }

    /// Makes an encryption key behind those that are there. `None`: another master was quicker.
    ///
    /// # Errors
    /// The store says no.
    pub async fn add_encryption_key(&self) -> Result<Option<String>, SecretsError> {
        let entries = self.entries(ENCRYPTION_PREFIX)?;
        let keys: Vec<&[u8]> = entries.iter().map(|entry| &*entry.key).collect();
        let key = next_encryption_key(&keys);
        let made = self.make_encryption_key(key.clone()).await?;
        Ok(made.then(|| key.trim_start_matches(ENCRYPTION_PREFIX).to_owned()))
    }

    async fn make_encryption_key(&self, key: String) -> Result<bool, SecretsError> {
        let value = self.loaded.ring.make_key(key.as_bytes());
        let value = value.map_err(|error| sealing(&key, error))?;
        self.create(vec![(key, value)]).await
    }

    /// The texts of a shared secret. The store decides; where it has none, those of the files are taken over, and where there
    /// are none either, they are made. Afterwards the files are as the store says.
    ///
    /// # Errors
    /// A part is missing or can't be used, or the store or the disk says no.
    pub async fn shared(
        &self,
        dir: &Path,
        shared: &Shared,
        now: Timestamp,
    ) -> Result<Vec<String>, SecretsError> {
        for _ in 0..ATTEMPTS {
            if let Some(texts) = self.stored(shared)? {
                self.cache(dir, shared, &texts)?;
                return Ok(texts);
            }
            let found = shared.names.iter().map(|name| read(&dir.join(name)));
            let found = found.collect::<Result<Vec<_>, _>>()?;
            let texts = match found.iter().position(Option::is_none) {
                None => found.into_iter().flatten().collect(),
                Some(_) if found.iter().all(Option::is_none) => (shared.make)(now)?,
                Some(missing) => {
                    // Half a CA is a damaged one; a new one would shut every node out.
                    let path = dir.join(shared.names[missing]);
                    return Err(PkiError::Unusable { path, what: "file: it is missing" }.into());
                }
            };
            (shared.check)(&texts).map_err(|(at, what)| PkiError::Unusable {
                path: dir.join(shared.names[at]),
                what,
            })?;
            let sealed = shared.names.iter().zip(&texts).map(|(name, text)| {
                let key = format!("{PREFIX}{name}");
                let value = self.loaded.ring.secret().seal(key.as_bytes(), text.as_bytes());
                value.map(|value| (key.clone(), value)).map_err(|error| sealing(&key, error))
            });
            if self.create(sealed.collect::<Result<_, _>>()?).await? {
                tracing::info!(names = ?shared.names, "put into the store, sealed with the cluster secret");
            }
            self.lost_race()?;
        }
        Err(SecretsError::Half { key: format!("{PREFIX}{}", shared.names[0]) })
    }

    fn entries(&self, prefix: &str) -> Result<Vec<Arc<Entry>>, ReadError> {
        Ok(self.store.range(&Range::all(KeyRange::Prefix(prefix.into())))?.entries)
    }

    fn open_entry(&self, entry: &Entry) -> Result<Vec<u8>, SecretsError> {
        self.loaded.open(&entry.key, &entry.value)
    }

    fn check_all(&self) -> Result<(), SecretsError> {
        self.entries(PREFIX)?.iter().try_for_each(|entry| self.open_entry(entry).map(drop))
    }

    /// Another master made the cluster at the same time, with a secret of its own: then ours is nobody's.
    fn lost_race(&self) -> Result<(), SecretsError> {
        let Err(error) = self.check_all() else { return Ok(()) };
        if self.loaded.made {
            fs::remove_file(&self.loaded.path).map_err(|source| file(&self.loaded.path, source))?;
        }
        Err(error)
    }

    /// Writes values where there are none. `false`: there are some already.
    async fn create(&self, values: Vec<(String, Vec<u8>)>) -> Result<bool, SecretsError> {
        let compare = values.iter().map(|(key, _)| Compare::absent(key.as_str())).collect();
        let put = |(key, value): (String, Vec<u8>)| Op::put(key, value);
        let success = values.into_iter().map(put).collect();
        Ok(self.store.txn(Txn { compare, success, failure: Vec::new() }).await?.succeeded)
    }

    /// `None`: the store has none of the parts.
    fn stored(&self, shared: &Shared) -> Result<Option<Vec<String>>, SecretsError> {
        let (mut texts, mut missing) = (Vec::new(), None);
        for name in shared.names {
            let key = format!("{PREFIX}{name}");
            match self.store.get(key.as_bytes()) {
                Some(entry) => {
                    let text = String::from_utf8(self.open_entry(&entry)?);
                    let changed = |_| SealError::Changed { name: (*name).to_owned() };
                    texts.push(text.map_err(changed).map_err(|error| sealing(&key, error))?);
                }
                None => missing = Some(key),
            }
        }
        match missing {
            None => Ok(Some(texts)),
            Some(_) if texts.is_empty() => Ok(None),
            Some(key) => Err(SecretsError::Half { key }),
        }
    }

    /// Makes the files what the store says; one that says something else is kept aside.
    fn cache(&self, dir: &Path, shared: &Shared, texts: &[String]) -> Result<(), SecretsError> {
        let made = fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir);
        made.map_err(|source| file(dir, source))?;
        for (name, text) in shared.names.iter().zip(texts) {
            let path = dir.join(name);
            match read(&path)? {
                Some(found) if found == *text => continue,
                Some(_) => {
                    let aside = dir.join(format!("{name}.replaced"));
                    fs::rename(&path, &aside).map_err(|source| file(&path, source))?;
                    tracing::warn!(
                        file = %path.display(), kept = %aside.display(),
                        "the file is not what the cluster has; replaced with the cluster's"
                    );
                }
                None => {}
            }
            let is_public = name.ends_with(".crt") || name.ends_with(".pub");
            let mode = if is_public { PUBLIC_MODE } else { SECRET_MODE };
            write_file(&path, text, mode).map_err(|source| file(&path, source))?;
        }
        Ok(())
    }
}

/// The key behind the last one. Numbers have four digits, so that they sort.
pub fn next_encryption_key(keys: &[&[u8]]) -> String {
    let numbers = keys.iter().filter_map(|key| {
        let own = std::str::from_utf8(key).ok()?.strip_prefix(ENCRYPTION_PREFIX)?;
        own.parse::<u32>().ok()
    });
    encryption_key(numbers.max().unwrap_or(0).saturating_add(1))
}

fn encryption_key(number: u32) -> String {
    format!("{ENCRYPTION_PREFIX}{number:04}")
}

#[cfg(test)]
#[path = "secrets_tests.rs"]
mod tests;
