//! Services (`pkg/apis/core/validation`, Kubernetes 1.36).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::meta::labels;
use super::pod::validate_port_or_name;
use super::text::{cidr, dns1123_label, dns1123_subdomain, ip, port_number, qualified_name};
use super::view::{
    IMMUTABLE, filled, get, has, int, invalid, invalid_number, items, one_of, one_of_if_there,
    shown, sub, text, texts,
};
use crate::field::{FieldError, FieldErrors, Path};

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const AFFINITY_SECONDS_MAX: i64 = 86_400;
const DISTRIBUTIONS: [&str; 3] = ["PreferClose", "PreferSameNode", "PreferSameZone"];
const SPEC: Path<'static> = Path::new("spec");

fn is_headless(spec: &Value) -> bool {
    texts(spec, "clusterIPs").next() == Some("None") || text(spec, "clusterIP") == "None"
}

/// Reachable from outside the cluster.
fn is_external(spec: &Value) -> bool {
    match text(spec, "type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => filled(spec, "externalIPs"),
        _ => false,
    }
}

fn needs_health_check(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

/// A Service, new or changed.
pub(super) fn service(errors: &mut FieldErrors, object: &Value) {
    let spec = sub(object, "spec");
    let kind = text(spec, "type");
    let headless = is_headless(spec);
    if !filled(spec, "ports") && !headless && kind != "ExternalName" {
        errors.push(FieldError::required(&SPEC.child("ports"), ""));
    }
    by_type(errors, spec, headless);
    ports(errors, spec);
    labels(errors, spec, "selector", &SPEC);
    affinity(errors, spec);
    addresses(errors, spec);
    let external = SPEC.child("externalIPs");
    for (index, address) in texts(spec, "externalIPs").enumerate() {
        let wrong = ip(address);
        if wrong.is_empty() {
            not_special(errors, address, &external.index(index));
        }
        invalid(errors, &external.index(index), address, wrong);
    }
    one_of(errors, spec, "type", &TYPES, &SPEC);
    duplicate_ports(errors, spec);
    source_ranges(errors, spec, kind);
    if has(spec, "allocateLoadBalancerNodePorts") && kind != "LoadBalancer" {
        let path = SPEC.child("allocateLoadBalancerNodePorts");
        let why = "may only be used when `type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden(&path, why));
    }
    let class = SPEC.child("loadBalancerClass");
    if has(spec, "loadBalancerClass") {
        if kind == "LoadBalancer" {
            let name = text(spec, "loadBalancerClass");
            invalid(errors, &class, name, qualified_name(name));
        } else {
            let why = "may only be used when `type` is 'LoadBalancer'";
            errors.push(FieldError::forbidden(&class, why));
        }
    }
    traffic(errors, spec);
}

fn by_type(errors: &mut FieldErrors, spec: &Value, headless: bool) {
    match text(spec, "type") {
        kind @ ("LoadBalancer" | "NodePort") if headless => {
            let path = SPEC.child("clusterIPs");
            let why = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid(&path.index(0), "None", why));
        }
        "ExternalName" => {
            for key in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if filled(spec, key) {
                    let why = "may not be set for ExternalName services";
                    errors.push(FieldError::forbidden(&SPEC.child(key), why));
                }
            }
            let path = SPEC.child("externalName");
            let name = text(spec, "externalName");
            let name = name.strip_suffix('.').unwrap_or(name);
            if name.is_empty() {
                errors.push(FieldError::required(&path, ""));
            } else {
                invalid(errors, &path, name, dns1123_subdomain(name));
            }
        }
        _ => {}
    }
}

fn ports(errors: &mut FieldErrors, spec: &Value) {
    let all = SPEC.child("ports");
    let list = items(spec, "ports");
    let mut names = BTreeSet::new();
    for (index, port) in list.iter().enumerate() {
        let path = all.index(index);
        let name = text(port, "name");
        if name.is_empty() {
            if list.len() > 1 {
                errors.push(FieldError::required(&path.child("name"), ""));
            }
        } else {
            invalid(errors, &path.child("name"), name, dns1123_label(name));
            if !names.insert(name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
        }
        let number = int(port, "port").unwrap_or_default();
        invalid_number(errors, &path.child("port"), number, port_number(number));
        one_of(errors, port, "protocol", &PROTOCOLS, &path);
        validate_port_or_name(errors, port, "targetPort", &path);
        if let Some(protocol) = get(port, "appProtocol").and_then(Value::as_str) {
            invalid(errors, &path.child("appProtocol"), protocol, qualified_name(protocol));
        }
    }
}

fn affinity(errors: &mut FieldErrors, spec: &Value) {
    one_of(errors, spec, "sessionAffinity", &["ClientIP", "None"], &SPEC);
    let path = SPEC.child("sessionAffinityConfig");
    let config = get(spec, "sessionAffinityConfig");
    match (text(spec, "sessionAffinity"), config) {
        ("None", Some(_)) => {
            let why = "must not be set when session affinity is None";
            errors.push(FieldError::forbidden(&path, why));
        }
        ("ClientIP", config) => {
            let why = "when session affinity type is ClientIP";
            let client_path = path.child("clientIP");
            let Some(client) = config.and_then(|config| get(config, "clientIP")) else {
                let at = if config.is_some() { &client_path } else { &path };
                return errors.push(FieldError::required(at, why));
            };
            let path = client_path.child("timeoutSeconds");
            match int(client, "timeoutSeconds") {
                None => errors.push(FieldError::required(&path, why)),
                Some(seconds) if !(1..=AFFINITY_SECONDS_MAX).contains(&seconds) => {
                    let why =
                        format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}");
                    errors.push(FieldError::invalid(&path, seconds, why));
                }
                Some(_) => {}
            }
        }
        _ => {}
    }
}

fn addresses(errors: &mut FieldErrors, spec: &Value) {
    if text(spec, "type") == "ExternalName" {
        return;
    }
    let path = SPEC.child("clusterIPs");
    let all: Vec<&str> = texts(spec, "clusterIPs").collect();
    let first = text(spec, "clusterIP");
    if let Some(listed) = all.first()
        && *listed != first
    {
        let why = "first value must match `clusterIP`";
        errors.push(FieldError::invalid(&path, shown(spec, "clusterIPs"), why));
    }
    if all.is_empty() && !matches!(first, "" | "None") {
        invalid(errors, &SPEC.child("clusterIP"), first, ip(first));
    }
    for (index, address) in all.iter().enumerate() {
        let path = path.index(index);
        if *address == "None" {
            if all.len() > 1 {
                let why = "'None' must be the first and only value";
                errors.push(FieldError::invalid(&path, *address, why));
            }
        } else {
            invalid(errors, &path, address, ip(address));
        }
    }
    if all.len() > 2 {
        let why = "may only hold up to 2 values";
        errors.push(FieldError::invalid(&path, shown(spec, "clusterIPs"), why));
    }
    let families = SPEC.child("ipFamilies");
    let mut seen = BTreeSet::new();
    for (index, family) in texts(spec, "ipFamilies").enumerate() {
        let path = families.index(index);
        if !["IPv4", "IPv6"].contains(&family) {
            errors.push(FieldError::not_supported(&path, family, &["IPv4", "IPv6"]));
        } else if !seen.insert(family) {
            errors.push(FieldError::duplicate(&path, family));
        }
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    one_of_if_there(errors, spec, "ipFamilyPolicy", &policies, &SPEC);
    for (index, (address, family)) in all.iter().zip(texts(spec, "ipFamilies")).enumerate() {
        let is_v6 = address.contains(':');
        let valid = ip(address).is_empty();
        if valid && is_v6 != (family == "IPv6") {
            let why = format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
            errors.push(FieldError::invalid(&path.index(index), *address, why));
        }
    }
}

/// Loopback, link-local and multicast addresses lead nowhere.
pub(super) fn not_special(errors: &mut FieldErrors, address: &str, path: &Path<'_>) {
    let Ok(ip) = address.parse::<std::net::IpAddr>() else { return };
    let (v4_link_local, v6_link_local) = match ip {
        std::net::IpAddr::V4(v4) => (v4.is_link_local(), false),
        std::net::IpAddr::V6(v6) => (false, v6.is_unicast_link_local()),
    };
    let rules = [
        (ip.is_unspecified(), "may not be unspecified (0.0.0.0 or ::)"),
        (ip.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        (
            v4_link_local || v6_link_local,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        ),
        (
            ip.is_multicast(),
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        ),
    ];
    for (_, why) in rules.iter().filter(|(hit, _)| *hit) {
        errors.push(FieldError::invalid(path, address, why));
    }
}

fn duplicate_ports(errors: &mut FieldErrors, spec: &Value) {
    let all = SPEC.child("ports");
    let list = items(spec, "ports");
    let node_port = |port: &Value| int(port, "nodePort").filter(|number| *number != 0);
    if text(spec, "type") == "ClusterIP" {
        for (index, _) in list.iter().enumerate().filter(|(_, port)| node_port(port).is_some()) {
            let path = all.index(index);
            let why = "may not be used when `type` is 'ClusterIP'";
            errors.push(FieldError::forbidden(&path.child("nodePort"), why));
        }
    }
    let mut seen = BTreeSet::new();
    for (index, port) in list.iter().enumerate() {
        let Some(number) = node_port(port) else { continue };
        if !seen.insert((text(port, "protocol"), number)) {
            let path = all.index(index);
            errors.push(FieldError::duplicate(&path.child("nodePort"), number));
        }
    }
    let mut seen = BTreeSet::new();
    for (index, port) in list.iter().enumerate() {
        let (protocol, number) = (text(port, "protocol"), int(port, "port").unwrap_or_default());
        if !seen.insert((protocol, number)) {
            // Upstream shows its internal struct, fields in the order of their declaration.
            let shown = format!(
                "{{\"Name\":\"\",\"Protocol\":{},\"AppProtocol\":null,\"Port\":{number},\"TargetPort\":0,\"NodePort\":0}}",
                json!(protocol)
            );
            errors.push(FieldError::duplicate_text(&all.index(index), &shown));
        }
    }
}

fn source_ranges(errors: &mut FieldErrors, spec: &Value, kind: &str) {
    let path = SPEC.child("LoadBalancerSourceRanges");
    if filled(spec, "loadBalancerSourceRanges") && kind != "LoadBalancer" {
        let why = "may only be used when `type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden(&path, why));
    }
    for (index, range) in texts(spec, "loadBalancerSourceRanges").enumerate() {
        invalid(errors, &path.index(index), range.trim(), cidr(range.trim()));
    }
}

fn traffic(errors: &mut FieldErrors, spec: &Value) {
    let external = SPEC.child("externalTrafficPolicy");
    if is_external(spec) {
        one_of(errors, spec, "externalTrafficPolicy", &["Cluster", "Local"], &SPEC);
    } else if filled(spec, "externalTrafficPolicy") {
        let why = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid(&external, text(spec, "externalTrafficPolicy"), why));
    }
    let health = SPEC.child("healthCheckNodePort");
    let port = int(spec, "healthCheckNodePort").unwrap_or_default();
    if !needs_health_check(spec) && port != 0 {
        let why =
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid(&health, port, why));
    } else if port != 0 {
        invalid_number(errors, &health, port, port_number(port));
    }
    let internal = ["Cluster", "Local"];
    if matches!(text(spec, "type"), "ClusterIP" | "NodePort" | "LoadBalancer") {
        one_of(errors, spec, "internalTrafficPolicy", &internal, &SPEC);
    } else {
        one_of_if_there(errors, spec, "internalTrafficPolicy", &internal, &SPEC);
    }
    one_of_if_there(errors, spec, "trafficDistribution", &DISTRIBUTIONS, &SPEC);
}

/// What of a Service must not change.
pub(super) fn update(errors: &mut FieldErrors, (object, old): (&Value, &Value)) {
    let (spec, before) = (sub(object, "spec"), sub(old, "spec"));
    let external_name = |spec: &Value| text(spec, "type") == "ExternalName";
    if external_name(spec) || external_name(before) {
        return;
    }
    for (list, unset) in [
        ("clusterIPs", "primary clusterIP can not be unset"),
        ("ipFamilies", "primary ipFamily can not be unset"),
    ] {
        let path = SPEC.child(list);
        let Some(first) = texts(before, list).next() else { continue };
        let new = texts(spec, list).next();
        let why = match new {
            None => unset,
            Some(new) if new != first => "may not change once set",
            Some(_) => continue,
        };
        errors.push(FieldError::invalid(&path.index(0), shown(spec, list), why));
    }
    if has(before, "loadBalancerClass")
        && text(before, "type") == "LoadBalancer"
        && text(spec, "type") == "LoadBalancer"
        && get(spec, "loadBalancerClass") != get(before, "loadBalancerClass")
    {
        let path = SPEC.child("loadBalancerClass");
        let why = "may not change once set";
        errors.push(FieldError::invalid(&path, shown(spec, "loadBalancerClass"), why));
    }
    if needs_health_check(spec)
        && needs_health_check(before)
        && get(spec, "healthCheckNodePort") != get(before, "healthCheckNodePort")
    {
        errors.push(FieldError::forbidden(&SPEC.child("healthCheckNodePort"), IMMUTABLE));
    }
}
