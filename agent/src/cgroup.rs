//! Which cgroup hierarchy this host has, where pods stand in it, and what their limits are as
//! cgroup values. It makes and removes the pods' groups; containers' own groups are the runtime's.
//!
//! Below the configured parent: `kubepods/pod<uid>` for guaranteed pods,
//! `kubepods/burstable/pod<uid>` and `kubepods/besteffort/pod<uid>` for the others, as kubelet.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use crate::pod::spec::{self, Qos};

/// Kubernetes 1.36, kubelet `cm.MinShares`, `MilliCPUToShares` and the 100 ms CFS period.
const SHARES_MIN: u64 = 2;
const SHARES_MAX: u64 = 262_144;
const SHARES_PER_CPU: u64 = 1024;
const PERIOD_USEC: u64 = 100_000;
const QUOTA_MIN_USEC: u64 = 1_000;

const ROOT: &str = "/sys/fs/cgroup";
/// Controllers of v1 in which a pod gets a group.
const V1_CONTROLLERS: [&str; 9] =
    ["memory", "cpu", "cpuacct", "pids", "cpuset", "devices", "freezer", "blkio", "hugetlb"];

#[derive(Debug, thiserror::Error)]
#[error("cgroup {path}: cannot {doing}")]
pub(crate) struct CgroupError {
    doing: &'static str,
    path: PathBuf,
    source: std::io::Error,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hierarchy {
    /// One unified tree.
    V2,
    /// A tree per controller; `hybrid` hosts have an (unused) unified one beside them.
    V1,
}

/// What the host offers. `None`: no cgroups are mounted.
pub(crate) fn detect() -> Option<Hierarchy> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return Some(Hierarchy::V2);
    }
    root.join("cpu")
        .exists()
        .then_some(Hierarchy::V1)
        .or_else(|| root.join("memory").exists().then_some(Hierarchy::V1))
}

/// Whether memory limits can be kept at all; small boards boot without them.
pub(crate) fn has_memory_controller() -> bool {
    match detect() {
        Some(Hierarchy::V2) => std::fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"))
            .is_ok_and(|text| text.split_whitespace().any(|name| name == "memory")),
        Some(Hierarchy::V1) => Path::new(ROOT).join("memory/memory.limit_in_bytes").exists(),
        None => false,
    }
}

/// Values for one group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) cpu_shares: Option<u64>,
    pub(crate) cpu_quota_usec: Option<u64>,
    pub(crate) cpu_period_usec: u64,
    pub(crate) memory_bytes: Option<u64>,
}

pub(crate) fn shares(milli: u64) -> u64 {
    (milli * SHARES_PER_CPU / 1000).clamp(SHARES_MIN, SHARES_MAX)
}

pub(crate) fn quota(milli: u64) -> u64 {
    (milli * PERIOD_USEC / 1000).max(QUOTA_MIN_USEC)
}

/// cgroup v2's weight for v1's shares (the conversion runc and crun use since 1.3).
pub(crate) fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(SHARES_MIN, SHARES_MAX);
    1 + ((shares - SHARES_MIN) * 9999) / (SHARES_MAX - SHARES_MIN)
}

/// The limits of one container.
pub(crate) fn container_limits(resources: Option<&ResourceRequirements>) -> Limits {
    let request = spec::milli(resources, "cpu", spec::Side::Requests);
    let limit = spec::milli(resources, "cpu", spec::Side::Limits);
    Limits {
        cpu_shares: Some(shares(request.or(limit).unwrap_or(0))),
        cpu_quota_usec: limit.filter(|milli| *milli > 0).map(quota),
        cpu_period_usec: PERIOD_USEC,
        memory_bytes: spec::bytes(resources, "memory", spec::Side::Limits).filter(|b| *b > 0),
    }
}

/// The limits of the whole pod: the sum where every container has one.
pub(crate) fn pod_limits(pod: &Pod) -> Limits {
    let requests = spec::pod_milli_requests(pod);
    let cpu = spec::pod_limit(pod, "cpu");
    let memory = spec::pod_limit(pod, "memory");
    Limits {
        cpu_shares: Some(shares(requests)),
        cpu_quota_usec: cpu.filter(|milli| *milli > 0).map(quota),
        cpu_period_usec: PERIOD_USEC,
        memory_bytes: memory.filter(|bytes| *bytes > 0),
    }
}

/// kubelet's `GetContainerOOMScoreAdjust`.
pub(crate) fn oom_score_adj(pod: &Pod, container: &Container, node_memory_bytes: u64) -> i32 {
    const GUARANTEED: i64 = -997;
    const BEST_EFFORT: i64 = 1000;
    let critical = pod.spec.as_ref().and_then(|s| s.priority).is_some_and(|p| p >= 2_000_000_000);
    let score = match spec::qos(pod) {
        _ if critical => GUARANTEED,
        Qos::Guaranteed => GUARANTEED,
        Qos::BestEffort => BEST_EFFORT,
        Qos::Burstable => {
            let request = spec::bytes(container.resources.as_ref(), "memory", spec::Side::Requests);
            let share =
                u128::from(request.unwrap_or(0)) * 1000 / u128::from(node_memory_bytes.max(1));
            let adjust = 1000 - i64::try_from(share).unwrap_or(1000);
            adjust.clamp(1000 + GUARANTEED, BEST_EFFORT - 1)
        }
    };
    i32::try_from(score).unwrap_or(0)
}

/// The pod's path below the hierarchy's root, with a leading slash.
pub(crate) fn pod_path(parent: &str, pod: &Pod) -> String {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let parent = parent.trim_end_matches('/');
    match spec::qos(pod) {
        Qos::Guaranteed => format!("{parent}/kubepods/pod{uid}"),
        Qos::Burstable => format!("{parent}/kubepods/burstable/pod{uid}"),
        Qos::BestEffort => format!("{parent}/kubepods/besteffort/pod{uid}"),
    }
}

/// Makes the pod's group and sets its limits; idempotent.
pub(crate) fn ensure_pod(path: &str, limits: &Limits) -> Result<(), CgroupError> {
    match detect() {
        Some(Hierarchy::V1) => ensure_v1(path, limits),
        Some(Hierarchy::V2) => ensure_v2(path, limits),
        None => Ok(()),
    }
}

/// The group of all best-effort pods: together they get what others leave (Kubernetes 1.36, kubelet's
/// QoS container manager).
fn best_effort_class(pod: &Path) -> Option<&Path> {
    pod.parent().filter(|class| class.ends_with("kubepods/besteffort"))
}

fn v1_roots() -> impl Iterator<Item = PathBuf> {
    V1_CONTROLLERS.iter().map(|name| Path::new(ROOT).join(name)).filter(|root| root.exists())
}

fn ensure_v1(path: &str, limits: &Limits) -> Result<(), CgroupError> {
    for root in v1_roots() {
        let dir = root.join(path.trim_start_matches('/'));
        let cpuset = root.ends_with("cpuset");
        if cpuset {
            make_cpuset(&root, path)?;
        } else {
            make(&dir)?;
        }
        if root.ends_with("cpu") {
            if let Some(class) = best_effort_class(&dir) {
                set(class, "cpu.shares", Some(SHARES_MIN))?;
            }
            set(&dir, "cpu.shares", limits.cpu_shares)?;
            set(&dir, "cpu.cfs_period_us", Some(limits.cpu_period_usec))?;
            set(&dir, "cpu.cfs_quota_us", limits.cpu_quota_usec)?;
        }
        if root.ends_with("memory") {
            set(&dir, "memory.limit_in_bytes", limits.memory_bytes)?;
        }
    }
    Ok(())
}

/// A cpuset group is unusable until it has CPUs and memory nodes; each level takes its parent's.
fn make_cpuset(root: &Path, path: &str) -> Result<(), CgroupError> {
    let mut dir = root.to_owned();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let parent = dir.clone();
        dir.push(part);
        make(&dir)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let current = read(&dir.join(file))?;
            if current.trim().is_empty() {
                write(&dir.join(file), read(&parent.join(file))?.trim())?;
            }
        }
    }
    Ok(())
}

fn ensure_v2(path: &str, limits: &Limits) -> Result<(), CgroupError> {
    let mut dir = PathBuf::from(ROOT);
    for part in path.split('/').filter(|part| !part.is_empty()) {
        delegate(&dir)?;
        dir.push(part);
        make(&dir)?;
    }
    delegate(&dir)?;
    if let Some(class) = best_effort_class(&dir) {
        set(class, "cpu.weight", Some(weight(SHARES_MIN)))?;
    }
    set(&dir, "cpu.weight", limits.cpu_shares.map(weight))?;
    if let Some(quota) = limits.cpu_quota_usec {
        write(&dir.join("cpu.max"), &format!("{quota} {}", limits.cpu_period_usec))?;
    }
    set(&dir, "memory.max", limits.memory_bytes)
}

/// Hands every controller of a group on to its children.
fn delegate(dir: &Path) -> Result<(), CgroupError> {
    let offered = read(&dir.join("cgroup.controllers"))?;
    let given = read(&dir.join("cgroup.subtree_control"))?;
    for name in offered.split_whitespace() {
        if !given.split_whitespace().any(|have| have == name) {
            write(&dir.join("cgroup.subtree_control"), &format!("+{name}"))?;
        }
    }
    Ok(())
}

/// Removes the group and everything below it, once no process is left in it.
pub(crate) fn remove(path: &str) -> Result<(), CgroupError> {
    let relative = path.trim_start_matches('/');
    match detect() {
        Some(Hierarchy::V1) => {
            mounted_roots().try_for_each(|root| remove_tree(&root.join(relative)))
        }
        Some(Hierarchy::V2) => remove_tree(&Path::new(ROOT).join(relative)),
        None => Ok(()),
    }
}

/// Every hierarchy, those that only the runtime uses included; links name others.
fn mounted_roots() -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(ROOT).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path())
}

fn remove_tree(dir: &Path) -> Result<(), CgroupError> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(failed("remove", dir)(error))
        }
        _ => Ok(()),
    }
}

fn make(dir: &Path) -> Result<(), CgroupError> {
    std::fs::create_dir_all(dir).map_err(failed("make", dir))
}

fn set(dir: &Path, file: &str, value: Option<u64>) -> Result<(), CgroupError> {
    let path = dir.join(file);
    match value {
        Some(value) if path.exists() => write(&path, &value.to_string()),
        _ => Ok(()),
    }
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    std::fs::write(path, value).map_err(failed("write", path))
}

fn read(path: &Path) -> Result<String, CgroupError> {
    std::fs::read_to_string(path).map_err(failed("read", path))
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_values_are_kubelets() {
        assert_eq!([0, 1, 100, 1000, 4000].map(shares), [2, 2, 102, 1024, 4096]);
        assert_eq!([1, 10, 100, 2000].map(quota), [1000, 1000, 10_000, 200_000]);
        assert_eq!([2, 1024, 262_144].map(weight), [1, 39, 10_000]);
    }
}
