//! The routes of ours: to each local pod, to the other nodes' pod CIDRs, to the service CIDR.
//!
//! `plan_*` is pure. What is ours in the kernel is what bears our protocol number; a route of somebody else's to the same
//! destination is reported, never replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use crate::link::{self, LinkError};

/// MTU where the node's own link isn't known.
const MTU_DEFAULT: u32 = 1500;
/// What a veth pair takes at most.
const MTU_MAX: u32 = 65_535;

/// One route of ours; `via` is on the link itself even where no subnet says so.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) destination: IpNet,
    pub(crate) via: Option<IpAddr>,
    pub(crate) link: u32,
    pub(crate) source: Option<IpAddr>,
}

/// What turns the observed routes into the desired ones.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct RoutePlan {
    pub(crate) delete: Vec<Route>,
    pub(crate) add: Vec<Route>,
    pub(crate) replace: Vec<Route>,
}

/// Compares by destination: a changed route is replaced in one step, so that no packet meets none.
pub(crate) fn plan_routes(desired: &BTreeSet<Route>, observed: &BTreeSet<Route>) -> RoutePlan {
    let by_destination: BTreeMap<IpNet, &Route> =
        observed.iter().map(|route| (route.destination, route)).collect();
    let wanted: BTreeSet<IpNet> = desired.iter().map(|route| route.destination).collect();
    let mut plan = RoutePlan::default();
    for route in desired {
        match by_destination.get(&route.destination) {
            Some(_) if observed.contains(route) => {}
            Some(_) => plan.replace.push(route.clone()),
            None => plan.add.push(route.clone()),
        }
    }
    plan.delete =
        observed.iter().filter(|route| !wanted.contains(&route.destination)).cloned().collect();
    plan
}

/// The node's own link: where its address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Uplink {
    pub(crate) index: u32,
    pub(crate) mtu: u32,
    /// The node's addresses that are really there.
    pub(crate) own: Vec<IpAddr>,
    /// Subnets directly on it.
    pub(crate) connected: Vec<IpNet>,
}

/// Finds the link that has the first of these addresses that any link has.
pub(crate) async fn observe_uplink(
    handle: &Handle,
    node_ips: &[IpAddr],
) -> Result<Option<Uplink>, LinkError> {
    let mut addresses = Vec::new();
    for message in link::list(|| handle.address().get().execute()).await? {
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let address = local.or_else(|| {
            message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
        });
        if let Some(address) = address {
            addresses.push((message.header.index, address, message.header.prefix_len));
        }
    }
    let Some(index) = node_ips.iter().find_map(|ip| {
        addresses.iter().find(|(_, address, _)| address == ip).map(|(index, _, _)| *index)
    }) else {
        return Ok(None);
    };
    let here: Vec<_> = addresses.iter().filter(|(link, _, _)| *link == index).collect();
    let connected = here
        .iter()
        .filter_map(|(_, address, length)| IpNet::new(*address, *length).ok())
        .map(|net| net.trunc())
        .filter(|net| net.prefix_len() < net.max_prefix_len())
        .collect();
    let own = node_ips.iter().filter(|ip| here.iter().any(|(_, a, _)| a == *ip)).copied().collect();
    Ok(Some(Uplink { index, mtu: mtu(handle, index).await?, own, connected }))
}

async fn mtu(handle: &Handle, index: u32) -> Result<u32, LinkError> {
    let link = handle.link().get().match_index(index).execute().try_next().await?;
    let mtu = link.and_then(|link| {
        link.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(mtu),
            _ => None,
        })
    });
    Ok(mtu.unwrap_or(MTU_DEFAULT))
}

/// MTU of pods' links: the uplink's, or Ethernet's where there is none.
pub(crate) fn pod_mtu(uplink: Option<&Uplink>) -> u32 {
    uplink.map_or(MTU_DEFAULT, |uplink| uplink.mtu.min(MTU_MAX))
}

/// The routes of our protocol number that the kernel has. `handle` should check strictly, so that the kernel filters.
pub(crate) async fn observe(
    handle: &Handle,
    protocol: u8,
    ipv6: bool,
) -> Result<BTreeSet<Route>, LinkError> {
    let mut routes = BTreeSet::new();
    let mut wanted = vec![RouteMessageBuilder::<Ipv4Addr>::new().build()];
    if ipv6 {
        wanted.push(RouteMessageBuilder::<Ipv6Addr>::new().build());
    }
    for mut filter in wanted {
        filter.header.protocol = RouteProtocol::from(protocol);
        filter.header.scope = RouteScope::Universe;
        filter.header.kind = RouteType::Unspec;
        for message in link::list(|| handle.route().get(filter).execute()).await? {
            if message.header.protocol == RouteProtocol::from(protocol) {
                routes.extend(parse(&message));
            }
        }
    }
    Ok(routes)
}

fn parse(message: &RouteMessage) -> Option<Route> {
    let (mut destination, mut via, mut link, mut source) = (None, None, None, None);
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    let destination =
        IpNet::new(destination?, message.header.destination_prefix_length).ok()?.trunc();
    Some(Route { destination, via, link: link?, source })
}

fn message(route: &Route, protocol: u8) -> RouteMessage {
    let mut message = match route.destination {
        IpNet::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.network(), net.prefix_len())
            .build(),
        IpNet::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(net.network(), net.prefix_len())
            .build(),
    };
    message.header.protocol = RouteProtocol::from(protocol);
    message.attributes.push(RouteAttribute::Oif(route.link));
    if let Some(source) = route.source {
        message.attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    match route.via {
        Some(via) => {
            message.attributes.push(RouteAttribute::Gateway(via.into()));
            message.header.flags.insert(RouteFlags::Onlink);
        }
        None if route.destination.addr().is_ipv4() => message.header.scope = RouteScope::Link,
        None => {}
    }
    message
}

/// Carries a plan out; goes on behind a failure and returns the first.
pub(crate) async fn apply(
    handle: &Handle,
    plan: &RoutePlan,
    protocol: u8,
) -> Result<(), (Route, LinkError)> {
    let mut failed = None;
    for route in &plan.delete {
        if let Err(error) = delete(handle, route, protocol).await {
            failed.get_or_insert((route.clone(), error));
        }
    }
    for route in &plan.replace {
        if let Err(error) = replace(handle, route, protocol).await {
            failed.get_or_insert((route.clone(), error));
        }
    }
    for route in &plan.add {
        if let Err(error) = add(handle, route, protocol).await {
            failed.get_or_insert((route.clone(), error));
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Adds a route; it's an error when the destination has one, whoever's.
pub(crate) async fn add(handle: &Handle, route: &Route, protocol: u8) -> Result<(), LinkError> {
    Ok(handle.route().add(message(route, protocol)).execute().await?)
}

/// Puts a route in the place of the one to the same destination.
pub(crate) async fn replace(handle: &Handle, route: &Route, protocol: u8) -> Result<(), LinkError> {
    Ok(handle.route().add(message(route, protocol)).replace().execute().await?)
}

/// Deletes a route; succeeds when there is none.
pub(crate) async fn delete(handle: &Handle, route: &Route, protocol: u8) -> Result<(), LinkError> {
    let result = handle.route().del(message(route, protocol)).execute().await;
    match result.map_err(LinkError::from) {
        Err(error) if error.is(nix::Error::ESRCH) || error.is(nix::Error::ENODEV) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, via: Option<&str>, link: u32) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            via: via.map(|via| via.parse().unwrap()),
            link,
            source: None,
        }
    }

    #[test]
    fn plans_are_minimal() {
        let same = route("10.244.1.7/32", None, 5);
        let moved_from = route("10.244.2.0/24", Some("192.0.2.2"), 2);
        let moved_to = route("10.244.2.0/24", Some("10.244.2.0"), 9);
        let gone = route("10.244.1.8/32", None, 6);
        let new = route("10.244.3.0/24", Some("192.0.2.3"), 2);
        let plan = plan_routes(
            &[same.clone(), moved_to.clone(), new.clone()].into(),
            &[same, moved_from, gone.clone()].into(),
        );
        assert_eq!(plan, RoutePlan { delete: vec![gone], add: vec![new], replace: vec![moved_to] });
    }
}
