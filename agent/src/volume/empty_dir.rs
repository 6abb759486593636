//! `emptyDir`: a folder, or memory, that lives as long as the pod.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};

use crate::pod::spec;
use crate::volume::ensure_tmpfs;

/// kubelet makes them writable for everybody.
const MODE: u32 = 0o777;

pub(crate) fn ensure(path: &Path, source: &EmptyDirVolumeSource, pod: &Pod) -> Result<(), String> {
    let fresh = !path.exists();
    std::fs::create_dir_all(path).map_err(|error| format!("mkdir {}: {error}", path.display()))?;
    match source.medium.as_deref().unwrap_or_default() {
        "" => {}
        "Memory" => ensure_tmpfs(path, memory_bytes(source, pod))?,
        other => return Err(format!("unknown storage medium {other:?}")),
    }
    if fresh {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))
            .map_err(|error| format!("chmod {}: {error}", path.display()))?;
    }
    Ok(())
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
