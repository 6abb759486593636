//! A disk in memory whose power can be cut between any two operations, whose operations fail on command, and whose syncs come
//! when the harness lets them: in any order, each covering only what was written before it began.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use store::{Disk, DiskFile};

use super::media::{Cut, Inode, Media};
use super::random::Random;

/// ENOSPC.
const NO_SPACE: i32 = 28;

/// So many operations are remembered.
const TRAIL_MAX: usize = 60;

/// How long a sync waits to be let through before it goes on by itself: a harness that forgot it would hang.
const GATE_PATIENCE: Duration = Duration::from_secs(20);

/// An image of the disk at some moment, and what had been acknowledged by then.
#[derive(Debug, Clone)]
pub struct Image {
    media: Media,
    /// What [`CrashDisk::mark`] had last been given.
    pub mark: i64,
}

impl Image {
    /// The disk after a power cut at that moment.
    #[must_use]
    pub fn cut(&self, how: &mut Cut) -> CrashDisk {
        CrashDisk::of(self.media.cut(how), how.random.split())
    }
}

#[derive(Debug, Default)]
struct Plan {
    /// The operation at which the power goes.
    power_off_at: Option<u64>,
    /// Operations that fail, from the first of them up to below the second.
    failing: Option<(u64, u64)>,
    /// Of a hundred operations, so many leave an image.
    images_percent: u64,
}

#[derive(Debug)]
struct State {
    media: Media,
    operations: u64,
    off: bool,
    failed: bool,
    /// How often a sync of each file failed.
    errors: BTreeMap<Inode, u64>,
    plan: Plan,
    images: Vec<Image>,
    mark: i64,
    gated: bool,
    next_ticket: u64,
    waiting: Vec<u64>,
    random: Random,
    /// The last operations, for whoever looks for the reason of a failure.
    trail: VecDeque<(u64, &'static str, String, usize)>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A disk in memory. Clones are the same disk.
#[derive(Clone)]
pub struct CrashDisk {
    shared: Arc<Shared>,
}

impl fmt::Debug for CrashDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CrashDisk").finish_non_exhaustive()
    }
}

impl CrashDisk {
    /// An empty disk.
    #[must_use]
    pub fn new(random: Random) -> Self {
        Self::of(Media::default(), random)
    }

    /// A disk that holds this.
    #[must_use]
    pub fn of(media: Media, random: Random) -> Self {
        let state = State {
            media,
            operations: 0,
            off: false,
            failed: false,
            errors: BTreeMap::new(),
            plan: Plan::default(),
            images: Vec::new(),
            mark: 0,
            gated: false,
            next_ticket: 0,
            waiting: Vec::new(),
            random,
            trail: VecDeque::new(),
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts the power just before or behind the operation so many operations from now.
    pub fn plan_power_cut(&self, operations: u64) {
        let mut state = self.lock();
        state.plan.power_off_at = Some(state.operations + operations);
    }

    /// Fails `count` operations, beginning so many operations from now.
    pub fn plan_failures(&self, operations: u64, count: u64) {
        let mut state = self.lock();
        let first = state.operations + operations;
        state.plan.failing = Some((first, first + count));
    }

    /// Keeps an image at so many of a hundred operations.
    pub fn keep_images(&self, percent: u64) {
        self.lock().plan.images_percent = percent;
    }

    /// The images kept so far.
    #[must_use]
    pub fn take_images(&self) -> Vec<Image> {
        std::mem::take(&mut self.lock().images)
    }

    /// Stamps later images.
    pub fn mark(&self, mark: i64) {
        self.lock().mark = mark;
    }

    /// Whether the power is off.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.lock().off
    }

    /// Whether an operation was made to fail.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.lock().failed
    }

    /// Cuts the power now.
    pub fn power_off(&self) {
        self.lock().off = true;
        self.shared.changed.notify_all();
    }

    /// The disk after the cut, or, with the power on, after one now.
    #[must_use]
    pub fn after_cut(&self, how: &mut Cut) -> Self {
        let state = self.lock();
        Self::of(state.media.cut(how), how.random.split())
    }

    /// The same contents on another disk, with nothing planned; what was not synced stays so.
    #[must_use]
    pub fn copy(&self) -> Self {
        let mut state = self.lock();
        let random = state.random.split();
        Self::of(state.media.clone(), random)
    }

    /// The last operations, as lines.
    #[must_use]
    pub fn trail(&self) -> Vec<String> {
        let state = self.lock();
        let line = |(at, what, name, size): &(u64, &str, String, usize)| {
            format!("  disk {at}: {what} {name} {size}")
        };
        state.trail.iter().map(line).collect()
    }

    /// Changes what is there behind the store's back.
    pub fn with_media<T>(&self, change: impl FnOnce(&mut Media) -> T) -> T {
        change(&mut self.lock().media)
    }

    /// Whether syncs wait for [`CrashDisk::let_through`].
    pub fn gate(&self, gated: bool) {
        self.lock().gated = gated;
        self.shared.changed.notify_all();
    }

    /// How many syncs wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Lets one of the waiting syncs go on. `false`: none waited.
    pub fn let_through(&self, random: &mut Random) -> bool {
        let mut state = self.lock();
        if state.waiting.is_empty() {
            return false;
        }
        let at = random.index(state.waiting.len());
        state.waiting.swap_remove(at);
        drop(state);
        self.shared.changed.notify_all();
        true
    }

    /// An operation that changes something: counts it, and says whether it is to be done.
    fn operation(
        &self,
        what: &'static str,
        name: &str,
        size: usize,
    ) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        if state.off {
            return Err(no_power());
        }
        state.operations += 1;
        let at = state.operations;
        state.trail.push_back((at, what, name.to_owned(), size));
        if state.trail.len() > TRAIL_MAX {
            state.trail.pop_front();
        }
        let State { operations, plan, .. } = &*state;
        let now = *operations;
        if plan.failing.is_some_and(|(first, end)| (first..end).contains(&now)) {
            state.failed = true;
            return Err(io::Error::from_raw_os_error(NO_SPACE));
        }
        let kept = state.plan.images_percent;
        if kept > 0 && state.random.percent(kept) {
            let (media, mark) = (state.media.clone(), state.mark);
            state.images.push(Image { media, mark });
        }
        Ok(state)
    }

    /// Whether the power goes with this operation; it may have happened, but nobody hears of it.
    fn done(&self, mut state: MutexGuard<'_, State>) -> io::Result<()> {
        if state.plan.power_off_at.is_some_and(|at| at <= state.operations) {
            state.off = true;
            drop(state);
            self.shared.changed.notify_all();
            return Err(no_power());
        }
        Ok(())
    }

    /// Carries a change out, unless the power goes just before it.
    fn change(
        &self,
        (what, name, size): (&'static str, &str, usize),
        change: impl FnOnce(&mut Media) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut state = self.operation(what, name, size)?;
        let goes = state.plan.power_off_at.is_some_and(|at| at <= state.operations);
        if !goes || state.random.percent(50) {
            change(&mut state.media)?;
        }
        self.done(state)
    }

    /// Waits until a sync may go on, and says up to where it covers: what was written before it began.
    fn turn(&self) -> io::Result<u64> {
        let mut state = self.lock();
        if state.off {
            return Err(no_power());
        }
        let moment = state.media.moment();
        if !state.gated {
            let lingers = state.random.percent(20);
            drop(state);
            if lingers {
                std::thread::yield_now();
            }
            return Ok(moment);
        }
        state.next_ticket += 1;
        let ticket = state.next_ticket;
        state.waiting.push(ticket);
        self.shared.changed.notify_all();
        let still =
            |state: &mut State| state.gated && !state.off && state.waiting.contains(&ticket);
        let waited = self.shared.changed.wait_timeout_while(state, GATE_PATIENCE, still);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.waiting.retain(|other| *other != ticket);
        Ok(moment)
    }

    /// A sync of names, or of a file through one of its handles.
    fn sync_point(&self, name: &str, file: Option<&CrashFile>) -> io::Result<()> {
        let moment = self.turn()?;
        let mut state = match self.operation("sync", name, 0) {
            Ok(state) => state,
            Err(error) => {
                let mut state = self.lock();
                if let Some(file) = file.filter(|_| !state.off) {
                    state.media.doom(file.inode, moment);
                    *state.errors.entry(file.inode).or_default() += 1;
                    file.is_told(&state);
                }
                return Err(error);
            }
        };
        if file.is_some_and(|file| file.is_told(&state)) {
            return Err(io::Error::from_raw_os_error(NO_SPACE));
        }
        let goes = state.plan.power_off_at.is_some_and(|at| at <= state.operations);
        if !goes || state.random.percent(50) {
            match file {
                Some(file) => state.media.sync(file.inode, moment),
                None => state.media.sync_names(moment),
            }
        }
        self.done(state)
    }

    fn file(&self, name: &str, inode: Inode) -> Arc<dyn DiskFile> {
        let told = self.lock().errors.get(&inode).copied().unwrap_or_default();
        let (disk, name, told) = (self.clone(), name.to_owned(), AtomicU64::new(told));
        Arc::new(CrashFile { disk, inode, name, told })
    }
}

fn no_power() -> io::Error {
    io::Error::other("the power is off")
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, name.to_owned())
}

impl Disk for CrashDisk {
    fn names(&self) -> io::Result<Vec<String>> {
        let state = self.lock();
        Ok(state.media.names().map(|(name, _)| name.to_owned()).collect())
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let size = usize::try_from(bytes).map_err(io::Error::other)?;
        let mut inode = 0;
        self.change(("create", name, size), |media| {
            inode = media.create(name);
            media.resize(inode, size);
            Ok(())
        })?;
        Ok(self.file(name, inode))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let inode = self.lock().media.find(name).ok_or_else(|| missing(name))?;
        Ok(self.file(name, inode))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(("rename", from, 0), |media| {
            media.rename(from, to).then_some(()).ok_or_else(|| missing(from))
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(("remove", name, 0), |media| {
            media.remove(name).then_some(()).ok_or_else(|| missing(name))
        })
    }

    fn sync_names(&self) -> io::Result<()> {
        self.sync_point("names", None)
    }
}

#[derive(Debug)]
struct CrashFile {
    disk: CrashDisk,
    inode: Inode,
    name: String,
    /// So many failures of the file's syncs were told to this handle: each handle is told of each, once.
    told: AtomicU64,
}

impl CrashFile {
    /// Whether the handle hears of a failure only now.
    fn is_told(&self, state: &State) -> bool {
        let errors = state.errors.get(&self.inode).copied().unwrap_or_default();
        self.told.swap(errors, Ordering::Relaxed) < errors
    }
}

impl DiskFile for CrashFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let what = ("write", self.name.as_str(), bytes.len());
        self.disk.change(what, |media| {
            media.write(self.inode, offset, bytes);
            Ok(())
        })
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let state = self.disk.lock();
        let have = state.media.read(self.inode).get(offset..).unwrap_or_default();
        let count = have.len().min(bytes.len());
        bytes[..count].copy_from_slice(&have[..count]);
        Ok(count)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.lock().media.read(self.inode).len() as u64)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.sync_point(&self.name, Some(self))
    }
}
