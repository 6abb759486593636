//! `fsGroup`: the files of a volume belong to the pod's group, as kubelet's SetVolumeOwnership.

use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;

const READ_WRITE: u32 = 0o660;
const READ_ONLY: u32 = 0o440;
const FOLDER_EXECUTE: u32 = 0o110;
const SETGID: u32 = 0o2000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    ReadWrite,
    ReadOnly,
}

/// Gives everything at and below `path` to `group` with the rights it needs. Links are not followed.
pub(crate) fn apply_fs_group(
    path: &Path,
    group: Option<u32>,
    access: Access,
) -> Result<(), String> {
    let Some(group) = group else { return Ok(()) };
    let mut waiting = vec![path.to_owned()];
    while let Some(path) = waiting.pop() {
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        let meta = std::fs::symlink_metadata(&path).map_err(failed)?;
        lchown(&path, None, Some(group)).map_err(failed)?;
        if meta.file_type().is_symlink() {
            continue;
        }
        let rights = if access == Access::ReadOnly { READ_ONLY } else { READ_WRITE };
        let mut mode = (meta.permissions().mode() & 0o7777) | rights;
        if meta.is_dir() {
            mode |= SETGID | FOLDER_EXECUTE;
            let entries = std::fs::read_dir(&path).map_err(failed)?;
            waiting.extend(entries.flatten().map(|entry| entry.path()));
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    }
    Ok(())
}
