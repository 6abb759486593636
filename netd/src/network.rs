//! Keeps routes, the overlay, the node's own addresses and the kernel settings as they shall be.
//!
//! Level-triggered: pods, nodes and the kernel's own notifications wake it; then it observes, plans and applies. What others
//! changed is repaired by the same path. Nothing wakes it when nothing changes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressScope};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::{mpsc, watch};

use crate::link::{self, LinkError};
use crate::overlay::{self, Overlay};
use crate::pods::{self, Table};
use crate::route::{self, Route, Uplink};
use crate::topology::{NodeView, Topology, plan_node_routes, plan_service_routes, plan_topology};
use crate::tracker::Tracker;
use crate::{Config, DNS_ADDRESS, Readiness, ipam, saved, sysctl};

/// Notifications come in bursts (six for one pod); they are gathered for so long.
const GATHER: Duration = Duration::from_millis(100);
/// First wait after a failure; doubled each time.
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// Longest wait after a failure.
const RETRY_LONGEST: Duration = Duration::from_secs(30);

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("{what}")]
    Kernel {
        what: &'static str,
        #[source]
        source: LinkError,
    },
    #[error("route to {}", route.destination)]
    Route {
        route: Route,
        #[source]
        source: LinkError,
    },
    #[error("kernel settings")]
    Sysctl(#[source] std::io::Error),
}

/// The task's state.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) config: Config,
    pub(crate) handle: Handle,
    pub(crate) tracker: Tracker,
    pub(crate) pods: watch::Receiver<Table>,
    pub(crate) requests: mpsc::WeakSender<pods::Request>,
    pub(crate) pod_cidrs: watch::Sender<Vec<IpNet>>,
    pub(crate) readiness: watch::Sender<Readiness>,
}

impl Network {
    /// Runs until the runtime drops it.
    pub(crate) async fn run(mut self) {
        let mut cluster = self.tracker.changes();
        let mut retry = RETRY_FIRST;
        let (kernel, mut kernel_changes) = watch::channel(0u64);
        let listener = listen(kernel);
        let mut listener = std::pin::pin!(listener);
        loop {
            kernel_changes.mark_unchanged();
            cluster.mark_unchanged();
            self.pods.mark_unchanged();
            let wait = match self.sync().await {
                Ok(()) => {
                    retry = RETRY_FIRST;
                    None
                }
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "pod network incomplete; retrying"
                    );
                    // What is in the kernel stays; a first failure of a network that works is no news.
                    if retry > RETRY_FIRST || *self.readiness.borrow() != Readiness::Ready {
                        self.publish(Readiness::Failing(format!("{error:#}")));
                    }
                    let wait = retry;
                    retry = (retry * 2).min(RETRY_LONGEST);
                    Some(wait)
                }
            };
            let timer = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = cluster.changed() => {}
                _ = self.pods.changed() => {}
                _ = kernel_changes.changed() => {}
                () = timer => {}
                () = &mut listener => {
                    tracing::error!("the kernel's notifications ended; routes are no longer repaired");
                    return;
                }
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    fn publish(&self, readiness: Readiness) {
        self.readiness.send_if_modified(|now| {
            let changed = *now != readiness;
            *now = readiness;
            changed
        });
    }

    /// One pass: observe, plan, apply.
    async fn sync(&self) -> Result<(), NetworkError> {
        let (own, others) = self.nodes();
        let own_cidrs = own.pod_cidrs;
        self.pod_cidrs.send_if_modified(|cidrs| {
            let changed = !own_cidrs.is_empty() && *cidrs != own_cidrs;
            if changed {
                cidrs.clone_from(&own_cidrs);
            }
            changed
        });
        let ipv6 = own_cidrs.iter().any(|cidr| cidr.addr().is_ipv6());
        for name in sysctl::apply(&self.config.state_dir, ipv6).map_err(NetworkError::Sysctl)? {
            tracing::info!(setting = name, "set for forwarding; restored on leave");
        }
        let own: Vec<IpAddr> = own_cidrs.iter().map(ipam::own_address).collect();
        self.apply_addresses(&own, &own_cidrs).await?;
        let uplink = route::observe_uplink(&self.handle, &self.config.node_ips)
            .await
            .map_err(kernel("looking for the node's own link"))?;
        // In this order: a route that is observed has its pod in the table already.
        let observed = self.observe_routes(ipv6).await?;
        let mut desired = self.pod_routes().await?;
        if let Some(uplink) = &uplink {
            desired.extend(plan_service_routes(&self.config.service_cidrs, uplink));
            let underlay = uplink.own.first().copied();
            let topology = underlay
                .map(|underlay| plan_topology(others.iter(), uplink, underlay))
                .unwrap_or_default();
            let overlay = self.apply_overlay(&topology, uplink).await?;
            desired.extend(plan_node_routes(&topology, uplink, overlay, &own));
        }
        self.apply_routes(&desired, &observed, ipv6).await?;
        self.publish(match own_cidrs.is_empty() {
            true => Readiness::NoPodCidr,
            false => Readiness::Ready,
        });
        Ok(())
    }

    fn nodes(&self) -> (NodeView, Vec<NodeView>) {
        let cluster = self.tracker.read();
        let own = cluster.nodes.get(self.config.node_name.as_str()).cloned().unwrap_or_default();
        let others = cluster
            .nodes
            .iter()
            .filter(|(name, _)| ***name != *self.config.node_name)
            .map(|(_, node)| node.clone());
        (own, others.collect())
    }

    async fn apply_addresses(&self, own: &[IpAddr], cidrs: &[IpNet]) -> Result<(), NetworkError> {
        let addresses = own_addresses(&self.config, own);
        let file = self.config.state_dir.join(saved::ADDRESSES);
        ensure_addresses(&self.handle, &addresses, &file)
            .await
            .map_err(kernel("adding own addresses"))?;
        let failed = || kernel("removing an earlier own address");
        let recorded = saved::load(&file).map_err(LinkError::from).map_err(failed())?;
        let obsolete = plan_obsolete(&recorded.unwrap_or_default(), cidrs, &self.pods.borrow());
        delete_addresses(&self.handle, &obsolete, &file).await.map_err(failed())
    }

    async fn pod_routes(&self) -> Result<BTreeSet<Route>, NetworkError> {
        let links = link::list_ours(&self.handle).await.map_err(kernel("listing links"))?;
        let table = self.pods.borrow();
        let mut routes = BTreeSet::new();
        for (uid, record) in table.iter() {
            match links.iter().find(|(name, _)| *name == record.link) {
                Some((_, index)) => routes.extend(pods::routes(record, *index)),
                None => self.repair(uid),
            }
        }
        Ok(routes)
    }

    /// Asks for a pod's link: harmless when its attachment is just being made.
    fn repair(&self, uid: &str) {
        let request = pods::Request::Repair(uid.to_owned());
        if let Some(requests) = self.requests.upgrade()
            && let Err(error) = requests.try_send(request)
        {
            tracing::debug!(uid, %error, "repair of a link not asked for");
        }
    }

    async fn apply_overlay(
        &self,
        topology: &Topology,
        uplink: &Uplink,
    ) -> Result<Option<u32>, NetworkError> {
        let local = uplink.own.first().copied();
        let (Some(local), false) = (local, topology.peers.is_empty()) else {
            overlay::remove(&self.handle).await.map_err(kernel("removing the overlay link"))?;
            return Ok(None);
        };
        let wanted = Overlay { vni: self.config.vxlan_vni, port: self.config.vxlan_port, local };
        let index = overlay::ensure(&self.handle, wanted, uplink)
            .await
            .map_err(kernel("making the overlay link"))?;
        overlay::apply_peers(&self.handle, index, &topology.peers)
            .await
            .map_err(kernel("setting the overlay's peers"))?;
        Ok(Some(index))
    }

    async fn observe_routes(&self, ipv6: bool) -> Result<BTreeSet<Route>, NetworkError> {
        route::observe(&self.handle, self.config.route_protocol, ipv6)
            .await
            .map_err(kernel("listing routes"))
    }

    async fn apply_routes(
        &self,
        desired: &BTreeSet<Route>,
        observed: &BTreeSet<Route>,
        ipv6: bool,
    ) -> Result<(), NetworkError> {
        let plan = route::plan_routes(desired, observed);
        if plan == route::RoutePlan::default() {
            return Ok(());
        }
        tracing::debug!(?plan, "routes");
        match route::apply(&self.handle, &plan, self.config.route_protocol).await {
            Ok(()) => Ok(()),
            // A pod's attachment may have made it meanwhile; what somebody else has there stays an error.
            Err((route, source)) if source.is(nix::Error::EEXIST) => {
                match self.observe_routes(ipv6).await?.contains(&route) {
                    true => Ok(()),
                    false => Err(NetworkError::Route { route, source }),
                }
            }
            Err((route, source)) => Err(NetworkError::Route { route, source }),
        }
    }
}

fn kernel(what: &'static str) -> impl FnOnce(LinkError) -> NetworkError {
    move |source| NetworkError::Kernel { what, source }
}

/// Addresses of ours on `lo`: the resolver's, seen by this host only, and the node's own in the pod network.
pub(crate) fn own_addresses(config: &Config, own: &[IpAddr]) -> Vec<(IpAddr, AddressScope)> {
    let mut addresses: Vec<_> =
        own.iter().map(|address| (*address, AddressScope::Universe)).collect();
    if !config.cluster_dns.is_empty() {
        addresses.push((IpAddr::V4(DNS_ADDRESS), AddressScope::Host));
    }
    addresses
}

/// The recorded addresses of earlier pod CIDRs, which no pod is left of.
fn plan_obsolete(recorded: &BTreeSet<IpAddr>, cidrs: &[IpNet], pods: &Table) -> BTreeSet<IpAddr> {
    let is_current = |address: &IpAddr| cidrs.iter().any(|cidr| cidr.contains(address));
    let is_settled = |address: &IpAddr| {
        let alike = |other: &IpAddr| other.is_ipv4() == address.is_ipv4();
        cidrs.iter().any(|cidr| alike(&cidr.addr()))
            && pods.values().flat_map(|pod| &pod.addresses).filter(|ip| alike(ip)).all(is_current)
    };
    let earlier = |address: &&IpAddr| **address != DNS_ADDRESS && !is_current(address);
    recorded.iter().filter(earlier).filter(|address| is_settled(address)).copied().collect()
}

/// Adds what is missing.
async fn ensure_addresses(
    handle: &Handle,
    addresses: &[(IpAddr, AddressScope)],
    file: &Path,
) -> Result<(), LinkError> {
    let lo = link::index(handle, "lo").await?.ok_or_else(|| link::missing("lo"))?;
    let present = list_addresses(handle, lo).await?;
    let missing: Vec<_> = addresses.iter().filter(|(a, _)| !present.contains(a)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut ours: BTreeSet<IpAddr> = saved::load(file)?.unwrap_or_default();
    let known = ours.len();
    ours.extend(missing.iter().map(|(address, _)| *address));
    if ours.len() != known {
        saved::store(file, &ours)?;
    }
    for (address, scope) in missing {
        let mut request = handle.address().add(lo, *address, whole(address));
        request.message_mut().header.scope = *scope;
        request.execute().await?;
    }
    Ok(())
}

/// Prefix length of one address.
fn whole(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Removes all addresses that were added, as far as they are still there.
pub(crate) async fn remove_addresses(handle: &Handle, config: &Config) -> Result<(), LinkError> {
    let file = config.state_dir.join(saved::ADDRESSES);
    let ours = saved::load(&file)?.unwrap_or_default();
    delete_addresses(handle, &ours, &file).await?;
    Ok(saved::remove(&file)?)
}

/// Removes some of the recorded addresses and their record.
async fn delete_addresses(
    handle: &Handle,
    addresses: &BTreeSet<IpAddr>,
    file: &Path,
) -> Result<(), LinkError> {
    if addresses.is_empty() {
        return Ok(());
    }
    let lo = link::index(handle, "lo").await?.ok_or_else(|| link::missing("lo"))?;
    let present = list_addresses(handle, lo).await?;
    for address in addresses.iter().filter(|address| present.contains(address)) {
        let mut request = handle.address().add(lo, *address, whole(address));
        let message = std::mem::take(request.message_mut());
        handle.address().del(message).execute().await?;
    }
    let mut ours: BTreeSet<IpAddr> = saved::load(file)?.unwrap_or_default();
    ours.retain(|address| !addresses.contains(address));
    Ok(saved::store(file, &ours)?)
}

/// The addresses of a link.
pub(crate) async fn list_addresses(handle: &Handle, index: u32) -> Result<Vec<IpAddr>, LinkError> {
    let mut addresses = Vec::new();
    let request = handle.address().get().set_link_index_filter(index);
    for message in link::list(|| request.execute()).await? {
        if message.header.index == index {
            addresses.extend(message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            }));
            addresses.extend(message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            }));
        }
    }
    Ok(addresses)
}

/// Bumps the number at each notification about links, addresses and routes; returns when they end.
async fn listen(changes: watch::Sender<u64>) {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv6Route,
    ];
    let (connection, _handle, mut messages) = match rtnetlink::new_multicast_connection(&groups) {
        Ok(parts) => parts,
        Err(error) => {
            tracing::error!(%error, "no notifications from the kernel");
            return;
        }
    };
    let pump = async {
        while messages.next().await.is_some() {
            changes.send_modify(|number| *number += 1);
        }
    };
    tokio::join!(connection, pump);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::Record;

    #[test]
    fn an_earlier_address_goes_with_its_last_pod() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let pods = |addresses: &[&str]| -> Table {
            let record = |address: &&str| Record {
                namespace: "d".to_owned(),
                name: "p".to_owned(),
                link: "flt0".to_owned(),
                addresses: vec![ip(address)],
                host_ports: Vec::new(),
            };
            addresses.iter().map(|address| ((*address).to_owned(), record(address))).collect()
        };
        let recorded = [ip("10.244.1.0"), ip("10.244.2.0"), IpAddr::V4(DNS_ADDRESS)].into();
        let cidrs = ["10.244.2.0/24".parse().unwrap()];
        for (cidrs, pods, want) in [
            (&cidrs[..], pods(&[]), vec![ip("10.244.1.0")]),
            (&cidrs[..], pods(&["10.244.2.1"]), vec![ip("10.244.1.0")]),
            (&cidrs[..], pods(&["10.244.1.1"]), vec![]),
            (&[], pods(&[]), vec![]),
        ] {
            let obsolete = plan_obsolete(&recorded, cidrs, &pods);
            assert_eq!(obsolete.into_iter().collect::<Vec<_>>(), want, "{cidrs:?} {pods:?}");
        }
    }
}
