//! Containers of all sorts: names, images, ports, environment, mounts.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::resources;
use super::super::text::{
    Wrong, config_map_key, dns1123_label, dns1123_subdomain, env_var_name, port_name, port_number,
    qualified_name,
};
use super::super::view::{
    filled, get, has, int, invalid, invalid_number, items, one_of, one_of_if_there, text,
};
use super::volume::Volumes;
use super::{handler, security};
use crate::field::{FieldError, FieldErrors, Path};

/// Of single containers; regular ones have had it since Kubernetes 1.35.
const RESTART_POLICIES: [&str; 3] = ["Always", "Never", "OnFailure"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];
const MESSAGE_POLICIES: [&str; 2] = ["File", "FallbackToLogsOnError"];
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCE_FIELDS: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
/// What an ephemeral container may have.
const EPHEMERAL_FORBIDDEN: [&str; 8] = [
    "ports",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "lifecycle",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
];

/// The three lists of containers.
pub(super) fn containers(
    errors: &mut FieldErrors,
    spec: &Value,
    volumes: &Volumes<'_>,
    path: &Path<'_>,
) {
    let grace = int(spec, "terminationGracePeriodSeconds");
    regular(errors, spec, volumes, &path.child("containers"));
    let init_path = path.child("initContainers");
    let mut names: BTreeSet<&str> =
        items(spec, "containers").iter().map(|one| text(one, "name")).collect();
    for (index, container) in items(spec, "initContainers").iter().enumerate() {
        let path = init_path.index(index);
        common(errors, container, volumes, &path);
        let policy = text(container, "restartPolicy");
        one_of_if_there(errors, container, "restartPolicy", &RESTART_POLICIES, &path);
        let name = text(container, "name");
        if !names.insert(name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        host_ports(errors, std::slice::from_ref(container), &init_path);
        if policy == "Always" {
            handler::of_container(errors, container, grace, &path);
        } else {
            for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if has(container, key) {
                    let why = "may not be set for init containers without restartPolicy=Always";
                    errors.push(FieldError::forbidden(&path.child(key), why));
                }
            }
        }
    }
    ephemeral(errors, spec, volumes, &path.child("ephemeralContainers"));
}

fn regular(errors: &mut FieldErrors, spec: &Value, volumes: &Volumes<'_>, path: &Path<'_>) {
    let all = items(spec, "containers");
    if all.is_empty() {
        return errors.push(FieldError::required(path, ""));
    }
    let grace = int(spec, "terminationGracePeriodSeconds");
    let mut names = BTreeSet::new();
    for (index, container) in all.iter().enumerate() {
        let path = path.index(index);
        common(errors, container, volumes, &path);
        let name = text(container, "name");
        if !names.insert(name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        handler::of_container(errors, container, grace, &path);
        one_of_if_there(errors, container, "restartPolicy", &RESTART_POLICIES, &path);
    }
    host_ports(errors, all, path);
}

fn ephemeral(errors: &mut FieldErrors, spec: &Value, volumes: &Volumes<'_>, path: &Path<'_>) {
    let others: BTreeSet<&str> = items(spec, "containers")
        .iter()
        .chain(items(spec, "initContainers"))
        .map(|one| text(one, "name"))
        .collect();
    let mut names = others.clone();
    let all = items(spec, "ephemeralContainers");
    for (index, container) in all.iter().enumerate() {
        let path = path.index(index);
        common(errors, container, volumes, &path);
        image_of_pod(errors, container, &path);
        let name = text(container, "name");
        if !names.insert(name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !others.contains(target) {
            errors.push(FieldError::not_found(&path.child("targetContainerName"), target));
        }
        for key in EPHEMERAL_FORBIDDEN {
            let set = filled(container, key) || (key.ends_with("Policy") && has(container, key));
            if set {
                let why = "cannot be set for an Ephemeral Container";
                errors.push(FieldError::forbidden(&path.child(key), why));
            }
        }
        let mounts = path.child("volumeMounts");
        for (index, mount) in items(container, "volumeMounts").iter().enumerate() {
            let path = mounts.index(index);
            for key in ["subPath", "subPathExpr"] {
                if filled(mount, key) {
                    let why = "cannot be set for an Ephemeral Container";
                    errors.push(FieldError::forbidden(&path.child(key), why));
                }
            }
        }
    }
}

fn common(errors: &mut FieldErrors, container: &Value, volumes: &Volumes<'_>, path: &Path<'_>) {
    let name = text(container, "name");
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("name"), ""));
    } else {
        invalid(errors, &path.child("name"), name, dns1123_label(name));
    }
    if text(container, "image").is_empty() {
        errors.push(FieldError::required(&path.child("image"), ""));
    }
    one_of(errors, container, "terminationMessagePolicy", &MESSAGE_POLICIES, path);
    ports(errors, items(container, "ports"), &path.child("ports"));
    env(errors, items(container, "env"), &path.child("env"));
    env_from(errors, items(container, "envFrom"), &path.child("envFrom"));
    volumes.mounts(errors, container, &path.child("volumeMounts"));
    volumes.devices(errors, container, &path.child("volumeDevices"));
    one_of(errors, container, "imagePullPolicy", &PULL_POLICIES, path);
    if let Some(resources) = get(container, "resources") {
        resources::of_container(errors, resources, &path.child("resources"));
    }
    if let Some(context) = get(container, "securityContext") {
        security::of_container(errors, context, &path.child("securityContext"));
    }
}

/// Images of pods (not templates) have no blanks around.
pub(super) fn images_of_pod(errors: &mut FieldErrors, containers: &[Value], path: &Path<'_>) {
    for (index, container) in containers.iter().enumerate() {
        image_of_pod(errors, container, &path.index(index));
    }
}

pub(super) fn image_of_pod(errors: &mut FieldErrors, container: &Value, path: &Path<'_>) {
    let image = text(container, "image");
    if image.trim() != image {
        let why = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(&path.child("image"), image, why));
    }
}

fn ports(errors: &mut FieldErrors, ports: &[Value], path: &Path<'_>) {
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = text(port, "name");
        if !name.is_empty() {
            let wrong = port_name(name);
            if wrong.is_empty() && !names.insert(name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
            invalid(errors, &path.child("name"), name, wrong);
        }
        match int(port, "containerPort").unwrap_or_default() {
            0 => errors.push(FieldError::required(&path.child("containerPort"), "")),
            number => {
                invalid_number(errors, &path.child("containerPort"), number, port_number(number));
            }
        }
        if let Some(number) = int(port, "hostPort").filter(|number| *number != 0) {
            invalid_number(errors, &path.child("hostPort"), number, port_number(number));
        }
        one_of(errors, port, "protocol", &PROTOCOLS, &path);
    }
}

fn host_ports(errors: &mut FieldErrors, containers: &[Value], path: &Path<'_>) {
    let mut taken = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index);
        let ports = path.child("ports");
        for (index, port) in items(container, "ports").iter().enumerate() {
            let Some(number) = int(port, "hostPort").filter(|number| *number != 0) else {
                continue;
            };
            let key = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
            if !taken.insert(key.clone()) {
                let path = ports.index(index);
                errors.push(FieldError::duplicate(&path.child("hostPort"), key));
            }
        }
    }
}

/// A port number or the name of one.
pub(in super::super) fn validate_port_or_name(
    errors: &mut FieldErrors,
    value: &Value,
    key: &str,
    path: &Path<'_>,
) {
    let path = path.child(key);
    match value.get(key) {
        Some(Value::String(name)) => invalid(errors, &path, name, port_name(name)),
        other => {
            let number = other.and_then(Value::as_i64).unwrap_or_default();
            invalid_number(errors, &path, number, port_number(number));
        }
    }
}

fn env(errors: &mut FieldErrors, vars: &[Value], path: &Path<'_>) {
    for (index, var) in vars.iter().enumerate() {
        let path = path.index(index);
        match text(var, "name") {
            "" => errors.push(FieldError::required(&path.child("name"), "")),
            name => invalid(errors, &path.child("name"), name, env_var_name(name)),
        }
        if let Some(source) = get(var, "valueFrom") {
            value_from(errors, var, source, &path.child("valueFrom"));
        }
    }
}

fn value_from(errors: &mut FieldErrors, var: &Value, source: &Value, path: &Path<'_>) {
    let mut sources = 0;
    if let Some(reference) = get(source, "fieldRef") {
        sources += 1;
        field_ref(errors, reference, &ENV_FIELDS, &path.child("fieldRef"));
    }
    if let Some(reference) = get(source, "resourceFieldRef") {
        sources += 1;
        resource_field_ref(errors, reference, &path.child("resourceFieldRef"), false);
    }
    for key in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(reference) = get(source, key) {
            sources += 1;
            key_ref(errors, reference, &path.child(key));
        }
    }
    sources += u32::from(has(source, "fileKeyRef"));
    let why = match sources {
        0 => {
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
        }
        _ if filled(var, "value") => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.push(FieldError::invalid(path, "", why));
}

/// A `fieldRef` to one of `known`, or to one label or annotation.
pub(super) fn field_ref(
    errors: &mut FieldErrors,
    reference: &Value,
    known: &[&str],
    path: &Path<'_>,
) {
    for key in ["apiVersion", "fieldPath"] {
        if text(reference, key).is_empty() {
            return errors.push(FieldError::required(&path.child(key), ""));
        }
    }
    let field = text(reference, "fieldPath");
    let subscript = field
        .strip_suffix("']")
        .and_then(|field| field.split_once("['"))
        .filter(|(base, _)| !base.is_empty());
    if let Some((base, key)) = subscript {
        let wrong = match base {
            "metadata.annotations" => qualified_name(&key.to_lowercase()),
            "metadata.labels" => qualified_name(key),
            base => {
                let why = "does not support subscript";
                return errors.push(FieldError::invalid(path, base, why));
            }
        };
        return invalid(errors, path, key, wrong);
    }
    let convertible = known.contains(&field)
        || ENV_FIELDS.contains(&field)
        || matches!(
            field,
            "metadata.labels"
                | "metadata.annotations"
                | "spec.restartPolicy"
                | "spec.schedulerName"
                | "status.phase"
                | "status.nominatedNodeName"
        );
    if !convertible {
        let why = format!("error converting fieldPath: field label not supported: {field}");
        errors.push(FieldError::invalid(&path.child("fieldPath"), field, why));
    } else if !known.contains(&field) {
        errors.push(FieldError::not_supported(&path.child("fieldPath"), field, known));
    }
}

/// A `resourceFieldRef`.
pub(super) fn resource_field_ref(
    errors: &mut FieldErrors,
    reference: &Value,
    path: &Path<'_>,
    in_volume: bool,
) {
    let resource = text(reference, "resource");
    let huge = resource
        .strip_prefix("limits.")
        .or_else(|| resource.strip_prefix("requests."))
        .is_some_and(|name| name.starts_with("hugepages-"));
    if in_volume && text(reference, "containerName").is_empty() {
        errors.push(FieldError::required(&path.child("containerName"), ""));
    } else if resource.is_empty() {
        errors.push(FieldError::required(&path.child("resource"), ""));
    } else if !RESOURCE_FIELDS.contains(&resource) && !huge {
        let path = path.child("resource");
        errors.push(FieldError::not_supported(&path, resource, &RESOURCE_FIELDS));
    }
    let divisor = text(reference, "divisor");
    let (known, sort): (&[&str], _) = if resource.ends_with(".cpu") {
        (&["1m", "1"], "1m and 1 are supported with the cpu resource")
    } else {
        const BYTES: [&str; 13] =
            ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
        let text = if resource.ends_with(".memory") {
            "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource"
        } else {
            "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the local ephemeral storage resource"
        };
        (&BYTES, text)
    };
    if !matches!(divisor, "" | "0") && !known.contains(&divisor) {
        let why = format!("only divisor's values {sort}");
        errors.push(FieldError::invalid(&path.child("divisor"), resource, why));
    }
}

fn key_ref(errors: &mut FieldErrors, reference: &Value, path: &Path<'_>) {
    let (name, key) = (text(reference, "name"), text(reference, "key"));
    invalid(errors, &path.child("name"), name, dns1123_subdomain(name));
    if key.is_empty() {
        errors.push(FieldError::required(&path.child("key"), ""));
    } else {
        invalid(errors, &path.child("key"), key, config_map_key(key));
    }
}

fn env_from(errors: &mut FieldErrors, sources: &[Value], path: &Path<'_>) {
    for (index, source) in sources.iter().enumerate() {
        let item = path.index(index);
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            invalid(errors, &item.child("prefix"), prefix, env_var_name(prefix));
        }
        let mut count = 0;
        for key in ["configMapRef", "secretRef"] {
            let Some(reference) = get(source, key) else { continue };
            count += 1;
            let reference_path = item.child(key);
            let name = text(reference, "name");
            let wrong = if name.is_empty() { Wrong::new() } else { dns1123_subdomain(name) };
            if name.is_empty() {
                errors.push(FieldError::required(&reference_path.child("name"), ""));
            }
            invalid(errors, &reference_path.child("name"), name, wrong);
        }
        let why = match count {
            0 => "must specify one of: `configMapRef` or `secretRef`",
            1 => continue,
            _ => "may not have more than one field specified at a time",
        };
        errors.push(FieldError::invalid(path, "", why));
    }
}
