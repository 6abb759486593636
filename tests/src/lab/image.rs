//! Making the lab's images out of files of this machine. Pure but for reading those files.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use ring::digest::{SHA256, digest};
use serde_json::json;

/// A blob with its digest, `sha256:…`.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Digest of the bytes.
    pub digest: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// An image of the lab, ready to push.
#[derive(Debug, Clone)]
pub struct Image {
    /// Layers, gzip-compressed.
    pub layers: Vec<Blob>,
    /// The image configuration.
    pub config: Blob,
    /// The manifest's JSON.
    pub manifest: Vec<u8>,
}

/// What an image runs unless a pod says otherwise.
#[derive(Debug, Clone, Copy, Default)]
pub struct Defaults<'a> {
    /// `Entrypoint` of the image configuration.
    pub entrypoint: &'a [&'a str],
    /// `Cmd` of the image configuration.
    pub command: &'a [&'a str],
}

/// `busybox:1.35` out of Debian's static busybox, an applet a link.
pub fn busybox(binary: &Path) -> Result<Image> {
    let applets = crate::shell::run(&[&binary.to_string_lossy(), "--list"])
        .context("busybox is missing (package busybox-static)")?;
    let mut layer = Layer::default();
    for folder in ["bin", "dev", "etc", "home", "proc", "root", "sys", "tmp", "usr", "var"] {
        layer.folder(folder, if folder == "tmp" { 0o1777 } else { 0o755 })?;
    }
    layer.file("bin/busybox", &fs::read(binary)?, 0o755)?;
    for applet in applets.lines().filter(|name| *name != "busybox") {
        layer.link(&format!("bin/{applet}"), "busybox")?;
    }
    layer.file(
        "etc/passwd",
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
        0o644,
    )?;
    layer.file("etc/group", b"root:x:0:\nnobody:x:65534:\n", 0o644)?;
    layer.finish(Defaults { entrypoint: &[], command: &["sh"] })
}

/// `testserver` out of its statically linked binary; `busybox` too, so that a shell is at hand.
pub fn testserver(binary: &Path, busybox: &Path) -> Result<Image> {
    let mut layer = Layer::default();
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        layer.folder(folder, 0o755)?;
    }
    let bytes = fs::read(binary).with_context(|| format!("no {}", binary.display()))?;
    layer.file("bin/testserver", &bytes, 0o755)?;
    layer.file("bin/busybox", &fs::read(busybox)?, 0o755)?;
    for applet in ["sh", "cat", "ls", "sleep", "tar", "nc", "nslookup", "ip", "id", "env"] {
        layer.link(&format!("bin/{applet}"), "busybox")?;
    }
    layer.file("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n", 0o644)?;
    layer.finish(Defaults { entrypoint: &["/bin/testserver"], command: &[] })
}

impl Image {
    /// The image as an archive that `agent image import` and `docker load` take.
    pub fn archive(&self, reference: &str) -> Result<Vec<u8>> {
        let file = |blob: &Blob| blob.digest.trim_start_matches("sha256:").to_owned();
        let layers: Vec<String> =
            self.layers.iter().map(|layer| format!("{}.tar.gz", file(layer))).collect();
        let config = format!("{}.json", file(&self.config));
        let manifest = serde_json::to_vec(&json!([{
            "Config": config, "RepoTags": [reference], "Layers": layers,
        }]))?;
        let mut archive = Layer::default();
        archive.file("manifest.json", &manifest, 0o644)?;
        archive.file(&config, &self.config.bytes, 0o644)?;
        for (name, layer) in layers.iter().zip(&self.layers) {
            archive.file(name, &layer.bytes, 0o644)?;
        }
        Ok(archive.archive.into_inner()?)
    }
}

struct Layer {
    archive: tar::Builder<Vec<u8>>,
}

impl Default for Layer {
    fn default() -> Layer {
        Layer { archive: tar::Builder::new(Vec::new()) }
    }
}

impl Layer {
    fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        Ok(self.archive.append_data(&mut header, format!("{path}/"), &[] as &[u8])?)
    }

    fn file(&mut self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let mut header = header(tar::EntryType::Regular, mode, bytes.len());
        Ok(self.archive.append_data(&mut header, path, bytes)?)
    }

    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        Ok(self.archive.append_link(&mut header, path, target)?)
    }

    fn finish(self, defaults: Defaults<'_>) -> Result<Image> {
        let tar = self.archive.into_inner()?;
        let diff_id = sha256(&tar);
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        std::io::Write::write_all(&mut encoder, &tar)?;
        let layer = blob(encoder.finish()?);
        let config = blob(serde_json::to_vec(&json!({
            "architecture": architecture(), "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Entrypoint": defaults.entrypoint, "Cmd": defaults.command, "WorkingDir": "/",
            },
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        }))?);
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config.digest, "size": config.bytes.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": layer.digest, "size": layer.bytes.len(),
            }],
        }))?;
        Ok(Image { layers: vec![layer], config, manifest })
    }
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn blob(bytes: Vec<u8>) -> Blob {
    Blob { digest: sha256(&bytes), bytes }
}

fn sha256(bytes: &[u8]) -> String {
    let hex: String =
        digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
