//! Probes and lifecycle hooks.

use serde_json::Value;

use super::super::text::{http_header_name, port_number};
use super::super::view::{get, has, int, invalid, invalid_number, items, not_negative, sub, text};
use super::validate_port_or_name;
use crate::field::{FieldError, FieldErrors, Path};

const TIMES: [&str; 5] = [
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
];

/// Hooks and probes of one container.
pub(super) fn of_container(
    errors: &mut FieldErrors,
    container: &Value,
    grace_seconds: Option<i64>,
    path: &Path<'_>,
) {
    let lifecycle = sub(container, "lifecycle");
    let lifecycle_path = path.child("lifecycle");
    for name in ["postStart", "preStop"] {
        if let Some(hook) = get(lifecycle, name) {
            handler(errors, hook, grace_seconds, &lifecycle_path.child(name));
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = get(container, name) {
            validate_probe(errors, probe, name, &path.child(name));
        }
    }
}

fn validate_probe(errors: &mut FieldErrors, probe: &Value, name: &str, path: &Path<'_>) {
    handler(errors, probe, None, path);
    not_negative(errors, probe, &TIMES, path);
    let grace = path.child("terminationGracePeriodSeconds");
    if let Some(seconds) = int(probe, "terminationGracePeriodSeconds") {
        if seconds <= 0 {
            errors.push(FieldError::invalid(&grace, seconds, "must be greater than 0"));
        }
        if name == "readinessProbe" {
            let why = "must not be set for readinessProbes";
            errors.push(FieldError::invalid(&grace, seconds, why));
        }
    }
    let threshold = int(probe, "successThreshold").unwrap_or_default();
    if name != "readinessProbe" && threshold != 1 {
        let path = path.child("successThreshold");
        errors.push(FieldError::invalid(&path, threshold, "must be 1"));
    }
}

fn handler(errors: &mut FieldErrors, handler: &Value, grace_seconds: Option<i64>, path: &Path<'_>) {
    let mut given = 0;
    for name in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let Some(action) = get(handler, name) else { continue };
        let path = path.child(name);
        if given > 0 {
            errors.push(FieldError::forbidden(&path, "may not specify more than 1 handler type"));
            continue;
        }
        given += 1;
        match name {
            "exec" if items(action, "command").is_empty() => {
                errors.push(FieldError::required(&path.child("command"), ""));
            }
            "httpGet" => http_get(errors, action, &path),
            "tcpSocket" => validate_port_or_name(errors, action, "port", &path),
            "grpc" => {
                let port = int(action, "port").unwrap_or_default();
                invalid_number(errors, &path.child("port"), port, port_number(port));
            }
            "sleep" => sleep(errors, action, grace_seconds, &path),
            _ => {}
        }
    }
    if given == 0 {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

fn http_get(errors: &mut FieldErrors, action: &Value, path: &Path<'_>) {
    if text(action, "path").is_empty() {
        errors.push(FieldError::required(&path.child("path"), ""));
    }
    validate_port_or_name(errors, action, "port", path);
    let schemes = ["HTTP", "HTTPS"];
    let scheme = text(action, "scheme");
    if !schemes.contains(&scheme) {
        errors.push(FieldError::not_supported(&path.child("scheme"), scheme, &schemes));
    }
    for header in items(action, "httpHeaders") {
        let name = text(header, "name");
        invalid(errors, &path.child("httpHeaders"), name, http_header_name(name));
    }
}

fn sleep(errors: &mut FieldErrors, action: &Value, grace_seconds: Option<i64>, path: &Path<'_>) {
    let Some(grace) = grace_seconds else { return };
    let seconds = int(action, "seconds").unwrap_or_default();
    if has(action, "seconds") && !(0..=grace).contains(&seconds) {
        let why =
            format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errors.push(FieldError::invalid(path, seconds, why));
    }
}
