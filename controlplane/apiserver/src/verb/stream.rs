//! Streams toward nodes: logs, exec, attach, port-forward and the proxies.

use apimachinery::status::ApiError;
use http::{Request, Response};

use super::Call;
use crate::body::Body;

/// Whether the call is answered by a node.
pub(crate) fn is_stream(call: &Call) -> bool {
    matches!(call.info.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy")
}

pub(crate) async fn run(_call: &Call, _request: Request<Body>) -> Result<Response<Body>, ApiError> {
    Err(ApiError::service_unavailable("streams toward nodes are not available"))
}
