//! Owns how answers are written: objects and errors, as JSON or YAML, with warnings. Must not decide them.

use apimachinery::{
    negotiate::{Answer, Format},
    status::ApiError,
};
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::Value;
use store::Entry;

use crate::{
    body::{self, Body},
    stored,
    verb::Call,
    view::View,
};

/// Upstream's bound of all warnings together.
const WARNINGS_BYTES_MAX: usize = 4 * 1024;

/// A value in the format that was asked for.
pub(crate) fn value(answer: &Answer, status: StatusCode, value: &Value) -> Response<Body> {
    match answer.format {
        Format::Json if answer.pretty => {
            let text = serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string());
            body::respond(status, Format::Json.content_type(), text + "\n")
        }
        Format::Json => body::json(status, value),
        Format::Yaml => match serde_saphyr::to_string(value) {
            Ok(text) => body::respond(status, Format::Yaml.content_type(), text),
            Err(e) => error(&ApiError::internal(format!("write YAML: {e}"))),
        },
    }
}

/// A value with status 200.
pub(crate) fn whole(call: &Call, object: &Value) -> Result<Response<Body>, ApiError> {
    Ok(value(&call.answer, StatusCode::OK, object))
}

/// One stored object in the form that was asked for.
pub(crate) fn entry(
    call: &Call,
    status: StatusCode,
    entry: &Entry,
) -> Result<Response<Body>, ApiError> {
    let view = View { resource: call.resource.clone(), form: call.form };
    if call.answer.format == Format::Json && !call.answer.pretty {
        let bytes = view.one(entry, entry.mod_revision)?;
        return Ok(body::respond(status, Format::Json.content_type(), bytes));
    }
    let object = view.one_of(stored::decode(entry)?);
    Ok(value(&call.answer, status, &object))
}

/// One object that is a tree already, in its stored form.
pub(crate) fn object(call: &Call, status: StatusCode, object: Value) -> Response<Body> {
    let view = View { resource: call.resource.clone(), form: call.form };
    value(&call.answer, status, &view.one_of(object))
}

/// An error as `metav1.Status`.
pub(crate) fn error(error: &ApiError) -> Response<Body> {
    let status = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = body::json(status, &error.to_status());
    let retry = error.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    if retry > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry));
    }
    if status == StatusCode::UNAUTHORIZED {
        let bearer = HeaderValue::from_static("Bearer realm=\"kubernetes\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
    }
    response
}

/// Adds `Warning: 299 - "text"` headers.
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    let mut left = WARNINGS_BYTES_MAX;
    for warning in warnings {
        let clean: String = warning.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let text = format!("299 - \"{}\"", clean.replace('\\', "\\\\").replace('"', "\\\""));
        left = match left.checked_sub(text.len()) {
            Some(left) => left,
            None => return,
        };
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}
