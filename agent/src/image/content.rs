//! The store's files: layers by chain id, an index file per image.
//!
//! ```text
//! layers/<chain id>/fs           the unpacked layer
//! layers/<chain id>/layer.json   what it should be
//! layers/<chain id>.partial      one being made; removed at the next start
//! images/<config digest>.json    an image
//! ```
//!
//! A layer is renamed to its place when all of it is on the disk, an image is written when all its
//! layers are in place: after a power cut, what is in place is whole.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::layer::{self, Unpacked};
use super::reference::{Digest, Reference};
use super::settle::{self, Stack};
use super::{Image, ImageConfig, ImageError, tree};

/// Version of the files; a newer one is refused by name.
const FORMAT_VERSION: u32 = 1;

/// An image's index file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    format: u32,
    pub(super) id: Digest,
    pub(super) tags: BTreeSet<String>,
    pub(super) digests: BTreeSet<String>,
    /// Chain ids, bottom first.
    pub(super) layers: Vec<Digest>,
    pub(super) config: ImageConfig,
    size_bytes: u64,
    #[serde(default)]
    pinned: bool,
}

/// What a layer's directory should hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct LayerRecord {
    format: u32,
    diff_id: Digest,
    size_bytes: u64,
    shape: Digest,
    contents: Digest,
}

#[derive(Debug, Default)]
struct State {
    images: BTreeMap<Digest, ImageRecord>,
    /// Layers being made.
    busy: HashSet<Digest>,
    /// Layers of images that are on their way here: not to be collected.
    wanted: HashMap<Digest, usize>,
}

#[derive(Debug)]
pub(super) struct Content {
    dir: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
    /// Held by whoever writes images' files, which takes as long as the disk does; `state` is not.
    writing: Mutex<()>,
}

/// The right to make a layer; given back when dropped.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    content: &'a Content,
    chain: Digest,
    /// Where it is unpacked to.
    pub(super) root: PathBuf,
}

/// Keeps layers from being collected while an image is on its way.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    content: &'a Content,
    chains: Vec<Digest>,
}

impl Content {
    pub(super) fn open(dir: &Path) -> io::Result<Content> {
        for folder in ["layers", "images"] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir.join(folder))?;
        }
        let content = Content {
            dir: dir.to_owned(),
            state: Mutex::default(),
            changed: Condvar::new(),
            writing: Mutex::default(),
        };
        content.remove_partial()?;
        content.load()?;
        Ok(content)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes images' files, and shows the images as they are now.
    fn store(&self, _writing: &MutexGuard<'_, ()>, records: Vec<ImageRecord>) -> io::Result<()> {
        for record in &records {
            write(&self.image_file(&record.id), record)?;
        }
        let records = records.into_iter().map(|record| (record.id.clone(), record));
        self.state().images.extend(records);
        Ok(())
    }

    fn layers(&self) -> PathBuf {
        self.dir.join("layers")
    }

    fn layer(&self, chain: &Digest) -> PathBuf {
        self.layers().join(chain.hex())
    }

    fn image_file(&self, id: &Digest) -> PathBuf {
        self.dir.join("images").join(format!("{}.json", id.hex()))
    }

    fn remove_partial(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.layers())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "partial") {
                fs::remove_dir_all(path)?;
            }
        }
        Ok(())
    }

    fn load(&self) -> io::Result<()> {
        let mut records = Vec::new();
        for entry in fs::read_dir(self.dir.join("images"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                match read::<ImageRecord>(&path) {
                    Ok(record) => records.push(record),
                    // A newer agent's: its images are not ours to drop.
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => return Err(error),
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "unreadable; its image is to be fetched again");
                        fs::remove_file(&path)?;
                    }
                }
            }
        }
        let mut checked: HashMap<Digest, bool> = HashMap::new();
        for record in records {
            let mut is_whole = true;
            for chain in &record.layers {
                let good = match checked.get(chain) {
                    Some(good) => *good,
                    None => {
                        let good = self.check_shape(chain);
                        checked.insert(chain.clone(), good);
                        good
                    }
                };
                is_whole &= good;
            }
            if is_whole {
                self.state().images.insert(record.id.clone(), record);
            } else {
                tracing::error!(image = %record.id, tags = ?record.tags, "damaged; to be fetched again");
                fs::remove_file(self.image_file(&record.id))?;
            }
        }
        for (chain, good) in checked {
            let path = self.layer(&chain);
            if !good && path.exists() {
                fs::remove_dir_all(path)?;
            }
        }
        Ok(())
    }

    fn check_shape(&self, chain: &Digest) -> bool {
        let check = || -> io::Result<bool> {
            let record: LayerRecord = read(&self.layer(chain).join("layer.json"))?;
            Ok(tree::shape(&self.layer(chain).join("fs"))? == record.shape)
        };
        check().unwrap_or_else(|error| {
            tracing::error!(layer = %chain, %error, "can't check a layer");
            false
        })
    }

    /// All of an image's files against their digests; what is damaged is removed.
    pub(super) fn verify(&self, id: &str) -> Result<bool, ImageError> {
        let layers = self
            .state()
            .images
            .values()
            .find(|record| record.id.as_str() == id)
            .map(|record| record.layers.clone())
            .ok_or_else(|| ImageError::NotFound(id.to_owned()))?;
        let mut damaged = Vec::new();
        for chain in &layers {
            let compare = || -> io::Result<bool> {
                let record: LayerRecord = read(&self.layer(chain).join("layer.json"))?;
                let fs = self.layer(chain).join("fs");
                let found = tree::digests(&fs, |path, _| tree::hash_file(path))?;
                Ok(found.contents == record.contents)
            };
            if !compare().map_err(|source| self.failed(source))? {
                damaged.push(chain.clone());
            }
        }
        let has_damaged =
            |record: &ImageRecord| record.layers.iter().any(|chain| damaged.contains(chain));
        let gone: Vec<Digest> = self
            .state()
            .images
            .values()
            .filter(|record| has_damaged(record))
            .map(|record| record.id.clone())
            .collect();
        for id in &gone {
            tracing::error!(image = %id, "damaged; to be fetched again");
            self.forget(id)?;
        }
        if !damaged.is_empty() {
            self.remove_orphans()?;
        }
        Ok(damaged.is_empty())
    }

    fn failed(&self, source: io::Error) -> ImageError {
        ImageError::Store { path: self.dir.clone(), source }
    }

    pub(super) fn list(&self) -> Vec<Image> {
        self.state().images.values().map(|record| self.image(record)).collect()
    }

    pub(super) fn find(&self, reference: &Reference) -> Option<Image> {
        let by_digest = reference.digest.as_ref().map(|digest| reference.by_digest(digest));
        let name = reference.to_string();
        let state = self.state();
        let record = state.images.values().find(|record| match &by_digest {
            Some(by_digest) => record.digests.contains(by_digest),
            None => record.tags.contains(&name),
        })?;
        Some(self.image(record))
    }

    fn image(&self, record: &ImageRecord) -> Image {
        Image {
            id: record.id.to_string(),
            tags: record.tags.iter().cloned().collect(),
            digests: record.digests.iter().cloned().collect(),
            layers: self.stack(&record.layers),
            config: record.config.clone(),
            size_bytes: record.size_bytes,
            pinned: record.pinned,
        }
    }

    /// Directories of these layers (bottom first), top first.
    pub(super) fn stack(&self, chains: &[Digest]) -> Vec<PathBuf> {
        chains.iter().rev().map(|chain| self.layer(chain).join("fs")).collect()
    }

    /// Enters an image whose layers are in place. Tags move to it from others.
    pub(super) fn commit(
        &self,
        id: Digest,
        names: (Option<String>, Option<String>),
        layers: Vec<Digest>,
        config: ImageConfig,
    ) -> io::Result<Image> {
        let mut size_bytes = 0;
        for chain in &layers {
            let record: LayerRecord = read(&self.layer(chain).join("layer.json"))?;
            size_bytes += record.size_bytes;
        }
        let writing = self.writing();
        let images = self.state().images.clone();
        let (tag, digest) = names;
        let mut record = images.get(&id).cloned().unwrap_or_else(|| ImageRecord {
            format: FORMAT_VERSION,
            id,
            tags: BTreeSet::new(),
            digests: BTreeSet::new(),
            layers,
            config,
            size_bytes,
            pinned: false,
        });
        let mut changed = Vec::new();
        for mut other in images.into_values().filter(|other| other.id != record.id) {
            if tag.as_ref().is_some_and(|tag| other.tags.remove(tag)) {
                changed.push(other);
            }
        }
        record.tags.extend(tag);
        record.digests.extend(digest);
        let image = self.image(&record);
        changed.push(record);
        self.store(&writing, changed)?;
        Ok(image)
    }

    pub(super) fn pin(&self, id: &str, pinned: bool) -> Result<(), ImageError> {
        let writing = self.writing();
        let found = self.state().images.values().find(|record| record.id.as_str() == id).cloned();
        let record = found.ok_or_else(|| ImageError::NotFound(id.to_owned()))?;
        let record = ImageRecord { pinned, ..record };
        self.store(&writing, vec![record]).map_err(|source| self.failed(source))
    }

    pub(super) fn remove(&self, id: &str) -> Result<(), ImageError> {
        let found = {
            let state = self.state();
            let record = state.images.values().find(|record| record.id.as_str() == id);
            let record = record.ok_or_else(|| ImageError::NotFound(id.to_owned()))?;
            if record.pinned {
                return Err(ImageError::Pinned(id.to_owned()));
            }
            record.id.clone()
        };
        self.forget(&found)?;
        self.remove_orphans()
    }

    fn forget(&self, id: &Digest) -> Result<(), ImageError> {
        let _writing = self.writing();
        fs::remove_file(self.image_file(id)).map_err(|source| self.failed(source))?;
        self.state().images.remove(id);
        Ok(())
    }

    /// Removes layers that no image has and none on its way wants.
    pub(super) fn remove_orphans(&self) -> Result<(), ImageError> {
        let remove = || -> io::Result<()> {
            let state = self.state();
            let used: HashSet<&str> = state
                .images
                .values()
                .flat_map(|record| &record.layers)
                .chain(&state.busy)
                .chain(state.wanted.keys())
                .map(Digest::hex)
                .collect();
            let mut trash = Vec::new();
            for entry in fs::read_dir(self.layers())? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if !name.contains('.') && !used.contains(name.as_str()) {
                    // Renamed under the lock, so that nobody finds half of it later.
                    let path = self.layers().join(format!("{name}.removed.partial"));
                    fs::rename(entry.path(), &path)?;
                    trash.push(path);
                }
            }
            drop(state);
            trash.into_iter().try_for_each(fs::remove_dir_all)
        };
        remove().map_err(|source| self.failed(source))
    }

    /// Keeps these layers from being collected.
    pub(super) fn want(&self, chains: &[Digest]) -> Wanted<'_> {
        let mut state = self.state();
        for chain in chains {
            *state.wanted.entry(chain.clone()).or_default() += 1;
        }
        Wanted { content: self, chains: chains.to_vec() }
    }

    pub(super) fn has_layer(&self, chain: &Digest) -> bool {
        self.layer(chain).exists()
    }

    /// The right to make a layer, or `None` when it is there. Waits for whoever is making it.
    pub(super) fn claim(&self, chain: &Digest) -> io::Result<Option<Claim<'_>>> {
        let mut state = self.state();
        while state.busy.contains(chain) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if self.has_layer(chain) {
            return Ok(None);
        }
        state.busy.insert(chain.clone());
        drop(state);
        let partial = self.partial(chain);
        let claim = Claim { content: self, chain: chain.clone(), root: partial.join("fs") };
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        fs::create_dir(&partial)?;
        // The root of an image that doesn't describe it.
        fs::DirBuilder::new().mode(0o755).create(&claim.root)?;
        Ok(Some(claim))
    }

    fn partial(&self, chain: &Digest) -> PathBuf {
        self.layers().join(format!("{}.partial", chain.hex()))
    }
}

impl Claim<'_> {
    /// Puts an unpacked layer in its place. `below` are the chain ids under it, bottom first.
    pub(super) fn finish(
        self,
        diff_id: &Digest,
        unpacked: &Unpacked,
        below: &[Digest],
    ) -> io::Result<()> {
        let stack = self.content.stack(below);
        settle::settle(&self.root, &Stack::new(&stack), &unpacked.implied, &unpacked.borrowed)?;
        let digests = tree::digests(&self.root, |path, metadata| {
            match unpacked.hashes.get(&metadata.ino()) {
                Some(hash) => Ok(*hash),
                None => tree::hash_file(path),
            }
        })?;
        let record = LayerRecord {
            format: FORMAT_VERSION,
            diff_id: diff_id.clone(),
            size_bytes: unpacked.size_bytes,
            shape: digests.shape,
            contents: digests.contents,
        };
        let partial = self.content.partial(&self.chain);
        fs::write(partial.join("layer.json"), serde_json::to_vec(&record)?)?;
        layer::sync_file_system(&partial)?;
        fs::rename(&partial, self.content.layer(&self.chain))?;
        File::open(self.content.layers())?.sync_all()
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let partial = self.content.partial(&self.chain);
        if partial.exists()
            && let Err(error) = fs::remove_dir_all(&partial)
        {
            tracing::warn!(path = %partial.display(), %error, "part of a layer stays");
        }
        self.content.state().busy.remove(&self.chain);
        self.content.changed.notify_all();
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        let mut state = self.content.state();
        for chain in &self.chains {
            if let Some(count) = state.wanted.get_mut(chain) {
                *count -= 1;
                if *count == 0 {
                    state.wanted.remove(chain);
                }
            }
        }
    }
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> io::Result<T> {
    let text = fs::read(path)?;
    let Format { format } = serde_json::from_slice(&text)?;
    if format > FORMAT_VERSION {
        let text = format!("{} has format {format}, this program {FORMAT_VERSION}", path.display());
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    Ok(serde_json::from_slice(&text)?)
}

/// Replaces a file so that after a power cut it is the old or the new one.
fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let draft = path.with_extension("new");
    let mut file = File::create(&draft)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_all()?;
    fs::rename(draft, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_image_is_dropped_a_newer_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let content = Content::open(dir.path()).unwrap();
        let commit = |content: &Content, text: &str| {
            let names = (Some("q.io/app:v1".to_owned()), None);
            let id = Digest::of(text.as_bytes());
            content.commit(id, names, Vec::new(), ImageConfig::default()).unwrap()
        };
        commit(&content, "old");
        let kept = commit(&content, "new");
        let tags: Vec<_> = content.list().into_iter().flat_map(|image| image.tags).collect();
        assert_eq!(tags, ["q.io/app:v1"], "a tag moves");
        let torn = content.image_file(&Digest::of(b"old"));
        fs::write(&torn, "").unwrap();
        let content = Content::open(dir.path()).unwrap();
        assert_eq!(content.list(), [kept]);
        assert!(!torn.exists());
        fs::write(&torn, r#"{"format": 1000}"#).unwrap();
        assert_eq!(Content::open(dir.path()).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
}
