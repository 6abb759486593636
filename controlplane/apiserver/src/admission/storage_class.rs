//! DefaultStorageClass: a claim that names no class gets the default one.

use super::{AdmissionRequest, Operation, unreadable};
use crate::lookup::{Lookup, prefix};
use apimachinery::status::ApiError;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const ANNOTATIONS: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

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
    claim: &mut Value,
) -> Result<(), ApiError> {
    if request.operation != Operation::Create || !request.is("", "persistentvolumeclaims") {
        return Ok(());
    }
    let named = !claim["spec"]["storageClassName"].is_null()
        || !claim["metadata"]["annotations"][CLASS_ANNOTATION].is_null();
    if named {
        return Ok(());
    }
    let classes: Vec<Class> =
        lookup.list(prefix::STORAGE_CLASSES, None).map_err(|error| unreadable(&error))?;
    let is_default = |class: &Class| {
        let annotations = &class.metadata.annotations;
        ANNOTATIONS.iter().any(|name| annotations.get(*name).is_some_and(|value| value == "true"))
    };
    // Several defaults: the newest wins, then the first by name.
    let chosen = classes.into_iter().filter(is_default).reduce(|best, other| {
        let made = |class: &Class| class.metadata.creation_timestamp;
        if made(&other) > made(&best) { other } else { best }
    });
    if let Some(class) = chosen {
        claim["spec"]["storageClassName"] = json!(class.metadata.name);
    }
    Ok(())
}
