//! Streams toward nodes: logs, exec, attach, port-forward and the proxies. The node speaks the protocols; here the request is
//! turned into the node's, and bytes are copied. Must not interpret what flows.

mod location;
mod relay;

use apimachinery::{
    object,
    status::{ApiError, Reason},
};
use http::{Request, Response, StatusCode};
use serde_json::Value;

use self::location::Target;
use super::Call;
use crate::{
    body::{self, Body},
    stored,
};

/// What is read of a node's refusal.
const REFUSAL_BYTES_MAX: usize = 10 * 1024;

/// Whether the call is answered by a node.
pub(crate) fn is_stream(call: &Call) -> bool {
    matches!(call.info.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy")
}

pub(crate) async fn run(call: &Call, request: Request<Body>) -> Result<Response<Body>, ApiError> {
    match (call.resource.plural.as_str(), call.info.subresource.as_str()) {
        ("pods", "proxy") => relay(call, location::pod_proxy(call, request.uri())?, request).await,
        ("services", "proxy") => {
            relay(call, location::service_proxy(call, request.uri())?, request).await
        }
        ("nodes", "proxy") => {
            relay(call, location::node_proxy(call, request.uri())?, request).await
        }
        ("pods", subresource) => {
            let entry =
                call.server.registry().get(&call.resource, call.namespace(), call.name())?;
            let pod = stored::decode(&entry)?;
            if subresource == "log" && object::text(&pod, &["spec", "nodeName"]).is_empty() {
                // Kubernetes 1.36: a pod without a node has nothing to say yet.
                return Ok(body::respond(StatusCode::OK, "text/plain", ""));
            }
            let target = location::pod_stream(call, &pod)?;
            let response = relay(call, target, request).await?;
            if subresource == "log" { checked(call, response).await } else { Ok(response) }
        }
        _ => Err(ApiError::path_not_found()),
    }
}

async fn relay(
    call: &Call,
    target: Target,
    request: Request<Body>,
) -> Result<Response<Body>, ApiError> {
    let nodes = call.server.nodes();
    let (stream, host) = match target.address {
        None => {
            let node = nodes.dial(&call.server, &target.node).await?;
            (node.stream, node.host)
        }
        Some(address) => {
            (nodes.dial_tcp(&call.server, (&target.node, address)).await?, address.to_string())
        }
    };
    relay::relay(stream, (&host, &target.path_and_query), request).await
}

/// A node's refusal to show a log, as the API says it (Kubernetes 1.36, `GenericHttpResponseChecker`).
async fn checked(call: &Call, response: Response<Body>) -> Result<Response<Body>, ApiError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = match body::collect(response.into_body(), REFUSAL_BYTES_MAX).await {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(error) => format!("(unreadable answer of the node: {error})"),
    };
    Err(match status {
        StatusCode::INTERNAL_SERVER_ERROR => ApiError::internal(text),
        StatusCode::BAD_REQUEST => ApiError::bad_request(text),
        StatusCode::NOT_FOUND => {
            let message = format!(
                "the server could not find the requested resource ( pods/log {}): {text}",
                call.name()
            );
            ApiError::new(404, Reason::NotFound, message)
        }
        other => ApiError::new(other.as_u16(), Reason::Unknown, text),
    })
}

/// The container that a request is for (Kubernetes 1.36, `LogLocation` and `streamLocation`).
fn container<'a>(pod: &'a Value, wanted: &'a str) -> Result<&'a str, ApiError> {
    let names = |field: &'static str| {
        object::list(pod, &["spec", field]).map(|c| object::text(c, &["name"]))
    };
    if !wanted.is_empty() {
        let known = ["containers", "initContainers", "ephemeralContainers"]
            .into_iter()
            .any(|field| names(field).any(|n| n == wanted));
        let name = object::name(pod);
        return if known {
            Ok(wanted)
        } else {
            Err(ApiError::bad_request(format!("container {wanted} is not valid for pod {name}")))
        };
    }
    let containers: Vec<&str> = names("containers").collect();
    if let [only] = containers.as_slice() {
        return Ok(only);
    }
    let name = object::name(pod);
    let inits: Vec<&str> = names("initContainers").collect();
    let mut message = format!(
        "a container name must be specified for pod {name}, choose one of: [{}]",
        containers.join(" ")
    );
    if !inits.is_empty() {
        message += &format!(" or one of the init containers: [{}]", inits.join(" "));
    }
    Err(ApiError::bad_request(message))
}
