//! A container as asked for, turned into the runtime specification's `config.json`: pure.
//!
//! Owns the translation and its defaults (those of the runtimes that Kubernetes 1.36 is used
//! with); it must not look at the node, except through [`Host`], which is read once and handed in.

mod capabilities;
mod devices;
mod mounts;
mod profile;

use serde_json::{Map, Value, json};

use crate::protocol::{ContainerSpec, NamespaceMode, Namespaces, Resources, Seccomp, User};

pub(crate) use capabilities::effective as effective_capabilities;
pub(crate) use devices::HostDevice;

const SPEC_VERSION: &str = "1.2.0";
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READONLY_PATHS: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What the translation must know of the node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    /// Capabilities that the monitor has and can give, as a mask.
    pub(crate) capabilities: u64,
    /// The unified cgroup hierarchy is the only one.
    pub(crate) cgroup_v2: bool,
    /// All device nodes, for privileged containers; otherwise those the spec names.
    pub(crate) devices: Vec<HostDevice>,
    /// Swap can be limited.
    pub(crate) swap_limit: bool,
}

/// Why a spec can't be translated.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum SpecError {
    /// Not a capability of Linux.
    #[error("unknown capability {0:?}")]
    Capability(String),
    /// The profile is not JSON, or not a seccomp profile.
    #[error("seccomp profile: {0}")]
    Seccomp(String),
    /// No such device on the node.
    #[error("device {0:?} does not exist or is no device")]
    Device(String),
}

/// The whole `config.json`.
///
/// # Errors
/// When something in the spec has no meaning.
pub(crate) fn render(spec: &ContainerSpec, host: &Host) -> Result<Value, SpecError> {
    let capabilities = capabilities::effective(spec, host.capabilities)?;
    let mut linux = json!({
        "cgroupsPath": spec.cgroup,
        "namespaces": namespaces(&spec.namespaces),
        "resources": resources(&spec.resources, host, devices::rules(spec, host)),
        "devices": devices::nodes(spec, host)?,
        "sysctl": spec.sysctls,
        "maskedPaths": paths(spec.privileged, spec.masked_paths.as_deref(), MASKED_PATHS),
        "readonlyPaths": paths(spec.privileged, spec.readonly_paths.as_deref(), READONLY_PATHS),
    });
    if let Some(seccomp) = seccomp(spec, &capabilities)? {
        linux["seccomp"] = seccomp;
    }
    if mounts::propagates(spec) {
        linux["rootfsPropagation"] = json!("shared");
    }
    let mut config = json!({
        "ociVersion": SPEC_VERSION,
        "root": { "path": spec.rootfs, "readonly": spec.read_only_rootfs },
        "process": process(spec, &capabilities),
        "mounts": mounts::render(spec),
        "linux": linux,
    });
    if let (Some(hostname), NamespaceMode::Private) = (&spec.hostname, &spec.namespaces.uts) {
        config["hostname"] = json!(hostname);
    }
    Ok(config)
}

/// The seccomp filter of a container, in the runtime specification's form; none when unconfined.
///
/// # Errors
/// When a local profile is malformed.
pub(crate) fn seccomp(
    spec: &ContainerSpec,
    capabilities: &[&'static str],
) -> Result<Option<Value>, SpecError> {
    match &spec.seccomp {
        _ if spec.privileged => Ok(None),
        Seccomp::Unconfined => Ok(None),
        Seccomp::RuntimeDefault => Ok(Some(profile::runtime_default(capabilities))),
        Seccomp::Localhost(text) => profile::local(text, capabilities).map(Some),
    }
}

/// The process of an exec: the container's own with other arguments.
pub(crate) fn exec_process(
    container: &ContainerSpec,
    capabilities: &[&'static str],
    args: &[String],
    terminal: bool,
) -> Value {
    let mut value = process(container, capabilities);
    value["args"] = json!(args);
    value["terminal"] = json!(terminal);
    value
}

fn process(spec: &ContainerSpec, capabilities: &[&'static str]) -> Value {
    let mut process = json!({
        "terminal": spec.terminal,
        "user": user(&spec.user),
        "args": spec.args,
        "env": environment(&spec.env, spec.terminal),
        // Always written: the process would inherit the monitor's otherwise.
        "oomScoreAdj": spec.resources.oom_score_adj.unwrap_or(0),
        "cwd": if spec.cwd.is_empty() { "/" } else { spec.cwd.as_str() },
        "capabilities": {
            "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            "inheritable": [], "ambient": [],
        },
        "rlimits": spec.rlimits.iter().map(|limit| {
            json!({ "type": limit.kind, "soft": limit.soft, "hard": limit.hard })
        }).collect::<Vec<_>>(),
    });
    // Written out as false it makes libcontainer load the filter after the capabilities are gone.
    if spec.no_new_privileges {
        process["noNewPrivileges"] = json!(true);
    }
    process
}

fn user(user: &User) -> Value {
    json!({ "uid": user.uid, "gid": user.gid, "additionalGids": user.additional_gids })
}

fn environment(env: &[String], terminal: bool) -> Vec<String> {
    let mut env = env.to_vec();
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.push(DEFAULT_PATH.to_owned());
    }
    if terminal && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    env
}

fn namespaces(namespaces: &Namespaces) -> Vec<Value> {
    let mut list = vec![json!({ "type": "mount" }), json!({ "type": "cgroup" })];
    for (kind, mode) in [
        ("network", &namespaces.network),
        ("ipc", &namespaces.ipc),
        ("uts", &namespaces.uts),
        ("pid", &namespaces.pid),
    ] {
        match mode {
            NamespaceMode::Private => list.push(json!({ "type": kind })),
            NamespaceMode::Path(path) => list.push(json!({ "type": kind, "path": path })),
            NamespaceMode::Host => {}
        }
    }
    list
}

fn resources(resources: &Resources, host: &Host, device_rules: Value) -> Value {
    let mut value = json!({ "devices": device_rules });
    let mut cpu = Map::new();
    let mut put = |key: &str, number: Option<Value>| {
        if let Some(number) = number {
            cpu.insert(key.to_owned(), number);
        }
    };
    put("shares", resources.cpu_shares.map(Into::into));
    put("quota", resources.cpu_quota.map(Into::into));
    put("period", resources.cpu_period.map(Into::into));
    put("cpus", resources.cpuset_cpus.clone().map(Into::into));
    if !cpu.is_empty() {
        value["cpu"] = cpu.into();
    }
    if let Some(limit) = resources.memory_limit {
        value["memory"] = json!({ "limit": limit });
        if host.swap_limit {
            value["memory"]["swap"] = json!(resources.memory_swap.unwrap_or(limit));
        }
    }
    if let Some(limit) = resources.pids_limit {
        value["pids"] = json!({ "limit": limit });
    }
    let mut unified = resources.unified.clone();
    if host.cgroup_v2 {
        // As kubelet does: an OOM kill takes the whole container, not one of its processes.
        unified.entry("memory.oom.group".to_owned()).or_insert_with(|| "1".to_owned());
        value["unified"] = json!(unified);
    }
    value
}

fn paths(privileged: bool, given: Option<&[String]>, usual: &[&str]) -> Value {
    match given {
        Some(given) => json!(given),
        None if privileged => json!([]),
        None => json!(usual),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host { capabilities: u64::MAX, swap_limit: true, ..Host::default() }
    }

    fn parsed(spec: &ContainerSpec) -> oci_spec::runtime::Spec {
        serde_json::from_value(render(spec, &host()).unwrap()).unwrap()
    }

    #[test]
    fn is_a_runtime_spec() {
        let spec = ContainerSpec {
            args: vec!["sh".into()],
            seccomp: Seccomp::RuntimeDefault,
            hostname: Some("a".into()),
            resources: Resources {
                memory_limit: Some(1 << 20),
                cpu_shares: Some(2),
                pids_limit: Some(9),
                ..Resources::default()
            },
            ..ContainerSpec::default()
        };
        let parsed = parsed(&spec);
        let process = parsed.process().clone().unwrap();
        assert_eq!(process.no_new_privileges(), None);
        assert!(process.env().clone().unwrap().iter().any(|entry| entry.starts_with("PATH=/")));
        assert_eq!(process.capabilities().clone().unwrap().effective().clone().unwrap().len(), 14);
        let linux = parsed.linux().clone().unwrap();
        assert!(linux.seccomp().is_some());
        assert_eq!(linux.resources().clone().unwrap().memory().unwrap().swap(), Some(1 << 20));
        assert_eq!(linux.masked_paths().clone().unwrap().len(), MASKED_PATHS.len());
    }

    #[test]
    fn hostname_is_only_set_in_a_namespace_of_its_own() {
        let mut spec = ContainerSpec { hostname: Some("a".into()), ..ContainerSpec::default() };
        assert!(parsed(&spec).hostname().is_some());
        spec.namespaces.uts = NamespaceMode::Path("/run/uts".into());
        assert!(parsed(&spec).hostname().is_none());
    }

    #[test]
    fn privileged_masks_nothing_and_filters_nothing() {
        let spec = ContainerSpec {
            privileged: true,
            seccomp: Seccomp::RuntimeDefault,
            ..ContainerSpec::default()
        };
        let parsed = parsed(&spec);
        let linux = parsed.linux().clone().unwrap();
        assert!(linux.seccomp().is_none());
        assert_eq!(linux.masked_paths().clone().unwrap_or_default().len(), 0);
        let process = parsed.process().clone().unwrap();
        assert_eq!(process.capabilities().clone().unwrap().bounding().clone().unwrap().len(), 41);
    }
}
