//! One history: a store on a disk in memory, clients that call it at the same time, watches, and ends of all kinds: closed,
//! power cut, power cut while it recovers, a disk that fails. After each end the store is opened again, and what is there is
//! held against what clients were told (`judge`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use store::{Config, KeyRange, OpenError, Range, ReadError, Revision, Store};
use tokio::task::{Id, JoinSet};

use super::calls::{Answer, Call, Made, make};
use super::disk::CrashDisk;
use super::generate::{Generator, Shape};
use super::judge::Read;
use super::leases::{LeaseBook, Moment};
use super::media::Cut;
use super::past::{Past, Unknown};
use super::random::Random;
use super::watching::{Wanted, Watching};

/// How long all calls in flight may take to be answered.
const QUIET_DEADLINE: Duration = Duration::from_secs(30);
/// How often the power goes while one store recovers.
const CUTS_IN_RECOVERY_MAX: u32 = 3;

/// What a history did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Calls made.
    pub calls: u64,
    /// Calls that never got a clear answer.
    pub unknown: u64,
    /// Watches checked.
    pub watches: u64,
    /// Power cuts.
    pub cuts: u64,
    /// Times that a store was opened.
    pub opened: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.unknown += other.unknown;
        self.watches += other.watches;
        self.cuts += other.cuts;
        self.opened += other.opened;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Cut,
    Failing,
}

/// A history while it happens.
pub(super) struct History {
    pub(super) random: Random,
    pub(super) shape: Shape,
    pub(super) config: Config,
    generator: Generator,
    pub(super) disk: CrashDisk,
    pub(super) past: Past,
    pub(super) leases: LeaseBook,
    next_lease: i64,
    /// The highest revision that anybody was told of.
    pub(super) seen: Revision,
    pub(super) compacted: Revision,
    pub(super) compaction_tried: Revision,
    moment: Moment,
    pub(super) calls: Vec<Made>,
    in_flight: JoinSet<Answer>,
    places: BTreeMap<Id, usize>,
    pub(super) reads: Vec<Read>,
    /// Sees everything, so that writes without an answer can be found.
    pub(super) spy: Option<Watching>,
    pub(super) watches: Vec<Watching>,
    pub(super) resumed: Vec<(Wanted, bool)>,
    /// Writes without an answer that were not there when their store ended.
    pub(super) left_unknown: Vec<Unknown>,
    pub(super) tally: Tally,
    /// What happened, for whoever looks for the reason of a failure.
    pub(super) story: Vec<String>,
}

/// Runs the history of a seed.
///
/// # Errors
/// What the store did wrong.
pub async fn run(seed: u64) -> Result<Tally, String> {
    let mut random = Random::new(seed);
    let shape = Shape::random(&mut random);
    let generator = Generator::new(random.split(), shape.value_bytes_max);
    let disk = CrashDisk::new(random.split());
    let mut history = History {
        config: shape.config(),
        shape,
        generator,
        disk,
        past: Past::default(),
        leases: LeaseBook::default(),
        next_lease: 1,
        seen: store::FIRST_REVISION,
        compacted: 0,
        compaction_tried: 0,
        moment: 1,
        calls: Vec::new(),
        in_flight: JoinSet::new(),
        places: BTreeMap::new(),
        reads: Vec::new(),
        spy: None,
        watches: Vec::new(),
        resumed: Vec::new(),
        left_unknown: Vec::new(),
        tally: Tally::default(),
        story: Vec::new(),
        random,
    };
    history.all().await.map_err(|what| {
        history.story.extend(history.disk.trail());
        format!("{what}\n{}", history.story.join("\n"))
    })?;
    Ok(history.tally)
}

impl History {
    async fn all(&mut self) -> Result<(), String> {
        self.story.push(format!("{:?}", self.shape));
        let epochs = 2 + self.random.below(4);
        for _ in 0..epochs {
            self.epoch().await?;
        }
        let store = self.open()?;
        self.check_recovered(&store).await?;
        store.close().await;
        Ok(())
    }

    /// One life of a store, and its end.
    async fn epoch(&mut self) -> Result<(), String> {
        let store = self.open()?;
        self.check_recovered(&store).await?;
        let end = match self.random.below(10) {
            0..3 => End::Closed,
            3 => End::Failing,
            _ => End::Cut,
        };
        let at = 1 + self.random.below(self.random.clone().pick(&[10, 40, 150]));
        match end {
            End::Closed => {}
            End::Cut => self.disk.plan_power_cut(at),
            End::Failing => self.disk.plan_failures(at, 1 + at % 3),
        }
        self.story.push(format!("open at {}; {end:?} after {at}", store.revision()));
        self.begin(&store)?;
        self.load(&store).await?;
        if end == End::Cut {
            self.disk.power_off();
        }
        self.quiet(&store).await?;
        self.check_running(&store).await?;
        self.disk.gate(false);
        let handle = store.clone();
        store.close().await;
        self.check_closed(&handle, end == End::Closed).await?;
        drop(handle);
        let (seen, unknown) = (self.seen, self.left_unknown.len());
        self.story.push(format!("ended at {seen}, {unknown} writes unknown"));
        if end == End::Cut {
            self.tally.cuts += 1;
            let mut cut = Cut::random(&mut self.random);
            self.story.extend(self.disk.trail());
            self.disk = self.disk.after_cut(&mut cut);
            self.story.push(format!("power cut: {cut:?}"));
        } else {
            self.story.extend(self.disk.trail());
            self.disk = self.disk.copy();
        }
        Ok(())
    }

    fn open(&mut self) -> Result<Store, String> {
        let mut cuts = 0;
        loop {
            let recovers_badly = cuts < CUTS_IN_RECOVERY_MAX && self.random.percent(15);
            if recovers_badly {
                let at = 1 + self.random.below(5);
                self.disk.plan_power_cut(at);
            }
            self.tally.opened += 1;
            self.story.push(format!("opening {:?}", store::Disk::names(&self.disk)));
            let opened = Store::open_on(Arc::new(self.disk.clone()), self.config.clone());
            if !recovers_badly {
                return opened.map_err(|error| format!("the store does not open: {error:?}"));
            }
            match opened {
                Ok(store) => drop(store),
                Err(OpenError::Io { .. }) if self.disk.is_off() => {}
                Err(error) => return Err(format!("the store does not open: {error:?}")),
            }
            self.disk.power_off();
            cuts += 1;
            self.story.push("power cut while it recovers".to_owned());
            self.tally.cuts += 1;
            let mut cut = Cut::random(&mut self.random);
            self.disk = self.disk.after_cut(&mut cut);
        }
    }

    pub(super) fn now(&mut self) -> Moment {
        self.moment += 1;
        self.moment
    }

    fn begin(&mut self, store: &Store) -> Result<(), String> {
        let everything = Wanted {
            keys: KeyRange::Prefix(Vec::new()),
            index: None,
            from: Some(store.revision() + 1),
            events_max: usize::MAX,
        };
        let spy = Watching::start(store, everything, true);
        self.spy = Some(spy.map_err(|error| format!("no watch from now: {error}"))?);
        for (wanted, fast) in std::mem::take(&mut self.resumed) {
            self.watch(store, wanted, fast)?;
        }
        self.disk.gate(self.shape.gated);
        Ok(())
    }

    async fn load(&mut self, store: &Store) -> Result<(), String> {
        let steps = self.random.clone().pick(&[20, 60, 150]);
        for _ in 0..steps {
            if self.disk.is_off() {
                return Ok(());
            }
            match self.random.below(100) {
                0..50 => self.call(store),
                50..60 => self.read(store),
                60..66 => self.watch_anything(store)?,
                66..74 => self.look_at_watches(),
                74..76 => self.drop_watch(),
                76..78 => self.abandon(),
                _ => self.answer(store).await?,
            }
            self.let_start(store).await;
        }
        Ok(())
    }

    /// Lets what was called reach the store; with gated syncs, a call is alone until it reached the disk.
    async fn let_start(&mut self, store: &Store) {
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        if self.random.percent(10) {
            self.look_at_watches();
        }
        self.collect(store);
    }

    fn call(&mut self, store: &Store) {
        if self.in_flight.len() >= self.shape.in_flight_max {
            return;
        }
        let current = self.seen;
        let call = match self.random.below(100) {
            0..5 => {
                let lease = self.next_lease;
                self.next_lease += 1;
                Call::Grant(lease)
            }
            5..8 => Call::Revoke(self.any_lease()),
            8..10 => Call::KeepAlive(self.any_lease()),
            10..13 => Call::TimeToLive(self.any_lease()),
            13..16 => Call::Compact(current - self.random.below(30).cast_signed() + 1),
            _ => {
                let lease = self.any_lease();
                Call::Txn(self.generator.txn(current, lease))
            }
        };
        let at = self.now();
        match &call {
            Call::Grant(lease) => self.leases.granting(*lease, at),
            Call::Revoke(lease) => self.leases.revoking(*lease, at),
            Call::Compact(revision) => {
                self.compaction_tried = self.compaction_tried.max(*revision);
            }
            _ => {}
        }
        let place = self.calls.len();
        let floor = self.seen;
        self.calls.push(Made { call: call.clone(), floor, at, abandoned: false, answered: None });
        let id = self.in_flight.spawn(make(store.clone(), call)).id();
        self.places.insert(id, place);
        self.tally.calls += 1;
    }

    fn any_lease(&mut self) -> i64 {
        1 + self.random.below(self.next_lease.cast_unsigned()).cast_signed()
    }

    /// Takes the answers that are there.
    fn collect(&mut self, store: &Store) {
        while let Some(answered) = self.in_flight.try_join_next_with_id() {
            self.note(store, answered);
        }
    }

    fn note(&mut self, store: &Store, answered: Result<(Id, Answer), tokio::task::JoinError>) {
        let (id, answer) = match answered {
            Ok((id, answer)) => (id, Some(answer)),
            Err(aborted) => (aborted.id(), None),
        };
        let Some(place) = self.places.remove(&id) else { return };
        let (at, revision) = (self.now(), store.revision());
        let made = &mut self.calls[place];
        let Some(answer) = answer else {
            made.abandoned = true;
            return;
        };
        match (&made.call, &answer) {
            (Call::Txn(_), Answer::Txn(Ok(result))) => self.seen = self.seen.max(result.revision),
            (Call::Grant(lease), Answer::Number(Ok(_))) => self.leases.granted(*lease, at),
            (Call::Revoke(lease), Answer::Number(Ok(revision))) => {
                self.seen = self.seen.max(*revision);
                self.leases.revoked(*lease, at);
            }
            (Call::Compact(revision), Answer::Unit(Ok(()))) => {
                self.compacted = self.compacted.max(*revision);
            }
            _ => {}
        }
        made.answered = Some((answer, at, revision));
    }

    /// Waits for something to happen: a sync that is let through, an answer.
    async fn answer(&mut self, store: &Store) -> Result<(), String> {
        if self.in_flight.is_empty() {
            return Ok(());
        }
        if self.shape.gated {
            let deadline = tokio::time::Instant::now() + QUIET_DEADLINE;
            loop {
                self.collect(store);
                if self.in_flight.is_empty() || self.disk.let_through(&mut self.random) {
                    return Ok(());
                }
                if tokio::time::Instant::now() > deadline {
                    return Err(format!("no answer and nothing to wait for: {:?}", self.calls));
                }
                tokio::task::yield_now().await;
                std::thread::yield_now();
            }
        }
        if let Some(answered) = self.in_flight.join_next_with_id().await {
            self.note(store, answered);
        }
        Ok(())
    }

    /// Waits for every answer.
    async fn quiet(&mut self, store: &Store) -> Result<(), String> {
        let deadline = tokio::time::Instant::now() + QUIET_DEADLINE;
        while !self.in_flight.is_empty() {
            self.answer(store).await?;
            if tokio::time::Instant::now() > deadline {
                return Err(format!("calls are not answered: {:?}", self.calls));
            }
        }
        // A checkpoint may still stand at the gate.
        self.disk.gate(false);
        Ok(())
    }

    /// A caller goes away; its write is done all the same, or not.
    fn abandon(&mut self) {
        if self.random.percent(30) && !self.in_flight.is_empty() {
            self.in_flight.abort_all();
        }
    }

    fn read(&mut self, store: &Store) {
        let keys = self.generator.keys();
        let now = store.revision();
        let revision = match self.random.below(10) {
            0..4 => None,
            4 => Some(now + 1),
            _ => Some((now - self.random.below(20).cast_signed()).max(1)),
        };
        let limit = self.random.index(4);
        let range = Range { revision, limit, ..Range::all(keys) };
        let (floor, compacted) = (self.seen, self.compacted);
        let result = store.range(&range);
        let after = store.revision();
        if let Ok(found) = &result {
            self.seen = self.seen.max(found.revision);
        }
        self.seen = self.seen.max(now);
        self.reads.push(Read { range, floor, compacted, result, after });
    }

    fn watch_anything(&mut self, store: &Store) -> Result<(), String> {
        let now = store.revision();
        let from = match self.random.below(10) {
            0..4 => None,
            4 => Some(now + 1 + self.random.below(3).cast_signed()),
            _ => Some((now - self.random.below(25).cast_signed()).max(1)),
        };
        let index = self.random.percent(25).then(|| self.random.pick(&["x", "y"]).into());
        let events_max = self.random.pick(&[1, 4, 1000, 1000]);
        let wanted = Wanted { keys: self.generator.keys(), index, from, events_max };
        let fast = self.random.percent(60);
        self.watch(store, wanted, fast)
    }

    fn watch(&mut self, store: &Store, wanted: Wanted, fast: bool) -> Result<(), String> {
        let from = wanted.from;
        match Watching::start(store, wanted, fast) {
            Ok(watching) => self.watches.push(watching),
            Err(ReadError::Compacted { requested, compact_revision })
                if from == Some(requested) && requested <= compact_revision =>
            {
                self.check_compaction(compact_revision)?;
            }
            Err(error) => return Err(format!("watch from {from:?}: {error}")),
        }
        Ok(())
    }

    fn look_at_watches(&mut self) {
        for watching in &mut self.watches {
            if self.random.percent(50) {
                watching.poll();
            } else {
                watching.look();
            }
        }
    }

    fn drop_watch(&mut self) {
        if self.watches.is_empty() {
            return;
        }
        let at = self.random.index(self.watches.len());
        self.watches[at].stop_reading();
    }
}
