//! The objects that every cluster has from its first start: those of `bootstrap`, and the `kubernetes` Service (`endpoints`); and how the
//! API server changes objects by itself. Must not touch what others own.

use apimachinery::object;
use http::{Method, Request, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    ApiServer, Caller, User, body,
    bootstrap::{self, Settings},
    endpoints, random,
    server::SetupError,
    user::GROUP_MASTERS,
};

/// The identity under which the API server changes objects by itself.
const IDENTITY: &str = "system:apiserver";
/// No object of these is larger.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

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
    endpoints::reconcile(server).await
}

/// Creates an object unless it is there.
pub(crate) async fn create(
    server: &ApiServer,
    collection: &str,
    object: &Value,
) -> Result<(), SetupError> {
    // Asked first: a Service whose address is its own already is refused as one whose address is another's.
    let path = format!("{collection}/{}", object::name(object));
    match send(server, Method::GET, &path, None).await {
        (200, _) => return Ok(()),
        (404, _) => {}
        (_, answer) => return Err(failed(collection, object, &answer)),
    }
    match send(server, Method::POST, collection, Some(object)).await {
        (201 | 409, _) => Ok(()),
        // Another master that starts at this moment may have been quicker.
        (_, answer) => match send(server, Method::GET, &path, None).await {
            (200, _) => Ok(()),
            _ => Err(failed(collection, object, &answer)),
        },
    }
}

pub(crate) fn failed(collection: &str, object: &Value, answer: &Value) -> SetupError {
    SetupError::Ensure {
        what: format!("{collection}/{}", object::name(object)),
        message: object::text(answer, &["message"]).to_owned(),
    }
}

pub(crate) async fn send(
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
