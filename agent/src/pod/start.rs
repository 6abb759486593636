//! Starting one container: image, configuration, root, creation, start. Each failure becomes the
//! waiting reason and the events that Kubernetes gives for it.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use monitor::protocol::ContainerState;
use tokio_util::sync::CancellationToken;

use crate::connection::chain;
use crate::context::Context;
use crate::engine::{EngineError, PullPolicy, PullRequest};
use crate::events::Kind;
use crate::objects::References;
use crate::pod::container::{self, ImageFacts};
use crate::pod::ended::seconds;
use crate::pod::env::{self, EnvError};
use crate::pod::memory::{self, Run};
use crate::pod::sandbox::Sandbox;
use crate::pod::state::Waiting;
use crate::pod::{clean, plan, rootfs, spec};
use crate::volume::Mounted;

/// Everything a start needs; owned, since it runs beside the worker.
pub(crate) struct Start {
    pub(crate) context: Arc<Context>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) container: Container,
    pub(crate) attempt: u32,
    pub(crate) sandbox: Sandbox,
    pub(crate) mounted: Mounted,
    pub(crate) references: Arc<References>,
    pub(crate) pod_dir: PathBuf,
}

#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) id: String,
    pub(crate) started_at: Timestamp,
    pub(crate) image: String,
    pub(crate) image_id: String,
    pub(crate) stop_signal: Option<String>,
    /// Its end, when that came before its start was known.
    pub(crate) ended: Option<Box<ContainerState>>,
}

#[derive(Debug)]
pub(crate) enum StartFailure {
    /// The pod ends; nothing was made.
    Cancelled,
    /// The image could not be had; the second says what is shown while backing off.
    Image(Waiting, Waiting),
    /// Tried again soon; nothing ran.
    Config(Waiting),
    /// The container was made but its program can't run: counts as an end (`StartError`, 128).
    Run { id: String, message: String, image: String, image_id: String },
}

impl Start {
    pub(crate) async fn run(self, cancel: CancellationToken) -> Result<Started, StartFailure> {
        let image = tokio::select! {
            image = self.image() => image?,
            () = cancel.cancelled() => return Err(StartFailure::Cancelled),
        };
        self.references.ready().await;
        let id = new_id();
        let spec = self.prepare(&image, &id).map_err(|failure| {
            self.warn("Failed", format!("Error: {}", failure.message));
            StartFailure::Config(failure)
        })?;
        let created = self.context.engine.create(spec).await;
        if let Err(error) = created {
            return Err(self.create_failure(error, &id, &image).await);
        }
        self.tell("Created", "Container created".to_owned());
        self.remember().await;
        match self.context.engine.start(&id).await {
            Ok(state) => {
                self.tell("Started", "Container started".to_owned());
                let lifecycle = self.container.lifecycle.as_ref();
                let own = lifecycle.and_then(|lifecycle| lifecycle.stop_signal.clone());
                Ok(Started {
                    id,
                    started_at: seconds(state.started_at.unwrap_or(state.created_at)),
                    image: image.name,
                    image_id: image.id,
                    stop_signal: own.or(image.stop_signal),
                    ended: state.exit.is_some().then(|| Box::new(state)),
                })
            }
            Err(error) => {
                let message = chain(&error);
                self.warn("Failed", format!("Error: {message}"));
                if let Err(error) = self.context.engine.delete(&id).await {
                    tracing::warn!(id, error = %chain(&error), "a failed container was not deleted");
                }
                Err(StartFailure::Run { id, message, image: image.name, image_id: image.id })
            }
        }
    }

    /// Before it runs: what must not run twice doesn't, whenever the power fails.
    async fn remember(&self) {
        let once =
            self.pod.spec.as_ref().is_some_and(|spec| plan::runs_once(spec, &self.container));
        if once {
            let name = (spec::uid(&self.pod).to_owned(), self.container.name.clone());
            memory::save_run(&self.context.checkpoint, name, Run::Started).await;
        }
    }

    async fn create_failure(
        &self,
        error: EngineError,
        id: &str,
        image: &ImageFacts,
    ) -> StartFailure {
        let message = chain(&error);
        self.warn("Failed", format!("Error: {message}"));
        if let Err(error) = clean::remove(self.attempt_dir()).await {
            tracing::warn!(id, error = %chain(&error), "a root was not removed");
        }
        if error.is_container_fault() {
            return StartFailure::Run {
                id: id.to_owned(),
                message,
                image: image.name.clone(),
                image_id: image.id.clone(),
            };
        }
        StartFailure::Config(Waiting::new("CreateContainerError", message))
    }

    fn tell(&self, reason: &'static str, message: String) {
        let name = Some(self.container.name.as_str());
        self.context.recorder.pod(&self.pod, name, (Kind::Normal, reason), message);
    }

    fn warn(&self, reason: &'static str, message: String) {
        let name = Some(self.container.name.as_str());
        self.context.recorder.pod(&self.pod, name, (Kind::Warning, reason), message);
    }

    /// Folder of this attempt's root and termination message.
    fn attempt_dir(&self) -> PathBuf {
        self.pod_dir.join("containers").join(&self.container.name).join(self.attempt.to_string())
    }

    async fn image(&self) -> Result<ImageFacts, StartFailure> {
        let name = self.container.image.clone().unwrap_or_default();
        let policy = PullPolicy::of(&self.container);
        let engine = &self.context.engine;
        let present = engine.image_present(&name).map_err(|e| self.pull_failure(&name, &e))?;
        if policy != PullPolicy::Always
            && let Some(image) = present
        {
            self.tell(
                "Pulled",
                format!(
                    "Container image {name:?} already present on machine and can be accessed by the pod"
                ),
            );
            return Ok(image);
        }
        if policy == PullPolicy::Never {
            let message =
                format!("Container image {name:?} is not present with pull policy of Never");
            self.warn("ErrImageNeverPull", message.clone());
            let waiting = Waiting::new("ErrImageNeverPull", message);
            self.warn("Failed", "Error: ErrImageNeverPull".to_owned());
            return Err(StartFailure::Config(waiting));
        }
        self.tell("Pulling", format!("Pulling image {name:?}"));
        let begun = std::time::Instant::now();
        self.references.ready().await;
        let request =
            PullRequest { image: name.clone(), secrets: pull_secrets(&self.pod, &self.references) };
        match engine.pull(request).await {
            Ok(image) => {
                let took = go_seconds(begun.elapsed());
                let size = image.size_bytes;
                self.tell(
                    "Pulled",
                    format!(
                        "Successfully pulled image {name:?} in {took} ({took} including waiting). \
                         Image size: {size} bytes."
                    ),
                );
                Ok(image)
            }
            Err(error) => Err(self.pull_failure(&name, &error)),
        }
    }

    fn pull_failure(&self, name: &str, error: &EngineError) -> StartFailure {
        let (reason, message) = match error {
            EngineError::InvalidImageName { why, .. } => {
                ("InvalidImageName", format!("Failed to apply default image tag {name:?}: {why}"))
            }
            error => ("ErrImagePull", chain(error)),
        };
        if reason == "InvalidImageName" {
            self.warn("InspectFailed", message.clone());
            self.warn("Failed", format!("Error: {reason}"));
            return StartFailure::Config(Waiting::new(reason, message));
        }
        self.warn("Failed", format!("Failed to pull image {name:?}: {message}"));
        self.warn("Failed", format!("Error: {reason}"));
        let back_off = format!("Back-off pulling image {name:?}: {reason}: {message}");
        StartFailure::Image(
            Waiting::new(reason, message),
            Waiting::new("ImagePullBackOff", back_off),
        )
    }

    /// Everything up to the monitor's specification.
    fn prepare(
        &self,
        image: &ImageFacts,
        id: &str,
    ) -> Result<monitor::protocol::ContainerSpec, Waiting> {
        let bad_config = |message: String| Waiting::new("CreateContainerConfigError", message);
        let failed = |message: String| Waiting::new("CreateContainerError", message);
        container::verify_non_root(&self.pod, &self.container, image)
            .map_err(|error| bad_config(error.to_string()))?;
        let env = self.environment().map_err(|error| bad_config(error.to_string()))?;
        let attempt_dir = self.attempt_dir();
        let rootfs =
            rootfs::mount(&attempt_dir, &image.layers).map_err(|error| failed(chain(&error)))?;
        let user = container::wanted_user(&self.pod, &self.container, image);
        let account = rootfs::account(&rootfs, &user).map_err(|error| failed(chain(&error)))?;
        make_termination_log(&container::termination_log(&attempt_dir))
            .map_err(|error| failed(error.to_string()))?;
        let log = container::log_path(
            &self.context.config,
            &self.pod,
            &self.container.name,
            self.attempt,
        );
        if let Some(folder) = log.parent() {
            std::fs::create_dir_all(folder).map_err(|error| failed(error.to_string()))?;
        }
        container::build(&container::Inputs {
            config: &self.context.config,
            pod: &self.pod,
            container: &self.container,
            attempt: self.attempt,
            id,
            image,
            sandbox: &self.sandbox,
            volumes: &self.mounted.paths,
            env: &env,
            pod_dir: &self.pod_dir,
            attempt_dir: &attempt_dir,
            rootfs: &rootfs,
            account: &account,
            node_memory_bytes: self.context.host.memory_bytes,
        })
        .map_err(|error| bad_config(chain(&error)))
    }

    fn environment(&self) -> Result<Vec<(String, String)>, EnvError> {
        env::environment(&env::Inputs {
            pod: &self.pod,
            container: &self.container,
            objects: &*self.references,
            services: &self.context.services.visible(spec::namespace(&self.pod)),
            pod_ips: &self.sandbox.ips,
            node: &self.context.node_facts(),
        })
    }
}

/// Writable by whoever the container runs as, as kubelet makes it.
fn make_termination_log(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, b"")?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
}

/// 64 hexadecimal digits, as other runtimes' ids.
fn new_id() -> String {
    let mut bytes = [0u8; 32];
    if ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes).is_err() {
        // Unique is enough: names are not secrets.
        let now = Timestamp::now().as_nanosecond().to_be_bytes();
        bytes[..16].copy_from_slice(&now);
    }
    crate::identity::hex(&bytes)
}

/// The contents of the pod's pull secrets that are there.
fn pull_secrets(pod: &Pod, references: &References) -> Vec<Vec<u8>> {
    let names = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    let mut found = Vec::new();
    for name in names {
        let env::Lookup::Found(secret) = env::Objects::secret(references, &name.name) else {
            continue;
        };
        let data = secret.data.as_ref();
        let json = data.and_then(|d| d.get(".dockerconfigjson").or_else(|| d.get(".dockercfg")));
        found.extend(json.map(|bytes| bytes.0.clone()));
    }
    found
}

/// A duration in Go's way: `1.234s`, `56ms`.
fn go_seconds(duration: std::time::Duration) -> String {
    if duration.as_secs() == 0 {
        return format!("{}ms", duration.as_millis());
    }
    format!("{}s", (duration.as_secs_f64() * 1000.0).round() / 1000.0)
}
