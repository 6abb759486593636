//! `get`: one object. Must not change anything.

use apimachinery::status::ApiError;
use http::{Response, StatusCode};

use super::{Call, list};
use crate::{body::Body, respond};

pub(crate) fn run(call: &Call) -> Result<Response<Body>, ApiError> {
    let entry = call.server.registry().get(&call.resource, call.namespace(), call.name())?;
    let wanted = list::parse_revision(call.query.get("resourceVersion"))?;
    let current = call.server.registry().store().revision();
    if wanted > current {
        return Err(ApiError::too_large_resource_version(wanted, current, 1));
    }
    respond::entry(call, StatusCode::OK, &entry)
}
