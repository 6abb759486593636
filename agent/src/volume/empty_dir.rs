//! `emptyDir`: a folder, or memory, that lives as long as the pod. What it belongs to and who may
//! write to it is settled when it is made: from then on its content is the containers'.

use std::path::Path;

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};

use crate::pod::spec;
use crate::volume::mounts::ensure_tmpfs;
use crate::volume::{fs_group, ownership};

/// kubelet makes them writable for everybody.
const MODE: u32 = 0o777;

pub(crate) fn ensure(path: &Path, source: &EmptyDirVolumeSource, pod: &Pod) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("mkdir {}: {error}", path.display());
    match source.medium.as_deref().unwrap_or_default() {
        "" if path.exists() => Ok(()),
        "" => make(path, fs_group(pod)).map_err(failed),
        "Memory" => {
            std::fs::create_dir_all(path).map_err(failed)?;
            ensure_tmpfs(path, &memory_options(memory_bytes(source, pod), fs_group(pod)))
        }
        other => Err(format!("unknown storage medium {other:?}")),
    }
}

/// Made under a name that no volume has, and renamed: a volume that is there is ready.
fn make(path: &Path, group: Option<u32>) -> std::io::Result<()> {
    let fresh = path.with_extension("new");
    std::fs::create_dir_all(&fresh)?;
    ownership::set_folder(&fresh, MODE, group)?;
    std::fs::rename(&fresh, path)
}

fn memory_options(size_bytes: Option<u64>, group: Option<u32>) -> String {
    let mut options = match group {
        Some(group) => format!("mode=2777,gid={group}"),
        None => "mode=0777".to_owned(),
    };
    if let Some(bytes) = size_bytes {
        options.push_str(&format!(",size={bytes}"));
    }
    options
}

/// The smaller of the size limit and the pod's memory limit (Kubernetes'
/// `SizeMemoryBackedVolumes`).
fn memory_bytes(source: &EmptyDirVolumeSource, pod: &Pod) -> Option<u64> {
    let limit = source.size_limit.as_ref().and_then(|quantity| spec::parse_units(&quantity.0));
    let of_pod = spec::pod_limit(pod, "memory");
    match (limit.filter(|bytes| *bytes > 0), of_pod) {
        (Some(limit), Some(of_pod)) => Some(limit.min(of_pod)),
        (limit, of_pod) => limit.or(of_pod),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({
            "spec": {"containers": [], "securityContext": {"fsGroup": 2000}}
        }))
        .unwrap()
    }

    #[test]
    fn the_group_is_given_once_and_never_again() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volumes/data");
        let mode = |path: &Path| {
            let meta = std::fs::metadata(path).unwrap();
            (meta.mode() & 0o7777, meta.gid())
        };
        ensure(&path, &EmptyDirVolumeSource::default(), &pod()).unwrap();
        assert_eq!(mode(&path), (0o2777, 2000));
        let (key, outside) = (path.join("key"), dir.path().join("outside"));
        for file in [&key, &outside] {
            std::fs::write(file, b"").unwrap();
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        std::os::unix::fs::symlink(&outside, path.join("link")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        ensure(&path, &EmptyDirVolumeSource::default(), &pod()).unwrap();
        assert_eq!(mode(&path).0, 0o700);
        assert_eq!(mode(&key).0, 0o600);
        assert_eq!(mode(&outside).0, 0o600);
    }

    #[test]
    fn memory_is_the_groups_from_the_start() {
        assert_eq!(memory_options(None, None), "mode=0777");
        assert_eq!(memory_options(Some(64), Some(20)), "mode=2777,gid=20,size=64");
    }
}
