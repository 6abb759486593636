//! PersistentVolumes and their claims.

use serde_json::Value;

use super::meta::label_selector;
use super::pod::host_path;
use super::schedule::node_selector;
use super::semantic::{same, written};
use super::text::dns1123_subdomain;
use super::view::{
    filled, get, has, immutable, invalid, items, one_of_if_there, shown, sub, text, texts,
};
use crate::field::{FieldError, FieldErrors, Path};
use crate::object::{Object, map_mut};
use crate::patch::merge;
use crate::quantity::Quantity;

const SPEC: Path<'static> = Path::new("spec");
const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// What a persistent volume can be made of.
const SOURCES: [&str; 22] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

fn access_modes(errors: &mut FieldErrors, spec: &Value, missing: &str, path: &Path<'_>) {
    let path = path.child("accessModes");
    if !filled(spec, "accessModes") {
        errors.push(FieldError::required(&path, missing));
    }
    for mode in texts(spec, "accessModes").filter(|mode| !MODES.contains(mode)) {
        errors.push(FieldError::not_supported(&path, mode, &MODES));
    }
    let exclusive = texts(spec, "accessModes").any(|mode| mode == "ReadWriteOncePod");
    if exclusive && items(spec, "accessModes").len() > 1 {
        let why = "may not use ReadWriteOncePod with other access modes";
        errors.push(FieldError::forbidden(&path, why));
    }
}

fn positive(errors: &mut FieldErrors, value: &Value, path: &Path<'_>) {
    let amount = value.as_str().and_then(|text| text.parse::<Quantity>().ok()).unwrap_or_default();
    if amount.sign() < 0 {
        errors.push(FieldError::invalid(path, value.clone(), super::view::NEGATIVE));
    }
    if amount.sign() <= 0 {
        errors.push(FieldError::invalid(path, value.clone(), "must be greater than zero"));
    }
}

fn class_name(errors: &mut FieldErrors, spec: &Value, path: &Path<'_>) {
    let class = text(spec, "storageClassName");
    if !class.is_empty() {
        invalid(errors, &path.child("storageClassName"), class, dns1123_subdomain(class));
    }
}

/// A PersistentVolume.
pub(super) fn volume(errors: &mut FieldErrors, object: &Value) {
    let spec = sub(object, "spec");
    access_modes(errors, spec, "", &SPEC);
    let capacity = SPEC.child("capacity");
    let amounts = sub(spec, "capacity");
    if !filled(spec, "capacity") {
        errors.push(FieldError::required(&capacity, ""));
    }
    let only_storage =
        has(amounts, "storage") && amounts.as_object().is_some_and(|all| all.len() == 1);
    if !only_storage {
        errors.push(FieldError::not_supported(&capacity, amounts.clone(), &["storage"]));
    }
    if let Some(storage) = get(amounts, "storage") {
        positive(errors, storage, &capacity.key("storage"));
    }
    let policies = ["Delete", "Recycle", "Retain"];
    if filled(spec, "persistentVolumeReclaimPolicy") {
        one_of_if_there(errors, spec, "persistentVolumeReclaimPolicy", &policies, &SPEC);
    }
    let affinity = sub(spec, "nodeAffinity");
    let affinity_path = SPEC.child("nodeAffinity");
    if has(spec, "nodeAffinity") {
        match get(affinity, "required") {
            Some(selector) => node_selector(errors, selector, &affinity_path.child("required")),
            None => {
                let why = "must specify required node constraints";
                errors.push(FieldError::required(&affinity_path.child("required"), why));
            }
        }
    }
    sources(errors, spec);
    class_name(errors, spec, &SPEC);
    one_of_if_there(errors, spec, "volumeMode", &["Block", "Filesystem"], &SPEC);
}

fn sources(errors: &mut FieldErrors, spec: &Value) {
    let mut given = 0;
    for name in SOURCES {
        let Some(source) = get(spec, name) else { continue };
        given += 1;
        let path = SPEC.child(name);
        if given > 1 {
            errors.push(FieldError::forbidden(&path, "may not specify more than 1 volume type"));
            continue;
        }
        match name {
            "hostPath" => host_path(errors, source, &path),
            "local" => {
                if text(source, "path").is_empty() {
                    errors.push(FieldError::required(&path.child("path"), ""));
                }
                if !has(spec, "nodeAffinity") {
                    let metadata = Path::new("metadata");
                    let why = "Local volume requires node affinity";
                    errors.push(FieldError::required(&metadata.child("annotations"), why));
                }
            }
            "nfs" => {
                for key in ["server", "path"].into_iter().filter(|key| text(source, key).is_empty())
                {
                    errors.push(FieldError::required(&path.child(key), ""));
                }
            }
            "csi" => {
                for key in ["driver", "volumeHandle"] {
                    if text(source, key).is_empty() {
                        errors.push(FieldError::required(&path.child(key), ""));
                    }
                }
            }
            _ => {}
        }
    }
    if given == 0 {
        errors.push(FieldError::required(&SPEC, "must specify a volume type"));
    }
    let root = text(sub(spec, "hostPath"), "path") == "/";
    if root && text(spec, "persistentVolumeReclaimPolicy") == "Recycle" {
        let path = SPEC.child("persistentVolumeReclaimPolicy");
        let why = "may not be 'recycle' for a hostPath mount of '/'";
        errors.push(FieldError::forbidden(&path, why));
    }
}

/// What of a PersistentVolume must not change.
pub(super) fn update_volume(errors: &mut FieldErrors, (object, old): (&Value, &Value)) {
    let (spec, before) = (sub(object, "spec"), sub(old, "spec"));
    let source =
        |spec: &Value| -> Vec<Value> { SOURCES.iter().map(|name| shown(spec, name)).collect() };
    let unchanged = source(spec).iter().zip(&source(before)).all(|(a, b)| same(Some(a), Some(b)));
    if !unchanged {
        let why = "spec.persistentvolumesource is immutable after creation";
        errors.push(FieldError::forbidden(&SPEC.child("persistentvolumesource"), why));
    }
    if get(spec, "volumeMode") != get(before, "volumeMode") {
        let why = super::view::IMMUTABLE;
        let value = shown(spec, "volumeMode");
        errors.push(FieldError::invalid(&Path::new("volumeMode"), value, why));
    }
    if has(before, "nodeAffinity") {
        immutable(errors, (spec, before), "nodeAffinity", &SPEC);
    }
}

/// A PersistentVolumeClaim.
pub(super) fn claim(errors: &mut FieldErrors, object: &Value) {
    claim_spec(errors, sub(object, "spec"), &SPEC);
}

/// The spec of a claim, also of an ephemeral volume.
pub(super) fn claim_spec(errors: &mut FieldErrors, spec: &Value, path: &Path<'_>) {
    access_modes(errors, spec, "at least 1 access mode is required", path);
    if let Some(selector) = get(spec, "selector") {
        label_selector(errors, selector, &path.child("selector"));
    }
    let resources = path.child("resources");
    let storage = resources.key("storage");
    let requests = sub(sub(spec, "resources"), "requests");
    match get(requests, "storage") {
        None => errors.push(FieldError::required(&storage, "")),
        Some(amount) => positive(errors, amount, &storage),
    }
    class_name(errors, spec, path);
    one_of_if_there(errors, spec, "volumeMode", &["Block", "Filesystem"], path);
    for key in ["dataSource", "dataSourceRef"] {
        let Some(source) = get(spec, key) else { continue };
        let path = path.child(key);
        for part in ["name", "kind"].into_iter().filter(|part| text(source, part).is_empty()) {
            errors.push(FieldError::required(&path.child(part), ""));
        }
        if text(source, "apiGroup").is_empty() && text(source, "kind") != "PersistentVolumeClaim" {
            let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            let path = path.child("kind");
            errors.push(FieldError::invalid(&path, text(source, "kind"), why));
        }
    }
}

/// What of a PersistentVolumeClaim must not change.
pub(super) fn update_claim(errors: &mut FieldErrors, (object, old): (&Value, &Value)) {
    let (mut spec, before) = (shown(object, "spec"), shown(old, "spec"));
    let bound = text(sub(old, "status"), "phase") == "Bound";
    let munged = map_mut(&mut spec);
    if !filled(&before, "volumeName") {
        munged.remove("volumeName");
    }
    if bound {
        keep_requests(munged, &before);
    }
    munged.remove("volumeAttributesClassName");
    if !has(&before, "storageClassName") {
        munged.remove("storageClassName");
    }
    let mut comparable = before.clone();
    let map = map_mut(&mut comparable);
    map.remove("volumeAttributesClassName");
    if !filled(&before, "volumeName") {
        map.remove("volumeName");
    }
    if !same(Some(&spec), Some(&comparable)) {
        let changes = merge::diff(&written(&comparable), &written(&spec));
        let why = format!(
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{changes}"
        );
        errors.push(FieldError::forbidden(&SPEC, why));
    }
    shrunk(errors, object, old);
}

fn keep_requests(munged: &mut Object, before: &Value) {
    let requests = sub(sub(before, "resources"), "requests");
    let resources = map_mut(munged.entry("resources").or_insert(Value::Null));
    if requests.is_null() {
        resources.remove("requests");
    } else {
        resources.insert("requests".to_owned(), requests.clone());
    }
}

fn shrunk(errors: &mut FieldErrors, object: &Value, old: &Value) {
    let amount = |value: Option<&Value>| {
        value.and_then(Value::as_str).and_then(|text| text.parse::<Quantity>().ok())
    };
    let asked = amount(object.pointer("/spec/resources/requests/storage"));
    let before = amount(old.pointer("/spec/resources/requests/storage"));
    let has = amount(old.pointer("/status/capacity/storage"));
    let (Some(asked), Some(before)) = (asked, before) else { return };
    if asked < before && has.is_none_or(|has| asked < has) {
        let resources = SPEC.child("resources");
        let requests = resources.child("requests");
        let why = "field can not be less than status.capacity";
        errors.push(FieldError::forbidden(&requests.child("storage"), why));
    }
}
