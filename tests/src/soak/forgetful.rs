//! A file system of our own through FUSE that forgets, at a power cut, whatever was not synced: it holds a [`Media`]. Folders,
//! sockets and modes are not forgotten: they are no part of what is proved. From the cut on every operation fails, so that
//! nothing can be acknowledged behind it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request,
    Session, TimeOrNow, WriteFlags,
};

use super::in_process::media::{Cut, Inode, Media};

/// How long the kernel may rely on what it was told: nobody else changes anything.
const TTL: Duration = Duration::from_secs(60);
/// Inodes of files are the media's behind this; those of other nodes stand before.
const FILES: u64 = 1 << 32;
const ROOT: u64 = 1;
const TYPE_MASK: u32 = 0o170_000;
const SOCKET: u32 = 0o140_000;

#[derive(Debug, Clone)]
struct Node {
    path: String,
    kind: FileType,
}

#[derive(Debug, Default)]
struct State {
    media: Media,
    /// Folders and sockets.
    nodes: BTreeMap<u64, Node>,
    last_node: u64,
    modes: BTreeMap<u64, u16>,
    operations: u64,
    off_at: Option<u64>,
    off: bool,
}

/// The file system. Clones are the same.
#[derive(Debug, Clone)]
pub struct Forgetful {
    state: Arc<Mutex<State>>,
}

impl Default for Forgetful {
    fn default() -> Self {
        let root = Node { path: String::new(), kind: FileType::Directory };
        let nodes = BTreeMap::from([(ROOT, root)]);
        let state = State { nodes, last_node: ROOT, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)) }
    }
}

impl Forgetful {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mounts it; unmounted when the session is dropped.
    ///
    /// # Errors
    /// This machine does not allow it.
    pub fn mount(&self, at: &Path) -> io::Result<BackgroundSession> {
        let mut config = fuser::Config::default();
        config.mount_options = vec![MountOption::FSName("forgetful".to_owned())];
        Session::new(self.clone(), at, &config)?.spawn()
    }

    /// Cuts the power at the operation so many changing ones from now.
    pub fn plan_power_cut(&self, operations: u64) {
        let mut state = self.lock();
        state.off_at = Some(state.operations + operations);
    }

    /// Cuts the power now, unless it is off.
    pub fn power_off(&self) {
        self.lock().off = true;
    }

    /// Whether the power is off.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.lock().off
    }

    /// Changing operations so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// What is there when the power is back. To be called when nothing is mounted.
    pub fn forget(&self, cut: &mut Cut) {
        let mut state = self.lock();
        state.media = state.media.cut(cut);
        state.off_at = None;
        state.off = false;
    }
}

impl State {
    /// An operation that changes something.
    fn operation(&mut self) -> Result<(), Errno> {
        self.alive()?;
        self.operations += 1;
        if self.off_at.is_some_and(|at| at <= self.operations) {
            self.off = true;
        }
        self.alive()
    }

    fn alive(&self) -> Result<(), Errno> {
        if self.off { Err(Errno::EIO) } else { Ok(()) }
    }

    fn path(&self, parent: INodeNo, name: &OsStr) -> Result<String, Errno> {
        let parent = self.nodes.get(&parent.0).ok_or(Errno::ENOENT)?;
        let name = name.to_str().ok_or(Errno::EINVAL)?;
        let separator = if parent.path.is_empty() { "" } else { "/" };
        Ok(format!("{}{separator}{name}", parent.path))
    }

    fn find(&self, path: &str) -> Option<u64> {
        let node = self.nodes.iter().find(|(_, node)| node.path == path).map(|(id, _)| *id);
        node.or_else(|| Some(FILES + self.media.find(path)?))
    }

    fn attributes(&self, id: u64) -> Result<FileAttr, Errno> {
        self.alive()?;
        let (kind, size) = match self.nodes.get(&id) {
            Some(node) => (node.kind, 0),
            None if id > FILES => (FileType::RegularFile, self.media.read(id - FILES).len() as u64),
            None => return Err(Errno::ENOENT),
        };
        let time = SystemTime::UNIX_EPOCH;
        Ok(FileAttr {
            ino: INodeNo(id),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: self.modes.get(&id).copied().unwrap_or(0o700),
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn entry(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        self.alive()?;
        let path = self.path(parent, name)?;
        self.attributes(self.find(&path).ok_or(Errno::ENOENT)?)
    }

    fn make_node(
        &mut self,
        at: (INodeNo, &OsStr),
        kind: FileType,
        mode: u32,
    ) -> Result<FileAttr, Errno> {
        self.alive()?;
        let path = self.path(at.0, at.1)?;
        if self.find(&path).is_some() {
            return Err(Errno::EEXIST);
        }
        self.last_node += 1;
        let id = self.last_node;
        self.nodes.insert(id, Node { path, kind });
        self.modes.insert(id, permissions(mode));
        self.attributes(id)
    }

    fn make_file(&mut self, at: (INodeNo, &OsStr), mode: u32) -> Result<FileAttr, Errno> {
        self.operation()?;
        let path = self.path(at.0, at.1)?;
        if self.find(&path).is_some() {
            return Err(Errno::EEXIST);
        }
        let id = FILES + self.media.create(&path);
        self.modes.insert(id, permissions(mode));
        self.attributes(id)
    }

    fn remove(&mut self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        self.operation()?;
        let path = self.path(parent, name)?;
        if let Some(id) = self.nodes.iter().find(|(_, node)| node.path == path).map(|(id, _)| *id) {
            self.nodes.remove(&id);
            return Ok(());
        }
        if self.media.remove(&path) { Ok(()) } else { Err(Errno::ENOENT) }
    }

    fn rename(&mut self, from: (INodeNo, &OsStr), to: (INodeNo, &OsStr)) -> Result<(), Errno> {
        self.operation()?;
        let (from, to) = (self.path(from.0, from.1)?, self.path(to.0, to.1)?);
        // Folders are not renamed here.
        let is_socket = |node: &Node| node.kind == FileType::Socket && node.path == from;
        let socket = self.nodes.iter().find(|(_, node)| is_socket(node)).map(|(id, _)| *id);
        if let Some(id) = socket {
            self.nodes.retain(|_, node| node.path != to);
            self.nodes.insert(id, Node { path: to, kind: FileType::Socket });
            return Ok(());
        }
        if self.media.rename(&from, &to) { Ok(()) } else { Err(Errno::ENOENT) }
    }

    fn resize(&mut self, id: u64, size: u64) -> Result<(), Errno> {
        self.operation()?;
        let size = usize::try_from(size).map_err(|_| Errno::EFBIG)?;
        self.media.resize(file(id)?, size);
        Ok(())
    }

    fn children(&self, id: u64) -> Result<Vec<(u64, FileType, String)>, Errno> {
        self.alive()?;
        let folder = self.nodes.get(&id).ok_or(Errno::ENOENT)?;
        let prefix =
            if folder.path.is_empty() { String::new() } else { format!("{}/", folder.path) };
        let own = |path: &str| {
            let rest = path.strip_prefix(&prefix)?;
            (!rest.is_empty() && !rest.contains('/')).then(|| rest.to_owned())
        };
        let nodes = self.nodes.iter();
        let nodes = nodes.filter_map(|(id, node)| Some((*id, node.kind, own(&node.path)?)));
        let files = self.media.names();
        let files = files
            .filter_map(|(path, inode)| Some((FILES + inode, FileType::RegularFile, own(path)?)));
        Ok(nodes.chain(files).collect())
    }
}

fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0o600)
}

fn file(id: u64) -> Result<Inode, Errno> {
    id.checked_sub(FILES).ok_or(Errno::EISDIR)
}

macro_rules! answer {
    ($reply:expr, $result:expr, $value:ident => $good:expr) => {
        match $result {
            Ok($value) => $good,
            Err(error) => $reply.error(error),
        }
    };
}

impl Filesystem for Forgetful {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.lock().entry(parent, name);
        answer!(reply, found, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.lock().attributes(ino.0);
        answer!(reply, found, attr => reply.attr(&TTL, &attr));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.lock();
        if let Some(mode) = mode {
            state.modes.insert(ino.0, permissions(mode));
        }
        let resized = size.map_or(Ok(()), |size| state.resize(ino.0, size));
        let attributes = resized.and_then(|()| state.attributes(ino.0));
        answer!(reply, attributes, attr => reply.attr(&TTL, &attr));
    }

    fn mknod(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let mut state = self.lock();
        let made = if mode & TYPE_MASK == SOCKET {
            state.make_node((parent, name), FileType::Socket, mode)
        } else {
            state.make_file((parent, name), mode)
        };
        answer!(reply, made, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let made = self.lock().make_node((parent, name), FileType::Directory, mode);
        answer!(reply, made, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.lock().remove(parent, name);
        answer!(reply, removed, _done => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.lock().remove(parent, name);
        answer!(reply, removed, _done => reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = self.lock().rename((parent, name), (newparent, newname));
        answer!(reply, renamed, _done => reply.ok());
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let alive = self.lock().alive();
        answer!(reply, alive, _done => reply.opened(FileHandle(0), FopenFlags::empty()));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let made = self.lock().make_file((parent, name), mode);
        answer!(reply, made, attr => {
            reply.created(&TTL, &attr, Generation(0), FileHandle(0), FopenFlags::empty());
        });
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.lock();
        let read = state.alive().and_then(|()| {
            let bytes = state.media.read(file(ino.0)?);
            let start = usize::try_from(offset).map_err(|_| Errno::EFBIG)?.min(bytes.len());
            let end = bytes.len().min(start + size as usize);
            Ok(&bytes[start..end])
        });
        answer!(reply, read, bytes => reply.data(bytes));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.lock();
        let written = state.operation().and_then(|()| {
            let offset = usize::try_from(offset).map_err(|_| Errno::EFBIG)?;
            state.media.write(file(ino.0)?, offset, data);
            u32::try_from(data.len()).map_err(|_| Errno::EFBIG)
        });
        answer!(reply, written, count => reply.written(count));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.lock();
        let synced = state.operation().and_then(|()| {
            let moment = state.media.moment();
            state.media.sync(file(ino.0)?, moment);
            Ok(())
        });
        answer!(reply, synced, _done => reply.ok());
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.lock();
        let synced = state.operation().map(|()| {
            let moment = state.media.moment();
            state.media.sync_names(moment);
        });
        answer!(reply, synced, _done => reply.ok());
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let children = self.lock().children(ino.0);
        answer!(reply, children, children => {
            let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
            for (at, (id, kind, name)) in children.into_iter().enumerate().skip(skipped) {
                if reply.add(INodeNo(id), at as u64 + 1, kind, name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = 1 << 20;
        reply.statfs(blocks, blocks, blocks, blocks, blocks, 4096, 255, 4096);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mut state = self.lock();
        let grown = if mode != 0 {
            Err(Errno::EOPNOTSUPP)
        } else {
            let size = state.attributes(ino.0).map(|attr| attr.size);
            size.and_then(|size| state.resize(ino.0, size.max(offset + length)))
        };
        answer!(reply, grown, _done => reply.ok());
    }
}
