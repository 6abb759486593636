//! What clients ask for, at random: few keys, so that they meet; values that name who put them, so that nothing is mistaken for
//! something else.

use std::sync::Arc;

use store::{Compare, Config, KeyRange, LogSizes, Op, Range, Relation, Revision, Target, Txn};

use super::model::FirstByte;
use super::random::Random;

/// The keys of a history.
const KEYS: &[&str] = &["/a", "/a/1", "/a/2", "/a/3", "/b/1", "/b/2", "/b/22", "/c"];
const PREFIXES: &[&str] = &["", "/a", "/a/", "/b/", "/b/2", "/d"];
/// How a history is made.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Lengths of values are below this.
    pub value_bytes_max: u64,
    /// How many calls are in flight at most.
    pub in_flight_max: usize,
    /// Whether syncs wait for the harness.
    pub gated: bool,
    /// The history is so large that only a compaction forgets anything.
    pub roomy: bool,
    history_bytes_max: usize,
    log_sizes: LogSizes,
}

impl Shape {
    /// Any shape.
    #[must_use]
    pub fn random(random: &mut Random) -> Self {
        let roomy = random.percent(60);
        let log_sizes = LogSizes {
            segment_bytes: random.pick(&[512, 1024, 2048, 4096]),
            checkpoint_bytes_min: random.pick(&[1500, 4000, 12_000, 1 << 20]),
        };
        Self {
            value_bytes_max: random.pick(&[40, 200, 700]),
            in_flight_max: 1 + random.index(8),
            gated: random.percent(50),
            roomy,
            history_bytes_max: if roomy { 16 << 20 } else { random.pick(&[2 << 10, 8 << 10]) },
            log_sizes,
        }
    }

    /// The store's configuration.
    #[must_use]
    pub fn config(&self) -> Config {
        Config {
            history_bytes_max: self.history_bytes_max,
            log_sizes: self.log_sizes,
            extract: Arc::new(FirstByte),
            ..Config::new("")
        }
    }
}

/// Makes calls.
#[derive(Debug)]
pub struct Generator {
    random: Random,
    value_bytes_max: u64,
    puts: u64,
    lease: i64,
}

impl Generator {
    /// A generator of a history.
    #[must_use]
    pub fn new(random: Random, value_bytes_max: u64) -> Self {
        Self { random, value_bytes_max, puts: 0, lease: 0 }
    }

    /// A value that no other put has.
    fn value(&mut self) -> Vec<u8> {
        self.puts += 1;
        let first = self.random.pick(b"xyz");
        let mut value = format!("{}{}:", char::from(first), self.puts).into_bytes();
        let length = self.random.index(usize::try_from(self.value_bytes_max).unwrap_or(0));
        let own = self.puts.to_le_bytes();
        value.extend((0..length).map(|at| own[at % 8] ^ at.to_le_bytes()[0]));
        value
    }

    /// One key.
    pub fn key(&mut self) -> Vec<u8> {
        self.random.pick(KEYS).into()
    }

    /// Any range of keys.
    pub fn keys(&mut self) -> KeyRange {
        match self.random.below(7) {
            0..3 => KeyRange::Key(self.key()),
            3 | 4 => KeyRange::Prefix(self.random.pick(PREFIXES).into()),
            5 => KeyRange::Span { start: self.key(), end: self.key() },
            _ => KeyRange::Span { start: self.key(), end: Vec::new() },
        }
    }

    fn compare(&mut self, now: Revision) -> Compare {
        use Relation::{Equal, Greater, Less, NotEqual};
        let near = now - self.random.below(12).cast_signed();
        let target = match self.random.below(5) {
            0 => Target::Version(self.random.below(4).cast_signed()),
            1 => Target::ModRevision(near),
            2 => Target::CreateRevision(near),
            3 => Target::Lease(self.lease),
            _ => Target::Value(self.random.pick(&["x1", "y5", "z9"]).into()),
        };
        let relation = self.random.pick(&[Equal, NotEqual, Greater, Less]);
        match self.random.below(4) {
            0 => Compare::absent(self.key()),
            1 => Compare::exists(self.key()),
            _ => Compare { keys: self.keys(), target, relation },
        }
    }

    /// Operations that change no key twice.
    fn ops(&mut self, keys: &mut Vec<&'static str>, now: Revision, depth: u32) -> Vec<Op> {
        if depth > 0 && self.random.percent(8) {
            return vec![Op::Delete(self.keys())];
        }
        let count = 1 + self.random.below(3);
        let mut ops = Vec::new();
        for _ in 0..count {
            let kind = self.random.below(10);
            if kind == 9 {
                let (keys, limit) = (self.keys(), self.random.index(3));
                ops.push(Op::Range(Range { limit, ..Range::all(keys) }));
                continue;
            }
            if kind == 8 && depth > 0 {
                let inner = self.within(keys, now, depth - 1);
                ops.push(Op::Txn(Box::new(inner)));
                continue;
            }
            if keys.is_empty() {
                continue;
            }
            let key = keys.swap_remove(self.random.index(keys.len()));
            let lease = if self.random.percent(15) { self.lease } else { 0 };
            ops.push(match kind {
                6 | 7 => Op::delete(key),
                _ => Op::Put { key: key.into(), value: self.value().into(), lease },
            });
        }
        ops
    }

    fn within(&mut self, keys: &mut Vec<&'static str>, now: Revision, depth: u32) -> Txn {
        let compares = self.random.below(3);
        let compare = (0..compares).map(|_| self.compare(now)).collect();
        let (success, failure) = (self.ops(keys, now, depth), self.ops(keys, now, 0));
        Txn { compare, success, failure }
    }

    /// Any transaction, near revision `now`, that may put keys under `lease`.
    pub fn txn(&mut self, now: Revision, lease: i64) -> Txn {
        self.lease = lease;
        if self.random.percent(50) {
            return Txn::of(vec![Op::put(self.key(), self.value())]);
        }
        let mut keys = KEYS.to_vec();
        if self.random.percent(40) {
            return Txn::of(self.ops(&mut keys, now, 1));
        }
        self.within(&mut keys, now, 1)
    }
}
