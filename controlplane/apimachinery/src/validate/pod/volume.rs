//! A pod's volumes, and the mounts that use them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::super::text::{config_map_key, dns1123_label};
use super::super::view::{filled, flag, get, has, int, invalid, items, one_of_if_there, sub, text};
use super::super::volume::claim_spec;
use super::container::{field_ref, resource_field_ref};
use crate::field::{FieldError, FieldErrors, Path};
use crate::quantity::Quantity;

/// In the order in which upstream looks at them.
const SOURCES: [&str; 31] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
    "local",
];
const DOWNWARD_FIELDS: [&str; 5] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];
const HOST_PATH_TYPES: [&str; 8] = [
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];
const MODE_ERROR: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const TOKEN_SECONDS_MIN: i64 = 600;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;

/// The valid volumes of a pod, by name.
pub(super) struct Volumes<'a>(BTreeMap<&'a str, &'a Value>);

/// Checks `spec.volumes`.
pub(super) fn volumes<'a>(
    errors: &mut FieldErrors,
    spec: &'a Value,
    path: &Path<'_>,
) -> Volumes<'a> {
    let mut valid = BTreeMap::new();
    for (index, volume) in items(spec, "volumes").iter().enumerate() {
        let path = path.index(index);
        let mut found = FieldErrors::new();
        sources(&mut found, volume, &path);
        let (name, name_path) = (text(volume, "name"), path.child("name"));
        if name.is_empty() {
            found.push(FieldError::required(&name_path, ""));
        } else {
            invalid(&mut found, &name_path, name, dns1123_label(name));
        }
        if valid.contains_key(name) {
            found.push(FieldError::duplicate(&name_path, name));
        }
        if found.is_empty() {
            valid.insert(name, volume);
        } else {
            errors.append(found);
        }
    }
    Volumes(valid)
}

fn sources(errors: &mut FieldErrors, volume: &Value, path: &Path<'_>) {
    let mut given = 0;
    for name in SOURCES {
        let Some(source) = get(volume, name) else { continue };
        given += 1;
        let path = path.child(name);
        if given > 1 {
            errors.push(FieldError::forbidden(&path, "may not specify more than 1 volume type"));
        } else {
            one_source(errors, name, source, &path);
        }
    }
    if given == 0 {
        errors.push(FieldError::required(path, "must specify a volume type"));
    }
}

fn one_source(errors: &mut FieldErrors, name: &str, source: &Value, path: &Path<'_>) {
    match name {
        "emptyDir" => {
            let limit = text(source, "sizeLimit").parse::<Quantity>();
            if limit.is_ok_and(|limit| limit.sign() < 0) {
                let why = "SizeLimit field must be a valid resource quantity";
                errors.push(FieldError::forbidden(&path.child("sizeLimit"), why));
            }
        }
        "hostPath" => host_path(errors, source, path),
        "secret" => {
            if text(source, "secretName").is_empty() {
                errors.push(FieldError::required(&path.child("secretName"), ""));
            }
            mode(errors, source, "defaultMode", path);
            key_items(errors, source, path);
        }
        "configMap" => {
            if text(source, "name").is_empty() {
                errors.push(FieldError::required(&path.child("name"), ""));
            }
            mode(errors, source, "defaultMode", path);
            key_items(errors, source, path);
        }
        "downwardAPI" => {
            mode(errors, source, "defaultMode", path);
            downward_items(errors, source, path);
        }
        "projected" => projected(errors, source, path),
        "persistentVolumeClaim" if text(source, "claimName").is_empty() => {
            errors.push(FieldError::required(&path.child("claimName"), ""));
        }
        "nfs" => required(errors, source, &["server", "path"], path),
        "csi" => required(errors, source, &["driver"], path),
        "iscsi" => required(errors, source, &["targetPortal", "iqn"], path),
        "ephemeral" => {
            let template_path = path.child("volumeClaimTemplate");
            match get(source, "volumeClaimTemplate") {
                None => errors.push(FieldError::required(&template_path, "")),
                Some(template) => {
                    claim_spec(errors, sub(template, "spec"), &template_path.child("spec"));
                }
            }
        }
        "image" => {
            required(errors, source, &["reference"], path);
            let policies = ["Always", "IfNotPresent", "Never"];
            one_of_if_there(errors, source, "pullPolicy", &policies, path);
        }
        _ => {}
    }
}

fn required(errors: &mut FieldErrors, source: &Value, keys: &[&str], path: &Path<'_>) {
    for key in keys.iter().filter(|key| text(source, key).is_empty()) {
        errors.push(FieldError::required(&path.child(key), ""));
    }
}

/// A path on the host: no steps back, and of a known type.
pub(in super::super) fn host_path(errors: &mut FieldErrors, source: &Value, path: &Path<'_>) {
    let file = text(source, "path");
    if file.is_empty() {
        return errors.push(FieldError::required(&path.child("path"), ""));
    }
    no_steps_back(errors, file, &path.child("path"));
    if has(source, "type") && !HOST_PATH_TYPES.contains(&text(source, "type")) {
        let path = path.child("type");
        errors.push(FieldError::not_supported(&path, text(source, "type"), &HOST_PATH_TYPES));
    }
}

fn no_steps_back(errors: &mut FieldErrors, file: &str, path: &Path<'_>) {
    if file.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, file, "must not contain '..'"));
    }
}

/// A relative path that stays below where it starts.
pub(super) fn descending(errors: &mut FieldErrors, file: &str, path: &Path<'_>) {
    if file.starts_with('/') {
        errors.push(FieldError::invalid(path, file, "must be a relative path"));
    }
    no_steps_back(errors, file, path);
}

fn mode(errors: &mut FieldErrors, source: &Value, key: &str, path: &Path<'_>) {
    if let Some(mode) = int(source, key).filter(|mode| !(0..=0o777).contains(mode)) {
        errors.push(FieldError::invalid(&path.child(key), mode, MODE_ERROR));
    }
}

fn key_items(errors: &mut FieldErrors, source: &Value, path: &Path<'_>) {
    let all = path.child("items");
    for (index, item) in items(source, "items").iter().enumerate() {
        let path = all.index(index);
        let key = text(item, "key");
        if key.is_empty() {
            errors.push(FieldError::required(&path.child("key"), ""));
        } else {
            invalid(errors, &path.child("key"), key, config_map_key(key));
        }
        item_path(errors, item, &path);
        mode(errors, item, "mode", &path);
    }
}

fn item_path(errors: &mut FieldErrors, item: &Value, path: &Path<'_>) {
    let path = path.child("path");
    match text(item, "path") {
        "" => errors.push(FieldError::required(&path, "")),
        file => {
            descending(errors, file, &path);
            if file.starts_with("..") && file.split('/').all(|part| part != "..") {
                errors.push(FieldError::invalid(&path, file, "must not start with '..'"));
            }
        }
    }
}

fn downward_items(errors: &mut FieldErrors, source: &Value, path: &Path<'_>) {
    let all = path.child("items");
    for (index, item) in items(source, "items").iter().enumerate() {
        let path = all.index(index);
        item_path(errors, item, &path);
        match (get(item, "fieldRef"), get(item, "resourceFieldRef")) {
            (Some(reference), None) => {
                field_ref(errors, reference, &DOWNWARD_FIELDS, &path.child("fieldRef"));
            }
            (None, Some(reference)) => {
                resource_field_ref(errors, reference, &path.child("resourceFieldRef"), true);
            }
            (None, None) => {
                let why = "one of fieldRef and resourceFieldRef is required";
                errors.push(FieldError::required(&path.child("fieldRef"), why));
            }
            (Some(_), Some(_)) => {
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(&path, "resource", why));
            }
        }
        mode(errors, item, "mode", &path);
    }
}

fn projected(errors: &mut FieldErrors, source: &Value, path: &Path<'_>) {
    mode(errors, source, "defaultMode", path);
    let all = path.child("sources");
    let mut paths = BTreeSet::new();
    for (index, source) in items(source, "sources").iter().enumerate() {
        let path = all.index(index);
        let mut given = 0;
        for name in [
            "secret",
            "configMap",
            "downwardAPI",
            "serviceAccountToken",
            "clusterTrustBundle",
            "podCertificate",
        ] {
            let Some(one) = get(source, name) else { continue };
            given += 1;
            let path = path.child(name);
            if given > 1 {
                let why = "may not specify more than 1 volume type per source";
                errors.push(FieldError::forbidden(&path, why));
                continue;
            }
            match name {
                "secret" | "configMap" => {
                    required(errors, one, &["name"], &path);
                    key_items(errors, one, &path);
                }
                "downwardAPI" => downward_items(errors, one, &path),
                "serviceAccountToken" => token(errors, one, &path),
                _ => {}
            }
            let taken = items(one, "items").iter().map(|item| text(item, "path"));
            for file in taken.chain(Some(text(one, "path"))).filter(|file| !file.is_empty()) {
                if !paths.insert(file.to_owned()) {
                    let why = "conflicting duplicate paths";
                    errors.push(FieldError::invalid(&all, file, why));
                }
            }
        }
        if given == 0 {
            let why = "must specify a volume type";
            errors.push(FieldError::required(&path, why));
        }
    }
}

fn token(errors: &mut FieldErrors, source: &Value, path: &Path<'_>) {
    let seconds = int(source, "expirationSeconds").unwrap_or_default();
    let seconds_path = path.child("expirationSeconds");
    if seconds < TOKEN_SECONDS_MIN {
        let why = "may not specify a duration less than 10 minutes";
        errors.push(FieldError::invalid(&seconds_path, seconds, why));
    } else if seconds > TOKEN_SECONDS_MAX {
        let why = "may not specify a duration larger than 2^32 seconds";
        errors.push(FieldError::invalid(&seconds_path, seconds, why));
    }
    if text(source, "path").is_empty() {
        errors.push(FieldError::required(&path.child("path"), ""));
    } else {
        descending(errors, text(source, "path"), &path.child("path"));
    }
}

impl Volumes<'_> {
    fn is_claim(&self, name: &str) -> Option<bool> {
        let volume = self.0.get(name)?;
        Some(has(volume, "persistentVolumeClaim") || has(volume, "ephemeral"))
    }

    /// `volumeMounts` of a container.
    pub(super) fn mounts(&self, errors: &mut FieldErrors, container: &Value, path: &Path<'_>) {
        let mounts = items(container, "volumeMounts");
        for (index, mount) in mounts.iter().enumerate() {
            let path = path.index(index);
            let name = text(mount, "name");
            if name.is_empty() {
                errors.push(FieldError::required(&path.child("name"), ""));
            }
            if !self.0.contains_key(name) {
                errors.push(FieldError::not_found(&path.child("name"), name));
            }
            let target = text(mount, "mountPath");
            if target.is_empty() {
                errors.push(FieldError::required(&path.child("mountPath"), ""));
            }
            if mounts[..index].iter().any(|other| text(other, "mountPath") == target) {
                let path = path.child("mountPath");
                errors.push(FieldError::invalid(&path, target, "must be unique"));
            }
            let devices = items(container, "volumeDevices");
            if devices.iter().any(|device| text(device, "name") == name) {
                let why = "must not already exist in volumeDevices";
                errors.push(FieldError::invalid(&path.child("name"), name, why));
            }
            if devices.iter().any(|device| text(device, "devicePath") == target) {
                let why = "must not already exist as a path in volumeDevices";
                errors.push(FieldError::invalid(&path.child("mountPath"), target, why));
            }
            sub_path(errors, mount, &path);
            propagation(errors, mount, container, &path);
        }
    }

    /// `volumeDevices` of a container.
    pub(super) fn devices(&self, errors: &mut FieldErrors, container: &Value, path: &Path<'_>) {
        let devices = items(container, "volumeDevices");
        for (index, device) in devices.iter().enumerate() {
            let path = path.index(index);
            let (name, target) = (text(device, "name"), text(device, "devicePath"));
            if name.is_empty() {
                errors.push(FieldError::required(&path.child("name"), ""));
            }
            match self.is_claim(name) {
                None => errors.push(FieldError::not_found(&path.child("name"), name)),
                Some(false) => {
                    let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                    errors.push(FieldError::invalid(&path.child("name"), name, why));
                }
                Some(true) => {}
            }
            if target.is_empty() {
                errors.push(FieldError::required(&path.child("devicePath"), ""));
            }
            if devices[..index].iter().any(|other| text(other, "devicePath") == target) {
                let path = path.child("devicePath");
                errors.push(FieldError::invalid(&path, target, "must be unique"));
            }
            no_steps_back(errors, target, &path.child("devicePath"));
        }
    }
}

fn sub_path(errors: &mut FieldErrors, mount: &Value, path: &Path<'_>) {
    if filled(mount, "subPath") {
        descending(errors, text(mount, "subPath"), &path.child("subPath"));
    }
    if filled(mount, "subPathExpr") {
        if filled(mount, "subPath") {
            let why = "subPathExpr and subPath are mutually exclusive";
            let path = path.child("subPathExpr");
            errors.push(FieldError::invalid(&path, text(mount, "subPathExpr"), why));
        }
        descending(errors, text(mount, "subPathExpr"), &path.child("subPathExpr"));
    }
}

fn propagation(errors: &mut FieldErrors, mount: &Value, container: &Value, path: &Path<'_>) {
    let known = ["Bidirectional", "HostToContainer", "None"];
    let propagation = path.child("mountPropagation");
    one_of_if_there(errors, mount, "mountPropagation", &known, path);
    let privileged = flag(sub(container, "securityContext"), "privileged");
    if text(mount, "mountPropagation") == "Bidirectional" && !privileged {
        let why = "Bidirectional mount propagation is available only to privileged containers";
        errors.push(FieldError::forbidden(&propagation, why));
    }
    let recursive = text(mount, "recursiveReadOnly");
    if !matches!(recursive, "" | "Disabled") && !flag(mount, "readOnly") {
        let why = "may only be specified when readOnly is true";
        errors.push(FieldError::forbidden(&path.child("recursiveReadOnly"), why));
    }
}
