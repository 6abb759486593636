//! From a pod's container to what the monitor is told. Pure, but for the image's user files that
//! are read from the mounted root.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    Container, Pod, PodSecurityContext, SecurityContext, VolumeMount,
};
use monitor::protocol::{
    Capabilities, ContainerSpec, Mount, MountKind, NamespaceMode, Resources, Seccomp, User,
};

use crate::cgroup::{self, Hierarchy};
use crate::config::Config;
use crate::pod::env::expand;
use crate::pod::rootfs::RootfsError;
use crate::pod::sandbox::Sandbox;
use crate::pod::spec;
use crate::volume;

/// Keys of the annotations by which containers are known again after a restart of the agent.
pub(crate) const IMAGE: &str = "image";
pub(crate) const IMAGE_ID: &str = "image-id";
pub(crate) const TERMINATION_LOG: &str = "termination-log";
pub(crate) const TERMINATION_POLICY: &str = "termination-policy";
pub(crate) const ATTEMPT_DIR: &str = "attempt-dir";
pub(crate) const STOP_SIGNAL: &str = "stop-signal";

const TERMINATION_PATH_DEFAULT: &str = "/dev/termination-log";
const CGROUPS: &str = "/sys/fs/cgroup";
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An image as a container needs it.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImageFacts {
    /// What `status.containerStatuses[].image` and `.imageID` say.
    pub(crate) name: String,
    pub(crate) id: String,
    /// Unpacked layers, the topmost first.
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) user: String,
    pub(crate) working_dir: String,
    pub(crate) stop_signal: Option<String>,
    pub(crate) size_bytes: u64,
}

/// kubelet's texts for what makes a container's configuration unusable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error(
        "container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})"
    )]
    Root { pod: String, container: String },
    #[error(
        "container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})"
    )]
    RunAsRoot { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is \
         non-root (pod: \"{pod}\", container: {container})"
    )]
    NamedUser { user: String, pod: String, container: String },
    #[error("cannot find volume {volume:?} to mount into container {container:?}")]
    Volume { volume: String, container: String },
    #[error("{0}")]
    SubPath(String),
    #[error("seccomp profile {path}: {source}")]
    Seccomp { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    User(#[from] RootfsError),
}

pub(crate) struct Inputs<'a> {
    pub(crate) config: &'a Config,
    pub(crate) pod: &'a Pod,
    pub(crate) container: &'a Container,
    pub(crate) attempt: u32,
    pub(crate) id: &'a str,
    pub(crate) image: &'a ImageFacts,
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) volumes: &'a BTreeMap<String, PathBuf>,
    pub(crate) env: &'a [(String, String)],
    pub(crate) pod_dir: &'a Path,
    pub(crate) attempt_dir: &'a Path,
    pub(crate) rootfs: &'a Path,
    pub(crate) account: &'a User,
    pub(crate) node_memory_bytes: u64,
}

/// The user as the pod or the image wants it, before names are looked up.
pub(crate) fn wanted_user(pod: &Pod, container: &Container, image: &ImageFacts) -> String {
    let (of_container, of_pod) = contexts(pod, container);
    let user = of_container.and_then(|c| c.run_as_user).or(of_pod.and_then(|c| c.run_as_user));
    let group = of_container.and_then(|c| c.run_as_group).or(of_pod.and_then(|c| c.run_as_group));
    match (user, group) {
        (Some(user), Some(group)) => format!("{user}:{group}"),
        (Some(user), None) => user.to_string(),
        (None, Some(group)) => {
            format!("{}:{group}", image.user.split(':').next().unwrap_or_default())
        }
        (None, None) => image.user.clone(),
    }
}

fn contexts<'a>(
    pod: &'a Pod,
    container: &'a Container,
) -> (Option<&'a SecurityContext>, Option<&'a PodSecurityContext>) {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    (container.security_context.as_ref(), of_pod)
}

/// `runAsNonRoot`, as kubelet's verifyRunAsNonRoot.
pub(crate) fn verify_non_root(
    pod: &Pod,
    container: &Container,
    image: &ImageFacts,
) -> Result<(), ConfigError> {
    let (of_container, of_pod) = contexts(pod, container);
    let wanted =
        of_container.and_then(|c| c.run_as_non_root).or(of_pod.and_then(|c| c.run_as_non_root));
    if wanted != Some(true) {
        return Ok(());
    }
    let names = || (spec::describe(pod), container.name.clone());
    let user = of_container.and_then(|c| c.run_as_user).or(of_pod.and_then(|c| c.run_as_user));
    match user {
        Some(0) => {
            let (pod, container) = names();
            return Err(ConfigError::RunAsRoot { pod, container });
        }
        Some(_) => return Ok(()),
        None => {}
    }
    let name = image.user.split(':').next().unwrap_or_default();
    let (pod, container) = names();
    match name.parse::<u32>() {
        Ok(0) => Err(ConfigError::Root { pod, container }),
        Ok(_) => Ok(()),
        Err(_) if name.is_empty() => Err(ConfigError::Root { pod, container }),
        Err(_) => Err(ConfigError::NamedUser { user: name.to_owned(), pod, container }),
    }
}

pub(crate) fn build(inputs: &Inputs<'_>) -> Result<ContainerSpec, ConfigError> {
    let Inputs { pod, container, image, sandbox, .. } = inputs;
    let (context, of_pod) = contexts(pod, container);
    let privileged = context.and_then(|context| context.privileged).unwrap_or(false);
    let capabilities = context.and_then(|context| context.capabilities.as_ref());
    let env = environment(inputs);
    let escalates = context.and_then(|c| c.allow_privilege_escalation).unwrap_or(true);
    let unmasked = context.and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked");
    let nothing = || unmasked.then(Vec::new);
    Ok(ContainerSpec {
        id: inputs.id.to_owned(),
        pod_uid: spec::uid(pod).to_owned(),
        name: container.name.clone(),
        attempt: inputs.attempt,
        annotations: annotations(inputs),
        args: args(container, image, &env),
        cwd: working_dir(container, image),
        env: env.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
        user: user(inputs.account, pod),
        terminal: container.tty.unwrap_or(false),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        log_path: Some(log_path(inputs.config, pod, &container.name, inputs.attempt)),
        rootfs: inputs.rootfs.to_owned(),
        read_only_rootfs: context.and_then(|c| c.read_only_root_filesystem).unwrap_or(false),
        mounts: mounts(inputs)?,
        devices: Vec::new(),
        masked_paths: nothing(),
        readonly_paths: nothing(),
        namespaces: sandbox.namespaces.clone(),
        hostname: None,
        sysctls: BTreeMap::new(),
        cgroup: format!("{}/{}", sandbox.cgroup, inputs.id),
        resources: resources(inputs),
        rlimits: Vec::new(),
        capabilities: Capabilities {
            add: capabilities.and_then(|c| c.add.clone()).unwrap_or_default(),
            drop: capabilities.and_then(|c| c.drop.clone()).unwrap_or_default(),
        },
        no_new_privileges: !escalates && !privileged,
        privileged,
        seccomp: seccomp(inputs.config, context, of_pod)?,
    })
}

fn annotations(inputs: &Inputs<'_>) -> BTreeMap<String, String> {
    let policy = inputs.container.termination_message_policy.as_deref().unwrap_or("File");
    let mut all = BTreeMap::from([
        (IMAGE.to_owned(), inputs.image.name.clone()),
        (IMAGE_ID.to_owned(), inputs.image.id.clone()),
        (
            TERMINATION_LOG.to_owned(),
            termination_log(inputs.attempt_dir).to_string_lossy().into_owned(),
        ),
        (TERMINATION_POLICY.to_owned(), policy.to_owned()),
        (ATTEMPT_DIR.to_owned(), inputs.attempt_dir.to_string_lossy().into_owned()),
    ]);
    let of_pod = inputs.container.lifecycle.as_ref().and_then(|all| all.stop_signal.clone());
    if let Some(signal) = of_pod.or_else(|| inputs.image.stop_signal.clone()) {
        all.insert(STOP_SIGNAL.to_owned(), signal);
    }
    all
}

pub(crate) fn termination_log(attempt_dir: &Path) -> PathBuf {
    attempt_dir.join("termination-log")
}

/// `<log dir>/<namespace>_<name>_<uid>/<container>/<attempt>.log`.
pub(crate) fn log_path(config: &Config, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
    log_dir(config, pod).join(container).join(format!("{attempt}.log"))
}

pub(crate) fn log_dir(config: &Config, pod: &Pod) -> PathBuf {
    config.log_dir.join(format!("{}_{}_{}", spec::namespace(pod), spec::name(pod), spec::uid(pod)))
}

/// The pod's variables over the image's.
fn environment(inputs: &Inputs<'_>) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = inputs
        .image
        .env
        .iter()
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut set = |name: &str, value: &str| match all.iter_mut().find(|(have, _)| have == name) {
        Some((_, old)) => value.clone_into(old),
        None => all.push((name.to_owned(), value.to_owned())),
    };
    set("HOSTNAME", &inputs.sandbox.hostname);
    for (name, value) in inputs.env {
        set(name, value);
    }
    let missing = |all: &[(String, String)], name: &str| !all.iter().any(|(have, _)| have == name);
    if missing(&all, "PATH") {
        all.push(("PATH".to_owned(), PATH_DEFAULT.to_owned()));
    }
    if missing(&all, "HOME") {
        let home = if inputs.account.uid == 0 { "/root" } else { "/" };
        all.push(("HOME".to_owned(), home.to_owned()));
    }
    if inputs.container.tty.unwrap_or(false) && missing(&all, "TERM") {
        all.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    all
}

fn args(container: &Container, image: &ImageFacts, env: &[(String, String)]) -> Vec<String> {
    let lookup =
        |name: &str| env.iter().find(|(have, _)| have == name).map(|(_, value)| value.clone());
    let expanded = |words: &[String]| -> Vec<String> {
        words.iter().map(|word| expand(word, &lookup)).collect()
    };
    let command = container.command.as_deref().filter(|words| !words.is_empty());
    let args = container.args.as_deref().filter(|words| !words.is_empty());
    match (command, args) {
        (Some(command), Some(args)) => [expanded(command), expanded(args)].concat(),
        (Some(command), None) => expanded(command),
        (None, Some(args)) => [image.entrypoint.clone(), expanded(args)].concat(),
        (None, None) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
    }
}

fn working_dir(container: &Container, image: &ImageFacts) -> String {
    let own = container.working_dir.clone().filter(|dir| !dir.is_empty());
    let dir = own.unwrap_or_else(|| image.working_dir.clone());
    if dir.is_empty() { "/".to_owned() } else { dir }
}

fn user(account: &User, pod: &Pod) -> User {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let strict = context.and_then(|c| c.supplemental_groups_policy.as_deref()) == Some("Strict");
    let mut groups = if strict { Vec::new() } else { account.additional_gids.clone() };
    let given = context.and_then(|context| context.supplemental_groups.as_deref());
    let given = given.unwrap_or_default().iter().chain(context.and_then(|c| c.fs_group.as_ref()));
    groups.extend(given.filter_map(|group| u32::try_from(*group).ok()));
    groups.push(account.gid);
    groups.sort_unstable();
    groups.dedup();
    User { uid: account.uid, gid: account.gid, additional_gids: groups }
}

fn resources(inputs: &Inputs<'_>) -> Resources {
    let limits = cgroup::container_limits(inputs.container.resources.as_ref());
    let signed = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok());
    let score = cgroup::oom_score_adj(inputs.pod, inputs.container, inputs.node_memory_bytes);
    Resources {
        cpu_shares: limits.cpu_shares,
        cpu_quota: signed(limits.cpu_quota_usec),
        cpu_period: limits.cpu_quota_usec.map(|_| limits.cpu_period_usec),
        memory_limit: signed(limits.memory_bytes),
        oom_score_adj: Some(score),
        ..Resources::default()
    }
}

fn seccomp(
    config: &Config,
    context: Option<&SecurityContext>,
    of_pod: Option<&PodSecurityContext>,
) -> Result<Seccomp, ConfigError> {
    let profile = context
        .and_then(|context| context.seccomp_profile.as_ref())
        .or(of_pod.and_then(|context| context.seccomp_profile.as_ref()));
    match profile.map(|profile| (profile.type_.as_str(), profile.localhost_profile.as_deref())) {
        Some(("RuntimeDefault", _)) => Ok(Seccomp::RuntimeDefault),
        Some(("Localhost", Some(name))) => {
            let path = config.data_dir.join("seccomp").join(name.trim_start_matches('/'));
            std::fs::read_to_string(&path)
                .map(Seccomp::Localhost)
                .map_err(|source| ConfigError::Seccomp { path, source })
        }
        _ => Ok(Seccomp::Unconfined),
    }
}

fn bind(destination: &str, source: PathBuf, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        kind: MountKind::Bind { source },
        options: options.iter().map(|&option| option.to_owned()).collect(),
    }
}

/// Volumes that the agent writes are the containers' to read only, whatever the mount says.
fn access(pod: &Pod, mount: &VolumeMount) -> &'static str {
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let volume = volumes.find(|volume| volume.name == mount.name);
    let read_only = mount.read_only.unwrap_or(false) || volume.is_some_and(volume::is_read_only);
    if read_only { "ro" } else { "rw" }
}

fn mounts(inputs: &Inputs<'_>) -> Result<Vec<Mount>, ConfigError> {
    let container = inputs.container;
    let mut all = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let path = inputs.volumes.get(&mount.name).ok_or_else(|| ConfigError::Volume {
            volume: mount.name.clone(),
            container: container.name.clone(),
        })?;
        let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(plain), _) if !plain.is_empty() => Some(plain.clone()),
            (_, Some(expression)) if !expression.is_empty() => Some(expand(expression, &|name| {
                let found = inputs.env.iter().find(|(have, _)| have == name);
                found.map(|(_, value)| value.clone())
            })),
            _ => None,
        };
        let source = match sub_path {
            None => path.clone(),
            Some(sub_path) => {
                let pin =
                    inputs.attempt_dir.join("sub-paths").join(format!("{index}-{}", mount.name));
                volume::sub_path::ensure(path, &sub_path, &pin).map_err(ConfigError::SubPath)?
            }
        };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("Bidirectional") => "rshared",
            Some("HostToContainer") => "rslave",
            _ => "rprivate",
        };
        all.push(bind(&mount.mount_path, source, &[access(inputs.pod, mount), propagation]));
    }
    let taken = |all: &[Mount], path: &str| all.iter().any(|mount| mount.destination == path);
    let read_only = container
        .security_context
        .as_ref()
        .and_then(|context| context.read_only_root_filesystem)
        .unwrap_or(false);
    let access = if read_only { "ro" } else { "rw" };
    for (path, file) in [
        ("/etc/hosts", "etc-hosts"),
        ("/etc/hostname", "hostname"),
        ("/etc/resolv.conf", "resolv.conf"),
    ] {
        if !taken(&all, path) {
            all.push(bind(path, inputs.pod_dir.join(file), &[access, "rprivate"]));
        }
    }
    if !taken(&all, "/dev/shm") {
        all.push(bind(
            "/dev/shm",
            inputs.sandbox.shm.clone(),
            &["rw", "nosuid", "nodev", "noexec"],
        ));
    }
    // libcontainer looks a v1 container's groups up in /proc, where a process that has joined another
    // PID namespace does not find itself; such a container sees no cgroups.
    let joins = matches!(inputs.sandbox.namespaces.pid, NamespaceMode::Path(_));
    if joins && cgroup::detect() == Some(Hierarchy::V1) && !taken(&all, CGROUPS) {
        let options = ["ro", "nosuid", "nodev", "noexec"].map(ToOwned::to_owned).to_vec();
        all.push(Mount { destination: CGROUPS.to_owned(), kind: MountKind::Tmpfs, options });
    }
    let termination = container.termination_message_path.as_deref().filter(|path| !path.is_empty());
    let termination = termination.unwrap_or(TERMINATION_PATH_DEFAULT);
    all.push(bind(termination, termination_log(inputs.attempt_dir), &["rw", "rprivate"]));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec
        }))
        .unwrap()
    }

    #[test]
    fn command_and_args_replace_the_images() {
        let image = ImageFacts {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["default".into()],
            ..ImageFacts::default()
        };
        let env = [("A".to_owned(), "1".to_owned())];
        let run = |value: serde_json::Value| {
            args(&serde_json::from_value(value).unwrap(), &image, &env).join(" ")
        };
        assert_eq!(run(serde_json::json!({"name": "c"})), "/entry default");
        assert_eq!(run(serde_json::json!({"name": "c", "args": ["$(A)"]})), "/entry 1");
        assert_eq!(run(serde_json::json!({"name": "c", "command": ["sh"]})), "sh");
        assert_eq!(
            run(serde_json::json!({"name": "c", "command": ["sh"], "args": ["-c"]})),
            "sh -c"
        );
    }

    #[test]
    fn only_what_is_the_containers_own_is_mounted_writable() {
        let pod = pod(serde_json::json!({"containers": [], "volumes": [
            {"name": "secret", "secret": {"secretName": "s"}}, {"name": "empty", "emptyDir": {}}]}));
        let run = |mount: serde_json::Value| access(&pod, &serde_json::from_value(mount).unwrap());
        let mount = |name: &str, read_only: bool| serde_json::json!({"name": name, "mountPath": "/x", "readOnly": read_only});
        assert_eq!(run(mount("empty", false)), "rw");
        assert_eq!(run(mount("empty", true)), "ro");
        assert_eq!(run(mount("secret", false)), "ro");
    }

    #[test]
    fn non_root_is_verified_as_kubelet_does() {
        let image = |user: &str| ImageFacts { user: user.into(), ..ImageFacts::default() };
        let run = |user: &str, context: serde_json::Value| {
            let pod =
                pod(serde_json::json!({"containers": [{"name": "c", "securityContext": context}]}));
            let container = pod.spec.as_ref().unwrap().containers[0].clone();
            verify_non_root(&pod, &container, &image(user)).map_err(|error| error.to_string())
        };
        let non_root = || serde_json::json!({"runAsNonRoot": true});
        assert!(run("", serde_json::json!({})).is_ok());
        assert!(run("1000", non_root()).is_ok());
        assert!(run("", serde_json::json!({"runAsNonRoot": true, "runAsUser": 5})).is_ok());
        assert_eq!(
            run("", non_root()).unwrap_err(),
            "container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: c)"
        );
        assert!(run("app", non_root()).unwrap_err().contains("non-numeric user (app)"));
        assert!(run("0", non_root()).is_err());
        assert!(run("5", serde_json::json!({"runAsNonRoot": true, "runAsUser": 0})).is_err());
    }

    #[test]
    fn users_and_groups() {
        let pod = pod(serde_json::json!({
            "securityContext": {"runAsUser": 7, "fsGroup": 20, "supplementalGroups": [30]},
            "containers": [{"name": "c", "securityContext": {"runAsGroup": 9}}]}));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        assert_eq!(wanted_user(&pod, container, &ImageFacts::default()), "7:9");
        let account = User { uid: 7, gid: 9, additional_gids: vec![44] };
        assert_eq!(user(&account, &pod).additional_gids, [9, 20, 30, 44]);
    }
}
