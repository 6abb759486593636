//! The next free part of a range. Pure.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

fn part(range: &IpNet, mask: u8, index: u128) -> Option<IpNet> {
    let shift = u32::from(range.max_prefix_len() - mask);
    let first = bits(range.network()) + (index << shift);
    match range {
        IpNet::V4(_) => {
            let address = Ipv4Addr::from_bits(u32::try_from(first).ok()?);
            Ipv4Net::new(address, mask).ok().map(IpNet::V4)
        }
        IpNet::V6(_) => Ipv6Net::new(Ipv6Addr::from_bits(first), mask).ok().map(IpNet::V6),
    }
}

fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// The first free part of length `mask` at or behind `cursor`, going round; moves the cursor behind it.
pub(super) fn next_free(
    range: &IpNet,
    mask: u8,
    used: &[IpNet],
    cursor: &mut u128,
) -> Option<IpNet> {
    let width = u32::from(mask.checked_sub(range.prefix_len())?);
    let total = 1u128.checked_shl(width)?;
    // One more step than there are used parts must meet a free one, unless foreign sizes overlap several.
    for step in 0..total {
        let index = (*cursor + step) % total;
        let candidate = part(range, mask, index)?;
        if !used.iter().any(|u| overlaps(u, &candidate)) {
            *cursor = (index + 1) % total;
            return Some(candidate);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_distinct_and_freed_ones_come_last() {
        let range: IpNet = "10.244.0.0/22".parse().unwrap();
        let mut used: Vec<IpNet> = vec!["10.244.1.0/24".parse().unwrap()];
        let mut cursor = 0;
        for expected in ["10.244.0.0/24", "10.244.2.0/24"] {
            let next = next_free(&range, 24, &used, &mut cursor).unwrap();
            assert_eq!(next.to_string(), expected);
            used.push(next);
        }
        used.remove(0);
        assert_eq!(next_free(&range, 24, &used, &mut cursor).unwrap().to_string(), "10.244.3.0/24");
        assert_eq!(next_free(&range, 24, &used, &mut cursor).unwrap().to_string(), "10.244.1.0/24");
        used.extend(["10.244.0.0/23", "10.244.2.0/23"].map(|n| n.parse::<IpNet>().unwrap()));
        assert_eq!(next_free(&range, 24, &used, &mut cursor), None);
        let six: IpNet = "fd00::/56".parse().unwrap();
        assert_eq!(next_free(&six, 64, &[], &mut 3).unwrap().to_string(), "fd00:0:0:3::/64");
    }
}
