//! Which node a pod goes to.
//!
//! Owns the queue of unscheduled pods, an incremental picture of the nodes, the decision (pure, [`cycle`]) and the
//! binding. A pure kube client: it runs against any Kubernetes API server and must not know anything of ours.

mod bind;
pub mod cycle;
mod driver;
pub mod node;
pub mod plugin;
mod plugins;
pub mod pod;
mod quantity;
mod queue;
pub mod selector;
pub mod snapshot;

use std::time::Duration;

/// How the scheduler behaves. `Default` is right for a cluster of small devices.
#[derive(Debug, Clone)]
pub struct Config {
    /// Pods whose `spec.schedulerName` is this are ours.
    pub scheduler_name: String,
    /// First wait of a pod that could not be placed or bound (Kubernetes: 1 s).
    pub backoff_initial: Duration,
    /// Longest wait between two attempts for the same pod (Kubernetes: 10 s).
    pub backoff_max: Duration,
    /// Bindings in flight at one time.
    pub bindings_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".into(),
            backoff_initial: Duration::from_secs(1),
            backoff_max: Duration::from_secs(10),
            bindings_max: 16,
        }
    }
}

/// Why the scheduler could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A watch ended for good, which only happens when its task was dropped.
    #[error("the watch of {0} ended")]
    WatchEnded(&'static str),
}

/// Schedules pods until `shutdown` turns true. API errors are retried with backoff, never returned.
pub async fn run(
    client: kube::Client,
    config: Config,
    shutdown: tokio::sync::watch::Receiver<bool>,
) -> Result<(), RunError> {
    tracing::info!(scheduler = %config.scheduler_name, "scheduler starts");
    Box::pin(driver::drive(client, config, shutdown)).await
}
