//! Owns the leases of objects that go away by themselves: one lease is shared by what is written within its first moments, so that
//! a storm of events costs a handful of leases. Must not know what expires: the resource's row says it.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use apimachinery::status::ApiError;
use store::Store;

use crate::{registry::write_error, resource::Resource};

/// Kubernetes 1.36, `LeaseReuseDurationSeconds` of its lease manager: so long an object may live on beyond its time.
const REUSE_MAX: Duration = Duration::from_secs(60);
/// The same manager: or a twentieth of its time, where that is less.
const REUSE_DIVISOR: u32 = 20;
/// Its `LeaseMaxObjectCount`: the expiry of one lease is one transaction.
const OBJECTS_MAX: usize = 1000;

/// The lease that is handed out at present.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Current {
    lease: i64,
    ends: Instant,
    objects: usize,
}

impl Current {
    /// Whether an object of this moment may go under it: it lasts long enough, and has room.
    fn takes(&self, now: Instant, ttl: Duration) -> bool {
        self.ends >= now + ttl && self.objects < OBJECTS_MAX
    }
}

/// Hands out leases.
#[derive(Debug)]
pub(crate) struct Expiry {
    store: Store,
    ttl: Duration,
    current: Mutex<Option<Current>>,
}

impl Expiry {
    pub(crate) fn new(store: Store, ttl: Duration) -> Self {
        Self { store, ttl, current: Mutex::default() }
    }

    /// The lease that an object of this resource is to be written under; `None` where objects stay.
    pub(crate) async fn lease(&self, resource: &Resource) -> Result<Option<i64>, ApiError> {
        if !resource.strategy.expires {
            return Ok(None);
        }
        if let Some(lease) = self.reuse(Instant::now()) {
            return Ok(Some(lease));
        }
        let granted = granted(self.ttl);
        let now = Instant::now();
        // Several at once get one each; the last is the one that is reused.
        let lease = self.store.lease_grant(0, seconds(granted)).await.map_err(write_error)?;
        *self.lock() = Some(Current { lease, ends: now + granted, objects: 1 });
        Ok(Some(lease))
    }

    /// A write under this lease was refused: somebody may have revoked it, so the next object gets another one.
    pub(crate) fn lost(&self, lease: Option<i64>) {
        let mut current = self.lock();
        if current.as_ref().map(|current| current.lease) == lease {
            *current = None;
        }
    }

    fn reuse(&self, now: Instant) -> Option<i64> {
        let mut current = self.lock();
        let current = current.as_mut().filter(|current| current.takes(now, self.ttl))?;
        current.objects += 1;
        Some(current.lease)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The length of a lease that is reused for a while, in whole seconds.
fn granted(ttl: Duration) -> Duration {
    let wanted = ttl + (ttl / REUSE_DIVISOR).min(REUSE_MAX);
    Duration::from_secs(wanted.as_secs() + u64::from(wanted.subsec_nanos() > 0))
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_shared_within_a_minute_and_by_a_thousand() {
        let hour = Duration::from_secs(3600);
        let start = Instant::now();
        let mut current = Current { lease: 1, ends: start + granted(hour), objects: 1 };
        assert!(current.takes(start + Duration::from_secs(60), hour));
        assert!(!current.takes(start + Duration::from_secs(61), hour));
        current.objects = OBJECTS_MAX;
        assert!(!current.takes(start, hour));
        assert_eq!(granted(Duration::from_secs(100)), Duration::from_secs(105));
        assert_eq!(granted(Duration::from_millis(1500)), Duration::from_secs(2));
    }
}
