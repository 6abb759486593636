//! A pod's link: a routed veth pair, without a bridge.
//!
//! Inside: `eth0` with a /32 (or /128), a link-local gateway with a permanent neighbour. Outside: `flt<hash>` with a host
//! route and a permanent neighbour per address, so nothing ever asks who has an address. Both ends get explicit MACs:
//! udev rewrites those of links made without. Must not decide which address a pod gets.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use futures::{Stream, TryStreamExt};
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, State};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::sync::Mutex;

use crate::netns;

/// Every link of ours begins with this.
pub(crate) const PREFIX: &str = "flt";
/// Name of the pod's end.
const POD_LINK: &str = "eth0";
/// A pod's gateway; no host has it, the permanent neighbour leads to the host's end.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// A pod's IPv6 gateway.
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Between two looks at a new link's state; it is up within one or two.
const CARRIER_CHECK: Duration = Duration::from_millis(1);
/// Looks at a new link's state before it is taken as it is.
const CARRIER_CHECKS_MAX: u32 = 50;
/// MAC of every host end: each is the only other station on its link.
const HOST_MAC: [u8; 6] = [0x02, 0x66, 0x6c, 0x74, 0x00, 0x01];

/// Held while the kernel lists: a second listing on the same socket is refused as busy.
static LISTING: Mutex<()> = Mutex::const_new(());

/// What went wrong in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The netlink connection failed.
    #[error("netlink")]
    Netlink(#[source] rtnetlink::Error),
    /// The kernel refused, or a system call failed.
    #[error("{0}")]
    System(#[from] io::Error),
}

impl From<rtnetlink::Error> for LinkError {
    fn from(error: rtnetlink::Error) -> LinkError {
        match error {
            rtnetlink::Error::NetlinkError(message) => LinkError::System(message.to_io()),
            other => LinkError::Netlink(other),
        }
    }
}

impl LinkError {
    /// Whether the kernel answered with this error number.
    pub(crate) fn is(&self, errno: nix::Error) -> bool {
        match self {
            LinkError::System(error) => error.raw_os_error() == Some(errno as i32),
            LinkError::Netlink(_) => false,
        }
    }
}

/// One pod's link, as it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodLink {
    pub(crate) host_name: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) mtu: u32,
}

/// Name of the host's end: another one for each pair of pod and address, so that a pod's next link never meets the last.
pub(crate) fn host_name(uid: &str, address: IpAddr) -> String {
    let hash = fnv1a(format!("{uid} {address}").as_bytes());
    format!("{PREFIX}{:012x}", hash & 0xffff_ffff_ffff)
}

/// FNV-1a: the same on each build, unlike the standard library's hasher.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// MAC of a pod's end: locally administered, from its first address.
fn pod_mac(addresses: &[IpAddr]) -> [u8; 6] {
    let tail = match addresses.first() {
        Some(IpAddr::V4(address)) => address.octets(),
        Some(IpAddr::V6(address)) => {
            let [.., a, b, c, d] = fnv1a(&address.octets()).to_be_bytes();
            [a, b, c, d]
        }
        None => [0; 4],
    };
    [0x0a, 0x58, tail[0], tail[1], tail[2], tail[3]]
}

/// Makes a pod's link, and its namespace where there is none yet. The pod's end comes up last, by
/// `apply_pod_end`: an end that comes up beside one that is up can send at once, the
/// other one can when the kernel's worker has seen the carrier, which `await_carrier` waits for where it can be seen.
pub(crate) async fn create(handle: &Handle, pin: &Path, link: &PodLink) -> Result<(), LinkError> {
    if !netns::is_pinned(pin) {
        netns::create(pin).await?;
    }
    let namespace = File::open(pin)?;
    let peer = LinkUnspec::new_with_name(POD_LINK)
        .setns_by_fd(namespace.as_raw_fd())
        .mtu(link.mtu)
        .address(pod_mac(&link.addresses).to_vec())
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(&link.host_name)
        .mtu(link.mtu)
        .address(HOST_MAC.to_vec())
        .up()
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    Ok(handle.link().add(pair).execute().await?)
}

/// Makes the pod's end what it shall be; what is there stays, also a default route of the pod's own making.
pub(crate) async fn apply_pod_end(pin: &Path, addresses: &[IpAddr]) -> Result<(), LinkError> {
    let addresses = addresses.to_vec();
    netns::enter(pin, move || async move {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let result = configure_pod(&handle, &addresses).await;
        connection.abort();
        result
    })
    .await
}

async fn configure_pod(handle: &Handle, addresses: &[IpAddr]) -> Result<(), LinkError> {
    for name in ["lo", POD_LINK] {
        let up = LinkUnspec::new_with_name(name).up().build();
        handle.link().set(up).execute().await?;
    }
    let index = index(handle, POD_LINK).await?.ok_or_else(|| missing(POD_LINK))?;
    for address in addresses {
        configure_address(handle, index, *address).await?;
    }
    Ok(())
}

async fn configure_address(handle: &Handle, index: u32, address: IpAddr) -> Result<(), LinkError> {
    let (length, gateway) = match address {
        IpAddr::V4(_) => (32, IpAddr::V4(GATEWAY_V4)),
        IpAddr::V6(_) => (128, IpAddr::V6(GATEWAY_V6)),
    };
    let mut request = handle.address().add(index, address, length).replace();
    if address.is_ipv6() {
        // Nobody else can have it; waiting for duplicate detection would make it unusable for a second.
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        request.message_mut().attributes.push(flags);
    }
    request.execute().await?;
    let neighbour = handle.neighbours().add(index, gateway);
    neighbour.link_layer_address(&HOST_MAC).replace().execute().await?;
    let default = match gateway {
        IpAddr::V4(gateway) => RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .output_interface(index)
            .onlink()
            .build(),
        IpAddr::V6(gateway) => {
            RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).output_interface(index).build()
        }
    };
    match handle.route().add(default).execute().await.map_err(LinkError::from) {
        Err(error) if !error.is(nix::Error::EEXIST) => Err(error),
        _ => Ok(()),
    }
}

/// Brings the host's end up, with the permanent neighbours of the pod.
pub(crate) async fn apply_host_end(
    handle: &Handle,
    index: u32,
    addresses: &[IpAddr],
) -> Result<(), LinkError> {
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
    let mac = pod_mac(addresses);
    for address in addresses {
        let neighbour = handle.neighbours().add(index, *address);
        neighbour.link_layer_address(&mac).replace().execute().await?;
    }
    Ok(())
}

/// Waits until the kernel has seen the carrier of the host's end: packets to the pod are dropped before. Bounded, since a pod
/// that is slow to answer is better than none.
pub(crate) async fn await_carrier(handle: &Handle, index: u32) -> Result<(), LinkError> {
    for _ in 0..CARRIER_CHECKS_MAX {
        let link = handle.link().get().match_index(index).execute().try_next().await?;
        let up = LinkAttribute::OperState(State::Up);
        if link.is_none_or(|link| link.attributes.contains(&up)) {
            return Ok(());
        }
        tokio::time::sleep(CARRIER_CHECK).await;
    }
    Ok(())
}

/// Index of the link of this name; none when there is no such link.
pub(crate) async fn index(handle: &Handle, name: &str) -> Result<Option<u32>, LinkError> {
    let mut links = handle.link().get().match_name(name).execute();
    match links.try_next().await.map_err(LinkError::from) {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(error) if error.is(nix::Error::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a link; succeeds when there is none.
pub(crate) async fn delete(handle: &Handle, index: u32) -> Result<(), LinkError> {
    match handle.link().del(index).execute().await.map_err(LinkError::from) {
        Err(error) if !error.is(nix::Error::ENODEV) => Err(error),
        _ => Ok(()),
    }
}

/// Everything of a listing. `request` sends it, when no other one is under way.
pub(crate) async fn list<T, S>(request: impl FnOnce() -> S) -> Result<Vec<T>, LinkError>
where
    S: Stream<Item = Result<T, rtnetlink::Error>>,
{
    let _turn = LISTING.lock().await;
    Ok(request().try_collect().await?)
}

/// The links whose names begin with our prefix: name and index.
pub(crate) async fn list_ours(handle: &Handle) -> Result<Vec<(String, u32)>, LinkError> {
    let mut ours = Vec::new();
    for link in list(|| handle.link().get().execute()).await? {
        for attribute in &link.attributes {
            if let LinkAttribute::IfName(name) = attribute
                && name.starts_with(PREFIX)
            {
                ours.push((name.clone(), link.header.index));
            }
        }
    }
    Ok(ours)
}

pub(crate) fn missing(name: &str) -> LinkError {
    LinkError::System(io::Error::new(io::ErrorKind::NotFound, format!("no link {name}")))
}
