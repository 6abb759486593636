//! Owns a disk in memory that can do what real ones do: lose or tear what was not synced, fail on command, flip bits. For
//! tests of the store and for simulations; keeps nothing on any real disk.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::log::disk::{Disk, DiskFile};

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

#[derive(Debug, Clone)]
enum Write {
    Size(usize),
    Bytes(usize, Vec<u8>),
}

#[derive(Debug, Clone, Default)]
struct Content {
    /// As the running process sees it.
    now: Vec<u8>,
    /// As it is after a power cut that loses everything unsynced.
    durable: Vec<u8>,
    /// With the number of each, in their order.
    unsynced: Vec<(u64, Write)>,
    writes: u64,
}

impl Content {
    fn wrote(&mut self, write: Write) {
        self.writes += 1;
        self.unsynced.push((self.writes, write));
    }

    /// Makes every write up to this number durable.
    fn synced(&mut self, number: u64) {
        let later = self.unsynced.partition_point(|(own, _)| *own <= number);
        for (_, write) in self.unsynced.drain(..later) {
            tear(&mut self.durable, write, &mut || false);
        }
    }
}

#[derive(Debug, Clone)]
enum Naming {
    Set(String, u64),
    Remove(String),
}

#[derive(Debug, Clone, Default)]
struct State {
    contents: BTreeMap<u64, Content>,
    next: u64,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    unsynced_names: Vec<Naming>,
}

#[derive(Debug, Default)]
struct Disks {
    state: State,
    /// Operations that still succeed; `None`: all.
    left: Option<u64>,
    /// Where images go, when asked for.
    images: Option<Vec<FaultyImage>>,
    mark: u64,
    /// What needs room fails.
    full: bool,
    /// No file can be opened.
    no_descriptors: bool,
    sync_takes: Duration,
}

impl Disks {
    fn check_descriptors(&self) -> io::Result<()> {
        if self.no_descriptors { Err(rustix::io::Errno::MFILE.into()) } else { Ok(()) }
    }
}

/// A disk as it was just before a sync.
#[derive(Debug, Clone)]
pub struct FaultyImage {
    state: State,
    /// What [`FaultyDisk::mark`] had last been given.
    pub mark: u64,
}

/// A disk in memory. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct FaultyDisk {
    disks: Arc<Mutex<Disks>>,
}

impl FaultyDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Disks> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After so many further operations that write, each fails.
    pub fn fail_after(&self, operations: u64) {
        self.lock().left = Some(operations);
    }

    /// Keeps an image of the disk before each sync from now on.
    pub fn record_images(&self) {
        self.lock().images = Some(Vec::new());
    }

    /// The images kept so far.
    pub fn take_images(&self) -> Vec<FaultyImage> {
        self.lock().images.take().unwrap_or_default()
    }

    /// Stamps later images, so that a test knows what was acknowledged when they were kept.
    pub fn mark(&self, mark: u64) {
        self.lock().mark = mark;
    }

    /// Whether it has no room for more than was allocated.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// Whether the process has as many files open as it may.
    pub fn set_no_descriptors(&self, none: bool) {
        self.lock().no_descriptors = none;
    }

    /// Each sync of a file takes so long from now on; what is written meanwhile it does not make durable.
    pub fn set_sync_takes(&self, sync_takes: Duration) {
        self.lock().sync_takes = sync_takes;
    }

    /// Flips bits of a file, durably.
    pub fn flip(&self, name: &str, offset: usize, mask: u8) {
        let mut disks = self.lock();
        let State { contents, names, .. } = &mut disks.state;
        if let Some(content) = names.get(name).and_then(|id| contents.get_mut(id)) {
            for bytes in [&mut content.now, &mut content.durable] {
                if let Some(byte) = bytes.get_mut(offset) {
                    *byte ^= mask;
                }
            }
        }
    }

    fn operation(&self) -> io::Result<MutexGuard<'_, Disks>> {
        let mut disks = self.lock();
        match &mut disks.left {
            Some(0) => return Err(io::Error::other("injected fault")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(disks)
    }

    fn sync_point(&self) -> io::Result<MutexGuard<'_, Disks>> {
        let mut disks = self.operation()?;
        let (state, mark) = (disks.state.clone(), disks.mark);
        if let Some(images) = &mut disks.images {
            images.push(FaultyImage { state, mark });
        }
        Ok(disks)
    }

    fn file(&self, id: u64) -> Arc<dyn DiskFile> {
        Arc::new(FaultyFile { disk: self.clone(), id })
    }
}

impl FaultyImage {
    /// How many writes of files are not durable.
    pub fn unsynced_writes(&self) -> usize {
        let bytes = |(_, write): &&(u64, Write)| matches!(write, Write::Bytes(..));
        let contents = self.state.contents.values();
        contents.map(|content| content.unsynced.iter().filter(bytes).count()).sum()
    }

    /// The disk after a power cut at this moment. `lost` is asked for each unsynced sector and name whether it is lost.
    pub fn power_cut(&self, lost: &mut dyn FnMut() -> bool) -> FaultyDisk {
        let mut state = self.state.clone();
        for naming in std::mem::take(&mut state.unsynced_names) {
            if !lost() {
                apply(&mut state.durable_names, naming);
            }
        }
        state.names = state.durable_names.clone();
        for content in state.contents.values_mut() {
            for (_, write) in std::mem::take(&mut content.unsynced) {
                tear(&mut content.durable, write, lost);
            }
            content.now = content.durable.clone();
        }
        let disks = Disks { state, ..Disks::default() };
        FaultyDisk { disks: Arc::new(Mutex::new(disks)) }
    }
}

fn apply(names: &mut BTreeMap<String, u64>, naming: Naming) {
    match naming {
        Naming::Set(name, id) => {
            names.retain(|_, other| *other != id);
            names.insert(name, id);
        }
        Naming::Remove(name) => {
            names.remove(&name);
        }
    }
}

fn put(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

fn tear(content: &mut Vec<u8>, write: Write, lost: &mut dyn FnMut() -> bool) {
    match write {
        Write::Size(size) if !lost() => content.resize(size, 0),
        Write::Size(_) => {}
        Write::Bytes(mut offset, bytes) => {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let in_sector = SECTOR_BYTES - offset % SECTOR_BYTES;
                let (sector, behind) = rest.split_at(in_sector.min(rest.len()));
                if !lost() {
                    put(content, offset, sector);
                }
                offset += sector.len();
                rest = behind;
            }
        }
    }
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, name.to_owned())
}

impl Disk for FaultyDisk {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().state.names.keys().cloned().collect())
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let size = usize::try_from(bytes).map_err(io::Error::other)?;
        let mut disks = self.operation()?;
        disks.check_descriptors()?;
        if disks.full && size > 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let state = &mut disks.state;
        state.next += 1;
        let id = state.next;
        let mut content = Content { now: vec![0; size], ..Content::default() };
        content.wrote(Write::Size(size));
        state.contents.insert(id, content);
        state.names.insert(name.to_owned(), id);
        state.unsynced_names.push(Naming::Set(name.to_owned(), id));
        drop(disks);
        Ok(self.file(id))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let disks = self.lock();
        disks.check_descriptors()?;
        let id = disks.state.names.get(name).copied();
        drop(disks);
        Ok(self.file(id.ok_or_else(|| missing(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disks = self.operation()?;
        let state = &mut disks.state;
        let id = state.names.get(from).copied().ok_or_else(|| missing(from))?;
        let naming = Naming::Set(to.to_owned(), id);
        apply(&mut state.names, naming.clone());
        state.unsynced_names.push(naming);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disks = self.operation()?;
        let state = &mut disks.state;
        state.names.remove(name).ok_or_else(|| missing(name))?;
        state.unsynced_names.push(Naming::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut disks = self.sync_point()?;
        let state = &mut disks.state;
        state.unsynced_names.clear();
        state.durable_names = state.names.clone();
        let kept = state.names.clone();
        state.contents.retain(|id, _| kept.values().any(|named| named == id));
        Ok(())
    }
}

#[derive(Debug)]
struct FaultyFile {
    disk: FaultyDisk,
    id: u64,
}

impl DiskFile for FaultyFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let mut disks = self.disk.operation()?;
        let full = disks.full;
        let content = disks.state.contents.entry(self.id).or_default();
        if full && offset + bytes.len() > content.now.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        put(&mut content.now, offset, bytes);
        content.wrote(Write::Bytes(offset, bytes.to_vec()));
        Ok(())
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let disks = self.disk.lock();
        let content = disks.state.contents.get(&self.id);
        let have = content.and_then(|content| content.now.get(offset..)).unwrap_or_default();
        let count = have.len().min(bytes.len());
        bytes[..count].copy_from_slice(&have[..count]);
        Ok(count)
    }

    fn size(&self) -> io::Result<u64> {
        let disks = self.disk.lock();
        Ok(disks.state.contents.get(&self.id).map_or(0, |content| content.now.len()) as u64)
    }

    fn sync(&self) -> io::Result<()> {
        let mut disks = self.disk.sync_point()?;
        let number = disks.state.contents.get(&self.id).map_or(0, |content| content.writes);
        let sync_takes = disks.sync_takes;
        if !sync_takes.is_zero() {
            // Nobody notifies: a sleep without the lock.
            let waited = Condvar::new().wait_timeout(disks, sync_takes);
            disks = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if let Some(content) = disks.state.contents.get_mut(&self.id) {
            content.synced(number);
        }
        Ok(())
    }
}
