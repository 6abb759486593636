//! This device as a Node: registration, status written when it changes, and the Lease that says it
//! lives. It doesn't touch pods.

pub(crate) mod address;
pub(crate) mod host;
pub(crate) mod status;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{ContainerImage, Node, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::Config;
use crate::connection::{Link, chain};
use crate::node::host::Host;

/// Kubernetes 1.36, kubelet: lease renewal and its duration.
const LEASE_INTERVAL: Duration = Duration::from_secs(10);
const LEASE_DURATION_SECONDS: i32 = 40;
/// A longer time between two renewals is a pause that the master may have noticed.
const LEASE_PAUSE: Duration = Duration::from_secs(15);
/// With so many renewals after a pause the Node is read again.
const DOUBTFUL_RENEWALS: u32 = 3;
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// How often the host's headroom is looked at.
const OBSERVE_INTERVAL: Duration = Duration::from_secs(10);
const RETRY_DELAY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    #[error(transparent)]
    Taint(#[from] status::TaintError),
    #[error("the master refused the node's registration")]
    Api(#[from] kube::Error),
    #[error("the Node {name:?} belongs to another device; choose another --node-name or delete it")]
    Taken { name: String },
}

/// What others know and the Node should say.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Reported {
    /// Whether the parts have had the time to come up: a node that was Ready isn't made to look
    /// broken by a restart of its agent.
    pub(crate) settled: bool,
    pub(crate) network_problem: Option<String>,
    pub(crate) runtime_problem: Option<String>,
    pub(crate) images: Vec<ContainerImage>,
}

pub(crate) struct NodeReporter {
    pub(crate) config: Arc<Config>,
    pub(crate) host: Host,
    pub(crate) link: Arc<Link>,
    pub(crate) client: kube::Client,
    pub(crate) device_key: String,
    /// The addresses found at the start.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) reported: watch::Receiver<Reported>,
    /// Rung when others may have written, or deleted, the Node.
    pub(crate) doubt: Arc<Notify>,
}

impl NodeReporter {
    /// Registers, then keeps status and lease for ever.
    pub(crate) async fn run(mut self) {
        loop {
            match self.register().await {
                Ok(node) => self.report(node).await,
                Err(error) => {
                    warn!(error = %chain(&error), "the node is not registered yet");
                    tokio::time::sleep(RETRY_DELAY).await;
                }
            }
        }
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// Creates the Node, or brings labels and annotation of the existing one up to date.
    async fn register(&self) -> Result<Node, NodeError> {
        let wanted = status::new_node(&self.config, &self.device_key)?;
        let name = &self.config.node_name;
        match self.nodes().create(&PostParams::default(), &wanted).await {
            Ok(node) => {
                info!(node = %name, "registered");
                return Ok(node);
            }
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
            Err(error) => return Err(error.into()),
        }
        let found = self.nodes().get(name).await?;
        let annotations = found.metadata.annotations.clone().unwrap_or_default();
        match annotations.get(status::DEVICE_KEY_ANNOTATION) {
            Some(key) if *key != self.device_key => {
                return Err(NodeError::Taken { name: name.clone() });
            }
            _ => {}
        }
        let labels = found.metadata.labels.clone().unwrap_or_default();
        let missing = status::labels(&self.config)
            .into_iter()
            .any(|(key, value)| labels.get(&key) != Some(&value));
        if !missing && annotations.contains_key(status::DEVICE_KEY_ANNOTATION) {
            return Ok(found);
        }
        let patch = json!({"metadata": {
            "uid": found.metadata.uid,
            "labels": status::labels(&self.config),
            "annotations": {status::DEVICE_KEY_ANNOTATION: self.device_key},
        }});
        Ok(self.nodes().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?)
    }

    /// Until the Node is gone.
    async fn report(&mut self, node: Node) {
        let uid = node.metadata.uid.clone().unwrap_or_default();
        let mut written = node.status.unwrap_or_default();
        let lease = tokio::spawn(keep_lease(
            self.client.clone(),
            self.config.node_name.clone(),
            uid.clone(),
            self.doubt.clone(),
        ));
        let mut tick = tokio::time::interval(OBSERVE_INTERVAL);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                changed = self.reported.changed() => if changed.is_err() { break },
                () = self.doubt.notified() => match self.nodes().get_opt(&self.config.node_name).await {
                    Ok(Some(node)) if node.metadata.uid.as_deref() == Some(&uid) => {
                        written = node.status.unwrap_or_default();
                    }
                    Ok(_) => break,
                    Err(error) => {
                        warn!(error = %chain(&error), "the Node was not read");
                        tokio::time::sleep(RETRY_DELAY).await;
                        self.doubt.notify_one();
                        continue;
                    }
                },
            }
            if is_ready(&written) && !self.reported.borrow().settled {
                continue;
            }
            let wanted = self.status(&written);
            if same(&wanted, &written) {
                continue;
            }
            match self.write(&uid, &wanted).await {
                Ok(()) => {
                    log_ready(&self.config.node_name, &written, &wanted);
                    written = wanted;
                }
                Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => break,
                Err(error) => {
                    warn!(error = %chain(&error), "the node's status was not written");
                    tick.reset_after(RETRY_DELAY);
                }
            }
        }
        lease.abort();
        warn!(node = %self.config.node_name, "the Node is gone from the master; registering again");
        tokio::time::sleep(RETRY_DELAY).await;
    }

    fn status(&self, previous: &NodeStatus) -> NodeStatus {
        let reported = self.reported.borrow().clone();
        let addresses = self.addresses();
        status::status(
            &status::Inputs {
                config: &self.config,
                host: &self.host,
                headroom: host::observe_headroom(&self.config.data_dir),
                addresses: &addresses,
                network_problem: reported.network_problem,
                runtime_problem: reported.runtime_problem,
                images: reported.images,
                now: Timestamp::now(),
            },
            previous,
        )
    }

    fn addresses(&self) -> Vec<IpAddr> {
        match self.link.local_ip() {
            Some(address) if self.config.node_ip.is_empty() => vec![address],
            _ => self.addresses.clone(),
        }
    }

    async fn write(&self, uid: &str, wanted: &NodeStatus) -> Result<(), kube::Error> {
        let patch = Patch::Strategic(status::patch(uid, wanted));
        let name = &self.config.node_name;
        self.nodes().patch_status(name, &PatchParams::default(), &patch).await.map(|_| ())
    }
}

/// Equal in what this agent writes; the API server's own fields don't count.
fn same(wanted: &NodeStatus, written: &NodeStatus) -> bool {
    wanted.addresses == written.addresses
        && wanted.capacity == written.capacity
        && wanted.allocatable == written.allocatable
        && wanted.node_info == written.node_info
        && wanted.images == written.images
        && wanted.conditions.iter().flatten().all(|condition| {
            written.conditions.iter().flatten().any(|have| {
                have.type_ == condition.type_
                    && have.status == condition.status
                    && have.reason == condition.reason
                    && have.message == condition.message
            })
        })
}

fn is_ready(status: &NodeStatus) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn log_ready(node: &str, before: &NodeStatus, after: &NodeStatus) {
    let ready = |status: &NodeStatus| {
        let found = status.conditions.iter().flatten().find(|c| c.type_ == "Ready").cloned();
        found.map(|condition| (condition.status, condition.message.unwrap_or_default()))
    };
    if ready(before) != ready(after) {
        let (status, message) = ready(after).unwrap_or_default();
        info!(node, ready = %status, %message, "the node's readiness changed");
    }
}

/// Renews the lease for ever. After a pause the master may have declared the node lost, even a moment after
/// the renewal, so the Node is looked at with some more renewals.
async fn keep_lease(client: kube::Client, node: String, node_uid: String, doubt: Arc<Notify>) {
    let api: Api<Lease> = Api::namespaced(client, LEASE_NAMESPACE);
    let mut tick = tokio::time::interval(LEASE_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut lease_uid: Option<String> = None;
    let mut renewed: Option<Instant> = None;
    let mut doubts = 0;
    loop {
        tick.tick().await;
        let result = match &lease_uid {
            Some(uid) => renew(&api, &node, uid).await,
            None => ensure_lease(&api, &node, &node_uid).await,
        };
        match result {
            Ok(lease) => {
                lease_uid = lease.metadata.uid;
                if renewed.replace(Instant::now()).is_some_and(|at| at.elapsed() > LEASE_PAUSE) {
                    doubts = DOUBTFUL_RENEWALS;
                }
                if doubts > 0 {
                    doubts -= 1;
                    doubt.notify_one();
                }
            }
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => {
                // A lease goes with its Node, so look at the Node too.
                if lease_uid.take().is_some() {
                    doubt.notify_one();
                }
                tick.reset_after(RETRY_DELAY);
            }
            Err(error) => {
                warn!(error = %chain(&error), "the lease was not renewed");
                tick.reset_after(RETRY_DELAY);
            }
        }
    }
}

async fn renew(api: &Api<Lease>, node: &str, uid: &str) -> Result<Lease, kube::Error> {
    let patch =
        json!({"metadata": {"uid": uid}, "spec": {"renewTime": MicroTime(Timestamp::now())}});
    api.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await
}

async fn ensure_lease(api: &Api<Lease>, node: &str, node_uid: &str) -> Result<Lease, kube::Error> {
    if let Some(found) = api.get_opt(node).await? {
        return renew(api, node, found.metadata.uid.as_deref().unwrap_or_default()).await;
    }
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            namespace: Some(LEASE_NAMESPACE.to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: node.to_owned(),
                uid: node_uid.to_owned(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: Some(LEASE_DURATION_SECONDS),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await
}
