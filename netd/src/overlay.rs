//! The overlay link `flt.vxlan`: made when a node is reached through it, with its peers as permanent entries.
//!
//! No learning, no broadcast: for each peer one neighbour (gateway to MAC) and one forwarding entry (MAC to address).

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::{Handle, LinkVxlan};

use crate::link::{self, LinkError};
use crate::route::Uplink;
use crate::topology::{Peer, overlay_mac};

/// Name of the overlay link.
pub(crate) const NAME: &str = "flt.vxlan";
/// Outer IPv4 + UDP + VXLAN + inner Ethernet.
const OVERHEAD_V4: u32 = 50;
/// The same over IPv6.
const OVERHEAD_V6: u32 = 70;

/// How the link shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overlay {
    pub(crate) vni: u32,
    pub(crate) port: u16,
    pub(crate) local: IpAddr,
}

/// Makes the link, or makes it anew when it isn't as it shall be; returns its index.
pub(crate) async fn ensure(
    handle: &Handle,
    overlay: Overlay,
    uplink: &Uplink,
) -> Result<u32, LinkError> {
    let overhead = if overlay.local.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 };
    let mtu = uplink.mtu.saturating_sub(overhead);
    if let Some(index) = link::index(handle, NAME).await? {
        if matches(handle, index, overlay, uplink, mtu).await? {
            return Ok(index);
        }
        link::delete(handle, index).await?;
    }
    let builder = LinkVxlan::new(NAME, overlay.vni)
        .port(overlay.port)
        .dev(uplink.index)
        .learning(false)
        .address(overlay_mac(overlay.local).to_vec())
        .mtu(mtu)
        .up();
    let builder = match overlay.local {
        IpAddr::V4(local) => builder.local(local),
        IpAddr::V6(local) => builder.local6(local),
    };
    handle.link().add(builder.build()).execute().await?;
    link::index(handle, NAME).await?.ok_or_else(|| link::missing(NAME))
}

async fn matches(
    handle: &Handle,
    index: u32,
    overlay: Overlay,
    uplink: &Uplink,
    mtu: u32,
) -> Result<bool, LinkError> {
    let found = handle.link().get().match_index(index).execute().try_next().await?;
    let Some(found) = found else { return Ok(false) };
    let mut facts = Vec::new();
    let (mut has_mtu, mut has_mac) = (false, false);
    for attribute in found.attributes {
        match attribute {
            LinkAttribute::Mtu(value) => has_mtu = value == mtu,
            LinkAttribute::Address(mac) => has_mac = mac == overlay_mac(overlay.local),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Data(InfoData::Vxlan(data)) = info {
                        facts = data;
                    }
                }
            }
            _ => {}
        }
    }
    let local = match overlay.local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    };
    let wanted = [
        InfoVxlan::Id(overlay.vni),
        InfoVxlan::Port(overlay.port),
        InfoVxlan::Link(uplink.index),
        InfoVxlan::Learning(false),
        local,
    ];
    let up = found.header.flags.contains(netlink_packet_route::link::LinkFlags::Up);
    Ok(up && has_mtu && has_mac && wanted.iter().all(|fact| facts.contains(fact)))
}

/// Removes the link, and with it all peers; succeeds when there is none.
pub(crate) async fn remove(handle: &Handle) -> Result<(), LinkError> {
    match link::index(handle, NAME).await? {
        Some(index) => link::delete(handle, index).await,
        None => Ok(()),
    }
}

/// Makes the peers' entries exactly these.
pub(crate) async fn apply_peers(
    handle: &Handle,
    index: u32,
    peers: &BTreeSet<Peer>,
) -> Result<(), LinkError> {
    for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge] {
        for entry in observe(handle, index, family).await? {
            if !peers.iter().any(|peer| belongs(&entry, peer)) {
                handle.neighbours().del(entry).execute().await?;
            }
        }
    }
    for peer in peers {
        let entry = handle.neighbours().add_bridge(index, &peer.mac).destination(peer.remote);
        entry.flags(NeighbourFlags::Own).replace().execute().await?;
        for gateway in &peer.gateways {
            let entry = handle.neighbours().add(index, *gateway).link_layer_address(&peer.mac);
            entry.replace().execute().await?;
        }
    }
    Ok(())
}

async fn observe(
    handle: &Handle,
    index: u32,
    family: AddressFamily,
) -> Result<Vec<NeighbourMessage>, LinkError> {
    let request = handle.neighbours().get().set_address_family(family);
    let mut entries = link::list(|| request.execute()).await?;
    entries.retain(|entry| {
        entry.header.ifindex == index && entry.header.state == NeighbourState::Permanent
    });
    Ok(entries)
}

fn belongs(entry: &NeighbourMessage, peer: &Peer) -> bool {
    let mut mac = false;
    let mut address = false;
    for attribute in &entry.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(found) => mac = *found == peer.mac,
            NeighbourAttribute::Destination(found) => {
                let found = match found {
                    NeighbourAddress::Inet(found) => Some(IpAddr::V4(*found)),
                    NeighbourAddress::Inet6(found) => Some(IpAddr::V6(*found)),
                    _ => None,
                };
                address = found.is_some_and(|found| match entry.header.family {
                    AddressFamily::Bridge => found == peer.remote,
                    _ => peer.gateways.contains(&found),
                });
            }
            _ => {}
        }
    }
    // Multicast entries of the link itself have no peer's address and stay.
    mac && address || (entry.header.family != AddressFamily::Bridge && is_multicast(entry))
}

fn is_multicast(entry: &NeighbourMessage) -> bool {
    entry.attributes.iter().any(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => ip.is_multicast(),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => ip.is_multicast(),
        _ => false,
    })
}
