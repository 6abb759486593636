//! `scale`: the number of replicas of a workload, as an autoscaling/v1 Scale. Must not touch anything else of the object.

use std::sync::Arc;

use apimachinery::{
    field::{FieldError, FieldErrors, Path},
    gvk::{GroupKind, GroupVersionKind},
    object,
    selector::LabelSelector,
    status::ApiError,
};
use http::{Response, StatusCode};
use serde_json::{Value, json};
use store::Entry;

use crate::{
    body::Body,
    respond, rules, stored,
    verb::{
        Call,
        create::Stored,
        patch::Patch,
        update::{self, Part, Retry},
        write,
    },
};

const SCALE: GroupVersionKind<'static> = GroupVersionKind::new("autoscaling", "v1", "Scale");

/// Everything is kept but what `change` set itself.
const REPLICAS: Part = Part { isolate: |_, _| {}, ..Part::STATUS };

pub(super) async fn run(call: &Call, body: Body) -> Result<Response<Body>, ApiError> {
    let (stored, warnings) = match call.info.verb.as_str() {
        "update" => {
            let decoded = write::read_kind(call, body, SCALE).await?;
            let mut scale = decoded.object;
            update::check_path(call, &mut scale)?;
            let stored = update::change(call, REPLICAS, Retry::IfUnversioned, |current| {
                scaled(current, &scale)
            });
            (stored.await?, decoded.warnings)
        }
        "patch" => {
            let patch = Patch::read(call, body).await?;
            let validation = rules::field_validation(&call.query, "PatchOptions")?;
            let mut warnings = Vec::new();
            let stored = update::change(call, REPLICAS, patch.retry(), |current| {
                let mut scale = patch.apply(SCALE, &of(current))?;
                warnings = rules::check(SCALE, &mut scale, validation)?;
                scaled(current, &scale)
            });
            let stored = stored.await?;
            (stored, warnings)
        }
        _ => {
            let entry =
                call.server.registry().get(&call.resource, call.namespace(), call.name())?;
            (Stored::Entry(entry), Vec::new())
        }
    };
    let object = match stored {
        Stored::Entry(entry) => decode(&entry)?,
        Stored::Dry(object) => object,
    };
    let mut response = respond::value(&call.answer, StatusCode::OK, &of(&object));
    respond::warn(&mut response, &warnings);
    Ok(response)
}

fn decode(entry: &Arc<Entry>) -> Result<Value, ApiError> {
    stored::decode(entry)
}

/// The object's Scale.
fn of(object: &Value) -> Value {
    let mut metadata = serde_json::Map::new();
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(key) {
            metadata.insert(key.to_owned(), value.clone());
        }
    }
    let replicas = |part: &str| object[part]["replicas"].as_i64().unwrap_or_default();
    let mut scale = json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": replicas("spec")}, "status": {"replicas": replicas("status")}});
    let selector = selector(object);
    if !selector.is_empty() {
        scale["status"]["selector"] = selector.into();
    }
    scale
}

fn selector(object: &Value) -> String {
    let selector = object::at(object, &["spec", "selector"]);
    if object::kind(object) == "ReplicationController" {
        return LabelSelector::from_map(selector).to_string();
    }
    // What is stored has been validated.
    LabelSelector::from_object(selector).map(|s| s.to_string()).unwrap_or_default()
}

/// The object with the Scale's replicas.
fn scaled(current: &Value, scale: &Value) -> Result<Value, ApiError> {
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or_default();
    if replicas < 0 {
        let spec = Path::new("spec");
        let path = spec.child("replicas");
        let error = FieldError::invalid(&path, replicas, "must be greater than or equal to 0");
        let name = object::name(current);
        let kind = GroupKind::new("autoscaling", "Scale");
        return Err(ApiError::invalid(kind, name, &FieldErrors::from(error)));
    }
    let mut object = current.clone();
    *object::at_mut(&mut object, &["spec", "replicas"]) = replicas.into();
    let version = object::resource_version(scale).to_owned();
    *object::at_mut(&mut object, &["metadata", "resourceVersion"]) = version.into();
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_shows_replicas_and_selector() {
        let object = json!({"kind": "Deployment", "metadata": {"name": "d", "labels": {"x": "y"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}}, "status": {"replicas": 2}});
        let scale = of(&object);
        assert_eq!(scale["metadata"], json!({"name": "d"}));
        assert_eq!(scale["status"], json!({"replicas": 2, "selector": "a=b"}));
        let mut wanted = scale;
        wanted["spec"]["replicas"] = json!(5);
        assert_eq!(scaled(&object, &wanted).unwrap()["spec"]["replicas"], 5);
        wanted["spec"]["replicas"] = json!(-1);
        assert_eq!(
            scaled(&object, &wanted).unwrap_err().message,
            "Scale.autoscaling \"d\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
        );
    }
}
