//! Owns the state ahead of the disk: what the commands of a batch make of it, the records that say so, and the answers that
//! wait for the flush. Never blocks and never writes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Config;
use crate::backend::embedded::check_key;
use crate::backend::flight::Progress;
use crate::backend::{Command, Reply};
use crate::lease::{LeaseStatus, Leases};
use crate::log::appender::Appender;
use crate::log::payload::Op;
use crate::revision::{Event, FIRST_REVISION, Revision};
use crate::state::{Applied, Snapshot, Surroundings, apply};
use crate::txn::{KeyRange, ReadError, Txn, TxnResult, WriteError};

/// Revisions of changes that are not logged are reserved so many at a time. Below half of it the next logged change renews the
/// reservation on its way, so one that is written for its own sake takes ten nodes' heartbeats six days without any other write.
const RESERVED_AT_ONCE: Revision = 1 << 20;

/// What a transaction may log, in bytes of keys and values: those that it keeps count as well, which no request's size bounds.
const LOGGED_BYTES_MAX: usize = 64 << 20;

/// An answer that waits for the flush.
pub(crate) enum Answer {
    Txn(Reply<TxnResult>, Result<TxnResult, WriteError>),
    Unit(Reply<()>, Result<(), WriteError>),
    Number(Reply<i64>, Result<i64, WriteError>),
    Lease(Reply<LeaseStatus>, Result<LeaseStatus, WriteError>),
    Leases(Reply<Vec<i64>>, Result<Vec<i64>, WriteError>),
}

impl Answer {
    /// The answer to a command that is not even tried.
    pub(crate) fn refusal(command: Command, why: WriteError) -> Self {
        match command {
            Command::Txn(_, reply) => Self::Txn(reply, Err(why)),
            Command::Compact(_, reply) => Self::Unit(reply, Err(why)),
            Command::LeaseGrant { reply, .. }
            | Command::LeaseRevoke(_, reply)
            | Command::LeaseKeepAlive(_, reply) => Self::Number(reply, Err(why)),
            Command::LeaseTimeToLive(_, reply) => Self::Lease(reply, Err(why)),
            Command::Leases(reply) => Self::Leases(reply, Err(why)),
        }
    }

    /// Sends it, or why nothing of the batch is durable.
    pub(crate) fn send(self, flushed: Result<(), WriteError>) {
        fn send<T>(
            reply: Reply<T>,
            flushed: Result<(), WriteError>,
            result: Result<T, WriteError>,
        ) {
            // Nobody may wait any more; the write stands.
            drop(reply.send(flushed.and(result)));
        }
        match self {
            Self::Txn(reply, result) => send(reply, flushed, result),
            Self::Unit(reply, result) => send(reply, flushed, result),
            Self::Number(reply, result) => send(reply, flushed, result),
            Self::Lease(reply, result) => send(reply, flushed, result),
            Self::Leases(reply, result) => send(reply, flushed, result),
        }
    }
}

/// The state ahead of the disk.
pub(crate) struct Speculation {
    snapshot: Snapshot,
    leases: Leases,
    reserved: Revision,
    events: Vec<Arc<Event>>,
    /// The history was compacted, or there are other leases.
    changed: bool,
    config: Config,
}

impl Speculation {
    pub(crate) fn new(
        snapshot: Snapshot,
        leases: Leases,
        reserved: Revision,
        config: Config,
    ) -> Self {
        Self { snapshot, leases, reserved, events: Vec::new(), changed: false, config }
    }

    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.leases.next_expiry()
    }

    /// The changes since the last call, in order.
    pub(crate) fn take_events(&mut self) -> Vec<Arc<Event>> {
        std::mem::take(&mut self.events)
    }

    /// How far the state is, and what else than keys changed since the last call.
    pub(crate) fn progress(&mut self) -> Progress {
        let changed = std::mem::take(&mut self.changed);
        Progress {
            revision: self.snapshot.revision,
            compacted: self.snapshot.history.compacted(),
            leases: changed.then(|| self.snapshot.leases.clone()),
            reserved: self.reserved,
            changed,
        }
    }

    /// Whether the end of a lease waits for the flush of its record.
    pub(crate) fn awaits_end(&mut self, log: &Appender) -> bool {
        self.leases.awaits_end(log.durable_sequence())
    }

    /// Goes back to what is durable.
    pub(crate) fn discard(&mut self, durable: Snapshot, reserved: Revision, log: &Appender) {
        self.leases.awaits_end(log.durable_sequence());
        self.leases.return_to(&durable, Instant::now());
        self.snapshot = durable;
        self.reserved = reserved;
        self.events.clear();
        self.changed = false;
    }

    pub(crate) fn evaluate(&mut self, command: Command, log: &mut Appender) -> Answer {
        match command {
            Command::Txn(txn, reply) => Answer::Txn(reply, self.txn(&txn, log)),
            Command::Compact(revision, reply) => Answer::Unit(reply, self.compact(revision, log)),
            Command::LeaseGrant { id, ttl, reply } => {
                Answer::Number(reply, self.grant(id, ttl, log))
            }
            Command::LeaseRevoke(id, reply) => Answer::Number(reply, self.revoke(id, log)),
            Command::LeaseKeepAlive(id, reply) => {
                Answer::Number(reply, self.leases.keep_alive(id, Instant::now()))
            }
            Command::LeaseTimeToLive(id, reply) => {
                Answer::Lease(reply, self.leases.status(id, Instant::now()))
            }
            Command::Leases(reply) => Answer::Leases(reply, Ok(self.leases.ids())),
        }
    }

    /// Ends the leases whose time is over.
    pub(crate) fn expire(&mut self, log: &mut Appender, now: Instant) {
        for id in self.leases.expired(now) {
            if let Err(error) = self.revoke(id, log) {
                tracing::error!(lease = id, %error, "an expired lease could not be ended");
            }
        }
    }

    /// Logs the end of keys that only the files still have: else a process for which they are not volatile would find them again.
    pub(crate) fn forget(&mut self, stale: &BTreeSet<Vec<u8>>, log: &mut Appender) {
        self.snapshot.revision += 1;
        self.changed = true;
        let renewed = self.renewed_reservation(self.snapshot.revision);
        log.append(self.snapshot.revision, |out| {
            stale.iter().for_each(|key| Op::Delete { key }.encode(out));
            renewed.into_iter().for_each(|revision| Op::Reserved { revision }.encode(out));
        });
        self.reserved = renewed.unwrap_or(self.reserved);
    }

    fn txn(&mut self, txn: &Txn, log: &mut Appender) -> Result<TxnResult, WriteError> {
        check_keys(txn)?;
        let lease_exists = |id| self.leases.contains(id);
        let surroundings =
            Surroundings { extract: &*self.config.extract, lease_exists: &lease_exists };
        let applied = apply(&mut self.snapshot, txn, &surroundings)?;
        self.record(applied, None, log)
    }

    /// Adds the record of a transaction that the state holds already.
    fn record(
        &mut self,
        applied: Applied,
        revoked: Option<i64>,
        log: &mut Appender,
    ) -> Result<TxnResult, WriteError> {
        let sized = if revoked.is_some() { Ok(()) } else { self.check_size(&applied.events) };
        let sealed = match sized.and_then(|()| self.sealed(&applied)) {
            Ok(sealed) => sealed,
            Err(error) => {
                self.snapshot.revert(&applied.events);
                return Err(error);
            }
        };
        let Applied { events, result } = applied;
        let revision = result.revision;
        let durable = events.iter().any(|event| !self.snapshot.is_volatile(event.key()));
        if durable || revoked.is_some() {
            let renewed = self.renewed_reservation(revision);
            log.append(revision, |out| {
                let mut sealed = sealed.iter().peekable();
                for (at, event) in events.iter().enumerate() {
                    let sealed = sealed.next_if(|(own, _)| *own == at).map(|(_, value)| &**value);
                    if !self.snapshot.is_volatile(event.key()) {
                        logged(event, sealed).encode(out);
                    }
                }
                if let Some(lease) = revoked {
                    Op::Revoked { lease }.encode(out);
                }
                if let Some(revision) = renewed {
                    Op::Reserved { revision }.encode(out);
                }
            });
            self.reserved = renewed.unwrap_or(self.reserved);
        } else if !events.is_empty() && revision >= self.reserved {
            self.reserved = revision + RESERVED_AT_ONCE;
            let reserved = Op::Reserved { revision: self.reserved };
            log.append(revision, |out| reserved.encode(out));
        }
        self.leases.follow(&events);
        let (bytes_max, age_max) = (self.config.history_bytes_max, self.config.history_age_max);
        self.snapshot.history.trim(bytes_max, age_max, Instant::now());
        self.events.extend(events);
        Ok(result)
    }

    fn check_size(&self, events: &[Arc<Event>]) -> Result<(), WriteError> {
        let logged = events.iter().filter(|event| !self.snapshot.is_volatile(event.key()));
        let value_bytes = |event: &Event| event.after.as_ref().map_or(0, |after| after.value.len());
        let bytes = logged.map(|event| event.key().len() + value_bytes(event)).sum();
        if bytes <= LOGGED_BYTES_MAX {
            return Ok(());
        }
        Err(WriteError::TooLarge { bytes, bytes_max: LOGGED_BYTES_MAX })
    }

    /// The reservation that a record of this revision carries; none where nothing was ever reserved, or half of it is left.
    fn renewed_reservation(&self, revision: Revision) -> Option<Revision> {
        let is_used = self.reserved > FIRST_REVISION;
        let is_short = revision + RESERVED_AT_ONCE / 2 > self.reserved;
        (is_used && is_short).then_some(revision + RESERVED_AT_ONCE)
    }

    /// Which of the events are logged with another value than the map has, and with which.
    fn sealed(&self, applied: &Applied) -> Result<Vec<(usize, Vec<u8>)>, WriteError> {
        let Some(seal) = &self.config.seal else { return Ok(Vec::new()) };
        let mut sealed = Vec::new();
        for (at, event) in applied.events.iter().enumerate() {
            let Some(entry) = event.after.as_ref().filter(|entry| seal.applies(&entry.key)) else {
                continue;
            };
            let value = seal.seal(&entry.key, &entry.value, applied.result.revision);
            sealed.push((at, value.map_err(|source| WriteError::seal(&entry.key, source))?));
        }
        Ok(sealed)
    }

    fn compact(&mut self, revision: Revision, log: &mut Appender) -> Result<(), WriteError> {
        let (current, compact_revision) =
            (self.snapshot.revision, self.snapshot.history.compacted());
        if revision > current {
            return Err(ReadError::Future { requested: revision, current }.into());
        }
        if revision <= compact_revision {
            return Err(ReadError::Compacted { requested: revision, compact_revision }.into());
        }
        self.snapshot.history.compact(revision);
        self.changed = true;
        log.append(current, |out| Op::Compacted { revision }.encode(out));
        Ok(())
    }

    fn grant(&mut self, id: i64, ttl: Duration, log: &mut Appender) -> Result<i64, WriteError> {
        use std::collections::hash_map::RandomState;
        use std::hash::{BuildHasher, Hasher};
        let random = || RandomState::new().build_hasher().finish().cast_signed();
        let id = self.leases.free_id(id, random)?;
        self.leases.grant(id, ttl, Instant::now());
        self.snapshot.leases.insert(id, ttl.as_secs());
        self.changed = true;
        let granted = Op::Granted { lease: id, ttl_seconds: ttl.as_secs() };
        log.append(self.snapshot.revision, |out| granted.encode(out));
        Ok(id)
    }

    fn revoke(&mut self, id: i64, log: &mut Appender) -> Result<Revision, WriteError> {
        let keys = self.leases.keys(id)?;
        let deletions = keys.iter().map(|key| crate::Op::Delete(KeyRange::Key(key.to_vec())));
        let txn = Txn::of(deletions.collect());
        let lease_exists = |id| self.leases.contains(id);
        let surroundings =
            Surroundings { extract: &*self.config.extract, lease_exists: &lease_exists };
        let applied = apply(&mut self.snapshot, &txn, &surroundings)?;
        let sequence = log.next_sequence();
        let result = self.record(applied, Some(id), log)?;
        self.leases.end(id, sequence);
        self.snapshot.leases.remove(&id);
        self.changed = true;
        Ok(result.revision)
    }
}

fn logged<'a>(event: &'a Event, sealed: Option<&'a [u8]>) -> Op<'a> {
    match &event.after {
        Some(after) => {
            let value = sealed.unwrap_or(&after.value);
            Op::Put { key: &after.key, value, lease: after.lease }
        }
        None => Op::Delete { key: event.key() },
    }
}

fn check_keys(txn: &Txn) -> Result<(), WriteError> {
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            crate::Op::Put { key, .. } | crate::Op::Update { key, .. } => check_key(key)?,
            crate::Op::Txn(inner) => check_keys(inner)?,
            crate::Op::Delete(_) | crate::Op::Range(_) => {}
        }
    }
    Ok(())
}
