//! Owns the order of one request: what it asks for, whether the caller may, which verb does it, how it is answered.
//! Must not know sockets or storage.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use apimachinery::{
    negotiate::{self, Answer, As},
    request_info::RequestInfo,
    status::ApiError,
};
use http::{Method, Request, Response, header, request::Parts};

use crate::{
    ApiServer, Body, Caller, Resource, User, forward, meta,
    metrics::Labels,
    query::Query,
    registry, respond,
    verb::{self, Call},
    view::{Form, Include},
};

/// Kubernetes 1.36: a request that doesn't stream is answered within a minute.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Answers one request.
pub(crate) async fn handle(
    server: &ApiServer,
    request: Request<Body>,
    caller: Caller,
) -> Response<Body> {
    let began = Instant::now();
    let inflight = server.metrics().begin();
    let (mut parts, body) = request.into_parts();
    if let Some(response) = meta::cacerts(server, parts.uri.path()) {
        return response;
    }
    if let Some(answer) = server.tunnels().accept(&mut parts, &caller.user) {
        return answer.unwrap_or_else(|error| respond::error(&error));
    }
    if parts.uri.path() == forward::PATH {
        let answer = Box::pin(forward::accept(server.tunnels(), &mut parts, &caller.user)).await;
        return answer.unwrap_or_else(|error| respond::error(&error));
    }
    let info = request_info(&parts);
    let labels = labels(server, &info);
    let is_head = parts.method == Method::HEAD;
    let response = match route(server, parts, (info, body), caller.user).await {
        Ok(response) => response,
        Err(error) => respond::error(&error),
    };
    drop(inflight);
    server.metrics().count(labels, response.status().as_u16(), began.elapsed());
    if is_head { response.map(|_| crate::body::empty()) } else { response }
}

fn request_info(parts: &Parts) -> RequestInfo {
    let mut info = RequestInfo::parse(parts.method.as_str(), parts.uri.path(), parts.uri.query());
    let streams = matches!(info.subresource.as_str(), "exec" | "attach" | "portforward");
    if info.is_resource_request && info.resource == "pods" && streams && info.verb == "get" {
        // Kubernetes 1.36: what runs something in a pod needs `create`, however it is asked for.
        info.verb = "create".to_owned();
    }
    info
}

/// Unknown paths share one set of labels.
fn labels(server: &ApiServer, info: &RequestInfo) -> Labels {
    let row = server.table().get(&info.api_group, &info.api_version, &info.resource);
    match row {
        Some(row) => Labels {
            verb: info.verb.clone(),
            group: row.group.clone(),
            version: row.version.clone(),
            resource: row.plural.clone(),
            subresource: row
                .subresource(&info.subresource)
                .map(|s| s.name.to_owned())
                .unwrap_or_default(),
        },
        None => Labels {
            verb: String::new(),
            group: String::new(),
            version: String::new(),
            resource: String::new(),
            subresource: String::new(),
        },
    }
}

async fn route(
    server: &ApiServer,
    parts: Parts,
    (info, body): (RequestInfo, Body),
    user: User,
) -> Result<Response<Body>, ApiError> {
    let query = Query::parse(parts.uri.query());
    catch_up(server, &info, &query).await?;
    let user = crate::guard::authorize(server, &parts, &info, user)?;
    if !info.is_resource_request {
        if let Some(document) = crate::guard::discover(server, &parts) {
            return Ok(document);
        }
        let answer = meta::respond(server, &parts.method, parts.uri.path(), &query).await;
        return answer.ok_or_else(ApiError::path_not_found);
    }
    let resource = find(server, &info)?;
    let (answer, form) = negotiate(&parts, &query)?;
    let call = Call {
        server: server.clone(),
        info,
        user,
        resource,
        query,
        headers: parts.headers.clone(),
        answer,
        form,
    };
    if verb::stream::is_stream(&call) {
        return Box::pin(verb::stream::run(&call, Request::from_parts(parts, body))).await;
    }
    match tokio::time::timeout(REQUEST_TIMEOUT, Box::pin(dispatch(&call, body))).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::timeout("request did not complete within the allotted timeout", 0)),
    }
}

/// What anybody was told before, by any master, is what this request is judged by and acts on. Only a read that names a revision takes
/// what is here, if that is new enough.
async fn catch_up(server: &ApiServer, info: &RequestInfo, query: &Query) -> Result<(), ApiError> {
    let store = server.registry().store();
    let reads = matches!(info.verb.as_str(), "get" | "list" | "watch");
    let named = query.get("resourceVersion").parse().ok();
    let here = named.is_some_and(|wanted: store::Revision| wanted <= store.revision());
    if !info.is_resource_request || (reads && here) {
        return Ok(());
    }
    store.fresh().await.map_err(registry::write_error)
}

fn find(server: &ApiServer, info: &RequestInfo) -> Result<Arc<Resource>, ApiError> {
    let resource = server
        .table()
        .get(&info.api_group, &info.api_version, &info.resource)
        .ok_or_else(ApiError::path_not_found)?;
    if info.subresource.is_empty() {
        return Ok(Arc::clone(resource));
    }
    let part = resource.subresource(&info.subresource).ok_or_else(ApiError::path_not_found)?;
    // What was authorized must be what is done: `watch` (`/api/v1/watch/…`) never is.
    if !part.verbs.contains(&info.verb.as_str()) || info.name.is_empty() {
        return Err(ApiError::method_not_supported(registry::group_resource(resource), &info.verb));
    }
    Ok(Arc::clone(resource))
}

fn negotiate(parts: &Parts, query: &Query) -> Result<(Answer, Form), ApiError> {
    let header = parts.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    let serves = |to: &As| {
        ["Table", "PartialObjectMetadata", "PartialObjectMetadataList"]
            .iter()
            .any(|kind| to.is_meta(kind))
    };
    let mut answer = negotiate::accept(header, serves)?;
    answer.pretty |= query.flag("pretty");
    let form = match &answer.convert {
        None => Form::Object,
        Some(to) if to.is_meta("Table") => Form::Table(match query.get("includeObject") {
            "" | "Metadata" => Include::Metadata,
            "None" => Include::None,
            "Object" => Include::Object,
            other => {
                return Err(ApiError::bad_request(format!(
                    "unrecognized includeObject value: \"{other}\""
                )));
            }
        }),
        Some(_) => Form::Metadata,
    };
    Ok((answer, form))
}

async fn dispatch(call: &Call, body: Body) -> Result<Response<Body>, ApiError> {
    let resource = &*call.resource;
    let verb = call.info.verb.as_str();
    if !call.info.subresource.is_empty() {
        return Box::pin(verb::subresource::run(call, body)).await;
    }
    let offered = resource.has_verb(verb);
    let named = !call.name().is_empty();
    let placed = !resource.is_namespaced() || !call.info.namespace.is_empty();
    let fits = match verb {
        "get" | "update" | "patch" | "delete" => named && placed,
        "create" => !named && placed,
        "deletecollection" => placed,
        _ => true,
    };
    if !offered || !fits {
        return Err(ApiError::method_not_supported(registry::group_resource(resource), verb));
    }
    if !resource.is_stored() {
        return Box::pin(verb::subresource::virtual_resource(call, body)).await;
    }
    match verb {
        "get" => verb::get::run(call),
        "list" => verb::list::run(call),
        "watch" => verb::watch::run(call),
        "create" => verb::create::run(call, body).await,
        "update" => verb::update::run(call, body, verb::update::Part::WHOLE).await,
        "patch" => verb::patch::run(call, body, verb::update::Part::WHOLE).await,
        "delete" => verb::delete::run(call, body).await,
        "deletecollection" => verb::delete_collection::run(call, body).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}
