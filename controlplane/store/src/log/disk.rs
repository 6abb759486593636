//! Owns the edge to the disk: the few things the log asks of a folder, and the real folder. Decides nothing. The contract of
//! [`Disk`] is a disk's: what was not synced may be lost or torn by a power cut, in any part and order.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};

/// A flat folder of files.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Names of all files.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Makes a file, empty or with so many zero bytes written; what had the name is replaced.
    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames a file, over another if need be.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_names(&self) -> io::Result<()>;
}

/// An open file.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Fills `bytes` from `offset` and says how many there were.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize>;
    /// Size in bytes, allocated zeros included.
    fn size(&self) -> io::Result<u64>;
    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;
}

/// A real folder, held by one process at a time.
#[derive(Debug)]
pub struct RealDisk {
    dir: PathBuf,
    /// The open folder: when descriptors run out, a new name must still be flushed.
    names: File,
    _lock: File,
}

/// Zeros are written in pieces of this size.
const ZEROS_BYTES: usize = 256 << 10;

const LOCK_NAME: &str = "lock";
const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

impl RealDisk {
    /// Makes the folder where it is missing, and takes it.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] with the holder's process id as text when another process has it.
    pub fn open(dir: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
        let mut lock = options.open(dir.join(LOCK_NAME))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let holder = io::read_to_string(&lock).unwrap_or_default();
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, holder.trim().to_owned()));
            }
            Err(errno) => return Err(errno.into()),
        }
        // For the message above only, and there may be no room; the lock itself dies with the process.
        let named = lock.set_len(0).and_then(|()| lock.seek(SeekFrom::Start(0)));
        if let Err(error) = named.and_then(|_| writeln!(lock, "{}", std::process::id())) {
            tracing::debug!(%error, "the lock does not say whose it is");
        }
        Ok(Self { dir: dir.to_owned(), names: File::open(dir)?, _lock: lock })
    }
}

/// Makes a file that only its owner can read. What had the name is removed and not written to: it may be somebody else's to read, or a
/// link.
pub(crate) fn create_private(path: &Path) -> io::Result<Arc<dyn DiskFile>> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(FILE_MODE);
    Ok(Arc::new(RealFile(options.open(path)?)))
}

fn private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(FILE_MODE);
    options.open(path)
}

/// Opens a file of whatever folder.
pub(crate) fn open_for_reading(path: &Path) -> io::Result<Arc<dyn DiskFile>> {
    Ok(Arc::new(RealFile(File::open(path)?)))
}

impl Disk for RealDisk {
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            names.extend(name.to_str().filter(|name| *name != LOCK_NAME).map(str::to_owned));
        }
        Ok(names)
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = private(&self.dir.join(name))?;
        if bytes > 0 {
            match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
                Ok(()) => {}
                // A file system without preallocation: then the zeros alone take the room.
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
                Err(errno) => return Err(errno.into()),
            }
            let (zeros, mut at) = (vec![0; ZEROS_BYTES], 0);
            while at < bytes {
                let piece = usize::try_from(bytes - at).unwrap_or(ZEROS_BYTES).min(ZEROS_BYTES);
                file.write_all_at(&zeros[..piece], at)?;
                at += piece as u64;
            }
        }
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.dir.join(name))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.dir.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.names.sync_all()
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < bytes.len() {
            let at = offset + filled as u64;
            match self.0.read_at(&mut bytes[filled..], at) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_private_file_is_not_written_into_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("file"), dir.path().join("other"));
        std::fs::write(&other, "other").unwrap();
        for link in [true, false] {
            std::fs::remove_file(&path).ok();
            if link {
                symlink(&other, &path).unwrap();
            } else {
                std::fs::write(&path, "old").unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
            }
            create_private(&path).unwrap().write_at(0, b"secret").unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "secret");
            let mode = std::fs::symlink_metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            assert_eq!(std::fs::read_to_string(&other).unwrap(), "other");
        }
    }
}
