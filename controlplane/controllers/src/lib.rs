//! Every reconciler of the control plane.
//!
//! Each controller is a folder: `plan` decides purely, `mod` watches and applies. All of them share one reflector per
//! kind ([`runtime`]). A pure kube client: it runs against any Kubernetes API server and must not know anything of ours.

mod certificates;
mod claim;
mod cluster;
mod config;
mod daemon_set;
mod deployment;
mod disruption;
mod endpoint_slice;
mod garbage;
mod history;
mod job;
mod kinds;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod pod_gc;
mod replica_set;
mod runtime;
mod service_account;
mod token_cleaner;

use futures::FutureExt;
use tokio::task::JoinSet;

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
    let authority =
        certificates::Authority::new(&config.cluster_ca_cert_pem, &config.cluster_ca_key_pem)
            .map_err(|error| RunError::ClusterCa(error.to_string()))?;
    let (recorder, writer) = runtime::events::recorder(client.clone(), config.clock.clone());
    let cluster = cluster::Cluster::new(client, config, recorder);
    let mut tasks = JoinSet::new();
    tasks.spawn(writer.run());
    let controllers = [
        replica_set::start(&cluster).boxed(),
        deployment::start(&cluster).boxed(),
        daemon_set::start(&cluster).boxed(),
        disruption::start(&cluster).boxed(),
        endpoint_slice::start(&cluster).boxed(),
        job::start(&cluster).boxed(),
        node_lifecycle::start(&cluster).boxed(),
        node_ipam::start(&cluster).boxed(),
        certificates::start(&cluster, authority).boxed(),
        service_account::start(&cluster).boxed(),
        pod_gc::start(&cluster).boxed(),
        token_cleaner::start(&cluster).boxed(),
        namespace::start(&cluster).boxed(),
        garbage::start(&cluster).boxed(),
    ];
    cluster.start(&mut tasks);
    tasks.spawn(async move {
        cluster.synced().await;
        tracing::info!("controllers have their caches");
        futures::future::join_all(controllers).await;
    });
    while !*shutdown.borrow_and_update() {
        tokio::select! {
            changed = shutdown.changed() => if changed.is_err() { break },
            Some(ended) = tasks.join_next() => tracing::error!(?ended, "a controller task ended"),
        }
    }
    // Dropping the set aborts the tasks; everything they do is level-triggered.
    Ok(())
}
