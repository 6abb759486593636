//! A layer's tar stream, unpacked into a directory that overlayfs takes as it is.
//!
//! Owns what each entry becomes: whiteouts become overlay's (a 0:0 device, an opaque directory), and
//! no entry reaches outside the directory, whatever its name or the links before it say. It must
//! not know images; what needs the layers below is left to `settle`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use ring::digest::{Context, SHA256};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use tar::{Entry, EntryType};

use super::entries::Tar;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
/// Files and directories of one layer; the largest images seen have some hundred thousand.
const ENTRIES_MAX: u64 = 4_000_000;
/// Directories within each other; no image seen has 50. Whoever walks a layer may recurse.
const DEPTH_MAX: usize = 256;
/// Paths kept while a layer is unpacked: a million directories of 128 bytes.
const PATHS_BYTES_MAX: usize = 128 << 20;
const COPY_BYTES: usize = 128 << 10;

/// Why a layer can't be unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    #[error("reading the layer")]
    Read(#[source] io::Error),
    #[error("{path:?}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path:?}: {reason}")]
    Malformed { path: PathBuf, reason: &'static str },
}

/// What was unpacked.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    /// Bytes of all files.
    pub(crate) size_bytes: u64,
    /// Directories that the layer uses and does not describe. No link is on the way to one.
    pub(crate) implied: BTreeSet<PathBuf>,
    /// Targets of hard links, by link, that must be in a layer below; no link is on the way to a link.
    pub(crate) borrowed: BTreeMap<PathBuf, PathBuf>,
    /// SHA-256 of files by inode.
    pub(crate) hashes: HashMap<u64, [u8; 32]>,
}

/// Unpacks a tar stream into an empty directory. Reads to the end of the archive, not of the stream.
pub(crate) fn unpack(source: impl Read, root: &Path) -> Result<Unpacked, LayerError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root_fd = rustix::fs::open(root, flags, Mode::empty()).map_err(|e| written(root, e))?;
    let mut unpacker = Unpacker {
        root_path: full_path(&root_fd).map_err(|error| written(root, error))?,
        root: root_fd,
        done: Unpacked::default(),
        directory_times: BTreeMap::new(),
        parent: None,
        paths_bytes: 0,
    };
    let mut tar = Tar::new(source);
    let mut count = 0;
    for entry in tar.entries().map_err(LayerError::Read)? {
        count += 1;
        let mut entry = entry.map_err(LayerError::Read)?;
        let path = clean(&entry.path_bytes())?;
        if count > ENTRIES_MAX {
            return Err(LayerError::Malformed { path, reason: "too many entries" });
        }
        unpacker.entry(&path, &mut entry)?;
    }
    unpacker.finish()
}

/// A relative path without `.`; `..` is refused.
fn clean(bytes: &[u8]) -> Result<PathBuf, LayerError> {
    let path = Path::new(OsStr::from_bytes(bytes));
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                let reason = "leads out of the layer";
                return Err(LayerError::Malformed { path: path.to_owned(), reason });
            }
        }
    }
    Ok(clean)
}

struct Unpacker {
    root: OwnedFd,
    root_path: PathBuf,
    done: Unpacked,
    /// Set at the end: making a file in a directory changes its time.
    directory_times: BTreeMap<PathBuf, i64>,
    /// The directory of the entry before, which mostly is that of the next.
    parent: Option<Parent>,
    /// Of all paths kept so far.
    paths_bytes: usize,
}

/// A directory that entries are put into.
struct Parent {
    /// As the entries call it.
    name: PathBuf,
    /// Where it is in the layer, all links followed.
    place: PathBuf,
    fd: OwnedFd,
}

/// Owner, mode and time of an entry.
struct Attributes {
    uid: u32,
    gid: u32,
    mode: Mode,
    mtime: i64,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Unpacker {
    fn entry<R: Read>(&mut self, path: &Path, entry: &mut Entry<'_, R>) -> Result<(), LayerError> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let attributes = attributes(path, entry)?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            let root = &self.root;
            let here = (root, OsStr::new("."));
            apply(here, &attributes, kind).map_err(|error| written(path, error))?;
            self.directory_times.insert(path.to_owned(), attributes.mtime);
            return Ok(());
        };
        self.enter(path)?;
        if name.as_bytes().starts_with(WHITEOUT) {
            return self.whiteout(path, &name);
        }
        match kind {
            EntryType::Directory => self.directory(path, &name, &attributes),
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default();
                self.hard_link(path, &name, &clean(&target)?)
            }
            _ => self.leaf((path, &name), entry, &attributes),
        }
    }

    /// Opens the directory of a path, making what is missing of it.
    fn enter(&mut self, path: &Path) -> Result<(), LayerError> {
        let name = path.parent().unwrap_or(Path::new(""));
        if self.parent.as_ref().is_some_and(|known| known.name == name) {
            return Ok(());
        }
        let fd = match self.open(name) {
            Err(Errno::NOENT | Errno::NOTDIR) => {
                self.make_parents(name)?;
                self.open(name)
            }
            other => other,
        };
        let fd = fd.map_err(|error| written(name, error))?;
        self.parent = Some(Parent { name: name.to_owned(), place: self.place(&fd)?, fd });
        Ok(())
    }

    fn here(&self) -> Result<&Parent, LayerError> {
        let reason = "no directory is open";
        let missing = || LayerError::Malformed { path: PathBuf::new(), reason };
        self.parent.as_ref().ok_or_else(missing)
    }

    /// Where a directory is in the layer.
    fn place(&self, directory: &OwnedFd) -> Result<PathBuf, LayerError> {
        let full = full_path(directory).map_err(|error| written(&self.root_path, error))?;
        match full.strip_prefix(&self.root_path) {
            Ok(place) if place.components().count() < DEPTH_MAX => Ok(place.to_owned()),
            Ok(_) => Err(LayerError::Malformed { path: full, reason: "too deep" }),
            Err(_) => Err(LayerError::Malformed { path: full, reason: "out of the layer" }),
        }
    }

    /// Takes a path that is to be kept into account.
    fn keep(&mut self, path: &Path) -> Result<PathBuf, LayerError> {
        self.paths_bytes += path.as_os_str().len();
        if self.paths_bytes > PATHS_BYTES_MAX {
            let reason = "too many paths";
            return Err(LayerError::Malformed { path: path.to_owned(), reason });
        }
        Ok(path.to_owned())
    }

    /// Drops what is known of a place, and of all below it, that something else takes.
    fn forget(&mut self, place: &Path) {
        let is_below = |path: &&PathBuf| path.starts_with(place);
        let from = place.to_owned()..;
        let implied = self.done.implied.range(from.clone()).take_while(is_below);
        let borrowed = self.done.borrowed.range(from.clone()).map(|(path, _)| path);
        let timed = self.directory_times.range(from).map(|(path, _)| path);
        let known = implied.chain(borrowed.take_while(is_below)).chain(timed.take_while(is_below));
        for path in known.cloned().collect::<Vec<_>>() {
            self.done.implied.remove(&path);
            self.done.borrowed.remove(&path);
            self.directory_times.remove(&path);
        }
    }

    /// Opens a directory with the layer's directory as root for every link on the way.
    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve)
    }

    fn make_parents(&mut self, path: &Path) -> Result<(), LayerError> {
        let mut prefix = PathBuf::new();
        let mut above = self.open(&prefix).map_err(|error| written(path, error))?;
        for part in path.components() {
            prefix.push(part);
            above = match self.open(&prefix) {
                Ok(found) => found,
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    let place = self.place(&above)?.join(part);
                    let was_removed = remove_whiteout(&above, part.as_os_str())
                        .map_err(|error| written(&prefix, error))?;
                    rustix::fs::mkdirat(&above, part.as_os_str(), Mode::from_raw_mode(0o755))
                        .map_err(|error| written(&prefix, error))?;
                    if was_removed {
                        mark_opaque(&above, part.as_os_str())
                            .map_err(|error| written(&prefix, error))?;
                    } else {
                        let place = self.keep(&place)?;
                        self.done.implied.insert(place);
                    }
                    self.open(&prefix).map_err(|error| written(&prefix, error))?
                }
                Err(error) => return Err(written(&prefix, error)),
            };
        }
        Ok(())
    }

    fn whiteout(&mut self, path: &Path, name: &OsStr) -> Result<(), LayerError> {
        let here = &self.here()?.fd;
        let failed = |error| written(path, error);
        if name.as_bytes() == OPAQUE {
            return mark_opaque(here, OsStr::new(".")).map_err(failed);
        }
        let hidden = OsStr::from_bytes(&name.as_bytes()[WHITEOUT.len()..]);
        if hidden.is_empty() || hidden == "." || hidden == ".." {
            let reason = "whiteout of nothing";
            return Err(LayerError::Malformed { path: path.to_owned(), reason });
        }
        if hidden.as_bytes().starts_with(WHITEOUT) {
            // Aufs' own housekeeping.
            return Ok(());
        }
        // It hides what is below this layer, not what this layer has.
        match rustix::fs::statat(here, hidden, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                mark_opaque(here, hidden).map_err(failed)
            }
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => {
                let mode = Mode::empty();
                rustix::fs::mknodat(here, hidden, FileType::CharacterDevice, mode, 0)
                    .map_err(failed)
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn directory(
        &mut self,
        path: &Path,
        name: &OsStr,
        attributes: &Attributes,
    ) -> Result<(), LayerError> {
        let Parent { place, fd: here, .. } = self.here()?;
        let place = place.join(name);
        let make = || -> Result<(), Errno> {
            let was_hidden = remove_whiteout(here, name)?;
            let found = rustix::fs::statat(here, name, AtFlags::SYMLINK_NOFOLLOW);
            match found.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
                Ok(FileType::Directory) => {}
                Ok(_) => {
                    rustix::fs::unlinkat(here, name, AtFlags::empty())?;
                    rustix::fs::mkdirat(here, name, Mode::from_raw_mode(0o700))?;
                }
                Err(_) => rustix::fs::mkdirat(here, name, Mode::from_raw_mode(0o700))?,
            }
            if was_hidden {
                mark_opaque(here, name)?;
            }
            apply((here, name), attributes, EntryType::Directory)
        };
        make().map_err(|error| written(path, error))?;
        self.done.implied.remove(&place);
        self.done.borrowed.remove(&place);
        let place = self.keep(&place)?;
        self.directory_times.insert(place, attributes.mtime);
        Ok(())
    }

    fn hard_link(&mut self, path: &Path, name: &OsStr, target: &Path) -> Result<(), LayerError> {
        let place = self.make_room(path, name)?;
        let here = &self.here()?.fd;
        let target_name = target.file_name().ok_or_else(|| LayerError::Malformed {
            path: path.to_owned(),
            reason: "hard link to nothing",
        })?;
        let linked = self
            .open(target.parent().unwrap_or(Path::new("")))
            .and_then(|from| rustix::fs::linkat(&from, target_name, here, name, AtFlags::empty()));
        match linked {
            Ok(()) => Ok(()),
            Err(Errno::NOENT | Errno::NOTDIR) => {
                let (place, target) = (self.keep(&place)?, self.keep(target)?);
                self.done.borrowed.insert(place, target);
                Ok(())
            }
            Err(error) => Err(written(path, error)),
        }
    }

    /// An entry may come twice: the later one counts. Answers its place.
    fn make_room(&mut self, path: &Path, name: &OsStr) -> Result<PathBuf, LayerError> {
        let here = self.here()?;
        remove(&here.fd, name).map_err(|error| written(path, error))?;
        let place = here.place.join(name);
        self.forget(&place);
        Ok(place)
    }

    /// A file, symlink, device or FIFO.
    fn leaf<R: Read>(
        &mut self,
        (path, name): (&Path, &OsStr),
        entry: &mut Entry<'_, R>,
        attributes: &Attributes,
    ) -> Result<(), LayerError> {
        self.make_room(path, name)?;
        let here = &self.here()?.fd;
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse) {
            let (inode, hash, size) = write_file((here, name), path, entry)?;
            apply((here, name), attributes, kind).map_err(|error| written(path, error))?;
            self.done.hashes.insert(inode, hash);
            self.done.size_bytes += size;
            return Ok(());
        }
        let made = match kind {
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                rustix::fs::symlinkat(OsStr::from_bytes(&target), here, name)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let (file_type, device) = device(path, entry)?;
                rustix::fs::mknodat(here, name, file_type, Mode::from_raw_mode(0o600), device)
            }
            other => {
                tracing::warn!(?path, kind = ?other, "an entry of unknown type is left out");
                return Ok(());
            }
        };
        made.and_then(|()| apply((here, name), attributes, kind))
            .map_err(|error| written(path, error))
    }

    fn finish(self) -> Result<Unpacked, LayerError> {
        for (path, mtime) in &self.directory_times {
            let set = self.open(path).and_then(|fd| set_time((&fd, OsStr::new(".")), *mtime));
            set.map_err(|error| written(path, error))?;
        }
        Ok(self.done)
    }
}

fn attributes<R: Read>(path: &Path, entry: &mut Entry<'_, R>) -> Result<Attributes, LayerError> {
    let malformed = |reason| LayerError::Malformed { path: path.to_owned(), reason };
    let mut xattrs = Vec::new();
    if let Some(extensions) = entry.pax_extensions().map_err(LayerError::Read)? {
        for extension in extensions {
            let extension = extension.map_err(LayerError::Read)?;
            if let Some(name) = extension.key_bytes().strip_prefix(XATTR_PREFIX)
                && is_allowed(name)
            {
                let name = OsStr::from_bytes(name).to_owned();
                xattrs.push((name, extension.value_bytes().to_owned()));
            }
        }
    }
    let header = entry.header();
    let id = |id: io::Result<u64>| {
        let id = id.map_err(LayerError::Read)?;
        u32::try_from(id).map_err(|_| malformed("owner out of range"))
    };
    Ok(Attributes {
        uid: id(header.uid())?,
        gid: id(header.gid())?,
        mode: Mode::from_raw_mode(header.mode().map_err(LayerError::Read)? & 0o7777),
        mtime: i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0),
        xattrs,
    })
}

/// Overlayfs' own attributes would let a layer point anywhere.
fn is_allowed(name: &[u8]) -> bool {
    let text = String::from_utf8_lossy(name);
    !text.starts_with("trusted.") && !text.starts_with("user.overlay.") && !text.contains('\0')
}

fn device<R: Read>(path: &Path, entry: &Entry<'_, R>) -> Result<(FileType, u64), LayerError> {
    let header = entry.header();
    let number =
        |number: io::Result<Option<u32>>| Ok(number.map_err(LayerError::Read)?.unwrap_or(0));
    let (major, minor): (u32, u32) =
        (number(header.device_major())?, number(header.device_minor())?);
    match header.entry_type() {
        EntryType::Fifo => Ok((FileType::Fifo, 0)),
        EntryType::Char if (major, minor) == (0, 0) => {
            let reason = "a whiteout in disguise";
            Err(LayerError::Malformed { path: path.to_owned(), reason })
        }
        EntryType::Char => Ok((FileType::CharacterDevice, rustix::fs::makedev(major, minor))),
        _ => Ok((FileType::BlockDevice, rustix::fs::makedev(major, minor))),
    }
}

fn write_file<R: Read>(
    (here, name): (&OwnedFd, &OsStr),
    path: &Path,
    entry: &mut Entry<'_, R>,
) -> Result<(u64, [u8; 32], u64), LayerError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(here, name, flags, Mode::from_raw_mode(0o600))
        .map_err(|error| written(path, error))?;
    let mut file = std::fs::File::from(fd);
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; COPY_BYTES];
    let mut size = 0;
    loop {
        let count = match entry.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(LayerError::Read(error)),
        };
        context.update(&buffer[..count]);
        size += count as u64;
        file.write_all(&buffer[..count])
            .map_err(|source| LayerError::Write { path: path.to_owned(), source })?;
    }
    if size != entry.size() {
        return Err(LayerError::Read(io::ErrorKind::UnexpectedEof.into()));
    }
    let stat = rustix::fs::fstat(&file).map_err(|error| written(path, error))?;
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    Ok((stat.st_ino, hash, size))
}

/// Owner, mode, extended attributes and time, in the order in which none undoes another.
fn apply(
    (here, name): (&OwnedFd, &OsStr),
    attributes: &Attributes,
    kind: EntryType,
) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    rustix::fs::chownat(here, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != EntryType::Symlink {
        rustix::fs::chmodat(here, name, attributes.mode, AtFlags::empty())?;
    }
    for (xattr, value) in &attributes.xattrs {
        let path = by_fd(here, name);
        match rustix::fs::lsetxattr(&path, xattr.as_os_str(), value, XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP | Errno::PERM) => {
                tracing::warn!(?name, ?xattr, "an extended attribute can't be kept");
            }
            other => other?,
        }
    }
    set_time((here, name), attributes.mtime)
}

fn set_time((here, name): (&OwnedFd, &OsStr), mtime: i64) -> Result<(), Errno> {
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(here, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn by_fd(here: &OwnedFd, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(here.as_raw_fd().to_string()).join(name)
}

pub(crate) fn mark_opaque(here: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    rustix::fs::lsetxattr(by_fd(here, name), OPAQUE_XATTR, b"y", XattrFlags::empty())
}

/// Whether a whiteout was there.
fn remove_whiteout(here: &OwnedFd, name: &OsStr) -> Result<bool, Errno> {
    match rustix::fs::statat(here, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if is_whiteout(stat.st_mode, stat.st_rdev) => {
            rustix::fs::unlinkat(here, name, AtFlags::empty())?;
            Ok(true)
        }
        Ok(_) | Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(crate) fn is_whiteout(mode: u32, device: u64) -> bool {
    FileType::from_raw_mode(mode) == FileType::CharacterDevice && device == 0
}

/// Where an open directory is, as the kernel says.
fn full_path(directory: &OwnedFd) -> Result<PathBuf, Errno> {
    let link = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
    let path = rustix::fs::readlink(link, Vec::new())?;
    Ok(PathBuf::from(OsString::from_vec(path.into_bytes())))
}

fn remove(here: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(here, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => {
            let path = by_fd(here, name);
            std::fs::remove_dir_all(path)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        }
        Err(error) => Err(error),
    }
}

fn written(path: &Path, error: Errno) -> LayerError {
    LayerError::Write { path: path.to_owned(), source: error.into() }
}

/// Flushes everything written below a directory's file system.
pub(crate) fn sync_file_system(directory: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, directory, flags, Mode::empty())?;
    Ok(rustix::fs::syncfs(fd)?)
}
