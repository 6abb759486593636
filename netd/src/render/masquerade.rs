//! Which connections leave with this node's address as their source.
//!
//! Those that a service chain marked, a pod's to itself through a service, pods' to the world outside of the cluster, and what enters
//! the overlay from outside of the pod network. Ports stay what they are where they can: a server that still remembers the port's last
//! connection takes a new one from the same client, but drops one whose timestamps are somebody else's.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Draft;
use crate::desired::Desired;
use crate::overlay;
use crate::rules::{Data, Elements, Family, Field, Hook, Key, Leads, Rule, Statement};

const PAIR: [Field; 2] = [Field::Source, Field::Destination];

/// Adds everything about masquerade to a table.
pub(super) fn render(desired: &Desired, draft: &mut Draft) {
    let family = draft.family;
    let hairpin: Elements = desired
        .hairpin
        .iter()
        .filter(|address| Family::of(address) == family)
        .map(|address| (Key::new().address(*address).address(*address), Data::Member))
        .collect();
    draft.map("hairpin", &PAIR, Leads::Member, hairpin);
    let mut rules = vec![
        vec![Statement::MarkIsSet, Statement::ClearMark, Statement::Masquerade],
        vec![Statement::InSet(PAIR.to_vec(), "hairpin"), Statement::Masquerade],
    ];
    let inside: Vec<_> =
        desired.cluster_cidrs.iter().filter(|cidr| Family::of_net(cidr) == family).collect();
    for own in desired.own_cidrs.iter().filter(|cidr| Family::of_net(cidr) == family) {
        let mut rule: Rule = vec![Statement::In(Field::Source, *own)];
        rule.extend(inside.iter().map(|cidr| Statement::NotIn(Field::Destination, **cidr)));
        rule.push(Statement::NotIn(Field::Destination, multicast(family)));
        rule.push(Statement::Masquerade);
        rules.push(rule);
    }
    if desired.own_cidrs.iter().any(|cidr| Family::of_net(cidr) == family) {
        // The answer comes through the overlay only when the source is a pod network's.
        let mut rule: Rule = vec![Statement::OutBy(overlay::NAME)];
        rule.extend(inside.iter().map(|cidr| Statement::NotIn(Field::Source, **cidr)));
        rule.push(Statement::Masquerade);
        rules.push(rule);
    }
    draft.chain("on-postrouting", Some(Hook::PostroutingNat), rules);
}

fn multicast(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)),
        Family::V6 => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8)),
    }
}
