//! Whether a cluster that has nothing to do writes anything: the kernel's counters of every process of ours, and every file below
//! the lab's folder, their own logs too, before and after. Looks only; judging is its caller's.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use std::os::unix::fs::MetadataExt;

use crate::lab::{Lab, MASTER};
use crate::shell::wait_for;

/// How long a cluster may take until its last event is over and it writes no more.
const SETTLE: Duration = Duration::from_secs(240);
/// Nothing was written for so long: the cluster is idle.
const QUIET: Duration = Duration::from_secs(12);

/// `USER_HZ`, in which the kernel tells processor time to programs on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counters {
    /// Bytes that it made the kernel write to a disk.
    written: u64,
    /// How often one of its threads was given a processor.
    switches: u64,
    /// Processor time, in clock ticks.
    ticks: u64,
}

impl Counters {
    fn of(pid: u32) -> Result<Counters> {
        let io = fs::read_to_string(format!("/proc/{pid}/io"))?;
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name may hold spaces; the fields behind it don't.
        let fields: Vec<&str> =
            stat.rsplit_once(')').context("no name")?.1.split_whitespace().collect();
        let field =
            |index: usize| -> Result<u64> { Ok(fields.get(index).context("short")?.parse()?) };
        let mut switches = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
            let counts = status.lines().filter(|line| line.contains("voluntary_ctxt_switches"));
            let counts = counts.filter_map(|line| line.rsplit('\t').next()?.parse::<u64>().ok());
            switches += counts.sum::<u64>();
        }
        Ok(Counters {
            written: written.context("no write_bytes")?.trim().parse()?,
            switches,
            ticks: field(11)? + field(12)?,
        })
    }
}

/// Size and time of the last change of a file; a folder's tell what was made or removed in it.
type Mark = (u64, i64, i64);

/// Everything that would show a write, at one moment.
#[derive(Debug)]
pub struct Look {
    at: Instant,
    /// By host, role and PID.
    processes: BTreeMap<(String, &'static str, u32), Counters>,
    files: BTreeMap<PathBuf, Mark>,
}

/// What happened between two looks, summed over the processes of a role.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Activity {
    /// How many processes.
    pub processes: usize,
    /// Bytes that they made the kernel write to a disk.
    pub written: u64,
    /// How often their threads were given a processor, per second and process.
    pub wakeups: f64,
    /// Share of one processor, per process.
    pub busy: f64,
}

/// What changed between two looks.
#[derive(Debug)]
pub struct Change {
    /// `master`, `agent`, `monitor`.
    pub roles: BTreeMap<&'static str, Activity>,
    /// Files that are new, gone or different.
    pub files: Vec<PathBuf>,
}

impl Look {
    /// Looks at every process of ours in the lab, and at every file of its hosts.
    pub fn at(lab: &Lab) -> Result<Look> {
        let mut processes = BTreeMap::new();
        let mut files = BTreeMap::new();
        let names = std::iter::once(MASTER).chain(lab.nodes.iter().map(String::as_str));
        for name in names {
            let host = lab.host(name)?;
            let roles: &[(&str, &str)] = if name == MASTER {
                &[("master", "controlplane run")]
            } else {
                &[("agent", "agent run"), ("monitor", "agent monitor")]
            };
            for (role, words) in roles {
                let pids = host.pids(&[words])?;
                ensure!(pids.len() == 1, "{name} has the {role} processes {pids:?}");
                for pid in pids {
                    processes.insert((name.to_owned(), *role, pid), Counters::of(pid)?);
                }
            }
            walk(&host.dir, &mut files)?;
        }
        Ok(Look { at: Instant::now(), processes, files })
    }

    /// What changed since `earlier`; an error when other processes run than then.
    pub fn since(&self, earlier: &Look) -> Result<Change> {
        let seconds = (self.at - earlier.at).as_secs_f64();
        ensure!(
            self.processes.keys().eq(earlier.processes.keys()),
            "other processes: {:?}, before {:?}",
            self.processes.keys(),
            earlier.processes.keys()
        );
        let mut roles: BTreeMap<&'static str, Activity> = BTreeMap::new();
        for ((_, role, _), now) in &self.processes {
            roles.entry(role).or_default().processes += 1;
            roles.entry(role).or_default().written += now.written;
        }
        for ((key, now), before) in self.processes.iter().zip(earlier.processes.values()) {
            let activity = roles.entry(key.1).or_default();
            let share = 1.0 / (seconds * activity.processes as f64);
            activity.written -= before.written;
            activity.wakeups += (now.switches - before.switches) as f64 * share;
            activity.busy += (now.ticks - before.ticks) as f64 / TICKS_PER_SECOND * share;
        }
        let all = self
            .files
            .keys()
            .chain(earlier.files.keys().filter(|path| !self.files.contains_key(*path)));
        let files = all.filter(|path| self.files.get(*path) != earlier.files.get(*path));
        Ok(Change { roles, files: files.cloned().collect() })
    }
}

impl Change {
    /// Whether nothing at all was written; the error says what was.
    pub fn is_nothing(&self) -> Result<()> {
        for (role, activity) in &self.roles {
            ensure!(
                activity.written == 0,
                "{role}: {} bytes written; files: {:?}",
                activity.written,
                self.files
            );
        }
        ensure!(self.files.is_empty(), "changed files: {:?}", self.files);
        Ok(())
    }
}

fn walk(dir: &Path, found: &mut BTreeMap<PathBuf, Mark>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let Ok(meta) = path.symlink_metadata() else { continue };
        found.insert(path.clone(), (meta.len(), meta.mtime(), meta.mtime_nsec()));
        if meta.is_dir() {
            walk(&path, found)?;
        }
    }
    Ok(())
}

/// Waits until the last event is over and nothing has been written for a while. The error says what is.
pub fn settle(lab: &Lab) -> Result<Look> {
    wait_for("the last event to be over", SETTLE, || {
        let events = lab.kubectl(&["get", "events", "-A", "--no-headers", "-o", "name"])?;
        let count = events.lines().count();
        if count == 0 { Ok(()) } else { bail!("{count} events") }
    })?;
    let mut last = Look::at(lab)?;
    wait_for("the cluster to write no more", SETTLE, || {
        let now = Look::at(lab)?;
        if let Err(error) = now.since(&last)?.is_nothing() {
            last = now;
            return Err(error);
        }
        ensure!(now.at - last.at >= QUIET, "quiet for {:?}", now.at - last.at);
        Ok(())
    })?;
    Look::at(lab)
}

/// Leaves the lab alone for `window`, and tells what happened meanwhile.
pub fn watch(lab: &Lab, window: Duration) -> Result<Change> {
    let before = settle(lab)?;
    thread::sleep(window);
    Look::at(lab)?.since(&before)
}
