//! Owns how a state grows from checkpoint and log: the same entries, events and leases that the committer made. Pure but for the
//! clock of the leases.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::history::History;
use crate::lease::Leases;
use crate::log::payload::{Op, RawEntry, Reader};
use crate::log::{OpenError, Replay};
use crate::revision::{Entry, Event, FIRST_REVISION, Revision};
use crate::seal::SealError;
use crate::state::{Map, Snapshot};
use crate::{Config, Extract};

/// What came back.
pub(crate) struct Recovered {
    pub(crate) snapshot: Snapshot,
    pub(crate) leases: Leases,
    pub(crate) reserved: Revision,
    /// Keys of the files that are not in the state.
    pub(crate) stale: BTreeSet<Vec<u8>>,
}

/// A state on its way.
pub(crate) struct Recovery<'a> {
    config: &'a Config,
    map: Map,
    bytes: usize,
    history: History,
    leases: Leases,
    revision: Revision,
    reserved: Revision,
    now: Instant,
    /// Keys that an earlier process logged and that live in memory only now: they died with it.
    stale: BTreeSet<Vec<u8>>,
    /// The first value that can't be opened.
    sealed: Option<(Bytes, SealError)>,
}

impl<'a> Recovery<'a> {
    pub(crate) fn new(config: &'a Config, now: Instant) -> Self {
        let (map, leases) = (Map::new(), Leases::default());
        let (revision, reserved) = (FIRST_REVISION, FIRST_REVISION);
        let (history, stale) = (History::new(0), BTreeSet::new());
        let (bytes, sealed) = (0, None);
        Self { config, map, bytes, history, leases, revision, reserved, now, stale, sealed }
    }

    /// The state, at a revision that no earlier process can have gone beyond.
    pub(crate) fn finish(self) -> Result<Recovered, OpenError> {
        if let Some((key, source)) = self.sealed {
            let key = String::from_utf8_lossy(&key).into_owned();
            return Err(OpenError::Sealed { key, source });
        }
        let revision = self.revision.max(self.reserved);
        let prefixes = &self.config.volatile_prefixes;
        let snapshot = Snapshot {
            map: self.map,
            history: self.history,
            revision,
            bytes: self.bytes,
            leases: self.leases.granted_seconds(),
            volatile_floor: if revision > FIRST_REVISION { revision } else { 0 },
            volatile_prefixes: prefixes.as_slice().into(),
        };
        let Self { leases, reserved, stale, .. } = self;
        Ok(Recovered { snapshot, leases, reserved, stale })
    }

    fn is_volatile(&self, key: &[u8]) -> bool {
        self.config.volatile_prefixes.iter().any(|prefix| key.starts_with(prefix))
    }

    fn extract(&self) -> &dyn Extract {
        &*self.config.extract
    }

    fn insert(&mut self, raw: RawEntry<'_>) -> (Option<Arc<Entry>>, Arc<Entry>) {
        let key = Bytes::copy_from_slice(raw.key);
        let value = self.opened(&raw);
        let entry = Arc::new(Entry {
            extracted: self.extract().extract(raw.key, &value).shrunk(),
            key: key.clone(),
            value,
            create_revision: raw.create_revision,
            mod_revision: raw.mod_revision,
            version: raw.version,
            lease: raw.lease,
        });
        self.bytes += entry.key.len() + entry.value.len();
        let before = self.map.insert(key, entry.clone());
        self.bytes -= before.as_ref().map_or(0, |b| b.key.len() + b.value.len());
        (before, entry)
    }

    /// The value as the map holds it.
    fn opened(&mut self, raw: &RawEntry<'_>) -> Bytes {
        let Some(seal) = &self.config.seal else { return Bytes::copy_from_slice(raw.value) };
        if !seal.applies(raw.key) {
            seal.observe(raw.key, raw.value, raw.mod_revision);
            return Bytes::copy_from_slice(raw.value);
        }
        match seal.open(raw.key, raw.value) {
            Ok(value) => value.into(),
            Err(error) => {
                self.sealed.get_or_insert_with(|| (Bytes::copy_from_slice(raw.key), error));
                Bytes::new()
            }
        }
    }

    fn event(&mut self, revision: Revision, before: Option<Arc<Entry>>, after: Option<Arc<Entry>>) {
        let event = Event::new(revision, before, after);
        self.leases.follow(std::slice::from_ref(&event));
        self.history.push(event);
    }

    fn op(&mut self, revision: Revision, op: Op<'_>) {
        match op {
            Op::Put { key, .. } if self.is_volatile(key) => drop(self.stale.insert(key.to_vec())),
            Op::Delete { key } if self.is_volatile(key) => drop(self.stale.remove(key)),
            Op::Put { key, value, lease } => {
                let previous = self.map.get(key);
                let create_revision = previous.map_or(revision, |p| p.create_revision);
                let version = previous.map_or(0, |p| p.version) + 1;
                let mod_revision = revision;
                let raw = RawEntry { key, value, create_revision, mod_revision, version, lease };
                let (before, after) = self.insert(raw);
                self.event(revision, before, Some(after));
            }
            Op::Delete { key } => {
                if let Some(before) = self.map.remove(key) {
                    self.bytes -= before.key.len() + before.value.len();
                    self.event(revision, Some(before), None);
                }
            }
            Op::Granted { lease, ttl_seconds } => self.lease(lease, ttl_seconds),
            Op::Revoked { lease } => self.leases.remove(lease),
            Op::Compacted { revision } => self.history.compact(revision),
            Op::Reserved { revision } => self.reserved = self.reserved.max(revision),
        }
    }
}

impl Replay for Recovery<'_> {
    fn begin(&mut self, revision: Revision, reserved: Revision) {
        self.revision = revision;
        self.reserved = reserved;
        self.history = History::new(revision);
    }

    fn entry(&mut self, entry: RawEntry<'_>) {
        if self.is_volatile(entry.key) {
            self.stale.insert(entry.key.to_vec());
            return;
        }
        let (_, entry) = self.insert(entry);
        if entry.lease != 0 {
            self.leases.attach(entry.lease, entry.key.clone());
        }
    }

    fn lease(&mut self, lease: i64, ttl_seconds: u64) {
        self.leases.grant(lease, Duration::from_secs(ttl_seconds), self.now);
    }

    fn change(&mut self, revision: Revision, mut ops: Reader<'_>) -> Option<()> {
        while !ops.is_empty() {
            let op = ops.op()?;
            self.op(revision, op);
        }
        self.revision = self.revision.max(revision);
        self.history.trim(self.config.history_bytes_max, Duration::MAX, self.now);
        Some(())
    }
}
