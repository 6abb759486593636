//! The agent's configuration: one TOML file, every path of which can be moved, so that several
//! agents run on one machine. Unknown keys are refused. Also how every file and folder of the agent
//! that must outlive a power cut is written.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use netd::IpNet;
use serde::{Deserialize, Serialize};

/// The newest format of the configuration file this build reads.
const VERSION: u32 = 1;

/// Where `agent join` writes and `agent run` looks unless told otherwise.
pub(crate) const CONFIG_DIR: &str = "/etc/flotilla";

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration {path}: join a cluster first with `agent join`")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration {path} is not valid")]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("the configuration {path} has version {found}; this agent reads up to {VERSION}")]
    Newer { path: PathBuf, found: u32 },
    #[error("cannot write the configuration {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot express the configuration as TOML")]
    Render(#[from] toml::ser::Error),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Format of this file.
    pub(crate) version: u32,
    pub(crate) node_name: String,
    /// API servers, tried in order: `https://host:port`.
    pub(crate) servers: Vec<String>,
    pub(crate) data_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) log_dir: PathBuf,
    pub(crate) manifests_dir: PathBuf,
    pub(crate) registries_file: PathBuf,
    /// Archives put here are imported as images.
    pub(crate) image_drop_dir: PathBuf,
    pub(crate) cgroup_parent: String,
    /// Addresses to report; empty: the one the master is reached from.
    pub(crate) node_ip: Vec<IpAddr>,
    pub(crate) cluster_dns: Vec<IpAddr>,
    pub(crate) cluster_domain: String,
    /// Ranges of the pods' addresses.
    pub(crate) cluster_cidrs: Vec<IpNet>,
    /// Ranges of the services' addresses.
    pub(crate) service_cidrs: Vec<IpNet>,
    pub(crate) resolv_conf: PathBuf,
    pub(crate) max_pods: u32,
    /// Bytes of memory kept from pods beyond the eviction threshold.
    pub(crate) reserved_memory_bytes: u64,
    pub(crate) labels: BTreeMap<String, String>,
    /// `key=value:Effect`.
    pub(crate) taints: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            version: VERSION,
            node_name: String::new(),
            servers: Vec::new(),
            data_dir: "/var/lib/flotilla/agent".into(),
            run_dir: "/run/flotilla".into(),
            log_dir: "/var/log/pods".into(),
            manifests_dir: "/etc/flotilla/manifests".into(),
            registries_file: "/etc/flotilla/registries.toml".into(),
            image_drop_dir: "/var/lib/flotilla/agent/import".into(),
            cgroup_parent: "/flotilla".into(),
            node_ip: Vec::new(),
            cluster_dns: vec![IpAddr::from([10, 96, 0, 10])],
            cluster_domain: "cluster.local".into(),
            cluster_cidrs: vec![netd::CLUSTER_CIDR],
            service_cidrs: vec![netd::SERVICE_CIDR],
            resolv_conf: "/etc/resolv.conf".into(),
            max_pods: 110,
            reserved_memory_bytes: 0,
            labels: BTreeMap::new(),
            taints: Vec::new(),
        }
    }
}

impl Config {
    pub(crate) fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Config = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        if config.version > VERSION {
            return Err(ConfigError::Newer { path: path.to_owned(), found: config.version });
        }
        Ok(config)
    }

    /// Writes the file by way of a temporary one, so that a power cut leaves the old or the new.
    pub(crate) fn save(&self, path: &Path) -> Result<(), ConfigError> {
        let text = toml::to_string_pretty(self)?;
        write_atomic(path, text.as_bytes(), 0o600)
            .map_err(|source| ConfigError::Write { path: path.to_owned(), source })
    }

    pub(crate) fn identity_dir(&self) -> PathBuf {
        self.data_dir.join("identity")
    }

    pub(crate) fn pods_dir(&self) -> PathBuf {
        self.data_dir.join("pods")
    }

    pub(crate) fn checkpoint_dir(&self) -> PathBuf {
        self.data_dir.join("checkpoint")
    }

    /// The socket of the agent's own server for commands on the device.
    pub(crate) fn local_socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    pub(crate) fn pid_file(&self) -> PathBuf {
        self.run_dir.join("agent.pid")
    }
}

/// Writes `bytes` to `path` through a synced temporary file beside it and a rename. The temporary
/// file's name begins with a dot, which no name that is written here does.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    use std::io::Write;
    let folder = folder(path);
    std::fs::create_dir_all(folder)?;
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    let temporary = folder.join(name);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_folder(folder)
}

/// Removes a file so that a power cut does not bring it back. One that is not there is removed.
pub(crate) fn remove_durably(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| sync_folder(folder(path))),
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

/// Makes a folder that nobody but its owner gets into, or closes the one that is there.
pub(crate) fn make_private_folder(path: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_configuration_reads_back_and_unknown_keys_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        let mut config = Config { node_name: "n1".into(), ..Config::default() };
        config.labels.insert("zone".into(), "a".into());
        config.save(&path).unwrap();
        assert_eq!(Config::load(&path).unwrap(), config);
        std::fs::write(&path, "node_nam = 'x'\n").unwrap();
        assert!(matches!(Config::load(&path), Err(ConfigError::Parse { .. })));
        std::fs::write(&path, "version = 99\n").unwrap();
        assert!(matches!(Config::load(&path), Err(ConfigError::Newer { found: 99, .. })));
    }

    #[test]
    fn a_file_being_written_is_in_no_other_files_way() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        write_atomic(&at("configmap.ns.tmp"), b"1", 0o600).unwrap();
        write_atomic(&at("configmap.ns.foo.tmp"), b"2", 0o600).unwrap();
        write_atomic(&at("configmap.ns.foo"), b"3", 0o600).unwrap();
        assert_eq!(std::fs::read(at("configmap.ns.tmp")).unwrap(), b"1");
        assert_eq!(std::fs::read(at("configmap.ns.foo.tmp")).unwrap(), b"2");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
        remove_durably(&at("configmap.ns.foo")).unwrap();
        remove_durably(&at("configmap.ns.foo")).unwrap();
        assert!(!at("configmap.ns.foo").exists());
    }

    #[test]
    fn a_private_folder_is_closed_also_when_it_was_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        make_private_folder(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
