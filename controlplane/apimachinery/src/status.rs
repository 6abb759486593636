//! `metav1.Status`: one constructor per upstream reason, with upstream's texts (`k8s.io/apimachinery/pkg/api/errors`).
//! Must not know HTTP beyond the status code.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use crate::field::{FieldErrors, quote};
use crate::gvk::{GroupKind, GroupResource};

/// Upstream's `metav1.StatusReason`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reason {
    /// `""`
    Unknown,
    /// 401
    Unauthorized,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 409: the name is taken
    AlreadyExists,
    /// 409: somebody else was quicker
    Conflict,
    /// 410
    Gone,
    /// 410: the resource version is too old
    Expired,
    /// 422
    Invalid,
    /// 504: the server could not finish in time
    ServerTimeout,
    /// 504
    Timeout,
    /// 429
    TooManyRequests,
    /// 400
    BadRequest,
    /// 405
    MethodNotAllowed,
    /// 406
    NotAcceptable,
    /// 413
    RequestEntityTooLarge,
    /// 415
    UnsupportedMediaType,
    /// 500
    InternalError,
    /// 503
    ServiceUnavailable,
    /// 507
    StoreReadError,
    /// A reason given by a webhook or an extension server.
    Given(Box<str>),
}

impl Reason {
    /// The text in `status.reason`.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Unknown => "",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::Conflict => "Conflict",
            Self::Gone => "Gone",
            Self::Expired => "Expired",
            Self::Invalid => "Invalid",
            Self::ServerTimeout => "ServerTimeout",
            Self::Timeout => "Timeout",
            Self::TooManyRequests => "TooManyRequests",
            Self::BadRequest => "BadRequest",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable => "NotAcceptable",
            Self::RequestEntityTooLarge => "RequestEntityTooLarge",
            Self::UnsupportedMediaType => "UnsupportedMediaType",
            Self::InternalError => "InternalError",
            Self::ServiceUnavailable => "ServiceUnavailable",
            Self::StoreReadError => "StorageReadError",
            Self::Given(text) => text,
        }
    }
}

/// One cause in the details.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cause {
    /// Machine-readable, such as `FieldValueInvalid`.
    pub reason: Cow<'static, str>,
    /// For people.
    pub message: String,
    /// Path of the field, or empty.
    pub field: String,
}

/// `metav1.StatusDetails`; empty strings are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Details {
    /// Name of the object.
    pub name: String,
    /// Group of the resource or kind.
    pub group: String,
    /// Resource (plural), or the kind for `Invalid`.
    pub kind: String,
    /// UID of the object.
    pub uid: String,
    /// What went wrong, one by one.
    pub causes: Vec<Cause>,
    /// When to try again.
    pub retry_after_seconds: u32,
}

/// An error as the API answers it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// Class of the error: what code branches on.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// The object meant and the causes.
    pub details: Option<Box<Details>>,
}

/// Result of everything that answers a request.
pub type ApiResult<T> = Result<T, ApiError>;

fn of(resource: GroupResource<'_>, name: &str) -> Option<Box<Details>> {
    Some(Box::new(Details {
        name: name.to_owned(),
        group: resource.group.to_owned(),
        kind: resource.resource.to_owned(),
        ..Details::default()
    }))
}

impl ApiError {
    /// Any error without details.
    pub fn new(code: u16, reason: Reason, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    /// 404: `pods "x" not found`
    pub fn not_found(resource: GroupResource<'_>, name: &str) -> Self {
        Self {
            details: of(resource, name),
            ..Self::new(404, Reason::NotFound, format!("{resource} {} not found", quote(name)))
        }
    }

    /// 404 for a path that no API serves.
    pub fn path_not_found() -> Self {
        let message = "the server could not find the requested resource";
        Self { details: Some(Box::default()), ..Self::new(404, Reason::NotFound, message) }
    }

    /// 409: `pods "x" already exists`
    pub fn already_exists(resource: GroupResource<'_>, name: &str) -> Self {
        let message = format!("{resource} {} already exists", quote(name));
        Self { details: of(resource, name), ..Self::new(409, Reason::AlreadyExists, message) }
    }

    /// 409 for a `generateName` that met taken names only.
    pub fn generate_name_conflict(resource: GroupResource<'_>, name: &str) -> Self {
        let message = format!(
            "{resource} {} already exists, the server was not able to generate a unique name for the object",
            quote(name)
        );
        let mut details = of(resource, name);
        if let Some(details) = details.as_mut() {
            details.retry_after_seconds = 1;
        }
        Self { details, ..Self::new(409, Reason::AlreadyExists, message) }
    }

    /// 409: `Operation cannot be fulfilled on pods "x": <why>`
    pub fn conflict(resource: GroupResource<'_>, name: &str, why: impl AsRef<str>) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {resource} {}: {}",
            quote(name),
            why.as_ref()
        );
        Self { details: of(resource, name), ..Self::new(409, Reason::Conflict, message) }
    }

    /// 409 of an update whose `resourceVersion` is not the newest.
    pub fn modified(resource: GroupResource<'_>, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 403: `pods "x" is forbidden: <why>`
    pub fn forbidden(resource: GroupResource<'_>, name: &str, why: impl AsRef<str>) -> Self {
        let why = why.as_ref();
        let message = if resource.resource.is_empty() && resource.group.is_empty() {
            format!("forbidden: {why}")
        } else if name.is_empty() {
            format!("{resource} is forbidden: {why}")
        } else {
            format!("{resource} {} is forbidden: {why}", quote(name))
        };
        Self { details: of(resource, name), ..Self::new(403, Reason::Forbidden, message) }
    }

    /// 422: `Pod "x" is invalid: <errors>` with a cause for each error.
    pub fn invalid(kind: GroupKind<'_>, name: &str, errors: &FieldErrors) -> Self {
        let message = if errors.is_empty() {
            format!("{kind} {} is invalid", quote(name))
        } else {
            format!("{kind} {} is invalid: {errors}", quote(name))
        };
        let details = Details {
            name: name.to_owned(),
            group: kind.group.to_owned(),
            kind: kind.kind.to_owned(),
            causes: errors.iter().map(crate::field::FieldError::cause).collect(),
            ..Details::default()
        };
        Self { details: Some(Box::new(details)), ..Self::new(422, Reason::Invalid, message) }
    }

    /// 422 of a patch that does not apply.
    pub fn unprocessable() -> Self {
        let message = "the server rejected our request due to an error in our request";
        Self { details: Some(Box::default()), ..Self::new(422, Reason::Invalid, message) }
    }

    /// 400
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, Reason::BadRequest, message)
    }

    /// 401
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(401, Reason::Unauthorized, message)
    }

    /// 405: `watch is not supported on resources of kind "pods"`
    pub fn method_not_supported(resource: GroupResource<'_>, verb: &str) -> Self {
        let message = format!(
            "{verb} is not supported on resources of kind {}",
            quote(&resource.to_string())
        );
        Self { details: of(resource, ""), ..Self::new(405, Reason::MethodNotAllowed, message) }
    }

    /// 405 without a resource.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self { details: Some(Box::default()), ..Self::new(405, Reason::MethodNotAllowed, message) }
    }

    /// 406 with the types that would be acceptable.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message =
            format!("only the following media types are accepted: {}", accepted.join(", "));
        Self::new(406, Reason::NotAcceptable, message)
    }

    /// 415 with the types that would do.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, Reason::UnsupportedMediaType, message)
    }

    /// 413
    pub fn request_entity_too_large(message: impl AsRef<str>) -> Self {
        let message = format!("Request entity is too large: {}", message.as_ref());
        Self::new(413, Reason::RequestEntityTooLarge, message)
    }

    /// 410 with reason `Expired`: the resource version or continue token is too old.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, Reason::Expired, message)
    }

    /// 410 with reason `Gone`.
    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(410, Reason::Gone, message)
    }

    /// 429 with the cause `DisruptionBudget` or none.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let details = Details { retry_after_seconds, ..Details::default() };
        Self {
            details: Some(Box::new(details)),
            ..Self::new(429, Reason::TooManyRequests, message)
        }
    }

    /// 504: the store is not far enough for the asked-for resource version.
    pub fn too_large_resource_version(wanted: i64, current: i64, retry_after_seconds: u32) -> Self {
        let message = format!("Too large resource version: {wanted}, current: {current}");
        let cause = Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".to_owned(),
            field: String::new(),
        };
        let details = Details { causes: vec![cause], retry_after_seconds, ..Details::default() };
        Self {
            details: Some(Box::new(details)),
            ..Self::new(504, Reason::Timeout, format!("Timeout: {message}"))
        }
    }

    /// 504
    pub fn timeout(message: impl AsRef<str>, retry_after_seconds: u32) -> Self {
        let details = Details { retry_after_seconds, ..Details::default() };
        Self {
            details: Some(Box::new(details)),
            ..Self::new(504, Reason::Timeout, format!("Timeout: {}", message.as_ref()))
        }
    }

    /// 503
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::new(503, Reason::ServiceUnavailable, message)
    }

    /// 500: `Internal error occurred: <why>`
    pub fn internal(why: impl AsRef<str>) -> Self {
        let why = why.as_ref();
        let details = Details {
            causes: vec![Cause { message: why.to_owned(), ..Cause::default() }],
            ..Details::default()
        };
        Self {
            details: Some(Box::new(details)),
            ..Self::new(500, Reason::InternalError, format!("Internal error occurred: {why}"))
        }
    }

    /// Adds a cause.
    #[must_use]
    pub fn with_cause(mut self, cause: Cause) -> Self {
        self.details.get_or_insert_default().causes.push(cause);
        self
    }

    /// The `Status` object.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "code": self.code,
        });
        if let Value::Object(map) = &mut status {
            insert(map, "reason", self.reason.as_str());
            if let Some(details) = &self.details {
                map.insert("details".to_owned(), details.to_value());
            }
        }
        status
    }

    /// Reads a `Status` object, such as the answer of a webhook; `None` when it is not a failure.
    pub fn from_status(status: &Value) -> Option<Self> {
        if status.get("status").and_then(Value::as_str) == Some("Success") {
            return None;
        }
        let text = |value: &Value, key: &str| {
            value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let code = status
            .get("code")
            .and_then(Value::as_u64)
            .and_then(|code| u16::try_from(code).ok())
            .filter(|code| (100..600).contains(code))
            .unwrap_or(500);
        let reason = text(status, "reason");
        let reason = KNOWN
            .iter()
            .find(|known| known.as_str() == reason)
            .cloned()
            .unwrap_or_else(|| Reason::Given(reason.into_boxed_str()));
        let details = status.get("details").map(|details| {
            let causes = details.get("causes").and_then(Value::as_array);
            Box::new(Details {
                name: text(details, "name"),
                group: text(details, "group"),
                kind: text(details, "kind"),
                uid: text(details, "uid"),
                causes: causes
                    .into_iter()
                    .flatten()
                    .map(|cause| Cause {
                        reason: text(cause, "reason").into(),
                        message: text(cause, "message"),
                        field: text(cause, "field"),
                    })
                    .collect(),
                retry_after_seconds: details
                    .get("retryAfterSeconds")
                    .and_then(Value::as_u64)
                    .and_then(|seconds| u32::try_from(seconds).ok())
                    .unwrap_or_default(),
            })
        });
        Some(Self { code, reason, message: text(status, "message"), details })
    }
}

const KNOWN: &[Reason] = &[
    Reason::Unknown,
    Reason::Unauthorized,
    Reason::Forbidden,
    Reason::NotFound,
    Reason::AlreadyExists,
    Reason::Conflict,
    Reason::Gone,
    Reason::Expired,
    Reason::Invalid,
    Reason::ServerTimeout,
    Reason::Timeout,
    Reason::TooManyRequests,
    Reason::BadRequest,
    Reason::MethodNotAllowed,
    Reason::NotAcceptable,
    Reason::RequestEntityTooLarge,
    Reason::UnsupportedMediaType,
    Reason::InternalError,
    Reason::ServiceUnavailable,
    Reason::StoreReadError,
];

impl Details {
    /// The JSON of `status.details`.
    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        insert(&mut map, "name", &self.name);
        insert(&mut map, "group", &self.group);
        insert(&mut map, "kind", &self.kind);
        insert(&mut map, "uid", &self.uid);
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(|cause| {
                let mut map = Map::new();
                insert(&mut map, "reason", &cause.reason);
                insert(&mut map, "message", &cause.message);
                insert(&mut map, "field", &cause.field);
                Value::Object(map)
            });
            map.insert("causes".to_owned(), causes.collect());
        }
        if self.retry_after_seconds != 0 {
            map.insert("retryAfterSeconds".to_owned(), self.retry_after_seconds.into());
        }
        Value::Object(map)
    }
}

fn insert(map: &mut Map<String, Value>, key: &str, text: &str) {
    if !text.is_empty() {
        map.insert(key.to_owned(), text.into());
    }
}

/// The `Status` of something that went well, such as a delete: `details` names the object.
pub fn success(details: &Details) -> Value {
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details.to_value(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::{FieldError, Path};

    #[test]
    fn answers_are_upstreams() {
        let error = ApiError::not_found(GroupResource::new("", "namespaces"), "nope");
        assert_eq!(
            error.to_status(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "namespaces \"nope\" not found", "reason": "NotFound",
                "details": {"name": "nope", "kind": "namespaces"}, "code": 404})
        );
        let spec = Path::new("spec");
        let errors = FieldError::invalid(&spec.child("replicas"), -1, "must be >= 0").into();
        let error = ApiError::invalid(GroupKind::new("apps", "Deployment"), "x", &errors);
        assert_eq!(
            error.to_status(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "Deployment.apps \"x\" is invalid: spec.replicas: Invalid value: -1: must be >= 0",
                "reason": "Invalid", "code": 422,
                "details": {"name": "x", "group": "apps", "kind": "Deployment", "causes": [
                    {"reason": "FieldValueInvalid", "message": "Invalid value: -1: must be >= 0",
                     "field": "spec.replicas"}]}})
        );
    }

    #[test]
    fn a_status_survives_the_round_trip() {
        let pods = GroupResource::new("", "pods");
        for error in [
            ApiError::modified(pods, "x"),
            ApiError::forbidden(pods, "", "no"),
            ApiError::internal("boom"),
            ApiError::too_many_requests("slow down", 3),
            ApiError::new(418, Reason::Given("Teapot".into()), "short and stout"),
        ] {
            assert_eq!(ApiError::from_status(&error.to_status()), Some(error));
        }
        assert_eq!(ApiError::from_status(&success(&Details::default())), None);
    }
}
