//! Which address a pod gets: free ones of the node's pod CIDR, in a circle, so that one just freed comes back last.
//!
//! Pure. Must not know where reservations are kept: the caller hands in what is used. The first address of a range is
//! the node's own in the pod network, an IPv4 range's last is its broadcast address; neither is given out.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Addresses tried in one range: a /16's worth bounds the walk in an IPv6 range.
const WALK_MAX: u128 = 1 << 16;

/// The node's own address in a range.
pub(crate) fn own_address(cidr: &IpNet) -> IpAddr {
    cidr.network()
}

/// The next free address behind `after`, around the end of the range; none when all are used.
pub(crate) fn plan_address(
    cidr: &IpNet,
    used: &BTreeSet<IpAddr>,
    after: Option<IpAddr>,
) -> Option<IpAddr> {
    let first = to_number(cidr.network());
    let usable = usable(cidr);
    let start = match after {
        Some(address) if cidr.contains(&address) => to_number(address) - first,
        _ => 0,
    };
    (0..usable)
        .map(|step| first + 1 + (start + step) % usable)
        .map(|number| from_number(cidr, number))
        .find(|address| !used.contains(address))
}

/// Addresses that pods can have, the walk's bound at most.
fn usable(cidr: &IpNet) -> u128 {
    match cidr {
        IpNet::V4(net) => (1u128 << (32 - u32::from(net.prefix_len()))).saturating_sub(2),
        IpNet::V6(net) => {
            1u128.checked_shl(128 - u32::from(net.prefix_len())).unwrap_or(u128::MAX) - 1
        }
    }
    .min(WALK_MAX)
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn from_number(cidr: &IpNet, number: u128) -> IpAddr {
    match cidr {
        // A number inside an IPv4 range fits; saturating keeps the function total.
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_go_round() {
        type Case<'a> = (&'a str, &'a [&'a str], Option<&'a str>, Option<&'a str>);
        let cases: &[Case<'_>] = &[
            ("10.244.1.0/24", &[], None, Some("10.244.1.1")),
            ("10.244.1.0/24", &["10.244.1.1"], None, Some("10.244.1.2")),
            ("10.244.1.0/24", &[], Some("10.244.1.7"), Some("10.244.1.8")),
            ("10.244.1.0/24", &[], Some("10.244.1.254"), Some("10.244.1.1")),
            ("10.244.1.0/24", &[], Some("10.244.9.3"), Some("10.244.1.1")),
            ("10.244.1.0/30", &["10.244.1.1"], Some("10.244.1.2"), Some("10.244.1.2")),
            ("10.244.1.0/30", &["10.244.1.1", "10.244.1.2"], None, None),
            ("10.244.1.0/31", &[], None, None),
            ("fd00:1::/64", &["fd00:1::1"], None, Some("fd00:1::2")),
            ("fd00:1::/64", &[], Some("fd00:1::1:0"), Some("fd00:1::1")),
        ];
        for (cidr, used, after, want) in cases {
            let got = plan_address(
                &cidr.parse().unwrap(),
                &set(used),
                after.map(|text| text.parse().unwrap()),
            );
            let want: Option<IpAddr> = want.map(|text| text.parse().unwrap());
            assert_eq!(got, want, "{cidr} used {used:?} after {after:?}");
        }
    }

    #[test]
    fn no_address_twice_until_all_are_used() {
        let cidr: IpNet = "10.244.3.0/26".parse().unwrap();
        let mut used = BTreeSet::new();
        let mut last = None;
        while let Some(address) = plan_address(&cidr, &used, last) {
            assert!(cidr.contains(&address) && address != cidr.network());
            assert!(used.insert(address));
            last = Some(address);
        }
        assert_eq!(used.len(), 62);
    }
}
