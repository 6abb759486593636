//! An API server on a store in a temporary folder, spoken to without a socket.
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod tls;

use std::{sync::Arc, time::Duration};

use apiserver::{ApiServer, Body, Caller, Config, NodeTls, ObjectExtract, User, body};
use http::{Method, Request, Response, header};
use http_body_util::BodyExt;
use serde_json::Value;
use store::Store;

pub(crate) struct Server {
    pub(crate) api: ApiServer,
    pub(crate) user: User,
    store: Store,
    _dir: Arc<tempfile::TempDir>,
}

pub(crate) fn admin() -> User {
    User::authenticated("admin", &["system:masters"])
}

fn service_account_key() -> String {
    use base64::Engine as _;
    let random = ring::rand::SystemRandom::new();
    let algorithm = &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
    let key = ring::signature::EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    let text = base64::engine::general_purpose::STANDARD.encode(key.as_ref());
    format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
}

pub(crate) fn config() -> Config {
    Config {
        advertise_address: "192.0.2.1".parse().unwrap(),
        advertise_port: 6443,
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        node_ports: (30000, 32767),
        cluster_domain: "cluster.local".into(),
        ca_pem: tls::Authority::new().pem(),
        service_account_key_pem: service_account_key(),
        service_account_public_keys_pem: Vec::new(),
        service_account_issuer: "https://kubernetes.default.svc".into(),
        api_audiences: vec!["https://kubernetes.default.svc".into()],
        anonymous_auth: true,
        node_tls: NodeTls::default(),
        master_id: None,
        event_ttl: std::time::Duration::from_secs(3600),
        drain: Duration::from_secs(1),
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(config()).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = store::Config::new(dir.path());
        settings.extract = std::sync::Arc::new(ObjectExtract::builtin());
        let store = Store::open(settings).unwrap();
        let api = ApiServer::new(config, store.clone()).await.unwrap();
        let server = Self { api, user: admin(), store, _dir: Arc::new(dir) };
        let account = serde_json::json!({"metadata": {"name": "default"}});
        server.post("/api/v1/namespaces/default/serviceaccounts", &account).await;
        server
    }

    /// Another server on the same store.
    pub(crate) async fn beside(&self, config: Config) -> Self {
        let (store, dir) = (self.store.clone(), Arc::clone(&self._dir));
        let api = ApiServer::new(config, store.clone()).await.unwrap();
        Self { api, user: admin(), store, _dir: dir }
    }

    /// The same server, called by somebody else.
    pub(crate) fn with_user(mut self, user: User) -> Self {
        self.user = user;
        self
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.api.handle(request, Caller::new(self.user.clone())).await
    }

    pub(crate) async fn call(
        &self,
        method: &str,
        uri: &str,
        object: Option<&Value>,
    ) -> (u16, Value) {
        let content_type = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        self.call_with(method, uri, (content_type, ""), object).await
    }

    pub(crate) async fn call_with(
        &self,
        method: &str,
        uri: &str,
        (content_type, accept): (&str, &str),
        object: Option<&Value>,
    ) -> (u16, Value) {
        let request = request(method, uri, (content_type, accept), object);
        let response = self.send(request).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        (code, value)
    }

    pub(crate) async fn get(&self, uri: &str) -> Value {
        let (code, value) = self.call("GET", uri, None).await;
        assert_eq!(code, 200, "GET {uri}: {value}");
        value
    }

    pub(crate) async fn post(&self, uri: &str, object: &Value) -> Value {
        let (code, value) = self.call("POST", uri, Some(object)).await;
        assert_eq!(code, 201, "POST {uri}: {value}");
        value
    }

    pub(crate) async fn watch(&self, uri: &str) -> Events {
        let response = self.send(request("GET", uri, ("", ""), None)).await;
        assert_eq!(response.status(), 200);
        Events { body: response.into_body(), rest: Vec::new() }
    }
}

pub(crate) fn request(
    method: &str,
    uri: &str,
    (content_type, accept): (&str, &str),
    object: Option<&Value>,
) -> Request<Body> {
    let body = object.map_or_else(body::empty, |o| body::full(o.to_string()));
    let mut builder =
        Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(uri);
    if !content_type.is_empty() {
        builder = builder.header(header::CONTENT_TYPE, content_type);
    }
    if !accept.is_empty() {
        builder = builder.header(header::ACCEPT, accept);
    }
    builder.body(body).unwrap()
}

/// The events of a watch, line by line.
pub(crate) struct Events {
    body: Body,
    rest: Vec<u8>,
}

impl Events {
    /// The next event; `None` at the end of the watch.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(at) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=at).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame());
            let frame = frame.await.expect("an event within ten seconds")?;
            self.rest.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    /// `ADDED default/a` of the next event.
    pub(crate) async fn brief(&mut self) -> String {
        let event = self.next().await.expect("an event");
        format!(
            "{} {}",
            event["type"].as_str().unwrap(),
            event["object"]["metadata"]["name"].as_str().unwrap_or_default()
        )
    }
}
