//! Reviews: answered at once, by their own object with the status filled in. Must not store them.

use apimachinery::status::ApiError;
use http::{Response, StatusCode};
use jiff::Timestamp;

use crate::{
    authz::reviews::Reviews,
    body::Body,
    respond,
    rules::Decoded,
    verb::{Call, write},
};

pub(super) async fn run(call: &Call, body: Body) -> Result<Response<Body>, ApiError> {
    let Decoded { mut object, warnings } = write::read_object(call, body).await?;
    let reviews = Reviews {
        authorizer: call.server.authorizer(),
        authenticator: call.server.authenticator(),
        user: &call.user,
        namespace: call.namespace(),
    };
    reviews
        .answer(&call.resource.kind, &mut object, Timestamp::now())
        .unwrap_or_else(|| Err(super::unsupported(call)))?;
    let mut response = respond::value(&call.answer, StatusCode::CREATED, &object);
    respond::warn(&mut response, &warnings);
    Ok(response)
}
