//! The pods that have a network: reservations, links, pins; one task owns them.
//!
//! A record in `<run_dir>/network/<uid>.json` is written before anything is made in the kernel and removed after all is
//! gone, so no crash leaves an address in use that nobody knows of. Must not wait for the kernel's slow clean-up: links go with
//! their namespaces, and a sweep removes what a process still held.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use rtnetlink::Handle;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::error::{AttachError, DetachError};
use crate::link::{self, LinkError, PodLink};
use crate::route::{self, Route};
use crate::{Config, HostPort, PodAttachment, PodNetwork, ipam, netns, overlay, saved};

/// Requests waiting for the task; a node has some hundred pods at most.
pub(crate) const REQUESTS_MAX: usize = 256;
/// How long the kernel gets to remove links with their namespaces before the sweep looks.
const SWEEP_DELAY: Duration = Duration::from_secs(3);
/// Longest UID taken: a file name with its suffix.
const UID_LENGTH_MAX: usize = 200;

/// One pod's reservation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) link: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) host_ports: Vec<HostPort>,
}

/// All reservations by UID, as published to the other tasks.
pub(crate) type Table = BTreeMap<String, Record>;

/// A request to the task.
#[derive(Debug)]
pub(crate) enum Request {
    Attach(PodAttachment, oneshot::Sender<Result<PodNetwork, AttachError>>),
    Detach(String, oneshot::Sender<Result<(), DetachError>>),
    /// Somebody removed the link of a pod.
    Repair(String),
}

/// The task's state.
#[derive(Debug)]
pub(crate) struct Pods {
    pub(crate) config: Config,
    pub(crate) handle: Handle,
    pub(crate) table: watch::Sender<Table>,
    pub(crate) pod_cidrs: watch::Receiver<Vec<IpNet>>,
    last: BTreeMap<IpNet, IpAddr>,
}

/// Folder of the reservations.
pub(crate) fn records_dir(config: &Config) -> PathBuf {
    config.run_dir.join("network")
}

/// Reads all reservations; half-made pods are in it too and are completed or taken down by the next request.
pub(crate) fn load(config: &Config) -> std::io::Result<Table> {
    let dir = records_dir(config);
    fs::create_dir_all(&dir)?;
    fs::create_dir_all(config.netns_dir())?;
    let mut table = Table::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json")
            && let Some(uid) = path.file_stem().and_then(|stem| stem.to_str())
            && let Some(record) = saved::load(&path)?
        {
            table.insert(uid.to_owned(), record);
        }
    }
    Ok(table)
}

impl Pods {
    pub(crate) fn new(
        config: Config,
        handle: Handle,
        table: watch::Sender<Table>,
        pod_cidrs: watch::Receiver<Vec<IpNet>>,
    ) -> Pods {
        Pods { config, handle, table, pod_cidrs, last: BTreeMap::new() }
    }

    /// Serves requests until the other side is dropped.
    pub(crate) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut sweep_at = Some(Instant::now() + SWEEP_DELAY);
        loop {
            let sweep = async {
                match sweep_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                request = requests.recv() => match request {
                    None => return,
                    Some(Request::Attach(pod, answer)) => {
                        let uid = pod.uid.clone();
                        let result = self.attach(pod).await;
                        if answer.send(result).is_err() {
                            tracing::debug!(uid, "nobody waits for this attachment");
                        }
                    }
                    Some(Request::Repair(uid)) => self.repair(&uid).await,
                    Some(Request::Detach(uid, answer)) => {
                        let result = self.detach(&uid).await;
                        sweep_at = Some(Instant::now() + SWEEP_DELAY);
                        if answer.send(result).is_err() {
                            tracing::debug!(uid, "nobody waits for this detachment");
                        }
                    }
                },
                () = sweep => {
                    sweep_at = None;
                    if let Err(error) = self.sweep().await {
                        tracing::warn!(%error, "links of gone pods stay until the next detachment");
                    }
                }
            }
        }
    }

    fn record_file(&self, uid: &str) -> PathBuf {
        records_dir(&self.config).join(format!("{uid}.json"))
    }

    fn pin(&self, uid: &str) -> PathBuf {
        self.config.netns_dir().join(uid)
    }

    async fn attach(&mut self, pod: PodAttachment) -> Result<PodNetwork, AttachError> {
        if !is_file_name(&pod.uid) {
            return Err(AttachError::Uid(pod.uid));
        }
        let pin = self.pin(&pod.uid);
        let known = self.table.borrow().get(&pod.uid).cloned();
        let new = known.is_none();
        let record = match known {
            Some(record) => Record { host_ports: pod.host_ports.clone(), ..record },
            None => self.reserve(&pod)?,
        };
        let file = self.record_file(&pod.uid);
        saved::store(&file, &record)
            .map_err(|source| AttachError::State { path: file.clone(), source })?;
        // Published before its route is made: who sees a pod's route without its pod would delete it.
        self.table.send_if_modified(|table| {
            table.insert(pod.uid.clone(), record.clone()).as_ref() != Some(&record)
        });
        if let Err(error) = self.ensure_link(&pin, &record).await {
            // A pod that had its network keeps what is left of it.
            if new {
                self.undo(&pod.uid).await;
            }
            return Err(error);
        }
        tracing::debug!(pod = pod.name, namespace = pod.namespace, uid = pod.uid, ips = ?record.addresses, "attached");
        Ok(PodNetwork { netns: pin, ips: record.addresses })
    }

    fn reserve(&mut self, pod: &PodAttachment) -> Result<Record, AttachError> {
        let cidrs = self.pod_cidrs.borrow().clone();
        if cidrs.is_empty() {
            return Err(AttachError::NoPodCidr { node: self.config.node_name.clone() });
        }
        let used: BTreeSet<IpAddr> = self
            .table
            .borrow()
            .values()
            .flat_map(|record| record.addresses.iter().copied())
            .collect();
        let mut addresses = Vec::new();
        for cidr in cidrs {
            let last =
                self.last.get(&cidr).copied().or_else(|| {
                    used.iter().filter(|address| cidr.contains(*address)).max().copied()
                });
            let address = ipam::plan_address(&cidr, &used, last)
                .ok_or(AttachError::Exhausted { cidr, used: used.len() })?;
            self.last.insert(cidr, address);
            addresses.push(address);
        }
        let link = link::host_name(&pod.uid, addresses[0]);
        Ok(Record {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            link,
            addresses,
            host_ports: pod.host_ports.clone(),
        })
    }

    async fn ensure_link(&self, pin: &Path, record: &Record) -> Result<(), AttachError> {
        let failed = |what| move |source| AttachError::Kernel { what, source };
        let mut index = link::index(&self.handle, &record.link)
            .await
            .map_err(failed("looking for the link"))?;
        if index.is_none() || !netns::is_pinned(pin) {
            if let Some(index) = index {
                link::delete(&self.handle, index).await.map_err(failed("removing a stale link"))?;
            }
            if !netns::is_pinned(pin) {
                // A file without a namespace, from before a reboot.
                netns::unpin(pin)
                    .map_err(|source| AttachError::State { path: pin.to_owned(), source })?;
            }
            let uplink = route::observe_uplink(&self.handle, &self.config.node_ips)
                .await
                .map_err(failed("looking for the node's own link"))?;
            let link = PodLink {
                host_name: record.link.clone(),
                addresses: record.addresses.clone(),
                mtu: route::pod_mtu(uplink.as_ref()),
            };
            link::create(&self.handle, pin, &link)
                .await
                .map_err(failed("making namespace and link"))?;
            index = link::index(&self.handle, &record.link)
                .await
                .map_err(failed("looking for the link"))?;
        }
        let Some(index) = index else {
            let source = link::missing(&record.link);
            return Err(AttachError::Kernel { what: "making the link", source });
        };
        link::apply_pod_end(pin, &record.addresses)
            .await
            .map_err(failed("configuring the pod's end"))?;
        link::apply_host_end(&self.handle, index, &record.addresses)
            .await
            .map_err(failed("bringing the host's end up"))?;
        link::await_carrier(&self.handle, index).await.map_err(failed("waiting for the link"))?;
        for route in routes(record, index) {
            route::replace(&self.handle, &route, self.config.route_protocol)
                .await
                .map_err(failed("setting the routes"))?;
        }
        Ok(())
    }

    /// Gives a running pod its link back, in the namespace that its containers are in.
    async fn repair(&mut self, uid: &str) {
        let Some(record) = self.table.borrow().get(uid).cloned() else { return };
        let pin = self.pin(uid);
        // An attachment that was under way has made it meanwhile.
        let is_there = matches!(link::index(&self.handle, &record.link).await, Ok(Some(_)));
        if is_there || !netns::is_pinned(&pin) {
            return;
        }
        match self.ensure_link(&pin, &record).await {
            Ok(()) => tracing::warn!(uid, pod = record.name, "the pod's link was gone; made anew"),
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::new(error));
                tracing::warn!(uid, pod = record.name, error, "the pod's link is gone");
            }
        }
    }

    async fn undo(&mut self, uid: &str) {
        if let Err(error) = self.detach(uid).await {
            tracing::warn!(uid, %error, "a half-made pod network stays until it is asked for again");
        }
    }

    async fn detach(&mut self, uid: &str) -> Result<(), DetachError> {
        if !is_file_name(uid) {
            return Err(DetachError::Uid(uid.to_owned()));
        }
        let state = |path: PathBuf| move |source| DetachError::State { path, source };
        let pin = self.pin(uid);
        let record = self.table.borrow().get(uid).cloned();
        if let Some(record) = &record {
            self.delete_routes(record)
                .await
                .map_err(|source| DetachError::Kernel { what: "removing the routes", source })?;
        }
        netns::unpin(&pin).map_err(state(pin.clone()))?;
        let file = self.record_file(uid);
        saved::remove(&file).map_err(state(file.clone()))?;
        self.table.send_if_modified(|table| table.remove(uid).is_some());
        Ok(())
    }

    async fn delete_routes(&self, record: &Record) -> Result<(), LinkError> {
        let Some(index) = link::index(&self.handle, &record.link).await? else { return Ok(()) };
        for route in routes(record, index) {
            route::delete(&self.handle, &route, self.config.route_protocol).await?;
        }
        Ok(())
    }

    /// Removes the links that no reservation names: their namespace is still held by somebody.
    async fn sweep(&self) -> Result<(), LinkError> {
        let wanted: BTreeSet<String> =
            self.table.borrow().values().map(|record| record.link.clone()).collect();
        for (name, index) in link::list_ours(&self.handle).await? {
            if name != overlay::NAME && !wanted.contains(&name) {
                tracing::info!(link = name, "removing the link of a pod that is gone");
                link::delete(&self.handle, index).await?;
            }
        }
        Ok(())
    }
}

/// The host routes of a pod.
pub(crate) fn routes(record: &Record, index: u32) -> Vec<Route> {
    let route = |address: &IpAddr| Route {
        destination: IpNet::from(*address),
        via: None,
        link: index,
        source: None,
    };
    record.addresses.iter().map(route).collect()
}

fn is_file_name(uid: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !uid.is_empty()
        && uid.len() <= UID_LENGTH_MAX
        && !uid.starts_with('.')
        && uid.bytes().all(allowed)
}
