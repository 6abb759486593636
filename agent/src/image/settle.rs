//! What a layer leaves to the layers below it: directories it uses and does not describe, hard links
//! to files it does not have.
//!
//! Other runtimes unpack a layer over a mount of those below, where such things come out by
//! themselves. Here every layer is unpacked alone, so they are put right afterwards: an implied
//! directory gets the attributes of the one below, and where that is a symlink (`/lib` on systems
//! with a merged `/usr`), what was put into it moves to where the link leads.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use super::layer::is_whiteout;

/// As the kernel's limit.
const LINKS_MAX: usize = 40;
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Layers as overlayfs would merge them, top first.
#[derive(Clone, Debug)]
pub(crate) struct Stack<'a> {
    layers: &'a [PathBuf],
}

/// Where a path leads in the merged tree.
#[derive(Debug)]
struct Resolved {
    /// Without links, relative to the root.
    logical: PathBuf,
    /// The topmost layer's file, if all of the path exists.
    physical: Option<PathBuf>,
}

impl<'a> Stack<'a> {
    pub(crate) fn new(layers: &'a [PathBuf]) -> Stack<'a> {
        Stack { layers }
    }

    /// Follows links on the way and at the end; what doesn't exist is taken literally.
    fn resolve(&self, path: &Path) -> io::Result<Resolved> {
        let mut todo: VecDeque<OsString> = names(path);
        let mut logical = PathBuf::new();
        // For each directory entered, the layers that are merged in it.
        let mut trail: Vec<Vec<&PathBuf>> = vec![self.layers.iter().collect()];
        let mut exists = true;
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                logical.pop();
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let here = trail.last().cloned().unwrap_or_default();
            let next = logical.join(&name);
            match look_up(&here, &next)? {
                None => {
                    exists = false;
                    trail.push(Vec::new());
                    logical = next;
                }
                Some((found, metadata)) if metadata.is_symlink() => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(io::Error::from_raw_os_error(libc::ELOOP));
                    }
                    let target = fs::read_link(found)?;
                    if target.is_absolute() {
                        logical = PathBuf::new();
                        trail.truncate(1);
                    }
                    for name in names(&target).into_iter().rev() {
                        todo.push_front(name);
                    }
                }
                Some(_) => {
                    trail.push(merged(&here, &next)?);
                    logical = next;
                }
            }
        }
        let physical = match (exists, trail.iter().rev().nth(1)) {
            (true, Some(above)) => look_up(above, &logical)?.map(|(path, _)| path),
            _ => None,
        };
        Ok(Resolved { logical, physical })
    }
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

/// The topmost of these layers that has the path, unless it hides it.
fn look_up(layers: &[&PathBuf], path: &Path) -> io::Result<Option<(PathBuf, Metadata)>> {
    for layer in layers {
        let full = layer.join(path);
        match full.symlink_metadata() {
            Ok(metadata) if is_whiteout(metadata.mode(), metadata.rdev()) => return Ok(None),
            Ok(metadata) => return Ok(Some((full, metadata))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The layers whose directories overlayfs merges at this path.
fn merged<'a>(layers: &[&'a PathBuf], path: &Path) -> io::Result<Vec<&'a PathBuf>> {
    let mut found = Vec::new();
    for layer in layers {
        let full = layer.join(path);
        match full.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => found.push(*layer),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        }
        let mut value = [0; 8];
        if rustix::fs::lgetxattr(&full, OPAQUE_XATTR, &mut value).is_ok_and(|count| count > 0) {
            break;
        }
    }
    Ok(found)
}

/// Puts the layer right; `implied` has parents before children.
pub(crate) fn settle(
    layer: &Path,
    below: &Stack<'_>,
    implied: &[PathBuf],
    borrowed: &[(PathBuf, PathBuf)],
) -> io::Result<()> {
    for path in implied {
        let resolved = below.resolve(path)?;
        let (from, to) = (layer.join(path), layer.join(&resolved.logical));
        if from != to && from.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            ensure_parents(layer, below, &resolved.logical)?;
            merge_move(&from, &to)?;
        }
        if let Some(physical) = &resolved.physical
            && to.is_dir()
        {
            copy_attributes(physical, &to)?;
        }
    }
    for (link, target) in borrowed {
        let source = below.resolve(target)?.physical.ok_or_else(|| {
            let text =
                format!("hard link {} to {}, which no layer has", link.display(), target.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
        let resolved = below.resolve(link.parent().unwrap_or(Path::new("")))?;
        let to = layer.join(resolved.logical).join(link.file_name().unwrap_or(OsStr::new("")));
        fs::copy(&source, &to)?;
        copy_attributes(&source, &to)?;
    }
    Ok(())
}

fn ensure_parents(layer: &Path, below: &Stack<'_>, path: &Path) -> io::Result<()> {
    let mut prefix = PathBuf::new();
    for part in path.parent().into_iter().flat_map(Path::components) {
        prefix.push(part);
        let full = layer.join(&prefix);
        match fs::DirBuilder::new().mode(0o755).create(&full) {
            Ok(()) => {
                if let Some(physical) = below.resolve(&prefix)?.physical {
                    copy_attributes(&physical, &full)?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Moves a directory's content into another; where both have a file, the moved one counts.
fn merge_move(from: &Path, to: &Path) -> io::Result<()> {
    if !to.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return fs::rename(from, to);
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            merge_move(&entry.path(), &target)?;
        } else {
            fs::rename(entry.path(), target)?;
        }
    }
    fs::remove_dir(from)
}

fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = from.metadata()?;
    chown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    fs::File::open(to)?.set_modified(metadata.modified()?)
}
