//! What the device gives to a program that does nothing but append and flush, in the same folder and the same run. Knows no store.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long a throughput is measured.
const MEASURED: Duration = Duration::from_secs(2);

/// A file with room, as the store's segments have, that is appended to.
#[derive(Debug)]
pub struct Floor {
    file: File,
    end: AtomicU64,
    room: u64,
}

impl Floor {
    /// Makes the file.
    pub fn new(dir: &Path, room: u64) -> Result<Floor> {
        let path = dir.join("floor");
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.with_context(|| path.display().to_string())?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, room)?;
        file.sync_all()?;
        Ok(Floor { file, end: AtomicU64::new(0), room })
    }

    /// Appends and flushes once.
    pub fn flush(&self, bytes: &[u8]) -> Result<Duration> {
        let begun = Instant::now();
        let at = self.end.fetch_add(bytes.len() as u64, Ordering::Relaxed) % self.room;
        self.file.write_all_at(bytes, at)?;
        self.file.sync_data()?;
        Ok(begun.elapsed())
    }

    /// Batches per second of this size with so many flushes in flight.
    pub fn batches_per_second(&self, bytes: usize, in_flight: usize) -> Result<f64> {
        let (batch, begun) = (vec![0x5a; bytes], Instant::now());
        let one = || -> Result<u64> {
            let mut batches = 0;
            while begun.elapsed() < MEASURED {
                self.flush(&batch)?;
                batches += 1;
            }
            Ok(batches)
        };
        let counts = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..in_flight).map(|_| scope.spawn(one)).collect();
            let joined = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))
            });
            joined.collect::<Result<Vec<u64>>>()
        })?;
        Ok(counts.iter().sum::<u64>() as f64 / begun.elapsed().as_secs_f64())
    }
}
