//! Files that change all at once: kubelet's AtomicWriter. Readers see the old set or the new one.
//!
//! ```text
//! ..2026_01_01_00_00_00.000000001/   a, dir/b     the files
//! ..data -> ..2026_01_01_00_00_00.000000001       swapped by rename
//! a -> ..data/a   dir -> ..data/dir               what the container opens
//! ```

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use crate::volume::ownership;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";
/// What every name of the writer's own begins with, and no file's does.
const OWN: &[u8] = b"..";
const FOLDER_MODE: u32 = 0o755;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) bytes: Vec<u8>,
    pub(crate) mode: u32,
    /// Its owner, when not root.
    pub(crate) user: Option<u32>,
}

pub(crate) type Files = BTreeMap<String, File>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum AtomicError {
    #[error("invalid path {0:?}: must be relative and must not contain '..'")]
    Path(String),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> AtomicError {
    let path = path.to_owned();
    move |source| AtomicError::Io { path, source }
}

/// Makes `dir` show exactly `files`, readable for `group`. Finishes what an earlier call left undone.
pub(crate) fn write(dir: &Path, files: &Files, group: Option<u32>) -> Result<(), AtomicError> {
    files.keys().try_for_each(|path| check(path))?;
    let current = current(dir);
    let stamp = match current.as_deref().filter(|stamp| shows(&dir.join(stamp), files)) {
        Some(stamp) => stamp.to_owned(),
        None => {
            sweep(dir, current.as_deref())?;
            swap(dir, files, group)?
        }
    };
    link_names(dir, files)?;
    sweep(dir, Some(&stamp))
}

/// The stamp folder that `..data` leads to; no other target counts, for a container may have set it.
fn current(dir: &Path) -> Option<OsString> {
    let target = std::fs::read_link(dir.join(DATA)).ok()?;
    let mut parts = target.components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) if is_stamp(name) => Some(name.to_owned()),
        _ => None,
    }
}

fn is_stamp(name: &OsStr) -> bool {
    name.as_bytes().starts_with(OWN) && name != DATA && name != DATA_NEW
}

/// Writes the files below a new stamp and makes `..data` lead there.
fn swap(dir: &Path, files: &Files, group: Option<u32>) -> Result<OsString, AtomicError> {
    let stamp = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string();
    let fresh = dir.join(&stamp);
    ownership::set_folder(dir, FOLDER_MODE, group).map_err(io(dir))?;
    make_folder(&fresh, group)?;
    for (path, file) in files {
        write_file(&fresh, Path::new(path), (file, group))?;
    }
    let (data, new) = (dir.join(DATA), dir.join(DATA_NEW));
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(&new)(error)),
        _ => {}
    }
    symlink(&stamp, &new).map_err(io(&new))?;
    std::fs::rename(&new, &data).map_err(io(&data))?;
    Ok(stamp.into())
}

/// Removes the stamp folders of earlier writes, also of those that failed.
fn sweep(dir: &Path, keep: Option<&OsStr>) -> Result<(), AtomicError> {
    for entry in std::fs::read_dir(dir).map_err(io(dir))?.flatten() {
        let name = entry.file_name();
        let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if folder && is_stamp(&name) && Some(name.as_os_str()) != keep {
            std::fs::remove_dir_all(entry.path()).map_err(io(&entry.path()))?;
        }
    }
    Ok(())
}

fn check(path: &str) -> Result<(), AtomicError> {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    let bad = path.is_empty() || !plain || path.starts_with("..");
    if bad { Err(AtomicError::Path(path.to_owned())) } else { Ok(()) }
}

fn write_file(
    root: &Path,
    relative: &Path,
    (file, group): (&File, Option<u32>),
) -> Result<(), AtomicError> {
    use std::io::Write;
    let mut path = root.to_owned();
    for part in relative.parent().into_iter().flat_map(Path::components) {
        path.push(part);
        make_folder(&path, group)?;
    }
    let path = root.join(relative);
    let mut out = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(file.mode)
        .open(&path)
        .map_err(io(&path))?;
    out.write_all(&file.bytes).map_err(io(&path))?;
    ownership::set_file(&out, file.mode, (file.user, group)).map_err(io(&path))
}

fn make_folder(path: &Path, group: Option<u32>) -> Result<(), AtomicError> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => {
            made.and_then(|()| ownership::set_folder(path, FOLDER_MODE, group)).map_err(io(path))
        }
    }
}

/// Links every first path component to `..data`, and removes links whose files are gone.
fn link_names(dir: &Path, files: &Files) -> Result<(), AtomicError> {
    let first = |path: &str| path.split('/').next().unwrap_or_default().to_owned();
    let mut wanted: Vec<String> = files.keys().map(|path| first(path)).collect();
    wanted.dedup();
    for name in &wanted {
        let link = dir.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new(DATA).join(name), &link).map_err(io(&link))?;
        }
    }
    for entry in std::fs::read_dir(dir).map_err(io(dir))?.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if link && !name.starts_with("..") && !wanted.contains(&name) {
            std::fs::remove_file(entry.path()).map_err(io(&entry.path()))?;
        }
    }
    Ok(())
}

fn shows(current: &Path, files: &Files) -> bool {
    let mut count = 0;
    let mut folders = vec![current.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { return false };
        for entry in entries.flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                count += 1;
            }
        }
    }
    count == files.len()
        && files.iter().all(|(path, file)| {
            std::fs::read(current.join(path)).is_ok_and(|bytes| bytes == file.bytes)
        })
}
