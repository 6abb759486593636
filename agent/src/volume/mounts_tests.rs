//! The mount table read, and mounts taken down in a mount namespace of the test's own.

use std::os::unix::ffi::OsStrExt;

use nix::sched::{CloneFlags, unshare};

use super::*;

#[test]
fn mount_points_are_bytes_with_four_of_them_escaped() {
    let table = b"21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        22 21 0:5 / /a\\040b\\134040 rw - tmpfs tmpfs rw\n\
        23 21 0:5 / /caf\xe9 rw - tmpfs tmpfs rw\n";
    let found = points(table);
    let found: Vec<&[u8]> = found.iter().map(|path| path.as_os_str().as_bytes()).collect();
    assert_eq!(found, [b"/".as_slice(), b"/a b\\040", b"/caf\xe9"]);
}

#[test]
fn a_folder_that_does_not_exist_has_no_mounts() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    assert!(!is_mount_point(&missing).unwrap());
    assert!(is_mount_point(Path::new("/proc")).unwrap());
    remove(&missing).unwrap();
}

/// Runs `test` on a thread with mounts of its own, whose root is shared as systemd makes it.
pub(crate) fn with_own_mounts(test: impl FnOnce(&Path) + Send) {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: not root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let run = || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        for flags in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
            let flags = flags | MsFlags::MS_REC;
            nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
        }
        test(dir.path());
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
}

fn bind(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    nix::mount::mount(Some(from), to, None::<&str>, flags, None::<&str>).unwrap();
}

#[test]
fn the_nodes_own_mounts_outlive_a_pods_copies_of_them() {
    with_own_mounts(|dir| {
        let (disk, nested) = (dir.join("disk"), dir.join("disk/nested"));
        std::fs::create_dir(&disk).unwrap();
        ensure_tmpfs(&disk, "mode=0755").unwrap();
        std::fs::create_dir(&nested).unwrap();
        ensure_tmpfs(&nested, "mode=0755").unwrap();
        std::fs::write(nested.join("file"), b"kept").unwrap();
        let pod = dir.join("pod");
        bind(&disk, &pod.join("pin"));
        assert!(pod.join("pin/nested/file").exists());
        remove(&pod).unwrap();
        assert!(!pod.exists());
        assert!(is_mount_point(&nested).unwrap());
        assert_eq!(std::fs::read(nested.join("file")).unwrap(), b"kept");
    });
}

#[test]
fn mounts_are_found_behind_links_and_under_any_name() {
    with_own_mounts(|dir| {
        let data = dir.join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("file"), b"kept").unwrap();
        let pods = dir.join("pods");
        bind(&data, &pods.join(std::ffi::OsStr::from_bytes(b"caf\xe9 1")));
        let link = dir.join("link");
        std::os::unix::fs::symlink(&pods, &link).unwrap();
        assert!(is_mount_point(&link.join(std::ffi::OsStr::from_bytes(b"caf\xe9 1"))).unwrap());
        remove(&link.join(std::ffi::OsStr::from_bytes(b"caf\xe9 1"))).unwrap();
        assert_eq!(std::fs::read(data.join("file")).unwrap(), b"kept");
    });
}
