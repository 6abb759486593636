//! Owns the leases: which keys die with which, and when, on the observer's monotonic clock. Pure: the time comes in, the
//! deletion of the keys is the backend's transaction. After a restart every lease has its whole length again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use imbl::OrdMap;

use crate::revision::Event;
use crate::state::Snapshot;
use crate::txn::WriteError;

/// The shortest lease in seconds; less is asked for and this is granted, as by an etcd with its default timing.
pub const LEASE_TTL_SECONDS_MIN: i64 = 2;

/// The longest lease that etcd grants.
pub(crate) const TTL_SECONDS_MAX: i64 = 9_000_000_000;

/// What is left of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseStatus {
    /// The lease.
    pub id: i64,
    /// The length that it was granted with, in seconds.
    pub granted_seconds: i64,
    /// What is left, in whole seconds.
    pub left_seconds: i64,
    /// The keys that die with it.
    pub keys: Vec<Bytes>,
}

#[derive(Debug)]
struct Lease {
    granted: Duration,
    expires: Instant,
    keys: BTreeSet<Bytes>,
}

/// A lease that was ended by a record which may not be durable yet.
#[derive(Debug)]
struct Ended {
    sequence: u64,
    id: i64,
    expires: Instant,
}

/// Every lease.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    all: BTreeMap<i64, Lease>,
    /// The same leases in the order of their ends.
    due: BTreeSet<(Instant, i64)>,
    /// In the order of their records.
    ended: VecDeque<Ended>,
}

impl Leases {
    pub(crate) fn contains(&self, id: i64) -> bool {
        self.all.contains_key(&id)
    }

    pub(crate) fn check_ttl(ttl_seconds: i64) -> Result<Duration, WriteError> {
        if ttl_seconds > TTL_SECONDS_MAX {
            return Err(WriteError::LeaseTtl { ttl_seconds, ttl_seconds_max: TTL_SECONDS_MAX });
        }
        Ok(Duration::from_secs(ttl_seconds.max(LEASE_TTL_SECONDS_MIN).unsigned_abs()))
    }

    /// Adds a lease; an `id` of 0 is replaced by a free one.
    pub(crate) fn free_id(&self, id: i64, random: impl Fn() -> i64) -> Result<i64, WriteError> {
        if id != 0 {
            return if self.contains(id) { Err(WriteError::LeaseExists { id }) } else { Ok(id) };
        }
        loop {
            let id = random() & i64::MAX;
            if id != 0 && !self.contains(id) {
                return Ok(id);
            }
        }
    }

    pub(crate) fn grant(&mut self, id: i64, granted: Duration, now: Instant) {
        self.insert(id, granted, ends(now, granted));
    }

    fn insert(&mut self, id: i64, granted: Duration, expires: Instant) {
        let replaced = self.all.insert(id, Lease { granted, expires, keys: BTreeSet::new() });
        if let Some(replaced) = replaced {
            self.due.remove(&(replaced.expires, id));
        }
        self.due.insert((expires, id));
    }

    pub(crate) fn remove(&mut self, id: i64) {
        if let Some(lease) = self.all.remove(&id) {
            self.due.remove(&(lease.expires, id));
        }
    }

    /// Removes a lease, as the record of this sequence says.
    pub(crate) fn end(&mut self, id: i64, sequence: u64) {
        let expires = self.all.get(&id).map(|lease| lease.expires);
        self.ended.extend(expires.map(|expires| Ended { sequence, id, expires }));
        self.remove(id);
    }

    /// Whether a lease was ended by a record behind this one, the last that is durable.
    pub(crate) fn awaits_end(&mut self, durable: u64) -> bool {
        let settled = self.ended.partition_point(|ended| ended.sequence <= durable);
        self.ended.drain(..settled);
        !self.ended.is_empty()
    }

    pub(crate) fn keep_alive(&mut self, id: i64, now: Instant) -> Result<i64, WriteError> {
        let lease = self.all.get_mut(&id).ok_or(WriteError::LeaseNotFound { id })?;
        self.due.remove(&(lease.expires, id));
        lease.expires = ends(now, lease.granted);
        self.due.insert((lease.expires, id));
        Ok(seconds(lease.granted))
    }

    pub(crate) fn status(&self, id: i64, now: Instant) -> Result<LeaseStatus, WriteError> {
        let lease = self.all.get(&id).ok_or(WriteError::LeaseNotFound { id })?;
        let left_seconds = seconds(lease.expires.saturating_duration_since(now));
        let (granted_seconds, keys) =
            (seconds(lease.granted), lease.keys.iter().cloned().collect());
        Ok(LeaseStatus { id, granted_seconds, left_seconds, keys })
    }

    pub(crate) fn keys(&self, id: i64) -> Result<Vec<Bytes>, WriteError> {
        let lease = self.all.get(&id).ok_or(WriteError::LeaseNotFound { id })?;
        Ok(lease.keys.iter().cloned().collect())
    }

    /// Attaches and detaches keys as events say.
    pub(crate) fn follow(&mut self, events: &[Arc<Event>]) {
        for event in events {
            if let Some(before) = event.before.as_ref().filter(|entry| entry.lease != 0)
                && let Some(lease) = self.all.get_mut(&before.lease)
            {
                lease.keys.remove(&before.key);
            }
            if let Some(after) = event.after.as_ref().filter(|entry| entry.lease != 0) {
                self.attach(after.lease, after.key.clone());
            }
        }
    }

    pub(crate) fn attach(&mut self, id: i64, key: Bytes) {
        if let Some(lease) = self.all.get_mut(&id) {
            lease.keys.insert(key);
        }
    }

    /// Goes back to the leases of this state, the durable one. Those that go on keep their time, and so do those whose end is taken back:
    /// of an id that was ended and granted again, it is the first that is durable.
    pub(crate) fn return_to(&mut self, state: &Snapshot, now: Instant) {
        let before = std::mem::take(self);
        for (id, ttl_seconds) in &state.leases {
            let granted = Duration::from_secs(*ttl_seconds);
            let ended = before.ended.iter().find(|ended| ended.id == *id);
            let ended = ended.map(|ended| ended.expires);
            let expires = ended.or_else(|| before.all.get(id).map(|lease| lease.expires));
            self.insert(*id, granted, expires.unwrap_or_else(|| ends(now, granted)));
        }
        for entry in state.map.values().filter(|entry| entry.lease != 0) {
            self.attach(entry.lease, entry.key.clone());
        }
    }

    /// The next moment at which a lease ends.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.due.first().map(|(expires, _)| *expires)
    }

    pub(crate) fn expired(&self, now: Instant) -> Vec<i64> {
        self.due.iter().take_while(|(expires, _)| *expires <= now).map(|(_, id)| *id).collect()
    }

    /// Every lease, the one that ends first in front.
    pub(crate) fn ids(&self) -> Vec<i64> {
        self.due.iter().map(|(_, id)| *id).collect()
    }

    /// The length of each lease.
    pub(crate) fn granted_seconds(&self) -> OrdMap<i64, u64> {
        self.all.iter().map(|(id, lease)| (*id, lease.granted.as_secs())).collect()
    }
}

/// A length beyond any that is granted can only be of another program's making.
fn ends(now: Instant, granted: Duration) -> Instant {
    now + granted.min(Duration::from_secs(TTL_SECONDS_MAX.unsigned_abs()))
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
