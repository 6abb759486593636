//! Pods waiting for a node: active by priority, backing off, or unschedulable until something changes. Pure; the
//! clock comes in from outside.
//!
//! ```text
//!            add/changed                     pop
//!  (new) ───────────────────► Active ───────────────────► (in a cycle)
//!                               ▲  ▲                            │
//!                backoff is over│  │ event, backoff is over     │ no node / binding failed
//!                            Backoff ◄── event ── Unschedulable ◄┘  (binding failed: Backoff)
//! ```

use crate::{plugin::ClusterEvent, plugins, pod::PodInfo};
use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// A pod that nothing woke is tried again after this long (Kubernetes: 5 min).
const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(300);
/// Doublings beyond this change nothing.
const ATTEMPTS_COUNTED: u32 = 16;

type ActiveKey = (Reverse<i32>, u64, Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Active(ActiveKey),
    Backoff(Instant),
    Unschedulable {
        since: Instant,
        plugins: BTreeSet<&'static str>,
    },
    /// Popped; its cycle or its binding is running.
    InFlight,
}

#[derive(Debug)]
struct Waiting {
    pod: Arc<PodInfo>,
    sequence: u64,
    attempts: u32,
    tried_at: Instant,
    place: Place,
}

/// The queue. Every waiting pod is in it exactly once.
#[derive(Debug)]
pub(crate) struct Queue {
    pods: HashMap<Arc<str>, Waiting>,
    active: BTreeSet<ActiveKey>,
    backoff: BTreeSet<(Instant, Arc<str>)>,
    parked: BTreeSet<Arc<str>>,
    next_sequence: u64,
    backoff_initial: Duration,
    backoff_max: Duration,
}

impl Queue {
    pub(crate) fn new(backoff_initial: Duration, backoff_max: Duration) -> Self {
        Self {
            pods: HashMap::new(),
            active: BTreeSet::new(),
            backoff: BTreeSet::new(),
            parked: BTreeSet::new(),
            next_sequence: 0,
            backoff_initial,
            backoff_max,
        }
    }

    /// Takes a pod in or its new state over; what placement depends on having changed makes it active again.
    pub(crate) fn put(&mut self, pod: PodInfo, now: Instant) {
        let uid = Arc::clone(&pod.uid);
        let Some(waiting) = self.pods.get_mut(&uid) else {
            self.next_sequence += 1;
            let key = (Reverse(pod.priority), self.next_sequence, Arc::clone(&uid));
            self.active.insert(key.clone());
            let waiting = Waiting {
                pod: Arc::new(pod),
                sequence: self.next_sequence,
                attempts: 0,
                tried_at: now,
                place: Place::Active(key),
            };
            self.pods.insert(uid, waiting);
            return;
        };
        let changed = waiting.pod.needs != pod.needs || waiting.pod.labels != pod.labels;
        waiting.pod = Arc::new(pod);
        if changed && matches!(waiting.place, Place::Unschedulable { .. }) {
            self.wake(&uid, now);
        }
    }

    /// Forgets a pod that was bound, deleted or is no longer ours.
    pub(crate) fn remove(&mut self, uid: &str) {
        if let Some(gone) = self.pods.remove(uid) {
            self.leave(&gone.place, uid);
        }
    }

    /// UIDs of all waiting pods.
    pub(crate) fn uids(&self) -> Vec<Arc<str>> {
        self.pods.keys().cloned().collect()
    }

    /// The next pod to place; it stays known as in flight until one of the three calls below, `remove` or `unschedulable`.
    pub(crate) fn pop(&mut self) -> Option<Arc<PodInfo>> {
        let (_, _, uid) = self.active.pop_first()?;
        let waiting = self.pods.get_mut(&uid)?;
        waiting.place = Place::InFlight;
        waiting.attempts = (waiting.attempts + 1).min(ATTEMPTS_COUNTED);
        Some(Arc::clone(&waiting.pod))
    }

    /// No node was feasible: wait for an event that one of the plugins cares about.
    pub(crate) fn unschedulable(&mut self, uid: &str, by: BTreeSet<&'static str>, now: Instant) {
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.tried_at = now;
            waiting.place = Place::Unschedulable { since: now, plugins: by };
            self.parked.insert(Arc::clone(&waiting.pod.uid));
        }
    }

    /// The binding failed: try again after the backoff.
    pub(crate) fn retry(&mut self, uid: &str, now: Instant) {
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.tried_at = now;
            self.wake(&Arc::from(uid), now);
        }
    }

    /// Something happened: pods that it may help leave the unschedulable ones.
    pub(crate) fn on_event(&mut self, event: ClusterEvent, now: Instant) {
        let helps = |by: &BTreeSet<&'static str>| {
            by.is_empty()
                || plugins::DEFAULT.iter().any(|p| by.contains(p.name()) && p.wakes(event))
        };
        self.wake_where(
            now,
            |place| matches!(place, Place::Unschedulable { plugins, .. } if helps(plugins)),
        );
    }

    /// Moves what waited long enough; the instant when this should be called again.
    pub(crate) fn advance(&mut self, now: Instant) -> Option<Instant> {
        while let Some((due, uid)) = self.backoff.first().cloned() {
            if due > now {
                break;
            }
            self.backoff.pop_first();
            self.activate(&uid);
        }
        self.wake_where(now, |place| {
            matches!(place, Place::Unschedulable { since, .. } if *since + UNSCHEDULABLE_MAX <= now)
        });
        let stale = self.parked.iter().filter_map(|uid| match &self.pods.get(uid)?.place {
            Place::Unschedulable { since, .. } => Some(*since + UNSCHEDULABLE_MAX),
            _ => None,
        });
        self.backoff.first().map(|(due, _)| *due).into_iter().chain(stale).min()
    }

    fn wake_where(&mut self, now: Instant, wanted: impl Fn(&Place) -> bool) {
        let woken = |uid: &&Arc<str>| self.pods.get(*uid).is_some_and(|w| wanted(&w.place));
        let uids: Vec<Arc<str>> = self.parked.iter().filter(woken).cloned().collect();
        for uid in uids {
            self.wake(&uid, now);
        }
    }

    fn wake(&mut self, uid: &Arc<str>, now: Instant) {
        self.parked.remove(uid);
        let Some(waiting) = self.pods.get_mut(uid) else { return };
        let due =
            waiting.tried_at + backoff(self.backoff_initial, self.backoff_max, waiting.attempts);
        if due <= now {
            self.activate(uid);
            return;
        }
        waiting.place = Place::Backoff(due);
        self.backoff.insert((due, Arc::clone(uid)));
    }

    fn activate(&mut self, uid: &Arc<str>) {
        let Some(waiting) = self.pods.get_mut(uid) else { return };
        let key = (Reverse(waiting.pod.priority), waiting.sequence, Arc::clone(uid));
        waiting.place = Place::Active(key.clone());
        self.active.insert(key);
    }

    fn leave(&mut self, place: &Place, uid: &str) {
        match place {
            Place::Active(key) => {
                self.active.remove(key);
            }
            Place::Backoff(due) => {
                self.backoff.remove(&(*due, uid.into()));
            }
            Place::Unschedulable { .. } => {
                self.parked.remove(uid);
            }
            Place::InFlight => {}
        }
    }
}

fn backoff(initial: Duration, max: Duration, attempts: u32) -> Duration {
    initial.saturating_mul(1 << attempts.saturating_sub(1).min(ATTEMPTS_COUNTED)).min(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, priority: i32) -> PodInfo {
        PodInfo { uid: uid.into(), priority, ..PodInfo::default() }
    }

    fn queue() -> Queue {
        Queue::new(Duration::from_secs(1), Duration::from_secs(10))
    }

    fn popped(q: &mut Queue) -> Option<String> {
        q.pop().map(|p| p.uid.to_string())
    }

    #[test]
    fn priority_then_age() {
        let mut q = queue();
        let now = Instant::now();
        for (uid, priority) in [("a", 0), ("b", 5), ("c", 5), ("d", 0)] {
            q.put(pod(uid, priority), now);
        }
        q.remove("d");
        let order: Vec<_> = std::iter::from_fn(|| popped(&mut q)).collect();
        assert_eq!(order, ["b", "c", "a"]);
    }

    #[test]
    fn only_a_helpful_event_wakes_and_backoff_doubles() {
        let mut q = queue();
        let start = Instant::now();
        q.put(pod("a", 0), start);
        let mut now = start;
        for wait in [1u64, 2, 4, 8, 10, 10] {
            assert_eq!(popped(&mut q).as_deref(), Some("a"));
            q.unschedulable("a", ["NodePorts"].into(), now);
            q.on_event(ClusterEvent::NodeUpdated, now);
            assert_eq!(q.advance(now), Some(now + UNSCHEDULABLE_MAX));
            q.on_event(ClusterEvent::PodGone, now);
            assert_eq!(q.advance(now), Some(now + Duration::from_secs(wait)));
            assert_eq!(popped(&mut q), None);
            now += Duration::from_secs(wait);
            q.advance(now);
        }
        assert_eq!(popped(&mut q).as_deref(), Some("a"));
    }

    #[test]
    fn a_condition_write_does_not_wake_but_a_spec_change_does() {
        let mut q = queue();
        let now = Instant::now();
        q.put(pod("a", 0), now);
        popped(&mut q);
        q.unschedulable("a", ["NodeAffinity"].into(), now);
        let later = now + Duration::from_secs(60);
        q.put(PodInfo { unschedulable_message: Some("x".into()), ..pod("a", 0) }, later);
        assert_eq!(popped(&mut q), None);
        q.put(PodInfo { labels: [("k".into(), "v".into())].into(), ..pod("a", 0) }, later);
        assert_eq!(popped(&mut q).as_deref(), Some("a"));
    }
}
