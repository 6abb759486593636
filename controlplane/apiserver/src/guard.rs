//! Where a request meets impersonation, authorization and discovery. Must not decide anything itself.

use std::net::SocketAddr;

use apimachinery::{request_info::RequestInfo, status::ApiError};
use http::{Method, Response, StatusCode, request::Parts};

use crate::{
    ApiServer, Body, User,
    authn::impersonation,
    authz::{Attributes, ResourceTarget, Target},
    body, discovery,
};

/// The user the request acts as, if it may.
pub(crate) fn authorize(
    server: &ApiServer,
    parts: &Parts,
    info: &RequestInfo,
    user: User,
) -> Result<User, ApiError> {
    let authorizer = server.authorizer();
    let user = impersonation::impersonate(authorizer, &user, &parts.headers)?.unwrap_or(user);
    authorize_verb(server, info, &user, &info.verb)?;
    Ok(user)
}

/// Whether the user may do `verb` to what the request is about.
pub(crate) fn authorize_verb(
    server: &ApiServer,
    info: &RequestInfo,
    user: &User,
    verb: &str,
) -> Result<(), ApiError> {
    let target = if info.is_resource_request {
        Target::Resource(ResourceTarget {
            group: &info.api_group,
            version: &info.api_version,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            field_selector: &info.field_selector,
        })
    } else {
        Target::Path(&info.path)
    };
    let attributes = Attributes { user, verb, target };
    let decision = server.authorizer().authorize(&attributes);
    if decision.is_allowed() { Ok(()) } else { Err(attributes.forbidden(decision.reason())) }
}

/// Discovery, OpenAPI and OpenID documents.
pub(crate) fn discover(server: &ApiServer, parts: &Parts) -> Option<Response<Body>> {
    let config = server.config();
    let address = SocketAddr::new(config.advertise_address, config.advertise_port);
    if matches!(parts.method, Method::GET | Method::HEAD) {
        let authenticator = server.authenticator();
        match parts.uri.path() {
            "/openid/v1/jwks" => {
                let keys = authenticator.jwks().to_string();
                return Some(body::respond(StatusCode::OK, "application/jwk-set+json", keys));
            }
            "/.well-known/openid-configuration" => {
                let document = authenticator.openid_configuration(&format!("https://{address}"));
                return Some(body::json(StatusCode::OK, &document));
            }
            _ => {}
        }
    }
    discovery::respond(server.table(), parts, &address.to_string())
        .or_else(|| server.openapi().respond(server.table(), parts))
}
