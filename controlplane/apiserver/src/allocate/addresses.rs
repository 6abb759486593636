//! Which cluster address a Service gets. An address is taken when its `IPAddress` object exists.
//! Must not look at node ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Value, json};

use apimachinery::object;

use crate::random;

/// Kubernetes 1.36: the part of a range kept for addresses that people choose.
const CHOSEN_MIN: u128 = 16;
const CHOSEN_MAX: u128 = 256;
/// More free addresses than this are not looked for.
const PROBES_MAX: u128 = 1 << 16;

/// `IPv4` or `IPv6`.
pub(super) fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// `IPv4` or `IPv6`.
pub(super) fn family_of(range: IpNet) -> &'static str {
    family(range.addr())
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

fn to_address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

/// First and last address that a Service may have.
fn bounds(range: IpNet) -> (u128, u128) {
    let (network, last) = (to_number(range.network()), to_number(range.broadcast()));
    let last = if range.addr().is_ipv4() { last.saturating_sub(1) } else { last };
    (network + 1, last)
}

/// Whether people may choose this address.
pub(super) fn is_usable(range: IpNet, address: IpAddr) -> bool {
    let (first, last) = bounds(range);
    range.contains(&address) && (first..=last).contains(&to_number(address))
}

/// The address of the `kubernetes` Service: the range's first.
pub(crate) fn first(range: IpNet) -> IpAddr {
    to_address(bounds(range).0, range.addr())
}

/// An address that is not taken; first from the upper part of the range, then from what is kept for chosen ones.
pub(super) fn pick(range: IpNet, is_taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let (first, last) = bounds(range);
    let size = last.checked_sub(first)? + 1;
    let chosen = (size / 16).clamp(CHOSEN_MIN, CHOSEN_MAX);
    let chosen = if chosen >= size { 0 } else { chosen };
    let upper = size - chosen;
    let offset = u128::from_le_bytes(random::bytes()) % upper;
    let of_upper = (0..upper.min(PROBES_MAX)).map(|i| first + chosen + (offset + i) % upper);
    let of_chosen = (0..chosen).map(|i| first + i);
    of_upper.chain(of_chosen).map(|n| to_address(n, range.addr())).find(|a| !is_taken(*a))
}

/// The `IPAddress` object that says whose an address is.
pub(super) fn object(address: IpAddr, service: &Value) -> Value {
    json!({
        "kind": "IPAddress", "apiVersion": "networking.k8s.io/v1",
        "metadata": {
            "name": address.to_string(),
            "uid": object::uid_from(random::bytes()),
            "creationTimestamp": object::time(Timestamp::now()),
            "labels": {
                "ipaddress.kubernetes.io/ip-family": family(address),
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": {"parentRef": {"resource": "services",
            "namespace": object::namespace(service), "name": object::name(service)}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_address_of_a_small_range_is_given_out_once() {
        let range: IpNet = "10.96.0.0/26".parse().unwrap();
        let mut taken = HashSet::from([first(range)]);
        while let Some(address) = pick(range, |a| taken.contains(&a)) {
            assert!(is_usable(range, address), "{address}");
            assert!(taken.insert(address));
        }
        assert_eq!(taken.len(), 62);
        assert!(!is_usable(range, "10.96.0.0".parse().unwrap()));
        assert!(!is_usable(range, "10.96.0.63".parse().unwrap()));
    }

    #[test]
    fn the_lower_part_is_left_to_people() {
        let range: IpNet = "10.96.0.0/12".parse().unwrap();
        for _ in 0..64 {
            let address = pick(range, |_| false).unwrap();
            assert!(to_number(address) > to_number(first(range)) + 255, "{address}");
        }
        let six: IpNet = "fd00:10:96::/112".parse().unwrap();
        assert_eq!(first(six), "fd00:10:96::1".parse::<IpAddr>().unwrap());
        assert!(pick(six, |_| false).is_some_and(|a| six.contains(&a)));
    }
}
