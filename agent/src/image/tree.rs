//! Digests of an unpacked layer: of its shape, which a boot checks, and of everything.
//!
//! The shape is names, types, modes, owners, sizes, times, links and attributes: it finds what a
//! power cut leaves (missing and truncated files) without reading any. Walks names in byte order, so
//! that the same tree has the same digest on every file system.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

use super::reference::Digest;

const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
const CAPABILITY_XATTR: &str = "security.capability";
const XATTR_BYTES_MAX: usize = 256;
const READ_BYTES: usize = 128 << 10;

/// Both digests of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TreeDigests {
    pub(crate) shape: Digest,
    pub(crate) contents: Digest,
}

/// Digest of a tree's shape.
pub(crate) fn shape(root: &Path) -> io::Result<Digest> {
    Ok(walk(root, &mut |_, _| Ok([0; 32]))?.shape)
}

/// Both digests; `hash` gives a file's SHA-256.
pub(crate) fn digests(
    root: &Path,
    mut hash: impl FnMut(&Path, &Metadata) -> io::Result<[u8; 32]>,
) -> io::Result<TreeDigests> {
    walk(root, &mut hash)
}

/// SHA-256 of a file, read.
pub(crate) fn hash_file(path: &Path) -> io::Result<[u8; 32]> {
    let mut file = fs::File::open(path)?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => context.update(&buffer[..count]),
        }
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    Ok(hash)
}

type Hash<'a> = &'a mut dyn FnMut(&Path, &Metadata) -> io::Result<[u8; 32]>;

fn walk(root: &Path, hash: Hash<'_>) -> io::Result<TreeDigests> {
    let (mut shape, mut contents) = (Context::new(&SHA256), Context::new(&SHA256));
    let mut contexts = (&mut shape, &mut contents);
    let mut path = PathBuf::new();
    // Of each directory on the way to `path`, the names that are left.
    let mut levels = vec![visit(root, &path, &mut contexts, hash)?.into_iter()];
    while let Some(level) = levels.last_mut() {
        match level.next() {
            Some(name) => {
                path.push(name);
                levels.push(visit(root, &path, &mut contexts, hash)?.into_iter());
            }
            None => {
                levels.pop();
                path.pop();
            }
        }
    }
    Ok(TreeDigests {
        shape: Digest::from_hash(shape.finish().as_ref()),
        contents: Digest::from_hash(contents.finish().as_ref()),
    })
}

/// Digests one file; answers the names in it if it is a directory.
fn visit(
    root: &Path,
    path: &Path,
    contexts: &mut (&mut Context, &mut Context),
    hash: Hash<'_>,
) -> io::Result<Vec<OsString>> {
    let full = root.join(path);
    let metadata = full.symlink_metadata()?;
    let mut record = Vec::with_capacity(128);
    field(&mut record, path.as_os_str().as_bytes());
    for number in [metadata.mode(), metadata.uid(), metadata.gid()] {
        record.extend_from_slice(&number.to_le_bytes());
    }
    record.extend_from_slice(&metadata.rdev().to_le_bytes());
    record.extend_from_slice(&metadata.mtime().to_le_bytes());
    let kind = metadata.file_type();
    if kind.is_symlink() {
        field(&mut record, fs::read_link(&full)?.as_os_str().as_bytes());
    }
    if kind.is_file() {
        record.extend_from_slice(&metadata.len().to_le_bytes());
    }
    if kind.is_dir() || kind.is_file() {
        for name in [OPAQUE_XATTR, CAPABILITY_XATTR] {
            let mut value = [0; XATTR_BYTES_MAX];
            let count = rustix::fs::lgetxattr(&full, name, &mut value).unwrap_or(0);
            field(&mut record, &value[..count]);
        }
    }
    contexts.0.update(&record);
    contexts.1.update(&record);
    if kind.is_file() {
        contexts.1.update(&hash(&full, &metadata)?);
    }
    if !kind.is_dir() {
        return Ok(Vec::new());
    }
    let mut names: Vec<_> = fs::read_dir(&full)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<_>>()?;
    names.sort();
    Ok(names)
}

fn field(record: &mut Vec<u8>, bytes: &[u8]) {
    record.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    record.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_shape_sees_truncation_the_contents_see_all() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a/file");
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(&file, "content").unwrap();
        let time = fs::metadata(&file).unwrap().modified().unwrap();
        let folder_time = fs::metadata(dir.path().join("a")).unwrap().modified().unwrap();
        let both = || digests(dir.path(), |path, _| hash_file(path)).unwrap();
        let before = both();
        assert_eq!(shape(dir.path()).unwrap(), before.shape);
        let rewrite = |text: &str| {
            fs::write(&file, text).unwrap();
            fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
        };
        rewrite("CONTENT");
        assert_eq!(both().shape, before.shape);
        assert_ne!(both().contents, before.contents);
        rewrite("");
        assert_ne!(both().shape, before.shape);
        rewrite("content");
        assert_eq!(both(), before);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_ne!(both().shape, before.shape);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        fs::File::open(dir.path().join("a")).unwrap().set_modified(folder_time).unwrap();
        assert_eq!(both(), before);
    }

    #[test]
    fn depth_costs_no_stack() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("d/".repeat(400))).unwrap();
        let root = dir.path().to_owned();
        let small = std::thread::Builder::new().stack_size(128 << 10);
        small.spawn(move || shape(&root).unwrap()).unwrap().join().unwrap();
    }
}
