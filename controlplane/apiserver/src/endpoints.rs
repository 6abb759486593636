//! Owns the `kubernetes` Service and its endpoints, which only the masters can keep right: every master that is there, none that is not,
//! made again whoever removes them. Level-triggered; every master writes the same. Must not touch other Services.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use apimachinery::object;
use http::Method;
use serde_json::{Value, json};
use store::{KeyRange, ReadError, WatchRequest, Watcher};
use tokio::{sync::watch, time::sleep};

use crate::{
    ApiServer, allocate,
    ensure::{create, failed, send},
    peers,
    serve::stopping,
    server::SetupError,
};

/// The port that pods reach the API server's Service at.
const SERVICE_PORT: u16 = 443;
const SERVICES: &str = "/api/v1/namespaces/default/services";
const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
/// Keys of what is kept.
const KEPT: [&str; 3] = [
    "/registry/services/specs/default/kubernetes",
    "/registry/services/endpoints/default/kubernetes",
    "/registry/endpointslices/default/kubernetes",
];
/// Upstream's period; here only what failed, or was said by a watch that broke, waits for it.
const RETRY: Duration = Duration::from_secs(10);
/// A burst of changes is one look.
const SETTLE: Duration = Duration::from_millis(100);
const EVENTS_WAITING_MAX: usize = 1024;

/// Makes what is missing and mends what is wrong.
pub(crate) async fn reconcile(server: &ApiServer) -> Result<(), SetupError> {
    create(server, SERVICES, &service(server)).await?;
    let masters = reachable(server.peers().masters());
    if masters.is_empty() {
        return Ok(());
    }
    put(server, ENDPOINTS, &endpoints(&masters)).await?;
    put(server, SLICES, &slice(&masters)).await
}

/// Keeps them right until `stop` turns true.
pub(crate) async fn keep(server: &ApiServer, mut stop: watch::Receiver<bool>) {
    let address = server.config().advertise_address;
    if address.is_loopback() {
        tracing::warn!(%address, "pods can't reach a loopback address: it is no endpoint of the kubernetes Service");
    }
    loop {
        tokio::select! {
            failure = follow(server) => {
                tracing::warn!(failure, "the kubernetes Service may be out of date; trying again");
            }
            () = stopping(&mut stop) => return,
        }
        tokio::select! {
            () = sleep(RETRY) => {}
            () = stopping(&mut stop) => return,
        }
    }
}

/// Reconciles whenever something changed; returns what went wrong.
async fn follow(server: &ApiServer) -> String {
    // Watched first: what changes while it is read is looked at again.
    let mut watchers = match watchers(server) {
        Ok(watchers) => watchers,
        Err(error) => return error.to_string(),
    };
    loop {
        if let Err(error) = reconcile(server).await {
            return error.to_string();
        }
        let changed = futures::future::select_all(watchers.iter_mut().map(|w| Box::pin(w.next())));
        if let (Err(error), ..) = changed.await {
            return error.to_string();
        }
        sleep(SETTLE).await;
    }
}

fn watchers(server: &ApiServer) -> Result<Vec<Watcher>, ReadError> {
    let kept = KEPT.iter().map(|key| KeyRange::Key((*key).into()));
    let masters = KeyRange::Prefix(peers::MASTERS.into());
    let open = |keys| {
        let (from, index, events_max) = (None, None, EVENTS_WAITING_MAX);
        server.registry().store().watch(WatchRequest { keys, from, index, events_max })
    };
    kept.chain([masters]).map(open).collect()
}

/// Addresses that pods can use, of one family as upstream's: a slice has one.
fn reachable(masters: BTreeSet<SocketAddr>) -> Vec<SocketAddr> {
    let mut found: Vec<_> = masters.into_iter().filter(|m| !m.ip().is_loopback()).collect();
    let family = found.first().is_some_and(SocketAddr::is_ipv4);
    found.retain(|master| master.is_ipv4() == family);
    found
}

fn service(server: &ApiServer) -> Value {
    let config = server.config();
    let address = config.service_cidrs.first().map(|r| allocate::first(*r).to_string());
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"type": "ClusterIP", "clusterIP": address, "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "https", "protocol": "TCP", "port": SERVICE_PORT,
                       "targetPort": config.advertise_port}]}})
}

/// One subset per port, in the canonical order.
fn endpoints(masters: &[SocketAddr]) -> Value {
    let ports: BTreeSet<u16> = masters.iter().map(SocketAddr::port).collect();
    let subset = |port: u16| {
        let own = masters.iter().filter(|master| master.port() == port);
        let addresses: Vec<_> = own.map(|master| json!({"ip": master.ip().to_string()})).collect();
        json!({"addresses": addresses,
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}]})
    };
    json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": ports.into_iter().map(subset).collect::<Vec<_>>()})
}

/// A slice has one list of ports, so it holds the masters of the first one's port.
fn slice(masters: &[SocketAddr]) -> Value {
    let port = masters.first().map(SocketAddr::port).unwrap_or_default();
    let v4 = masters.first().is_some_and(SocketAddr::is_ipv4);
    let own = masters.iter().filter(|master| master.port() == port);
    let endpoint = |master: &SocketAddr| json!({"addresses": [master.ip().to_string()], "conditions": {"ready": true}});
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "addressType": if v4 { "IPv4" } else { "IPv6" },
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "endpoints": own.map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}]})
}

/// Makes an object say what it should, without a write where it does.
async fn put(server: &ApiServer, collection: &str, object: &Value) -> Result<(), SetupError> {
    let path = format!("{collection}/{}", object::name(object));
    match send(server, Method::GET, &path, None).await {
        (404, _) => create(server, collection, object).await,
        (200, current) => {
            let mut wanted = current.clone();
            for key in ["subsets", "endpoints", "ports", "addressType"] {
                if let (Some(value), Some(map)) = (object.get(key), wanted.as_object_mut()) {
                    map.insert(key.to_owned(), value.clone());
                }
            }
            if wanted == current {
                return Ok(());
            }
            match send(server, Method::PUT, &path, Some(&wanted)).await {
                // In a conflict another master was quicker; its write is seen, and looked at.
                (200 | 409, _) => Ok(()),
                (_, answer) => Err(failed(collection, object, &answer)),
            }
        }
        (_, answer) => Err(failed(collection, object, &answer)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_master_of_a_family_is_an_endpoint() {
        let masters = ["10.0.0.2:6443", "10.0.0.1:6443", "127.0.0.1:6443", "[fd00::1]:6443"];
        let masters = masters.iter().map(|master| master.parse().unwrap()).collect();
        let masters = reachable(masters);
        let ips = |of: &Value, pointer: &str| {
            let list = of.pointer(pointer).unwrap().as_array().unwrap().iter();
            list.map(|one| one.to_string()).collect::<Vec<_>>().join(" ")
        };
        let made = endpoints(&masters);
        assert_eq!(ips(&made, "/subsets/0/addresses"), r#"{"ip":"10.0.0.1"} {"ip":"10.0.0.2"}"#);
        assert_eq!(made["subsets"].as_array().unwrap().len(), 1);
        let slice = slice(&masters);
        assert_eq!(slice["endpoints"].as_array().unwrap().len(), 2);
        assert_eq!(
            (&slice["addressType"], &slice["ports"][0]["port"]),
            (&json!("IPv4"), &json!(6443))
        );
        assert!(reachable(["127.0.0.1:1".parse().unwrap()].into()).is_empty());
    }
}
