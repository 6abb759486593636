//! Which node a stream goes to, and what the node is asked: kubelet's paths and query parameters.
//! Must not dial.

use std::net::{IpAddr, SocketAddr};

use apimachinery::{
    field::{FieldError, FieldErrors, Path},
    gvk::GroupKind,
    object,
    status::ApiError,
};
use http::Uri;
use serde_json::Value;

use super::container;
use crate::{query::Query, random, registry, stored, verb::Call};

/// Where a stream goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The node; empty where the address is not a pod's of ours.
    pub(super) node: String,
    /// An address as the node sees it; `None`: the node's own server.
    pub(super) address: Option<SocketAddr>,
    pub(super) path_and_query: String,
}

/// Log, exec, attach and port-forward of a pod.
pub(super) fn pod_stream(call: &Call, pod: &Value) -> Result<Target, ApiError> {
    let node = object::text(pod, &["spec", "nodeName"]);
    let (namespace, name) = (object::namespace(pod), object::name(pod));
    if node.is_empty() {
        return Err(ApiError::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let query = &call.query;
    let path_and_query = match call.info.subresource.as_str() {
        "portforward" => {
            let query = encoded(query.all("ports").map(|p| ("port", p)));
            format!("/portForward/{namespace}/{name}{query}")
        }
        "log" => {
            check_log_options(name, query)?;
            let container = container(pod, query.get("container"))?;
            let known = [
                "follow",
                "previous",
                "sinceSeconds",
                "sinceTime",
                "timestamps",
                "tailLines",
                "limitBytes",
                "stream",
            ];
            let pairs = known.iter().filter_map(|key| Some((*key, query.find(key)?)));
            format!("/containerLogs/{namespace}/{name}/{container}{}", encoded(pairs))
        }
        verb => {
            let container = container(pod, query.get("container"))?;
            let flags =
                [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")];
            let flags =
                flags.iter().filter(|(ours, _)| query.flag(ours)).map(|(_, theirs)| (*theirs, "1"));
            let commands = query.all("command").map(|c| ("command", c));
            format!("/{verb}/{namespace}/{name}/{container}{}", encoded(flags.chain(commands)))
        }
    };
    Ok(Target { node: node.to_owned(), address: None, path_and_query })
}

/// Kubernetes 1.36, `ValidatePodLogOptions`.
fn check_log_options(pod: &str, query: &Query) -> Result<(), ApiError> {
    let mut errors = FieldErrors::new();
    for (key, least, why) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        if let Some(number) = query.number(key)?.filter(|number| *number < least) {
            errors.push(FieldError::invalid(&Path::new(key), number, why));
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(GroupKind::new("", "PodLogOptions"), pod, &errors))
}

fn encoded<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let pairs: Vec<String> = pairs.map(|(k, v)| format!("{k}={}", escape(v))).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// What stands behind `…/<name>/proxy`, untouched, with the query.
fn rest(call: &Call, uri: &Uri) -> String {
    behind_proxy(uri, !call.info.namespace.is_empty())
}

/// Names may be `proxy` too, so segments are counted: `api/v1/[namespaces/<namespace>/]<resource>/<name>/proxy`.
fn behind_proxy(uri: &Uri, in_namespace: bool) -> String {
    let segments = if in_namespace { 7 } else { 5 };
    let path = uri.path().trim_start_matches('/');
    let rest = path.splitn(segments + 1, '/').nth(segments).unwrap_or_default();
    match uri.query() {
        Some(query) => format!("/{rest}?{query}"),
        None => format!("/{rest}"),
    }
}

/// `[scheme:]name[:port]`.
fn split_name(text: &str) -> Result<(&str, &str, &str), ApiError> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        [name] => Ok(("", name, "")),
        [name, port] => Ok(("", name, port)),
        [scheme, name, port] if matches!(*scheme, "" | "http" | "https") => {
            Ok((scheme, name, port))
        }
        _ => Err(ApiError::bad_request(format!("invalid proxy request \"{text}\""))),
    }
}

fn plain(scheme: &str) -> Result<(), ApiError> {
    if scheme == "https" {
        return Err(ApiError::bad_request("the proxy reaches pods and services over http only"));
    }
    Ok(())
}

pub(super) fn node_proxy(call: &Call, uri: &Uri) -> Result<Target, ApiError> {
    let (_, name, _) = split_name(call.name())?;
    call.server.registry().get(&call.resource, "", name)?;
    Ok(Target { node: name.to_owned(), address: None, path_and_query: rest(call, uri) })
}

pub(super) fn pod_proxy(call: &Call, uri: &Uri) -> Result<Target, ApiError> {
    let (scheme, name, port) = split_name(call.name())?;
    plain(scheme)?;
    let entry = call.server.registry().get(&call.resource, call.namespace(), name)?;
    let pod = stored::decode(&entry)?;
    let ports: Vec<&Value> = object::list(&pod, &["spec", "containers"])
        .flat_map(|c| object::list(c, &["ports"]))
        .collect();
    let number = |p: &&Value| p["containerPort"].as_u64().and_then(|p| u16::try_from(p).ok());
    let port = match port {
        "" => ports.first().and_then(number).or(Some(80)),
        named => named
            .parse()
            .ok()
            .or_else(|| ports.iter().find(|p| p["name"] == named).and_then(number)),
    };
    let port = port
        .ok_or_else(|| ApiError::bad_request(format!("pod {name} has no port {}", call.name())))?;
    let address: IpAddr = object::text(&pod, &["status", "podIP"])
        .parse()
        .map_err(|_| ApiError::bad_request(format!("pod {name} has no address yet")))?;
    if !is_proxyable(address) {
        return Err(ApiError::bad_request("address not allowed"));
    }
    Ok(Target {
        node: object::text(&pod, &["spec", "nodeName"]).to_owned(),
        address: Some(SocketAddr::new(address, port)),
        path_and_query: rest(call, uri),
    })
}

/// Kubernetes 1.36, `IsProxyableIP`: a status can name any address, and a node reaches more than its pods.
fn is_proxyable(address: IpAddr) -> bool {
    let local = match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let address = address.to_canonical();
    !(local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

/// A ready endpoint of the Service, any of them.
pub(super) fn service_proxy(call: &Call, uri: &Uri) -> Result<Target, ApiError> {
    let (scheme, name, port) = split_name(call.name())?;
    plain(scheme)?;
    let registry = call.server.registry();
    let entry = registry.get(&call.resource, call.namespace(), name)?;
    let service = stored::decode(&entry)?;
    let port_name = service_port(&service, port)?;
    let row = call.server.row("discovery.k8s.io", "endpointslices")?;
    let keys = crate::key::collection(&row, call.namespace());
    let range = store::Range::all(store::KeyRange::Prefix(keys));
    let found = registry.store().range(&range).map_err(registry::read_error)?;
    let mut candidates = Vec::new();
    for entry in &found.entries {
        let labels = &entry.extracted.labels;
        let of_service =
            |(k, v): &(Box<str>, Box<str>)| **k == *"kubernetes.io/service-name" && **v == *name;
        if labels.iter().any(of_service) {
            endpoints(&stored::decode(entry)?, &port_name, &mut candidates);
        }
    }
    let count = u64::try_from(candidates.len()).unwrap_or_default();
    let chosen = usize::try_from(random::below(count)).unwrap_or_default();
    let (node, address) = candidates.into_iter().nth(chosen).ok_or_else(|| {
        ApiError::service_unavailable(format!("no endpoints available for service \"{name}\""))
    })?;
    Ok(Target { node, address: Some(address), path_and_query: rest(call, uri) })
}

/// The name of the Service's port that a number or a name means.
fn service_port(service: &Value, wanted: &str) -> Result<String, ApiError> {
    let ports: Vec<&Value> = object::list(service, &["spec", "ports"]).collect();
    let is = |p: &&&Value| {
        object::text(p, &["name"]) == wanted
            || p["port"].as_u64().is_some_and(|n| n.to_string() == wanted)
    };
    let found = if wanted.is_empty() { ports.first() } else { ports.iter().find(is) };
    found.map(|p| object::text(p, &["name"]).to_owned()).ok_or_else(|| {
        let name = object::name(service);
        ApiError::service_unavailable(format!(
            "no service port \"{wanted}\" found for service \"{name}\""
        ))
    })
}

fn endpoints(slice: &Value, port: &str, out: &mut Vec<(String, SocketAddr)>) {
    let number = object::list(slice, &["ports"])
        .find(|p| object::text(p, &["name"]) == port)
        .and_then(|p| u16::try_from(p["port"].as_u64()?).ok());
    let Some(number) = number else { return };
    for endpoint in object::list(slice, &["endpoints"]) {
        if endpoint["conditions"]["ready"].as_bool() == Some(false) {
            continue;
        }
        let address = object::list(endpoint, &["addresses"]).next().and_then(Value::as_str);
        if let Some(address) = address.and_then(|a| a.parse::<IpAddr>().ok()) {
            let node = object::text(endpoint, &["nodeName"]).to_owned();
            out.push((node, SocketAddr::new(address, number)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_and_rests() {
        assert_eq!(split_name("web").unwrap(), ("", "web", ""));
        assert_eq!(split_name("web:80").unwrap(), ("", "web", "80"));
        assert_eq!(split_name("http:web:http").unwrap(), ("http", "web", "http"));
        assert!(split_name("ftp:web:1").is_err());
        let uri = |text: &str| text.parse::<Uri>().unwrap();
        for (path, want) in [
            ("/api/v1/nodes/n1/proxy/stats%2Fx/y?a=b", "/stats%2Fx/y?a=b"),
            ("/api/v1/nodes/n1/proxy", "/"),
            ("/api/v1/nodes/proxy-1/proxy/x/proxy/y/", "/x/proxy/y/"),
        ] {
            assert_eq!(behind_proxy(&uri(path), false), want);
        }
        let path = "/api/v1/namespaces/proxy/services/proxy-1:80/proxy//a";
        assert_eq!(behind_proxy(&uri(path), true), "//a");
        assert_eq!(
            encoded([("command", "sh -c"), ("tty", "1")].into_iter()),
            "?command=sh%20-c&tty=1"
        );
    }

    #[test]
    fn addresses_of_the_node_itself_are_not_proxied_to() {
        for address in
            ["127.0.0.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1", "::ffff:127.0.0.1"]
        {
            assert!(!is_proxyable(address.parse().unwrap()), "{address}");
        }
        assert!(is_proxyable("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn log_options_are_checked() {
        let check = |query: &str| check_log_options("p", &Query::parse(Some(query)));
        check("tailLines=0&limitBytes=1&sinceSeconds=1&sinceTime=x").unwrap();
        assert_eq!(check("tailLines=-1").unwrap_err().code, 422);
        assert_eq!(check("limitBytes=0").unwrap_err().code, 422);
        assert_eq!(check("tailLines=x").unwrap_err().code, 400);
        assert_eq!(
            check("sinceSeconds=0").unwrap_err().message,
            "PodLogOptions \"p\" is invalid: sinceSeconds: Invalid value: 0: must be greater than 0"
        );
    }

    #[test]
    fn only_ready_endpoints_of_the_port_count() {
        let slice = json!({"ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "n1", "conditions": {"ready": true}},
                          {"addresses": ["10.0.0.2"], "conditions": {"ready": false}}]});
        let mut out = Vec::new();
        endpoints(&slice, "http", &mut out);
        endpoints(&slice, "other", &mut out);
        assert_eq!(out, [("n1".to_owned(), "10.0.0.1:8080".parse().unwrap())]);
    }
}
