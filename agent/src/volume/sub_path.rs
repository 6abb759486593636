//! `subPath`: one path inside a volume, resolved so that no link in the volume leads out of it,
//! and pinned by a bind mount so that it stays what was checked.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::mount::MsFlags;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::volume::is_mount_point;

/// Opens `relative` inside `root` as if `root` were `/`; makes missing folders.
fn open_inside(root: &Path, relative: &Path) -> Result<OwnedFd, String> {
    let failed = |path: &Path, errno: rustix::io::Errno| {
        format!("failed to create subPath directory for volumeMount: {}: {errno}", path.display())
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let base = rustix::fs::openat(CWD, root, flags, Mode::empty()).map_err(|e| failed(root, e))?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let open = |path: &Path| rustix::fs::openat2(&base, path, flags, Mode::empty(), resolve);
    let mut done = PathBuf::from(".");
    for part in relative.components().filter(|part| *part != Component::CurDir) {
        let Component::Normal(part) = part else {
            return Err(format!("subPath {:?} must not contain '..'", relative.display()));
        };
        let parent = done.clone();
        done.push(part);
        match open(&done) {
            Ok(_) => {}
            Err(rustix::io::Errno::NOENT) => {
                let parent = open(&parent).map_err(|errno| failed(&done, errno))?;
                rustix::fs::mkdirat(&parent, part, Mode::from_raw_mode(0o755))
                    .map_err(|errno| failed(&done, errno))?;
            }
            Err(errno) => return Err(failed(&done, errno)),
        }
    }
    open(&done).map_err(|errno| failed(&done, errno))
}

/// Pins `relative` of the volume at `root` to `pin` and gives the pin's path.
pub(crate) fn ensure(root: &Path, relative: &str, pin: &Path) -> Result<PathBuf, String> {
    let failed = |error: std::io::Error| format!("subPath {relative:?}: {error}");
    if is_mount_point(pin).map_err(failed)? {
        return Ok(pin.to_owned());
    }
    let opened = open_inside(root, Path::new(relative))?;
    let stat = rustix::fs::fstat(opened.as_fd()).map_err(|errno| failed(errno.into()))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
        std::fs::create_dir_all(pin).map_err(failed)?;
    } else {
        if let Some(parent) = pin.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        std::fs::write(pin, b"").map_err(failed)?;
    }
    let source = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    // Not what is mounted below it, as kubelet.
    nix::mount::mount(Some(&source), pin, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|errno| failed(errno.into()))?;
    Ok(pin.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::mounts::ensure_tmpfs;
    use crate::volume::mounts::tests::with_own_mounts;

    #[test]
    fn links_never_lead_out_of_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("volume");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(dir.path().join("outside"), b"no").unwrap();
        std::os::unix::fs::symlink("/../outside", root.join("link")).unwrap();
        std::os::unix::fs::symlink("/", root.join("up")).unwrap();
        open_inside(&root, Path::new("a/b")).unwrap();
        assert!(root.join("a/b").is_dir());
        for here in [".", "./"] {
            open_inside(&root, Path::new(here)).unwrap();
        }
        open_inside(&root, Path::new("./c/./d")).unwrap();
        assert!(root.join("c/d").is_dir());
        let opened = open_inside(&root, Path::new("up")).unwrap();
        let seen = std::fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).unwrap();
        assert_eq!(seen, root);
        // The link's target does not exist inside, and making it must not touch the outside.
        assert!(open_inside(&root, Path::new("link")).is_err());
        assert!(open_inside(&root, Path::new("../outside")).is_err());
    }

    #[test]
    fn a_pin_leaves_out_what_is_mounted_below_and_stays_what_it_was() {
        with_own_mounts(|dir| {
            let (root, pin) = (dir.join("volume"), dir.join("pins/0"));
            std::fs::create_dir_all(root.join("data/nested")).unwrap();
            ensure_tmpfs(&root.join("data/nested"), "mode=0755").unwrap();
            std::fs::write(root.join("data/nested/file"), b"").unwrap();
            std::fs::write(root.join("data/own"), b"").unwrap();
            assert_eq!(ensure(&root, "./data", &pin).unwrap(), pin);
            assert!(pin.join("own").exists());
            assert!(!pin.join("nested/file").exists());
            assert_eq!(ensure(&root, "other", &pin).unwrap(), pin);
            assert!(pin.join("own").exists());
        });
    }
}
