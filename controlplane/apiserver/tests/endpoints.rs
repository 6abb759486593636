//! Masters that share a store: the `kubernetes` Service leads to those that are there, whoever ends, dies or meddles.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[cfg(test)]
mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::Server;
use tokio::{sync::watch, task::JoinHandle};

const SERVICE: &str = "/api/v1/namespaces/default/services/kubernetes";
const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints/kubernetes";
const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
const DEADLINE: Duration = Duration::from_secs(40);

fn config(number: u8) -> apiserver::Config {
    let mut config = support::config();
    config.advertise_address = format!("192.0.2.{number}").parse().unwrap();
    config.master_id = Some(format!("m{number}"));
    config
}

fn keep(server: &Server) -> (watch::Sender<bool>, JoinHandle<()>) {
    let (stop, stopping) = watch::channel(false);
    let api = server.api.clone();
    (stop, tokio::spawn(async move { api.keep(stopping).await }))
}

/// Waits until both objects say so.
async fn endpoints(server: &Server, wanted: &[&str]) {
    let begin = Instant::now();
    loop {
        let (_, endpoints) = server.call("GET", ENDPOINTS, None).await;
        let (_, slice) = server.call("GET", SLICE, None).await;
        let list = |object: &Value, pointer: &str, one: &str| {
            let found = object.pointer(pointer).and_then(Value::as_array).cloned();
            let texts = found.unwrap_or_default().into_iter();
            let texts = texts.map(|e| e.pointer(one).and_then(Value::as_str).unwrap().to_owned());
            texts.collect::<Vec<_>>()
        };
        let said = list(&endpoints, "/subsets/0/addresses", "/ip");
        let sliced = list(&slice, "/endpoints", "/addresses/0");
        if said == wanted && sliced == wanted {
            return;
        }
        assert!(begin.elapsed() < DEADLINE, "{wanted:?}: {endpoints} {slice}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_kubernetes_service_leads_to_the_masters_that_are_there() {
    let one = Server::with(config(1)).await;
    let (_stop, _kept) = keep(&one);
    endpoints(&one, &["192.0.2.1"]).await;
    let two = one.beside(config(2)).await;
    let (stop, kept) = keep(&two);
    endpoints(&two, &["192.0.2.1", "192.0.2.2"]).await;

    // One that ends says so; one that dies is missed.
    stop.send_replace(true);
    kept.await.unwrap();
    endpoints(&one, &["192.0.2.1"]).await;
    let (stop, kept) = keep(&two);
    endpoints(&one, &["192.0.2.1", "192.0.2.2"]).await;
    kept.abort();
    endpoints(&one, &["192.0.2.1"]).await;
    drop(stop);

    // Whoever removes or changes them, they come back.
    for path in [ENDPOINTS, SLICE, SERVICE] {
        assert_eq!(one.call("DELETE", path, None).await.0, 200, "{path}");
        endpoints(&one, &["192.0.2.1"]).await;
    }
    let wrong = json!({"subsets": [{"addresses": [{"ip": "192.0.2.9"}]}]});
    assert_eq!(one.call("PATCH", ENDPOINTS, Some(&wrong)).await.0, 200);
    endpoints(&one, &["192.0.2.1"]).await;
    let begin = Instant::now();
    while one.call("GET", SERVICE, None).await.0 != 200 {
        assert!(begin.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn masters_that_start_together_make_one_cluster() {
    for _ in 0..10 {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = store::Config::new(dir.path());
        settings.extract = std::sync::Arc::new(apiserver::ObjectExtract::builtin());
        let store = store::Store::open(settings).unwrap();
        let starting: Vec<_> = (1..=4)
            .map(|n| tokio::spawn(apiserver::ApiServer::new(config(n), store.clone())))
            .collect();
        for started in starting {
            started.await.unwrap().unwrap();
        }
    }
}
