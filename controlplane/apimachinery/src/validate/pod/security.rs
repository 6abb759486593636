//! Security contexts of pods and containers.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::text::in_range;
use super::super::view::{
    flag, get, has, int, invalid_number, items, one_of, one_of_if_there, shown, sub, text,
};
use crate::field::{FieldError, FieldErrors, Path};

const ID_MAX: i64 = 0xffff_ffff;
const SYSCTL_LEN_MAX: usize = 253;
const SYSCTL_PATTERN: &str =
    "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
const PROFILES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];

fn ids(errors: &mut FieldErrors, context: &Value, keys: &[&str], path: &Path<'_>) {
    for key in keys {
        if let Some(id) = int(context, key) {
            invalid_number(errors, &path.child(key), id, in_range(id, 0, ID_MAX));
        }
    }
}

/// The pod's security context.
pub(super) fn of_pod(errors: &mut FieldErrors, spec: &Value, spec_path: &Path<'_>) {
    let Some(context) = get(spec, "securityContext") else { return };
    let path = &spec_path.child("securityContext");
    ids(errors, context, &["fsGroup", "runAsUser", "runAsGroup"], path);
    let groups = path.child("supplementalGroups");
    for (index, group) in items(context, "supplementalGroups").iter().enumerate() {
        let id = group.as_i64().unwrap_or_default();
        invalid_number(errors, &groups.index(index), id, in_range(id, 0, ID_MAX));
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(&path.child("shareProcessNamespace"), true, why));
    }
    sysctls(errors, spec, context, &path.child("sysctls"));
    let policies = ["Always", "OnRootMismatch"];
    one_of_if_there(errors, context, "fsGroupChangePolicy", &policies, path);
    seccomp(errors, context, &path.child("seccompProfile"));
    app_armor(errors, context, &path.child("appArmorProfile"));
    let policies = ["Merge", "Strict"];
    one_of_if_there(errors, context, "supplementalGroupsPolicy", &policies, path);
    let policies = ["MountOption", "Recursive"];
    one_of_if_there(errors, context, "seLinuxChangePolicy", &policies, path);
}

fn sysctls(errors: &mut FieldErrors, spec: &Value, context: &Value, path: &Path<'_>) {
    let mut names = BTreeSet::new();
    for (index, sysctl) in items(context, "sysctls").iter().enumerate() {
        let (path, name) = (path.index(index), text(sysctl, "name"));
        let path = path.child("name");
        if name.is_empty() {
            errors.push(FieldError::required(&path, ""));
        } else if !is_sysctl(name) {
            let why = format!(
                "must have at most {SYSCTL_LEN_MAX} characters and match regex {SYSCTL_PATTERN}"
            );
            errors.push(FieldError::invalid(&path, name, why));
        } else if !names.insert(name) {
            errors.push(FieldError::duplicate(&path, name));
        }
        let dotted = name.replace('/', ".");
        let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| dotted.starts_with(p))
            || dotted == "kernel.sem";
        if flag(spec, "hostNetwork") && dotted.starts_with("net.") {
            let why = "may not be specified when 'hostNetwork' is true";
            errors.push(FieldError::invalid(&path, name, why));
        } else if flag(spec, "hostIPC") && ipc {
            let why = "may not be specified when 'hostIPC' is true";
            errors.push(FieldError::invalid(&path, name, why));
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    let segment = |text: &str| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        bytes.first().copied().is_some_and(plain)
            && bytes.last().copied().is_some_and(plain)
            && bytes.iter().all(|byte| plain(*byte) || matches!(byte, b'-' | b'_'))
    };
    name.len() <= SYSCTL_LEN_MAX && name.split(['.', '/']).all(segment)
}

fn seccomp(errors: &mut FieldErrors, context: &Value, path: &Path<'_>) {
    let Some(profile) = get(context, "seccompProfile") else { return };
    if text(profile, "type").is_empty() {
        let why = "type is required when seccompProfile is set";
        errors.push(FieldError::required(&path.child("type"), why));
    } else {
        one_of(errors, profile, "type", &PROFILES, path);
    }
    let local = path.child("localhostProfile");
    match (text(profile, "type") == "Localhost", get(profile, "localhostProfile")) {
        (true, None) => {
            let why = "must be set when seccomp type is Localhost";
            errors.push(FieldError::required(&local, why));
        }
        (true, Some(file)) => {
            super::volume::descending(errors, file.as_str().unwrap_or_default(), &local);
        }
        (false, Some(_)) => {
            let why = "can only be set when seccomp type is Localhost";
            errors.push(FieldError::invalid(&local, profile.clone(), why));
        }
        (false, None) => {}
    }
}

fn app_armor(errors: &mut FieldErrors, context: &Value, path: &Path<'_>) {
    let Some(profile) = get(context, "appArmorProfile") else { return };
    let local = path.child("localhostProfile");
    match (text(profile, "type"), get(profile, "localhostProfile")) {
        ("Localhost", name) => {
            let name = name.and_then(Value::as_str).unwrap_or_default();
            if name.trim() != name {
                let why = "must not be padded with whitespace";
                errors.push(FieldError::invalid(&local, name, why));
            } else if name.is_empty() {
                let why = "must be set when AppArmor type is Localhost";
                errors.push(FieldError::required(&local, why));
            }
        }
        ("RuntimeDefault" | "Unconfined", Some(name)) => {
            let why = "can only be set when AppArmor type is Localhost";
            errors.push(FieldError::invalid(&local, name.clone(), why));
        }
        ("RuntimeDefault" | "Unconfined", None) => {}
        ("", _) => {
            let why = "type is required when appArmorProfile is set";
            errors.push(FieldError::required(&path.child("type"), why));
        }
        (other, _) => {
            errors.push(FieldError::not_supported(&path.child("type"), other, &PROFILES));
        }
    }
}

/// A container's security context.
pub(super) fn of_container(errors: &mut FieldErrors, context: &Value, path: &Path<'_>) {
    ids(errors, context, &["runAsUser", "runAsGroup"], path);
    one_of_if_there(errors, context, "procMount", &["Default", "Unmasked"], path);
    seccomp(errors, context, &path.child("seccompProfile"));
    if context.get("allowPrivilegeEscalation") == Some(&Value::Bool(false)) {
        let escalation = path.child("allowPrivilegeEscalation");
        if flag(context, "privileged") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(FieldError::invalid(&escalation, false, why));
        }
        let added = shown(sub(context, "capabilities"), "add");
        let admin = added
            .as_array()
            .into_iter()
            .flatten()
            .any(|one| matches!(one.as_str(), Some("CAP_SYS_ADMIN")));
        if admin {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(FieldError::invalid(&escalation, false, why));
        }
    }
    if has(context, "appArmorProfile") {
        app_armor(errors, context, &path.child("appArmorProfile"));
    }
}
