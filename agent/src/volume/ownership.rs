//! `fsGroup`: new files and folders of a volume belong to the pod's group, with what kubelet's
//! SetVolumeOwnership adds to their modes. What containers have had in their hands is left alone.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, fchown};
use std::path::Path;

const READ: u32 = 0o440;
const SETGID: u32 = 0o2000;

/// The folder at `path`; what is made in it inherits the group.
pub(crate) fn set_folder(path: &Path, mode: u32, group: Option<u32>) -> io::Result<()> {
    chown(path, None, group)?;
    let mode = if group.is_some() { mode | SETGID } else { mode };
    // The umask may have taken bits from the mode.
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

/// A file that containers only read.
pub(crate) fn set_file(
    file: &File,
    mode: u32,
    (user, group): (Option<u32>, Option<u32>),
) -> io::Result<()> {
    fchown(file, user, group)?;
    let mode = if group.is_some() { mode | READ } else { mode };
    file.set_permissions(Permissions::from_mode(mode))
}
