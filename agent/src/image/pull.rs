//! One pull, on a thread of its own: endpoints and credentials in order, layers in parallel.

use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use super::content::Content;
use super::credentials::{self, Credentials};
use super::decompress::{Decompressor, Hashing};
use super::error::PullError;
use super::layer::{self, LayerError, Unpacked};
use super::manifest::{self, Configuration, Descriptor, Manifest, Platform};
use super::reference::{Digest, Reference};
use super::registries::{Endpoint, Registries};
use super::registry::{Client, RegistryError};
use super::{Image, Progress, PullProgress};

/// Layers of one image fetched at once.
const LAYERS_AT_ONCE: usize = 3;

/// Lets a bounded number of pulls in.
#[derive(Debug)]
pub(super) struct Gate {
    free: Mutex<usize>,
    changed: Condvar,
}

/// A place inside.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Gate);

impl Gate {
    pub(super) fn new(places: usize) -> Gate {
        Gate { free: Mutex::new(places), changed: Condvar::new() }
    }

    pub(super) fn enter(&self) -> Turn<'_> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            free = self.changed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.changed.notify_one();
    }
}

/// What is pulled, from where, and who asks.
pub(super) struct Job<'a> {
    pub(super) content: &'a Content,
    pub(super) registries: &'a Path,
    pub(super) reference: &'a Reference,
    pub(super) credentials: &'a [Credentials],
    pub(super) progress: Option<&'a Progress>,
}

/// A manifest that was found, and where.
struct Found {
    client: Client,
    manifest: Manifest,
    /// Of the manifest or index that was asked for.
    digest: Digest,
}

impl Job<'_> {
    pub(super) fn run(&self) -> Result<Image, PullError> {
        let registries =
            Registries::load(self.registries).map_err(|error| self.unreachable(chain(&error)))?;
        let mut last = None;
        for endpoint in registries.endpoints(&self.reference.registry) {
            let url = endpoint.url.clone();
            match self.try_endpoint(&registries, endpoint) {
                Ok(image) => return Ok(image),
                Err(error @ PullError::Disk { .. }) => return Err(error),
                Err(error) => {
                    tracing::info!(image = %self.reference, url, error = error.chain(), "not from here");
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| self.unreachable("no endpoint".to_owned())))
    }

    fn try_endpoint(
        &self,
        registries: &Registries,
        endpoint: Endpoint,
    ) -> Result<Image, PullError> {
        let found = self.resolve(registries, endpoint)?;
        self.fetch(&found)
    }

    /// Tries credentials until the registry is content; at last, none. Some registries have no such
    /// image for whoever may not see it.
    fn resolve(&self, registries: &Registries, endpoint: Endpoint) -> Result<Found, PullError> {
        let at_host = Reference { registry: endpoint.host.clone(), ..self.reference.clone() };
        let mut candidates: Vec<Option<Credentials>> =
            credentials::matching(self.credentials, &at_host)
                .into_iter()
                .cloned()
                .chain(registries.credentials(&endpoint.host))
                .map(Some)
                .collect();
        candidates.push(None);
        let mut refused = None;
        for credentials in candidates {
            let ca_file = registries.ca_file(&endpoint.host);
            let namespace = &self.reference.registry;
            let client = Client::new(endpoint.clone(), namespace, credentials, ca_file)
                .map_err(|error| self.failed(error))?;
            match self.find(&client) {
                Ok((manifest, digest)) => return Ok(Found { client, manifest, digest }),
                // The first refusal is the one of the credentials that fit best.
                Err(error @ (PullError::Unauthorized { .. } | PullError::NotFound { .. })) => {
                    refused.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or_else(|| self.unreachable("no credentials".to_owned())))
    }

    fn find(&self, client: &Client) -> Result<(Manifest, Digest), PullError> {
        let repository = &self.reference.repository;
        let (bytes, digest) = client
            .manifest(repository, self.reference.selector())
            .map_err(|error| self.failed(error))?;
        let mut manifest = self.parse::<Manifest>(&bytes)?;
        if manifest.is_index() {
            let platform = Platform::here();
            let chosen = manifest.choose(&platform).ok_or_else(|| self.no_platform(&platform))?;
            let (bytes, _) = client
                .manifest(repository, chosen.digest.as_str())
                .map_err(|error| self.failed(error))?;
            manifest = self.parse(&bytes)?;
        }
        Ok((manifest, digest))
    }

    fn fetch(&self, found: &Found) -> Result<Image, PullError> {
        let config = found.manifest.config.as_ref();
        let config = config.ok_or_else(|| self.corrupt("the manifest has no configuration"))?;
        let bytes = found
            .client
            .document(&self.reference.repository, &config.digest)
            .map_err(|error| self.failed(error))?;
        let configuration: Configuration = self.parse(&bytes)?;
        manifest::check(&found.manifest, &configuration).map_err(|reason| self.corrupt(reason))?;
        let platform = Platform::here();
        if !platform.runs(&configuration.platform) {
            return Err(self.no_platform(&platform));
        }
        let diff_ids = &configuration.rootfs.diff_ids;
        let chains = manifest::chain_ids(diff_ids);
        let _wanted = self.content.want(&chains);
        let layers = Layers::new(self, found, diff_ids, &chains);
        layers.fetch_all()?;
        let tag = self.reference.tag.as_ref().map(|tag| format!("{}:{tag}", self.reference.name()));
        let names = (tag, Some(self.reference.by_digest(&found.digest)));
        let config_digest = config.digest.clone();
        self.content
            .commit(config_digest, names, chains.clone(), configuration.config.unwrap_or_default())
            .map_err(|source| self.disk("image index", source))
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, PullError> {
        serde_json::from_slice(bytes).map_err(|error| self.corrupt(format!("manifest: {error}")))
    }

    fn failed(&self, error: RegistryError) -> PullError {
        let image = self.reference.to_string();
        match error {
            RegistryError::NotFound => PullError::NotFound { image },
            RegistryError::Unauthorized(reason) => PullError::Unauthorized { image, reason },
            RegistryError::Digest { .. } => PullError::Corrupt { image, reason: error.to_string() },
            other => PullError::Unreachable { image, reason: other.to_string() },
        }
    }

    fn unreachable(&self, reason: String) -> PullError {
        PullError::Unreachable { image: self.reference.to_string(), reason }
    }

    fn corrupt(&self, reason: impl Into<String>) -> PullError {
        PullError::Corrupt { image: self.reference.to_string(), reason: reason.into() }
    }

    fn no_platform(&self, platform: &Platform) -> PullError {
        PullError::Platform { image: self.reference.to_string(), platform: platform.to_string() }
    }

    fn disk(&self, what: impl Into<String>, source: io::Error) -> PullError {
        PullError::Disk { image: self.reference.to_string(), what: what.into(), source }
    }
}

/// The layers of one image on their way.
struct Layers<'a> {
    job: &'a Job<'a>,
    found: &'a Found,
    diff_ids: &'a [Digest],
    chains: &'a [Digest],
    next: AtomicUsize,
    /// Per layer: whether it is in place, once that is known.
    done: Mutex<Vec<Option<bool>>>,
    changed: Condvar,
    bytes: u64,
    bytes_done: AtomicU64,
}

impl<'a> Layers<'a> {
    fn new(
        job: &'a Job<'a>,
        found: &'a Found,
        diff_ids: &'a [Digest],
        chains: &'a [Digest],
    ) -> Self {
        let layers = found.manifest.layers.iter().zip(chains);
        let missing = layers.filter(|(_, chain)| !job.content.has_layer(chain));
        Layers {
            job,
            found,
            diff_ids,
            chains,
            next: AtomicUsize::new(0),
            done: Mutex::new(vec![None; chains.len()]),
            changed: Condvar::new(),
            bytes: missing.fold(0, |bytes, (layer, _)| bytes.saturating_add(layer.size)),
            bytes_done: AtomicU64::new(0),
        }
    }

    fn fetch_all(&self) -> Result<(), PullError> {
        let workers = LAYERS_AT_ONCE.min(self.chains.len());
        let results: Vec<Result<(), PullError>> = std::thread::scope(|scope| {
            let spawn = |_| {
                let thread = std::thread::Builder::new().name("image-layer".to_owned());
                thread.spawn_scoped(scope, || self.work())
            };
            // With fewer threads it takes longer; without any, this one does all.
            let handles: Vec<_> = (0..workers).map_while(|at| spawn(at).ok()).collect();
            if handles.is_empty() {
                return vec![self.work()];
            }
            let ended = |_| Err(self.job.corrupt("a layer's thread ended"));
            handles.into_iter().map(|handle| handle.join().unwrap_or_else(ended)).collect()
        });
        // A layer that waited for a failed one says less than that one.
        let mut errors: Vec<PullError> = results.into_iter().filter_map(Result::err).collect();
        errors.sort_by_key(|error| matches!(error, PullError::Shared { .. }));
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    /// Takes layers from the bottom up, so that whatever one waits for is being made.
    fn work(&self) -> Result<(), PullError> {
        loop {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            if at >= self.chains.len() {
                return Ok(());
            }
            let result = self.fetch(at);
            let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
            done[at] = Some(result.is_ok());
            drop(done);
            self.changed.notify_all();
            if result.is_err() {
                // The others needn't begin more.
                self.next.fetch_max(self.chains.len(), Ordering::Relaxed);
                let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
                done.iter_mut().skip(at).for_each(|done| *done = done.or(Some(false)));
                drop(done);
                self.changed.notify_all();
                return result;
            }
            self.report();
        }
    }

    fn fetch(&self, at: usize) -> Result<(), PullError> {
        let (descriptor, diff_id) = (&self.found.manifest.layers[at], &self.diff_ids[at]);
        let claim = self
            .job
            .content
            .claim(&self.chains[at])
            .map_err(|source| self.job.disk("layer folder", source))?;
        let Some(claim) = claim else { return Ok(()) };
        let download = self
            .found
            .client
            .blob(&self.job.reference.repository, &descriptor.digest, descriptor.size)
            .map_err(|error| self.job.failed(error))?;
        let counting = Counting { inner: download, layers: self };
        let unpacked = unpack_verified(counting, &claim.root, diff_id, Some(descriptor))
            .map_err(|error| self.layer_failed(descriptor, error))?;
        self.wait_for_below(at)?;
        claim
            .finish(diff_id, &unpacked, &self.chains[..at])
            .map_err(|source| self.job.disk(format!("layer {}", descriptor.digest), source))
    }

    fn wait_for_below(&self, at: usize) -> Result<(), PullError> {
        let Some(below) = at.checked_sub(1) else { return Ok(()) };
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match done[below] {
                Some(true) => return Ok(()),
                Some(false) => {
                    let message = "a layer below failed".to_owned();
                    return Err(PullError::Shared { reason: "ErrImagePull", message });
                }
                None => {
                    done = self.changed.wait(done).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn layer_failed(&self, descriptor: &Descriptor, error: UnpackError) -> PullError {
        let what = format!("layer {}", descriptor.digest);
        match error {
            UnpackError::Layer(LayerError::Write { path, source }) => {
                self.job.disk(format!("{what}: {}", path.display()), source)
            }
            UnpackError::Layer(LayerError::Read(source)) | UnpackError::Read(source) => {
                self.job.unreachable(format!("{what}: {source}"))
            }
            other => self.job.corrupt(format!("{what}: {other}")),
        }
    }

    fn report(&self) {
        let Some(progress) = self.job.progress else { return };
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let layers_done = done.iter().filter(|done| **done == Some(true)).count();
        drop(done);
        progress(PullProgress {
            layers: self.chains.len(),
            layers_done,
            bytes: self.bytes,
            bytes_done: self.bytes_done.load(Ordering::Relaxed),
        });
    }
}

struct Counting<'a, R> {
    inner: R,
    layers: &'a Layers<'a>,
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        const REPORT_BYTES: u64 = 1 << 20;
        let count = self.inner.read(buffer)?;
        let before = self.layers.bytes_done.fetch_add(count as u64, Ordering::Relaxed);
        if before / REPORT_BYTES != (before + count as u64) / REPORT_BYTES {
            self.layers.report();
        }
        Ok(count)
    }
}

/// Why a layer was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    #[error("{0}")]
    Layer(#[from] LayerError),
    #[error("{0}")]
    Read(io::Error),
    #[error("{what} of digest {found}, not {wanted}")]
    Digest { what: &'static str, wanted: Digest, found: Digest },
}

/// Unpacks a layer and compares digests of what came and of what was in it. `wanted` is what came.
pub(super) fn unpack_verified(
    source: impl Read,
    root: &Path,
    diff_id: &Digest,
    wanted: Option<&Descriptor>,
) -> Result<Unpacked, UnpackError> {
    let decompressor = Decompressor::new(Hashing::new(source)).map_err(UnpackError::Read)?;
    let mut tar = Hashing::new(decompressor);
    let unpacked = layer::unpack(&mut tar, root)?;
    // A tar ends before its stream does.
    io::copy(&mut tar, &mut io::sink()).map_err(UnpackError::Read)?;
    let found = tar.digest();
    if found != *diff_id {
        let wanted = diff_id.clone();
        return Err(UnpackError::Digest { what: "tar", wanted, found });
    }
    if let (Some(wanted), Some(mut source)) = (wanted, tar.into_inner().into_source()) {
        io::copy(&mut source, &mut io::sink()).map_err(UnpackError::Read)?;
        let found = source.digest();
        if found != wanted.digest {
            let wanted = wanted.digest.clone();
            return Err(UnpackError::Digest { what: "blob", wanted, found });
        }
    }
    Ok(unpacked)
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
