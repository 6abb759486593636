//! What can be found wrong with a container before libcontainer is asked, which would say less.
//!
//! Owns the messages; reads the node, changes nothing but the container's working directory.

use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::protocol::{ContainerSpec, MountKind, NamespaceMode};

/// Longest id: it is a file name and a host name's length is no surprise to people.
const ID_BYTES_MAX: usize = 128;

/// Checks a spec against the node.
pub(crate) fn validate(spec: &ContainerSpec) -> Result<(), String> {
    validate_id(&spec.id)?;
    if spec.args.is_empty() || spec.args[0].is_empty() {
        return Err("no command specified".to_owned());
    }
    if let Some(bad) = spec.args.iter().chain(&spec.env).find(|text| text.contains('\0')) {
        return Err(format!("NUL byte in {bad:?}"));
    }
    if let Some(bad) = spec.env.iter().find(|entry| entry.find('=').is_none_or(|at| at == 0)) {
        return Err(format!("environment entry {bad:?} is not NAME=value"));
    }
    if !spec.cwd.is_empty() && !spec.cwd.starts_with('/') {
        return Err(format!("working directory {:?} is not absolute", spec.cwd));
    }
    if !Path::new(&spec.cgroup).is_absolute() || spec.cgroup.trim_matches('/').is_empty() {
        return Err(format!("cgroup {:?} is not an absolute path below the root", spec.cgroup));
    }
    if !spec.rootfs.is_dir() {
        return Err(format!("root file system {:?} is not a directory", spec.rootfs));
    }
    validate_sysctls(spec)?;
    validate_mounts(spec)?;
    validate_namespaces(spec)
}

/// A misspelt name; those of one interface may exist in the pod's network namespace alone.
fn validate_sysctls(spec: &ContainerSpec) -> Result<(), String> {
    let is_of_interface = |name: &str| name.contains(".conf.") || name.contains(".neigh.");
    let unknown = spec.sysctls.keys().find(|name| {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        !is_of_interface(name) && !path.exists()
    });
    match unknown {
        Some(name) => Err(format!("sysctl {name:?} is unknown to the kernel")),
        None => Ok(()),
    }
}

/// Checks an id, which names folders, FIFOs and cgroups.
pub(crate) fn validate_id(id: &str) -> Result<(), String> {
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let starts_well = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if starts_well && id.len() <= ID_BYTES_MAX && id.bytes().all(is_safe) {
        Ok(())
    } else {
        Err(format!("container id {id:?} is not of [A-Za-z0-9_.-]"))
    }
}

fn validate_mounts(spec: &ContainerSpec) -> Result<(), String> {
    for mount in &spec.mounts {
        let destination = &mount.destination;
        let climbs = Path::new(destination).components().any(|part| part == Component::ParentDir);
        if !destination.starts_with('/') || destination == "/" || climbs {
            return Err(format!("mount destination {destination:?} is not an absolute path"));
        }
        if let MountKind::Bind { source } = &mount.kind
            && let Err(error) = source.metadata()
        {
            return Err(format!("failed to mount {source:?} to {destination:?}: source: {error}"));
        }
    }
    Ok(())
}

fn validate_namespaces(spec: &ContainerSpec) -> Result<(), String> {
    let namespaces = &spec.namespaces;
    for (name, mode) in [
        ("network", &namespaces.network),
        ("ipc", &namespaces.ipc),
        ("uts", &namespaces.uts),
        ("pid", &namespaces.pid),
    ] {
        if let NamespaceMode::Path(path) = mode
            && let Err(error) = path.metadata()
        {
            return Err(format!("{name} namespace {path:?}: {error}"));
        }
    }
    Ok(())
}

/// Makes the working directory where it is missing, as other runtimes do: in the root file system,
/// or in what is mounted there.
pub(crate) fn ensure_cwd(spec: &ContainerSpec) -> Result<(), String> {
    let cwd = Path::new(if spec.cwd.is_empty() { "/" } else { &spec.cwd });
    let (root, below) = place_of(spec, cwd);
    let Some(root) = root else { return Ok(()) };
    let mut path = PathBuf::new();
    for part in below.components() {
        let Component::Normal(part) = part else { continue };
        path.push(part);
        make_directory(&root, &path)
            .map_err(|error| format!("working directory {:?}: {error}", spec.cwd))?;
    }
    Ok(())
}

/// The directory of the node that holds this path of the container, and the rest; `None` where the
/// path is in memory or in a file.
fn place_of<'a>(spec: &ContainerSpec, path: &'a Path) -> (Option<PathBuf>, &'a Path) {
    let covering = spec
        .mounts
        .iter()
        .filter_map(|mount| Some((mount, path.strip_prefix(&mount.destination).ok()?)))
        .min_by_key(|(_, rest)| rest.components().count());
    match covering {
        None => (Some(spec.rootfs.clone()), path),
        Some((mount, rest)) => match &mount.kind {
            MountKind::Bind { source } if source.is_dir() => (Some(source.clone()), rest),
            _ => (None, rest),
        },
    }
}

fn make_directory(root: &Path, path: &Path) -> rustix::io::Result<()> {
    let root = rustix::fs::openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
    let open = |path: &Path| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
    };
    match open(path) {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::NOENT) => {
            let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name());
            let parent = open(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
            let name = name.ok_or(rustix::io::Errno::INVAL)?;
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Mount;

    fn spec() -> ContainerSpec {
        ContainerSpec {
            id: "a".into(),
            args: vec!["sh".into()],
            rootfs: "/".into(),
            cgroup: "/x/y".into(),
            ..ContainerSpec::default()
        }
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!(validate(&spec()), Ok(()));
        let cases: Vec<(&str, ContainerSpec)> = vec![
            ("container id", ContainerSpec { id: "../a".into(), ..spec() }),
            ("no command", ContainerSpec { args: vec![], ..spec() }),
            ("NAME=value", ContainerSpec { env: vec!["=x".into()], ..spec() }),
            ("not absolute", ContainerSpec { cwd: "tmp".into(), ..spec() }),
            ("cgroup", ContainerSpec { cgroup: "/".into(), ..spec() }),
            ("root file system", ContainerSpec { rootfs: "/nope".into(), ..spec() }),
            (
                "failed to mount \"/nope\" to \"/data\": source: No such file",
                ContainerSpec {
                    mounts: vec![Mount {
                        destination: "/data".into(),
                        kind: MountKind::Bind { source: "/nope".into() },
                        options: vec![],
                    }],
                    ..spec()
                },
            ),
        ];
        for (text, spec) in cases {
            let message = validate(&spec).unwrap_err();
            assert!(message.contains(text), "{message}");
        }
    }

    #[test]
    fn the_working_directory_never_leaves_the_root() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
        let spec = |cwd: &str| ContainerSpec {
            rootfs: root.path().into(),
            cwd: cwd.into(),
            ..ContainerSpec::default()
        };
        ensure_cwd(&spec("/a/b")).unwrap();
        assert!(root.path().join("a/b").is_dir());
        assert!(ensure_cwd(&spec("/link/x")).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
