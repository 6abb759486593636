//! The cluster's services as containers' variables need them: one watch, names and ports only,
//! kept in the checkpoint.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::watcher;
use tokio::sync::watch;
use tracing::debug;

use crate::checkpoint::Checkpoint;
use crate::connection::chain;
use crate::pod::env::ServiceFacts;

const WATCH_RETRY: Duration = Duration::from_secs(1);
/// A burst of changes becomes one write of the checkpoint.
const SAVE_DELAY: Duration = Duration::from_secs(5);

/// `namespace/name` to cluster address and ports (name, protocol, port).
type Table = BTreeMap<String, (String, Vec<(String, String, u16)>)>;

#[derive(Debug, Clone)]
pub(crate) struct Services {
    table: watch::Receiver<Arc<Table>>,
}

impl Services {
    /// The table as last saved, and the tasks that follow the master, to be spawned.
    pub(crate) fn new(
        client: kube::Client,
        checkpoint: Arc<Checkpoint>,
    ) -> (Services, impl Future<Output = ()> + Send) {
        let saved: Table = checkpoint.services().unwrap_or_default();
        let (tell, table) = watch::channel(Arc::new(saved));
        let saver = save(table.clone(), checkpoint);
        let services = Services { table };
        let tasks = async move {
            futures::future::join(follow(client, tell), saver).await;
        };
        (services, tasks)
    }

    /// What a pod of `namespace` sees: its own namespace's, and the API server's.
    pub(crate) fn visible(&self, namespace: &str) -> Vec<ServiceFacts> {
        let table = self.table.borrow().clone();
        let prefix = format!("{namespace}/");
        let own = table.iter().filter(|(key, _)| key.starts_with(&prefix));
        let own_api = table.contains_key(&format!("{namespace}/kubernetes"));
        let api = (!own_api).then(|| table.get_key_value("default/kubernetes")).flatten();
        own.chain(api)
            .map(|(key, (cluster_ip, ports))| ServiceFacts {
                name: key.split_once('/').map(|(_, name)| name).unwrap_or_default().to_owned(),
                cluster_ip: cluster_ip.clone(),
                ports: ports.clone(),
            })
            .collect()
    }
}

async fn save(mut table: watch::Receiver<Arc<Table>>, checkpoint: Arc<Checkpoint>) {
    while table.changed().await.is_ok() {
        tokio::time::sleep(SAVE_DELAY).await;
        let current = table.borrow_and_update().clone();
        checkpoint.save_services(&*current);
    }
}

async fn follow(client: kube::Client, tell: watch::Sender<Arc<Table>>) {
    let api: Api<Service> = Api::all(client);
    let mut stream = Box::pin(watcher(api, watcher::Config::default()));
    let mut listing = Table::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => listing.clear(),
            Ok(watcher::Event::InitApply(service)) => insert(&mut listing, &service),
            Ok(watcher::Event::InitDone) => {
                let listed = Arc::new(std::mem::take(&mut listing));
                tell.send_if_modified(|table| std::mem::replace(table, listed.clone()) != listed);
            }
            Ok(watcher::Event::Apply(service)) => {
                tell.send_modify(|table| insert(Arc::make_mut(table), &service));
            }
            Ok(watcher::Event::Delete(service)) => tell.send_modify(|table| {
                Arc::make_mut(table).remove(&key(&service));
            }),
            Err(error) => {
                debug!(error = %chain(&error), "the services' watch failed");
                tokio::time::sleep(WATCH_RETRY).await;
            }
        }
    }
}

fn key(service: &Service) -> String {
    format!("{}/{}", service.namespace().unwrap_or_default(), service.name_any())
}

/// Headless services have no variables.
fn insert(table: &mut Table, service: &Service) {
    let spec = service.spec.as_ref();
    let address = spec.and_then(|spec| spec.cluster_ip.clone()).unwrap_or_default();
    if address.is_empty() || address == "None" {
        table.remove(&key(service));
        return;
    }
    let ports = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let ports = ports.iter().filter_map(|port| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        let number = u16::try_from(port.port).ok()?;
        Some((port.name.clone().unwrap_or_default(), protocol, number))
    });
    table.insert(key(service), (address, ports.collect()));
}
