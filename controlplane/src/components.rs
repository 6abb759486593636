//! Owns where scheduler and controllers run: on this master where it is alone on its datastore, on the elected one where several share it.
//! Elected, each term's writes are fenced. Decides nothing of what they do.

use std::time::Duration;

use apiserver::ApiServer;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::election::{Election, Timing};
use crate::in_process::{self, CONTROLLERS, SCHEDULER};

/// Names of the leases, as upstream's.
const SCHEDULER_LEASE: &str = "kube-scheduler";
const CONTROLLERS_LEASE: &str = "kube-controller-manager";
/// Pause before a term is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Parts of the master that run until they are told to stop.
pub type Tasks = JoinSet<anyhow::Result<&'static str>>;

/// One of the two, as a leader or alone.
#[derive(Debug, Clone)]
enum Component {
    Scheduler,
    Controllers(controllers::Config),
}

impl Component {
    fn user(&self) -> &'static str {
        match self {
            Self::Scheduler => SCHEDULER,
            Self::Controllers(_) => CONTROLLERS,
        }
    }

    fn lease(&self) -> &'static str {
        match self {
            Self::Scheduler => SCHEDULER_LEASE,
            Self::Controllers(_) => CONTROLLERS_LEASE,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Scheduler => "the scheduler",
            Self::Controllers(_) => "the controllers",
        }
    }

    async fn run(self, client: kube::Client, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        match self {
            Self::Scheduler => {
                scheduler::run(client, scheduler::Config::default(), stop).await?;
            }
            Self::Controllers(config) => controllers::run(client, config, stop).await?,
        }
        Ok(())
    }

    /// One term: the writes of earlier ones are shut out, then it runs.
    async fn lead(
        self,
        server: ApiServer,
        identity: String,
        stop: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let fence = loop {
            match server.fence(self.lease(), &identity).await {
                Ok(fence) => break fence,
                // The election ends this where the lease is lost.
                Err(error) => {
                    tracing::warn!(lease = self.lease(), %error, "the term has not begun")
                }
            }
            if *stop.borrow() {
                return Ok(());
            }
            tokio::time::sleep(RETRY).await;
        };
        let client = in_process::fenced_client(server, self.user(), fence);
        self.run(client, stop).await
    }
}

/// Starts scheduler and controllers; `candidate` is this master's name among several.
pub fn spawn(
    tasks: &mut Tasks,
    server: &ApiServer,
    candidate: Option<&str>,
    config: controllers::Config,
    stop: &watch::Receiver<bool>,
) {
    for component in [Component::Scheduler, Component::Controllers(config)] {
        let (server, stop, name) = (server.clone(), stop.clone(), component.name());
        let client = in_process::client(server.clone(), component.user(), &[]);
        match candidate.map(str::to_owned) {
            None => {
                tasks.spawn(async move {
                    component.run(client, stop).await?;
                    Ok(name)
                });
            }
            Some(identity) => {
                let lease = component.lease();
                let election = Election::new(client, lease, identity.clone(), Timing::DEFAULT);
                tasks.spawn(async move {
                    let term =
                        |told| component.clone().lead(server.clone(), identity.clone(), told);
                    election.run(term, stop).await?;
                    Ok(name)
                });
            }
        }
    }
}
