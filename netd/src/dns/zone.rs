//! The cluster's zone: which name has which records (Kubernetes DNS specification 1.1.0; CoreDNS where it is silent).
//!
//! Pure: a question and the cluster's state in, records out. Must not know how messages look on the wire, nor ask anybody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;

use crate::Protocol;
use crate::cluster::{Cluster, Endpoint, Key, Service, SlicePort};

/// CoreDNS's: how long a client may keep what a change makes wrong.
const TTL_SECONDS: u32 = 5;
/// Version of the specification, told by `dns-version`.
const SPECIFICATION: &str = "1.1.0";

/// What the zone says to a question.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// Somebody else's name.
    NotOurs,
    /// No such name.
    NameError,
    /// The name is there, without records of this type.
    NoData,
    /// The records, and the addresses of the names in them.
    Records(Vec<Record>, Vec<Record>),
    /// The name is another's alias.
    Alias(Box<(Record, Name)>),
}

/// Which ports a question is about, by name and protocol.
type Wanted<'a> = &'a dyn Fn(&str, Protocol) -> bool;

/// The zone's name and ranges.
#[derive(Debug, Clone)]
pub(crate) struct Zone {
    domain: Name,
    ranges: Vec<IpNet>,
}

impl Zone {
    /// `ranges` are those whose reverse names are ours.
    pub(crate) fn new(domain: &str, ranges: Vec<IpNet>) -> Result<Zone, hickory_proto::ProtoError> {
        let mut domain = Name::from_ascii(domain)?.to_lowercase();
        domain.set_fqdn(true);
        Ok(Zone { domain, ranges })
    }

    /// Start of authority: belongs to each answer without records.
    pub(crate) fn soa(&self) -> Record {
        let host = self.child(&["ns", "dns"]).unwrap_or_else(|| self.domain.clone());
        let person = self.child(&["hostmaster"]).unwrap_or_else(|| self.domain.clone());
        // No secondary ever asks for a transfer, so the serial is only a number.
        let minimum = TTL_SECONDS;
        let soa = SOA::new(host, person, 1, 7200, 1800, 86_400, minimum);
        Record::from_rdata(self.domain.clone(), TTL_SECONDS, RData::SOA(soa))
    }

    /// Answers a question.
    pub(crate) fn answer(&self, cluster: &Cluster, name: &Name, kind: RecordType) -> Answer {
        let name = name.to_lowercase();
        if self.domain.zone_of(&name) {
            let own = usize::from(self.domain.num_labels());
            let labels: Option<Vec<&str>> =
                name.iter().map(|label| std::str::from_utf8(label).ok()).collect();
            let Some(labels) = labels else { return Answer::NameError };
            let below = labels.len().saturating_sub(own);
            return self.below(cluster, &name, labels.get(..below).unwrap_or_default(), kind);
        }
        match name.parse_arpa_name() {
            Ok(net) if net.prefix_len() == net.max_prefix_len() => {
                let address = net.addr();
                if !self.ranges.iter().any(|range| range.contains(&address)) {
                    return Answer::NotOurs;
                }
                self.reverse(cluster, &name, address, kind)
            }
            _ => Answer::NotOurs,
        }
    }

    fn below(&self, cluster: &Cluster, name: &Name, labels: &[&str], kind: RecordType) -> Answer {
        match labels {
            [] => self.apex(kind),
            ["svc" | "pod"] | ["dns"] => Answer::NoData,
            ["ns", "dns"] => Answer::NoData,
            ["dns-version"] => {
                let text = TXT::new(vec![SPECIFICATION.to_owned()]);
                records(kind, RecordType::TXT, record(name, RData::TXT(text)))
            }
            [_, "pod"] => Answer::NoData,
            [dashed, _, "pod"] => pod(name, dashed, kind),
            [namespace, "svc"] => match has_namespace(cluster, namespace) {
                true => Answer::NoData,
                false => Answer::NameError,
            },
            [service, namespace, "svc"] => {
                self.service(cluster, name, &Key::new(namespace, service), kind)
            }
            [port, protocol, service, namespace, "svc"]
                if port.starts_with('_') && protocol.starts_with('_') =>
            {
                let wanted = (port.trim_start_matches('_'), protocol.trim_start_matches('_'));
                self.ports(cluster, name, &Key::new(namespace, service), (wanted, kind))
            }
            [endpoint, service, namespace, "svc"] => {
                self.endpoint(cluster, name, &Key::new(namespace, service), (endpoint, kind))
            }
            _ => Answer::NameError,
        }
    }

    fn apex(&self, kind: RecordType) -> Answer {
        match kind {
            RecordType::SOA => Answer::Records(vec![self.soa()], Vec::new()),
            RecordType::NS => match self.child(&["ns", "dns"]) {
                Some(host) => {
                    let ns = record(&self.domain, RData::NS(NS(host)));
                    Answer::Records(vec![ns], Vec::new())
                }
                None => Answer::NoData,
            },
            _ => Answer::NoData,
        }
    }

    fn service(&self, cluster: &Cluster, name: &Name, key: &Key, kind: RecordType) -> Answer {
        let Some(service) = cluster.services.get(key) else { return Answer::NameError };
        if let Some(target) = &service.external_name {
            return alias(name, target);
        }
        if kind == RecordType::SRV {
            return self.all_ports(cluster, name, key, service);
        }
        if service.headless {
            let endpoints = ready(cluster, key);
            if endpoints.is_empty() {
                return Answer::NameError;
            }
            return addresses(name, endpoints.iter().map(|(e, _)| e.address), kind);
        }
        addresses(name, service.cluster_ips.iter().copied(), kind)
    }

    /// A named port: SRV records, one per target.
    fn ports(
        &self,
        cluster: &Cluster,
        name: &Name,
        key: &Key,
        ((port, protocol), kind): ((&str, &str), RecordType),
    ) -> Answer {
        let Some(service) = cluster.services.get(key) else { return Answer::NameError };
        let wanted = |name: &str, of: Protocol| name == port && protocol_label(of) == protocol;
        let found = self.targets(cluster, name, key, (service, &wanted));
        match found {
            None => Answer::NameError,
            Some(_) if kind != RecordType::SRV => Answer::NoData,
            Some((answers, additionals)) => Answer::Records(answers, additionals),
        }
    }

    fn all_ports(&self, cluster: &Cluster, name: &Name, key: &Key, service: &Service) -> Answer {
        match self.targets(cluster, name, key, (service, &|_, _| true)) {
            Some((answers, additionals)) => Answer::Records(answers, additionals),
            None => Answer::NoData,
        }
    }

    /// SRV records of the ports that are wanted, with their targets' addresses; none when there are none.
    fn targets(
        &self,
        cluster: &Cluster,
        name: &Name,
        key: &Key,
        (service, wanted): (&Service, Wanted<'_>),
    ) -> Option<(Vec<Record>, Vec<Record>)> {
        let mut answers = Vec::new();
        let mut additionals = Vec::new();
        let base = self.child(&[&key.name, &key.namespace, "svc"])?;
        if service.headless {
            for (endpoint, ports) in ready(cluster, key) {
                let target = base.prepend_label(&*host_label(endpoint)).ok()?;
                let ports = ports.iter().filter(|port| wanted(&port.name, port.protocol));
                let before = answers.len();
                answers.extend(ports.map(|port| srv(name, port.port, &target)));
                if answers.len() > before {
                    additionals.push(address_record(&target, endpoint.address));
                }
            }
        } else {
            let ports = service.ports.iter().filter(|port| wanted(&port.name, port.protocol));
            answers.extend(ports.map(|port| srv(name, port.port, &base)));
            additionals.extend(service.cluster_ips.iter().map(|ip| address_record(&base, *ip)));
        }
        (!answers.is_empty()).then_some((answers, additionals))
    }

    fn endpoint(
        &self,
        cluster: &Cluster,
        name: &Name,
        key: &Key,
        (label, kind): (&str, RecordType),
    ) -> Answer {
        let exists = cluster.services.contains_key(key);
        if label.starts_with('_') {
            // Between `_port._tcp.…` and the service there is a name without records.
            return if exists { Answer::NoData } else { Answer::NameError };
        }
        if !exists {
            return Answer::NameError;
        }
        let found: Vec<IpAddr> = ready(cluster, key)
            .into_iter()
            .filter(|(endpoint, _)| *host_label(endpoint) == *label)
            .map(|(endpoint, _)| endpoint.address)
            .collect();
        if found.is_empty() {
            return Answer::NameError;
        }
        addresses(name, found.into_iter(), kind)
    }

    fn reverse(&self, cluster: &Cluster, name: &Name, address: IpAddr, kind: RecordType) -> Answer {
        let of_service = cluster
            .services
            .iter()
            .filter(|(_, service)| service.cluster_ips.contains(&address))
            .filter_map(|(key, _)| self.child(&[&key.name, &key.namespace, "svc"]));
        let mut names: Vec<Name> = of_service.collect();
        if names.is_empty() {
            for (key, slices) in &cluster.slices {
                let endpoints = slices.values().flat_map(|slice| &slice.endpoints);
                let here = endpoints.filter(|endpoint| endpoint.address == address);
                names.extend(here.filter_map(|endpoint| {
                    self.child(&[&host_label(endpoint), &key.name, &key.namespace, "svc"])
                }));
            }
            names.sort();
            names.dedup();
        }
        if names.is_empty() {
            return Answer::NameError;
        }
        if kind != RecordType::PTR {
            return Answer::NoData;
        }
        let answers = names.into_iter().map(|to| record(name, RData::PTR(PTR(to))));
        Answer::Records(answers.collect(), Vec::new())
    }

    fn child(&self, labels: &[&str]) -> Option<Name> {
        let mut name = self.domain.clone();
        for label in labels.iter().rev() {
            name = name.prepend_label(*label).ok()?;
        }
        Some(name)
    }
}

fn has_namespace(cluster: &Cluster, namespace: &str) -> bool {
    let first = Key::new(namespace, "");
    cluster.services.range(first..).next().is_some_and(|(key, _)| &*key.namespace == namespace)
}

/// Ready endpoints with their slice's ports; the controller marks all ready where `publishNotReadyAddresses` is set.
fn ready<'a>(cluster: &'a Cluster, key: &Key) -> Vec<(&'a Endpoint, &'a [SlicePort])> {
    let slices = cluster.slices.get(key).into_iter().flat_map(|slices| slices.values());
    let endpoints = slices.flat_map(|slice| {
        slice.endpoints.iter().map(|endpoint| (endpoint, slice.ports.as_slice()))
    });
    endpoints.filter(|(endpoint, _)| endpoint.ready).collect()
}

/// An endpoint's label: its hostname, else its address with dashes.
fn host_label(endpoint: &Endpoint) -> Box<str> {
    match (&endpoint.hostname, endpoint.address) {
        (Some(hostname), _) => hostname.clone(),
        (None, IpAddr::V4(address)) => address.to_string().replace('.', "-").into(),
        (None, IpAddr::V6(address)) => address.to_string().replace(':', "-").into(),
    }
}

fn protocol_label(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL_SECONDS, data)
}

fn records(kind: RecordType, has: RecordType, record: Record) -> Answer {
    if kind == has { Answer::Records(vec![record], Vec::new()) } else { Answer::NoData }
}

fn srv(name: &Name, port: u16, target: &Name) -> Record {
    record(name, RData::SRV(SRV::new(0, 100, port, target.clone())))
}

fn address_record(name: &Name, address: IpAddr) -> Record {
    record(
        name,
        match address {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        },
    )
}

fn addresses(name: &Name, addresses: impl Iterator<Item = IpAddr>, kind: RecordType) -> Answer {
    let matching = addresses.filter(|address| match kind {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        _ => false,
    });
    let found: Vec<_> = matching.map(|address| address_record(name, address)).collect();
    if found.is_empty() { Answer::NoData } else { Answer::Records(found, Vec::new()) }
}

fn alias(name: &Name, target: &str) -> Answer {
    match Name::from_ascii(target) {
        Ok(mut target) => {
            target.set_fqdn(true);
            let alias = record(name, RData::CNAME(CNAME(target.clone())));
            Answer::Alias(Box::new((alias, target)))
        }
        Err(_) => Answer::NoData,
    }
}

/// `10-244-1-7.default.pod`: says the address that it names.
fn pod(name: &Name, dashed: &str, kind: RecordType) -> Answer {
    let v4 = dashed.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    let v6 = || dashed.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6);
    match v4.or_else(|_| v6()) {
        Ok(address) => addresses(name, std::iter::once(address), kind),
        Err(_) => Answer::NameError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Object, ServicePort, Slice};

    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        let port = |name: &str, port| ServicePort {
            name: name.into(),
            protocol: Protocol::Tcp,
            port,
            node_port: None,
        };
        let web = Service {
            cluster_ips: vec!["10.96.0.7".parse().unwrap()],
            ports: vec![port("http", 80)],
            ..Service::default()
        };
        let db = Service { headless: true, ports: vec![port("sql", 5432)], ..Service::default() };
        let empty = Service { headless: true, ..Service::default() };
        let other = Service { external_name: Some("example.org".into()), ..Service::default() };
        let services = [("web", web), ("db", db), ("empty", empty), ("other", other)];
        for (name, service) in services {
            cluster.insert(Object::Service(Key::new("default", name), service));
        }
        let endpoint = |address: &str, hostname: Option<&str>, ready| Endpoint {
            address: address.parse().unwrap(),
            ready,
            serving: ready,
            terminating: false,
            node: None,
            hostname: hostname.map(Into::into),
            for_zones: Vec::new(),
            for_nodes: Vec::new(),
        };
        let slice = Slice {
            service: "db".into(),
            ports: vec![SlicePort { name: "sql".into(), protocol: Protocol::Tcp, port: 5432 }],
            endpoints: vec![
                endpoint("10.244.1.2", Some("db-0"), true),
                endpoint("10.244.2.2", None, true),
                endpoint("10.244.3.2", Some("db-2"), false),
            ],
        };
        cluster.insert(Object::Slice(Key::new("default", "db-x"), slice));
        cluster
    }

    fn ask(name: &str, kind: &str) -> String {
        let ranges = vec!["10.96.0.0/12".parse().unwrap(), "10.244.0.0/16".parse().unwrap()];
        let zone = Zone::new("cluster.local", ranges).unwrap();
        let answer =
            zone.answer(&cluster(), &Name::from_ascii(name).unwrap(), kind.parse().unwrap());
        let texts = |records: &[Record]| {
            records.iter().map(|record| record.data.to_string()).collect::<Vec<_>>().join(" | ")
        };
        match answer {
            Answer::NotOurs => "not ours".to_owned(),
            Answer::NameError => "NXDOMAIN".to_owned(),
            Answer::NoData => "no data".to_owned(),
            Answer::Alias(alias) => format!("alias {}", alias.1),
            Answer::Records(answers, additionals) if additionals.is_empty() => texts(&answers),
            Answer::Records(answers, additionals) => {
                format!("{} + {}", texts(&answers), texts(&additionals))
            }
        }
    }

    #[test]
    fn names_have_the_records_of_the_specification() {
        let cases = [
            ("web.default.svc.cluster.local.", "A", "10.96.0.7"),
            ("WEB.Default.svc.Cluster.local.", "A", "10.96.0.7"),
            ("web.default.svc.cluster.local.", "AAAA", "no data"),
            ("nope.default.svc.cluster.local.", "A", "NXDOMAIN"),
            ("web.other.svc.cluster.local.", "A", "NXDOMAIN"),
            ("default.svc.cluster.local.", "A", "no data"),
            ("other.svc.cluster.local.", "A", "NXDOMAIN"),
            ("web.default.svc.cluster.local.default.svc.cluster.local.", "A", "NXDOMAIN"),
            ("db.default.svc.cluster.local.", "A", "10.244.1.2 | 10.244.2.2"),
            ("empty.default.svc.cluster.local.", "A", "NXDOMAIN"),
            ("db-0.db.default.svc.cluster.local.", "A", "10.244.1.2"),
            ("10-244-2-2.db.default.svc.cluster.local.", "A", "10.244.2.2"),
            ("db-2.db.default.svc.cluster.local.", "A", "NXDOMAIN"),
            ("other.default.svc.cluster.local.", "A", "alias example.org."),
            ("10-244-1-7.default.pod.cluster.local.", "A", "10.244.1.7"),
            ("nonsense.default.pod.cluster.local.", "A", "NXDOMAIN"),
            (
                "_http._tcp.web.default.svc.cluster.local.",
                "SRV",
                "0 100 80 web.default.svc.cluster.local. + 10.96.0.7",
            ),
            ("_http._udp.web.default.svc.cluster.local.", "SRV", "NXDOMAIN"),
            ("_tcp.web.default.svc.cluster.local.", "SRV", "no data"),
            (
                "_sql._tcp.db.default.svc.cluster.local.",
                "SRV",
                "0 100 5432 db-0.db.default.svc.cluster.local. | \
                 0 100 5432 10-244-2-2.db.default.svc.cluster.local. + 10.244.1.2 | 10.244.2.2",
            ),
            ("7.0.96.10.in-addr.arpa.", "PTR", "web.default.svc.cluster.local."),
            ("2.1.244.10.in-addr.arpa.", "PTR", "db-0.db.default.svc.cluster.local."),
            ("9.0.96.10.in-addr.arpa.", "PTR", "NXDOMAIN"),
            ("8.8.8.8.in-addr.arpa.", "PTR", "not ours"),
            ("dns-version.cluster.local.", "TXT", "1.1.0"),
            ("cluster.local.", "A", "no data"),
            ("example.org.", "A", "not ours"),
            ("notcluster.local.", "A", "not ours"),
        ];
        for (name, kind, want) in cases {
            assert_eq!(ask(name, kind), want, "{name} {kind}");
        }
    }
}
