//! `serviceaccounts/token`: from a TokenRequest to a signed token.
//!
//! Owns the request's defaults, validation and the checks of what the token is bound to (Kubernetes 1.36,
//! `pkg/registry/core/serviceaccount/storage`). Who may ask has been decided before.

use super::Authenticator;
use super::service_account::{Binding, Reference, issue};
use crate::lookup::{Lookup, LookupError, Meta, MetaOnly, prefix};
use apimachinery::field::{FieldError, FieldErrors, Path};
use apimachinery::gvk::{GroupKind, GroupResource};
use apimachinery::status::ApiError;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

const DEFAULT_SECONDS: i64 = 60 * 60;
const SECONDS_MIN: i64 = 10 * 60;
const SECONDS_MAX: i64 = 1 << 32;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    audiences: Vec<String>,
    expiration_seconds: Option<i64>,
    bound_object_ref: Option<BoundReference>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct BoundReference {
    api_version: String,
    kind: String,
    name: String,
    uid: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pod {
    metadata: Meta,
    spec: PodSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    service_account_name: String,
    node_name: String,
}

impl Authenticator {
    /// Answers a TokenRequest for the service account with the same object, its status filled in.
    pub fn token_request(
        &self,
        (namespace, name): (&str, &str),
        request: &Value,
        now: Timestamp,
    ) -> Result<Value, ApiError> {
        let spec: Spec = serde_json::from_value(request["spec"].clone()).map_err(|error| {
            ApiError::bad_request(format!(
                "TokenRequest in version \"v1\" cannot be handled: {error}"
            ))
        })?;
        validate(&spec, request["metadata"]["name"].as_str().unwrap_or_default())?;
        let account = found::<MetaOnly>(
            self.lookup.get(prefix::SERVICE_ACCOUNTS, Some(namespace), name),
            ("serviceaccounts", name),
        )?;
        let binding = bind(&self.lookup, (namespace, name), spec.bound_object_ref.as_ref())?;
        let audiences = match spec.audiences.is_empty() {
            true => self.issuer.audiences().to_vec(),
            false => spec.audiences,
        };
        let seconds = spec.expiration_seconds.unwrap_or(DEFAULT_SECONDS);
        let wanted = (audiences.clone(), seconds);
        let issued =
            issue(&self.issuer, &account.metadata, binding, wanted, now).map_err(|error| {
                tracing::error!(%error, "token can't be issued");
                ApiError::internal(format!("failed to generate token: {error}"))
            })?;
        let mut answer = request.clone();
        answer["apiVersion"] = json!("authentication.k8s.io/v1");
        answer["kind"] = json!("TokenRequest");
        answer["metadata"]["name"] = json!(name);
        answer["metadata"]["namespace"] = json!(namespace);
        answer["metadata"]["creationTimestamp"] = json!(rfc3339(now));
        answer["spec"]["audiences"] = json!(audiences);
        answer["spec"]["expirationSeconds"] = json!(seconds);
        answer["status"] =
            json!({"token": issued.token, "expirationTimestamp": rfc3339(issued.expires)});
        Ok(answer)
    }
}

fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn validate(spec: &Spec, name: &str) -> Result<(), ApiError> {
    let path = Path::new("spec");
    let path = path.child("expirationSeconds");
    let why = match spec.expiration_seconds {
        Some(seconds) if seconds < SECONDS_MIN => "may not specify a duration less than 10 minutes",
        Some(seconds) if seconds > SECONDS_MAX => {
            "may not specify a duration larger than 2^32 seconds"
        }
        _ => return Ok(()),
    };
    let errors: FieldErrors =
        FieldError::invalid(&path, spec.expiration_seconds.unwrap_or_default(), why).into();
    let kind = GroupKind::new("authentication.k8s.io", "TokenRequest");
    Err(ApiError::invalid(kind, name, &errors))
}

fn found<T>(
    answer: Result<Option<T>, LookupError>,
    (resource, name): (&str, &str),
) -> Result<T, ApiError> {
    answer
        .map_err(|error| ApiError::internal(error.to_string()))?
        .ok_or_else(|| ApiError::not_found(GroupResource::new("", resource), name))
}

fn reference(meta: &Meta) -> Reference {
    Reference { name: meta.name.clone(), uid: meta.uid.clone() }
}

fn bind(
    lookup: &Lookup,
    (namespace, account): (&str, &str),
    wanted: Option<&BoundReference>,
) -> Result<Binding, ApiError> {
    let Some(wanted) = wanted else { return Ok(Binding::default()) };
    let mut binding = Binding::default();
    let namespace = Some(namespace);
    let uid = match (wanted.api_version.as_str(), wanted.kind.as_str()) {
        ("v1", "Pod") => {
            let answer = lookup.get::<Pod>(prefix::PODS, namespace, &wanted.name);
            let pod = found(answer, ("pods", &wanted.name))?;
            if pod.spec.service_account_name != account {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                )));
            }
            binding.node = node_of(lookup, &pod.spec.node_name)?;
            binding.pod = Some(reference(&pod.metadata));
            pod.metadata.uid
        }
        ("v1", "Node") => {
            let answer = lookup.get::<MetaOnly>(prefix::NODES, None, &wanted.name);
            let node = found(answer, ("nodes", &wanted.name))?.metadata;
            binding.node = Some(reference(&node));
            node.uid
        }
        ("v1", "Secret") => {
            let answer = lookup.get::<MetaOnly>(prefix::SECRETS, namespace, &wanted.name);
            let secret = found(answer, ("secrets", &wanted.name))?.metadata;
            binding.secret = Some(reference(&secret));
            secret.uid
        }
        (version, kind) => {
            return Err(ApiError::bad_request(format!(
                "cannot bind token to object of type {version}, Kind={kind}"
            )));
        }
    };
    if !wanted.uid.is_empty() && wanted.uid != uid {
        let why = format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            wanted.uid
        );
        return Err(ApiError::conflict(GroupResource::new("", &wanted.kind), &wanted.name, why));
    }
    Ok(binding)
}

/// The node of a bound pod goes into the token; a node that is gone is only named.
fn node_of(lookup: &Lookup, name: &str) -> Result<Option<Reference>, ApiError> {
    if name.is_empty() {
        return Ok(None);
    }
    let node: Option<MetaOnly> = lookup
        .get(prefix::NODES, None, name)
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let uid = node.map(|node| node.metadata.uid).unwrap_or_default();
    Ok(Some(Reference { name: name.to_owned(), uid }))
}
