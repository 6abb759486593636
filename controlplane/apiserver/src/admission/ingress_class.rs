//! DefaultIngressClass: an ingress that names no class gets the default one.

use super::{AdmissionRequest, Operation, unreadable};
use crate::lookup::{Lookup, prefix};
use apimachinery::status::ApiError;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const ANNOTATION: &str = "ingressclass.kubernetes.io/is-default-class";
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Class {
    metadata: ClassMeta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClassMeta {
    name: String,
    annotations: BTreeMap<String, String>,
    creation_timestamp: Option<Timestamp>,
}

pub(super) fn admit(
    lookup: &Lookup,
    request: &AdmissionRequest<'_>,
    ingress: &mut Value,
) -> Result<(), ApiError> {
    if request.operation != Operation::Create || !request.is("networking.k8s.io", "ingresses") {
        return Ok(());
    }
    let named = !ingress["spec"]["ingressClassName"].is_null()
        || !ingress["metadata"]["annotations"][CLASS_ANNOTATION].is_null();
    if named {
        return Ok(());
    }
    let classes: Vec<Class> =
        lookup.list(prefix::INGRESS_CLASSES, None).map_err(|error| unreadable(&error))?;
    let is_default = |class: &Class| {
        class.metadata.annotations.get(ANNOTATION).is_some_and(|value| value == "true")
    };
    // Several defaults: the newest wins, then the first by name.
    let chosen = classes.into_iter().filter(is_default).reduce(|best, other| {
        let made = |class: &Class| class.metadata.creation_timestamp;
        if made(&other) > made(&best) { other } else { best }
    });
    if let Some(class) = chosen {
        ingress["spec"]["ingressClassName"] = json!(class.metadata.name);
    }
    Ok(())
}
