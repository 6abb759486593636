//! What a layer leaves to the layers below it: directories it uses and does not describe, hard links
//! to files it does not have.
//!
//! Other runtimes unpack a layer over a mount of those below, where such things come out by
//! themselves. Here every layer is unpacked alone, so they are put right afterwards: an implied
//! directory gets the attributes of the one below, and where that is a symlink (`/lib` on systems
//! with a merged `/usr`), what was put into it moves to where the link leads.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::{CStr, OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

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

/// Puts the layer right. Whatever the paths say, nothing outside of it is changed.
pub(crate) fn settle(
    layer: &Path,
    below: &Stack<'_>,
    implied: &BTreeSet<PathBuf>,
    borrowed: &BTreeMap<PathBuf, PathBuf>,
) -> io::Result<()> {
    let root = Root::open(layer)?;
    // Parents come before children.
    for path in implied {
        let resolved = below.resolve(path)?;
        if *path != resolved.logical {
            root.move_directory(path, &resolved.logical, below)?;
        }
        if let Some(physical) = &resolved.physical
            && let Some(to) = root.find(&resolved.logical)?
        {
            copy_attributes(&physical.symlink_metadata()?, &to.into())?;
        }
    }
    // The first link to each file below, which those after it share.
    let mut copied: HashMap<PathBuf, PathBuf> = HashMap::new();
    for (link, target) in borrowed {
        let source = below.resolve(target)?.physical.ok_or_else(|| {
            invalid(format!(
                "hard link {} to {}, which no layer has",
                link.display(),
                target.display()
            ))
        })?;
        let link = root.settled(link, below)?;
        match copied.get(&source) {
            Some(first) => root.link(first, &link)?,
            None => {
                root.copy(&source, &link)?;
                copied.insert(source, link);
            }
        }
    }
    Ok(())
}

/// The layer's directory. Paths in it are opened without following any link, so that none leads out.
struct Root(OwnedFd);

impl Root {
    fn open(layer: &Path) -> io::Result<Root> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Root(rustix::fs::open(layer, flags, Mode::empty())?))
    }

    fn directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.0, path, flags, Mode::empty(), resolve)
    }

    /// A directory, if it is one.
    fn find(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        match self.directory(path) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The directory of a path, and its name in it.
    fn parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let name = path.file_name().ok_or_else(|| invalid("the root can't be replaced".into()))?;
        Ok((self.directory(path.parent().unwrap_or(Path::new("")))?, name))
    }

    /// Where a link is once the directories have moved.
    fn settled(&self, link: &Path, below: &Stack<'_>) -> io::Result<PathBuf> {
        let parent = link.parent().unwrap_or(Path::new(""));
        if self.find(parent)?.is_some() {
            return Ok(link.to_owned());
        }
        let name = link.file_name().unwrap_or_default();
        Ok(below.resolve(parent)?.logical.join(name))
    }

    /// Moves a directory, unless it moved with one above it.
    fn move_directory(&self, from: &Path, to: &Path, below: &Stack<'_>) -> io::Result<()> {
        let Some(content) = self.find(from)? else { return Ok(()) };
        self.ensure_parents(to, below)?;
        let (above, name) = self.parent(from)?;
        match self.directory(to) {
            Ok(target) => {
                merge(&content, &target)?;
                Ok(rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR)?)
            }
            Err(Errno::NOENT) => {
                let (target, new_name) = self.parent(to)?;
                Ok(rustix::fs::renameat(above, name, target, new_name)?)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn ensure_parents(&self, path: &Path, below: &Stack<'_>) -> io::Result<()> {
        let mut prefix = PathBuf::new();
        for part in path.parent().into_iter().flat_map(Path::components) {
            let above = self.directory(&prefix)?;
            prefix.push(part);
            match rustix::fs::mkdirat(&above, part.as_os_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    if let Some(physical) = below.resolve(&prefix)?.physical {
                        let made = self.directory(&prefix)?;
                        copy_attributes(&physical.symlink_metadata()?, &made.into())?;
                    }
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn copy(&self, source: &Path, to: &Path) -> io::Result<()> {
        let metadata = source.symlink_metadata()?;
        // Opening a device or a FIFO may block, read the host's disk, or worse.
        if !metadata.is_file() {
            return Err(invalid(format!("hard link {} to what is no file", to.display())));
        }
        let mut source = File::open(source)?;
        let (directory, name) = self.room(to)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o600))?;
        let mut file = File::from(file);
        io::copy(&mut source, &mut file)?;
        copy_attributes(&metadata, &file)
    }

    fn link(&self, first: &Path, to: &Path) -> io::Result<()> {
        let (from, from_name) = self.parent(first)?;
        let (directory, name) = self.room(to)?;
        Ok(rustix::fs::linkat(from, from_name, directory, name, AtFlags::empty())?)
    }

    /// As [`Root::parent`], with nothing (or no whiteout) of that name in it.
    fn room<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let (directory, name) = self.parent(path)?;
        match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok((directory, name)),
            Err(error) => Err(error.into()),
        }
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Moves a directory's content into another; where both have a file, the moved one counts.
fn merge(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |directory: &OwnedFd, name: &CStr| {
        rustix::fs::openat(directory, name, flags, Mode::empty())
    };
    let entries: Vec<_> = rustix::fs::Dir::read_from(from)?.collect::<Result<_, _>>()?;
    for entry in entries {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if let (Ok(inner), Ok(target)) = (open(from, name), open(to, name)) {
            merge(&inner, &target)?;
            rustix::fs::unlinkat(from, name, AtFlags::REMOVEDIR)?;
        } else {
            rustix::fs::renameat(from, name, to, name)?;
        }
    }
    Ok(())
}

fn copy_attributes(from: &Metadata, to: &File) -> io::Result<()> {
    fchown(to, Some(from.uid()), Some(from.gid()))?;
    to.set_permissions(fs::Permissions::from_mode(from.mode() & 0o7777))?;
    to.set_modified(from.modified()?)
}

#[cfg(test)]
mod tests {
    use tar::EntryType::{self, Directory, Fifo, Link, Regular, Symlink};

    use super::super::layer::{LayerError, unpack};
    use super::*;

    type Entries<'a> = &'a [(EntryType, &'a str, &'a str)];

    /// Text of files is their link's name.
    fn archive(entries: Entries<'_>) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, name, link) in entries {
            let text = if *kind == Regular { *link } else { "" };
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o750);
            header.set_uid(rustix::process::getuid().as_raw().into());
            header.set_gid(rustix::process::getgid().as_raw().into());
            header.set_mtime(1);
            header.set_device_major(0).unwrap();
            header.set_device_minor(0).unwrap();
            header.set_size(text.len() as u64);
            if *kind != Regular {
                header.set_link_name_literal(link).unwrap();
            }
            builder.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    /// Directories of both layers, and what became of the upper one.
    fn two_layers(dir: &Path, lower: Entries<'_>, upper: Entries<'_>) -> io::Result<PathBuf> {
        let make = |name: &str| {
            fs::create_dir(dir.join(name)).unwrap();
            dir.join(name)
        };
        let (below, layer) = (make("below"), make("layer"));
        unpack(&archive(lower)[..], &below).unwrap();
        let unpacked = unpack(&archive(upper)[..], &layer).map_err(io::Error::other)?;
        let layers = [below];
        settle(&layer, &Stack::new(&layers), &unpacked.implied, &unpacked.borrowed)?;
        Ok(layer)
    }

    #[test]
    fn nothing_outside_the_layer_is_changed() {
        let lower: Entries<'_> = &[
            (Regular, "etc/payload", "evil"),
            (Directory, "d/e", ""),
            (Directory, "a/e", ""),
            (Symlink, "s", "x"),
        ];
        let cases: [(&str, Entries<'_>); 5] = [
            ("link", &[(Link, "d/e/evil", "etc/payload"), (Symlink, "d", "OUT")]),
            ("implied", &[(Regular, "d/e/file", "evil"), (Symlink, "d", "OUT")]),
            (
                "by another name",
                &[
                    (Directory, "a", ""),
                    (Symlink, "l", "a"),
                    (Link, "l/e/evil", "etc/payload"),
                    (Symlink, "a", "OUT"),
                ],
            ),
            ("moved", &[(Regular, "s/e/file", "evil"), (Symlink, "x", "OUT")]),
            ("moved link", &[(Link, "s/e/evil", "etc/payload"), (Symlink, "x", "OUT")]),
        ];
        for (name, upper) in cases {
            let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            fs::create_dir(out.path().join("e")).unwrap();
            let mode = || fs::metadata(out.path().join("e")).unwrap().mode();
            let before = mode();
            let target = out.path().to_string_lossy();
            let upper: Vec<_> = upper
                .iter()
                .map(|(kind, name, link)| {
                    (*kind, *name, if *link == "OUT" { &*target } else { link })
                })
                .collect();
            let result = two_layers(dir.path(), lower, &upper);
            assert_eq!(mode(), before, "{name}: {result:?}");
            assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1, "{name}: {result:?}");
            let inside = fs::read_dir(out.path().join("e")).unwrap().count();
            assert_eq!(inside, 0, "{name}: {result:?}");
        }
    }

    #[test]
    fn links_to_a_file_below_share_one_copy() {
        let dir = tempfile::tempdir().unwrap();
        let lower: Entries<'_> = &[(Regular, "usr/lib/file", "text"), (Symlink, "lib", "usr/lib")];
        let upper: Entries<'_> = &[
            (Link, "lib/one", "lib/file"),
            (Link, "two", "usr/lib/file"),
            (Link, "twice", "usr/lib/file"),
            (Regular, "twice", "later"),
        ];
        let layer = two_layers(dir.path(), lower, upper).unwrap();
        let one = fs::metadata(layer.join("usr/lib/one")).unwrap();
        assert_eq!(one.mode() & 0o7777, 0o750);
        assert_eq!(one.ino(), fs::metadata(layer.join("two")).unwrap().ino());
        assert_eq!(fs::read_to_string(layer.join("two")).unwrap(), "text");
        assert_eq!(fs::read_to_string(layer.join("twice")).unwrap(), "later");
        assert!(layer.join("lib").symlink_metadata().is_err());
    }

    #[test]
    fn only_files_are_borrowed() {
        let dir = tempfile::tempdir().unwrap();
        let error = two_layers(dir.path(), &[(Fifo, "fifo", "")], &[(Link, "link", "fifo")]);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn depth_is_bounded() {
        let deep = "d/".repeat(300) + "file";
        let dir = tempfile::tempdir().unwrap();
        let error = unpack(&archive(&[(Regular, &deep, "")])[..], dir.path()).unwrap_err();
        assert!(matches!(error, LayerError::Malformed { reason: "too deep", .. }), "{error}");
    }
}
