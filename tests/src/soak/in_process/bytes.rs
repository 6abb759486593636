//! Every byte position of small logs: flipped bits and zeroed sectors, in segments and in checkpoints. What was durable is refused
//! by name, the torn tail is cut, and what carries nothing may be ignored; nothing else may happen.

use std::collections::BTreeMap;
use std::sync::Arc;

use store::{Config, Disk, LogSizes, Op, OpenError, Store, Txn};

use super::calls::LEASE_SECONDS;
use super::disk::CrashDisk;
use super::judge::contents;
use super::media::Media;
use super::model::{FirstByte, Map};
use super::random::Random;

const SECTOR_BYTES: usize = 512;
/// Behind the head of a segment stands its first record.
const HEAD_BYTES: usize = 32;
const MASKS: &[u8] = &[0x01, 0x10, 0x80, 0xff];

/// What became of the damages.
#[derive(Debug, Clone, Copy, Default)]
pub struct Damages {
    /// Damages tried.
    pub tried: u64,
    /// Refused, the file and the place named.
    pub refused: u64,
    /// Cut as a torn tail.
    pub cut: u64,
    /// Ignored: everything was there, as before.
    pub ignored: u64,
}

/// A log to be damaged.
struct Subject {
    what: &'static str,
    media: Media,
    config: Config,
    whole: Seen,
    /// Every write in its order.
    writes: Vec<Written>,
}

/// One write.
struct Written {
    file: String,
    begins: usize,
    /// What was there before it.
    before: Seen,
}

#[derive(Debug, Clone, PartialEq)]
struct Seen {
    map: Map,
    revision: i64,
    compacted: i64,
    leases: BTreeMap<i64, Vec<Vec<u8>>>,
}

async fn see(store: &Store) -> Result<Seen, String> {
    let (map, revision) = contents(store)?;
    let mut leases = BTreeMap::new();
    for lease in [1, 2] {
        if let Ok(status) = store.lease_time_to_live(lease).await {
            leases.insert(lease, status.keys.iter().map(|key| key.to_vec()).collect());
        }
    }
    Ok(Seen { map, revision, compacted: store.compact_revision(), leases })
}

/// Tries every damage on logs without a checkpoint, on one, and between several.
///
/// # Errors
/// A damage that was served, dropped in silence, or refused without its name.
pub async fn run() -> Result<Vec<(&'static str, Damages)>, String> {
    let mut all = Vec::new();
    for (what, checkpoint_bytes_min) in
        [("segments alone", 1 << 20), ("a checkpoint and segments", 1500)]
    {
        let subject = make(what, checkpoint_bytes_min).await?;
        all.push((what, subject.damage_all().await?));
    }
    Ok(all)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

async fn make(what: &'static str, checkpoint_bytes_min: u64) -> Result<Subject, String> {
    let log_sizes = LogSizes { segment_bytes: 1024, checkpoint_bytes_min };
    let config = Config { log_sizes, extract: Arc::new(FirstByte), ..Config::new("") };
    let disk = CrashDisk::new(Random::new(7));
    let store = Store::open_on(Arc::new(disk.clone()), config.clone()).map_err(text)?;
    let mut writes = Vec::new();
    for step in 0..30_u8 {
        let before = disk.with_media(|media| media.clone());
        let seen = see(&store).await?;
        write(&store, step).await?;
        let place = disk.with_media(|after| first_difference(&before, after));
        let (file, begins) = place.ok_or("a write is nowhere")?;
        writes.push(Written { file, begins, before: seen });
    }
    let whole = see(&store).await?;
    store.close().await;
    let media = disk.with_media(|media| {
        media.sync_all();
        media.clone()
    });
    let checkpoints = media.names().filter(|(name, _)| name.starts_with("checkpoint-")).count();
    if (checkpoints > 0) != (checkpoint_bytes_min < 1 << 20) {
        return Err(format!("{what}: {checkpoints} checkpoints"));
    }
    Ok(Subject { what, media, config, whole, writes })
}

/// Something of everything that a log holds.
async fn write(store: &Store, step: u8) -> Result<(), String> {
    match step {
        0 | 1 => {
            store.lease_grant(i64::from(step) + 1, LEASE_SECONDS).await.map(drop).map_err(text)?;
        }
        20 => store.lease_revoke(2).await.map(drop).map_err(text)?,
        21 => store.compact(store.revision() - 3).await.map_err(text)?,
        _ => {
            let key = format!("/k/{}", step % 7);
            let value = vec![b'a' + step; 21 + usize::from(step) * 3 % 80];
            let lease = i64::from(step.is_multiple_of(5));
            let put = Op::Put { key: key.into(), value: value.into(), lease };
            let ops = if step % 6 == 5 { vec![put, Op::delete("/k/99")] } else { vec![put] };
            store.txn(Txn::of(ops)).await.map_err(text)?;
        }
    }
    Ok(())
}

fn first_difference(before: &Media, after: &Media) -> Option<(String, usize)> {
    let segments = after.names().filter(|(name, _)| name.starts_with("log-"));
    let mut found = segments.filter_map(|(name, inode)| {
        let Some(old) = before.find(name) else { return Some((name.to_owned(), HEAD_BYTES)) };
        let mut pairs = before.read(old).iter().zip(after.read(inode));
        Some((name.to_owned(), pairs.position(|(one, other)| one != other)?))
    });
    found.next()
}

impl Subject {
    async fn damage_all(&self) -> Result<Damages, String> {
        let mut damages = Damages::default();
        let names: Vec<_> = self.media.names().map(|(name, _)| name.to_owned()).collect();
        for name in &names {
            let inode = self.media.find(name).ok_or("no such file")?;
            let bytes = self.media.read(inode).to_vec();
            for at in 0..bytes.len() {
                for mask in MASKS {
                    let mut media = self.media.clone();
                    media.flip(name, at, *mask);
                    self.judge(media, name, (at, at + 1), &mut damages).await?;
                }
            }
            for start in (0..bytes.len()).step_by(SECTOR_BYTES) {
                let end = bytes.len().min(start + SECTOR_BYTES);
                let mut media = self.media.clone();
                (start..end).for_each(|at| media.flip(name, at, bytes[at]));
                self.judge(media, name, (start, end), &mut damages).await?;
            }
        }
        Ok(damages)
    }

    /// Whether this is what a damage of the tail leaves: of the last write, and of those before it that it touches too. Nothing that is
    /// left says that those were durable.
    fn is_cut(&self, seen: &Seen, name: &str, (start, end): (usize, usize)) -> bool {
        let Some(last) = self.writes.last() else { return false };
        if last.file != name || end <= last.begins {
            return false;
        }
        let here = |write: &Written| write.file == name && write.begins <= start;
        // The one that begins before the damage, or, when only its padding is touched, the next.
        let first = self.writes.iter().rposition(here);
        let touched = first.map(|first| self.writes.iter().skip(first).take(2));
        touched.into_iter().flatten().any(|write| write.before == *seen)
    }

    async fn judge(
        &self,
        media: Media,
        name: &str,
        (start, end): (usize, usize),
        damages: &mut Damages,
    ) -> Result<(), String> {
        damages.tried += 1;
        let place = || format!("{}: {name} at {start}..{end}", self.what);
        let disk = CrashDisk::of(media, Random::new(1));
        let store = match Store::open_on(Arc::new(disk.clone()), self.config.clone()) {
            Ok(store) => store,
            Err(OpenError::Damaged { file, offset, .. }) if file == name && offset < end => {
                damages.refused += 1;
                return Ok(());
            }
            Err(error) => return Err(format!("{}: refused as {error:?}", place())),
        };
        let seen = see(&store).await?;
        store.close().await;
        if seen == self.whole {
            damages.ignored += 1;
        } else if self.is_cut(&seen, name, (start, end)) {
            damages.cut += 1;
        } else {
            return Err(format!("{}: served {seen:?}, expected {:?}", place(), self.whole));
        }
        // What was judged stays judged.
        let again = Store::open_on(Arc::new(disk.clone()), self.config.clone());
        let again = again.map_err(|error| format!("{}: not again: {error:?}", place()))?;
        let same = see(&again).await? == seen;
        again.close().await;
        let names = disk.names().map_err(text)?;
        if same { Ok(()) } else { Err(format!("{}: another state again, {names:?}", place())) }
    }
}
