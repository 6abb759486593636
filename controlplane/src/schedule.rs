//! Owns the snapshots that the master takes by itself: one each period, so many kept. A failed one is told, counted and tried again, and
//! leaves no file. Must not touch files of other names.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use store::snapshot::{self, SnapshotError};
use store::{Revision, Store};
use tokio::sync::watch;

const DIR_MODE: u32 = 0o700;
const PREFIX: &str = "flotilla-r";
const ENDING: &str = ".snapshot";
const UNFINISHED: &str = ".snapshot.unfinished";
/// After a failure, unless the period is shorter.
const RETRY: Duration = Duration::from_secs(300);

/// When snapshots are taken, and where they are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// From one to the next.
    pub period: Duration,
    /// How many are kept.
    pub retention: usize,
    /// Where.
    pub dir: PathBuf,
}

/// The newest snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Last {
    /// When it was taken.
    pub at: Timestamp,
    /// Size of its file.
    pub bytes: u64,
}

/// What became of the schedule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The newest snapshot, of this process or an earlier one.
    pub last: Option<Last>,
    /// Snapshots taken by this process.
    pub taken: u64,
    /// Snapshots that failed.
    pub failures: u64,
    /// Why the last one failed, if it did.
    pub failure: Option<String>,
}

/// [`Outcome`], for those who tell it.
#[derive(Debug, Default)]
pub struct Told(Mutex<Outcome>);

impl Told {
    /// As it is now.
    pub fn now(&self) -> Outcome {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Outcome)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Why a snapshot wasn't taken.
#[derive(Debug, thiserror::Error)]
enum ScheduleError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> ScheduleError {
    move |source| ScheduleError::File { path: path.to_owned(), source }
}

/// Runs until `stop`.
///
/// # Errors
/// None; what fails is told and tried again.
pub async fn run(
    store: Store,
    schedule: Schedule,
    told: Arc<Told>,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<&'static str> {
    let work = async {
        let mut wait = first_wait(&schedule, &told);
        loop {
            tokio::time::sleep(wait).await;
            wait = match take(&store, &schedule).await {
                Ok(last) => {
                    told.change(|told| {
                        (told.last, told.taken, told.failure) = (Some(last), told.taken + 1, None);
                    });
                    schedule.period
                }
                Err(error) => {
                    tracing::error!(%error, dir = %schedule.dir.display(), "a scheduled snapshot failed; trying again");
                    told.change(|told| {
                        told.failures += 1;
                        told.failure = Some(error.to_string());
                    });
                    schedule.period.min(RETRY)
                }
            };
        }
    };
    tokio::select! {
        () = work => {}
        stopped = stop.wait_for(|stopped| *stopped) => drop(stopped),
    }
    Ok("the schedule of snapshots")
}

/// How long the newest snapshot of an earlier process is good for.
fn first_wait(schedule: &Schedule, told: &Told) -> Duration {
    let Ok(found) = list(&schedule.dir) else { return Duration::ZERO };
    let Some((_, _, path)) = found.last() else { return Duration::ZERO };
    let Ok(metadata) = fs::metadata(path) else { return Duration::ZERO };
    let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    if let Ok(at) = Timestamp::try_from(modified) {
        told.change(|told| told.last = Some(Last { at, bytes: metadata.len() }));
    }
    // A clock that was set back makes it as good as new.
    let age = Timestamp::now().duration_since(Timestamp::try_from(modified).unwrap_or_default());
    schedule.period.saturating_sub(Duration::try_from(age).unwrap_or_default())
}

async fn take(store: &Store, schedule: &Schedule) -> Result<Last, ScheduleError> {
    let dir = &schedule.dir;
    let made = fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir);
    made.map_err(file(dir))?;
    remove_unfinished(dir).map_err(file(dir))?;
    let (reader, at) = (store.snapshot(), Timestamp::now());
    let path = dir.join(name(reader.revision(), at));
    snapshot::save(reader, &path).await?;
    let bytes = fs::metadata(&path).map_err(file(&path))?.len();
    tracing::info!(file = %path.display(), bytes, "took a scheduled snapshot");
    let mut others = list(dir).map_err(file(dir))?;
    others.retain(|(_, _, other)| *other != path);
    // This one is kept, whatever the order says: a clock may have been set back.
    for (_, _, old) in others.drain(..(others.len() + 1).saturating_sub(schedule.retention.max(1)))
    {
        fs::remove_file(&old).map_err(file(&old))?;
    }
    Ok(Last { at, bytes })
}

fn name(revision: Revision, at: Timestamp) -> String {
    format!("{PREFIX}{revision:012}-{}{ENDING}", at.strftime("%Y%m%dT%H%M%SZ"))
}

fn parse(name: &str) -> Option<Revision> {
    let (revision, _) = name.strip_prefix(PREFIX)?.strip_suffix(ENDING)?.split_once('-')?;
    revision.parse().ok()
}

/// The snapshots of a folder, oldest first. Those of another store, whose revisions were higher, are older all the same.
fn list(dir: &Path) -> io::Result<Vec<(SystemTime, Revision, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if let Some(revision) = entry.file_name().to_str().and_then(parse) {
            found.push((entry.metadata()?.modified()?, revision, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// What a master left that died meanwhile.
fn remove_unfinished(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(UNFINISHED))
        {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use store::{Op, Txn};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap());
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    async fn until(what: &str, holds: impl Fn() -> bool) {
        let begun = tokio::time::Instant::now();
        while !holds() {
            assert!(begun.elapsed() < DEADLINE, "{what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn so_many_are_kept_and_a_failure_is_told_and_leaves_nothing() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("snapshots");
        let store = Store::open(store::Config::new(temporary.path().join("store"))).unwrap();
        fs::write(&dir, "in the way").unwrap();
        let schedule =
            Schedule { period: Duration::from_millis(30), retention: 2, dir: dir.clone() };
        let (stop, stopped) = watch::channel(false);
        let told = Arc::<Told>::default();
        let running = tokio::spawn(run(store.clone(), schedule.clone(), told.clone(), stopped));
        until("a failure is counted", || told.now().failures > 1).await;
        assert!(told.now().failure.unwrap().contains("snapshots"));

        fs::remove_file(&dir).unwrap();
        until("the next one goes well", || told.now().taken > 0).await;
        assert_eq!((told.now().failure, told.now().last.is_some()), (None, true));
        let (foreign, partial) = ("mine.snapshot", "flotilla-r000000000001-x.snapshot.unfinished");
        for name in [foreign, partial] {
            fs::write(dir.join(name), "").unwrap();
        }
        // Of a store that was there before, and was further.
        let former = dir.join("flotilla-r000000999999-20200101T000000Z.snapshot");
        fs::write(&former, "").unwrap();
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
        fs::File::options().write(true).open(&former).unwrap().set_modified(old).unwrap();
        store.txn(Txn::of(vec![Op::put("a", "1")])).await.unwrap();
        let before = told.now().taken;
        until("it goes on", || told.now().taken > before + 3).await;
        stop.send_replace(true);
        running.await.unwrap().unwrap();
        let found = names(&dir);
        assert!(found.contains(&foreign.to_owned()), "{found:?}");
        assert!(!found.contains(&partial.to_owned()), "{found:?}");
        let own = list(&dir).unwrap();
        assert!(own.len() <= 2 && !own.is_empty() && !former.exists(), "{found:?}");
        let newest = snapshot::verify(&own.last().unwrap().2).unwrap();
        assert_eq!((newest.revision, newest.keys), (store.revision(), 1));

        let told = Told::default();
        let wait = first_wait(&Schedule { period: Duration::from_secs(3600), ..schedule }, &told);
        assert!(wait > Duration::from_secs(3500), "the last one is new: {wait:?}");
        assert!(told.now().last.is_some());
    }
}
