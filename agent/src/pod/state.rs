//! What is known of a pod on this node: its sandbox and its containers' lives. Values only; the
//! worker owns them, `plan` and `status` read them.
//!
//! ```text
//! Absent -> Starting -> Running -> Exited -> Starting ...
//!               |          |-> Stopping -^
//!               '-> Absent (failed; `waiting` says why, `retry_at` when again)
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Kubernetes 1.36, kubelet: container restart back-off.
const BACKOFF_FIRST: Duration = Duration::from_secs(10);
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// How a container's process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) id: String,
    pub(crate) code: i32,
    pub(crate) signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `ContainerStatusUnknown`, `StartError`, …
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Life {
    #[default]
    Absent,
    /// Pull, creation or start is under way.
    Starting,
    Running {
        id: String,
        started_at: Timestamp,
    },
    /// Told to end.
    Stopping {
        id: String,
        started_at: Timestamp,
    },
    Exited(Ended),
}

/// A reason and a message, as in `state.waiting`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl Waiting {
    pub(crate) fn new(reason: &str, message: impl Into<String>) -> Waiting {
        Waiting { reason: reason.to_owned(), message: message.into() }
    }
}

/// client-go's `flowcontrol.Backoff` entry: the delay in force and when it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub(crate) delay: Duration,
    pub(crate) taken_at: Timestamp,
}

impl Backoff {
    fn expired(self, event: Timestamp) -> bool {
        event.duration_since(self.taken_at) > signed(BACKOFF_MAX * 2)
    }

    /// Until when an event of `event` (an exit, a failed pull) holds the next try back.
    pub(crate) fn until(entry: Option<Backoff>, event: Timestamp) -> Option<Timestamp> {
        let entry = entry.filter(|entry| !entry.expired(event))?;
        event.checked_add(signed(entry.delay)).ok()
    }

    /// The entry after one more try at `now` because of `event`.
    pub(crate) fn next(entry: Option<Backoff>, event: Timestamp, now: Timestamp) -> Backoff {
        let delay = match entry {
            Some(entry) if !entry.expired(event) => (entry.delay * 2).min(BACKOFF_MAX),
            _ => BACKOFF_FIRST,
        };
        Backoff { delay, taken_at: now }
    }
}

pub(crate) fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// A pause that doubles with each failure.
pub(crate) fn doubled(first: Duration, failures: u32, max: Duration) -> Duration {
    first.saturating_mul(1 << failures.min(16)).min(max)
}

/// Why a running container is to end while its pod goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KillReason {
    /// The liveness or startup probe named here failed.
    Probe(&'static str),
    PostStartHook(String),
    /// Its image was changed in the spec.
    Changed,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Observed {
    pub(crate) sandbox: Sandbox,
    /// Not before, after a failure to make the sandbox.
    pub(crate) sandbox_retry_at: Option<Timestamp>,
    pub(crate) containers: BTreeMap<String, ContainerObserved>,
    pub(crate) terminate: Option<Terminate>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Sandbox {
    #[default]
    Absent,
    Preparing,
    Ready,
    Removing,
    /// Taken down for good.
    Gone,
}

/// The pod is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terminate {
    pub(crate) since: Timestamp,
    pub(crate) grace_seconds: i64,
    /// Reason and message of a pod that fails by it (`DeadlineExceeded`, `Evicted`).
    pub(crate) failed: Option<Waiting>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct ContainerObserved {
    pub(crate) life: Life,
    /// Starts after the first one.
    pub(crate) restarts: u32,
    /// The predecessor's end.
    pub(crate) last: Option<Ended>,
    pub(crate) waiting: Option<Waiting>,
    /// What `waiting` becomes later (`ErrImagePull` turns into `ImagePullBackOff`).
    pub(crate) waiting_next: Option<(Timestamp, Waiting)>,
    /// Not before, after a failed pull or creation.
    pub(crate) retry_at: Option<Timestamp>,
    pub(crate) backoff: Option<Backoff>,
    pub(crate) pull_backoff: Option<Backoff>,
    /// Whether the startup probe, if any, has passed.
    pub(crate) started: bool,
    /// What the readiness probe says; without one, whether it is started.
    pub(crate) ready: bool,
    pub(crate) image: String,
    pub(crate) image_id: String,
    pub(crate) kill: Option<KillReason>,
    /// Its `postStart` hook runs: it is neither started nor ready, and later containers wait.
    pub(crate) hook: bool,
    /// It was ended for a change of its spec, so it is started again whatever its policy says.
    pub(crate) again: bool,
    /// Its creation was tried at least once.
    pub(crate) tried: bool,
}

impl ContainerObserved {
    pub(crate) fn exited(&self) -> Option<&Ended> {
        match &self.life {
            Life::Exited(ended) => Some(ended),
            _ => None,
        }
    }

    /// No process, and none being made.
    pub(crate) fn idle(&self) -> bool {
        matches!(self.life, Life::Absent | Life::Exited(_))
    }
}
