//! The mounts of a container: the usual ones, and those its pod asks for.
//!
//! Owns their options; must not mount anything.

use serde_json::{Value, json};

use crate::protocol::{ContainerSpec, Mount, MountKind, NamespaceMode};

const SHM: &str = "/dev/shm";
const MQUEUE: &str = "/dev/mqueue";

/// All mounts, parents before children; one that the spec names replaces the usual one.
pub(super) fn render(spec: &ContainerSpec) -> Vec<Value> {
    let mut mounts: Vec<Mount> = usual(spec)
        .into_iter()
        .filter(|usual| !spec.mounts.iter().any(|mount| same(mount, usual)))
        .collect();
    mounts.extend(spec.mounts.iter().cloned());
    // A stable sort: what the pod mounts at one depth stays in its order.
    mounts.sort_by_key(|mount| depth(&mount.destination));
    mounts.iter().map(one).collect()
}

/// Whether a mount is to carry mounts made in the container back to the node.
pub(super) fn propagates(spec: &ContainerSpec) -> bool {
    spec.mounts.iter().any(|mount| mount.options.iter().any(|option| option == "rshared"))
}

fn same(left: &Mount, right: &Mount) -> bool {
    left.destination.trim_end_matches('/') == right.destination.trim_end_matches('/')
}

fn depth(destination: &str) -> usize {
    destination.split('/').filter(|part| !part.is_empty()).count()
}

fn usual(spec: &ContainerSpec) -> Vec<Mount> {
    let mount = |destination: &str, kind: MountKind, options: &[&str]| Mount {
        destination: destination.to_owned(),
        kind,
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    };
    let of_node = |path: &str| {
        mount(path, MountKind::Bind { source: path.into() }, &["nosuid", "noexec", "nodev"])
    };
    let access: &[&str] = if spec.privileged { &["rw"] } else { &["ro"] };
    let mut mounts = vec![
        mount("/proc", MountKind::Proc, &[]),
        mount("/dev", MountKind::Tmpfs, &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", MountKind::Devpts, &[]),
        mount("/sys", MountKind::Sysfs, access),
        mount("/sys/fs/cgroup", MountKind::Cgroup, access),
    ];
    if spec.namespaces.ipc == NamespaceMode::Host {
        mounts.push(of_node(SHM));
    } else {
        mounts.push(mount(
            SHM,
            MountKind::Tmpfs,
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ));
    }
    // Shows the queues of whichever IPC namespace the container is in.
    mounts.push(mount(MQUEUE, MountKind::Mqueue, &[]));
    mounts
}

fn one(mount: &Mount) -> Value {
    let safe = ["nosuid", "noexec", "nodev"].as_slice();
    let (kind, source, base): (&str, Value, &[&str]) = match &mount.kind {
        MountKind::Bind { source } => ("bind", json!(source), &["rbind"]),
        MountKind::Tmpfs => ("tmpfs", json!("tmpfs"), &[]),
        MountKind::Proc => ("proc", json!("proc"), safe),
        MountKind::Sysfs => ("sysfs", json!("sysfs"), safe),
        MountKind::Mqueue => ("mqueue", json!("mqueue"), safe),
        MountKind::Devpts => (
            "devpts",
            json!("devpts"),
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        MountKind::Cgroup => {
            ("cgroup", json!("cgroup"), &["nosuid", "noexec", "nodev", "relatime"])
        }
    };
    let mut options: Vec<&str> = base.to_vec();
    let is_bind = matches!(mount.kind, MountKind::Bind { .. });
    let says_propagation = mount.options.iter().any(|option| is_propagation(option));
    if is_bind && !says_propagation {
        options.push("rprivate");
    }
    options.extend(mount.options.iter().map(String::as_str));
    json!({ "destination": mount.destination, "type": kind, "source": source, "options": options })
}

fn is_propagation(option: &str) -> bool {
    matches!(option.trim_start_matches('r'), "private" | "slave" | "shared" | "unbindable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_mount_replaces_the_usual_one_and_parents_come_first() {
        let bind = |destination: &str| Mount {
            destination: destination.into(),
            kind: MountKind::Bind { source: "/tmp".into() },
            options: vec!["ro".into()],
        };
        let spec = ContainerSpec {
            mounts: vec![bind("/a/b"), bind("/a"), bind("/dev/shm/")],
            ..ContainerSpec::default()
        };
        let rendered = render(&spec);
        let at = |destination: &str| {
            rendered.iter().position(|mount| mount["destination"] == destination)
        };
        assert!(at("/a") < at("/a/b"));
        assert!(at("/dev") < at("/dev/pts"));
        assert_eq!(at("/dev/shm"), None);
        let options = &rendered[at("/a").unwrap()]["options"];
        assert_eq!(*options, json!(["rbind", "rprivate", "ro"]));
    }
}
