//! What goes away with a container or a pod: processes, network, roots, logs, records. Folders may
//! hold half a million files, so they are removed beside the agent's one thread, a few at a time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use monitor::protocol::ContainerState;
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

use crate::connection::chain;
use crate::context::Context;
use crate::pod::state::{Sandbox as SandboxState, doubled};
use crate::pod::worker::{Done, Worker};
use crate::pod::{container, sandbox, spec};
use crate::volume::{self, VolumeError};

/// Folders removed at a time: other work finds a blocking thread free.
const REMOVALS_MAX: usize = 2;
const REMOVE_RETRY_FIRST: Duration = Duration::from_secs(1);
const REMOVE_RETRY_MAX: Duration = Duration::from_secs(30);

static REMOVALS: Semaphore = Semaphore::const_new(REMOVALS_MAX);

/// Unmounts and removes a folder, off the agent's thread.
pub(crate) async fn remove(dir: PathBuf) -> Result<(), VolumeError> {
    let failed = |path: PathBuf, error| VolumeError::Remove {
        path,
        source: std::io::Error::other::<Box<dyn std::error::Error + Send + Sync>>(error),
    };
    let path = dir.clone();
    let turn = match REMOVALS.acquire().await {
        Ok(turn) => turn,
        Err(error) => return Err(failed(path, error.into())),
    };
    let removed = tokio::task::spawn_blocking(move || volume::remove(&dir)).await;
    drop(turn);
    removed.unwrap_or_else(|error| Err(failed(path, error.into())))
}

impl Worker {
    /// Two attempts are kept: the current one and the one before it.
    pub(crate) fn forget_attempt(&mut self, name: &str, attempt: u32) {
        let context = self.context.clone();
        let (uid, name) = (spec::uid(&self.pod).to_owned(), name.to_owned());
        let log = container::log_path(&context.config, &self.pod, &name, attempt);
        let dir = self.pod_dir().join("containers").join(&name).join(attempt.to_string());
        self.ops.push(Box::pin(async move {
            let pods = context.engine.list().await.unwrap_or_default();
            let own = pods.get(&uid).into_iter().flatten();
            for state in own.filter(|s| s.name == name && s.attempt <= attempt) {
                if let Err(error) = context.engine.delete(&state.id).await {
                    warn!(id = %state.id, error = %chain(&error), "an old container was not deleted");
                }
            }
            remove_logs(&log);
            if let Err(error) = remove(dir).await {
                warn!(error = %chain(&error), "an old container's folder was not removed");
            }
            Done::Nothing
        }));
    }

    pub(crate) fn remove_sandbox(&mut self) {
        self.observed.sandbox = SandboxState::Removing;
        let (context, pod, pod_dir) = (self.context.clone(), self.pod.clone(), self.pod_dir());
        let pause = doubled(REMOVE_RETRY_FIRST, self.removal_failures, REMOVE_RETRY_MAX);
        self.ops.push(Box::pin(async move {
            let result = async {
                delete_alive(&context, spec::uid(&pod)).await?;
                if !spec::host_network(&pod) {
                    context.netd.detach(spec::uid(&pod)).await.map_err(|error| chain(&error))?;
                }
                remove(pod_dir).await.map_err(|error| chain(&error))?;
                sandbox::remove(&context.config, &pod).map_err(|error| chain(&error))
            };
            let result = result.await;
            if result.is_err() {
                tokio::time::sleep(pause).await;
            }
            Done::SandboxRemoved(result)
        }));
    }

    /// The root of a container that has ended is of no more use; its record stays for the logs.
    pub(crate) fn release_root(&mut self, state: &ContainerState) {
        let Some(dir) = state.annotations.get(container::ATTEMPT_DIR) else { return };
        let dir = PathBuf::from(dir);
        self.ops.push(Box::pin(async move {
            for part in ["sub-paths", "rootfs", "upper", "work"] {
                if let Err(error) = remove(dir.join(part)).await {
                    debug!(error = %chain(&error), "a root is still busy");
                }
            }
            Done::Nothing
        }));
    }

    /// Everything that outlives the pod's processes: records, logs, checkpoint, the API object.
    pub(crate) fn finalize(&self) -> impl Future<Output = ()> + Send + 'static {
        let (context, pod) = (self.context.clone(), self.pod.clone());
        let (origin, gone) = (self.origin.clone(), self.gone);
        async move {
            if !gone {
                crate::pod::report::delete_from_api(&context, &pod, &origin).await;
            }
            let uid = spec::uid(&pod).to_owned();
            let pods = context.engine.list().await.unwrap_or_default();
            for state in pods.get(&uid).into_iter().flatten() {
                if let Err(error) = context.engine.delete(&state.id).await {
                    warn!(id = %state.id, error = %chain(&error), "a container was not deleted");
                }
            }
            let logs = container::log_dir(&context.config, &pod);
            for dir in [logs, context.config.pods_dir().join(&uid)] {
                if let Err(error) = remove(dir).await {
                    warn!(error = %chain(&error), "a folder of a pod was not removed");
                }
            }
            context.tokens.forget(&pod);
            context.checkpoint.remove_pod(&uid);
            info!(pod = %spec::describe(&pod), "the pod is gone");
        }
    }
}

/// The pod's init, and whatever was made but is of no worker's knowledge; each would keep the cgroup.
async fn delete_alive(context: &Context, uid: &str) -> Result<(), String> {
    let pods = context.engine.list().await.map_err(|error| chain(&error))?;
    for state in pods.get(uid).into_iter().flatten().filter(|state| state.exit.is_none()) {
        context.engine.delete(&state.id).await.map_err(|error| chain(&error))?;
    }
    Ok(())
}

/// An attempt's log and what was rotated away from it (`0.log`, `0.log.20260101-…`).
fn remove_logs(log: &Path) {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|n| n.to_str())) else {
        return;
    };
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let file = entry.file_name();
        let own = file.to_str().is_some_and(|file| {
            file == name || file.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))
        });
        if own && let Err(error) = std::fs::remove_file(entry.path()) {
            warn!(path = %entry.path().display(), %error, "an old log was not removed");
        }
    }
}
