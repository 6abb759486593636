//! A container's root: an overlay of the image's layers with a writable layer of its own, and who
//! the image's users are. Layers are never written to.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::volume::is_mount_point;

/// Largest passwd or group file read.
const ACCOUNTS_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    #[error("cannot make {path}")]
    Make { path: PathBuf, source: std::io::Error },
    #[error("cannot open the layer {path}")]
    Layer { path: PathBuf, source: std::io::Error },
    #[error("the image has no layers")]
    Empty,
    #[error("cannot mount the overlay at {path}")]
    Mount { path: PathBuf, source: std::io::Error },
    #[error("unable to find user {0}: no matching entries in passwd file")]
    User(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    Group(String),
}

/// Mounts the root of one attempt under `dir`; `layers` has the topmost first.
pub(crate) fn mount(dir: &Path, layers: &[PathBuf]) -> Result<PathBuf, RootfsError> {
    let merged = dir.join("rootfs");
    if is_mount_point(&merged) {
        return Ok(merged);
    }
    if layers.is_empty() {
        return Err(RootfsError::Empty);
    }
    let make = |path: PathBuf| match std::fs::create_dir_all(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(RootfsError::Make { path, source }),
    };
    make(merged.clone())?;
    let (upper, work) = (make(dir.join("upper"))?, make(dir.join("work"))?);
    // One page holds all mount options, so layers go by short names: their descriptors.
    let opened: Vec<OwnedFd> = layers
        .iter()
        .map(|path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, path, flags, Mode::empty())
                .map_err(|e| RootfsError::Layer { path: path.clone(), source: e.into() })
        })
        .collect::<Result<_, _>>()?;
    let lower: Vec<String> =
        opened.iter().map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd())).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        upper.display(),
        work.display()
    );
    nix::mount::mount(
        Some("overlay"),
        &merged,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .map_err(|errno| RootfsError::Mount { path: merged.clone(), source: errno.into() })?;
    Ok(merged)
}

/// Unmounts and removes one attempt's root.
pub(crate) fn remove(dir: &Path) -> Result<(), crate::volume::VolumeError> {
    crate::volume::remove(dir)
}

/// A user as numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Groups that list the user as a member.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Option<String>,
}

/// The image's `USER`, or a number from the pod, looked up in the image's own files.
pub(crate) fn account(root: &Path, user: &str) -> Result<Account, RootfsError> {
    let passwd = read_inside(root, "etc/passwd");
    let group = read_inside(root, "etc/group");
    lookup(&passwd, &group, user)
}

/// Reads a file as if `root` were `/`: an image's links can't lead out of it.
fn read_inside(root: &Path, path: &str) -> String {
    use std::io::Read;
    let open = || -> std::io::Result<String> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let base = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat2(&base, path, flags, Mode::empty(), resolve)?;
        let mut text = String::new();
        std::fs::File::from(file).take(ACCOUNTS_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text)
    };
    // An image without these files has numbers only.
    open().unwrap_or_default()
}

fn lookup(passwd: &str, group: &str, user: &str) -> Result<Account, RootfsError> {
    let (name, group_name) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    // name:password:uid:gid:gecos:home:shell
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.len() >= 6
            && (fields[0] == name || (name.parse::<u32>().is_ok() && fields[2] == name))
    });
    let mut account = match (&entry, name.parse::<u32>()) {
        (Some(fields), _) => Account {
            uid: fields[2].parse().map_err(|_| RootfsError::User(name.to_owned()))?,
            gid: fields[3].parse().map_err(|_| RootfsError::User(name.to_owned()))?,
            groups: Vec::new(),
            home: Some(fields[5].to_owned()),
        },
        (None, Ok(uid)) => Account { uid, ..Account::default() },
        (None, Err(_)) => return Err(RootfsError::User(name.to_owned())),
    };
    // name:password:gid:members
    let groups: Vec<Vec<&str>> = group.lines().map(|line| line.split(':').collect()).collect();
    if let Some(fields) = &entry {
        let member_of = groups.iter().filter(|group| {
            group.len() >= 4 && group[3].split(',').any(|member| member == fields[0])
        });
        account.groups = member_of.filter_map(|group| group[2].parse().ok()).collect();
    }
    if let Some(wanted) = group_name {
        let found = groups.iter().find(|group| group.len() >= 3 && group[0] == wanted);
        account.gid = found
            .and_then(|group| group[2].parse().ok())
            .or_else(|| wanted.parse().ok())
            .ok_or_else(|| RootfsError::Group(wanted.to_owned()))?;
    }
    Ok(account)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_an_image() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:,:/home/app:/bin/sh\n";
        let group = "root:x:0:\nvideo:x:44:app,other\nstaff:x:50:\n";
        let run = |user: &str| lookup(passwd, group, user);
        let app = run("app").unwrap();
        assert_eq!((app.uid, app.gid, app.groups.as_slice()), (1000, 1001, &[44][..]));
        assert_eq!(app.home.as_deref(), Some("/home/app"));
        assert_eq!(run("1000").unwrap(), app);
        assert_eq!(run("").unwrap().home.as_deref(), Some("/root"));
        assert_eq!(run("4242").unwrap(), Account { uid: 4242, ..Account::default() });
        assert_eq!(run("app:staff").unwrap().gid, 50);
        assert_eq!(run("7:8").unwrap().gid, 8);
        assert!(matches!(run("nobody"), Err(RootfsError::User(_))));
        assert!(matches!(run("app:none"), Err(RootfsError::Group(_))));
    }
}
