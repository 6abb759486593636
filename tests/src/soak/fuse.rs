//! Power cuts under the real master: its data folder lies on a file system that forgets. The power goes at a random operation, the
//! master is killed, what was not synced is lost, and the master starts again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fuser::BackgroundSession;

use super::forgetful::Forgetful;
use super::in_process::media::Cut;
use super::in_process::random::Random;
use super::kill::{Killed, Plan, load};
use super::ledger::Ledger;
use super::master::{Master, Site};

/// The power goes by itself after at most so many operations …
const OPERATIONS_MAX: u64 = 150;
/// … or after this.
const LIFE_MAX: Duration = Duration::from_millis(600);
const POLL: Duration = Duration::from_millis(1);

/// Why this machine can't do it, if so.
#[must_use]
pub fn obstacle(dir: &Path) -> Option<String> {
    let tried = std::fs::create_dir_all(dir).and_then(|()| Forgetful::default().mount(dir));
    match tried {
        Ok(session) => session.umount_and_join().err().map(|error| format!("unmounting: {error}")),
        Err(error) => Some(format!("no FUSE file system can be mounted here: {error}")),
    }
}

/// A mounted file system; unmounted however its user ends.
struct Mounted(Option<BackgroundSession>);

impl Mounted {
    fn on(files: &Forgetful, at: &Path) -> Result<Mounted> {
        Ok(Mounted(Some(files.mount(at).with_context(|| at.display().to_string())?)))
    }

    fn unmount(mut self) -> Result<()> {
        let session = self.0.take().context("not mounted")?;
        session.umount_and_join().context("unmounting")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(session) = self.0.take() {
            session.umount_and_join().ok();
        }
    }
}

/// Cuts the power of a master so many times.
///
/// # Errors
/// Something was lost or half there, or the master did not come back in time.
pub async fn run(binary: PathBuf, dir: &Path, plan: Plan) -> Result<Killed> {
    let Plan { seed, count: cuts, ready_max } = plan;
    let mount = dir.join("disk");
    std::fs::create_dir_all(&mount)?;
    let site = Site::new(binary, mount.join("controlplane"), dir.join("master.log"))?;
    let (files, ledger, mut random) = (Forgetful::default(), Ledger::default(), Random::new(seed));
    let mut killed = Killed::default();
    let mut how = String::new();
    for at in 0..=cuts {
        let mounted = Mounted::on(&files, &mount)?;
        let context = || format!("after cut {at} ({how}, seed {seed}):\n{}", site.log_tail());
        let mut master = Master::start(&site).await.with_context(context)?;
        let bound = if at > 0 { ready_max } else { Duration::MAX };
        killed.came_back(&master, &ledger, bound).await.with_context(context)?;
        if at == cuts {
            master.kill();
            mounted.unmount()?;
            break;
        }
        let until = Instant::now() + LIFE_MAX;
        files.plan_power_cut(1 + random.below(OPERATIONS_MAX));
        let mut clients = load(&ledger, &master, &mut random, until);
        while !files.is_off() && Instant::now() < until {
            tokio::time::sleep(POLL).await;
        }
        files.power_off();
        clients.shutdown().await;
        master.kill();
        ledger.verdict().with_context(context)?;
        mounted.unmount()?;
        let mut cut = Cut::random(&mut random);
        how = format!("{}% lost, {}% torn", cut.lost_percent, cut.torn_percent);
        files.forget(&mut cut);
        killed.kills += 1;
    }
    killed.acknowledged = ledger.acknowledged();
    Ok(killed)
}
