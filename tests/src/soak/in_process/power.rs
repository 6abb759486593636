//! Power cuts under load: images of the disk at random operations of a load, each cut in its own way, opened, compared with every
//! map that there ever was, written to, and opened again.

use std::sync::Arc;

use store::{KeyRange, Op, Range, Revision, Store, Txn, WriteError};
use tokio::task::JoinSet;

use super::calls::{Answer, Call, make};
use super::disk::{CrashDisk, Image};
use super::generate::{Generator, Shape};
use super::judge::contents;
use super::media::Cut;
use super::past::{Acknowledged, Evidence, Past, Write};
use super::random::Random;
use super::watching::{Extent, Wanted, Watching};

/// Cuts of one image.
const CUTS_PER_IMAGE: usize = 3;
/// Calls of one load.
const CALLS: u64 = 60;

/// What was done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cuts {
    /// Power cuts.
    pub cuts: u64,
    /// Cuts after which a write was there that nobody had been told about.
    pub beyond: u64,
    /// Writes acknowledged before their cuts, over all.
    pub acknowledged: u64,
}

impl std::ops::AddAssign for Cuts {
    fn add_assign(&mut self, other: Self) {
        self.cuts += other.cuts;
        self.beyond += other.beyond;
        self.acknowledged += other.acknowledged;
    }
}

/// Runs the load of a seed and cuts the power in it.
///
/// # Errors
/// What was lost, or half there.
pub async fn run(seed: u64) -> Result<Cuts, String> {
    let mut random = Random::new(seed);
    let shape = Shape::random(&mut random);
    let disk = CrashDisk::new(random.split());
    disk.keep_images(30);
    let store = open(&disk, &shape)?;
    let mut past = Past::default();
    let evidence = load(&store, &disk, &shape, &mut random).await?;
    past.explain(store.revision(), &evidence)?;
    store.close().await;
    let mut done = Cuts::default();
    for image in disk.take_images() {
        for _ in 0..CUTS_PER_IMAGE {
            let mut cut = Cut::random(&mut random);
            let how = format!("{cut:?}");
            let beyond = check(&image, &mut cut, &shape, &past).await;
            let beyond = beyond.map_err(|what| {
                format!("{what}\n{how} with {} acknowledged, {shape:?}", image.mark)
            })?;
            done += Cuts { cuts: 1, beyond, acknowledged: image.mark.cast_unsigned() };
        }
    }
    Ok(done)
}

fn open(disk: &CrashDisk, shape: &Shape) -> Result<Store, String> {
    let opened = Store::open_on(Arc::new(disk.clone()), shape.config());
    opened.map_err(|error| format!("the store does not open: {error:?}"))
}

/// Clients that write at the same time; the disk is told what was acknowledged.
async fn load(
    store: &Store,
    disk: &CrashDisk,
    shape: &Shape,
    random: &mut Random,
) -> Result<Evidence, String> {
    let mut generator = Generator::new(random.split(), shape.value_bytes_max);
    let mut evidence = Evidence::default();
    let mut in_flight = JoinSet::new();
    let (mut made, mut acknowledged) = (0, store::FIRST_REVISION);
    loop {
        while made < CALLS && in_flight.len() < shape.in_flight_max {
            made += 1;
            let (txn, floor, store) = (generator.txn(acknowledged, 0), acknowledged, store.clone());
            in_flight.spawn(async move {
                let answer = make(store, Call::Txn(txn.clone())).await;
                (Write::Txn(txn), floor, answer)
            });
        }
        let Some(answered) = in_flight.join_next().await else { return Ok(evidence) };
        let (write, floor, answer) = answered.map_err(|error| error.to_string())?;
        let Answer::Txn(Ok(answer)) = answer else { return Err(format!("{write:?}: {answer:?}")) };
        acknowledged = acknowledged.max(answer.revision);
        disk.mark(acknowledged);
        evidence.acknowledged.push(Acknowledged { write, floor, answer });
    }
}

/// Says whether more was there than acknowledged.
async fn check(image: &Image, cut: &mut Cut, shape: &Shape, past: &Past) -> Result<u64, String> {
    let disk = image.cut(cut);
    let store = open(&disk, shape)?;
    let (found, revision) = contents(&store)?;
    if revision < image.mark {
        return Err(format!("the store is at {revision}, but {} was acknowledged", image.mark));
    }
    let expected = past.at(revision).ok_or_else(|| format!("revision {revision} never was"))?;
    if *expected != found {
        return Err(format!("at {revision} there is {found:?}, expected {expected:?}"));
    }
    window(&store, past, revision).await?;
    let after: Result<_, WriteError> = store.txn(Txn::of(vec![Op::put("/after", "cut")])).await;
    let written = after.map_err(|error| format!("no write after the cut: {error}"))?;
    if written.revision != revision + 1 {
        return Err(format!("written at {}, expected {}", written.revision, revision + 1));
    }
    let (expected, _) = contents(&store)?;
    store.close().await;
    let store = open(&disk.after_cut(cut), shape)?;
    let (found, again) = contents(&store)?;
    store.close().await;
    if (again, &found) != (revision + 1, &expected) {
        return Err(format!("at {again} there is {found:?}, expected {expected:?}"));
    }
    Ok(u64::from(revision > image.mark))
}

/// The window of the history is there, exact.
async fn window(store: &Store, past: &Past, revision: Revision) -> Result<(), String> {
    let from = store.compact_revision() + 1;
    let keys = KeyRange::Prefix(Vec::new());
    let wanted = Wanted { keys: keys.clone(), index: None, from: Some(from), events_max: 1 };
    let mut window = Watching::start(store, wanted, false)
        .map_err(|error| format!("no watch of the window: {error}"))?;
    window.catch_up(revision).await?;
    window.check(past.changes(), Extent::All(revision))?;
    let range = Range { revision: Some(from.min(revision)), ..Range::all(keys) };
    store.range(&range).map(drop).map_err(|error| format!("{range:?}: {error}"))
}
