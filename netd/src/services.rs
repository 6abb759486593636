//! Keeps the kernel's rules equal to the desired state.
//!
//! Level-triggered and coalesced: changes of cluster and pods, and the kernel's word that somebody changed a ruleset, wake it. A transaction
//! is the diff to what was applied last; after a failure, and when the kernel holds something else, the table is made anew in one step.
//! Nothing wakes it when nothing changes.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use tokio::sync::watch;

use crate::desired::{Desired, plan_desired};
use crate::diff::plan_transaction;
use crate::kernel::conntrack;
use crate::kernel::nft::{self, NftError};
use crate::kernel::nft_dump::{self, Observed};
use crate::kernel::notifications::Notifications;
use crate::pods::Table;
use crate::render::render_ruleset;
use crate::rules::{Family, Ruleset, Shape, Transaction};
use crate::tracker::Tracker;
use crate::{Config, script, worker};

/// Changes are gathered for so long: a rollout's slices come in bursts.
const GATHER: Duration = Duration::from_millis(5);
/// Somebody's changes of the ruleset are looked at when they have been quiet for so long.
const REPAIR_DELAY: Duration = Duration::from_millis(500);
/// First wait after a failure; doubled each time.
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// Longest wait after a failure.
const RETRY_LONGEST: Duration = Duration::from_secs(30);
/// Attempts at an installation that nobody disturbs.
const INSTALLATIONS_MAX: u32 = 3;
/// With rules of an earlier run in the kernel, how long they stand before saved state replaces them.
const LISTS_WAIT: Duration = Duration::from_secs(10);

/// What was applied last and how the kernel showed it then.
#[derive(Debug)]
struct Applied {
    desired: Desired,
    rulesets: Vec<Ruleset>,
    fingerprints: Vec<u64>,
    generation: u32,
}

/// Why rules are not as they shall be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServicesError {
    #[error("rules of services")]
    Nft(#[from] NftError),
    #[error("reading the rules back")]
    Observe(#[source] io::Error),
    #[error("the worker thread")]
    Worker(#[source] io::Error),
}

/// The task's state.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) config: Config,
    pub(crate) tracker: Tracker,
    pub(crate) pods: watch::Receiver<Table>,
    pub(crate) programmed: watch::Sender<bool>,
    pub(crate) stop: watch::Receiver<bool>,
}

impl Services {
    /// Runs until it is told to stop; a transaction that was begun is ended first.
    pub(crate) async fn run(mut self) {
        let mut cluster = self.tracker.changes();
        let notifications = match Notifications::open() {
            Ok(notifications) => Some(notifications),
            Err(error) => {
                tracing::warn!(%error, "rules that others change aren't noticed");
                None
            }
        };
        self.await_lists().await;
        let mut applied: Option<Applied> = None;
        let mut retry = RETRY_FIRST;
        while !*self.stop.borrow() {
            cluster.mark_unchanged();
            self.pods.mark_unchanged();
            let ports = host_ports(&self.pods.borrow());
            let mut wait = None;
            let (before, known) = (applied.take(), ports.clone());
            let (config, tracker) = (self.config.clone(), self.tracker.clone());
            let work = move || {
                let desired = plan_desired(&config, &tracker.read(), &known);
                pass(before, desired, &config.table)
            };
            match blocking(work).await.and_then(|result| result) {
                Ok(now) => {
                    applied = Some(now);
                    retry = RETRY_FIRST;
                    self.programmed.send_if_modified(|done| !std::mem::replace(done, true));
                }
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "services not programmed; retrying"
                    );
                    wait = Some(retry);
                    retry = (retry * 2).min(RETRY_LONGEST);
                }
            }
            let generation = applied.as_ref().map(|applied| applied.generation);
            tokio::select! {
                _ = cluster.changed() => tokio::time::sleep(GATHER).await,
                () = other_host_ports(&mut self.pods, &ports) => {
                    tokio::time::sleep(GATHER).await;
                }
                () = sleep_or_never(wait) => {}
                () = stopped(&mut self.stop) => return,
                () = foreign_change(notifications.as_ref(), generation) => {}
            }
        }
    }

    /// An agent that restarts leaves working rules alone until it knows as much as they do.
    async fn await_lists(&mut self) {
        let table = self.config.table.clone();
        let there = blocking(move || nft_dump::exists(Family::V4, &table)).await;
        if matches!(there, Ok(Ok(true))) {
            let listed = self.tracker.listed();
            tokio::select! {
                () = listed => {}
                () = stopped(&mut self.stop) => {}
                () = tokio::time::sleep(LISTS_WAIT) => {
                    tracing::info!("no API server yet; services as saved");
                }
            }
        }
    }
}

/// One pass: nothing when all is as it shall be; the diff when only the desired state changed; else everything anew.
fn pass(applied: Option<Applied>, desired: Desired, table: &str) -> Result<Applied, ServicesError> {
    let generation = nft_dump::generation().map_err(ServicesError::Observe)?;
    let applied = match applied {
        Some(applied) if applied.generation == generation => Some(applied),
        Some(applied) if is_as_applied(&applied)? => Some(Applied { generation, ..applied }),
        Some(_) => {
            tracing::warn!(table, "somebody changed our rules; making them anew");
            None
        }
        None => None,
    };
    let Some(applied) = applied else { return install(&desired, table) };
    if applied.desired == desired {
        return Ok(applied);
    }
    let old = applied.desired.clone();
    let applied = change(applied, &desired, table)?;
    if conntrack::may_be_stale(&old, &desired) {
        forget_flows(&old, &desired);
    }
    Ok(applied)
}

/// The families that anything is about; a host without IPv6 has no table for it.
fn families(desired: &Desired) -> Vec<Family> {
    let nets = [&desired.own_cidrs, &desired.cluster_cidrs, &desired.service_cidrs];
    let is_used = |family: Family| {
        nets.iter().any(|nets| nets.iter().any(|net| Family::of_net(net) == family))
            || desired.vips.keys().any(|vip| Family::of(&vip.address) == family)
            || desired.node_ports.keys().any(|(of, _, _)| *of == family)
    };
    Family::BOTH.into_iter().filter(|family| *family == Family::V4 || is_used(*family)).collect()
}

/// Makes the tables anew. Somebody's change between our transaction and its being read back can't be told from ours: then again.
fn install(desired: &Desired, table: &str) -> Result<Applied, ServicesError> {
    let rulesets: Vec<Ruleset> = families(desired)
        .into_iter()
        .map(|family| render_ruleset(desired, family, table))
        .collect();
    for family in Family::BOTH {
        let unused = rulesets.iter().all(|ruleset| ruleset.family != family);
        if unused && nft_dump::exists(family, table).map_err(ServicesError::Observe)? {
            apply(&Ruleset::uninstall(family, table))?;
        }
    }
    let mut applied =
        Applied { desired: desired.clone(), rulesets, fingerprints: Vec::new(), generation: 0 };
    for _ in 0..INSTALLATIONS_MAX {
        applied.generation = nft_dump::generation().map_err(ServicesError::Observe)?;
        for ruleset in &applied.rulesets {
            apply(&ruleset.install())?;
            applied.generation = next_generation(applied.generation);
        }
        if read_back(&mut applied)? {
            break;
        }
    }
    forget_flows(&Desired::default(), desired);
    tracing::info!(table, services = desired.vips.len(), "service rules installed");
    Ok(applied)
}

/// The kernel counts each transaction, and never uses zero.
fn next_generation(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}

fn change(mut applied: Applied, desired: &Desired, table: &str) -> Result<Applied, ServicesError> {
    if families(desired).len() != applied.rulesets.len() {
        return install(desired, table);
    }
    let mut structural = false;
    for ruleset in &mut applied.rulesets {
        let next = render_ruleset(desired, ruleset.family, table);
        let transaction = plan_transaction(ruleset, &next);
        structural |= transaction.ops.iter().any(|op| !op.is_about_elements());
        if !transaction.ops.is_empty() {
            apply(&transaction)?;
            // Not asked for: what somebody does right behind us must make a difference.
            applied.generation = next_generation(applied.generation);
        }
        *ruleset = next;
    }
    applied.desired = desired.clone();
    if structural && !read_back(&mut applied)? {
        return install(desired, table);
    }
    Ok(applied)
}

fn apply(transaction: &Transaction) -> Result<(), ServicesError> {
    if tracing::enabled!(tracing::Level::DEBUG) {
        tracing::debug!(script = script::render(transaction), "transaction");
    }
    Ok(nft::apply(transaction)?)
}

/// Stale flows are a nuisance, not a reason to take rules back.
fn forget_flows(old: &Desired, new: &Desired) {
    match conntrack::forget(old, new) {
        Ok(0) => {}
        Ok(count) => tracing::debug!(count, "UDP flows to gone endpoints forgotten"),
        Err(error) => tracing::warn!(%error, "UDP flows may still lead to gone endpoints"),
    }
}

fn shapes(ruleset: &Ruleset) -> BTreeMap<&'static str, Shape> {
    ruleset.maps.iter().map(|(name, map)| (*name, map.shape.clone())).collect()
}

/// Takes the fingerprints; says whether nobody changed a ruleset since our transactions.
fn read_back(applied: &mut Applied) -> Result<bool, ServicesError> {
    applied.fingerprints.clear();
    for ruleset in &applied.rulesets {
        let seen = nft_dump::observe(ruleset.family, &ruleset.table, &BTreeMap::new());
        applied.fingerprints.push(seen.map_err(ServicesError::Observe)?.fingerprint);
    }
    let now = nft_dump::generation().map_err(ServicesError::Observe)?;
    let undisturbed = now == applied.generation;
    applied.generation = now;
    Ok(undisturbed)
}

fn is_as_applied(applied: &Applied) -> Result<bool, ServicesError> {
    for (ruleset, fingerprint) in applied.rulesets.iter().zip(&applied.fingerprints) {
        let Observed { fingerprint: seen, elements } =
            nft_dump::observe(ruleset.family, &ruleset.table, &shapes(ruleset))
                .map_err(ServicesError::Observe)?;
        let same_elements = ruleset
            .maps
            .iter()
            .all(|(name, map)| elements.get(*name).is_some_and(|seen| *seen == map.elements));
        if seen != *fingerprint || !same_elements {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ServicesError> {
    worker::run("netd-rules", work).await.map_err(ServicesError::Worker)
}

/// Returns when the flag is set, or nobody can set it any more.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

/// The reservations that rules are made for: most pods have no host port.
fn host_ports(table: &Table) -> Table {
    let with_ports = table.iter().filter(|(_, record)| !record.host_ports.is_empty());
    with_ports.map(|(uid, record)| (uid.clone(), record.clone())).collect()
}

/// Returns when the host ports are no longer these.
async fn other_host_ports(pods: &mut watch::Receiver<Table>, known: &Table) {
    loop {
        if pods.changed().await.is_err() {
            return std::future::pending().await;
        }
        if host_ports(&pods.borrow_and_update()) != *known {
            return;
        }
    }
}

async fn sleep_or_never(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

/// Returns when the ruleset is no longer of the generation that was applied.
async fn foreign_change(notifications: Option<&Notifications>, generation: Option<u32>) {
    let (Some(notifications), Some(generation)) = (notifications, generation) else {
        return std::future::pending().await;
    };
    loop {
        if let Err(error) = notifications.next().await {
            tracing::warn!(%error, "rules that others change are no longer noticed");
            return std::future::pending().await;
        }
        tokio::time::sleep(REPAIR_DELAY).await;
        if nft_dump::generation().map_or(true, |now| now != generation) {
            return;
        }
    }
}
