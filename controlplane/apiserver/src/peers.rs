//! Owns what masters that share a datastore tell each other: who is there, and which of them holds a node's tunnel. Each says so under a
//! lease of the store, so what a dead one said goes away by itself. Must not know what is done with it.
//!
//! `/flotilla/masters/<id>` is `{"address": "192.0.2.1", "port": 6443}`, `/flotilla/tunnels/<node>` the id of a master. A master that is
//! alone on its datastore writes neither.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use store::{Compare, KeyRange, Op, Range, Relation, Store, Target, Txn, WriteError};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use crate::{Config, serve::stopping, tunnel::Tunnels};

/// Where masters are.
pub(crate) const MASTERS: &str = "/flotilla/masters/";
const TUNNELS: &str = "/flotilla/tunnels/";
/// How long a silent master counts as there; upstream's lease reconciler waits 15 s.
const TTL_SECONDS: i64 = 10;
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(3);
/// Pause before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// One question to the datastore; longer, and the next one may find another member.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// A master that has not reached the datastore for so long is of no use to its nodes, while another one may be. An election of
/// etcd's takes a second or two.
const USELESS_AFTER: Duration = Duration::from_secs(7);

/// What stands in a master's key.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    address: IpAddr,
    port: u16,
}

/// Who holds a node's tunnel, as far as the masters have said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// No other master.
    Own,
    /// The master at this address.
    Other(SocketAddr),
    /// A master that is gone.
    Gone,
}

/// When the datastore was last reached, and whether the nodes were sent away since.
struct Contact {
    last: Instant,
    sent_away: bool,
}

impl Contact {
    fn reached(&mut self) {
        *self = Self { last: Instant::now(), sent_away: false };
    }

    /// True once per loss of the datastore.
    fn is_useless(&mut self) -> bool {
        let useless = !self.sent_away && self.last.elapsed() >= USELESS_AFTER;
        self.sent_away |= useless;
        useless
    }
}

/// The masters on this datastore.
#[derive(Debug, Clone)]
pub(crate) struct Peers {
    store: Store,
    /// `None`: this master is alone.
    id: Option<String>,
    own: SocketAddr,
}

fn master_key(id: &str) -> Vec<u8> {
    format!("{MASTERS}{id}").into_bytes()
}

fn tunnel_key(node: &str) -> Vec<u8> {
    format!("{TUNNELS}{node}").into_bytes()
}

fn write(compare: Vec<Compare>, op: Op) -> Txn {
    Txn { compare, success: vec![op], failure: Vec::new() }
}

/// What must be said, and taken back, so that others know of exactly the tunnels in `held`.
fn plan(
    held: &HashMap<String, u64>,
    said: &HashMap<String, u64>,
) -> (Vec<(String, u64)>, Vec<String>) {
    let news = held.iter().filter(|(node, id)| said.get(*node) != Some(*id));
    let gone = said.keys().filter(|node| !held.contains_key(*node));
    (news.map(|(node, id)| (node.clone(), *id)).collect(), gone.cloned().collect())
}

impl Peers {
    pub(crate) fn new(store: Store, config: &Config) -> Self {
        let own = SocketAddr::new(config.advertise_address, config.advertise_port);
        Self { store, id: config.master_id.clone(), own }
    }

    /// Addresses of all masters that are there, this one included.
    pub(crate) fn masters(&self) -> BTreeSet<SocketAddr> {
        let mut found: BTreeSet<_> = [self.own].into();
        if self.id.is_none() {
            return found;
        }
        let keys = KeyRange::Prefix(MASTERS.into());
        match self.store.range(&Range::all(keys)) {
            Ok(result) => found.extend(result.entries.iter().filter_map(|e| address(&e.value))),
            Err(error) => tracing::error!(%error, "the masters can't be read"),
        }
        found
    }

    /// Which master holds the tunnel of a node.
    pub(crate) fn holder(&self, node: &str) -> Holder {
        let Some(id) = &self.id else { return Holder::Own };
        let Some(entry) = self.store.get(&tunnel_key(node)) else { return Holder::Own };
        if entry.value == id.as_bytes() {
            return Holder::Own;
        }
        let mut key = MASTERS.as_bytes().to_vec();
        key.extend_from_slice(&entry.value);
        let address = self.store.get(&key).and_then(|entry| address(&entry.value));
        address.map_or(Holder::Gone, Holder::Other)
    }

    /// Tells the others of this master and its tunnels until `stop` turns true, then takes it back.
    pub(crate) async fn keep(&self, tunnels: &Tunnels, mut stop: watch::Receiver<bool>) {
        let Some(id) = &self.id else { return };
        let mut contact = Contact { last: Instant::now(), sent_away: false };
        loop {
            let granted = tokio::select! {
                granted = self.announce(id) => granted,
                () = stopping(&mut stop) => return,
            };
            let lease = match granted {
                Ok(lease) => lease,
                Err(error) => {
                    tracing::warn!(%error, "the other masters can't be told of this one");
                    self.judge(&mut contact, tunnels);
                    sleep(RETRY).await;
                    continue;
                }
            };
            tokio::select! {
                () = self.hold((id, lease), tunnels, &mut contact) => {
                    tracing::warn!("the datastore has forgotten this master; telling it again");
                }
                () = stopping(&mut stop) => {
                    if let Err(error) = bounded(self.store.lease_revoke(lease)).await {
                        tracing::info!(%error, "the other masters learn late that this one ends");
                    }
                    return;
                }
            }
        }
    }

    async fn announce(&self, id: &str) -> Result<i64, Failed> {
        let lease = bounded(self.store.lease_grant(0, TTL_SECONDS)).await?;
        let record = Record { address: self.own.ip(), port: self.own.port() };
        let value = serde_json::to_vec(&record).unwrap_or_default();
        let op = Op::Put { key: master_key(id), value: value.into(), lease };
        bounded(self.store.txn(write(Vec::new(), op))).await?;
        Ok(lease)
    }

    /// Sends the nodes to another master once this one is of no use to them.
    fn judge(&self, contact: &mut Contact, tunnels: &Tunnels) {
        if contact.is_useless() && self.masters().len() > 1 {
            tracing::warn!(
                nodes = tunnels.len(),
                "the datastore is not reached; nodes are sent to other masters"
            );
            tunnels.send_away();
        }
    }

    /// Returns when the lease is gone.
    async fn hold(&self, (id, lease): (&str, i64), tunnels: &Tunnels, contact: &mut Contact) {
        let mut said = HashMap::new();
        let mut changed = tunnels.changes();
        let mut tick = interval(KEEP_ALIVE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            changed.borrow_and_update();
            let told = self.tell((id, lease), &tunnels.held(), &mut said).await;
            let kept = match told {
                Ok(()) => tokio::select! {
                    _ = tick.tick() => bounded(self.store.lease_keep_alive(lease)).await.map(drop),
                    _ = changed.changed() => continue,
                },
                Err(error) => Err(error),
            };
            match kept {
                Ok(()) => contact.reached(),
                Err(Failed::Refused(WriteError::LeaseNotFound { .. })) => return,
                Err(error) => {
                    tracing::warn!(%error, "the other masters can't be told");
                    self.judge(contact, tunnels);
                    sleep(RETRY).await;
                }
            }
        }
    }

    async fn tell(
        &self,
        (id, lease): (&str, i64),
        held: &HashMap<String, u64>,
        said: &mut HashMap<String, u64>,
    ) -> Result<(), Failed> {
        let (news, gone) = plan(held, said);
        for (node, tunnel) in news {
            let (key, value) = (tunnel_key(&node), id.to_owned().into());
            let op = Op::Put { key, value, lease };
            bounded(self.store.txn(write(Vec::new(), op))).await?;
            said.insert(node, tunnel);
        }
        for node in gone {
            let key = tunnel_key(&node);
            let target = Target::Value(id.to_owned().into());
            let (keys, relation) = (KeyRange::Key(key.clone()), Relation::Equal);
            // Another master may hold it by now.
            let own = Compare { keys, target, relation };
            bounded(self.store.txn(write(vec![own], Op::delete(key)))).await?;
            said.remove(&node);
        }
        Ok(())
    }
}

fn address(value: &[u8]) -> Option<SocketAddr> {
    let record: Record = serde_json::from_slice(value).ok()?;
    Some(SocketAddr::new(record.address, record.port))
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("the datastore does not answer")]
    TimedOut,
    #[error(transparent)]
    Refused(#[from] WriteError),
}

async fn bounded<T>(asked: impl Future<Output = Result<T, WriteError>>) -> Result<T, Failed> {
    match timeout(ANSWER_TIMEOUT, asked).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Failed::TimedOut),
    }
}
