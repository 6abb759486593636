//! Images: pulled, imported, kept, checked, mounted, collected.
//!
//! Owns everything below the image directory. Layers are unpacked directories that overlayfs takes as
//! lower ones; nothing compressed is kept. It must not know pods; who uses an image is told to it.

mod collect;
mod content;
mod credentials;
mod decompress;
mod entries;
mod error;
mod import;
mod layer;
mod manifest;
mod overlay;
mod pull;
mod reference;
mod registries;
mod registry;
mod settle;
#[cfg(test)]
mod tests;
mod tree;
pub(crate) mod user;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

#[allow(unused_imports, reason = "the room's doors, whoever goes through them")]
mod doors {
    pub(crate) use super::collect::{CollectPolicy, DiskUsage, ImageUse, plan_collect};
    pub(crate) use super::credentials::{Credentials, CredentialsError, parse_docker_config};
    pub(crate) use super::error::PullError;
    pub(crate) use super::overlay::{mount_overlay, unmount};
    pub(crate) use super::reference::{Digest, Reference, ReferenceError};
    pub(crate) use super::registries::{Registries, RegistriesError};
}
pub(crate) use doors::*;

use content::Content;
use pull::Gate;

/// Pulls at work at once; each fetches several layers.
const PULLS_MAX: usize = 3;

/// Where images are kept and how they are fetched.
#[derive(Clone, Debug)]
pub(crate) struct ImageStoreConfig {
    /// On a file system that overlayfs can use.
    pub(crate) dir: PathBuf,
    /// `registries.toml`; read again for each pull.
    pub(crate) registries: PathBuf,
}

/// Why the store can't do something with what it has.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("image store {path:?}")]
    Store { path: PathBuf, source: io::Error },
    #[error("image {0} not found")]
    NotFound(String),
    #[error("image {0} is in use")]
    InUse(String),
    #[error("image {0} is pinned")]
    Pinned(String),
    #[error("archive {path:?}: {reason}")]
    Archive { path: PathBuf, reason: String },
}

/// An image on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// `sha256:<digest of its configuration>`.
    pub(crate) id: String,
    /// `docker.io/library/nginx:1.27`.
    pub(crate) tags: Vec<String>,
    /// `docker.io/library/nginx@sha256:...`, of the manifest or index that was asked for.
    pub(crate) digests: Vec<String>,
    /// Top first, as overlayfs wants its lower directories.
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) config: ImageConfig,
    /// Bytes on disk, shared layers included.
    pub(crate) size_bytes: u64,
    /// Never collected.
    pub(crate) pinned: bool,
}

/// What an image says of its containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ImageConfig {
    #[serde(deserialize_with = "or_default")]
    pub(crate) env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) user: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) working_dir: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) volumes: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) stop_signal: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) labels: BTreeMap<String, String>,
}

/// Docker writes `null` for what is empty.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// How far a pull is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PullProgress {
    pub(crate) layers: usize,
    pub(crate) layers_done: usize,
    /// Compressed bytes of the layers that were missing.
    pub(crate) bytes: u64,
    pub(crate) bytes_done: u64,
}

/// Told how far a pull is, from its threads.
pub(crate) type Progress = Arc<dyn Fn(PullProgress) + Send + Sync>;

type Waiter = oneshot::Sender<Result<Image, PullError>>;

/// The node's images.
#[derive(Clone)]
pub(crate) struct ImageStore {
    inner: Arc<Inner>,
}

struct Inner {
    config: ImageStoreConfig,
    content: Content,
    /// Who waits for which pull.
    pulls: Mutex<HashMap<(Reference, u64), Vec<Waiter>>>,
    gate: Gate,
}

impl std::fmt::Debug for ImageStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ImageStore")
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}

impl ImageStore {
    /// Opens the store: removes what an interrupted pull left, checks the shape of every layer and
    /// forgets images with damaged ones, so that they are fetched again. Blocking.
    pub(crate) fn open(config: ImageStoreConfig) -> Result<ImageStore, ImageError> {
        let content = Content::open(&config.dir)
            .map_err(|source| ImageError::Store { path: config.dir.clone(), source })?;
        let pulls = Mutex::new(HashMap::new());
        let gate = Gate::new(PULLS_MAX);
        Ok(ImageStore { inner: Arc::new(Inner { config, content, pulls, gate }) })
    }

    /// Fetches an image. However many ask for one with the same credentials, it is fetched once.
    pub(crate) async fn pull(
        &self,
        reference: &Reference,
        credentials: &[Credentials],
        progress: Option<Progress>,
    ) -> Result<Image, PullError> {
        let fitting: Vec<Credentials> =
            credentials::matching(credentials, reference).into_iter().cloned().collect();
        let mut hasher = DefaultHasher::new();
        fitting.hash(&mut hasher);
        let key = (reference.clone(), hasher.finish());
        let (waiter, answer) = oneshot::channel();
        let is_first = {
            let mut pulls = self.inner.pulls.lock().unwrap_or_else(PoisonError::into_inner);
            let waiters = pulls.entry(key.clone()).or_default();
            waiters.push(waiter);
            waiters.len() == 1
        };
        if is_first {
            self.spawn_pull(key, fitting, progress);
        }
        let ended = |_| PullError::Shared {
            reason: "ErrImagePull",
            message: format!(
                "failed to pull image {:?}: the pull was broken off",
                reference.to_string()
            ),
        };
        answer.await.map_err(ended)?
    }

    fn spawn_pull(
        &self,
        key: (Reference, u64),
        credentials: Vec<Credentials>,
        progress: Option<Progress>,
    ) {
        let inner = Arc::clone(&self.inner);
        let name = key.0.to_string();
        let finished_key = key.clone();
        let work = move || {
            let _turn = inner.gate.enter();
            let job = pull::Job {
                content: &inner.content,
                registries: &inner.config.registries,
                reference: &key.0,
                credentials: &credentials,
                progress: progress.as_ref(),
            };
            let result = job.run();
            if let Err(error) = &result {
                tracing::warn!(image = %key.0, error = error.chain(), "pull failed");
            }
            inner.finish_pull(&key, result);
        };
        if let Err(source) = std::thread::Builder::new().name("image-pull".to_owned()).spawn(work) {
            let what = "no thread for it".to_owned();
            let error = PullError::Disk { image: name, what, source };
            self.inner.finish_pull(&finished_key, Err(error));
        }
    }

    /// The image that a name stands for, if it is here.
    pub(crate) fn get(&self, reference: &Reference) -> Option<Image> {
        self.inner.content.find(reference)
    }

    /// An image by its id, `sha256:...`.
    pub(crate) fn get_by_id(&self, id: &str) -> Option<Image> {
        self.inner.content.list().into_iter().find(|image| image.id == id)
    }

    /// All images.
    pub(crate) fn list(&self) -> Vec<Image> {
        self.inner.content.list()
    }

    /// Removes an image and the layers that no other has. Blocking.
    pub(crate) fn remove(&self, id: &str, in_use: &BTreeSet<String>) -> Result<(), ImageError> {
        if in_use.contains(id) {
            return Err(ImageError::InUse(id.to_owned()));
        }
        self.inner.content.remove(id)
    }

    /// Keeps an image from being collected, or not any more. Blocking.
    pub(crate) fn pin(&self, id: &str, pinned: bool) -> Result<(), ImageError> {
        self.inner.content.pin(id, pinned)
    }

    /// Takes images out of an archive of Docker's or OCI's, compressed or not. Blocking.
    pub(crate) fn import(&self, archive: &Path) -> Result<Vec<Image>, ImageError> {
        import::import(&self.inner.content, archive)
    }

    /// Reads every file of an image and compares it with what was unpacked; a damaged layer is
    /// removed with the images that have it, so that they are fetched again. Blocking, and long.
    pub(crate) fn verify(&self, id: &str) -> Result<bool, ImageError> {
        self.inner.content.verify(id)
    }

    /// Carries a plan of [`plan_collect`] out; answers the images removed. Blocking.
    pub(crate) fn apply_collect(&self, plan: &[String]) -> Result<Vec<String>, ImageError> {
        let mut removed = Vec::new();
        for id in plan {
            match self.inner.content.remove(id) {
                Ok(()) => removed.push(id.clone()),
                Err(ImageError::NotFound(_) | ImageError::Pinned(_)) => {}
                Err(error) => return Err(error),
            }
        }
        self.inner.content.remove_orphans()?;
        Ok(removed)
    }

    /// How full the store's file system is.
    pub(crate) fn observe_disk(&self) -> io::Result<DiskUsage> {
        collect::observe_disk(&self.inner.config.dir)
    }
}

impl Inner {
    fn finish_pull(&self, key: &(Reference, u64), result: Result<Image, PullError>) {
        let waiters = self
            .pulls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key)
            .unwrap_or_default();
        let shared = match &result {
            Ok(image) => Ok(image.clone()),
            Err(error) => Err((error.reason(), error.chain())),
        };
        let mut first = Some(result);
        for waiter in waiters {
            let copy = shared.clone();
            let copy = copy.map_err(|(reason, message)| PullError::Shared { reason, message });
            // Whoever has gone doesn't want it.
            let _gone = waiter.send(first.take().unwrap_or(copy));
        }
    }
}
