//! What a disk holds, and what a power cut makes of it: whatever was not synced is lost, torn or kept, each piece for itself,
//! over all files and names. Knows no store; the disk in memory and the FUSE file system both stand on it.
//!
//! A piece is a sector of a write; one that is torn keeps its first bytes only. A sync makes durable what was written before
//! the sync began. A sync that failed leaves its writes *doomed*, as Linux does: readers see them until the power is cut, and no
//! later sync makes them durable.

use std::collections::{BTreeMap, BTreeSet};

use super::random::Random;

/// What a disk usually writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// Which file.
pub type Inode = u64;

#[derive(Debug, Clone)]
enum Change {
    Size(usize),
    Bytes(usize, Vec<u8>),
}

#[derive(Debug, Clone)]
struct Write {
    at: u64,
    doomed: bool,
    change: Change,
}

impl Write {
    fn overlaps(&self, other: &Self) -> bool {
        match (&self.change, &other.change) {
            (Change::Bytes(own, bytes), Change::Bytes(offset, others)) => {
                *own < offset + others.len() && *offset < own + bytes.len()
            }
            // A later size, or bytes behind it, decide the size.
            _ => true,
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Content {
    /// As running processes see it.
    now: Vec<u8>,
    /// As it is after a cut that loses everything.
    durable: Vec<u8>,
    unsynced: Vec<Write>,
}

#[derive(Debug, Clone)]
enum Naming {
    Set(String, Inode),
    Move { from: String, to: String, inode: Inode },
    Remove(String),
}

/// The contents of a disk.
#[derive(Debug, Clone, Default)]
pub struct Media {
    contents: BTreeMap<Inode, Content>,
    last_inode: Inode,
    names: BTreeMap<String, Inode>,
    durable_names: BTreeMap<String, Inode>,
    unsynced_names: Vec<(u64, Naming)>,
    /// Counts writes and namings; a sync covers those before its beginning.
    clock: u64,
}

/// How a power cut treats what was not synced.
#[derive(Debug, Clone)]
pub struct Cut {
    /// Of a hundred pieces, so many are lost.
    pub lost_percent: u64,
    /// Of a hundred pieces that are kept, so many keep their first bytes only.
    pub torn_percent: u64,
    /// Decides.
    pub random: Random,
}

impl Cut {
    /// A cut of any harshness.
    #[must_use]
    pub fn random(random: &mut Random) -> Self {
        let lost_percent = random.pick(&[0, 10, 50, 50, 90, 100]);
        let torn_percent = random.pick(&[0, 0, 20]);
        Self { lost_percent, torn_percent, random: random.split() }
    }

    fn loses(&mut self) -> bool {
        self.random.percent(self.lost_percent)
    }
}

impl Media {
    /// Names of all files, in order.
    pub fn names(&self) -> impl Iterator<Item = (&str, Inode)> {
        self.names.iter().map(|(name, inode)| (name.as_str(), *inode))
    }

    /// The file of a name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Inode> {
        self.names.get(name).copied()
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The moment that a sync beginning now covers.
    #[must_use]
    pub fn moment(&self) -> u64 {
        self.clock
    }

    /// Makes a file; one that has the name is emptied, for whoever has it open as well.
    pub fn create(&mut self, name: &str) -> Inode {
        if let Some(inode) = self.find(name) {
            self.resize(inode, 0);
            return inode;
        }
        self.last_inode += 1;
        let inode = self.last_inode;
        self.contents.insert(inode, Content::default());
        self.names.insert(name.to_owned(), inode);
        let at = self.tick();
        self.unsynced_names.push((at, Naming::Set(name.to_owned(), inode)));
        inode
    }

    /// Renames a file, over another if need be. `false`: there is none.
    pub fn rename(&mut self, from: &str, to: &str) -> bool {
        let Some(inode) = self.names.remove(from) else { return false };
        self.names.insert(to.to_owned(), inode);
        let at = self.tick();
        let naming = Naming::Move { from: from.to_owned(), to: to.to_owned(), inode };
        self.unsynced_names.push((at, naming));
        true
    }

    /// Removes a name. `false`: there is none.
    pub fn remove(&mut self, name: &str) -> bool {
        if self.names.remove(name).is_none() {
            return false;
        }
        let at = self.tick();
        self.unsynced_names.push((at, Naming::Remove(name.to_owned())));
        true
    }

    /// Writes bytes; a file too short grows.
    pub fn write(&mut self, inode: Inode, offset: usize, bytes: &[u8]) {
        let at = self.tick();
        let content = self.contents.entry(inode).or_default();
        put(&mut content.now, offset, bytes);
        let change = Change::Bytes(offset, bytes.to_vec());
        content.unsynced.push(Write { at, doomed: false, change });
    }

    /// Cuts a file or fills it up with zeros.
    pub fn resize(&mut self, inode: Inode, size: usize) {
        let at = self.tick();
        let content = self.contents.entry(inode).or_default();
        content.now.resize(size, 0);
        content.unsynced.push(Write { at, doomed: false, change: Change::Size(size) });
    }

    /// What running processes read.
    #[must_use]
    pub fn read(&self, inode: Inode) -> &[u8] {
        self.contents.get(&inode).map_or(&[], |content| &content.now)
    }

    /// Makes a file's writes up to `moment` durable.
    pub fn sync(&mut self, inode: Inode, moment: u64) {
        let Some(content) = self.contents.get_mut(&inode) else { return };
        for write in std::mem::take(&mut content.unsynced) {
            if write.at > moment || write.doomed {
                content.unsynced.push(write);
            } else {
                // What is durable is not undone by what was written before it.
                let earlier = |other: &Write| other.at < write.at && other.overlaps(&write);
                content.unsynced.retain(|other| !earlier(other));
                apply(&mut content.durable, write.change);
            }
        }
    }

    /// A sync of a file that failed.
    pub fn doom(&mut self, inode: Inode, moment: u64) {
        let writes = self.contents.get_mut(&inode).map(|content| &mut content.unsynced);
        for write in writes.into_iter().flatten().filter(|write| write.at <= moment) {
            write.doomed = true;
        }
    }

    /// Makes names up to `moment` durable.
    pub fn sync_names(&mut self, moment: u64) {
        for (at, naming) in std::mem::take(&mut self.unsynced_names) {
            if at > moment {
                self.unsynced_names.push((at, naming));
            } else {
                rename(&mut self.durable_names, naming);
            }
        }
        self.forget_unnamed();
    }

    /// Makes everything durable.
    pub fn sync_all(&mut self) {
        self.durable_names = self.names.clone();
        self.unsynced_names.clear();
        for content in self.contents.values_mut() {
            content.durable = content.now.clone();
            content.unsynced.clear();
        }
        self.forget_unnamed();
    }

    /// Flips bits of a durable byte.
    pub fn flip(&mut self, name: &str, offset: usize, mask: u8) {
        let content = self.names.get(name).and_then(|inode| self.contents.get_mut(inode));
        if let Some(Content { now, durable, .. }) = content {
            for byte in [now.get_mut(offset), durable.get_mut(offset)].into_iter().flatten() {
                *byte ^= mask;
            }
        }
    }

    /// The disk after a power cut now.
    #[must_use]
    pub fn cut(&self, how: &mut Cut) -> Self {
        let mut after = self.clone();
        for (_, naming) in std::mem::take(&mut after.unsynced_names) {
            if !how.loses() {
                rename(&mut after.durable_names, naming);
            }
        }
        after.names = after.durable_names.clone();
        for content in after.contents.values_mut() {
            for write in std::mem::take(&mut content.unsynced) {
                tear(&mut content.durable, write.change, how);
            }
            content.now = content.durable.clone();
        }
        after.forget_unnamed();
        after
    }

    fn forget_unnamed(&mut self) {
        if !self.unsynced_names.is_empty() {
            return;
        }
        let named: BTreeSet<_> = self.names.values().chain(self.durable_names.values()).collect();
        self.contents.retain(|inode, _| named.contains(inode));
    }
}

fn put(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

fn apply(content: &mut Vec<u8>, change: Change) {
    match change {
        Change::Size(size) => content.resize(size, 0),
        Change::Bytes(offset, bytes) => put(content, offset, &bytes),
    }
}

fn rename(names: &mut BTreeMap<String, Inode>, naming: Naming) {
    match naming {
        Naming::Set(name, inode) => {
            names.insert(name, inode);
        }
        Naming::Move { from, to, inode } => {
            names.retain(|name, other| *name != from || *other != inode);
            names.insert(to, inode);
        }
        Naming::Remove(name) => {
            names.remove(&name);
        }
    }
}

fn tear(content: &mut Vec<u8>, change: Change, how: &mut Cut) {
    let (mut offset, bytes) = match change {
        Change::Size(size) => {
            if !how.loses() {
                content.resize(size, 0);
            }
            return;
        }
        Change::Bytes(offset, bytes) => (offset, bytes),
    };
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let in_sector = SECTOR_BYTES - offset % SECTOR_BYTES;
        let (sector, behind) = rest.split_at(in_sector.min(rest.len()));
        if !how.loses() {
            let torn = how.random.percent(how.torn_percent);
            let kept = if torn { how.random.index(sector.len()) } else { sector.len() };
            put(content, offset, &sector[..kept]);
        }
        offset += sector.len();
        rest = behind;
    }
}
