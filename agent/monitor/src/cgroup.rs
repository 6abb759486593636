//! A container's cgroups on every hierarchy of the node: who is in them, what the OOM killer did,
//! and their removal. libcontainer makes them.
//!
//! Owns the paths below the mount points; must not touch any cgroup but the one asked for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::signal;

/// Directories of one cgroup, one per hierarchy where it exists.
pub(crate) fn directories(cgroup: &Path) -> Vec<PathBuf> {
    let below = cgroup.strip_prefix("/").unwrap_or(cgroup);
    if below.as_os_str().is_empty() {
        return Vec::new();
    }
    mount_points().into_iter().map(|mount| mount.join(below)).filter(|path| path.is_dir()).collect()
}

fn mount_points() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut points: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (point, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup" || kind == "cgroup2").then(|| PathBuf::from(point))
        })
        .collect();
    points.sort();
    points.dedup();
    points
}

/// The node has nothing but the unified hierarchy.
pub(crate) fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Swap is counted: kernels may be built or booted without. A v2 root has no such file, its children
/// have.
pub(crate) fn limits_swap() -> bool {
    let has_v2 = |mount: &PathBuf| {
        fs::read_dir(mount)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| entry.path().join("memory.swap.max").exists())
    };
    mount_points()
        .iter()
        .any(|mount| mount.join("memory.memsw.limit_in_bytes").exists() || has_v2(mount))
}

/// Moves this process there, making the cgroup on every hierarchy.
pub(crate) fn join(cgroup: &Path) -> io::Result<()> {
    let below = cgroup.strip_prefix("/").unwrap_or(cgroup);
    for mount in mount_points() {
        let directory = mount.join(below);
        fs::create_dir_all(&directory)?;
        inherit_cpuset(&mount, below)?;
        fs::write(directory.join("cgroup.procs"), "0")?;
    }
    Ok(())
}

/// A v1 cpuset is born without CPUs and refuses processes.
fn inherit_cpuset(mount: &Path, below: &Path) -> io::Result<()> {
    let mut parent = mount.to_owned();
    for part in below {
        let child = parent.join(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (from, to) = (parent.join(file), child.join(file));
            let is_v1 = from.exists() && mount.join("cgroup.clone_children").exists();
            if is_v1 && fs::read_to_string(&to)?.trim().is_empty() {
                fs::write(&to, fs::read_to_string(from)?)?;
            }
        }
        parent = child;
    }
    Ok(())
}

/// Every process in it, and in cgroups below it.
pub(crate) fn processes(cgroup: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    for directory in directories(cgroup) {
        collect(&directory, &mut pids);
    }
    pids.sort();
    pids.dedup();
    pids
}

fn collect(directory: &Path, pids: &mut Vec<i32>) {
    let procs = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    pids.extend(procs.lines().filter_map(|line| line.trim().parse::<i32>().ok()));
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), pids);
        }
    }
}

/// Signals every process in it; one that is gone meanwhile doesn't matter.
pub(crate) fn signal_all(cgroup: &Path, number: i32) {
    for pid in processes(cgroup) {
        if let Err(error) = signal::send(pid, number)
            && error.raw_os_error() != Some(libc::ESRCH)
        {
            tracing::warn!(pid, %error, "can't signal");
        }
    }
}

/// How many processes of it the OOM killer has killed.
pub(crate) fn oom_kills(cgroup: &Path) -> u64 {
    let count = |directory: &PathBuf| {
        ["memory.oom_control", "memory.events"]
            .iter()
            .filter_map(|file| fs::read_to_string(directory.join(file)).ok())
            .filter_map(|text| parse_oom_kills(&text))
            .max()
    };
    directories(cgroup).iter().filter_map(count).max().unwrap_or(0)
}

fn parse_oom_kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// Removes it on every hierarchy, children first.
///
/// # Errors
/// The first that can't be removed: `ResourceBusy` while a process is still going.
pub(crate) fn remove(cgroup: &Path) -> io::Result<()> {
    let mut result = Ok(());
    for directory in directories(cgroup) {
        result = result.and(remove_tree(&directory));
    }
    result
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_formats() {
        assert_eq!(parse_oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(parse_oom_kills("low 0\noom 1\noom_kill 1\noom_group_kill 0\n"), Some(1));
        assert_eq!(parse_oom_kills(""), None);
    }

    #[test]
    fn the_root_is_never_one_of_ours() {
        assert!(directories(Path::new("/")).is_empty());
    }
}
