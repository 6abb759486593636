//! The name files of a pod: resolv.conf, hosts, hostname. Pure texts, as kubelet writes them.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::pod::spec;

/// resolv.conf(5): what the resolver itself takes.
const NAMESERVERS_MAX: usize = 3;
/// Kubernetes' limits for search paths.
const SEARCHES_MAX: usize = 32;
/// Longest hostname Linux takes.
const HOSTNAME_MAX: usize = 63;

#[derive(Debug, Clone)]
pub(crate) struct Cluster<'a> {
    pub(crate) dns: &'a [IpAddr],
    pub(crate) domain: &'a str,
    /// The node's own resolv.conf.
    pub(crate) host_resolv_conf: &'a str,
}

#[derive(Debug, Default)]
struct Resolv {
    nameservers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

fn parse(text: &str) -> Resolv {
    let mut resolv = Resolv::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => resolv.nameservers.extend(words.next().map(ToOwned::to_owned)),
            Some("search") => {
                let names = words.map(|name| name.trim_end_matches('.').to_owned());
                resolv.searches = names.filter(|name| !name.is_empty()).collect();
            }
            Some("options") => resolv.options = words.map(ToOwned::to_owned).collect(),
            _ => {}
        }
    }
    resolv
}

pub(crate) fn resolv_conf(pod: &Pod, cluster: &Cluster<'_>) -> String {
    let none = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&none);
    let host_network = spec.host_network.unwrap_or(false);
    let host = parse(cluster.host_resolv_conf);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let mut resolv = match policy {
        "None" => Resolv::default(),
        "ClusterFirst" if !host_network && !cluster.dns.is_empty() => {
            in_cluster(pod, cluster, host)
        }
        "ClusterFirstWithHostNet" if !cluster.dns.is_empty() => in_cluster(pod, cluster, host),
        _ => host,
    };
    if let Some(config) = &spec.dns_config {
        resolv.nameservers.extend(config.nameservers.iter().flatten().cloned());
        resolv.searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            let is_same = |have: &String| have.split(':').next() == Some(name.as_str());
            resolv.options.retain(|have| !is_same(have));
            resolv.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
    render(resolv)
}

fn in_cluster(pod: &Pod, cluster: &Cluster<'_>, host: Resolv) -> Resolv {
    let domain = cluster.domain;
    let namespace = spec::namespace(pod);
    let mut searches =
        vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
    searches.extend(host.searches);
    Resolv {
        nameservers: cluster.dns.iter().map(ToString::to_string).collect(),
        searches,
        options: vec!["ndots:5".to_owned()],
    }
}

fn render(mut resolv: Resolv) -> String {
    let dedup = |list: &mut Vec<String>, max: usize| {
        let mut seen = Vec::new();
        list.retain(|item| {
            !seen.contains(item) && {
                seen.push(item.clone());
                true
            }
        });
        list.truncate(max);
    };
    dedup(&mut resolv.nameservers, NAMESERVERS_MAX);
    dedup(&mut resolv.searches, SEARCHES_MAX);
    let mut text = String::new();
    if !resolv.searches.is_empty() {
        text.push_str(&format!("search {}\n", resolv.searches.join(" ")));
    }
    for server in &resolv.nameservers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !resolv.options.is_empty() {
        text.push_str(&format!("options {}\n", resolv.options.join(" ")));
    }
    text
}

/// The pod's hostname and, with a subdomain, its domain.
pub(crate) fn hostname(pod: &Pod, cluster_domain: &str) -> (String, Option<String>) {
    let Some(spec) = &pod.spec else { return (String::new(), None) };
    if let Some(over) = &spec.hostname_override {
        return (over.clone(), None);
    }
    let name = spec.hostname.as_deref().filter(|name| !name.is_empty());
    let mut name = name.unwrap_or(spec::name(pod)).to_owned();
    if name.len() > HOSTNAME_MAX {
        name.truncate(HOSTNAME_MAX);
        name = name.trim_end_matches(['-', '.']).to_owned();
    }
    let subdomain = spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty());
    let domain = subdomain
        .map(|subdomain| format!("{subdomain}.{}.svc.{cluster_domain}", spec::namespace(pod)));
    (name, domain)
}

/// What the kernel is told: the FQDN when the pod asks for it.
pub(crate) fn kernel_hostname(pod: &Pod, cluster_domain: &str) -> String {
    let (name, domain) = hostname(pod, cluster_domain);
    let as_fqdn = pod.spec.as_ref().and_then(|spec| spec.set_hostname_as_fqdn).unwrap_or(false);
    match domain {
        Some(domain) if as_fqdn => format!("{name}.{domain}"),
        _ => name,
    }
}

pub(crate) fn hosts(
    pod: &Pod,
    cluster_domain: &str,
    pod_ips: &[IpAddr],
    host_file: Option<&str>,
) -> String {
    let mut text = match host_file {
        Some(host) => format!("# Kubernetes-managed hosts file (host network).\n{host}"),
        None => {
            let (name, domain) = hostname(pod, cluster_domain);
            let mut text = String::from(
                "# Kubernetes-managed hosts file.\n\
                 127.0.0.1\tlocalhost\n\
                 ::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::0\tip6-localnet\n\
                 fe00::0\tip6-mcastprefix\n\
                 fe00::1\tip6-allnodes\n\
                 fe00::2\tip6-allrouters\n",
            );
            for ip in pod_ips {
                match &domain {
                    Some(domain) => text.push_str(&format!("{ip}\t{name}.{domain}\t{name}\n")),
                    None => text.push_str(&format!("{ip}\t{name}\n")),
                }
            }
            text
        }
    };
    let aliases = pod.spec.as_ref().and_then(|spec| spec.host_aliases.as_deref());
    if let Some(aliases) = aliases.filter(|aliases| !aliases.is_empty()) {
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            text.push_str(&format!("{}\t{names}\n", alias.ip));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec
        }))
        .unwrap()
    }

    #[test]
    fn resolv_conf_by_policy() {
        let dns = ["10.96.0.10".parse().unwrap()];
        let cluster = Cluster {
            dns: &dns,
            domain: "cluster.local",
            host_resolv_conf: "# x\nnameserver 1.1.1.1\nsearch lan.\noptions edns0\n",
        };
        let run = |spec| resolv_conf(&pod(spec), &cluster);
        let base = serde_json::json!({"containers": []});
        assert_eq!(
            run(base),
            "search shop.svc.cluster.local svc.cluster.local cluster.local lan\n\
             nameserver 10.96.0.10\noptions ndots:5\n"
        );
        let host = "search lan\nnameserver 1.1.1.1\noptions edns0\n";
        assert_eq!(run(serde_json::json!({"containers": [], "dnsPolicy": "Default"})), host);
        assert_eq!(run(serde_json::json!({"containers": [], "hostNetwork": true})), host);
        assert_eq!(
            run(serde_json::json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
                "nameservers": ["9.9.9.9"], "searches": ["a.b"],
                "options": [{"name": "ndots", "value": "2"}, {"name": "use-vc"}]}})),
            "search a.b\nnameserver 9.9.9.9\noptions ndots:2 use-vc\n"
        );
    }

    #[test]
    fn hosts_and_hostnames() {
        let ip = ["10.1.0.5".parse().unwrap()];
        let plain = pod(serde_json::json!({"containers": [], "hostname": "h", "subdomain": "svc",
            "setHostnameAsFQDN": true, "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}));
        let text = hosts(&plain, "cluster.local", &ip, None);
        assert!(text.contains("10.1.0.5\th.svc.shop.svc.cluster.local\th\n"), "{text}");
        assert!(text.ends_with("# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"), "{text}");
        assert_eq!(kernel_hostname(&plain, "cluster.local"), "h.svc.shop.svc.cluster.local");
        assert_eq!(hostname(&pod(serde_json::json!({"containers": []})), "d").0, "web-0");
    }
}
