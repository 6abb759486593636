//! Owns what the machine says about itself: its names and addresses. Must not decide what they are used for.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// The machine's host name, in lower case; `None` where it has none that can stand in a certificate.
pub fn host_name() -> Option<String> {
    let name = nix::unistd::gethostname().ok()?.into_string().ok()?.to_ascii_lowercase();
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    name.split('.').all(label).then_some(name)
}

/// Every address of the machine that others could use, and its loopback ones. Link-local ones are left out: they come and go with
/// links, and mean nothing elsewhere.
///
/// # Errors
/// The kernel does not say.
pub fn all() -> std::io::Result<BTreeSet<IpAddr>> {
    let mut found: BTreeSet<IpAddr> =
        [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].into();
    for interface in nix::ifaddrs::getifaddrs()? {
        let Some(address) = interface.address else { continue };
        let v4 = address.as_sockaddr_in().map(|own| own.ip());
        let v6 = address.as_sockaddr_in6().map(|own| own.ip());
        found.extend(v4.filter(|own| !own.is_link_local()).map(IpAddr::V4));
        found.extend(v6.filter(|own| !own.is_unicast_link_local()).map(IpAddr::V6));
    }
    Ok(found)
}

/// The address that the machine uses towards others: of the default route, else of any interface.
pub fn default_address() -> Option<IpAddr> {
    let routed = |own: IpAddr, other: IpAddr| {
        let socket = UdpSocket::bind((own, 0)).ok()?;
        // Asks the routing table; a datagram socket sends nothing by being connected.
        socket.connect((other, 9)).ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    };
    // Addresses that are set aside for documentation: nobody's, so only the default route leads there.
    let v4 = routed(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into());
    let documentation = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    let v6 = || routed(Ipv6Addr::UNSPECIFIED.into(), documentation.into());
    let any = || all().ok()?.into_iter().find(|address| !address.is_loopback());
    v4.or_else(v6).or_else(any)
}
