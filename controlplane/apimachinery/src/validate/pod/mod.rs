//! Pods and pod templates (`pkg/apis/core/validation`, Kubernetes 1.36), in upstream's order.

mod container;
mod handler;
mod security;
mod update;
mod volume;

use serde_json::Value;

pub(super) use container::validate_port_or_name;
pub(super) use update::{update, update_status};
pub(super) use volume::host_path;

use super::meta::{annotations, labels};
use super::schedule;
use super::text::{
    dns1123_label, dns1123_subdomain, dns1123_subdomain_underscored, in_range, ip, qualified_name,
};
use super::view::{
    entries, filled, flag, get, has, int, invalid, invalid_number, items, one_of, one_of_if_there,
    shown, sub, text, texts,
};
use crate::field::{FieldError, FieldErrors, Path};

const RESTART_POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];
const DNS_POLICIES: [&str; 4] = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_BYTES_MAX: usize = 2048;
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Where a spec stands: some rules hold for pods only.
#[derive(Clone, Copy, PartialEq)]
enum Within {
    Pod,
    Template,
}

/// A pod, new or changed; metadata apart from annotations is checked elsewhere.
pub(super) fn pod(errors: &mut FieldErrors, object: &Value) {
    let spec = sub(object, "spec");
    if let Some(metadata) = get(object, "metadata") {
        let path = Path::new("metadata");
        pod_annotations(errors, metadata, spec, &path);
    }
    let path = Path::new("spec");
    pod_spec(errors, spec, &path, Within::Pod);
    if text(spec, "serviceAccountName").is_empty() {
        let volumes = path.child("volumes");
        for (index, volume) in items(spec, "volumes").iter().enumerate() {
            let (volume_path, projected) = (volumes.index(index), sub(volume, "projected"));
            let (projected_path, sources) =
                (volume_path.child("projected"), items(projected, "sources"));
            let sources_path = projected_path.child("sources");
            for (index, _) in
                sources.iter().enumerate().filter(|(_, source)| has(source, "serviceAccountToken"))
            {
                let path = sources_path.index(index);
                let why = "must not be specified when serviceAccountName is not set";
                errors.push(FieldError::forbidden(&path.child("serviceAccountToken"), why));
            }
        }
    }
    for list in ["containers", "initContainers"] {
        container::images_of_pod(errors, items(spec, list), &path.child(list));
    }
}

/// What holds for new pods only.
pub(super) fn create(errors: &mut FieldErrors, object: &Value) {
    let (spec, path) = (sub(object, "spec"), Path::new("spec"));
    if filled(spec, "ephemeralContainers") {
        let path = path.child("ephemeralContainers");
        errors.push(FieldError::forbidden(&path, "cannot be set on create"));
    }
    if filled(spec, "nodeName") && filled(spec, "schedulingGates") {
        let why = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden(&path.child("nodeName"), why));
    }
}

/// A pod template.
pub(super) fn template(errors: &mut FieldErrors, template: &Value, path: &Path<'_>) {
    template_metadata(errors, template, path);
    let spec = sub(template, "spec");
    let spec_path = path.child("spec");
    pod_spec(errors, spec, &spec_path, Within::Template);
    if filled(spec, "ephemeralContainers") {
        let path = spec_path.child("ephemeralContainers");
        errors
            .push(FieldError::forbidden(&path, "ephemeral containers not allowed in pod template"));
    }
}

/// The metadata of a template; upstream leaves `metadata` out of the path.
pub(super) fn template_metadata(errors: &mut FieldErrors, template: &Value, path: &Path<'_>) {
    if let Some(metadata) = get(template, "metadata") {
        labels(errors, metadata, "labels", path);
        annotations(errors, metadata, path);
        pod_annotations(errors, metadata, sub(template, "spec"), path);
    }
}

fn pod_annotations(errors: &mut FieldErrors, metadata: &Value, spec: &Value, parent: &Path<'_>) {
    let path = parent.child("annotations");
    for (name, value) in entries(metadata, "annotations") {
        let value = value.as_str().unwrap_or_default();
        if name == MIRROR && text(spec, "nodeName").is_empty() {
            let why = "must set spec.nodeName if mirror pod annotation is set";
            errors.push(FieldError::invalid(&path.key(MIRROR), value, why));
        }
        if name == DELETION_COST && value.parse::<i32>().is_err() {
            errors.push(FieldError::invalid(&path.key(name), value, "must be a 32bit integer"));
        }
    }
}

fn pod_spec(errors: &mut FieldErrors, spec: &Value, path: &Path<'_>, within: Within) {
    if !has(spec, "terminationGracePeriodSeconds") {
        errors.push(FieldError::required(&path.child("terminationGracePeriodSeconds"), ""));
    }
    let volumes = volume::volumes(errors, spec, &path.child("volumes"));
    container::containers(errors, spec, &volumes, path);
    if let Some(resources) = get(spec, "resources") {
        super::resources::of_pod(errors, resources, &path.child("resources"));
    }
    host_network_ports(errors, spec, path, within);
    one_of(errors, spec, "restartPolicy", &RESTART_POLICIES, path);
    one_of(errors, spec, "dnsPolicy", &DNS_POLICIES, path);
    labels(errors, spec, "nodeSelector", path);
    security::of_pod(errors, spec, path);
    if let Some(affinity) = get(spec, "affinity") {
        schedule::affinity(errors, affinity, &path.child("affinity"));
    }
    dns_config(errors, spec, &path.child("dnsConfig"));
    gates(errors, spec, path);
    let constraints = path.child("topologySpreadConstraints");
    schedule::spread(errors, items(spec, "topologySpreadConstraints"), &constraints);
    host_users(errors, spec, path);
    names(errors, spec, path);
    schedule::tolerations(errors, items(spec, "tolerations"), &path.child("tolerations"));
    host_aliases(errors, spec, &path.child("hostAliases"));
    rest(errors, spec, path);
}

fn host_network_ports(errors: &mut FieldErrors, spec: &Value, path: &Path<'_>, within: Within) {
    if !flag(spec, "hostNetwork") {
        return;
    }
    let containers = path.child("containers");
    for (index, container) in items(spec, "containers").iter().enumerate() {
        let path = containers.index(index);
        let ports = path.child("ports");
        for (index, port) in items(container, "ports").iter().enumerate() {
            let host = int(port, "hostPort").unwrap_or_default();
            let must_match = within == Within::Pod || host != 0;
            if must_match && host != int(port, "containerPort").unwrap_or_default() {
                let path = ports.index(index);
                let why = "must match `containerPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(&path.child("hostPort"), host, why));
            }
        }
    }
}

fn dns_config(errors: &mut FieldErrors, spec: &Value, path: &Path<'_>) {
    let config = get(spec, "dnsConfig");
    if text(spec, "dnsPolicy") == "None" {
        let Some(config) = config else {
            let why = "must provide `dnsConfig` when `dnsPolicy` is None";
            return errors.push(FieldError::required(path, why));
        };
        if !filled(config, "nameservers") {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return errors.push(FieldError::required(&path.child("nameservers"), why));
        }
    }
    let Some(config) = config else { return };
    let servers = path.child("nameservers");
    if items(config, "nameservers").len() > NAMESERVERS_MAX {
        let why = format!("must not have more than {NAMESERVERS_MAX} nameservers");
        errors.push(FieldError::invalid(&servers, shown(config, "nameservers"), why));
    }
    for (index, server) in texts(config, "nameservers").enumerate() {
        invalid(errors, &servers.index(index), server, ip(server));
    }
    let searches = path.child("searches");
    let all: Vec<&str> = texts(config, "searches").collect();
    if all.len() > SEARCHES_MAX {
        let why = format!("must not have more than {SEARCHES_MAX} search paths");
        errors.push(FieldError::invalid(&searches, shown(config, "searches"), why));
    }
    if all.join(" ").len() > SEARCH_BYTES_MAX {
        let why = format!(
            "must not have more than {SEARCH_BYTES_MAX} characters (including spaces) in the search list"
        );
        errors.push(FieldError::invalid(&searches, shown(config, "searches"), why));
    }
    for (index, search) in all.iter().enumerate().filter(|(_, search)| **search != ".") {
        let search = search.strip_suffix('.').unwrap_or(search);
        invalid(errors, &searches.index(index), search, dns1123_subdomain_underscored(search));
    }
    let options = path.child("options");
    for (index, option) in items(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            errors.push(FieldError::required(&options.index(index), "must not be empty"));
        }
    }
}

fn gates(errors: &mut FieldErrors, spec: &Value, path: &Path<'_>) {
    let readiness = path.child("readinessGates");
    for (index, gate) in items(spec, "readinessGates").iter().enumerate() {
        let (path, kind) = (readiness.index(index), text(gate, "conditionType"));
        invalid(errors, &path.child("conditionType"), kind, qualified_name(kind));
    }
    let scheduling = path.child("schedulingGates");
    let all = items(spec, "schedulingGates");
    for (index, gate) in all.iter().enumerate() {
        let (path, name) = (scheduling.index(index), text(gate, "name"));
        invalid(errors, &path, name, qualified_name(name));
        if all[..index].iter().any(|other| text(other, "name") == name) {
            errors.push(FieldError::duplicate(&path, name));
        }
    }
}

fn host_users(errors: &mut FieldErrors, spec: &Value, path: &Path<'_>) {
    if spec.get("hostUsers") != Some(&Value::Bool(false)) {
        return;
    }
    for (key, shown_as) in
        [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")]
    {
        if flag(spec, key) {
            let why = "when `pod.Spec.HostUsers` is false";
            errors.push(FieldError::forbidden(&path.child(shown_as), why));
        }
    }
}

fn names(errors: &mut FieldErrors, spec: &Value, path: &Path<'_>) {
    for key in ["serviceAccountName", "nodeName"] {
        let name = text(spec, key);
        if !name.is_empty() {
            invalid(errors, &path.child(key), name, dns1123_subdomain(name));
        }
    }
    if let Some(seconds) = int(spec, "activeDeadlineSeconds") {
        let wrong = in_range(seconds, 1, i64::from(i32::MAX));
        invalid_number(errors, &path.child("activeDeadlineSeconds"), seconds, wrong);
    }
    for key in ["hostname", "subdomain"] {
        let name = text(spec, key);
        if !name.is_empty() {
            invalid(errors, &path.child(key), name, dns1123_label(name));
        }
    }
}

fn host_aliases(errors: &mut FieldErrors, spec: &Value, path: &Path<'_>) {
    for (index, alias) in items(spec, "hostAliases").iter().enumerate() {
        let path = path.index(index);
        let address = text(alias, "ip");
        invalid(errors, &path.child("ip"), address, ip(address));
        let hosts = path.child("hostnames");
        for (index, host) in texts(alias, "hostnames").enumerate() {
            invalid(errors, &hosts.index(index), host, dns1123_subdomain(host));
        }
    }
}

fn rest(errors: &mut FieldErrors, spec: &Value, path: &Path<'_>) {
    let class = text(spec, "priorityClassName");
    if !class.is_empty() {
        invalid(errors, &path.child("priorityClassName"), class, dns1123_subdomain(class));
    }
    if let Some(class) = get(spec, "runtimeClassName").and_then(Value::as_str) {
        invalid(errors, &path.child("runtimeClassName"), class, dns1123_subdomain(class));
    }
    let policies = ["PreemptLowerPriority", "Never"];
    one_of_if_there(errors, spec, "preemptionPolicy", &policies, path);
    if let Some(overhead) = get(spec, "overhead") {
        super::resources::overhead(errors, overhead, &path.child("overhead"));
    }
    if let Some(os) = get(spec, "os") {
        one_of(errors, os, "name", &["linux", "windows"], &path.child("os"));
    }
}
