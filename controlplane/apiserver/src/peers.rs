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
/// Tunnels told of in one transaction: less than the operations that etcd takes by default.
const TUNNELS_AT_ONCE: usize = 100;
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

/// What stands in the store of a node's tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// This master, under the lease that it keeps.
    Own,
    /// This master, under a lease that ends: a write that came late.
    Ending,
    /// Another master.
    Other,
}

/// What must be said, and taken back, so that others know of exactly the tunnels in `held`. What was said of a tunnel once is not said
/// again to a master that has the node since.
fn plan(
    held: &HashMap<String, u64>,
    said: &HashMap<String, u64>,
    standing: &HashMap<String, Standing>,
) -> (Vec<(String, u64)>, Vec<String>) {
    let news = held.iter().filter(|(node, id)| {
        said.get(*node) != Some(*id) || matches!(standing.get(*node), None | Some(Standing::Ending))
    });
    let gone = standing
        .iter()
        .filter(|(node, standing)| **standing != Standing::Other && !held.contains_key(*node));
    let gone = gone.map(|(node, _)| node.clone());
    (news.map(|(node, id)| (node.clone(), *id)).collect(), gone.collect())
}

fn put_tunnel(id: &str, lease: i64, node: &str) -> Op {
    Op::Put { key: tunnel_key(node), value: id.to_owned().into(), lease }
}

/// Another master may hold it by now.
fn delete_own_tunnel(id: &str, node: &str) -> Op {
    let key = tunnel_key(node);
    let target = Target::Value(id.to_owned().into());
    let (keys, relation) = (KeyRange::Key(key.clone()), Relation::Equal);
    let own = Compare { keys, target, relation };
    Op::Txn(Box::new(write(vec![own], Op::delete(key))))
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
        self.record((id, lease)).await?;
        Ok(lease)
    }

    /// Writes the master's record, unless it is there under this lease. An earlier write can come late and bind it to a lease that ends.
    async fn record(&self, (id, lease): (&str, i64)) -> Result<(), Failed> {
        let key = master_key(id);
        if self.store.get(&key).is_some_and(|entry| entry.lease == lease) {
            return Ok(());
        }
        let record = Record { address: self.own.ip(), port: self.own.port() };
        let value = serde_json::to_vec(&record).unwrap_or_default();
        let op = Op::Put { key, value: value.into(), lease };
        bounded(self.store.txn(write(Vec::new(), op))).await?;
        Ok(())
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
                    _ = tick.tick() => self.renew((id, lease)).await,
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

    async fn renew(&self, (id, lease): (&str, i64)) -> Result<(), Failed> {
        bounded(self.store.lease_keep_alive(lease)).await?;
        self.record((id, lease)).await
    }

    fn standing(&self, (id, lease): (&str, i64)) -> Result<HashMap<String, Standing>, Failed> {
        let found = self.store.range(&Range::all(KeyRange::Prefix(TUNNELS.into())));
        let found = found.map_err(WriteError::from)?.entries;
        let standing = found.iter().filter_map(|entry| {
            let node = std::str::from_utf8(entry.key.strip_prefix(TUNNELS.as_bytes())?).ok()?;
            let standing = if entry.value != id.as_bytes() {
                Standing::Other
            } else if entry.lease == lease {
                Standing::Own
            } else {
                Standing::Ending
            };
            Some((node.to_owned(), standing))
        });
        Ok(standing.collect())
    }

    /// In batches: the lease must not end under the tunnels of many nodes.
    async fn tell(
        &self,
        (id, lease): (&str, i64),
        held: &HashMap<String, u64>,
        said: &mut HashMap<String, u64>,
    ) -> Result<(), Failed> {
        said.retain(|node, _| held.contains_key(node));
        let (news, gone) = plan(held, said, &self.standing((id, lease))?);
        for batch in news.chunks(TUNNELS_AT_ONCE) {
            let puts = batch.iter().map(|(node, _)| put_tunnel(id, lease, node)).collect();
            bounded(self.store.txn(Txn::of(puts))).await?;
            said.extend(batch.iter().cloned());
        }
        for batch in gone.chunks(TUNNELS_AT_ONCE) {
            let deletes = batch.iter().map(|node| delete_own_tunnel(id, node)).collect();
            bounded(self.store.txn(Txn::of(deletes))).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_is_made_what_is_held() {
        let map = |tunnels: &[(&str, u64)]| -> HashMap<String, u64> {
            tunnels.iter().map(|(node, id)| ((*node).to_owned(), *id)).collect()
        };
        let held = map(&[("a", 1)]);
        let (said, unsaid, renewed) = (map(&[("a", 1)]), map(&[]), map(&[("a", 0)]));
        let (put, none) = (vec![("a".to_owned(), 1)], Vec::new());
        for (said, standing, expected) in [
            (&unsaid, None, &put),
            (&said, Some(Standing::Own), &none),
            // Its lease ended, or a write of an earlier lease came late.
            (&said, None, &put),
            (&said, Some(Standing::Ending), &put),
            // The node went to another master, and came back with a new tunnel.
            (&said, Some(Standing::Other), &none),
            (&renewed, Some(Standing::Other), &put),
        ] {
            let standing = standing.map(|standing| ("a".to_owned(), standing)).into_iter();
            let (news, gone) = plan(&held, said, &standing.collect());
            assert_eq!((&news, gone.len()), (expected, 0));
        }
        // Also what was never known to be said.
        let standing = [("own", Standing::Own), ("late", Standing::Ending), ("b", Standing::Other)];
        let standing = standing.map(|(node, standing)| (node.to_owned(), standing)).into();
        let (news, mut gone) = plan(&unsaid, &unsaid, &standing);
        gone.sort();
        assert_eq!((news.len(), gone), (0, vec!["late".to_owned(), "own".to_owned()]));
    }

    #[tokio::test]
    async fn a_record_bound_to_another_lease_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(store::Config::new(dir.path())).unwrap();
        let own = "192.0.2.1:6443".parse().unwrap();
        let peers = Peers { store: store.clone(), id: Some("m".to_owned()), own };
        let lease = peers.announce("m").await.unwrap();
        let revision = store.revision();
        peers.renew(("m", lease)).await.unwrap();
        assert_eq!(store.revision(), revision, "what is right is not written again");

        let earlier = store.lease_grant(0, TTL_SECONDS).await.unwrap();
        let late = Op::Put { key: master_key("m"), value: "{}".into(), lease: earlier };
        store.txn(Txn::of(vec![late])).await.unwrap();
        peers.renew(("m", lease)).await.unwrap();
        assert_eq!(store.get(&master_key("m")).unwrap().lease, lease);
        store.lease_revoke(earlier).await.unwrap();
        assert_eq!(peers.masters(), [own].into());
        assert!(store.get(&master_key("m")).is_some());

        let nodes: HashMap<_, _> = (0..250).map(|node| (format!("n{node}"), node)).collect();
        let mut said = HashMap::new();
        let before = store.revision();
        peers.tell(("m", lease), &nodes, &mut said).await.unwrap();
        assert_eq!((store.revision(), said.len()), (before + 3, 250));
        peers.tell(("m", lease), &HashMap::new(), &mut HashMap::new()).await.unwrap();
        assert!(peers.standing(("m", lease)).unwrap().is_empty());
        store.close().await;
    }
}
