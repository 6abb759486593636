//! Ending one container: hook, signal, grace, kill. It goes on until it is aborted, which the worker
//! does when the container has ended.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use monitor::protocol::SignalTarget;
use tracing::{debug, warn};

use crate::connection::chain;
use crate::context::Context;
use crate::events::Kind;
use crate::pod::plan::Why;
use crate::pod::sandbox;
use crate::pod::state::KillReason;
use crate::probe::{Target, run_hook};

/// Left for the signal after a hook has used up the grace (Kubernetes 1.36,
/// `minimumGracePeriodInSeconds`).
const AFTER_HOOK: Duration = Duration::from_secs(2);
/// A process that survives SIGKILL is in the kernel; it is told again.
const KILL_AGAIN: Duration = Duration::from_secs(5);
/// The API takes any grace that fits 64 bits, clocks don't; nobody waits longer than this.
const GRACE_SECONDS_MAX: u64 = 365 * 24 * 3600;

pub(crate) struct Stop {
    pub(crate) context: Arc<Context>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) target: Target,
    pub(crate) why: Why,
    pub(crate) grace: Duration,
    pub(crate) signal: i32,
    /// Whether its hook and event are done already, in an attempt with more grace.
    pub(crate) again: bool,
}

impl Stop {
    pub(crate) async fn run(mut self) {
        let deadline = tokio::time::Instant::now() + self.grace;
        if !self.again {
            self.tell();
            self.pre_stop().await;
        }
        if !self.grace.is_zero() {
            let rest = deadline.saturating_duration_since(tokio::time::Instant::now());
            self.send(self.signal, SignalTarget::Init).await;
            tokio::time::sleep(rest.max(AFTER_HOOK.min(self.grace))).await;
        }
        loop {
            self.send(libc::SIGKILL, SignalTarget::All).await;
            tokio::time::sleep(KILL_AGAIN).await;
            warn!(pod = %crate::pod::spec::describe(&self.pod), id = %self.target.id, "still alive after SIGKILL");
        }
    }

    fn tell(&self) {
        let name = &self.target.container.name;
        let message = match &self.why {
            Why::PodEnds => format!("Stopping container {name}"),
            Why::Reason(KillReason::Probe(kind)) => {
                format!("Container {name} failed {kind} probe, will be restarted")
            }
            Why::Reason(KillReason::Changed) => {
                format!("Container {name} definition changed, will be restarted")
            }
            Why::Reason(KillReason::PostStartHook(_)) => "FailedPostStartHook".to_owned(),
        };
        self.context.recorder.pod(&self.pod, Some(name), (Kind::Normal, "Killing"), message);
    }

    async fn pre_stop(&mut self) {
        let lifecycle = self.target.container.lifecycle.as_ref();
        let Some(hook) = lifecycle.and_then(|lifecycle| lifecycle.pre_stop.clone()) else {
            return;
        };
        if self.grace.is_zero() {
            return;
        }
        if self.target.ip.is_none() {
            // Of a pod that was ending before the agent started, nobody has asked yet.
            let (netd, host_ips) = (&self.context.netd, self.context.host_ips());
            let network = sandbox::network(netd, &self.pod, &host_ips).await;
            self.target.ip = network.ok().and_then(|(_, ips)| ips.first().copied());
        }
        let failure =
            match tokio::time::timeout(self.grace, run_hook(&hook, &self.target, self.grace)).await
            {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => {
                    format!("PreStop hook not completed in grace period {}s", self.grace.as_secs())
                }
            };
        debug!(failure, "a preStop hook failed");
        let name = Some(self.target.container.name.as_str());
        let event = (Kind::Warning, "FailedPreStopHook");
        self.context.recorder.pod(&self.pod, name, event, "PreStopHook failed");
    }

    async fn send(&self, signal: i32, target: SignalTarget) {
        if let Err(error) = self.target.engine.signal(&self.target.id, signal, target).await {
            debug!(id = %self.target.id, signal, error = %chain(&error), "a signal was not sent");
        }
    }
}

/// The time to end in, from seconds as the API has them.
pub(crate) fn grace(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0).min(GRACE_SECONDS_MAX))
}

/// `SIGTERM`, `TERM`, `15` or `SIGRTMIN+3` as a number; SIGTERM when it is none.
pub(crate) fn parse_signal(text: &str) -> i32 {
    let bare = text.trim().to_uppercase();
    let bare = bare.strip_prefix("SIG").unwrap_or(&bare);
    if let Ok(number) = bare.parse::<i32>() {
        return if (1..=64).contains(&number) { number } else { libc::SIGTERM };
    }
    if let Some(offset) = bare.strip_prefix("RTMIN") {
        let offset = offset.trim_start_matches('+').parse::<i32>().unwrap_or(0);
        return libc::SIGRTMIN() + offset.clamp(0, 30);
    }
    format!("SIG{bare}").parse::<nix::sys::signal::Signal>().map_or(libc::SIGTERM, |s| s as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_grace_fits_the_clock() {
        for (seconds, wanted) in [(i64::MIN, 0), (-1, 0), (30, 30), (i64::MAX, GRACE_SECONDS_MAX)] {
            assert_eq!(grace(seconds).as_secs(), wanted);
            assert!(std::time::Instant::now().checked_add(grace(seconds)).is_some());
        }
    }

    #[test]
    fn signals() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGQUIT", 3),
            ("SIGRTMIN+3", libc::SIGRTMIN() + 3),
            ("nonsense", 15),
            ("900", 15),
        ] {
            assert_eq!(parse_signal(text), number, "{text}");
        }
    }
}
