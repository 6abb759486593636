//! An image's `USER`, looked up in the image's own `/etc/passwd` and `/etc/group`.
//!
//! `user`, `uid`, `user:group`, `uid:gid`. Reads below the given root only, whatever its links say.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use monitor::protocol::User;
use rustix::fs::{Mode, OFlags, ResolveFlags};

const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a user can't be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    User(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    Group(String),
    #[error("{path} of the image")]
    Read { path: &'static str, source: io::Error },
}

/// User, group and supplementary groups of a container whose image says `user`.
pub(crate) fn resolve(root: &Path, user: &str) -> Result<User, UserError> {
    let read = |path| read_below(root, path).map_err(|source| UserError::Read { path, source });
    let (passwd, group) = (read("etc/passwd")?, read("etc/group")?);
    plan_user(user, &passwd, &group)
}

/// The groups beyond the first that a numeric user has in the image.
pub(crate) fn supplementary_groups(root: &Path, uid: u32) -> Result<Vec<u32>, UserError> {
    Ok(resolve(root, &uid.to_string())?.additional_gids)
}

fn plan_user(user: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (wanted_user, wanted_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let wanted_user = if wanted_user.is_empty() { "0" } else { wanted_user };
    let number: Option<u32> = wanted_user.parse().ok();
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        let by_name = fields.first() == Some(&wanted_user);
        let by_number = number.is_some() && field::<u32>(fields, 2) == number;
        by_name || by_number
    });
    let (name, uid, mut gid) = match &entry {
        Some(fields) => (
            fields.first().copied().unwrap_or_default(),
            field(fields, 2).ok_or_else(|| UserError::User(wanted_user.to_owned()))?,
            field(fields, 3).unwrap_or(0),
        ),
        None => ("", number.ok_or_else(|| UserError::User(wanted_user.to_owned()))?, 0),
    };
    let groups: Vec<Vec<&str>> = group.lines().map(|line| line.split(':').collect()).collect();
    let mut additional_gids = Vec::new();
    match wanted_group {
        Some(wanted) => {
            let known = groups.iter().find(|fields| fields.first() == Some(&wanted));
            gid = known
                .and_then(|fields| field(fields, 2))
                .or_else(|| wanted.parse().ok())
                .ok_or_else(|| UserError::Group(wanted.to_owned()))?;
        }
        None => {
            let has = |fields: &&Vec<&str>| {
                let members = fields.get(3).copied().unwrap_or_default();
                !name.is_empty() && members.split(',').any(|member| member == name)
            };
            additional_gids =
                groups.iter().filter(has).filter_map(|fields| field(fields, 2)).collect();
        }
    }
    Ok(User { uid, gid, additional_gids })
}

fn field<T: std::str::FromStr>(fields: &[&str], at: usize) -> Option<T> {
    fields.get(at)?.trim().parse().ok()
}

fn read_below(root: &Path, path: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file =
        match rustix::fs::openat2(&root, path, flags | OFlags::NONBLOCK, Mode::empty(), resolve) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
            Err(error) => return Err(error.into()),
        };
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_groups() {
        let passwd = "root:x:0:0::/:\nweb:x:33:34::/:\n";
        let group = "root:x:0:\nweb:x:34:\nlog:x:4:web,other\n";
        let plan = |user: &str| {
            plan_user(user, passwd, group)
                .map(|user| (user.uid, user.gid, user.additional_gids))
                .map_err(|error| error.to_string())
        };
        assert_eq!(plan(""), Ok((0, 0, vec![])));
        assert_eq!(plan("web"), Ok((33, 34, vec![4])));
        assert_eq!(plan("33"), Ok((33, 34, vec![4])));
        assert_eq!(plan("web:log"), Ok((33, 4, vec![])));
        assert_eq!(plan("1000:1001"), Ok((1000, 1001, vec![])));
        assert_eq!(plan("1000"), Ok((1000, 0, vec![])));
        assert!(plan("nope").unwrap_err().contains("unable to find user nope"));
        assert!(plan("web:nope").unwrap_err().contains("unable to find group nope"));
    }

    #[test]
    fn links_in_the_image_lead_nowhere_else() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(outside.path(), "evil:x:5:6::/:\n").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("etc/passwd")).unwrap();
        assert_eq!(resolve(root.path(), "12").unwrap().gid, 0);
        assert!(resolve(root.path(), "evil").is_err());
    }
}
