//! `token` of a service account: a signed, bound, short-lived token. Must not keep it.

use apimachinery::{gvk::GroupVersionKind, status::ApiError};
use http::{Response, StatusCode};
use jiff::Timestamp;

use crate::{
    admit::{self, Operation},
    body::Body,
    respond, rules,
    verb::{Call, write},
};

const TOKEN_REQUEST: GroupVersionKind<'static> =
    GroupVersionKind::new("authentication.k8s.io", "v1", "TokenRequest");

pub(super) async fn run(call: &Call, body: Body) -> Result<Response<Body>, ApiError> {
    let rules::Decoded { mut object, warnings } =
        write::read_kind(call, body, TOKEN_REQUEST).await?;
    write::check_namespace(call, &mut object)?;
    admit::mutate(call, Operation::Create, &mut object, None).await?;
    let account = (call.namespace(), call.name());
    let authenticator = call.server.authenticator();
    let answer = authenticator.token_request(account, &object, Timestamp::now())?;
    let mut response = respond::value(&call.answer, StatusCode::CREATED, &answer);
    respond::warn(&mut response, &warnings);
    Ok(response)
}
