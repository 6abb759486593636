//! Images out of an archive: `docker save`'s, or an OCI layout in a tar; gzip, zstd or plain.
//!
//! An archive is a stream whose order is nobody's promise, so it is read more than once: for its
//! documents, then for layers, again as long as layers are missing whose blob came before its turn.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use tar::EntryType;

use super::content::Content;
use super::decompress::Decompressor;
use super::entries::Tar;
use super::manifest::{self, Configuration, Descriptor, Manifest, Platform};
use super::pull::unpack_verified;
use super::reference::{Digest, Reference};
use super::{Image, ImageError};

/// Longest document kept; layers are not documents.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
const DOCUMENTS_BYTES_MAX: usize = 64 << 20;
const ENTRIES_MAX: usize = 100_000;

/// `manifest.json` of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// An image of the archive: where its layers are.
#[derive(Debug)]
struct Planned {
    id: Digest,
    names: Vec<String>,
    manifest_digest: Option<Digest>,
    configuration: Configuration,
    /// Path in the archive, and the blob's digest where one is known; bottom first.
    layers: Vec<(String, Option<Descriptor>)>,
}

/// Small files of the archive and links between its entries.
#[derive(Debug, Default)]
struct Documents {
    files: BTreeMap<String, Vec<u8>>,
    links: BTreeMap<String, String>,
}

pub(super) fn import(content: &Content, path: &Path) -> Result<Vec<Image>, ImageError> {
    let import = Import { content, path };
    let documents = import.documents()?;
    let planned = if documents.files.contains_key("index.json") {
        import.plan_oci(&documents)?
    } else {
        import.plan_docker(&documents)?
    };
    if planned.is_empty() {
        return Err(import.failed("no image for this machine in it"));
    }
    planned.into_iter().map(|planned| import.take(planned, &documents)).collect()
}

struct Import<'a> {
    content: &'a Content,
    path: &'a Path,
}

impl Import<'_> {
    fn failed(&self, reason: impl ToString) -> ImageError {
        ImageError::Archive { path: self.path.to_owned(), reason: reason.to_string() }
    }

    fn open(&self) -> Result<Tar<impl Read>, ImageError> {
        let file = File::open(self.path).map_err(|error| self.failed(error))?;
        let stream = Decompressor::new(file).map_err(|error| self.failed(error))?;
        Ok(Tar::new(stream))
    }

    fn documents(&self) -> Result<Documents, ImageError> {
        let mut documents = Documents::default();
        let mut archive = self.open()?;
        let mut bytes = 0;
        let entries = archive.entries().map_err(|error| self.failed(error))?;
        for (count, entry) in entries.enumerate() {
            let mut entry = entry.map_err(|error| self.failed(error))?;
            let name = plain(&entry.path().map_err(|error| self.failed(error))?);
            if count > ENTRIES_MAX {
                return Err(self.failed("too many entries"));
            }
            match entry.header().entry_type() {
                EntryType::Symlink | EntryType::Link => {
                    let is_symlink = entry.header().entry_type() == EntryType::Symlink;
                    let target = entry.link_name().map_err(|error| self.failed(error))?;
                    let target = target.unwrap_or_default().into_owned();
                    let from = Path::new(&name).parent().unwrap_or(Path::new(""));
                    let target = if is_symlink { from.join(target) } else { target };
                    bytes += name.len() + target.as_os_str().len();
                    documents.links.insert(name, plain(&target));
                }
                EntryType::Regular if entry.size() <= DOCUMENT_BYTES_MAX => {
                    let mut text = Vec::new();
                    entry.read_to_end(&mut text).map_err(|error| self.failed(error))?;
                    let is_json = matches!(text.first(), Some(b'{' | b'['));
                    if is_json {
                        bytes += name.len() + text.len();
                        documents.files.insert(name, text);
                    }
                }
                _ => {}
            }
            if bytes > DOCUMENTS_BYTES_MAX {
                return Err(self.failed("too many documents"));
            }
        }
        Ok(documents)
    }

    /// A document and its digest.
    fn parse<T: serde::de::DeserializeOwned>(
        &self,
        documents: &Documents,
        name: &str,
    ) -> Result<(T, Digest), ImageError> {
        let name = documents.follow(name);
        let text = documents.files.get(&name).ok_or_else(|| self.failed(format!("no {name}")))?;
        let parsed = serde_json::from_slice(text)
            .map_err(|error| self.failed(format!("{name}: {error}")))?;
        Ok((parsed, Digest::of(text)))
    }

    fn plan_docker(&self, documents: &Documents) -> Result<Vec<Planned>, ImageError> {
        let (images, _): (Vec<DockerImage>, _) = self.parse(documents, "manifest.json")?;
        images
            .into_iter()
            .map(|image| {
                let (configuration, id) = self.parse(documents, &image.config)?;
                Ok(Planned {
                    id,
                    names: image.repo_tags.unwrap_or_default(),
                    manifest_digest: None,
                    configuration,
                    layers: image.layers.into_iter().map(|layer| (layer, None)).collect(),
                })
            })
            .collect()
    }

    fn plan_oci(&self, documents: &Documents) -> Result<Vec<Planned>, ImageError> {
        let (index, _): (Manifest, _) = self.parse(documents, "index.json")?;
        let platform = Platform::here();
        let mut planned = Vec::new();
        for entry in &index.manifests {
            let mut manifest: Manifest = self.blob(documents, &entry.digest)?;
            if manifest.is_index() {
                let Some(chosen) = manifest.choose(&platform) else { continue };
                manifest = self.blob(documents, &chosen.digest.clone())?;
            }
            let Some(config) = &manifest.config else { continue };
            let configuration: Configuration = self.blob(documents, &config.digest)?;
            if !platform.runs(&configuration.platform) {
                continue;
            }
            manifest::check(&manifest, &configuration).map_err(|reason| self.failed(reason))?;
            let id = config.digest.clone();
            let layers = manifest.layers.iter();
            planned.push(Planned {
                id,
                names: names_of(entry),
                manifest_digest: Some(entry.digest.clone()),
                configuration,
                layers: layers
                    .map(|layer| (blob_name(&layer.digest), Some(layer.clone())))
                    .collect(),
            });
        }
        Ok(planned)
    }

    fn blob<T: serde::de::DeserializeOwned>(
        &self,
        documents: &Documents,
        digest: &Digest,
    ) -> Result<T, ImageError> {
        let name = blob_name(digest);
        let text = documents.files.get(&name).ok_or_else(|| self.failed(format!("no {name}")))?;
        if Digest::of(text) != *digest {
            return Err(self.failed(format!("{name} is damaged")));
        }
        serde_json::from_slice(text).map_err(|error| self.failed(format!("{name}: {error}")))
    }

    fn take(&self, planned: Planned, documents: &Documents) -> Result<Image, ImageError> {
        let diff_ids = &planned.configuration.rootfs.diff_ids;
        if diff_ids.len() != planned.layers.len() || diff_ids.is_empty() {
            return Err(self.failed("layers and diff ids don't match"));
        }
        let chains = manifest::chain_ids(diff_ids);
        let _wanted = self.content.want(&chains);
        let missing = || chains.iter().filter(|chain| !self.content.has_layer(chain)).count();
        let mut left = missing();
        while left > 0 {
            self.pass(&planned, documents, &chains)?;
            let now = missing();
            if now == left {
                return Err(self.failed("a layer is missing"));
            }
            left = now;
        }
        let config = planned.configuration.config.unwrap_or_default();
        let mut image = None;
        let names = planned.names.iter().map(Some).chain(planned.names.is_empty().then_some(None));
        for name in names {
            let reference: Option<Reference> =
                name.map(|name| name.parse().map_err(|error| self.failed(error))).transpose()?;
            let digest = match (&reference, &planned.manifest_digest) {
                (Some(reference), Some(digest)) => Some(reference.by_digest(digest)),
                _ => None,
            };
            let names = (reference.map(|reference| reference.to_string()), digest);
            let (id, chains) = (planned.id.clone(), chains.clone());
            image = Some(
                self.content
                    .commit(id, names, chains, config.clone())
                    .map_err(|error| self.failed(error))?,
            );
        }
        image.ok_or_else(|| self.failed("no image"))
    }

    /// Reads the archive once, taking every layer whose turn it is.
    fn pass(
        &self,
        planned: &Planned,
        documents: &Documents,
        chains: &[Digest],
    ) -> Result<(), ImageError> {
        let mut archive = self.open()?;
        for entry in archive.entries().map_err(|error| self.failed(error))? {
            let mut entry = entry.map_err(|error| self.failed(error))?;
            let name = plain(&entry.path().map_err(|error| self.failed(error))?);
            let next = chains.iter().position(|chain| !self.content.has_layer(chain));
            let Some(at) = next else { return Ok(()) };
            if documents.follow(&planned.layers[at].0) != name
                || !entry.header().entry_type().is_file()
            {
                continue;
            }
            let claim = self.content.claim(&chains[at]).map_err(|error| self.failed(error))?;
            let Some(claim) = claim else { continue };
            let diff_id = &planned.configuration.rootfs.diff_ids[at];
            let wanted = planned.layers[at].1.as_ref();
            let unpacked = unpack_verified(&mut entry, &claim.root, diff_id, wanted)
                .map_err(|error| self.failed(format!("{name}: {error}")))?;
            claim
                .finish(diff_id, &unpacked, &chains[..at])
                .map_err(|error: io::Error| self.failed(format!("{name}: {error}")))?;
        }
        Ok(())
    }
}

impl Documents {
    /// Where an entry really is: older archives link layers that come twice.
    fn follow(&self, name: &str) -> String {
        const LINKS_MAX: usize = 8;
        let mut name = plain(Path::new(name));
        for _ in 0..LINKS_MAX {
            match self.links.get(&name) {
                Some(target) => name.clone_from(target),
                None => break,
            }
        }
        name
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// `./a/../b` as `b`.
fn plain(path: &Path) -> String {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => plain.push(part),
            Component::ParentDir => {
                plain.pop();
            }
            _ => {}
        }
    }
    plain.to_string_lossy().into_owned()
}

/// An image's full name stands in containerd's annotation; OCI's own may be a tag alone, which names
/// no image.
fn names_of(entry: &Descriptor) -> Vec<String> {
    let annotation = |key: &str| entry.annotations.get(key).cloned();
    let full = annotation("io.containerd.image.name");
    let own = annotation("org.opencontainers.image.ref.name")
        .filter(|name| name.contains('/') || name.contains(':'));
    full.or(own).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_behind_many_links_is_an_error_or_found() {
        let dir = tempfile::tempdir().unwrap();
        let content = Content::open(dir.path()).unwrap();
        let import = Import { content: &content, path: dir.path() };
        for (links, is_found) in [(0, true), (8, true), (9, false), (17, false)] {
            let mut documents = Documents::default();
            let manifest = br#"[{"Config": "0", "Layers": []}]"#;
            documents.files.insert("manifest.json".into(), manifest.to_vec());
            documents.files.insert(links.to_string(), b"{}".to_vec());
            for link in 0..links {
                documents.links.insert(link.to_string(), (link + 1).to_string());
            }
            let planned = import.plan_docker(&documents);
            assert_eq!(planned.is_ok(), is_found, "{links}");
        }
    }
}
