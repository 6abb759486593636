//! Static pods: every manifest in one folder, read again whenever the folder changes, with the names,
//! UIDs and annotations that kubelet gives them.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Toleration};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::identity::hex;
use crate::source::{HASH_ANNOTATION, SEEN_ANNOTATION, SOURCE_ANNOTATION, Update};

/// An editor writes a file in several steps; wait for the last.
const SETTLE: Duration = Duration::from_millis(200);
/// A folder that can't be watched (or is not there yet) is looked at this often.
const LOOK_AGAIN: Duration = Duration::from_secs(20);
/// Largest manifest read.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("cannot read the manifest {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the manifest {path} is larger than {MANIFEST_BYTES_MAX} bytes")]
    TooLarge { path: PathBuf },
    #[error("the manifest {path} is no Pod: {why}")]
    Parse { path: PathBuf, why: String },
}

pub(crate) async fn run(dir: PathBuf, node_name: String, updates: mpsc::Sender<Update>) {
    let mut last: Option<Vec<Arc<Pod>>> = None;
    loop {
        let uids = |pods: &[Arc<Pod>]| -> Vec<Option<String>> {
            pods.iter().map(|pod| pod.metadata.uid.clone()).collect()
        };
        match read_folder(&dir, &node_name) {
            Ok(pods) if last.as_deref().map(uids) != Some(uids(&pods)) => {
                info!(dir = %dir.display(), pods = pods.len(), "static pods");
                last = Some(pods.clone());
                if updates.send(Update::Manifests(pods)).await.is_err() {
                    return;
                }
            }
            Ok(_) => {}
            Err(error) => {
                warn!(dir = %dir.display(), %error, "static pods stay as they are: the folder can't be read");
            }
        }
        if let Err(error) = wait_for_change(&dir).await {
            tracing::debug!(dir = %dir.display(), %error, "the folder is not watched");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

async fn wait_for_change(dir: &Path) -> std::io::Result<()> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE_SELF;
    inotify.add_watch(dir, flags)?;
    let fd = inotify.as_fd().try_clone_to_owned()?;
    // Any descriptor that can be polled will do; only its readiness is used.
    let ready = tokio::net::unix::pipe::Receiver::from_owned_fd_unchecked(fd)?;
    // Changes between the last look and this watch would be missed, hence the time limit.
    if tokio::time::timeout(LOOK_AGAIN, ready.readable()).await.is_ok() {
        tokio::time::sleep(SETTLE).await;
    }
    Ok(())
}

/// What the folder holds; nothing where there is none. An error says nothing of what it holds.
fn read_folder(dir: &Path, node_name: &str) -> std::io::Result<Vec<Arc<Pod>>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut paths =
        entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    paths.retain(|path| {
        let hidden = path.file_name().and_then(|n| n.to_str()).is_none_or(|n| n.starts_with('.'));
        !hidden && path.is_file()
    });
    paths.sort();
    let mut pods = Vec::new();
    for path in paths {
        match read_manifest(&path, node_name) {
            Ok(pod) => pods.push(Arc::new(pod)),
            Err(ManifestError::Read { source, .. }) if is_of_the_host(&source) => {
                return Err(source);
            }
            Err(error) => {
                warn!(error = %crate::connection::chain(&error), "a manifest is left out")
            }
        }
    }
    Ok(pods)
}

/// Whether reading failed for a reason that has nothing to do with the file.
fn is_of_the_host(error: &std::io::Error) -> bool {
    let reasons = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EIO];
    error.raw_os_error().is_some_and(|code| reasons.contains(&code))
}

fn read_manifest(path: &Path, node_name: &str) -> Result<Pod, ManifestError> {
    let failed = |source| ManifestError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(failed)?.len() > MANIFEST_BYTES_MAX {
        return Err(ManifestError::TooLarge { path: path.to_owned() });
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    parse(&text, node_name).map_err(|why| ManifestError::Parse { path: path.to_owned(), why })
}

/// A Pod from YAML or JSON, as it will run on this node.
pub(crate) fn parse(text: &str, node_name: &str) -> Result<Pod, String> {
    let value: serde_json::Value = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    let field = |name: &str| value.get(name).and_then(serde_json::Value::as_str);
    if (field("apiVersion"), field("kind")) != (Some("v1"), Some("Pod")) {
        return Err("apiVersion must be v1 and kind Pod".into());
    }
    let mut pod: Pod = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let name = pod.metadata.name.clone().filter(|name| !name.is_empty()).ok_or("no name")?;
    let spec = pod.spec.as_mut().ok_or("no spec")?;
    if spec.containers.is_empty() {
        return Err("no containers".into());
    }
    let hash = &hex(ring::digest::digest(
        &ring::digest::SHA256,
        format!("{node_name}\n{text}").as_bytes(),
    )
    .as_ref())[..32];
    spec.node_name = Some(node_name.to_owned());
    spec.restart_policy.get_or_insert_with(|| "Always".to_owned());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".to_owned());
    let tolerations = spec.tolerations.get_or_insert_with(Vec::new);
    tolerations.push(Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Toleration::default()
    });
    pod.metadata.name = Some(format!("{name}-{node_name}"));
    pod.metadata.namespace.get_or_insert_with(|| "default".to_owned());
    pod.metadata.uid = Some(hash.to_owned());
    let annotations = pod.metadata.annotations.get_or_insert_with(Default::default);
    for (key, value) in [
        (SOURCE_ANNOTATION, "file".to_owned()),
        (HASH_ANNOTATION, hash.to_owned()),
        (SEEN_ANNOTATION, Timestamp::now().to_string()),
    ] {
        annotations.insert(key.to_owned(), value);
    }
    Ok(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_cannot_be_read_is_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        std::fs::write(&file, "kind: Service").unwrap();
        assert_eq!(read_folder(dir.path(), "n1").unwrap().len(), 0);
        assert_eq!(read_folder(&dir.path().join("none"), "n1").unwrap().len(), 0);
        assert!(read_folder(&file, "n1").is_err());
        assert!(is_of_the_host(&std::io::Error::from_raw_os_error(libc::EMFILE)));
        assert!(!is_of_the_host(&std::io::Error::from_raw_os_error(libc::EACCES)));
    }

    #[test]
    fn a_manifest_becomes_this_nodes_pod() {
        let yaml = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - {name: c, image: x}\n";
        let pod = parse(yaml, "n1").unwrap();
        assert_eq!(pod.metadata.name.as_deref(), Some("web-n1"));
        assert_eq!(pod.metadata.uid, parse(yaml, "n1").unwrap().metadata.uid);
        assert_ne!(
            pod.metadata.uid,
            parse(&yaml.replace("image: x", "image: img2"), "n1").unwrap().metadata.uid
        );
        assert_eq!(pod.spec.unwrap().node_name.as_deref(), Some("n1"));
        for bad in [
            "",
            "a: [",
            "apiVersion: v1\nkind: Service\n",
            "apiVersion: v1\nkind: Pod\nmetadata: {}\n",
        ] {
            assert!(parse(bad, "n1").is_err(), "{bad:?}");
        }
    }
}
