//! What a pod's containers share: network, IPC and UTS namespaces pinned by bind mounts, the pod's
//! cgroup, its name files and its `/dev/shm`. No process of ours stays behind for it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};
use monitor::protocol::{ContainerState, NamespaceMode, Namespaces};
use netd::{HostPort, Netd, PodAttachment, Protocol};
use nix::mount::MsFlags;
use nix::sched::CloneFlags;

use crate::cgroup;
use crate::config::Config;
use crate::pod::{dns, spec};
use crate::runtime::{InitSpec, Runtime, RuntimeError};
use crate::volume;

/// Size of a pod's `/dev/shm`, as containerd and CRI-O make it.
const SHM_BYTES: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    #[error("cannot make {path}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("cannot set up the pod's namespaces: {0}")]
    Namespaces(String),
    #[error("cannot set up the pod's network")]
    Network(#[from] netd::AttachError),
    #[error("cannot set up the pod's cgroup")]
    Cgroup(#[from] cgroup::CgroupError),
    #[error("cannot set sysctl {name:?}")]
    Sysctl { name: String, source: std::io::Error },
    #[error("cannot set up /dev/shm: {0}")]
    Shm(String),
    #[error("cannot set up the shared process namespace")]
    Init(#[from] RuntimeError),
}

/// The sandbox as containers join it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sandbox {
    pub(crate) namespaces: Namespaces,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) netns: Option<PathBuf>,
    pub(crate) cgroup: String,
    pub(crate) hostname: String,
    pub(crate) shm: PathBuf,
}

/// Folder of a pod's pins.
pub(crate) fn run_dir(config: &Config, uid: &str) -> PathBuf {
    config.run_dir.join("pods").join(uid)
}

/// Makes the sandbox, or finds it as it was left. Idempotent per pod UID.
pub(crate) async fn ensure(
    config: &Config,
    netd: &Netd,
    pod: &Pod,
    host_ips: &[IpAddr],
) -> Result<Sandbox, SandboxError> {
    let spec = pod.spec.clone().unwrap_or_default();
    let dir = run_dir(config, spec::uid(pod));
    make_dir(&dir)?;
    let cgroup = cgroup::pod_path(&config.cgroup_parent, pod);
    cgroup::ensure_pod(&cgroup, &cgroup::pod_limits(pod))?;
    let host_network = spec.host_network.unwrap_or(false);
    let host_ipc = spec.host_ipc.unwrap_or(false);
    let hostname = if host_network {
        node_hostname()
    } else {
        dns::kernel_hostname(pod, &config.cluster_domain)
    };
    let (netns, ips) = network(netd, pod, host_ips).await?;
    let wanted = Wanted {
        ipc: (!host_ipc).then(|| dir.join("ipc")),
        uts: (!host_network).then(|| dir.join("uts")),
        netns: netns.clone(),
        hostname: hostname.clone(),
        sysctls: sysctls(pod),
    };
    let (ipc, uts) = (wanted.ipc.clone(), wanted.uts.clone());
    ensure_namespaces(wanted).await?;
    let shm = if host_ipc { PathBuf::from("/dev/shm") } else { ensure_shm(&dir)? };
    let mode = |path: Option<PathBuf>| path.map_or(NamespaceMode::Host, NamespaceMode::Path);
    let pid =
        if spec.host_pid.unwrap_or(false) { NamespaceMode::Host } else { NamespaceMode::Private };
    let namespaces =
        Namespaces { network: mode(netns.clone()), ipc: mode(ipc), uts: mode(uts), pid };
    Ok(Sandbox { namespaces, ips, netns, cgroup, hostname, shm })
}

/// The pod's network, made unless it is there: its namespace and addresses, or the node's.
pub(crate) async fn network(
    netd: &Netd,
    pod: &Pod,
    host_ips: &[IpAddr],
) -> Result<(Option<PathBuf>, Vec<IpAddr>), netd::AttachError> {
    if spec::host_network(pod) {
        return Ok((None, host_ips.to_vec()));
    }
    let network = netd.attach(attachment(pod)).await?;
    Ok((Some(network.netns), network.ips))
}

/// Id of the process that owns a pod's shared PID namespace.
pub(crate) fn init_id(pod: &Pod) -> String {
    format!("init-{}", spec::uid(pod))
}

/// With `shareProcessNamespace`: an init of ours, whose PID namespace the containers join.
pub(crate) async fn ensure_init(
    runtime: &Runtime,
    pod: &Pod,
    sandbox: &mut Sandbox,
) -> Result<(), SandboxError> {
    let shared = pod.spec.as_ref().and_then(|spec| spec.share_process_namespace);
    if shared != Some(true) {
        return Ok(());
    }
    let id = init_id(pod);
    let running = |state: &ContainerState| state.id == id && state.exit.is_none();
    let found = runtime.list().await?.into_iter().find(running);
    let state = match found {
        Some(state) => state,
        None => {
            runtime.delete(&id).await?;
            let spec = InitSpec {
                id: id.clone(),
                pod_uid: spec::uid(pod).to_owned(),
                cgroup: format!("{}/{id}", sandbox.cgroup),
                namespaces: sandbox.namespaces.clone(),
            };
            runtime.create_init(spec).await?
        }
    };
    let path = PathBuf::from(format!("/proc/{}/ns/pid", state.pid));
    sandbox.namespaces.pid = NamespaceMode::Path(path);
    Ok(())
}

/// Takes down what `ensure` made, network aside (which goes by its own slow path).
pub(crate) fn remove(config: &Config, pod: &Pod) -> Result<(), SandboxError> {
    remove_uid(config, spec::uid(pod))?;
    cgroup::remove(&cgroup::pod_path(&config.cgroup_parent, pod))?;
    Ok(())
}

/// Takes down the pins of a pod of which only the UID is known.
pub(crate) fn remove_uid(config: &Config, uid: &str) -> Result<(), SandboxError> {
    let dir = run_dir(config, uid);
    volume::remove(&dir).map_err(|error| {
        let source = std::io::Error::other(crate::connection::chain(&error));
        SandboxError::File { path: dir, source }
    })
}

fn make_dir(path: &Path) -> Result<(), SandboxError> {
    std::fs::create_dir_all(path)
        .map_err(|source| SandboxError::File { path: path.to_owned(), source })
}

fn node_hostname() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

fn attachment(pod: &Pod) -> PodAttachment {
    let containers = pod.spec.iter().flat_map(|spec| {
        spec::init_containers(spec).iter().filter(|c| spec::is_sidecar(c)).chain(&spec.containers)
    });
    PodAttachment {
        uid: spec::uid(pod).to_owned(),
        namespace: spec::namespace(pod).to_owned(),
        name: spec::name(pod).to_owned(),
        host_ports: containers.flat_map(host_ports).collect(),
    }
}

fn host_ports(container: &Container) -> Vec<HostPort> {
    let ports = container.ports.iter().flatten();
    ports
        .filter_map(|port| {
            Some(HostPort {
                host_ip: port
                    .host_ip
                    .as_deref()
                    .and_then(|ip| ip.parse::<IpAddr>().ok())
                    .filter(|ip| !ip.is_unspecified()),
                host_port: u16::try_from(port.host_port?).ok().filter(|port| *port > 0)?,
                container_port: u16::try_from(port.container_port).ok()?,
                protocol: match port.protocol.as_deref() {
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    _ => Protocol::Tcp,
                },
            })
        })
        .collect()
}

fn sysctls(pod: &Pod) -> Vec<(String, String)> {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let all = context.and_then(|context| context.sysctls.as_deref()).unwrap_or_default();
    all.iter().map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect()
}

fn ensure_shm(dir: &Path) -> Result<PathBuf, SandboxError> {
    let path = dir.join("shm");
    make_dir(&path)?;
    if !volume::is_mount_point(&path).map_err(|error| SandboxError::Shm(error.to_string()))? {
        nix::mount::mount(
            Some("shm"),
            &path,
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            Some(format!("mode=1777,size={SHM_BYTES}").as_str()),
        )
        .map_err(|errno| SandboxError::Shm(errno.to_string()))?;
    }
    Ok(path)
}

struct Wanted {
    ipc: Option<PathBuf>,
    uts: Option<PathBuf>,
    netns: Option<PathBuf>,
    hostname: String,
    sysctls: Vec<(String, String)>,
}

/// Namespaces belong to threads: a thread of its own enters new ones, pins them and ends.
async fn ensure_namespaces(wanted: Wanted) -> Result<(), SandboxError> {
    let there = |path: &Option<PathBuf>| path.as_deref().map_or(Ok(true), is_pinned);
    if there(&wanted.ipc)? && there(&wanted.uts)? && wanted.sysctls.is_empty() {
        return Ok(());
    }
    let (tell, told) = tokio::sync::oneshot::channel();
    let failed = |error: std::io::Error| SandboxError::Namespaces(error.to_string());
    std::thread::Builder::new()
        .name("sandbox".into())
        .stack_size(128 * 1024)
        .spawn(move || {
            // Nobody waits any more when the pod has ended meanwhile.
            tell.send(make_namespaces(&wanted)).ok();
        })
        .map_err(failed)?;
    told.await.map_err(|_| SandboxError::Namespaces("the thread ended early".into()))?
}

fn is_pinned(path: &Path) -> Result<bool, SandboxError> {
    volume::is_mount_point(path)
        .map_err(|source| SandboxError::File { path: path.to_owned(), source })
}

fn make_namespaces(wanted: &Wanted) -> Result<(), SandboxError> {
    let failed = |what: &str, errno: nix::errno::Errno| {
        SandboxError::Namespaces(format!("{what}: {}", errno.desc()))
    };
    for (path, flag) in
        [(&wanted.ipc, CloneFlags::CLONE_NEWIPC), (&wanted.uts, CloneFlags::CLONE_NEWUTS)]
    {
        let Some(path) = path else { continue };
        if is_pinned(path)? {
            enter(path, flag)?;
        } else {
            nix::sched::unshare(flag).map_err(|errno| failed("unshare", errno))?;
            if flag == CloneFlags::CLONE_NEWUTS {
                nix::unistd::sethostname(&wanted.hostname)
                    .map_err(|errno| failed("sethostname", errno))?;
            }
            pin(path, flag)?;
        }
    }
    if wanted.sysctls.is_empty() {
        return Ok(());
    }
    if let Some(netns) = &wanted.netns {
        enter(netns, CloneFlags::CLONE_NEWNET)?;
    }
    for (name, value) in &wanted.sysctls {
        let path = Path::new("/proc/sys").join(sysctl_path(name));
        std::fs::write(&path, value)
            .map_err(|source| SandboxError::Sysctl { name: name.clone(), source })?;
    }
    Ok(())
}

/// `a.b.c` or `a/b/c`; the first separator found decides what the other means.
fn sysctl_path(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'.' => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn enter(path: &Path, flag: CloneFlags) -> Result<(), SandboxError> {
    let file = std::fs::File::open(path)
        .map_err(|source| SandboxError::File { path: path.to_owned(), source })?;
    nix::sched::setns(file, flag)
        .map_err(|errno| SandboxError::Namespaces(format!("{}: {}", path.display(), errno.desc())))
}

fn pin(path: &Path, flag: CloneFlags) -> Result<(), SandboxError> {
    let kind = if flag == CloneFlags::CLONE_NEWIPC { "ipc" } else { "uts" };
    std::fs::write(path, b"")
        .map_err(|source| SandboxError::File { path: path.to_owned(), source })?;
    let source = format!("/proc/self/task/{}/ns/{kind}", nix::unistd::gettid());
    nix::mount::mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|errno| SandboxError::Namespaces(format!("{}: {}", path.display(), errno.desc())))
}

/// Writes hosts, hostname and resolv.conf for the pod's containers.
pub(crate) fn write_name_files(
    config: &Config,
    pod: &Pod,
    sandbox: &Sandbox,
    pod_dir: &Path,
) -> Result<(), SandboxError> {
    let host_network = spec::host_network(pod);
    let host_hosts =
        host_network.then(|| std::fs::read_to_string("/etc/hosts").unwrap_or_default());
    let host_resolv_conf = std::fs::read_to_string(&config.resolv_conf).unwrap_or_default();
    let cluster = dns::Cluster {
        dns: &config.cluster_dns,
        domain: &config.cluster_domain,
        host_resolv_conf: &host_resolv_conf,
    };
    let hosts = dns::hosts(pod, &config.cluster_domain, &sandbox.ips, host_hosts.as_deref());
    make_dir(pod_dir)?;
    for (name, text) in [
        ("etc-hosts", hosts),
        ("hostname", format!("{}\n", sandbox.hostname)),
        ("resolv.conf", dns::resolv_conf(pod, &cluster)),
    ] {
        let path = pod_dir.join(name);
        // A container may have changed its hosts file; it keeps that.
        if !path.exists() {
            std::fs::write(&path, text)
                .map_err(|source| SandboxError::File { path: path.clone(), source })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(sysctl_path("net/ipv4/conf/eth0.1/x"), "net/ipv4/conf/eth0.1/x");
        assert_eq!(sysctl_path("net.ipv4.conf.eth0/1.x"), "net/ipv4/conf/eth0.1/x");
    }
}
