//! The server over its socket: TLS, both HTTP versions, a node's tunnel and what flows through it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

#[cfg(test)]
mod support;

use std::{sync::Arc, time::Duration};

use apiserver::{Body, body};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn, ext::Protocol, service::service_fn, upgrade};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use support::{
    Server,
    tls::{Authority, Identity},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

struct Master {
    server: Server,
    authority: Arc<Authority>,
    address: std::net::SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<std::io::Result<()>>,
}

async fn master() -> Master {
    let authority = Authority::new();
    let mut config = support::config();
    config.ca_pem = authority.pem();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server::with(config).await;
    serve(server, Arc::new(authority), listener)
}

/// Two masters on one store, each of which tells the other of itself.
async fn masters() -> [Master; 2] {
    let authority = Arc::new(Authority::new());
    let mut first: Option<Master> = None;
    for id in ["m1", "m2"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = authority.sign("kube-apiserver-kubelet-client", &["system:masters"]);
        let mut config = support::config();
        config.ca_pem = authority.pem();
        config.master_id = Some(id.to_owned());
        config.advertise_address = "127.0.0.1".parse().unwrap();
        config.advertise_port = listener.local_addr().unwrap().port();
        config.node_tls.certificate_pem = Some(own.certificate_pem.clone());
        config.node_tls.key_pem = Some(own.key.serialize_pem());
        let server = match &first {
            Some(first) => first.server.beside(config).await,
            None => Server::with(config).await,
        };
        let master = serve(server, Arc::clone(&authority), listener);
        let (api, stop) = (master.server.api.clone(), master.stop.subscribe());
        tokio::spawn(async move { api.keep(stop).await });
        match first {
            Some(first) => return [first, master],
            None => first = Some(master),
        }
    }
    unreachable!()
}

fn serve(server: Server, authority: Arc<Authority>, listener: TcpListener) -> Master {
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let (api, tls) = (server.api.clone(), authority.server());
    let task = tokio::spawn(async move { api.serve(listener, tls, stopped).await });
    Master { server, authority, address, stop, task }
}

impl Master {
    async fn connect(&self, identity: &Identity, alpn: &str) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let connector = TlsConnector::from(self.authority.client(identity, alpn));
        connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap()
    }

    /// One request over HTTP/1.1.
    async fn ask(&self, identity: &Identity, request: Request<Full<Bytes>>) -> (StatusCode, Bytes) {
        let io = TokioIo::new(self.connect(identity, "http/1.1").await);
        let (mut sender, connection) = conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let response = sender.send_request(request).await.unwrap();
        (response.status(), response.into_body().collect().await.unwrap().to_bytes())
    }
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header(header::HOST, "master").body(Full::default()).unwrap()
}

/// A node's server: answers with what it was asked, switches to an echo when asked to.
async fn node_answer(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    if request.headers().contains_key(header::UPGRADE) {
        let protocol = request.headers()[header::UPGRADE].clone();
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade::on(request).await.unwrap());
            let mut text = [0; 5];
            io.read_exact(&mut text).await.unwrap();
            io.write_all(&text.to_ascii_uppercase()).await.unwrap();
            io.shutdown().await.unwrap();
        });
        let response = Response::builder()
            .status(101)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, protocol);
        return Ok(response.body(body::empty()).unwrap());
    }
    if request.uri().path().ends_with("/waiting") {
        let text = "container \"waiting\" in pod \"p\" is waiting to start: ContainerCreating";
        let refused = Response::builder().status(400).body(body::full(text)).unwrap();
        return Ok(refused);
    }
    assert!(!request.headers().contains_key(header::AUTHORIZATION));
    Ok(Response::new(body::full(format!("{} {}", request.method(), request.uri()))))
}

/// Opens a node's tunnel; it closes when the task is aborted.
async fn join(master: &Master, name: &str) -> JoinHandle<()> {
    let identity = master.authority.sign(&format!("system:node:{name}"), &["system:nodes"]);
    let io = TokioIo::new(master.connect(&identity, "h2").await);
    let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap();
    let request = || {
        Request::builder()
            .method(Method::CONNECT)
            .uri("https://master/flotilla/v1/tunnel")
            .extension(Protocol::from_static("flotilla-tunnel.v1"))
            .body(Full::<Bytes>::default())
            .unwrap()
    };
    let mut response = sender.send_request(request()).await;
    // The server's settings may arrive after the first try.
    for _ in 0..100 {
        if response.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        response = sender.send_request(request()).await;
    }
    let response = response.unwrap();
    assert_eq!(response.status(), 200);
    let io = TokioIo::new(upgrade::on(response).await.unwrap());
    let link = tokio::spawn(async move {
        let _sender = sender;
        let config = yamux::Config::default();
        let mut tunnel = yamux::Connection::new(io.compat(), config, yamux::Mode::Server);
        while let Some(Ok(stream)) = std::future::poll_fn(|cx| tunnel.poll_next_inbound(cx)).await {
            tokio::spawn(async move {
                let mut stream = stream.compat();
                let mut head = [0; 2];
                stream.read_exact(&mut head).await.unwrap();
                assert_eq!(head, [1, 1]);
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(node_answer))
                    .with_upgrades();
                drop(served.await);
            });
        }
    });
    while !master.server.api.tunnels().has(name) {
        tokio::task::yield_now().await;
    }
    link
}

async fn pod(master: &Master) {
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [
        {"name": "c", "image": "i"}, {"name": "waiting", "image": "i"}]}});
    master.server.post("/api/v1/namespaces/default/pods", &pod).await;
}

#[tokio::test]
async fn callers_are_who_their_certificates_say() {
    let master = master().await;
    let admin = master.authority.sign("admin", &["system:masters"]);
    let nobody = master.authority.sign("nobody", &[]);
    let (code, body) = master.ask(&admin, get("/api/v1/namespaces/default")).await;
    assert_eq!(code, 200);
    let namespace: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(namespace["metadata"]["name"], "default");
    let (code, body) = master.ask(&nobody, get("/api/v1/namespaces/default")).await;
    assert_eq!(code, 403);
    let status: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        status["message"],
        "namespaces \"default\" is forbidden: User \"nobody\" cannot get resource \"namespaces\" in API group \"\" in the namespace \"default\""
    );
    let mut wrong = get("/version");
    wrong.headers_mut().insert(header::AUTHORIZATION, "Bearer nonsense".parse().unwrap());
    let stranger = Arc::new(rustls_client_without_certificate(&master));
    let io = TcpStream::connect(master.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let io = TlsConnector::from(stranger).connect(name, io).await.unwrap();
    let (mut sender, connection) = conn::http1::handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(sender.send_request(wrong).await.unwrap().status(), 401);
    master.stop.send_replace(true);
    let ended = tokio::time::timeout(Duration::from_secs(10), master.task).await;
    ended.expect("the server drains").unwrap().unwrap();
}

fn rustls_client_without_certificate(master: &Master) -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(master.authority.roots())
        .with_no_client_auth()
}

#[tokio::test]
async fn logs_and_upgrades_go_through_the_tunnel() {
    let master = master().await;
    let admin = master.authority.sign("admin", &["system:masters"]);
    let _node = join(&master, "n1").await;
    pod(&master).await;
    let base = "/api/v1/namespaces/default/pods/p";
    let (code, body) =
        master.ask(&admin, get(&format!("{base}/log?container=c&follow=true"))).await;
    assert_eq!(
        (code, &body[..]),
        (StatusCode::OK, &b"GET /containerLogs/default/p/c?follow=true"[..])
    );
    let (code, body) = master.ask(&admin, get(&format!("{base}/log"))).await;
    assert_eq!(code, 400);
    let status: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        status["message"],
        "a container name must be specified for pod p, choose one of: [c waiting]"
    );
    let (code, body) = master.ask(&admin, get(&format!("{base}/log?container=waiting"))).await;
    let status: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((code.as_u16(), &status["reason"]), (400, &json!("BadRequest")));
    assert!(status["message"].as_str().unwrap().contains("ContainerCreating"));

    let io = TokioIo::new(master.connect(&admin, "http/1.1").await);
    let (mut sender, connection) = conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let mut exec = get(&format!("{base}/exec?container=c&command=sh&stdin=true&stdout=true"));
    exec.headers_mut().insert(header::CONNECTION, "Upgrade".parse().unwrap());
    exec.headers_mut().insert(header::UPGRADE, "websocket".parse().unwrap());
    let response = sender.send_request(exec).await.unwrap();
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()[header::UPGRADE], "websocket");
    let mut io = TokioIo::new(upgrade::on(response).await.unwrap());
    io.write_all(b"hello").await.unwrap();
    let mut text = String::new();
    io.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "HELLO");
}

#[tokio::test]
async fn a_master_reaches_nodes_through_the_master_that_holds_their_tunnel() {
    let [one, two] = masters().await;
    let admin = one.authority.sign("admin", &["system:masters"]);
    let log = "/api/v1/namespaces/default/pods/p/log?container=c";
    pod(&one).await;
    let (code, _) = two.ask(&admin, get(log)).await;
    assert_eq!(code, 404, "no such node");
    let node = json!({"metadata": {"name": "n1"}});
    one.server.post("/api/v1/nodes", &node).await;
    let link = join(&one, "n1").await;
    let asked = async |master: &Master, wanted: u16| {
        let mut last = (StatusCode::OK, Bytes::new());
        for _ in 0..200 {
            last = master.ask(&admin, get(log)).await;
            if last.0 == wanted {
                return last.1;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{last:?}");
    };
    let body = asked(&two, 200).await;
    assert_eq!(&body[..], b"GET /containerLogs/default/p/c");

    // The node moves; what the first master still holds of it counts no more.
    let moved = join(&two, "n1").await;
    for master in [&two, &one] {
        asked(master, 200).await;
    }
    // Nobody but a master may use the other one's tunnels.
    let stranger = one.authority.sign("system:node:n2", &["system:nodes"]);
    let (code, _) = two.ask(&stranger, get("/flotilla/v1/forward?node=n1")).await;
    assert_eq!(code, 403);

    // Gone altogether, the node is said to have no tunnel, by both.
    link.abort();
    moved.abort();
    for master in [&two, &one] {
        let body = asked(master, 503).await;
        let status: Value = serde_json::from_slice(&body).unwrap();
        let message = status["message"].as_str().unwrap();
        assert_eq!(message, "node \"n1\" has no tunnel to this master and no address");
    }
}

#[tokio::test]
async fn only_nodes_open_tunnels() {
    let master = master().await;
    let admin = master.authority.sign("admin", &["system:masters"]);
    let io = TokioIo::new(master.connect(&admin, "h2").await);
    let (mut sender, connection) =
        conn::http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let (code, _) = master.ask(&admin, get("/flotilla/v1/tunnel")).await;
    assert_eq!(code, 403);
    sender.ready().await.unwrap();
    let (code, _) = master.ask(&admin, get("/api/v1/nodes/none/proxy/healthz")).await;
    assert_eq!(code, 404);
}
