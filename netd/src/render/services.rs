//! Services, node ports and host ports: the maps that lead to endpoints, and the chains that draw one.
//!
//! A chain exists for each way of drawing that is in use (place, policy, number of endpoints, affinity), never for a service.
//! Affinity per client is a hash of its address, not a memory: it holds for as long as the endpoint does, so it never times out
//! (upstream forgets a client after the service's timeout, and then draws again).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Draft;
use crate::desired::{Backend, Desired, Target, Traffic, Unserved};
use crate::link::fnv1a;
use crate::rules::{
    ChainName, Data, Elements, Family, Field, Hook, Key, Leads, Pick, Rule, Statement, Verdict,
};

const VIP_KEY: [Field; 3] = [Field::Destination, Field::Protocol, Field::Port];
const PORT_KEY: [Field; 2] = [Field::Protocol, Field::Port];
const VIP_DRAW: [Field; 4] = [Field::Destination, Field::Protocol, Field::Port, Field::Index];
const PORT_DRAW: [Field; 3] = [Field::Protocol, Field::Port, Field::Index];

/// What an endpoint is looked up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// The packet's destination address and port.
    Vip,
    /// Its port only, at any address of the host.
    NodePort,
}

/// One way of drawing an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Draw {
    place: Place,
    policy: Policy,
    sticky: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Policy {
    Cluster { count: u32 },
    External { count: u32 },
    Local { count: u32, local: u32 },
}

impl Draw {
    fn of(place: Place, target: &Target) -> Draw {
        let count = length(&drawn(target, &target.endpoints));
        let policy = match target.traffic {
            Traffic::Cluster => Policy::Cluster { count },
            Traffic::External => Policy::External { count },
            Traffic::ExternalLocal => {
                Policy::Local { count, local: length(&drawn(target, &target.local)) }
            }
        };
        Draw { place, policy, sticky: target.sticky }
    }

    fn name(&self) -> ChainName {
        let place = if self.place == Place::NodePort { "node-" } else { "" };
        let sticky = if self.sticky { "-sticky" } else { "" };
        Arc::from(match self.policy {
            Policy::Cluster { count } => format!("{place}cluster-{count}{sticky}"),
            Policy::External { count } => format!("{place}external-{count}{sticky}"),
            Policy::Local { count, local } => format!("{place}local-{count}-{local}{sticky}"),
        })
    }

    /// The chains that this one goes on to.
    fn others(&self) -> Vec<Draw> {
        match self.policy {
            Policy::Local { count, .. } => vec![
                Draw { policy: Policy::Cluster { count }, ..*self },
                Draw { policy: Policy::External { count }, ..*self },
            ],
            _ => Vec::new(),
        }
    }

    /// Draws an endpoint. A packet that meets the chain before and the map after a transaction can draw one that is gone: then
    /// the first.
    fn dnat(&self, count: u32, local: bool) -> Vec<Rule> {
        let (key, map): (&[Field], _) = match (self.place, local) {
            (Place::Vip, false) => (&VIP_DRAW, "endpoints"),
            (Place::Vip, true) => (&VIP_DRAW, "local-endpoints"),
            (Place::NodePort, false) => (&PORT_DRAW, "node-endpoints"),
            (Place::NodePort, true) => (&PORT_DRAW, "node-local-endpoints"),
        };
        let rule = |pick| vec![Statement::Dnat(key.to_vec(), Some(pick), map)];
        let first = Pick::Random(1);
        match (count, self.sticky) {
            // The kernel refuses a hash over one.
            (1, _) => vec![rule(first)],
            (count, true) => vec![rule(Pick::BySource(count)), rule(first)],
            (count, false) => vec![rule(Pick::Random(count)), rule(first)],
        }
    }

    fn rules(&self, cluster_cidrs: &[IpNet]) -> Vec<Rule> {
        match self.policy {
            Policy::Cluster { count } => {
                let mut from_elsewhere: Rule = cluster_cidrs
                    .iter()
                    .map(|cidr| Statement::NotIn(Field::Source, *cidr))
                    .collect();
                // The host's own connections come back to it anyway.
                from_elsewhere.push(Statement::NotLocal(Field::Source));
                from_elsewhere.push(Statement::SetMark);
                let mark = (!cluster_cidrs.is_empty()).then_some(from_elsewhere);
                mark.into_iter().chain(self.dnat(count, false)).collect()
            }
            Policy::External { count } => {
                let mark = vec![Statement::NotLocal(Field::Source), Statement::SetMark];
                [mark].into_iter().chain(self.dnat(count, false)).collect()
            }
            Policy::Local { local, .. } => {
                let [cluster, external] = [0, 1].map(|index| {
                    let name = self.others().get(index).map(Draw::name).unwrap_or_default();
                    Statement::Verdict(Verdict::Goto(name))
                });
                let mut rules: Vec<Rule> = cluster_cidrs
                    .iter()
                    .map(|cidr| vec![Statement::In(Field::Source, *cidr), cluster.clone()])
                    .collect();
                rules.push(vec![Statement::Local(Field::Source), external]);
                match local {
                    0 => rules.push(vec![Statement::Verdict(Verdict::Drop)]),
                    local => rules.extend(self.dnat(local, true)),
                }
                rules
            }
        }
    }
}

/// Slots that clients' addresses are hashed over, where a service wants affinity.
const SLOTS: u32 = 128;
/// The same with more endpoints than that many slots would share out evenly.
const SLOTS_OF_MANY: u32 = 1024;
/// Most endpoints that `SLOTS` serve.
const ENDPOINTS_FEW: usize = 32;

/// The list that is drawn from: the endpoints, or for affinity slots that each belong to one. A slot's endpoint is the one with the
/// highest weight of all (rendezvous hashing), so when an endpoint comes or goes, only its own slots' clients move, and
/// every node sends a client to the same endpoint.
fn drawn<'a>(target: &Target, backends: &'a [Backend]) -> Cow<'a, [Backend]> {
    if !target.sticky || backends.len() < 2 {
        return Cow::Borrowed(backends);
    }
    let slots = if backends.len() <= ENDPOINTS_FEW { SLOTS } else { SLOTS_OF_MANY };
    let weight = |slot: u32, backend: &Backend| fnv1a(format!("{slot} {backend:?}").as_bytes());
    let best = |slot| backends.iter().max_by_key(|backend| weight(slot, backend)).copied();
    Cow::Owned((0..slots).filter_map(best).collect())
}

fn length(backends: &[Backend]) -> u32 {
    u32::try_from(backends.len()).unwrap_or(u32::MAX)
}

/// Adds everything about services to a table.
pub(super) fn render(desired: &Desired, draft: &mut Draft) {
    let mut draws = BTreeMap::new();
    let unserved = vips(desired, draft, &mut draws);
    let unserved_ports = node_ports(desired, draft, &mut draws);
    host_ports(desired, draft);
    restrictions(desired, draft);
    let family = draft.family;
    let of_family = |cidrs: &[IpNet]| -> Vec<IpNet> {
        cidrs.iter().filter(|cidr| Family::of_net(cidr) == family).copied().collect()
    };
    let cluster_cidrs = of_family(&desired.cluster_cidrs);
    let followers: Vec<Draw> = draws.keys().flat_map(Draw::others).collect();
    for draw in draws.into_keys().chain(followers) {
        draft.chain(&draw.name(), None, draw.rules(&cluster_cidrs));
    }
    base_chains(draft);
    refusal(draft, &of_family(&desired.service_cidrs), unserved, unserved_ports);
}

fn vips(desired: &Desired, draft: &mut Draft, draws: &mut BTreeMap<Draw, ()>) -> Elements {
    let (mut services, mut all, mut local, mut unserved) =
        (Elements::new(), Elements::new(), Elements::new(), Elements::new());
    for (vip, target) in desired.vips.iter().filter(|(v, _)| Family::of(&v.address) == draft.family)
    {
        let key = Key::new().address(vip.address).protocol(vip.protocol).port(vip.port);
        match served(Place::Vip, target, draws) {
            Ok(verdict) => services.push((key, Data::Verdict(verdict))),
            Err(verdict) => unserved.push((key, Data::Verdict(verdict))),
        }
        spread(&mut all, key, &drawn(target, &target.endpoints));
        if target.traffic == Traffic::ExternalLocal {
            spread(&mut local, key, &drawn(target, &target.local));
        }
    }
    draft.map("services", &VIP_KEY, Leads::Verdict, services);
    draft.map("endpoints", &VIP_DRAW, Leads::Target, all);
    draft.map("local-endpoints", &VIP_DRAW, Leads::Target, local);
    unserved
}

fn node_ports(desired: &Desired, draft: &mut Draft, draws: &mut BTreeMap<Draw, ()>) -> Elements {
    let (mut ports, mut all, mut local, mut unserved) =
        (Elements::new(), Elements::new(), Elements::new(), Elements::new());
    for ((family, protocol, port), target) in &desired.node_ports {
        if *family != draft.family {
            continue;
        }
        let key = Key::new().protocol(*protocol).port(*port);
        match served(Place::NodePort, target, draws) {
            Ok(verdict) => ports.push((key, Data::Verdict(verdict))),
            Err(verdict) => unserved.push((key, Data::Verdict(verdict))),
        }
        spread(&mut all, key, &drawn(target, &target.endpoints));
        if target.traffic == Traffic::ExternalLocal {
            spread(&mut local, key, &drawn(target, &target.local));
        }
    }
    draft.map("node-ports", &PORT_KEY, Leads::Verdict, ports);
    draft.map("node-endpoints", &PORT_DRAW, Leads::Target, all);
    draft.map("node-local-endpoints", &PORT_DRAW, Leads::Target, local);
    unserved
}

/// The chain that draws, or what happens to packets that nobody serves.
fn served(
    place: Place,
    target: &Target,
    draws: &mut BTreeMap<Draw, ()>,
) -> Result<Verdict, Verdict> {
    if target.endpoints.is_empty() {
        return Err(match target.unserved {
            Unserved::Reject => Verdict::Goto(Arc::from("refuse")),
            Unserved::Drop => Verdict::Drop,
        });
    }
    let draw = Draw::of(place, target);
    draws.insert(draw, ());
    Ok(Verdict::Goto(draw.name()))
}

/// One element per endpoint: the key and the number it is drawn by.
fn spread(elements: &mut Elements, key: Key, backends: &[Backend]) {
    for (index, (address, port)) in (0u32..).zip(backends) {
        elements.push((key.index(index), Data::target(*address, *port)));
    }
}

fn host_ports(desired: &Desired, draft: &mut Draft) {
    let (mut anywhere, mut at_address) = (Elements::new(), Elements::new());
    for port in &desired.host_ports {
        let (address, target_port) = port.backend;
        if Family::of(&address) != draft.family {
            continue;
        }
        let data = Data::target(address, target_port);
        match port.address {
            Some(host) => {
                let key = Key::new().address(host).protocol(port.protocol).port(port.port);
                at_address.push((key, data));
            }
            None => anywhere.push((Key::new().protocol(port.protocol).port(port.port), data)),
        }
    }
    draft.map("host-address-ports", &VIP_KEY, Leads::Target, at_address);
    draft.map("host-ports", &PORT_KEY, Leads::Target, anywhere);
}

/// Load balancer addresses with source ranges: checked before anything is translated. Services with the same ranges share a chain.
fn restrictions(desired: &Desired, draft: &mut Draft) {
    let mut restricted = Elements::new();
    let of_family =
        desired.restricted.iter().filter(|(v, _)| Family::of(&v.address) == draft.family);
    let mut chains = BTreeMap::new();
    for (vip, ranges) in of_family {
        let text: Vec<String> = ranges.iter().map(IpNet::to_string).collect();
        let name: ChainName =
            Arc::from(format!("sources-{:016x}", fnv1a(text.join(" ").as_bytes())));
        let key = Key::new().address(vip.address).protocol(vip.protocol).port(vip.port);
        restricted.push((key, Data::Verdict(Verdict::Goto(name.clone()))));
        chains.insert(name, ranges);
    }
    if restricted.is_empty() {
        return;
    }
    for (name, ranges) in chains {
        let accept = |range: &IpNet| {
            vec![Statement::In(Field::Source, *range), Statement::Verdict(Verdict::Accept)]
        };
        let mut rules: Vec<Rule> = ranges.iter().map(accept).collect();
        rules.push(vec![Statement::Verdict(Verdict::Drop)]);
        draft.chain(&name, None, rules);
    }
    draft.map("restricted", &VIP_KEY, Leads::Verdict, restricted);
    let rules =
        vec![vec![Statement::NewConnection, Statement::VerdictMap(VIP_KEY.to_vec(), "restricted")]];
    draft.chain("sources-prerouting", Some(Hook::PreroutingFilter), rules.clone());
    draft.chain("sources-output", Some(Hook::OutputFilterFirst), rules);
}

fn loopback(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
        Family::V6 => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
    }
}

fn base_chains(draft: &mut Draft) {
    let jump = |name: &str| vec![Statement::Verdict(Verdict::Jump(Arc::from(name)))];
    draft.chain("on-prerouting", Some(Hook::PreroutingNat), vec![jump("services-first")]);
    draft.chain("on-output", Some(Hook::OutputNat), vec![jump("services-first")]);
    let to_host = vec![
        Statement::NotIn(Field::Destination, loopback(draft.family)),
        Statement::Local(Field::Destination),
        Statement::Verdict(Verdict::Goto(Arc::from("ports-of-host"))),
    ];
    let by_vip = vec![Statement::VerdictMap(VIP_KEY.to_vec(), "services")];
    draft.chain("services-first", None, vec![by_vip, to_host]);
    draft.chain(
        "ports-of-host",
        None,
        vec![
            vec![Statement::Dnat(VIP_KEY.to_vec(), None, "host-address-ports")],
            vec![Statement::Dnat(PORT_KEY.to_vec(), None, "host-ports")],
            vec![Statement::VerdictMap(PORT_KEY.to_vec(), "node-ports")],
        ],
    );
}

/// Packets to services that nobody serves, and to addresses of the service range that no service has.
fn refusal(draft: &mut Draft, service_cidrs: &[IpNet], vips: Elements, ports: Elements) {
    draft.map("unserved", &VIP_KEY, Leads::Verdict, vips);
    draft.map("unserved-node-ports", &PORT_KEY, Leads::Verdict, ports);
    draft.chain("refuse", None, vec![vec![Statement::ResetTcp], vec![Statement::Reject]]);
    let refuse = Statement::Verdict(Verdict::Goto(Arc::from("refuse")));
    let mut rules = vec![vec![Statement::VerdictMap(VIP_KEY.to_vec(), "unserved")]];
    rules.extend(
        service_cidrs
            .iter()
            .map(|cidr| vec![Statement::In(Field::Destination, *cidr), refuse.clone()]),
    );
    draft.chain("nobody-serves", None, rules);
    let jump = vec![
        Statement::NewConnection,
        Statement::Verdict(Verdict::Jump(Arc::from("nobody-serves"))),
    ];
    let ports = vec![
        Statement::NewConnection,
        Statement::VerdictMap(PORT_KEY.to_vec(), "unserved-node-ports"),
    ];
    draft.chain("filter-forward", Some(Hook::ForwardFilter), vec![jump.clone()]);
    draft.chain("filter-output", Some(Hook::OutputFilter), vec![jump.clone()]);
    draft.chain("filter-input", Some(Hook::InputFilter), vec![jump, ports]);
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::desired::{HostPortTarget, Vip};
    use crate::rules::Family;
    use crate::{Protocol, script};

    fn target(traffic: Traffic, sticky: bool, count: u8) -> Target {
        let backend = |index: u8| (IpAddr::from([10, 244, index, 2]), 8080);
        Target {
            traffic,
            sticky,
            endpoints: (1..=count).map(backend).collect(),
            local: (1..=count.min(1)).map(backend).collect(),
            unserved: Unserved::Reject,
        }
    }

    /// Services of all kinds.
    pub(crate) fn desired() -> Desired {
        let vip = |last: u8| Vip {
            address: IpAddr::from([10, 96, 0, last]),
            protocol: Protocol::Tcp,
            port: 80,
        };
        let external = Vip { address: IpAddr::from([203, 0, 113, 9]), ..vip(0) };
        let v6 = Vip { address: "fd00:96::7".parse().unwrap(), protocol: Protocol::Udp, port: 53 };
        let v6_target = Target {
            endpoints: [("fd00:244::2".parse().unwrap(), 53)].into(),
            ..target(Traffic::Cluster, false, 1)
        };
        Desired {
            vips: [
                (vip(1), target(Traffic::Cluster, false, 2)),
                (vip(2), target(Traffic::Cluster, true, 3)),
                (vip(3), target(Traffic::Cluster, false, 0)),
                (external, target(Traffic::ExternalLocal, false, 2)),
                (v6, v6_target),
            ]
            .into(),
            node_ports: [
                ((Family::V4, Protocol::Tcp, 30080), target(Traffic::External, false, 2)),
                ((Family::V4, Protocol::Sctp, 30081), target(Traffic::External, false, 0)),
            ]
            .into(),
            host_ports: [HostPortTarget {
                address: None,
                protocol: Protocol::Udp,
                port: 5353,
                backend: (IpAddr::from([10, 244, 1, 5]), 53),
            }]
            .into(),
            restricted: [(external, vec!["192.0.2.0/24".parse().unwrap()])].into(),
            hairpin: [IpAddr::from([10, 244, 1, 2])].into(),
            own_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/56".parse().unwrap()],
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
        }
    }

    #[test]
    fn affinity_moves_only_the_clients_of_an_endpoint_that_goes() {
        let before = target(Traffic::Cluster, true, 5);
        let slots = drawn(&before, &before.endpoints).into_owned();
        assert_eq!(slots.len(), 128);
        let gone = before.endpoints[2];
        let rest: Vec<Backend> =
            before.endpoints.iter().filter(|backend| **backend != gone).copied().collect();
        let after = drawn(&before, &rest);
        for (old, new) in slots.iter().zip(after.iter()) {
            assert!(old == new || *old == gone);
        }
        for backend in before.endpoints.iter() {
            let share = slots.iter().filter(|slot| *slot == backend).count();
            assert!((10..=45).contains(&share), "{backend:?} has {share} of 128 slots");
        }
    }

    #[test]
    fn the_script_is_the_golden_one() {
        let mut text = String::new();
        for family in Family::BOTH {
            let ruleset = super::super::render_ruleset(&desired(), family, "flotilla");
            text += &script::render(&ruleset.install());
        }
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/services.nft");
        if std::env::var_os("FLOTILLA_GOLDEN").is_some() {
            std::fs::write(golden, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(golden).unwrap(), "FLOTILLA_GOLDEN=1 rewrites it");
    }
}
