//! The pods that the master assigns to this node: listed first, then watched.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::runtime::watcher;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::connection::chain;
use crate::source::Update;

/// The link paces reconnects; this only keeps a refusing master from being asked in a loop.
const RETRY: Duration = Duration::from_millis(500);

pub(crate) async fn run(client: kube::Client, node_name: String, updates: mpsc::Sender<Update>) {
    let api: Api<Pod> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
    let mut stream = Box::pin(watcher(api, config));
    let mut listing = Vec::new();
    while let Some(event) = stream.next().await {
        let update = match event {
            Ok(watcher::Event::Init) => {
                listing.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(pod)) => {
                listing.push(slim(pod));
                continue;
            }
            Ok(watcher::Event::InitDone) => {
                info!(pods = listing.len(), "the master's list of this node's pods");
                Update::Listed(std::mem::take(&mut listing))
            }
            Ok(watcher::Event::Apply(pod)) => Update::Applied(slim(pod)),
            Ok(watcher::Event::Delete(pod)) => Update::Deleted(slim(pod)),
            Err(error) => {
                warn!(error = %chain(&error), "the watch of this node's pods failed");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        if updates.send(update).await.is_err() {
            return;
        }
    }
}

/// Without the managed fields, which are most of a pod's bytes and of no use here.
fn slim(mut pod: Pod) -> Arc<Pod> {
    pod.metadata.managed_fields = None;
    Arc::new(pod)
}
