//! The objects that every cluster has from its first start: those of `bootstrap`, and the `kubernetes` Service with its
//! endpoints, which only the API server can keep right. Must not touch what others own.

use apimachinery::object;
use http::{Method, Request, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    ApiServer, Caller, User, allocate, body,
    bootstrap::{self, Settings},
    random,
    server::SetupError,
    user::GROUP_MASTERS,
};

/// The identity under which the API server changes objects by itself.
const IDENTITY: &str = "system:apiserver";
/// No object of these is larger.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// The port that pods reach the API server's Service at.
const SERVICE_PORT: u16 = 443;

/// Makes what is missing and mends what is wrong.
pub(crate) async fn ensure(server: &ApiServer) -> Result<(), SetupError> {
    let ranges: Vec<String> =
        server.config().service_cidrs.iter().map(|r| r.trunc().to_string()).collect();
    let settings = Settings {
        service_cidrs: &ranges,
        now: Timestamp::now(),
        new_uid: || object::uid_from(random::bytes()),
    };
    bootstrap::ensure(server.registry().store(), &settings).await.map_err(|error| {
        SetupError::Ensure { what: "the first objects".into(), message: error.to_string() }
    })?;
    create(server, "/api/v1/namespaces/default/services", &service(server)).await?;
    let address = server.config().advertise_address;
    if address.is_loopback() {
        tracing::warn!(%address, "pods can't reach a loopback address: the kubernetes Service has no endpoints");
        return Ok(());
    }
    put(server, "/api/v1/namespaces/default/endpoints", &endpoints(server)).await?;
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    put(server, slices, &slice(server)).await
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

fn endpoints(server: &ApiServer) -> Value {
    let config = server.config();
    json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": config.advertise_address.to_string()}],
            "ports": [{"name": "https", "port": config.advertise_port, "protocol": "TCP"}]}]})
}

fn slice(server: &ApiServer) -> Value {
    let config = server.config();
    let family = if config.advertise_address.is_ipv4() { "IPv4" } else { "IPv6" };
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "endpoints": [{"addresses": [config.advertise_address.to_string()],
            "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": config.advertise_port, "protocol": "TCP"}]})
}

/// Creates an object unless it is there.
async fn create(server: &ApiServer, collection: &str, object: &Value) -> Result<(), SetupError> {
    // Asked first: a Service whose address is its own already is refused as one whose address is another's.
    let path = format!("{collection}/{}", object::name(object));
    if let (200, _) = send(server, Method::GET, &path, None).await {
        return Ok(());
    }
    match send(server, Method::POST, collection, Some(object)).await {
        (201 | 409, _) => Ok(()),
        (_, answer) => Err(failed(collection, object, &answer)),
    }
}

/// Makes an object say what it should, without a write where it does.
async fn put(server: &ApiServer, collection: &str, object: &Value) -> Result<(), SetupError> {
    let path = format!("{collection}/{}", object::name(object));
    match send(server, Method::GET, &path, None).await {
        (404, _) => create(server, collection, object).await,
        (200, current) => {
            let mut wanted = current;
            for key in ["subsets", "endpoints", "ports", "addressType"] {
                if let (Some(value), Some(map)) = (object.get(key), wanted.as_object_mut()) {
                    map.insert(key.to_owned(), value.clone());
                }
            }
            match send(server, Method::PUT, &path, Some(&wanted)).await {
                (200, _) => Ok(()),
                (_, answer) => Err(failed(collection, object, &answer)),
            }
        }
        (_, answer) => Err(failed(collection, object, &answer)),
    }
}

fn failed(collection: &str, object: &Value, answer: &Value) -> SetupError {
    SetupError::Ensure {
        what: format!("{collection}/{}", object::name(object)),
        message: object::text(answer, &["message"]).to_owned(),
    }
}

async fn send(
    server: &ApiServer,
    method: Method,
    path: &str,
    object: Option<&Value>,
) -> (u16, Value) {
    let body = object.map_or_else(body::empty, |o| body::full(o.to_string()));
    let mut request = Request::new(body);
    *request.method_mut() = method;
    let json = http::HeaderValue::from_static("application/json");
    request.headers_mut().insert(header::CONTENT_TYPE, json);
    match path.parse() {
        Ok(uri) => *request.uri_mut() = uri,
        Err(_) => return (400, json!({"message": format!("bad path {path}")})),
    }
    let caller = Caller::new(User::authenticated(IDENTITY, &[GROUP_MASTERS]));
    let response = server.handle(request, caller).await;
    let code = response.status().as_u16();
    let answer = match body::collect(response.into_body(), ANSWER_BYTES_MAX).await {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        Err(error) => json!({"message": error.to_string()}),
    };
    (code, answer)
}
