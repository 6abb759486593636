//! Owns which master runs a component: leader election on a Lease, with the record that client-go writes. A holder's silence is judged by
//! the observer's own monotonic clock, never by the times in the record. Knows nothing of what the component does.
//!
//! ```text
//! holder    renew ──1 s── renew ──✗ … no renewal for `renew`: the component is aborted
//! observer    saw ───────── saw ─── … nothing new for `lease`: takes over
//! ```
//! The holder counts from before it asked, the observer from after it saw, so the component is gone `lease - renew` ahead of the next
//! one's start, however the clocks of the two go.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, anyhow};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Where the leases of components are, as upstream's.
const NAMESPACE: &str = "kube-system";
/// How long a component may take to stop before it is aborted; less than the master gives its parts.
const DRAIN: Duration = Duration::from_secs(3);
/// What a released lease says of its length, as client-go's.
const RELEASED_SECONDS: i32 = 1;

/// How long a leader may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// A record that nobody changed for so long may be taken; whole seconds.
    pub lease: Duration,
    /// A leader that could not renew for so long stops; shorter than `lease`.
    pub renew: Duration,
    /// Pause between two attempts.
    pub retry: Duration,
}

impl Timing {
    /// Shorter than upstream's 15, 10 and 2 seconds: devices wait for their pods.
    pub const DEFAULT: Self = Self {
        lease: Duration::from_secs(7),
        renew: Duration::from_secs(5),
        retry: Duration::from_secs(1),
    };
}

/// A record as it was last seen to change.
#[derive(Debug)]
struct Observed {
    lease: Lease,
    since: Instant,
}

/// One candidate for one component.
#[derive(Debug)]
pub struct Election {
    leases: Api<Lease>,
    /// The lease, which bears the component's name.
    name: &'static str,
    /// Who this candidate is; unique per process.
    identity: String,
    timing: Timing,
    observed: Option<Observed>,
}

/// Why one attempt brought nothing.
#[derive(Debug, thiserror::Error)]
enum Missed {
    #[error("held by {0}")]
    Held(String),
    #[error("not answered in time")]
    TimedOut,
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// What an attempt is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aim {
    /// A term begins with it.
    Take,
    /// The term goes on. Whoever had the lease meanwhile, and be it gone again, has ended it: this term's writes are refused.
    Keep,
}

/// How a term ended.
enum End {
    Stopped,
    Lost,
    Component(anyhow::Result<()>),
}

/// What to write, if the record may be had.
fn plan(
    found: Option<&LeaseSpec>,
    silent: Duration,
    (identity, aim): (&str, Aim),
    timing: &Timing,
    now: Timestamp,
) -> Result<LeaseSpec, Missed> {
    let fresh = LeaseSpec::default();
    let found = found.unwrap_or(&fresh);
    let holder = found.holder_identity.as_deref().unwrap_or_default();
    let own = holder == identity;
    let seconds = found.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
    let valid = silent < Duration::from_secs(seconds.unwrap_or_default());
    if !own && (aim == Aim::Keep || !holder.is_empty() && valid) {
        return Err(Missed::Held(holder.to_owned()));
    }
    let mut wanted = found.clone();
    wanted.renew_time = Some(MicroTime(now));
    wanted.lease_duration_seconds = Some(whole_seconds(timing.lease));
    if !own {
        wanted.holder_identity = Some(identity.to_owned());
        wanted.acquire_time = Some(MicroTime(now));
        let first = found.acquire_time.is_none();
        let transitions = found.lease_transitions.unwrap_or_default();
        wanted.lease_transitions = Some(if first { 0 } else { transitions.saturating_add(1) });
    }
    Ok(wanted)
}

fn whole_seconds(length: Duration) -> i32 {
    i32::try_from(length.as_secs()).unwrap_or(i32::MAX)
}

/// A random share of the pause on top of it, so that candidates don't meet.
fn jittered(pause: Duration) -> Duration {
    let random = ring::rand::generate::<[u8; 1]>(&ring::rand::SystemRandom::new());
    // Without randomness the plain pause serves.
    let share = random.map_or(0, |byte| byte.expose()[0]);
    pause + pause.mul_f64(f64::from(share) / 512.0)
}

impl Election {
    /// A candidate that writes through `client`.
    pub fn new(client: Client, name: &'static str, identity: String, timing: Timing) -> Self {
        let leases = Api::namespaced(client, NAMESPACE);
        Self { leases, name, identity, timing, observed: None }
    }

    /// Runs `component` whenever this candidate leads, until `stop` turns true; then lets go of the lease. The component is told to stop
    /// through its own receiver, and aborted where it does not, or where the lease could not be renewed.
    ///
    /// # Errors
    /// The component ended by itself.
    pub async fn run<C, F>(
        mut self,
        component: C,
        mut stop: watch::Receiver<bool>,
    ) -> anyhow::Result<()>
    where
        C: Fn(watch::Receiver<bool>) -> F,
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        loop {
            let began = tokio::select! {
                began = self.acquire() => began,
                () = stopped(&mut stop) => return Ok(()),
            };
            tracing::info!(lease = self.name, identity = self.identity, "became the leader");
            let (tell, told) = watch::channel(false);
            let mut task = JoinSet::new();
            task.spawn(component(told));
            match self.lead(&mut task, began, &mut stop).await {
                End::Stopped => {
                    tell.send_replace(true);
                    self.drain(&mut task).await;
                    self.release().await;
                    return Ok(());
                }
                End::Component(result) => {
                    self.release().await;
                    result.with_context(|| format!("the component of lease {}", self.name))?;
                    return Err(anyhow!("the component of lease {} ended by itself", self.name));
                }
                End::Lost => {
                    task.shutdown().await;
                    tracing::warn!(lease = self.name, "lost the lead; what it ran is stopped");
                }
            }
        }
    }

    /// Returns when the lease is ours, with the moment from which it is.
    async fn acquire(&mut self) -> Instant {
        loop {
            let began = Instant::now();
            match self.attempt(Aim::Take, began + self.timing.renew).await {
                Ok(()) => return began,
                Err(Missed::Held(holder)) => {
                    tracing::debug!(lease = self.name, holder, "another one leads");
                }
                Err(error) => tracing::debug!(lease = self.name, %error, "no lease"),
            }
            sleep(jittered(self.timing.retry)).await;
        }
    }

    /// Renews until something ends the term.
    async fn lead(
        &mut self,
        task: &mut JoinSet<anyhow::Result<()>>,
        began: Instant,
        stop: &mut watch::Receiver<bool>,
    ) -> End {
        tokio::select! {
            () = self.renew(began) => End::Lost,
            () = stopped(stop) => End::Stopped,
            Some(ended) = task.join_next() => {
                End::Component(ended.unwrap_or_else(|error| Err(error.into())))
            }
        }
    }

    /// Returns when the lease could not be renewed in time.
    async fn renew(&mut self, began: Instant) {
        let mut renewed = began;
        loop {
            sleep(self.timing.retry).await;
            let deadline = renewed + self.timing.renew;
            let began = Instant::now();
            if began >= deadline {
                return;
            }
            match self.attempt(Aim::Keep, deadline).await {
                Ok(()) => renewed = began,
                Err(Missed::Held(holder)) => {
                    tracing::warn!(lease = self.name, holder, "the lease was taken");
                    return;
                }
                Err(error) => tracing::info!(lease = self.name, %error, "the lease is not renewed"),
            }
        }
    }

    /// One attempt to have the lease, or to keep it.
    async fn attempt(&mut self, aim: Aim, deadline: Instant) -> Result<(), Missed> {
        let answer = tokio::time::timeout_at(deadline, self.write(aim)).await;
        let answer = answer.unwrap_or(Err(Missed::TimedOut));
        if let Err(Missed::Api(_) | Missed::TimedOut) = answer
            && let Some(observed) = &mut self.observed
        {
            // What stands there now is to be read again; what was seen of it, and when, stays.
            observed.lease.metadata.resource_version = None;
        }
        answer
    }

    async fn write(&mut self, aim: Aim) -> Result<(), Missed> {
        let leading = self.observed.as_ref().is_some_and(|seen| {
            let holder = seen.lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
            holder == Some(self.identity.as_str()) && seen.lease.metadata.resource_version.is_some()
        });
        // A leader knows what it wrote last; a conflict says when that is no longer so.
        if !leading {
            let found = self.leases.get_opt(self.name).await?;
            self.observe(found);
        }
        let seen = self.observed.as_ref();
        let silent = seen.map(|seen| seen.since.elapsed()).unwrap_or_default();
        let spec = seen.and_then(|seen| seen.lease.spec.as_ref());
        let who = (self.identity.as_str(), aim);
        let spec = plan(spec, silent, who, &self.timing, Timestamp::now())?;
        let written = match seen {
            Some(seen) => {
                let mut lease = seen.lease.clone();
                lease.spec = Some(spec);
                self.leases.replace(self.name, &PostParams::default(), &lease).await?
            }
            None => {
                let metadata = ObjectMeta { name: Some(self.name.to_owned()), ..<_>::default() };
                let lease = Lease { metadata, spec: Some(spec) };
                self.leases.create(&PostParams::default(), &lease).await?
            }
        };
        self.observe(Some(written));
        Ok(())
    }

    fn observe(&mut self, found: Option<Lease>) {
        let Some(lease) = found else {
            self.observed = None;
            return;
        };
        match &mut self.observed {
            Some(seen) if seen.lease.spec == lease.spec => seen.lease = lease,
            _ => self.observed = Some(Observed { lease, since: Instant::now() }),
        }
    }

    /// Waits until the component has stopped, for as long as the lease lasts.
    async fn drain(&mut self, task: &mut JoinSet<anyhow::Result<()>>) {
        match timeout(DRAIN.min(self.timing.lease - self.timing.renew), task.join_next()).await {
            Ok(Some(Ok(Err(error)))) => {
                tracing::error!(lease = self.name, %error, "the component ended badly");
            }
            Ok(_) => {}
            Err(_) => tracing::warn!(lease = self.name, "not stopped in time; cut off"),
        }
        task.shutdown().await;
    }

    /// Lets another one lead at once.
    async fn release(&mut self) {
        let Some(Observed { mut lease, .. }) = self.observed.take() else { return };
        if lease.metadata.resource_version.is_none() {
            return tracing::info!(lease = self.name, "the lease is not released: it is in doubt");
        }
        let now = MicroTime(Timestamp::now());
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(RELEASED_SECONDS);
        spec.renew_time = Some(now.clone());
        spec.acquire_time = Some(now);
        let params = PostParams::default();
        let written = self.leases.replace(self.name, &params, &lease);
        match timeout(self.timing.retry, written).await {
            Ok(Ok(_)) => tracing::info!(lease = self.name, "let go of the lead"),
            Ok(Err(error)) => {
                tracing::info!(lease = self.name, %error, "the lease is not released")
            }
            Err(_) => tracing::info!(lease = self.name, "the lease is not released in time"),
        }
    }
}

/// Returns when the master is to stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Whoever could stop it being gone stops it too.
    let _stop_or_gone = stop.wait_for(|stop| *stop).await.is_ok();
}

#[cfg(test)]
#[path = "election_tests.rs"]
mod tests;
