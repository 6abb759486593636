//! ConfigMaps, Secrets, Events and Bindings.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::text::config_map_key;
use super::view::{IMMUTABLE, entries, flag, get, has, invalid, shown, sub, text};
use crate::field::{FieldError, FieldErrors, Path};
use crate::object;

/// All values of one ConfigMap or Secret together.
const DATA_BYTES_MAX: usize = 1024 * 1024;
const FROZEN: &str = "field is immutable when `immutable` is set";
const REDACTED: &str = "<secret contents redacted>";

/// One of these kinds.
pub(super) fn validate(errors: &mut FieldErrors, kind: &str, object: &Value) {
    match kind {
        "ConfigMap" => config_map(errors, object),
        "Secret" => secret(errors, object),
        "Event" => {
            let involved = sub(object, "involvedObject");
            let (own, other) = (object::namespace(object), text(involved, "namespace"));
            // Events about objects without a namespace stand in the default one.
            let fits =
                own == other || (other.is_empty() && matches!(own, "default" | "kube-system"));
            if !fits {
                let path = Path::new("involvedObject");
                let why = "does not match event.namespace";
                errors.push(FieldError::invalid(&path.child("namespace"), other, why));
            }
        }
        "Binding" => {
            let (target, path) = (sub(object, "target"), Path::new("target"));
            if !matches!(text(target, "kind"), "" | "Node") {
                let known = ["Node", "<empty>"];
                let path = path.child("kind");
                errors.push(FieldError::not_supported(&path, text(target, "kind"), &known));
            }
            if text(target, "name").is_empty() {
                errors.push(FieldError::required(&path.child("name"), ""));
            }
        }
        _ => {}
    }
}

fn config_map(errors: &mut FieldErrors, object: &Value) {
    let (data, binary) = (Path::new("data"), Path::new("binaryData"));
    let mut bytes = 0;
    for (key, value) in entries(object, "data") {
        invalid(errors, &data.key(key), key, config_map_key(key));
        if shown(object, "binaryData").get(key).is_some() {
            let why = "duplicate of key present in binaryData";
            errors.push(FieldError::invalid(&data.key(key), key.as_str(), why));
        }
        bytes += value.as_str().map_or(0, str::len);
    }
    for (key, value) in entries(object, "binaryData") {
        invalid(errors, &binary.key(key), key, config_map_key(key));
        bytes += decoded_len(value);
    }
    if bytes > DATA_BYTES_MAX {
        errors.push(FieldError::too_long(&Path::new(""), DATA_BYTES_MAX));
    }
}

fn decoded_len(value: &Value) -> usize {
    value.as_str().map_or(0, |text| text.trim_end_matches('=').len() * 3 / 4)
}

fn secret(errors: &mut FieldErrors, object: &Value) {
    let path = Path::new("data");
    let mut bytes = 0;
    for (key, value) in entries(object, "data") {
        invalid(errors, &path.key(key), key, config_map_key(key));
        bytes += decoded_len(value);
    }
    if bytes > DATA_BYTES_MAX {
        errors.push(FieldError::too_long(&path, DATA_BYTES_MAX));
    }
    let data = sub(object, "data");
    let mut required = |key: &str| {
        errors.push(FieldError::required(&path.key(key), ""));
    };
    match text(object, "type") {
        "kubernetes.io/service-account-token" => {
            const NAME: &str = "kubernetes.io/service-account.name";
            if object::annotation(object, NAME).is_none_or(str::is_empty) {
                let metadata = Path::new("metadata");
                let path = metadata.child("annotations");
                errors.push(FieldError::required(&path.key(NAME), ""));
            }
        }
        "kubernetes.io/dockercfg" => json_secret(errors, data, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => json_secret(errors, data, ".dockerconfigjson"),
        "kubernetes.io/basic-auth" if !has(data, "username") && !has(data, "password") => {
            required("username");
            required("password");
        }
        "kubernetes.io/ssh-auth" if text(data, "ssh-privatekey").is_empty() => {
            required("ssh-privatekey");
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"].into_iter().filter(|key| !has(data, key)) {
                required(key);
            }
        }
        _ => {}
    }
}

fn json_secret(errors: &mut FieldErrors, data: &Value, key: &str) {
    let path = Path::new("data");
    let Some(value) = data.get(key).and_then(Value::as_str) else {
        return errors.push(FieldError::required(&path.key(key), ""));
    };
    let bytes = STANDARD.decode(value).unwrap_or_default();
    let parsed = serde_json::from_slice::<Value>(&bytes);
    let why = match parsed {
        Ok(Value::Object(_)) => return,
        Ok(_) => {
            "json: cannot unmarshal value into Go value of type map[string]interface {}".to_owned()
        }
        Err(_) if bytes.is_empty() => "unexpected end of JSON input".to_owned(),
        Err(error) => error.to_string(),
    };
    errors.push(FieldError::invalid(&path.key(key), REDACTED, why));
}

/// What of these kinds must not change.
pub(super) fn update(errors: &mut FieldErrors, kind: &str, (object, old): (&Value, &Value)) {
    if kind == "Secret" && text(object, "type") != text(old, "type") {
        let value = text(object, "type");
        errors.push(FieldError::invalid(&Path::new("type"), value, IMMUTABLE));
    }
    if !flag(old, "immutable") {
        return;
    }
    if !flag(object, "immutable") {
        errors.push(FieldError::forbidden(&Path::new("immutable"), FROZEN));
    }
    for key in ["data", "binaryData"] {
        if get(object, key) != get(old, key) {
            errors.push(FieldError::forbidden(&Path::new(key), FROZEN));
        }
    }
}
