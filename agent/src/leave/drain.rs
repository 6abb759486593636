//! The master's side of leaving: no new pods, the pods there are evicted, the Node deleted. All with
//! the node's own rights.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, EvictParams, ListParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use crate::cli::{complain, say};
use crate::config::Config;
use crate::connection::{Link, chain};
use crate::identity::Identity;
use crate::masters::Masters;
use crate::pod::spec;
use crate::source::is_mirror;

/// A master that doesn't answer by then is away.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(200);
/// An eviction refused by a disruption budget is tried again after this.
const EVICT_AGAIN: Duration = Duration::from_secs(2);

pub(super) struct Master {
    client: kube::Client,
    node: String,
}

impl Master {
    /// The master, when it may be asked and answers.
    pub(super) async fn find(config: &Config, force: bool) -> Option<Master> {
        if force {
            return None;
        }
        let identity = match Identity::load(&config.identity_dir()) {
            Ok(identity) => Arc::new(identity),
            Err(error) => {
                complain(&format!("  no identity: {}", chain(&error)));
                return None;
            }
        };
        let link = Link::new();
        let (run, masters) = (link.clone(), Masters::load(config));
        tokio::spawn(async move { run.run(masters, identity).await });
        let mut live = link.subscribe();
        let answered = tokio::time::timeout(CONNECT_DEADLINE, live.wait_for(Option::is_some)).await;
        if answered.is_err() {
            complain("  the master does not answer");
            return None;
        }
        Some(Master { client: link.client(), node: config.node_name.clone() })
    }

    async fn pods(&self) -> Result<Vec<Pod>, kube::Error> {
        let api: Api<Pod> = Api::all(self.client.clone());
        let params = ListParams::default().fields(&format!("spec.nodeName={}", self.node));
        Ok(api.list(&params).await?.items)
    }

    /// Cordons the node and evicts its pods; those that don't go in time are left to the end.
    pub(super) async fn drain(&self, grace: Duration) -> anyhow::Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let Some(node) = nodes.get_opt(&self.node).await? else { return Ok(()) };
        let patch =
            json!({"metadata": {"uid": node.metadata.uid}, "spec": {"unschedulable": true}});
        nodes
            .patch(&self.node, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .context("the node was not cordoned")?;
        let deadline = Instant::now() + grace;
        let mut next_round = Instant::now();
        loop {
            let pods = self.pods().await?;
            let movable: Vec<&Pod> =
                pods.iter().filter(|pod| !is_mirror(pod) && !is_daemon(pod)).collect();
            if movable.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                say(&format!("  {} pods did not move in time; they are stopped", movable.len()));
                return Ok(());
            }
            if Instant::now() >= next_round {
                for pod in &movable {
                    self.evict(pod).await;
                }
                next_round = Instant::now() + EVICT_AGAIN;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn evict(&self, pod: &Pod) {
        if pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), spec::namespace(pod));
        if let Err(error) = api.evict(spec::name(pod), &EvictParams::default()).await {
            tracing::debug!(pod = %spec::describe(pod), error = %chain(&error), "not evicted yet");
        }
    }

    /// Deletes what the master still shows of this node, the Node last.
    pub(super) async fn delete_node(&self) -> anyhow::Result<()> {
        for pod in self.pods().await? {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), spec::namespace(&pod));
            let params = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(Preconditions {
                    uid: pod.metadata.uid.clone(),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            gone(api.delete(spec::name(&pod), &params).await.map(drop))?;
        }
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "kube-node-lease");
        gone(leases.delete(&self.node, &DeleteParams::default()).await.map(drop))?;
        let nodes: Api<Node> = Api::all(self.client.clone());
        gone(nodes.delete(&self.node, &DeleteParams::default()).await.map(drop))?;
        Ok(())
    }
}

fn gone(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(()),
        other => other,
    }
}

/// A DaemonSet would only put its pod back.
fn is_daemon(pod: &Pod) -> bool {
    let owners = pod.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|owner| owner.kind == "DaemonSet" && owner.controller == Some(true))
}
