//! What the node needs to run its pods without a master, on disk and sealed with the device key:
//! assigned pods, the objects they use, the services' names. Written when it changes, never
//! otherwise; a file that can't be opened is left out and said so.
//!
//! `checkpoint/pods/<uid>`, `checkpoint/runs/<uid>/<container>`, `checkpoint/objects/<kind>.<namespace>.<name>`, `checkpoint/services`:
//! each is the seal's version byte, nonce and ciphertext of JSON.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;

use crate::config::{remove_durably, write_atomic};
use crate::connection::chain;
use crate::identity::{Identity, IdentityError};

#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot open {path}")]
    Seal { path: PathBuf, source: IdentityError },
    #[error("{path} is not what it should be")]
    Json { path: PathBuf, source: serde_json::Error },
}

#[derive(Debug)]
pub(crate) struct Checkpoint {
    dir: PathBuf,
    identity: Arc<Identity>,
}

impl Checkpoint {
    pub(crate) fn new(dir: PathBuf, identity: Arc<Identity>) -> Checkpoint {
        Checkpoint { dir, identity }
    }

    /// Every pod that was assigned when the agent last ran.
    pub(crate) fn pods(&self) -> Vec<Pod> {
        let Ok(entries) = std::fs::read_dir(self.dir.join("pods")) else { return Vec::new() };
        let paths = entries.flatten().map(|entry| entry.path());
        let paths = paths.filter(|path| path.extension().is_none());
        paths.filter_map(|path| self.load_or_warn(&path)).collect()
    }

    pub(crate) fn save_pod(&self, pod: &Pod) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if !is_plain(uid) {
            return;
        }
        self.save(&self.dir.join("pods").join(uid), &essence(pod));
    }

    pub(crate) fn remove_pod(&self, uid: &str) {
        if is_plain(uid) {
            remove(&self.dir.join("pods").join(uid));
            let runs = self.dir.join("runs").join(uid);
            if let Err(error) = std::fs::remove_dir_all(&runs)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                warn!(path = %runs.display(), %error, "a part of the checkpoint was not removed");
            }
        }
    }

    /// What was saved of a container's run.
    pub(crate) fn run<T: DeserializeOwned>(&self, uid: &str, container: &str) -> Option<T> {
        let path = self.run_path(uid, container)?;
        path.exists().then(|| self.load_or_warn(&path)).flatten()
    }

    pub(crate) fn save_run<T: Serialize>(&self, uid: &str, container: &str, run: &T) {
        if let Some(path) = self.run_path(uid, container) {
            self.save(&path, run);
        }
    }

    fn run_path(&self, uid: &str, container: &str) -> Option<PathBuf> {
        let plain = is_plain(uid) && is_plain(container);
        plain.then(|| self.dir.join("runs").join(uid).join(container))
    }

    pub(crate) fn object<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        let path = self.object_path(key)?;
        path.exists().then(|| self.load_or_warn(&path)).flatten()
    }

    pub(crate) fn save_object<T: Serialize>(&self, key: &str, object: &T) {
        if let Some(path) = self.object_path(key) {
            self.save(&path, object);
        }
    }

    pub(crate) fn remove_object(&self, key: &str) {
        if let Some(path) = self.object_path(key) {
            remove(&path);
        }
    }

    /// Removes every object whose key begins with `prefix`.
    pub(crate) fn remove_objects(&self, prefix: &str) {
        let entries = std::fs::read_dir(self.dir.join("objects")).into_iter().flatten().flatten();
        for entry in entries {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)) {
                remove(&entry.path());
            }
        }
    }

    fn object_path(&self, key: &str) -> Option<PathBuf> {
        is_plain(key).then(|| self.dir.join("objects").join(key))
    }

    pub(crate) fn services<T: DeserializeOwned>(&self) -> Option<T> {
        let path = self.dir.join("services");
        path.exists().then(|| self.load_or_warn(&path)).flatten()
    }

    pub(crate) fn save_services<T: Serialize>(&self, services: &T) {
        self.save(&self.dir.join("services"), services);
    }

    fn load_or_warn<T: DeserializeOwned>(&self, path: &Path) -> Option<T> {
        match self.load(path) {
            Ok(value) => Some(value),
            Err(error) => {
                warn!(error = %chain(&error), "a part of the checkpoint is left out");
                None
            }
        }
    }

    fn load<T: DeserializeOwned>(&self, path: &Path) -> Result<T, CheckpointError> {
        let path_buf = || path.to_owned();
        let sealed = std::fs::read(path)
            .map_err(|source| CheckpointError::Read { path: path_buf(), source })?;
        let plain = self
            .identity
            .key
            .unseal(&sealed)
            .map_err(|source| CheckpointError::Seal { path: path_buf(), source })?;
        serde_json::from_slice(&plain)
            .map_err(|source| CheckpointError::Json { path: path_buf(), source })
    }

    fn save<T: Serialize>(&self, path: &Path, value: &T) {
        if let Err(error) = self.try_save(path, value) {
            warn!(error = %chain(&error), "the checkpoint is not up to date");
        }
    }

    fn try_save<T: Serialize>(&self, path: &Path, value: &T) -> Result<(), CheckpointError> {
        let path_buf = || path.to_owned();
        let plain = serde_json::to_vec(value)
            .map_err(|source| CheckpointError::Json { path: path_buf(), source })?;
        if self.unchanged(path, &plain) {
            return Ok(());
        }
        let sealed = self
            .identity
            .key
            .seal(&plain)
            .map_err(|source| CheckpointError::Seal { path: path_buf(), source })?;
        write_atomic(path, &sealed, 0o600)
            .map_err(|source| CheckpointError::Write { path: path_buf(), source })
    }

    fn unchanged(&self, path: &Path, plain: &[u8]) -> bool {
        std::fs::read(path)
            .ok()
            .and_then(|sealed| self.identity.key.unseal(&sealed).ok())
            .is_some_and(|have| have == plain)
    }
}

/// Names that are one path component and no temporary file's.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/')
}

fn remove(path: &Path) {
    if let Err(error) = remove_durably(path) {
        warn!(path = %path.display(), %error, "a part of the checkpoint was not removed");
    }
}

/// The pod without what changes while it runs: of its status only what a restart must know.
pub(crate) fn essence(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    pod.metadata.managed_fields = None;
    pod.metadata.resource_version = None;
    pod.status = pod.status.map(|status| PodStatus {
        phase: status.phase.filter(|phase| phase == "Succeeded" || phase == "Failed"),
        start_time: status.start_time,
        container_statuses: None::<Vec<ContainerStatus>>,
        ..PodStatus::default()
    });
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_comes_back_sealed_and_is_not_written_twice() {
        let dir = tempfile::tempdir().unwrap();
        let identity = dir.path().join("identity");
        Identity::write(&identity, "ca", "node").unwrap();
        let identity = Arc::new(Identity::load(&identity).unwrap());
        let checkpoint = Checkpoint::new(dir.path().join("checkpoint"), identity);
        let mut pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "uid": "u1", "resourceVersion": "5"},
            "spec": {"containers": [{"name": "c", "env": [{"name": "A", "value": "hush"}]}]},
            "status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z"}
        }))
        .unwrap();
        checkpoint.save_pod(&pod);
        let path = dir.path().join("checkpoint/pods/u1");
        let first = std::fs::read(&path).unwrap();
        assert!(!String::from_utf8_lossy(&first).contains("hush"));
        pod.metadata.resource_version = Some("6".into());
        checkpoint.save_pod(&pod);
        assert_eq!(std::fs::read(&path).unwrap(), first, "an unchanged pod was written again");
        let back = checkpoint.pods();
        assert_eq!(back, [essence(&pod)]);
        std::fs::write(dir.path().join("checkpoint/pods/u2"), b"torn").unwrap();
        std::fs::copy(&path, dir.path().join("checkpoint/pods/.u3.tmp")).unwrap();
        assert_eq!(checkpoint.pods().len(), 1);
        checkpoint.save_run("u1", "c", &7);
        assert_eq!(checkpoint.run("u1", "c"), Some(7));
        checkpoint.remove_pod("u1");
        assert!(checkpoint.pods().is_empty());
        assert_eq!(checkpoint.run::<i32>("u1", "c"), None);
        checkpoint.save_object("../../x", &1);
        assert!(!dir.path().join("x").exists());
    }
}
