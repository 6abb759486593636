//! Owns the random calls: few keys, so that they meet; every option; requests that are wrong as well. The same for the same seed.

use bytes::Bytes;

use crate::grpc::messages::kv::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, Request, RequestOp, TargetUnion,
    TxnRequest,
};
use crate::grpc::suite::subject::Call;

#[derive(Debug)]
pub(super) struct Random {
    state: u64,
    revision: i64,
    compacted: i64,
    compacting: Option<i64>,
}

const KEYS: [&str; 7] = ["a", "a/1", "a/2", "a/3", "b", "b/1", "c"];
const ENDS: [&str; 5] = ["", "a0", "b", "c\u{1}", "\0"];
const VALUES: [&str; 4] = ["", "1", "2", "three"];

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        let state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { state, revision: 1, compacted: 0, compacting: None }
    }

    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    pub(super) fn compacted(&self) -> i64 {
        self.compacted
    }

    /// Learns where the store is.
    pub(super) fn saw(&mut self, answer: &Result<String, String>) {
        let compacting = self.compacting.take();
        let Ok(answer) = answer else { return };
        let number = answer.strip_prefix("revision: ").and_then(|rest| rest.split(',').next());
        self.revision = number.unwrap().parse().unwrap();
        self.compacted = compacting.unwrap_or(self.compacted);
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) % bound
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    fn number(&mut self, bound: u64) -> i64 {
        i64::try_from(self.below(bound)).unwrap()
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }

    fn key(&mut self) -> Bytes {
        if self.chance(60) { Bytes::new() } else { self.one(&KEYS).into() }
    }

    fn near(&mut self) -> i64 {
        (self.revision + 1 - self.number(12)).max(1)
    }

    pub(super) fn call(&mut self) -> Call {
        match self.below(20) {
            0..5 => Call::Put(self.put()),
            5..9 => Call::Range(self.range()),
            9..11 => {
                let range_end = self.one(&ENDS);
                Call::DeleteRange(self.delete(range_end))
            }
            11..16 => Call::Txn(self.txn(2)),
            16 => Call::Grant(self.number(4) + 1, self.number(1000) + 100),
            17 => Call::Revoke(self.number(5) + 1),
            18 if self.chance(2) => Call::Leases,
            18 => Call::TimeToLive(self.number(5) + 1),
            _ if self.chance(3) => {
                let revision = self.near();
                self.compacting = Some(revision);
                Call::Compact(revision)
            }
            _ => Call::Put(self.put()),
        }
    }

    fn put(&mut self) -> PutRequest {
        let ignore = self.chance(6);
        PutRequest {
            key: self.key(),
            value: if ignore && !self.chance(8) { Bytes::new() } else { self.one(&VALUES).into() },
            lease: if self.chance(4) { self.number(5) + 1 } else { 0 },
            prev_kv: self.chance(2),
            ignore_value: ignore,
            ignore_lease: self.chance(8),
        }
    }

    fn range(&mut self) -> RangeRequest {
        let filter = |random: &mut Self| if random.chance(6) { random.near() } else { 0 };
        RangeRequest {
            key: self.key(),
            range_end: self.one(&ENDS).into(),
            limit: self.number(4),
            revision: if self.chance(3) { self.near() } else { 0 },
            sort_order: if self.chance(2) { self.one(&[1, 2]) } else { 0 },
            sort_target: if self.chance(2) { self.one(&[1, 2, 3, 4]) } else { 0 },
            serializable: self.chance(2),
            keys_only: self.chance(5),
            count_only: self.chance(5),
            min_mod_revision: filter(self),
            max_mod_revision: filter(self),
            min_create_revision: filter(self),
            max_create_revision: filter(self),
        }
    }

    fn delete(&mut self, range_end: &'static str) -> DeleteRangeRequest {
        DeleteRangeRequest { key: self.key(), range_end: range_end.into(), prev_kv: self.chance(2) }
    }

    fn compare(&mut self) -> Compare {
        let target: i32 = self.one(&[0, 1, 2, 3, 4]);
        let union =
            match if self.chance(20) { self.below(5) } else { u64::from(target.unsigned_abs()) } {
                0 => TargetUnion::Version(self.number(4)),
                1 => TargetUnion::CreateRevision(self.near()),
                2 => TargetUnion::ModRevision(self.near()),
                3 => TargetUnion::Value(self.one(&VALUES).into()),
                _ => TargetUnion::Lease(self.number(5)),
            };
        Compare {
            result: self.one(&[0, 1, 2, 3]),
            target,
            key: self.key(),
            target_union: Some(union),
            range_end: self.one(&["", "", "", "a0", "\0"]).into(),
        }
    }

    fn txn(&mut self, depth: u64) -> TxnRequest {
        let compare = (0..self.below(3)).map(|_| self.compare()).collect();
        TxnRequest { compare, success: self.ops(depth), failure: self.ops(depth) }
    }

    /// At most one transaction inside: etcd misses a key that one of two puts and the next deletes.
    fn ops(&mut self, depth: u64) -> Vec<RequestOp> {
        let mut ops: Vec<_> = (0..self.below(4)).map(|_| self.op()).collect();
        if depth > 0 && self.chance(3) {
            let at = self.below(ops.len() as u64 + 1);
            let inner = Some(Request::Txn(self.txn(depth - 1)));
            ops.insert(usize::try_from(at).unwrap(), RequestOp { request: inner });
        }
        ops
    }

    fn op(&mut self) -> RequestOp {
        let request = match self.below(30) {
            0..14 => Some(Request::Put(self.put())),
            14..21 => {
                let range_end = self.one(&["", "", "a0", "b"]);
                Some(Request::DeleteRange(self.delete(range_end)))
            }
            21..29 => Some(Request::Range(self.range())),
            _ => None,
        };
        RequestOp { request }
    }
}
