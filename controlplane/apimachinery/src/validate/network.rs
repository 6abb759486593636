//! Endpoints, EndpointSlices, Ingresses, IngressClasses and NetworkPolicies.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde_json::Value;

use super::meta::label_selector;
use super::pod::validate_port_or_name;
use super::service::not_special;
use super::text::{
    Wrong, cidr, dns1123_label, dns1123_subdomain, ip, port_name, port_number, qualified_name,
    wildcard_dns1123_subdomain,
};
use super::view::{
    IMMUTABLE, filled, get, has, int, invalid, invalid_number, items, one_of, one_of_if_there,
    shown, sub, text, texts,
};
use crate::field::{FieldError, FieldErrors, Path};

const SPEC: Path<'static> = Path::new("spec");
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const FAMILIES: [&str; 3] = ["FQDN", "IPv4", "IPv6"];
const SLICE_ENDPOINTS_MAX: usize = 1000;
const SLICE_PORTS_MAX: usize = 20_000;
const ENDPOINT_ADDRESSES_MAX: usize = 100;

/// Endpoints.
pub(super) fn endpoints(errors: &mut FieldErrors, object: &Value) {
    let root = Path::new("subsets");
    for (index, subset) in items(object, "subsets").iter().enumerate() {
        let path = root.index(index);
        if !filled(subset, "addresses") && !filled(subset, "notReadyAddresses") {
            let why = "must specify `addresses` or `notReadyAddresses`";
            errors.push(FieldError::required(&path, why));
        }
        for list in ["addresses", "notReadyAddresses"] {
            let all = path.child(list);
            for (index, address) in items(subset, list).iter().enumerate() {
                let path = all.index(index);
                let text_ip = text(address, "ip");
                let wrong = ip(text_ip);
                if wrong.is_empty() {
                    not_special(errors, text_ip, &path.child("ip"));
                }
                invalid(errors, &path.child("ip"), text_ip, wrong);
                let host = text(address, "hostname");
                if !host.is_empty() {
                    invalid(errors, &path.child("hostname"), host, dns1123_label(host));
                }
            }
        }
        let ports = items(subset, "ports");
        let all = path.child("ports");
        for (index, port) in ports.iter().enumerate() {
            let path = all.index(index);
            match text(port, "name") {
                "" if ports.len() > 1 => errors.push(FieldError::required(&path.child("name"), "")),
                "" => {}
                name => invalid(errors, &path.child("name"), name, dns1123_label(name)),
            }
            let number = int(port, "port").unwrap_or_default();
            invalid_number(errors, &path.child("port"), number, port_number(number));
            one_of(errors, port, "protocol", &PROTOCOLS, &path);
        }
    }
}

/// An EndpointSlice.
pub(super) fn slice(errors: &mut FieldErrors, object: &Value) {
    let family = text(object, "addressType");
    let path = Path::new("addressType");
    if family.is_empty() {
        errors.push(FieldError::required(&path, ""));
    } else if !FAMILIES.contains(&family) {
        errors.push(FieldError::not_supported(&path, family, &FAMILIES));
    }
    let (root, all) = (Path::new("endpoints"), items(object, "endpoints"));
    if all.len() > SLICE_ENDPOINTS_MAX {
        return errors.push(FieldError::too_many(&root, all.len(), SLICE_ENDPOINTS_MAX));
    }
    for (index, endpoint) in all.iter().enumerate() {
        slice_endpoint(errors, endpoint, family, &root.index(index));
    }
    let (root, ports) = (Path::new("ports"), items(object, "ports"));
    if ports.len() > SLICE_PORTS_MAX {
        return errors.push(FieldError::too_many(&root, ports.len(), SLICE_PORTS_MAX));
    }
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = root.index(index);
        let name = text(port, "name");
        if !name.is_empty() {
            invalid(errors, &path.child("name"), name, dns1123_label(name));
        }
        if !names.insert(name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        one_of(errors, port, "protocol", &PROTOCOLS, &path);
        if let Some(number) = int(port, "port") {
            invalid_number(errors, &path.child("port"), number, port_number(number));
        }
        if let Some(protocol) = get(port, "appProtocol").and_then(Value::as_str) {
            invalid(errors, &path.child("appProtocol"), protocol, qualified_name(protocol));
        }
    }
}

fn slice_endpoint(errors: &mut FieldErrors, endpoint: &Value, family: &str, path: &Path<'_>) {
    let addresses = path.child("addresses");
    let count = items(endpoint, "addresses").len();
    if count == 0 {
        errors.push(FieldError::required(&addresses, "must contain at least 1 address"));
    } else if count > ENDPOINT_ADDRESSES_MAX {
        errors.push(FieldError::too_many(&addresses, count, ENDPOINT_ADDRESSES_MAX));
    }
    for (index, address) in texts(endpoint, "addresses").enumerate() {
        let path = addresses.index(index);
        let wrong: Wrong = match (family, address.parse::<std::net::IpAddr>()) {
            ("IPv4", Ok(ip)) if ip.is_ipv4() => Wrong::new(),
            ("IPv6", Ok(ip)) if ip.is_ipv6() => Wrong::new(),
            ("IPv4", _) => vec!["must be an IPv4 address".to_owned()],
            ("IPv6", _) => vec!["must be an IPv6 address".to_owned()],
            ("FQDN", _) => dns1123_subdomain(address),
            _ => Wrong::new(),
        };
        if wrong.is_empty() && family != "FQDN" {
            not_special(errors, address, &path);
        }
        invalid(errors, &path, address, wrong);
    }
    let node = text(endpoint, "nodeName");
    if has(endpoint, "nodeName") {
        invalid(errors, &path.child("nodeName"), node, dns1123_subdomain(node));
    }
    let host = text(endpoint, "hostname");
    if has(endpoint, "hostname") {
        invalid(errors, &path.child("hostname"), host, dns1123_label(host));
    }
}

/// What of an EndpointSlice must not change.
pub(super) fn update_slice(errors: &mut FieldErrors, (object, old): (&Value, &Value)) {
    if text(object, "addressType") != text(old, "addressType") {
        let path = Path::new("addressType");
        errors.push(FieldError::invalid(&path, text(object, "addressType"), IMMUTABLE));
    }
}

/// A kind of networking.k8s.io/v1.
pub(super) fn validate(errors: &mut FieldErrors, kind: &str, object: &Value) {
    let spec = sub(object, "spec");
    match kind {
        "NetworkPolicy" => policy(errors, spec),
        "Ingress" => ingress(errors, spec),
        "IngressClass" => {
            let controller = text(spec, "controller");
            let path = SPEC.child("controller");
            if controller.is_empty() {
                errors.push(FieldError::required(&path, ""));
            } else {
                domain_path(errors, controller, &path);
            }
        }
        "ServiceCIDR" => {
            let path = SPEC.child("cidrs");
            if !filled(spec, "cidrs") {
                errors.push(FieldError::required(&path, "at least one CIDR required"));
            }
            for (index, range) in texts(spec, "cidrs").enumerate() {
                invalid(errors, &path.index(index), range, cidr(range));
            }
        }
        "IPAddress" if !has(spec, "parentRef") => {
            errors.push(FieldError::required(&SPEC.child("parentRef"), ""));
        }
        _ => {}
    }
}

fn domain_path(errors: &mut FieldErrors, text: &str, path: &Path<'_>) {
    match text.split_once('/') {
        Some((host, rest)) if !host.is_empty() && !rest.is_empty() => {
            invalid(errors, path, host, dns1123_subdomain(host));
        }
        _ => {
            let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            errors.push(FieldError::invalid(path, text, why));
        }
    }
}

fn policy(errors: &mut FieldErrors, spec: &Value) {
    label_selector(errors, sub(spec, "podSelector"), &SPEC.child("podSelector"));
    for (list, peers) in [("ingress", "from"), ("egress", "to")] {
        let all = SPEC.child(list);
        for (index, rule) in items(spec, list).iter().enumerate() {
            let path = all.index(index);
            let ports = path.child("ports");
            for (index, port) in items(rule, "ports").iter().enumerate() {
                policy_port(errors, port, &ports.index(index));
            }
            let from = path.child(peers);
            for (index, peer) in items(rule, peers).iter().enumerate() {
                policy_peer(errors, peer, &from.index(index));
            }
        }
    }
    let path = SPEC.child("policyTypes");
    let types: Vec<&str> = texts(spec, "policyTypes").collect();
    if types.len() > 2 {
        let why = "may not specify more than two policyTypes";
        errors.push(FieldError::invalid(&path, shown(spec, "policyTypes"), why));
        return;
    }
    for (index, kind) in types.iter().enumerate() {
        if !["Egress", "Ingress"].contains(kind) {
            let path = path.index(index);
            errors.push(FieldError::not_supported(&path, *kind, &["Egress", "Ingress"]));
        }
    }
}

fn policy_port(errors: &mut FieldErrors, port: &Value, path: &Path<'_>) {
    one_of_if_there(errors, port, "protocol", &PROTOCOLS, path);
    if has(port, "port") {
        validate_port_or_name(errors, port, "port", path);
    }
    let Some(end) = int(port, "endPort") else { return };
    let path = path.child("endPort");
    match port.get("port") {
        None | Some(Value::Null) => {
            let why = "may not be specified when `port` is not specified";
            errors.push(FieldError::invalid(&path, end, why));
        }
        Some(Value::String(_)) => {
            let why = "may not be specified when `port` is non-numeric";
            errors.push(FieldError::invalid(&path, end, why));
        }
        Some(start) => {
            if start.as_i64().is_some_and(|start| end < start) {
                let why = "must be greater than or equal to `port`";
                errors.push(FieldError::invalid(&path, end, why));
            }
            invalid_number(errors, &path, end, port_number(end));
        }
    }
}

fn policy_peer(errors: &mut FieldErrors, peer: &Value, path: &Path<'_>) {
    let mut given = 0;
    for key in ["podSelector", "namespaceSelector"] {
        if let Some(selector) = get(peer, key) {
            given += 1;
            label_selector(errors, selector, &path.child(key));
        }
    }
    let Some(block) = get(peer, "ipBlock") else {
        if given == 0 {
            errors.push(FieldError::required(path, "must specify a peer"));
        }
        return;
    };
    if given > 0 {
        let why = "may not specify both ipBlock and another peer";
        errors.push(FieldError::forbidden(path, why));
    }
    let path = path.child("ipBlock");
    let range = text(block, "cidr");
    if range.is_empty() {
        return errors.push(FieldError::required(&path.child("cidr"), ""));
    }
    invalid(errors, &path.child("cidr"), range, cidr(range));
    let except = path.child("except");
    for (index, inner) in texts(block, "except").enumerate() {
        let path = except.index(index);
        let wrong = cidr(inner);
        if let (Ok(outer), Ok(net)) = (range.parse::<IpNet>(), inner.parse::<IpNet>()) {
            let within = outer.contains(&net) && outer.prefix_len() < net.prefix_len();
            if !within {
                let why = format!("must be a strict subset of `cidr`: \"{range}\"");
                errors.push(FieldError::invalid(&path, inner, why));
            }
        }
        invalid(errors, &path, inner, wrong);
    }
}

fn ingress(errors: &mut FieldErrors, spec: &Value) {
    if !filled(spec, "rules") && !has(spec, "defaultBackend") {
        let why = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid(&SPEC, spec.clone(), why));
    }
    if let Some(backend) = get(spec, "defaultBackend") {
        ingress_backend(errors, backend, &SPEC.child("defaultBackend"));
    }
    let tls = SPEC.child("tls");
    for (index, entry) in items(spec, "tls").iter().enumerate() {
        let path = tls.index(index);
        let hosts = path.child("hosts");
        for (index, host) in texts(entry, "hosts").enumerate() {
            ingress_host(errors, host, &hosts.index(index));
        }
        let secret = text(entry, "secretName");
        if !secret.is_empty() {
            invalid(errors, &path.child("secretName"), secret, dns1123_subdomain(secret));
        }
    }
    let rules = SPEC.child("rules");
    for (index, rule) in items(spec, "rules").iter().enumerate() {
        let path = rules.index(index);
        let host = text(rule, "host");
        if host.parse::<std::net::IpAddr>().is_ok() {
            let why = "must be a DNS name, not an IP address";
            errors.push(FieldError::invalid(&path.child("host"), host, why));
        }
        if !host.is_empty() {
            ingress_host(errors, host, &path.child("host"));
        }
        if let Some(http) = get(rule, "http") {
            ingress_paths(errors, http, &path.child("http"));
        }
    }
    let class = text(spec, "ingressClassName");
    if has(spec, "ingressClassName") {
        invalid(errors, &SPEC.child("ingressClassName"), class, dns1123_subdomain(class));
    }
}

fn ingress_host(errors: &mut FieldErrors, host: &str, path: &Path<'_>) {
    let wrong =
        if host.contains('*') { wildcard_dns1123_subdomain(host) } else { dns1123_subdomain(host) };
    invalid(errors, path, host, wrong);
}

fn ingress_paths(errors: &mut FieldErrors, http: &Value, path: &Path<'_>) {
    let all = path.child("paths");
    if !filled(http, "paths") {
        errors.push(FieldError::required(&all, ""));
    }
    for (index, entry) in items(http, "paths").iter().enumerate() {
        let path = all.index(index);
        let (kind, location) = (text(entry, "pathType"), text(entry, "path"));
        match kind {
            "" => errors
                .push(FieldError::required(&path.child("pathType"), "pathType must be specified")),
            "Exact" | "Prefix" => {
                if !location.starts_with('/') {
                    let why = "must be an absolute path";
                    errors.push(FieldError::invalid(&path.child("path"), location, why));
                }
                for bad in ["//", "/./", "/../", "%2f", "%2F"] {
                    if location.contains(bad) {
                        let why = format!("must not contain '{bad}'");
                        errors.push(FieldError::invalid(&path.child("path"), location, why));
                    }
                }
                for bad in ["/..", "/."].into_iter().filter(|bad| location.ends_with(bad)) {
                    let why = format!("cannot end with '{bad}'");
                    errors.push(FieldError::invalid(&path.child("path"), location, why));
                }
            }
            "ImplementationSpecific" => {
                if !location.is_empty() && !location.starts_with('/') {
                    let why = "must be an absolute path";
                    errors.push(FieldError::invalid(&path.child("path"), location, why));
                }
            }
            other => {
                let known = ["Exact", "ImplementationSpecific", "Prefix"];
                errors.push(FieldError::not_supported(&path.child("pathType"), other, &known));
            }
        }
        ingress_backend(errors, sub(entry, "backend"), &path.child("backend"));
    }
}

fn ingress_backend(errors: &mut FieldErrors, backend: &Value, path: &Path<'_>) {
    match (get(backend, "service"), get(backend, "resource")) {
        (Some(_), Some(_)) => {
            let why = "cannot set both resource and service backends";
            errors.push(FieldError::invalid(path, "", why));
        }
        (None, None) => {
            let why = "resource or service backend is required";
            errors.push(FieldError::required(path, why));
        }
        (None, Some(_)) => {}
        (Some(service), None) => {
            let path = path.child("service");
            let name = text(service, "name");
            if name.is_empty() {
                errors.push(FieldError::required(&path.child("name"), ""));
            } else {
                invalid(errors, &path.child("name"), name, super::text::dns1035_label(name));
            }
            let port = sub(service, "port");
            let port_path = path.child("port");
            match (text(port, "name"), int(port, "number").unwrap_or_default()) {
                ("", 0) => {
                    let why = "port name or number is required";
                    errors.push(FieldError::required(&path, why));
                }
                ("", number) => {
                    invalid_number(errors, &port_path.child("number"), number, port_number(number));
                }
                (name, 0) => invalid(errors, &port_path.child("name"), name, port_name(name)),
                (_, _) => {
                    let why = "cannot set both port name & port number";
                    errors.push(FieldError::invalid(&path, "", why));
                }
            }
        }
    }
}
