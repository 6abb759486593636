//! When the agent rests: a while with next to no processor time after one with some. Then what it has mapped of its program goes
//! back to the kernel ([`monitor::pages`]), which on a small device has better uses for it.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use tokio::time::MissedTickBehavior;
use tracing::warn;

/// How often the agent looks at itself.
const PERIOD: Duration = Duration::from_secs(30);
/// More processor time than this within a period is work; heartbeats and looks at the node take a tenth of it.
const WORK: Duration = Duration::from_millis(150);

#[derive(Debug)]
struct Rest {
    /// Since the program's pages were last given back.
    worked: bool,
    spent: Duration,
}

impl Rest {
    /// Whether the period that ends with `spent` processor time in all is the first one of rest.
    fn begins(&mut self, spent: Duration) -> bool {
        let works = spent.saturating_sub(self.spent) > WORK;
        self.spent = spent;
        let begins = self.worked && !works;
        self.worked = works || (self.worked && !begins);
        begins
    }
}

pub(crate) async fn run() {
    let mut rest = Rest { worked: true, spent: Duration::ZERO };
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + PERIOD, PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match spent() {
            Ok(spent) if rest.begins(spent) => monitor::pages::release_program(),
            Ok(_) => {}
            Err(error) => {
                warn!(%error, "the agent can't see its own processor time");
                return;
            }
        }
    }
}

fn spent() -> nix::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = [usage.user_time(), usage.system_time()]
        .map(|time| time.tv_sec().unsigned_abs() * 1_000_000 + time.tv_usec().unsigned_abs());
    Ok(Duration::from_micros(micros.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rest_begins_once_after_work() {
        let mut rest = Rest { worked: true, spent: Duration::ZERO };
        let mut after = |millis| rest.begins(Duration::from_millis(millis));
        assert!(!after(900), "it has just started");
        assert!(after(910));
        assert!(!after(920), "once is enough");
        assert!(!after(2000));
        assert!(after(2100));
    }
}
