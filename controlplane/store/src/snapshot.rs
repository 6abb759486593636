//! Owns snapshots: one revision of the whole store as one file, taken while the store serves, checked before any of it is believed, and
//! made a store again. Knows no schedule and no command line.
//!
//! The file:
//!
//! | part | what |
//! |---|---|
//! | head | 32 bytes as every file of the log has (`log::record`), with `FLOTSNP`, format version 1, the revision and a salt of 0 |
//! | records | `Begin`, leases, entries in the order of keys, `End`, each with its CRC-32C (`log::dump`) |
//! | padding | zeros up to the next multiple of 512, so that `etcdctl snapshot save` knows a whole file by its size |
//! | trailer | SHA-256 of all bytes before it, 32 bytes; nothing behind it |
//!
//! Keys that live in memory only are not in it. Values that are sealed in the log are sealed in it.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use imbl::OrdMap;
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use tokio::time::Instant;

use crate::log::OpenError;
use crate::log::checkpoint::{self, CheckpointInfo};
use crate::log::disk::{self, Disk, DiskFile, RealDisk};
pub use crate::log::dump::DumpError;
use crate::log::dump::{self, Dump, Extent, PIECE_BYTES, Records};
use crate::log::payload::{RawEntry, Reader as Payload};
use crate::log::record::{FILE_HEAD_BYTES, FORMAT_VERSION, FileHead, FileKind};
use crate::log::{Replay, sync_names};
use crate::revision::Revision;
use crate::seal::Seal;
use crate::state::Snapshot;
use crate::txn::WriteError;
use crate::{LEASE_TTL_SECONDS_MIN, Store};

/// A piece of a snapshot is of about this size: so long a writer may have to wait for a core.
const READER_PIECE_BYTES: usize = 64 << 10;
/// A snapshot leaves at most so fast, that it takes a small part of the machine from those who write.
const READER_BYTES_PER_SECOND: u64 = 64 << 20;
/// A file being written is flushed so often, that no flush of the log waits for much of it.
const SAVE_FLUSH_BYTES: u64 = 4 << 20;

/// What is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The revision that it is of; after a restore, that of the restored store.
    pub revision: Revision,
    /// How many keys it has.
    pub keys: usize,
    /// Bytes of their keys and values, sealed values as they are.
    pub bytes: u64,
    /// Size of the file.
    pub file_bytes: u64,
    /// The file's checksum, in hexadecimal digits.
    pub sha256: String,
}

/// Why a snapshot can't be written, read or restored.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file can't be used.
    #[error("{file}: cannot be {doing}: {source}")]
    Io {
        /// The file or folder.
        file: String,
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Not a snapshot at all.
    #[error("{file} is not a snapshot of this program: its first bytes are others")]
    Foreign {
        /// The file.
        file: String,
    },
    /// Written by a newer program.
    #[error(
        "{file} is a snapshot of format version {version}; this program reads up to {supported}"
    )]
    Newer {
        /// The file.
        file: String,
        /// Its version.
        version: u8,
        /// What this program reads.
        supported: u8,
    },
    /// Not what was written.
    #[error("the snapshot {file} is damaged at offset {offset}: {what}")]
    Damaged {
        /// The file.
        file: String,
        /// Where.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// There is a store already; a restore replaces nothing.
    #[error("{dir} holds a store already ({file}); restore into an empty folder")]
    Occupied {
        /// The folder.
        dir: String,
        /// A file in it.
        file: String,
    },
    /// A value can't be sealed.
    #[error(transparent)]
    Seal(#[from] DumpError),
    /// The leases are the datastore's, and it does not tell them.
    #[error("the leases can't be read: {0}")]
    Leases(WriteError),
}

fn failed(file: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> SnapshotError {
    let file = file.display().to_string();
    move |source| SnapshotError::Io { file, doing, source }
}

/// One revision of a store on its way out, however the store goes on. What it needs in memory is what is overwritten meanwhile.
pub struct Reader {
    dump: Dump,
    /// Who is asked for the leases, before anything is given.
    lessor: Option<Store>,
    hash: Option<Context>,
    begun: Option<Instant>,
    given: u64,
    more: bool,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (revision, given) = (self.revision(), self.given);
        f.debug_struct("Reader").field("revision", &revision).field("given", &given).finish()
    }
}

impl Reader {
    pub(crate) fn new(
        snapshot: Snapshot,
        seal: Option<Arc<dyn Seal>>,
        lessor: Option<Store>,
    ) -> Self {
        let reserved = snapshot.revision;
        let dump = Dump::new(snapshot, reserved, seal);
        Self { dump, lessor, hash: Some(Context::new(&SHA256)), begun: None, given: 0, more: true }
    }

    /// The revision that the snapshot is of.
    pub fn revision(&self) -> Revision {
        self.dump.snapshot().revision
    }

    /// About how many bytes are still to come.
    pub fn left_bytes(&self) -> u64 {
        let snapshot = self.dump.snapshot();
        // The head of a record and its numbers beside key and value.
        let whole = snapshot.bytes as u64 + snapshot.map.len() as u64 * 64;
        if self.hash.is_none() { 0 } else { whole.saturating_sub(self.given).max(1) }
    }

    /// The next piece of the file; `None`: that was all. Takes its time: who writes to the store comes first.
    ///
    /// # Errors
    /// A value can't be sealed, or the leases can't be read; there is no more of it then.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SnapshotError> {
        if let Some(store) = self.lessor.take() {
            let leases = leases_of(&store, self.dump.snapshot()).await;
            // What can't be begun gives nothing.
            let leases = leases.inspect_err(|_| self.hash = None);
            self.dump.set_leases(leases.map_err(SnapshotError::Leases)?);
        }
        let begun = *self.begun.get_or_insert_with(Instant::now);
        let due = Duration::from_micros(self.given * 1_000_000 / READER_BYTES_PER_SECOND);
        tokio::time::sleep_until(begun + due).await;
        Ok(self.piece()?)
    }

    fn piece(&mut self) -> Result<Option<Bytes>, DumpError> {
        let Some(mut hash) = self.hash.take() else { return Ok(None) };
        let mut piece = Vec::with_capacity(READER_PIECE_BYTES + READER_PIECE_BYTES / 8);
        if self.given == 0 {
            let sequence = self.revision().cast_unsigned();
            piece.extend(FileHead { sequence, salt: 0 }.encode(FileKind::Snapshot));
        }
        self.more = self.dump.append(&mut piece, READER_PIECE_BYTES)?;
        if !self.more {
            let bytes = self.given + piece.len() as u64;
            let padding = padded(bytes) - bytes;
            piece.extend((0..padding).map(|_| 0));
        }
        hash.update(&piece);
        if self.more {
            self.hash = Some(hash);
        } else {
            piece.extend_from_slice(hash.finish().as_ref());
        }
        self.given += piece.len() as u64;
        Ok(Some(piece.into()))
    }
}

/// The lengths of the leases that a state's keys die with, from whoever has them. A lease that is over by now has its keys die soon.
async fn leases_of(store: &Store, state: &Snapshot) -> Result<OrdMap<i64, u64>, WriteError> {
    let ids = state.map.values().map(|entry| entry.lease).filter(|id| *id != 0);
    let mut leases = OrdMap::new();
    for id in ids.collect::<BTreeSet<_>>() {
        let granted_seconds = match store.lease_time_to_live(id).await {
            Ok(status) => status.granted_seconds,
            Err(WriteError::LeaseNotFound { .. }) => LEASE_TTL_SECONDS_MIN,
            Err(error) => return Err(error),
        };
        leases.insert(id, granted_seconds.unsigned_abs());
    }
    Ok(leases)
}

/// Where the trailer begins.
fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(512)
}

/// Writes a snapshot into a file of mode 0600, which has its name only when all of it is durable; one that was there is replaced.
///
/// # Errors
/// The file can't be written, or a value can't be sealed.
pub async fn save(mut reader: Reader, file: &Path) -> Result<(), SnapshotError> {
    let unfinished = PathBuf::from(format!("{}{}", file.display(), checkpoint::UNFINISHED));
    let made = disk::create_private(&unfinished).map_err(failed(&unfinished, "made"))?;
    let written = save_pieces(&mut reader, &made, &unfinished).await;
    let renamed = written.and_then(|()| {
        std::fs::rename(&unfinished, file).map_err(failed(file, "named"))?;
        let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty());
        let dir = dir.unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed(dir, "flushed"))
    });
    if renamed.is_err() {
        // Of no use to anybody.
        std::fs::remove_file(&unfinished).ok();
    }
    renamed
}

async fn save_pieces(
    reader: &mut Reader,
    file: &Arc<dyn DiskFile>,
    name: &Path,
) -> Result<(), SnapshotError> {
    let (mut offset, mut unflushed) = (0, 0);
    loop {
        let piece = reader.next().await?;
        let last = piece.is_none();
        unflushed += piece.as_ref().map_or(0, Bytes::len) as u64;
        let flush = last || unflushed >= SAVE_FLUSH_BYTES;
        let (own, at, bytes) = (file.clone(), offset, piece.unwrap_or_default());
        offset += bytes.len() as u64;
        let write = move || {
            own.write_at(at, &bytes)?;
            if flush { own.sync() } else { Ok(()) }
        };
        let written = tokio::task::spawn_blocking(write).await;
        let written = written.unwrap_or_else(|stopped| Err(io::Error::other(stopped)));
        written.map_err(failed(name, "written"))?;
        if last {
            return Ok(());
        }
        if flush {
            unflushed = 0;
        }
    }
}

/// Reads all of a snapshot and checks it. Blocks.
///
/// # Errors
/// It can't be read, or is not what was written: where, and what is wrong.
pub fn verify(file: &Path) -> Result<SnapshotInfo, SnapshotError> {
    let mut counted = Counted { keys: 0, bytes: 0 };
    let (info, _) = check(file, &mut counted)?;
    Ok(SnapshotInfo { keys: counted.keys, bytes: counted.bytes, ..info })
}

/// Makes a store of a snapshot in a folder that holds none. Its revision is that of the snapshot, or `revision_floor` where that is
/// higher; every change before is compacted. Nothing is there before all of it is checked and durable. Blocks.
///
/// # Errors
/// The snapshot can't be read or is damaged; the folder holds a store, is in use, or can't be written.
pub fn restore(
    file: &Path,
    dir: &Path,
    revision_floor: Revision,
) -> Result<SnapshotInfo, SnapshotError> {
    let info = verify(file)?;
    let disk = RealDisk::open(dir).map_err(failed(dir, "taken"))?;
    let names = disk.names().map_err(failed(dir, "listed"))?;
    let ours = |name: &&String| checkpoint::is_one(name) || crate::log::segment::is_one(name);
    if let Some(own) = names.iter().find(ours) {
        let (dir, file) = (dir.display().to_string(), own.clone());
        return Err(SnapshotError::Occupied { dir, file });
    }
    let revision = info.revision.max(revision_floor);
    let base = CheckpointInfo { sequence: RESTORED_SEQUENCE, revision };
    let mut read = Ok(());
    let saved = checkpoint::save(&disk, base, |own| {
        let mut copy = Copy::new(own, base);
        read = check(file, &mut copy).map(drop);
        // What changed since it was verified gets no name.
        if read.is_ok() { copy.finish() } else { Err(io::ErrorKind::InvalidData.into()) }
    });
    read?;
    let at = |name: &str| dir.join(name);
    saved.map_err(|error| failed(&at(&error.file), "written")(error.source))?;
    sync_names(&disk).map_err(|error| failed(dir, "flushed")(error.source))?;
    Ok(SnapshotInfo { revision, ..info })
}

/// The log of a restored store goes on behind this record, which it never had.
const RESTORED_SEQUENCE: u64 = 1;

/// Reads all of a snapshot into `replay`. What was read is not to be believed before this returns.
fn check(path: &Path, replay: &mut dyn Replay) -> Result<(SnapshotInfo, FileHead), SnapshotError> {
    let name = path.display().to_string();
    let file = disk::open_for_reading(path).map_err(failed(path, "opened"))?;
    let mut magic = [0; FILE_HEAD_BYTES];
    let have = file.read_at(0, &mut magic).map_err(failed(path, "read"))?;
    if !FileKind::Snapshot.begins(&magic[..have]) {
        return Err(SnapshotError::Foreign { file: name });
    }
    let read = dump::read(&*file, &name, FileKind::Snapshot, replay, Extent::Whole);
    let read = read.map_err(|error| of_open_error(error, path))?;
    let damaged = |offset: u64, what| {
        let file = name.clone();
        Err(SnapshotError::Damaged { file, offset, what })
    };
    if read.head.sequence != read.revision.cast_unsigned() {
        return damaged(8, "the head's revision is not that of the records");
    }
    let file_bytes = file.size().map_err(failed(path, "read"))?;
    let hashed = padded(read.offset as u64);
    if file_bytes != hashed + SHA256_OUTPUT_LEN as u64 {
        return damaged(file_bytes.min(hashed), "the file does not end behind its checksum");
    }
    let (own, found) = sha256(path, hashed).map_err(failed(path, "read"))?;
    if own != found {
        return damaged(hashed, "the checksum of the file is not that of its bytes");
    }
    let sha256 = own.iter().map(|byte| format!("{byte:02x}")).collect();
    let info = SnapshotInfo { revision: read.revision, keys: 0, bytes: 0, file_bytes, sha256 };
    Ok((info, read.head))
}

fn of_open_error(error: OpenError, path: &Path) -> SnapshotError {
    match error {
        OpenError::Damaged { file, offset, what, .. } => {
            SnapshotError::Damaged { file, offset: offset as u64, what }
        }
        OpenError::Newer { file, version, .. } => {
            SnapshotError::Newer { file, version, supported: FORMAT_VERSION }
        }
        OpenError::Io { source, .. } => failed(path, "read")(source),
        other => failed(path, "read")(io::Error::other(other)),
    }
}

/// The checksum of the first bytes of a file, and the one that stands behind them.
fn sha256(path: &Path, bytes: u64) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut file = File::open(path)?;
    let (mut hash, mut buffer) = (Context::new(&SHA256), vec![0; PIECE_BYTES]);
    let mut left = bytes;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        file.read_exact(&mut buffer[..wanted])?;
        hash.update(&buffer[..wanted]);
        left -= wanted as u64;
    }
    let mut found = vec![0; SHA256_OUTPUT_LEN];
    file.read_exact(&mut found)?;
    Ok((hash.finish().as_ref().to_vec(), found))
}

/// Counts what it is told.
struct Counted {
    keys: usize,
    bytes: u64,
}

impl Replay for Counted {
    fn begin(&mut self, _revision: Revision, _reserved: Revision) {}

    fn entry(&mut self, entry: RawEntry<'_>) {
        self.keys += 1;
        self.bytes += (entry.key.len() + entry.value.len()) as u64;
    }

    fn lease(&mut self, _lease: i64, _ttl_seconds: u64) {}

    fn change(&mut self, _revision: Revision, _ops: Payload<'_>) -> Option<()> {
        None
    }
}

/// Writes what it is told into a checkpoint.
struct Copy<'a> {
    file: &'a dyn DiskFile,
    records: Records,
    buffer: Vec<u8>,
    offset: u64,
    written: io::Result<()>,
}

impl<'a> Copy<'a> {
    fn new(file: &'a dyn DiskFile, info: CheckpointInfo) -> Self {
        let records = Records { count: 0, revision: info.revision };
        let buffer = checkpoint::head(info).to_vec();
        Self { file, records, buffer, offset: 0, written: Ok(()) }
    }

    fn piece(&mut self, bytes_min: usize) {
        if self.buffer.len() < bytes_min || self.written.is_err() {
            return;
        }
        self.written = self.file.write_at(self.offset, &self.buffer);
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
    }

    fn finish(mut self) -> io::Result<()> {
        self.records.end(&mut self.buffer);
        self.piece(0);
        self.written
    }
}

impl Replay for Copy<'_> {
    fn begin(&mut self, _revision: Revision, _reserved: Revision) {
        self.records.begin(&mut self.buffer, self.records.revision);
    }

    fn entry(&mut self, entry: RawEntry<'_>) {
        self.records.entry(&mut self.buffer, entry);
        self.piece(PIECE_BYTES);
    }

    fn lease(&mut self, lease: i64, ttl_seconds: u64) {
        self.records.lease(&mut self.buffer, lease, ttl_seconds);
    }

    fn change(&mut self, _revision: Revision, _ops: Payload<'_>) -> Option<()> {
        None
    }
}
