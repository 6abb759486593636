//! The certificate controllers: approve or deny requests of nodes, sign approved ones, clean old ones up.
//!
//! Owns `kubernetes.io/kube-apiserver-client-kubelet` and `kubernetes.io/kubelet-serving`. A node name belongs to the
//! device whose key it was first approved for: the key's fingerprint stands on the Node as `flotilla.dev/device-key`.

mod plan;
mod sign;
mod uses;

pub(crate) use sign::Authority;

use crate::{
    cluster::Cluster,
    kinds::{CertificateSigningRequest, Node, condition},
    runtime::{
        Error, Key, Next, WorkQueue, error::gone_is_fine, object::Kind, run_workers,
        write::Deletion,
    },
};
use plan::{Holder, Request, Verdict};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

pub(crate) const DEVICE_KEY: &str = "flotilla.dev/device-key";
/// Requests worked on at one time.
const WORKERS: usize = 2;

/// Registers the handlers and gives the work to be run.
pub(crate) fn start(
    cluster: &Arc<Cluster>,
    authority: Authority,
) -> impl Future<Output = ()> + use<> {
    let queue = WorkQueue::new();
    let q = Arc::clone(&queue);
    cluster.csrs.on_change(move |change| {
        if let Some(csr) = &change.new {
            q.add(csr.key());
        }
    });
    let departures = WorkQueue::new();
    let d = Arc::clone(&departures);
    cluster.nodes.on_change(move |change| {
        if let (Some(gone), None) = (&change.old, &change.new) {
            d.add(gone.key());
        }
    });
    let authority = Arc::new(authority);
    let c = Arc::clone(cluster);
    let sign = run_workers("csrsigning", queue, WORKERS, move |key| {
        let (cluster, authority) = (Arc::clone(&c), Arc::clone(&authority));
        async move { reconcile(&cluster, &authority, &key).await }
    });
    let c = Arc::clone(cluster);
    let forget = run_workers("csr-of-departed-nodes", departures, 1, move |key| {
        let cluster = Arc::clone(&c);
        async move { forget_departed(&cluster, &key).await }
    });
    async move {
        tokio::join!(sign, forget);
    }
}

async fn reconcile(cluster: &Cluster, authority: &Authority, key: &Key) -> Result<Next, Error> {
    let Some(csr) = cluster.csrs.get(key) else { return Ok(Next::Done) };
    if let Some(wait) = plan::until_removal(&csr, cluster.now()) {
        if wait.is_zero() {
            let how = Deletion { same_version: true, ..Deletion::default() };
            cluster.csrs.delete(&csr.metadata, how).await?;
            return Ok(Next::Done);
        }
        if plan::is_settled(&csr) || !plan::is_for_us(&csr) {
            return Ok(Next::After(wait));
        }
    }
    let request = match Request::read(&csr) {
        Ok(request) => request,
        Err(problem) => return fail(cluster, &csr, &problem).await,
    };
    if condition(&csr.status.conditions, "Approved").is_some() {
        return issue(cluster, authority, &csr, &request).await;
    }
    let holder = holder(cluster, &csr, &request);
    match plan::verdict(&request, &csr, holder.as_ref(), &node_addresses(cluster, &request)) {
        Verdict::Approve(message) => {
            if let Some(problem) = uses::count(cluster, &csr).await? {
                tracing::warn!(csr = %key, node = %request.node, "denied: {problem}");
                decide(cluster, &csr, "Denied", ("TokenUsedUp", &problem)).await?;
                return Ok(Next::Done);
            }
            tracing::info!(csr = %key, node = %request.node, "approved");
            decide(cluster, &csr, "Approved", ("AutoApproved", message)).await?;
        }
        Verdict::Deny { reason, message } => {
            tracing::warn!(csr = %key, node = %request.node, reason, "denied: {message}");
            decide(cluster, &csr, "Denied", (reason, &message)).await?;
        }
        Verdict::Leave => {}
    }
    Ok(Next::After(Duration::from_secs(3600)))
}

/// Who the node's name belongs to, when it belongs to somebody.
fn holder(cluster: &Cluster, csr: &CertificateSigningRequest, request: &Request) -> Option<Holder> {
    if let Some(node) = cluster.nodes.get(&Key::new("", &request.node))
        && let Some(key) = node.annotations().get(DEVICE_KEY)
    {
        return Some(Holder { key: key.clone(), object: format!("node {}", node.name()) });
    }
    let earlier = cluster.csrs.list();
    let granted = earlier.iter().filter(|c| {
        c.uid() != csr.uid() && c.spec.signer_name == plan::CLIENT && c.status.certificate.is_some()
    });
    let same_node = granted.filter_map(|c| {
        let other = Request::read(c).ok()?;
        let at = c.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (other.node == request.node).then(|| (at, other.fingerprint, c.name().to_owned()))
    });
    same_node.max().map(|(_, key, csr)| Holder { key, object: format!("csr {csr}") })
}

fn node_addresses(cluster: &Cluster, request: &Request) -> Vec<String> {
    let node = cluster.nodes.get(&Key::new("", &request.node));
    node.iter().flat_map(|n| n.status.addresses.iter().map(|a| a.address.clone())).collect()
}

async fn decide(
    cluster: &Cluster,
    csr: &CertificateSigningRequest,
    kind: &str,
    (reason, message): (&str, &str),
) -> Result<(), Error> {
    let now = cluster.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut conditions: Vec<Value> = csr.status.conditions.iter().map(|c| json!(c)).collect();
    conditions.push(json!({
        "type": kind, "status": "True", "reason": reason, "message": message,
        "lastUpdateTime": now, "lastTransitionTime": now,
    }));
    let patch = json!({"status": {"conditions": conditions}});
    let format = crate::runtime::write::Format::Merge;
    cluster.csrs.patch(&csr.metadata, Some("approval"), format, patch).await.map(drop)
}

async fn fail(
    cluster: &Cluster,
    csr: &CertificateSigningRequest,
    problem: &str,
) -> Result<Next, Error> {
    if condition(&csr.status.conditions, "Approved").is_none() {
        let message = format!("{problem}; send a new request");
        decide(cluster, csr, "Denied", ("InvalidRequest", &message)).await?;
        return Ok(Next::Done);
    }
    let mut conditions: Vec<Value> = csr.status.conditions.iter().map(|c| json!(c)).collect();
    conditions.push(json!({
        "type": "Failed", "status": "True", "reason": "SignerValidationFailure", "message": problem,
        "lastUpdateTime": cluster.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    }));
    cluster.csrs.patch_status(&csr.metadata, json!({ "conditions": conditions })).await?;
    Ok(Next::Done)
}

async fn issue(
    cluster: &Cluster,
    authority: &Authority,
    csr: &CertificateSigningRequest,
    request: &Request,
) -> Result<Next, Error> {
    // Somebody may have approved by hand what we would not: the signer still signs only what it is for.
    if let Some(problem) = plan::unsignable(request, csr) {
        return fail(cluster, csr, &problem).await;
    }
    let life = plan::lifetime(csr.spec.expiration_seconds, cluster.config.certificate_duration);
    let pem = authority.sign(request, life, cluster.now())?;
    let patch = json!({ "certificate": sign::base64(pem.as_bytes()) });
    cluster.csrs.patch_status(&csr.metadata, patch).await?;
    tracing::info!(csr = %csr.name(), node = %request.node, ?life, "certificate issued");
    if csr.spec.signer_name == plan::CLIENT {
        note_device_key(cluster, request).await?;
    }
    Ok(Next::Done)
}

/// Writes the key's fingerprint on the Node, when it is there already.
async fn note_device_key(cluster: &Cluster, request: &Request) -> Result<(), Error> {
    let Some(node): Option<Arc<Node>> = cluster.nodes.get(&Key::new("", &request.node)) else {
        return Ok(());
    };
    if node.annotations().get(DEVICE_KEY) == Some(&request.fingerprint) {
        return Ok(());
    }
    let patch = json!({"metadata": {"annotations": {DEVICE_KEY: request.fingerprint}}});
    gone_is_fine(cluster.nodes.patch_object(&node.metadata, patch).await)
}

/// Requests of a node that left are forgotten, so that another device may take the name.
async fn forget_departed(cluster: &Cluster, key: &Key) -> Result<Next, Error> {
    if cluster.nodes.get(key).is_some() {
        return Ok(Next::Done);
    }
    for csr in cluster.csrs.list() {
        let issued = csr.status.certificate.is_some() && plan::is_for_us(&csr);
        if issued && Request::read(&csr).is_ok_and(|r| r.node == key.name) {
            let how = Deletion { same_version: true, ..Deletion::default() };
            cluster.csrs.delete(&csr.metadata, how).await?;
        }
    }
    Ok(Next::Done)
}
