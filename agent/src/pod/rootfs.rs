//! A container's root: an overlay of the image's layers with a writable layer of its own, and who
//! the image's users are. Layers are never written to.

use std::path::{Path, PathBuf};

use monitor::protocol::User;

use crate::image::user::{self, UserError};
use crate::volume::is_mount_point;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    #[error("cannot make {path}")]
    Make { path: PathBuf, source: std::io::Error },
    #[error("cannot mount the overlay at {path}")]
    Mount { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    User(#[from] UserError),
}

/// Mounts the root of one attempt under `dir`; `layers` has the topmost first.
pub(crate) fn mount(dir: &Path, layers: &[PathBuf]) -> Result<PathBuf, RootfsError> {
    let merged = dir.join("rootfs");
    let failed = |source| RootfsError::Mount { path: merged.clone(), source };
    if is_mount_point(&merged).map_err(failed)? {
        return Ok(merged);
    }
    let make = |path: PathBuf| match std::fs::create_dir_all(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(RootfsError::Make { path, source }),
    };
    make(merged.clone())?;
    let (upper, work) = (make(dir.join("upper"))?, make(dir.join("work"))?);
    crate::image::mount_overlay(layers, &upper, &work, &merged).map_err(failed)?;
    Ok(merged)
}

/// The image's `USER`, or a number from the pod, looked up in the image's own files; a group given
/// beside it doesn't take the groups away that the user is a member of.
pub(crate) fn account(root: &Path, wanted: &str) -> Result<User, RootfsError> {
    let mut found = user::resolve(root, wanted)?;
    if wanted.contains(':') {
        found.additional_gids.extend(user::supplementary_groups(root, found.uid)?);
        found.additional_gids.sort_unstable();
        found.additional_gids.dedup();
    }
    Ok(found)
}
