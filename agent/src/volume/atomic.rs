//! Files that change all at once: kubelet's AtomicWriter. Readers see the old set or the new one.
//!
//! ```text
//! ..2026_01_01_00_00_00.000000001/   a, dir/b     the files
//! ..data -> ..2026_01_01_00_00_00.000000001       swapped by rename
//! a -> ..data/a   dir -> ..data/dir               what the container opens
//! ```

use std::collections::BTreeMap;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

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

/// Makes `dir` show exactly `files`. Says whether anything had to change.
pub(crate) fn write(dir: &Path, files: &Files) -> Result<bool, AtomicError> {
    files.keys().try_for_each(|path| check(path))?;
    let current = std::fs::read_link(dir.join(DATA)).ok().map(|target| dir.join(target));
    if current.as_deref().is_some_and(|current| shows(current, files)) {
        return Ok(false);
    }
    let stamp = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string();
    let fresh = dir.join(&stamp);
    std::fs::create_dir(&fresh).map_err(io(&fresh))?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755)).map_err(io(&fresh))?;
    for (path, file) in files {
        write_file(&fresh.join(path), file)?;
    }
    let new = dir.join(DATA_NEW);
    symlink(&stamp, &new).map_err(io(&new))?;
    std::fs::rename(&new, dir.join(DATA)).map_err(io(&new))?;
    link_names(dir, files)?;
    if let Some(old) = current {
        std::fs::remove_dir_all(&old).map_err(io(&old))?;
    }
    Ok(true)
}

fn check(path: &str) -> Result<(), AtomicError> {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    let bad = path.is_empty() || !plain || path.starts_with("..");
    if bad { Err(AtomicError::Path(path.to_owned())) } else { Ok(()) }
}

fn write_file(path: &Path, file: &File) -> Result<(), AtomicError> {
    use std::io::Write;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io(parent))?;
    }
    let mut out = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(file.mode)
        .open(path)
        .map_err(io(path))?;
    out.write_all(&file.bytes).map_err(io(path))?;
    // The umask may have taken bits from the mode.
    out.set_permissions(std::fs::Permissions::from_mode(file.mode)).map_err(io(path))?;
    if file.user.is_some() {
        chown(path, file.user, None).map_err(io(path))?;
    }
    Ok(())
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
        if !name.starts_with("..") && !wanted.contains(&name) {
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
