//! Which masters there are: those that the configuration names, and those learnt from the endpoints of the `kubernetes` Service. What is
//! learnt is kept on disk, and written only when there is a new one, so that a node that boots finds a master even where the one it
//! joined at is gone. It opens no connection to a master by itself.
//!
//! `identity/masters.json`: `{"version": 1, "servers": ["https://192.0.2.1:6443"]}`, the newest last.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::Api;
use kube::runtime::watcher;
use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use crate::config::{Config, write_atomic};
use crate::connection::chain;

/// The newest format of the file this build reads.
const VERSION: u32 = 1;
/// How many are remembered; the oldest that is no endpoint is forgotten first.
const LEARNT_MAX: usize = 8;
const WATCH_RETRY: Duration = Duration::from_secs(1);
const NAMESPACE: &str = "default";
const SERVICE: &str = "kubernetes";

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    servers: Vec<String>,
}

#[derive(Debug, Default)]
struct Known {
    /// Every one that was an endpoint, the newest last.
    learnt: Vec<String>,
    /// Those that are endpoints now, as far as this node knows.
    there: Vec<String>,
}

/// The masters as far as this node knows them.
#[derive(Debug)]
pub(crate) struct Masters {
    configured: Vec<String>,
    file: PathBuf,
    known: Mutex<Known>,
}

/// What is remembered once `there` are the endpoints; `None`: nothing new.
fn plan(learnt: &[String], there: &[String]) -> Option<Vec<String>> {
    let news: Vec<_> = there.iter().filter(|one| !learnt.contains(one)).cloned().collect();
    if news.is_empty() {
        return None;
    }
    let mut next: Vec<_> = learnt.iter().cloned().chain(news).collect();
    while next.len() > LEARNT_MAX {
        let oldest = next.iter().position(|one| !there.contains(one)).unwrap_or(0);
        next.remove(oldest);
    }
    Some(next)
}

impl Masters {
    /// The configured ones, and those learnt in earlier lives.
    pub(crate) fn load(config: &Config) -> Arc<Masters> {
        let file = config.identity_dir().join("masters.json");
        let learnt = match std::fs::read(&file) {
            Ok(bytes) => match serde_json::from_slice::<Saved>(&bytes) {
                Ok(saved) if saved.version <= VERSION => saved.servers,
                Ok(saved) => {
                    warn!(file = %file.display(), version = saved.version, "a newer agent's list of masters is left out");
                    Vec::new()
                }
                Err(error) => {
                    warn!(file = %file.display(), %error, "the list of masters is left out");
                    Vec::new()
                }
            },
            // There is none before the first is learnt.
            Err(_) => Vec::new(),
        };
        let known = Mutex::new(Known { learnt, there: Vec::new() });
        Arc::new(Masters { configured: config.servers.clone(), file, known })
    }

    /// Those to try, in this order: the ones that are there, the configured ones, the others.
    pub(crate) fn candidates(&self) -> Vec<String> {
        let known = self.known();
        let mut all: Vec<String> = Vec::new();
        for one in known.there.iter().chain(&self.configured).chain(&known.learnt) {
            if !all.contains(one) {
                all.push(one.clone());
            }
        }
        all
    }

    /// Follows the endpoints of the `kubernetes` Service for ever.
    pub(crate) async fn follow(self: Arc<Self>, client: kube::Client) {
        let api: Api<EndpointSlice> = Api::namespaced(client, NAMESPACE);
        let named = watcher::Config::default().fields(&format!("metadata.name={SERVICE}"));
        let mut stream = Box::pin(watcher(api, named));
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::Apply(slice) | watcher::Event::InitApply(slice)) => {
                    self.learn(servers(&slice));
                }
                // Whoever deleted it, the masters make it again.
                Ok(_) => {}
                Err(error) => {
                    debug!(error = %chain(&error), "the watch of the masters failed");
                    tokio::time::sleep(WATCH_RETRY).await;
                }
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, there: Vec<String>) {
        if there.is_empty() {
            return;
        }
        let mut known = self.known();
        let next = plan(&known.learnt, &there);
        known.there = there;
        let Some(servers) = next else { return };
        known.learnt.clone_from(&servers);
        drop(known);
        info!(?servers, "learnt of a master");
        if let Err(error) = self.save(servers) {
            warn!(file = %self.file.display(), %error, "the list of masters is not saved");
        }
    }

    fn save(&self, servers: Vec<String>) -> std::io::Result<()> {
        let bytes = serde_json::to_vec(&Saved { version: VERSION, servers })?;
        write_atomic(&self.file, &bytes, 0o644)
    }
}

/// `https://address:port` of every endpoint that is ready.
fn servers(slice: &EndpointSlice) -> Vec<String> {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let port = ports.iter().find(|port| port.name.as_deref() == Some("https"));
    let Some(port) = port.and_then(|port| u16::try_from(port.port?).ok()) else {
        return Vec::new();
    };
    let ready = slice.endpoints.iter().flatten().filter(|endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false)
    });
    let addresses = ready.filter_map(|endpoint| endpoint.addresses.first()?.parse().ok());
    let server = |address| format!("https://{}", std::net::SocketAddr::new(address, port));
    addresses.map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(of: &[&str]) -> Vec<String> {
        of.iter().map(|one| (*one).to_owned()).collect()
    }

    #[test]
    fn masters_are_remembered_and_written_only_when_new() {
        assert_eq!(plan(&texts(&["a", "b"]), &texts(&["b"])), None);
        assert_eq!(plan(&texts(&["a"]), &texts(&["a", "b"])), Some(texts(&["a", "b"])));
        let many: Vec<String> = (0..LEARNT_MAX).map(|n| n.to_string()).collect();
        let next = plan(&many, &texts(&["0", "new"])).unwrap();
        assert_eq!((next.len(), next.first().map(String::as_str)), (LEARNT_MAX, Some("0")));
        assert!(!next.contains(&"1".to_owned()) && next.contains(&"new".to_owned()));

        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            servers: texts(&["https://m:6443"]),
            data_dir: dir.path().to_owned(),
            ..Config::default()
        };
        let masters = Masters::load(&config);
        assert_eq!(masters.candidates(), ["https://m:6443"]);
        masters.learn(texts(&["https://[fd00::1]:6443"]));
        let first = std::fs::metadata(&masters.file).unwrap().modified().unwrap();
        assert_eq!(masters.candidates(), ["https://[fd00::1]:6443", "https://m:6443"]);
        masters.learn(texts(&["https://[fd00::1]:6443"]));
        assert_eq!(std::fs::metadata(&masters.file).unwrap().modified().unwrap(), first);
        let again = Masters::load(&config);
        assert_eq!(again.candidates(), ["https://m:6443", "https://[fd00::1]:6443"]);
    }

    #[test]
    fn endpoints_become_addresses() {
        let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "kubernetes"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": true}},
                {"addresses": ["192.0.2.2"], "conditions": {"ready": false}}],
            "ports": [{"name": "https", "port": 7443}]}))
        .unwrap();
        assert_eq!(servers(&slice), ["https://192.0.2.1:7443"]);
    }
}
