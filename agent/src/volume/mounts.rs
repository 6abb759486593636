//! What is mounted where, and folders taken away together with the mounts below them. What the mount
//! table says decides what is deleted: when it can't be read, nothing is.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};

use crate::volume::VolumeError;

/// The table as the calling thread sees it.
const TABLE: &str = "/proc/thread-self/mountinfo";

/// Mounts a tmpfs with `options` at `path` unless something is mounted there.
pub(crate) fn ensure_tmpfs(path: &Path, options: &str) -> Result<(), String> {
    let failed = |error: io::Error| format!("mounting a tmpfs at {}: {error}", path.display());
    if is_mount_point(path).map_err(failed)? {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options))
        .map_err(|errno| failed(errno.into()))
}

pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    let Some(path) = real(path)? else { return Ok(false) };
    Ok(points(&std::fs::read(TABLE)?).contains(&path))
}

/// Unmounts and removes all of a folder. Refuses to remove what is still mounted.
pub(crate) fn remove(dir: &Path) -> Result<(), VolumeError> {
    unmount_below(dir)?;
    match std::fs::remove_dir_all(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(VolumeError::Remove { path: dir.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Unmounts everything below `dir`; what is still in use goes away with its last user.
fn unmount_below(dir: &Path) -> Result<(), VolumeError> {
    let below = || below(dir).map_err(|source| VolumeError::Mounts { source });
    // A mount taken from below a shared one is taken from below its peers too: the node's own.
    for path in below()? {
        let flags = MsFlags::MS_PRIVATE;
        accept(&path, nix::mount::mount(None::<&str>, &path, None::<&str>, flags, None::<&str>))?;
    }
    for path in below()? {
        let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        accept(&path, nix::mount::umount2(&path, flags))?;
    }
    below()?.into_iter().next().map_or(Ok(()), |path| accept(&path, Err(Errno::EBUSY)))
}

/// What is no longer mounted needs nothing done.
fn accept(path: &Path, result: nix::Result<()>) -> Result<(), VolumeError> {
    match result {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(VolumeError::Unmount { path: path.to_owned(), source: errno.into() }),
    }
}

/// Mount points at or below `dir`, the deepest first.
fn below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(dir) = real(dir)? else { return Ok(Vec::new()) };
    let mut found = points(&std::fs::read(TABLE)?);
    found.retain(|path| path.starts_with(&dir));
    found.reverse();
    Ok(found)
}

/// The path as the table has it, without links; none where nothing is.
fn real(path: &Path) -> io::Result<Option<PathBuf>> {
    match std::fs::canonicalize(path) {
        Ok(path) => Ok(Some(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The mount points of a mountinfo table, in its order; the fifth field, which need not be UTF-8.
fn points(table: &[u8]) -> Vec<PathBuf> {
    let lines = table.split(|byte| *byte == b'\n');
    let fields = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    fields.map(|field| PathBuf::from(OsString::from_vec(unescape(field)))).collect()
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = match after {
            [a, b, c, ..] if byte == b'\\' => octal([*a, *b, *c]),
            _ => None,
        };
        plain.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    plain
}

fn octal(digits: [u8; 3]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 8).ok()
}

#[cfg(test)]
#[path = "mounts_tests.rs"]
pub(crate) mod tests;
