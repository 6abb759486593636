//! Which addresses this node has: as configured, or the one the master is reached from, known without
//! asking the master. The last one is kept on disk for a boot without a network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};

use crate::config::{Config, write_atomic};
use crate::connection::parse_server;

/// The node's addresses, the primary one first. Never empty.
pub(crate) fn observe(config: &Config) -> Vec<IpAddr> {
    if !config.node_ip.is_empty() {
        return config.node_ip.clone();
    }
    let file = file(config);
    let saved = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
    let routed = config.servers.iter().find_map(|server| toward(server));
    if let Some(address) = routed
        && saved != Some(address)
    {
        save(&file, address);
    }
    let found = routed.or(saved).or_else(any_interface);
    vec![found.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))]
}

fn file(config: &Config) -> PathBuf {
    config.identity_dir().join("address")
}

fn save(file: &Path, address: IpAddr) {
    if let Err(error) = write_atomic(file, format!("{address}\n").as_bytes(), 0o600) {
        tracing::warn!(file = %file.display(), %error, "the node's address was not kept");
    }
}

/// The address that others have for this node: with the master on this host, not the one toward it.
pub(crate) fn for_others(address: IpAddr) -> IpAddr {
    // Addresses kept for documentation, so nobody's: they lead where everything else leads.
    let v4 = || source(SocketAddr::from(([203, 0, 113, 1], 9)));
    let v6 = || source(SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 9)));
    let outward = || v4().or_else(v6).filter(|ip| !ip.is_loopback()).or_else(any_interface);
    if address.is_loopback() { outward().unwrap_or(address) } else { address }
}

fn toward(server: &str) -> Option<IpAddr> {
    source(target(server)?).map(for_others)
}

fn target(server: &str) -> Option<SocketAddr> {
    let (host, authority) = parse_server(server).ok()?;
    let port = authority.port_u16().unwrap_or(443);
    (host.as_str(), port).to_socket_addrs().ok()?.next()
}

/// The ports of those masters that are on this host: the way to an address of one's own begins at that address.
pub(crate) fn served_here(servers: &[String]) -> Vec<u16> {
    let targets = servers.iter().filter_map(|server| target(server));
    let here = targets.filter(|target| source(*target) == Some(target.ip()));
    here.map(|target| target.port()).collect()
}

/// The source address of the route to a target; connecting a UDP socket sends nothing.
fn source(target: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(target).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
}

/// Any address of this host that others could reach: not one of a pod's link, nor the node's own in the pod network, on `lo`.
fn any_interface() -> Option<IpAddr> {
    let mut interfaces = nix::ifaddrs::getifaddrs().ok()?;
    interfaces.find_map(|interface| {
        let address = interface.address?;
        let ip = address.as_sockaddr_in()?.ip();
        is_for_others(&interface.interface_name, ip).then_some(IpAddr::V4(ip))
    })
}

fn is_for_others(interface: &str, ip: Ipv4Addr) -> bool {
    let ours = interface == "lo" || interface.starts_with("flt");
    !ours && !ip.is_loopback() && !ip.is_link_local()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_address_survives_the_loss_of_the_network() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config {
            data_dir: dir.path().to_owned(),
            servers: vec!["https://127.0.0.1:6443".into()],
            ..Config::default()
        };
        assert_eq!(observe(&config), [for_others(IpAddr::from([127, 0, 0, 1]))]);
        assert_eq!(for_others(IpAddr::from([10, 9, 8, 7])), IpAddr::from([10, 9, 8, 7]));
        std::fs::write(file(&config), "10.9.8.7\n").unwrap();
        config.servers = vec!["no server".into()];
        assert_eq!(observe(&config), [IpAddr::from([10, 9, 8, 7])]);
        config.node_ip = vec![IpAddr::from([10, 0, 0, 1])];
        assert_eq!(observe(&config), config.node_ip);
    }

    #[test]
    fn what_is_ours_or_the_links_is_not_for_others() {
        for (interface, ip, want) in [
            ("eth0", [192, 0, 2, 1], true),
            ("eth0", [169, 254, 7, 7], false),
            ("lo", [127, 0, 0, 1], false),
            ("lo", [10, 244, 1, 0], false),
            ("flt0123456789ab", [10, 9, 8, 7], false),
        ] {
            assert_eq!(is_for_others(interface, Ipv4Addr::from(ip)), want, "{interface} {ip:?}");
        }
    }

    #[test]
    fn ports_of_masters_on_this_host_are_known() {
        let servers = [
            "https://127.0.0.1:6443",
            "https://127.0.0.1:7443",
            "https://203.0.113.1:1",
            "no server",
        ];
        assert_eq!(served_here(&servers.map(String::from)), [6443, 7443]);
    }
}
