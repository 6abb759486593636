//! SIGKILL of the real master at random moments under load: everything that was acknowledged is there when it runs again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use super::in_process::random::Random;
use super::ledger::Ledger;
use super::master::{Master, Site};

/// Clients of each master.
pub(super) const CLIENTS: usize = 6;
/// A master lives at most so long under load.
const LIFE_MS_MAX: u64 = 250;

/// What is to be done to a master.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Decides everything random.
    pub seed: u64,
    /// How often.
    pub count: u64,
    /// It must be ready again in less.
    pub ready_max: Duration,
}

/// What was done to masters.
#[derive(Debug, Clone, Copy, Default)]
pub struct Killed {
    /// Kills.
    pub kills: u64,
    /// Writes acknowledged, over all.
    pub acknowledged: u64,
    /// Writes without an answer that were there afterwards.
    pub kept: u64,
    /// Writes without an answer that were not.
    pub lost: u64,
    /// The longest time to be ready again.
    pub ready_max: Duration,
}

impl Killed {
    /// What a master that came back has to show: it was ready in time, and everything acknowledged is there.
    pub(super) async fn came_back(
        &mut self,
        master: &Master,
        ledger: &Ledger,
        bound: Duration,
    ) -> Result<()> {
        let took = master.ready_after;
        ensure!(took < bound, "ready after {took:?} only");
        if bound < Duration::MAX {
            self.ready_max = self.ready_max.max(took);
        }
        let checked = ledger.check(master.client.clone()).await?;
        self.kept += checked.kept as u64;
        self.lost += checked.lost as u64;
        Ok(())
    }
}

impl std::ops::AddAssign for Killed {
    fn add_assign(&mut self, other: Self) {
        self.kills += other.kills;
        self.acknowledged += other.acknowledged;
        self.kept += other.kept;
        self.lost += other.lost;
        self.ready_max = self.ready_max.max(other.ready_max);
    }
}

/// Kills a master of its own so many times.
///
/// # Errors
/// Something was lost, or the master did not come back in time.
pub async fn run(binary: PathBuf, dir: &Path, plan: Plan) -> Result<Killed> {
    let Plan { seed, count: kills, ready_max } = plan;
    let site = Site::new(binary, dir.join("data"), dir.join("master.log"))?;
    let (mut random, ledger) = (Random::new(seed), Ledger::default());
    let mut killed = Killed::default();
    for at in 0..=kills {
        let mut master = Master::start(&site).await?;
        let context = || format!("after kill {at}:\n{}", site.log_tail());
        let bound = if at > 0 { ready_max } else { Duration::MAX };
        killed.came_back(&master, &ledger, bound).await.with_context(context)?;
        if at == kills {
            break;
        }
        let life = Duration::from_millis(1 + random.below(LIFE_MS_MAX));
        let mut clients = load(&ledger, &master, &mut random, Instant::now() + life * 2);
        tokio::time::sleep(life).await;
        master.kill();
        clients.shutdown().await;
        ledger.verdict().with_context(context)?;
        killed.kills += 1;
    }
    killed.acknowledged = ledger.acknowledged();
    Ok(killed)
}

/// Clients that write until the master is gone or the time is over.
pub(super) fn load(
    ledger: &Ledger,
    master: &Master,
    random: &mut Random,
    until: Instant,
) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for who in 0..CLIENTS {
        let (ledger, client) = (ledger.clone(), master.client.clone());
        clients.spawn(ledger.write(client, who, random.split(), until));
    }
    clients
}
