//! The reviews: what a client asks about its own or another's rights, about a token, or about itself.
//!
//! Owns the translation between the review objects and the authorizer's and authenticator's questions (Kubernetes 1.36,
//! `pkg/registry/{authorization,authentication}`). Whether the client may ask has been decided before. Stores nothing.

use super::{Attributes, Authorizer, Decision, ResourceTarget, Target, UserRules};
use crate::User;
use crate::authn::Authenticator;
use apimachinery::field::{FieldError, FieldErrors, Path};
use apimachinery::gvk::GroupKind;
use apimachinery::status::ApiError;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const GROUP: &str = "authorization.k8s.io";

/// Answers reviews.
#[derive(Debug, Clone, Copy)]
pub struct Reviews<'a> {
    /// Who may do what.
    pub authorizer: &'a Authorizer,
    /// Who holds a token.
    pub authenticator: &'a Authenticator,
    /// Who asks.
    pub user: &'a User,
    /// The namespace of the request; empty for the cluster's reviews.
    pub namespace: &'a str,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AccessSpec {
    resource_attributes: Option<ResourceAttributes>,
    non_resource_attributes: Option<PathAttributes>,
    user: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ResourceAttributes {
    namespace: String,
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    name: String,
    field_selector: Selector,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Selector {
    raw_selector: String,
    requirements: Vec<Requirement>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Requirement {
    key: String,
    operator: String,
    values: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PathAttributes {
    path: String,
    verb: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenSpec {
    token: String,
    audiences: Vec<String>,
}

impl Selector {
    /// The equalities alone: nothing else decides anything.
    fn raw(&self) -> String {
        if !self.raw_selector.is_empty() {
            return self.raw_selector.clone();
        }
        let equalities = self.requirements.iter().filter_map(|term| match term.values.as_slice() {
            [value] if term.operator == "In" => Some(format!("{}={value}", term.key)),
            _ => None,
        });
        equalities.collect::<Vec<_>>().join(",")
    }
}

impl Reviews<'_> {
    /// Fills in the status of a posted review; `None` when the kind is no review's.
    pub fn answer(
        &self,
        kind: &str,
        review: &mut Value,
        now: Timestamp,
    ) -> Option<Result<(), ApiError>> {
        let status = match kind {
            "SelfSubjectAccessReview" => self.self_access(kind, review),
            "SubjectAccessReview" => self.access(kind, review),
            "LocalSubjectAccessReview" => self.local_access(kind, review),
            "SelfSubjectRulesReview" => self.rules(review),
            "SelfSubjectReview" => Ok(json!({"userInfo": user_info(self.user)})),
            "TokenReview" => self.token(review, now),
            _ => return None,
        };
        Some(status.map(|status| review["status"] = status))
    }

    fn self_access(&self, kind: &str, review: &Value) -> Result<Value, ApiError> {
        let spec: AccessSpec = spec_of(kind, review)?;
        check_target(kind, &spec)?;
        Ok(self.decide(self.user, &spec))
    }

    fn access(&self, kind: &str, review: &Value) -> Result<Value, ApiError> {
        let spec: AccessSpec = spec_of(kind, review)?;
        check_target(kind, &spec)?;
        if spec.user.is_empty() && spec.groups.is_empty() {
            let path = Path::new("spec");
            let path = path.child("user");
            let why = "at least one of user or group must be specified";
            return Err(invalid(kind, FieldError::invalid(&path, "", why)));
        }
        let user = User {
            name: spec.user.clone(),
            uid: spec.uid.clone(),
            groups: spec.groups.clone(),
            extra: spec.extra.clone(),
        };
        Ok(self.decide(&user, &spec))
    }

    fn local_access(&self, kind: &str, review: &Value) -> Result<Value, ApiError> {
        let spec: AccessSpec = spec_of(kind, review)?;
        let of = spec.resource_attributes.as_ref().map(|target| target.namespace.as_str());
        if let Some(of) = of.filter(|of| *of != self.namespace) {
            let path = Path::new("spec");
            let (path, why) = (path.child("resourceAttributes"), "must match metadata.namespace");
            let path = path.child("namespace");
            return Err(invalid(kind, FieldError::invalid(&path, of, why)));
        }
        self.access(kind, review)
    }

    fn decide(&self, user: &User, spec: &AccessSpec) -> Value {
        let selector =
            spec.resource_attributes.as_ref().map(|t| t.field_selector.raw()).unwrap_or_default();
        let (verb, target) = match (&spec.resource_attributes, &spec.non_resource_attributes) {
            (Some(given), _) => {
                let target = ResourceTarget {
                    group: &given.group,
                    version: &given.version,
                    resource: &given.resource,
                    subresource: &given.subresource,
                    namespace: &given.namespace,
                    name: &given.name,
                    field_selector: &selector,
                };
                (given.verb.as_str(), Target::Resource(target))
            }
            (None, Some(given)) => (given.verb.as_str(), Target::Path(&given.path)),
            (None, None) => ("", Target::Path("")),
        };
        let decision = self.authorizer.authorize(&Attributes { user, verb, target });
        let mut status = json!({"allowed": decision.is_allowed()});
        if matches!(decision, Decision::Deny(_)) {
            status["denied"] = json!(true);
        }
        if !decision.reason().is_empty() {
            status["reason"] = json!(decision.reason());
        }
        status
    }

    fn rules(&self, review: &Value) -> Result<Value, ApiError> {
        let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
        if namespace.is_empty() {
            return Err(ApiError::bad_request("no namespace on request"));
        }
        Ok(rules_status(&self.authorizer.rules_for(self.user, namespace)))
    }

    fn token(&self, review: &Value, now: Timestamp) -> Result<Value, ApiError> {
        let spec: TokenSpec = spec_of("TokenReview", review)?;
        if spec.token.is_empty() {
            return Err(ApiError::bad_request(
                "token is required for TokenReview in authentication",
            ));
        }
        let audiences = match spec.audiences.is_empty() {
            true => self.authenticator.api_audiences().to_vec(),
            false => spec.audiences,
        };
        Ok(match self.authenticator.authenticate_token(&spec.token, &audiences, now) {
            Ok(found) => {
                let mut status = json!({"authenticated": true, "user": user_info(&found.user)});
                if !found.audiences.is_empty() {
                    status["audiences"] = json!(found.audiences);
                }
                status
            }
            Err(error) => json!({"user": {}, "error": format!("invalid bearer token, {error}")}),
        })
    }
}

fn spec_of<T: DeserializeOwned + Default>(kind: &str, review: &Value) -> Result<T, ApiError> {
    match review.get("spec") {
        None | Some(Value::Null) => Ok(T::default()),
        Some(spec) => serde_json::from_value(spec.clone()).map_err(|error| {
            ApiError::bad_request(format!("{kind} in version \"v1\" cannot be handled: {error}"))
        }),
    }
}

fn invalid(kind: &str, error: FieldError) -> ApiError {
    ApiError::invalid(GroupKind::new(GROUP, kind), "", &FieldErrors::from(error))
}

fn check_target(kind: &str, spec: &AccessSpec) -> Result<(), ApiError> {
    let path = Path::new("spec");
    let error = match (&spec.resource_attributes, &spec.non_resource_attributes) {
        (Some(_), Some(_)) => FieldError::invalid(
            &path.child("nonResourceAttributes"),
            json!({}),
            "cannot be specified in combination with resourceAttributes",
        ),
        (None, None) => FieldError::invalid(
            &path.child("resourceAttributes"),
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        _ => return Ok(()),
    };
    Err(invalid(kind, error))
}

fn user_info(user: &User) -> Value {
    let mut info = Map::new();
    info.insert("username".to_owned(), json!(user.name));
    if !user.uid.is_empty() {
        info.insert("uid".to_owned(), json!(user.uid));
    }
    if !user.groups.is_empty() {
        info.insert("groups".to_owned(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        info.insert("extra".to_owned(), json!(user.extra));
    }
    Value::Object(info)
}

fn rules_status(found: &UserRules) -> Value {
    let (paths, resources): (Vec<_>, Vec<_>) =
        found.rules.iter().partition(|rule| !rule.non_resource_urls.is_empty());
    let mut status = json!({
        "resourceRules": resources, "nonResourceRules": paths, "incomplete": found.incomplete,
    });
    if !found.errors.is_empty() {
        status["evaluationError"] = json!(found.errors.join(", "));
    }
    status
}
