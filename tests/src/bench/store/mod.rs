//! The store: in process beside the floor of the device, and (in a file of its own) through gRPC beside etcd. Owns what both share: the folder,
//! the figures' form, the values that are put.

pub mod floor;
pub mod grpc;
pub mod in_process;
pub mod million;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result};
use store::{Op, Txn};

use super::{Spread, Table};

/// What is put: of this size.
pub const VALUE_BYTES: usize = 1024;
/// Values are cut from so many random bytes, so that making them costs the store's cores little.
const NOISE_BYTES: usize = 64 << 10;
/// How many put at once.
pub const WRITERS: usize = 256;

/// Every part, into a folder that is made and removed.
pub fn measure(dir: &Path, table: &mut Table) -> Result<()> {
    let folder = Folder::new(dir)?;
    table.row("load average before", load_average()?, "");
    in_process::measure(&folder.0, table)?;
    grpc::measure(&folder.0, table)?;
    million::measure(&folder.0, table)?;
    table.row("load average after", load_average()?, "");
    Ok(())
}

/// A folder that goes with its owner.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes it, empty.
    pub fn new(dir: &Path) -> Result<Folder> {
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        Ok(Folder(dir.to_owned()))
    }

    /// A folder inside.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The next run removes what is left.
        fs::remove_dir_all(&self.0).ok();
    }
}

/// A key as the API server's are.
#[must_use]
pub fn key(at: usize) -> Vec<u8> {
    format!("/registry/configmaps/default/bench-{at:07}").into_bytes()
}

/// One put of a whole value, which differs from put to put.
#[must_use]
pub fn put(at: usize, round: u64) -> Txn {
    Txn::of(vec![Op::put(key(at), value(at, round))])
}

/// A value that no file system and no device makes smaller.
#[must_use]
pub fn value(at: usize, round: u64) -> Vec<u8> {
    static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let (mut state, mut noise) = (0x9e37_79b9_7f4a_7c15_u64, Vec::with_capacity(NOISE_BYTES));
        while noise.len() < NOISE_BYTES {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            noise.extend_from_slice(&state.to_le_bytes());
        }
        noise
    });
    let own = [(at as u64).to_le_bytes(), round.to_le_bytes()].concat();
    let from = at.wrapping_mul(31) % (NOISE_BYTES - VALUE_BYTES);
    let mut value = NOISE[from..from + VALUE_BYTES].to_vec();
    value[..own.len()].copy_from_slice(&own);
    value
}

/// Microseconds at the middle and near the end.
#[must_use]
pub fn micros(spread: &Spread) -> String {
    format!("p50 {} µs, p99 {} µs", us(spread.quantile(50)), us(spread.quantile(99)))
}

/// Microseconds.
#[must_use]
pub fn us(duration: Duration) -> u128 {
    duration.as_micros()
}

/// The last minute's.
pub fn load_average() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}

/// Time that this process has had on any core.
pub fn cpu_time() -> Result<Duration> {
    let text = fs::read_to_string("/proc/self/schedstat")?;
    let own = |text: &str| text.split_whitespace().next().and_then(|first| first.parse().ok());
    let mut nanos = own(&text).unwrap_or(0);
    for task in fs::read_dir("/proc/self/task")? {
        let path = task?.path();
        let main = path.file_name().is_some_and(|id| *id == *std::process::id().to_string());
        if let Ok(text) = fs::read_to_string(path.join("schedstat"))
            && !main
        {
            nanos += own(&text).unwrap_or(0);
        }
    }
    Ok(Duration::from_nanos(nanos))
}

/// Resident memory of this process, in MB of 1,000,000 bytes.
pub fn resident_megabytes() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
    Ok(kilobytes * 1024 / 1_000_000)
}
