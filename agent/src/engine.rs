//! Containers and images as pods' workers ask for them: the monitor's client and the image store
//! behind one door, with the errors sorted by what Kubernetes makes of them.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Container;
use monitor::protocol::{ContainerSpec, ContainerState, ExecSpec, FailureKind, SignalTarget};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::image::{
    CredentialsError, Image, ImageStore, PullError, Reference, parse_docker_config,
};
use crate::pod::container::ImageFacts;
use crate::runtime::{Runtime, RuntimeError};

/// Kept of what a probe's or hook's command prints (Kubernetes 1.36, `maxReadLength`).
const CAPTURE_BYTES_MAX: u64 = 10 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("couldn't parse image name {name:?}: {why}")]
    InvalidImageName { name: String, why: String },
    #[error(transparent)]
    Pull(#[from] PullError),
    #[error("the pull secrets can't be read")]
    Secrets(#[from] CredentialsError),
    #[error("the output of a command was not read")]
    Output(#[from] std::io::Error),
}

impl EngineError {
    /// The container as specified can't run, now or later.
    pub(crate) fn is_container_fault(&self) -> bool {
        match self {
            EngineError::Runtime(error) => {
                matches!(error.kind(), Some(FailureKind::Executable | FailureKind::Invalid))
            }
            _ => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl PullPolicy {
    /// As given, or Kubernetes' default: always for `:latest` and untagged names.
    pub(crate) fn of(container: &Container) -> PullPolicy {
        match container.image_pull_policy.as_deref() {
            Some("Always") => PullPolicy::Always,
            Some("Never") => PullPolicy::Never,
            Some("IfNotPresent") => PullPolicy::IfNotPresent,
            _ => {
                let image = container.image.as_deref().unwrap_or_default();
                let last = image.rsplit('/').next().unwrap_or_default();
                let latest = !image.contains('@')
                    && last.split_once(':').is_none_or(|(_, tag)| tag == "latest");
                if latest { PullPolicy::Always } else { PullPolicy::IfNotPresent }
            }
        }
    }
}

pub(crate) struct PullRequest {
    pub(crate) image: String,
    /// `.dockerconfigjson` of the pod's pull secrets.
    pub(crate) secrets: Vec<Vec<u8>>,
}

/// What a command of a probe or hook left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Captured {
    pub(crate) code: i32,
    pub(crate) output: String,
}

pub(crate) struct Engine {
    pub(crate) runtime: Runtime,
    pub(crate) images: ImageStore,
}

fn reference(name: &str) -> Result<Reference, EngineError> {
    name.parse().map_err(|error: crate::image::ReferenceError| EngineError::InvalidImageName {
        name: name.to_owned(),
        why: error.to_string(),
    })
}

/// An image as containers and their statuses need it.
fn facts(reference: &Reference, image: Image) -> ImageFacts {
    let digest = image.digests.iter().find(|digest| digest.starts_with(&reference.name()));
    let id = digest.or(image.digests.first()).cloned().unwrap_or_else(|| image.id.clone());
    ImageFacts {
        name: reference.to_string(),
        id,
        layers: image.layers,
        entrypoint: image.config.entrypoint,
        cmd: image.config.cmd,
        env: image.config.env,
        user: image.config.user,
        working_dir: image.config.working_dir,
        stop_signal: Some(image.config.stop_signal).filter(|signal| !signal.is_empty()),
        size_bytes: image.size_bytes,
    }
}

impl Engine {
    pub(crate) fn new(runtime: Runtime, images: ImageStore) -> Engine {
        Engine { runtime, images }
    }

    pub(crate) async fn create(&self, spec: ContainerSpec) -> Result<ContainerState, EngineError> {
        Ok(self.runtime.create(spec).await?)
    }

    pub(crate) async fn start(&self, id: &str) -> Result<ContainerState, EngineError> {
        Ok(self.runtime.start(id).await?)
    }

    /// The image, if it is on this node.
    pub(crate) fn image_present(&self, name: &str) -> Result<Option<ImageFacts>, EngineError> {
        let reference = reference(name)?;
        Ok(self.images.get(&reference).map(|image| facts(&reference, image)))
    }

    pub(crate) async fn pull(&self, request: PullRequest) -> Result<ImageFacts, EngineError> {
        let reference = reference(&request.image)?;
        let mut credentials = Vec::new();
        for secret in &request.secrets {
            credentials.extend(parse_docker_config(secret)?);
        }
        let image = self.images.pull(&reference, &credentials, None).await?;
        Ok(facts(&reference, image))
    }

    pub(crate) async fn signal(
        &self,
        id: &str,
        signal: i32,
        target: SignalTarget,
    ) -> Result<(), EngineError> {
        Ok(self.runtime.signal(id, signal, target).await?)
    }

    pub(crate) async fn delete(&self, id: &str) -> Result<(), EngineError> {
        Ok(self.runtime.delete(id).await?)
    }

    /// All containers, by pod.
    pub(crate) async fn list(&self) -> Result<HashMap<String, Vec<ContainerState>>, EngineError> {
        let mut pods: HashMap<String, Vec<ContainerState>> = HashMap::new();
        for state in self.runtime.list().await? {
            pods.entry(state.pod_uid.clone()).or_default().push(state);
        }
        Ok(pods)
    }

    /// Runs a command in a container and waits for its end. Dropped half-way, it kills the command.
    pub(crate) async fn exec_capture(
        &self,
        id: &str,
        args: Vec<String>,
    ) -> Result<Captured, EngineError> {
        let spec =
            ExecSpec { id: id.to_owned(), args, stdout: true, stderr: true, ..ExecSpec::default() };
        let mut session = self.runtime.exec(spec).await?;
        let (stdout, stderr) = (session.stdout.take(), session.stderr.take());
        let mut guard = Killer { session: Some(session) };
        let (out, err) = tokio::try_join!(drain(stdout), drain(stderr))?;
        let exit = match guard.session.as_mut() {
            Some(session) => session.wait().await?,
            None => return Err(RuntimeError::Disconnected.into()),
        };
        guard.session = None;
        let output = String::from_utf8_lossy(&[out, err].concat()).into_owned();
        Ok(Captured { code: exit.code, output })
    }
}

/// Kills an exec'd command whose waiter has gone.
struct Killer {
    session: Option<crate::runtime::ExecSession>,
}

impl Drop for Killer {
    fn drop(&mut self) {
        if let Some(mut session) = self.session.take() {
            tokio::spawn(async move {
                if let Err(error) = session.signal(libc::SIGKILL).await {
                    tracing::debug!(%error, "a command that took too long was not killed");
                }
            });
        }
    }
}

/// Reads to the end, keeps the beginning.
async fn drain(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    if let Some(mut stream) = stream {
        (&mut stream).take(CAPTURE_BYTES_MAX).read_to_end(&mut kept).await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_follows_the_tag() {
        for (image, policy) in [
            ("busybox", PullPolicy::Always),
            ("busybox:latest", PullPolicy::Always),
            ("busybox:1.35", PullPolicy::IfNotPresent),
            ("host:5000/a/b", PullPolicy::Always),
            ("host:5000/a/b:1", PullPolicy::IfNotPresent),
            ("a@sha256:0", PullPolicy::IfNotPresent),
        ] {
            let container = Container { image: Some(image.into()), ..Container::default() };
            assert_eq!(PullPolicy::of(&container), policy, "{image}");
        }
    }
}
