//! Mounting a container's root: read-only layers below, one directory to write to above.
//!
//! Owns the mount's options; any number of layers, where one page of options holds some dozen paths.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount, move_mount,
};

/// The kernel's limit of layers.
const LAYERS_MAX: usize = 500;
/// Options of the old mount call.
const OPTIONS_BYTES_MAX: usize = 4096;

/// Mounts an overlay. `lower` is top first; `upper` and `work` are on one file system.
pub(crate) fn mount_overlay(
    lower: &[PathBuf],
    upper: &Path,
    work: &Path,
    target: &Path,
) -> io::Result<()> {
    if lower.is_empty() || lower.len() > LAYERS_MAX {
        let text = format!("{} layers; an overlay has 1 to {LAYERS_MAX}", lower.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    match mount_by_fs_context(lower, upper, work, target) {
        // Kernels before 6.5 don't know `lowerdir+`, older ones not the calls.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            mount_by_descriptors(lower, upper, work, target)
        }
        other => Ok(other?),
    }
}

/// Unmounts what [`mount_overlay`] mounted, even in use; not mounted is unmounted.
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    match rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn mount_by_fs_context(
    lower: &[PathBuf],
    upper: &Path,
    work: &Path,
    target: &Path,
) -> Result<(), Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "overlay")?;
    for layer in lower {
        fsconfig_set_string(&context, "lowerdir+", layer)?;
    }
    fsconfig_set_string(&context, "upperdir", upper)?;
    fsconfig_set_string(&context, "workdir", work)?;
    fsconfig_create(&context)?;
    let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(&mounted, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Descriptors have short names, whatever the paths are.
fn mount_by_descriptors(
    lower: &[PathBuf],
    upper: &Path,
    work: &Path,
    target: &Path,
) -> io::Result<()> {
    let open = |path: &Path| -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(path, flags, Mode::empty())?)
    };
    let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let layers = lower.iter().map(|path| open(path)).collect::<io::Result<Vec<_>>>()?;
    let (upper, work) = (open(upper)?, open(work)?);
    let names: Vec<String> = layers.iter().map(name).collect();
    let options =
        format!("lowerdir={},upperdir={},workdir={}", names.join(":"), name(&upper), name(&work));
    if options.len() >= OPTIONS_BYTES_MAX {
        let text = format!("{} layers are too many for this kernel", lower.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
    Ok(mount("overlay", target, "overlay", MountFlags::empty(), options.as_c_str())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_hundred_layers_both_ways() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        let lower: Vec<PathBuf> = (0..200)
            .map(|number| {
                let path = make(&format!("a-layer-with-quite-a-long-name-{number}"));
                std::fs::write(path.join(format!("f{number}")), "x").unwrap();
                std::fs::write(path.join("top"), number.to_string()).unwrap();
                path
            })
            .collect();
        let target = make("target");
        type Mount = fn(&[PathBuf], &Path, &Path, &Path) -> io::Result<()>;
        for (number, mount) in [mount_overlay as Mount, mount_by_descriptors].iter().enumerate() {
            let (upper, work) = (make(&format!("upper{number}")), make(&format!("work{number}")));
            mount(&lower, &upper, &work, &target).unwrap();
            assert!(target.join("f199").exists() && target.join("f0").exists());
            assert_eq!(std::fs::read_to_string(target.join("top")).unwrap(), "0");
            std::fs::write(target.join("new"), "").unwrap();
            unmount(&target).unwrap();
            unmount(&target).unwrap();
            assert!(upper.join("new").exists() && !target.join("new").exists());
        }
    }
}
