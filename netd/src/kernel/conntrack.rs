//! Forgets UDP flows that still lead to endpoints which are gone.
//!
//! A UDP client that keeps its port would otherwise talk to a dead endpoint for as long as it talks. TCP needs none of it: its
//! connections end. Must not touch a flow that isn't to one of our services.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::netfilter::{Socket, attribute, push_attribute};
use crate::Protocol;
use crate::desired::{Desired, HostPortTarget, Vip};
use crate::rules::{Family, protocol_number};

const SUBSYSTEM: u8 = 1;
const GET: u8 = 1;
const DELETE: u8 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const IP_V4_SOURCE: u16 = 1;
const IP_V4_DESTINATION: u16 = 2;
const IP_V6_SOURCE: u16 = 3;
const IP_V6_DESTINATION: u16 = 4;
const PROTOCOL_NUMBER: u16 = 1;
const PORT_SOURCE: u16 = 2;
const PORT_DESTINATION: u16 = 3;
const NESTED: u16 = 0x8000;

/// One flow, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) protocol: u8,
    /// Where the client sent to.
    pub(crate) to: (IpAddr, u16),
    /// Who answers.
    pub(crate) answered_by: (IpAddr, u16),
}

/// Whether a flow leads to where nothing would lead it now.
pub(crate) fn is_stale(flow: &Flow, old: &Desired, new: &Desired) -> bool {
    if flow.protocol != protocol_number(Protocol::Udp) {
        return false;
    }
    let (address, port) = flow.to;
    let vip = Vip { address, protocol: Protocol::Udp, port };
    let family = Family::of(&address);
    let translated = flow.to != flow.answered_by;
    if let Some(target) = new.vips.get(&vip) {
        // Also a flow that began when there was no endpoint, and goes nowhere.
        return !target.endpoints.is_empty() && !target.endpoints.contains(&flow.answered_by)
            || target.endpoints.is_empty() && translated;
    }
    if old.vips.contains_key(&vip) {
        return true;
    }
    // Nothing else translates what is sent to these ranges; the service went while nobody looked.
    if translated && new.service_cidrs.iter().any(|cidr| cidr.contains(&address)) {
        return true;
    }
    let mut hosts = host_ports(new, flow).peekable();
    if hosts.peek().is_some() {
        return translated && hosts.all(|host| host.backend != flow.answered_by);
    }
    let place = (family, Protocol::Udp, port);
    let led_there = old.node_ports.contains_key(&place)
        || host_ports(old, flow).any(|host| host.backend == flow.answered_by);
    match new.node_ports.get(&place) {
        Some(target) => translated && !target.endpoints.contains(&flow.answered_by),
        None => translated && led_there,
    }
}

/// The host ports that a flow's client can have meant.
fn host_ports<'a>(desired: &'a Desired, flow: &Flow) -> impl Iterator<Item = &'a HostPortTarget> {
    let (address, port) = flow.to;
    desired.host_ports.iter().filter(move |host| {
        let is_there = match host.address {
            Some(host) => host == address,
            None => Family::of(&host.backend.0) == Family::of(&address),
        };
        is_there && host.protocol == Protocol::Udp && host.port == port
    })
}

/// Whether anything changed that can leave stale flows.
pub(crate) fn may_be_stale(old: &Desired, new: &Desired) -> bool {
    let udp_vips = |desired: &Desired| {
        desired
            .vips
            .iter()
            .filter(|(vip, _)| vip.protocol == Protocol::Udp)
            .map(|(vip, target)| (*vip, target.endpoints.clone()))
            .collect::<Vec<_>>()
    };
    let udp_ports = |desired: &Desired| {
        desired
            .node_ports
            .iter()
            .filter(|((_, protocol, _), _)| *protocol == Protocol::Udp)
            .map(|(place, target)| (*place, target.endpoints.clone()))
            .collect::<Vec<_>>()
    };
    let udp_host_ports = |desired: &Desired| {
        let of_udp = desired.host_ports.iter().filter(|host| host.protocol == Protocol::Udp);
        of_udp.cloned().collect::<Vec<_>>()
    };
    udp_vips(old) != udp_vips(new)
        || udp_ports(old) != udp_ports(new)
        || udp_host_ports(old) != udp_host_ports(new)
}

/// Deletes the stale flows of both families; returns how many.
pub(crate) fn forget(old: &Desired, new: &Desired) -> io::Result<usize> {
    let mut forgotten = 0;
    let mut socket = Socket::open()?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).unwrap_or_default();
        for message in socket.dump(SUBSYSTEM, GET, family, &[])? {
            let Some(flow) = parse(&message.attributes) else { continue };
            if !is_stale(&flow, old, new) {
                continue;
            }
            let Some(tuple) = attribute(&message.attributes, TUPLE_ORIGINAL) else { continue };
            let mut request = Vec::new();
            push_attribute(&mut request, TUPLE_ORIGINAL | NESTED, tuple);
            match socket.ask(SUBSYSTEM, DELETE, family, &request) {
                Ok(_) => forgotten += 1,
                // It ended by itself.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(forgotten)
}

fn parse(attributes: &[u8]) -> Option<Flow> {
    let original = attribute(attributes, TUPLE_ORIGINAL)?;
    let reply = attribute(attributes, TUPLE_REPLY)?;
    let protocol = attribute(attribute(original, TUPLE_PROTOCOL)?, PROTOCOL_NUMBER)?;
    Some(Flow {
        protocol: *protocol.first()?,
        to: (
            address(original, IP_V4_DESTINATION, IP_V6_DESTINATION)?,
            port(original, PORT_DESTINATION)?,
        ),
        answered_by: (address(reply, IP_V4_SOURCE, IP_V6_SOURCE)?, port(reply, PORT_SOURCE)?),
    })
}

fn address(tuple: &[u8], v4: u16, v6: u16) -> Option<IpAddr> {
    let ip = attribute(tuple, TUPLE_IP)?;
    if let Some(four) = attribute(ip, v4) {
        return Some(IpAddr::V4(Ipv4Addr::from(*four.first_chunk::<4>()?)));
    }
    Some(IpAddr::V6(Ipv6Addr::from(*attribute(ip, v6)?.first_chunk::<16>()?)))
}

fn port(tuple: &[u8], kind: u16) -> Option<u16> {
    let bytes = attribute(attribute(tuple, TUPLE_PROTOCOL)?, kind)?;
    Some(u16::from_be_bytes(*bytes.first_chunk::<2>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{Target, Traffic, Unserved};

    fn desired(backends: &[&str]) -> Desired {
        let vip = Vip { address: "10.96.0.5".parse().unwrap(), protocol: Protocol::Udp, port: 53 };
        let target = Target {
            traffic: Traffic::Cluster,
            sticky: false,
            endpoints: backends.iter().map(|ip| (ip.parse().unwrap(), 5353)).collect(),
            local: [].into(),
            unserved: Unserved::Reject,
        };
        Desired {
            node_ports: [((Family::V4, Protocol::Udp, 30053), target.clone())].into(),
            vips: [(vip, target)].into(),
            ..Desired::default()
        }
    }

    #[test]
    fn only_flows_to_gone_endpoints_are_stale() {
        let (old, new) = (desired(&["10.244.1.1", "10.244.1.2"]), desired(&["10.244.1.2"]));
        let flow = |to: &str, port, by: &str, by_port| Flow {
            protocol: 17,
            to: (to.parse().unwrap(), port),
            answered_by: (by.parse().unwrap(), by_port),
        };
        let cases = [
            (flow("10.96.0.5", 53, "10.244.1.1", 5353), true),
            (flow("10.96.0.5", 53, "10.244.1.2", 5353), false),
            (flow("10.96.0.5", 53, "10.96.0.5", 53), true),
            (flow("192.0.2.1", 30053, "10.244.1.1", 5353), true),
            (flow("192.0.2.1", 30053, "10.244.1.2", 5353), false),
            (flow("198.51.100.7", 30053, "198.51.100.7", 30053), false),
            (flow("8.8.8.8", 53, "8.8.8.8", 53), false),
            (Flow { protocol: 6, ..flow("10.96.0.5", 53, "10.244.1.1", 5353) }, false),
        ];
        for (flow, want) in cases {
            assert_eq!(is_stale(&flow, &old, &new), want, "{flow:?}");
        }
        assert!(may_be_stale(&old, &new) && !may_be_stale(&new, &new));
        let gone = flow("10.96.0.5", 53, "10.244.1.2", 5353);
        assert!(is_stale(&gone, &old, &Desired::default()));
    }

    #[test]
    fn flows_to_host_ports_follow_the_pod() {
        let host_port = |address: Option<&str>, pod: &str| HostPortTarget {
            address: address.map(|address| address.parse().unwrap()),
            protocol: Protocol::Udp,
            port: 514,
            backend: (pod.parse().unwrap(), 5514),
        };
        let having = |ports: &[HostPortTarget]| Desired {
            host_ports: ports.iter().cloned().collect(),
            ..Desired::default()
        };
        let old = having(&[host_port(None, "10.244.1.1")]);
        let new = having(&[host_port(None, "10.244.1.2")]);
        let elsewhere = having(&[host_port(Some("192.0.2.7"), "10.244.1.2")]);
        let flow = |by: &str, by_port| Flow {
            protocol: 17,
            to: ("192.0.2.1".parse().unwrap(), 514),
            answered_by: (by.parse().unwrap(), by_port),
        };
        let none = Desired::default();
        for (flow, new, want) in [
            (flow("10.244.1.1", 5514), &new, true),
            (flow("10.244.1.2", 5514), &new, false),
            (flow("10.244.1.1", 5514), &none, true),
            (flow("10.244.1.1", 5514), &elsewhere, true),
            (flow("10.244.1.9", 5514), &none, false),
            (flow("192.0.2.1", 514), &new, false),
        ] {
            assert_eq!(is_stale(&flow, &old, new), want, "{flow:?} {new:?}");
        }
        assert!(may_be_stale(&old, &new) && may_be_stale(&old, &none));
    }

    #[test]
    fn flows_to_services_that_went_unseen_are_stale() {
        let new =
            Desired { service_cidrs: vec!["10.96.0.0/12".parse().unwrap()], ..Desired::default() };
        let flow = |to: &str, by: &str| Flow {
            protocol: 17,
            to: (to.parse().unwrap(), 53),
            answered_by: (by.parse().unwrap(), 53),
        };
        let none = Desired::default();
        assert!(is_stale(&flow("10.96.0.5", "10.244.1.1"), &none, &new));
        assert!(!is_stale(&flow("10.96.0.5", "10.96.0.5"), &none, &new));
        assert!(!is_stale(&flow("192.0.2.5", "10.244.1.1"), &none, &new));
    }
}
