//! A pod's volumes: made before its containers, refreshed while it runs, unmounted when it is gone.
//! One file per kind of content; this one knows where each lies on disk and in which order.
//!
//! A volume lies at `pods/<uid>/volumes/<plugin>/<name>` of the data folder, as kubelet's.

pub(crate) mod atomic;
pub(crate) mod empty_dir;
pub(crate) mod host_path;
mod mounts;
pub(crate) mod ownership;
pub(crate) mod payload;
pub(crate) mod sub_path;
pub(crate) mod token;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::objects::References;
use crate::pod::field::NodeFacts;
use crate::pod::spec;
use crate::volume::token::Tokens;

pub(crate) use crate::volume::mounts::{is_mount_point, remove};

#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("MountVolume.SetUp failed for volume {volume:?} : {why}")]
    SetUp { volume: String, why: String },
    #[error("cannot tell what is mounted")]
    Mounts { source: std::io::Error },
    #[error("cannot unmount {path}")]
    Unmount { path: PathBuf, source: std::io::Error },
    #[error("cannot remove {path}")]
    Remove { path: PathBuf, source: std::io::Error },
}

/// What setting volumes up needs to know.
pub(crate) struct Inputs<'a> {
    pub(crate) pod: &'a Pod,
    /// `pods/<uid>` of the data folder.
    pub(crate) pod_dir: &'a Path,
    pub(crate) objects: &'a References,
    pub(crate) tokens: &'a Tokens,
    pub(crate) pod_ips: &'a [IpAddr],
    pub(crate) node: &'a NodeFacts,
}

/// Where each volume is on the node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mounted {
    pub(crate) paths: BTreeMap<String, PathBuf>,
    /// When a token wants to be renewed.
    pub(crate) refresh_at: Option<Timestamp>,
}

/// Makes every volume of the pod, or brings what is there up to date. Idempotent.
pub(crate) async fn ensure(inputs: &Inputs<'_>) -> Result<Mounted, VolumeError> {
    let mut mounted = Mounted::default();
    let volumes = inputs.pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref());
    for volume in volumes.unwrap_or_default() {
        let path = ensure_one(inputs, volume, &mut mounted.refresh_at)
            .await
            .map_err(|why| VolumeError::SetUp { volume: volume.name.clone(), why })?;
        mounted.paths.insert(volume.name.clone(), path);
    }
    Ok(mounted)
}

async fn ensure_one(
    inputs: &Inputs<'_>,
    volume: &Volume,
    refresh_at: &mut Option<Timestamp>,
) -> Result<PathBuf, String> {
    let dir = |plugin: &str| inputs.pod_dir.join("volumes").join(plugin).join(&volume.name);
    if let Some(source) = &volume.host_path {
        return host_path::ensure(source);
    }
    if let Some(source) = &volume.empty_dir {
        let path = dir("kubernetes.io~empty-dir");
        empty_dir::ensure(&path, source, inputs.pod)?;
        return Ok(path);
    }
    let (plugin, memory) =
        payload_plugin(volume).ok_or_else(|| "no volume plugin matched".to_owned())?;
    let path = dir(plugin);
    let (files, renew) = payload::collect(inputs, volume).await?;
    if let Some(at) = renew {
        *refresh_at = Some(refresh_at.map_or(at, |have| have.min(at)));
    }
    std::fs::create_dir_all(&path).map_err(|error| format!("mkdir {}: {error}", path.display()))?;
    if memory {
        mounts::ensure_tmpfs(&path, "mode=0755")?;
    }
    atomic::write(&path, &files, fs_group(inputs.pod)).map_err(|error| error.to_string())?;
    Ok(path)
}

/// The plugin of a volume whose files the agent writes, and whether they are in memory only.
fn payload_plugin(volume: &Volume) -> Option<(&'static str, bool)> {
    match volume {
        Volume { config_map: Some(_), .. } => Some(("kubernetes.io~configmap", false)),
        Volume { secret: Some(_), .. } => Some(("kubernetes.io~secret", true)),
        Volume { downward_api: Some(_), .. } => Some(("kubernetes.io~downward-api", true)),
        Volume { projected: Some(_), .. } => Some(("kubernetes.io~projected", true)),
        _ => None,
    }
}

/// Whether containers only ever read the volume, whatever their mounts say.
pub(crate) fn is_read_only(volume: &Volume) -> bool {
    payload_plugin(volume).is_some()
}

pub(crate) fn fs_group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    context.fs_group.and_then(|group| u32::try_from(group).ok())
}

/// The user that all of the pod's containers run as, when they agree on one.
pub(crate) fn common_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let mut users = spec::init_containers(spec).iter().chain(&spec.containers).map(|container| {
        container.security_context.as_ref().and_then(|context| context.run_as_user).or(of_pod)
    });
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

#[cfg(test)]
#[path = "volume_tests.rs"]
mod tests;
