//! Holds a history against what must be true of it: what clients were told while the store ran, what it had published when it
//! closed, and what is there when it is opened again.

use std::collections::BTreeMap;

use store::{
    KeyRange, OpResult, Range, RangeResult, ReadError, Revision, Store, TxnResult, WriteError,
};

use super::calls::{Answer, Call, LEASE_SECONDS, Made};
use super::history::History;
use super::model::{self, Map};
use super::past::{Acknowledged, Evidence, Unknown, Write};
use super::watching::{Extent, Wanted, Watching};

/// A range, and what came of it.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) range: Range,
    pub(super) floor: Revision,
    pub(super) compacted: Revision,
    pub(super) result: Result<RangeResult, ReadError>,
    pub(super) after: Revision,
}

fn everything() -> KeyRange {
    KeyRange::Prefix(Vec::new())
}

pub(super) fn contents(store: &Store) -> Result<(Map, Revision), String> {
    let all = store.range(&Range::all(everything())).map_err(|error| error.to_string())?;
    let revision = all.revision;
    Ok((all.entries.into_iter().map(|entry| (entry.key.to_vec(), entry)).collect(), revision))
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

impl History {
    /// While the store runs and nothing is in flight: every watch comes to where the store is.
    pub(super) async fn check_running(&mut self, store: &Store) -> Result<(), String> {
        let revision = store.revision();
        if let Some(spy) = &mut self.spy {
            spy.catch_up(revision).await?;
        }
        for watching in &mut self.watches {
            if self.random.percent(70) && watching.is_read() {
                watching.catch_up(revision).await?;
            }
        }
        Ok(())
    }

    /// When the store is closed: everything that was published is explained, and everything that anybody was told fits it.
    /// `whole`: nothing failed, so that nothing can turn up later either.
    pub(super) async fn check_closed(&mut self, store: &Store, whole: bool) -> Result<(), String> {
        let published = store.revision();
        let mut watches = std::mem::take(&mut self.watches);
        watches.extend(self.spy.take());
        let mut read = Vec::new();
        for watching in &mut watches {
            self.resume(watching);
            read.push(watching.is_read());
            watching.drain().await;
            self.seen = self.seen.max(watching.newest());
        }
        self.seen = self.seen.max(published);
        ensure(self.seen == published, || {
            format!("the store published {published}, but somebody saw {}", self.seen)
        })?;
        let mut events = BTreeMap::<_, Vec<_>>::new();
        for change in watches.last().into_iter().flat_map(Watching::given) {
            events.entry(change.revision).or_default().push(change);
        }
        let (acknowledged, unknown) = self.writes();
        let mut evidence = Evidence { acknowledged, unknown, events, end: None };
        let done = self.past.explain(published, &evidence)?;
        for at in done.iter().rev() {
            evidence.unknown.remove(*at);
        }
        if whole {
            evidence.unknown.clear();
        }
        self.tally.unknown += evidence.unknown.len() as u64;
        self.left_unknown = evidence.unknown;
        for (watching, read) in watches.iter().zip(read) {
            self.tally.watches += 1;
            let extent = if read { Extent::All(published) } else { Extent::Some(published) };
            watching.check(self.past.changes(), extent)?;
        }
        for made in std::mem::take(&mut self.calls) {
            self.check_call(&made).map_err(|error| format!("{error}: {made:?}"))?;
        }
        for read in std::mem::take(&mut self.reads) {
            self.check_read(&read).map_err(|error| format!("{error}: {read:?}"))?;
        }
        Ok(())
    }

    /// A reader that is interrupted by the end goes on where it was.
    fn resume(&mut self, watching: &Watching) {
        let Wanted { keys, index, events_max, .. } = watching.wanted.clone();
        if !watching.is_read() || events_max == usize::MAX || self.random.percent(50) {
            return;
        }
        if let Some(from) = watching.resume_from() {
            let wanted = Wanted { keys, index, from: Some(from), events_max };
            self.resumed.push((wanted, watching.is_fast()));
        }
    }

    fn writes(&self) -> (Vec<Acknowledged>, Vec<Unknown>) {
        let (mut acknowledged, mut unknown) = (Vec::new(), Vec::new());
        for made in &self.calls {
            let floor = made.floor;
            let write = match &made.call {
                Call::Txn(txn) => Write::Txn(txn.clone()),
                Call::Revoke(lease) => Write::Revoke(*lease),
                _ => continue,
            };
            match &made.answered {
                Some((Answer::Txn(Ok(answer)), ..)) => {
                    let answer = answer.clone();
                    acknowledged.push(Acknowledged { write, floor, answer });
                }
                Some((Answer::Number(Ok(revision)), ..)) => {
                    let answer =
                        TxnResult { succeeded: true, revision: *revision, responses: Vec::new() };
                    acknowledged.push(Acknowledged { write, floor, answer });
                }
                Some((answer, ..)) if answer.is_unknown() => {
                    unknown.push(Unknown { write, floor });
                }
                Some(_) => {}
                None => unknown.push(Unknown { write, floor }),
            }
        }
        (acknowledged, unknown)
    }

    fn check_call(&self, made: &Made) -> Result<(), String> {
        let Some((answer, done, revision)) = &made.answered else {
            return ensure(made.abandoned, || "there is no answer".to_owned());
        };
        if answer.is_unknown() {
            return ensure(self.disk.is_off() || self.disk.has_failed(), || {
                "refused without a reason".to_owned()
            });
        }
        let alive = |lease| self.leases.is_surely_alive(lease, made.at, *done);
        let dead = |lease| self.leases.is_surely_dead(lease, made.at, *done);
        if let Some(WriteError::LeaseNotFound { id }) = answer.error() {
            let asked = match &made.call {
                Call::Txn(txn) => model::leases_of(txn).contains(id),
                Call::Revoke(lease) | Call::KeepAlive(lease) | Call::TimeToLive(lease) => {
                    lease == id
                }
                Call::Grant(_) | Call::Compact(_) => false,
            };
            return ensure(asked && !alive(*id), || "the lease is there".to_owned());
        }
        match (&made.call, answer) {
            (Call::Txn(_), Answer::Txn(Ok(result))) => {
                ensure(result.revision <= *revision, || "answered before it was seen".to_owned())?;
                let put = leases_put(&result.responses);
                ensure(!put.into_iter().any(dead), || "the lease is not there".to_owned())
            }
            (Call::Grant(asked), Answer::Number(Ok(lease))) => {
                ensure(asked == lease, || "another lease was granted".to_owned())
            }
            (Call::Revoke(lease), Answer::Number(Ok(_))) => {
                ensure(!dead(*lease), || "the lease was not there".to_owned())
            }
            (Call::KeepAlive(lease), Answer::Number(Ok(seconds))) => {
                ensure(!dead(*lease) && *seconds == LEASE_SECONDS, || "kept alive".to_owned())
            }
            (Call::TimeToLive(lease), Answer::Lease(Ok(status))) => {
                ensure(!dead(*lease), || "the lease was not there".to_owned())?;
                let keys: Vec<_> = status.keys.iter().map(|key| key.to_vec()).collect();
                let mut maps = (made.floor..=*revision).filter_map(|at| self.past.at(at));
                let found = maps.any(|map| model::leased(map, *lease).into_iter().eq(&keys));
                ensure(found, || format!("the lease never had {keys:?}"))
            }
            (Call::Compact(_), Answer::Unit(Ok(()))) => Ok(()),
            (Call::Compact(_), Answer::Unit(Err(WriteError::Read(error)))) => match error {
                ReadError::Compacted { requested, compact_revision } => {
                    ensure(requested <= compact_revision, || "not compacted".to_owned())
                }
                ReadError::Future { requested, current } => {
                    ensure(requested > current && *current >= made.floor, || "past".to_owned())
                }
            },
            _ => Err("an answer that does not fit".to_owned()),
        }
    }

    fn check_read(&self, read: &Read) -> Result<(), String> {
        let Read { range, floor, compacted, result, after } = read;
        match result {
            Ok(found) => {
                let revision = found.revision;
                let right = match range.revision {
                    Some(wanted) => revision == wanted && wanted >= *compacted,
                    None => (*floor..=*after).contains(&revision),
                };
                ensure(right, || "a read of the wrong revision".to_owned())?;
                let map = self.past.at(revision).ok_or("a read of what never was")?;
                let expected = model::range(map, range, revision);
                ensure(expected == *found, || format!("expected {expected:?}"))
            }
            Err(ReadError::Compacted { requested, compact_revision }) => {
                ensure(requested < compact_revision, || "not compacted".to_owned())?;
                self.check_compaction(*compact_revision)
            }
            Err(ReadError::Future { requested, current }) => {
                ensure(requested > current && current >= floor, || "not the future".to_owned())
            }
        }
    }

    /// What is forgotten was asked to be, or there was no room for it.
    pub(super) fn check_compaction(&self, compact_revision: Revision) -> Result<(), String> {
        // Nothing happened at the first revision.
        let tried = self.compaction_tried.max(store::FIRST_REVISION);
        ensure(!self.shape.roomy || compact_revision <= tried, || {
            format!("compacted up to {compact_revision}, though at most {tried} was asked for")
        })
    }

    /// When the store is open again: it is where it was, or further by writes that nobody was told about; the window of the history
    /// is there, exact; so are the leases.
    pub(super) async fn check_recovered(&mut self, store: &Store) -> Result<(), String> {
        let (end, revision) = contents(store)?;
        let compact_revision = store.compact_revision();
        ensure(revision >= self.seen, || {
            format!("the store is at {revision}, but {} had been seen", self.seen)
        })?;
        ensure(revision == store.revision(), || "the revision moves by itself".to_owned())?;
        ensure((self.compacted..=revision).contains(&compact_revision), || {
            format!("compacted: {compact_revision}, {} was acknowledged", self.compacted)
        })?;
        self.check_compaction(compact_revision)?;
        let keys = store.metrics().keys;
        ensure(keys == end.len(), || format!("{} keys, but it counts {keys}", end.len()))?;
        let wanted = Wanted {
            keys: everything(),
            index: None,
            from: Some(compact_revision + 1),
            events_max: 1,
        };
        let mut window = Watching::start(store, wanted, false)
            .map_err(|error| format!("no watch of the window: {error}"))?;
        window.catch_up(revision).await?;
        let mut events = BTreeMap::<_, Vec<_>>::new();
        for change in window.given() {
            events.entry(change.revision).or_default().push(change);
        }
        let unknown = std::mem::take(&mut self.left_unknown);
        let evidence = Evidence { acknowledged: Vec::new(), unknown, events, end: Some(end) };
        self.past.explain(revision, &evidence)?;
        window.check(self.past.changes(), Extent::All(revision))?;
        for _ in 0..3 {
            let back = self.random.below((revision - compact_revision).cast_unsigned() + 1);
            let at = (revision - back.cast_signed()).max(store::FIRST_REVISION);
            let range = Range { revision: Some(at), ..Range::all(everything()) };
            let result = store.range(&range);
            let read = Read { range, floor: at, compacted: 0, result, after: revision };
            self.check_read(&read).map_err(|error| format!("{error}: {read:?}"))?;
        }
        self.seen = revision;
        self.check_leases(store, revision).await
    }

    async fn check_leases(&mut self, store: &Store, revision: Revision) -> Result<(), String> {
        for lease in self.leases.known() {
            let now = self.now();
            let status = store.lease_time_to_live(lease).await;
            match status {
                Ok(status) => {
                    let dead = self.leases.is_surely_dead(lease, now, now);
                    ensure(!dead, || format!("lease {lease} is back"))?;
                    let keys: Vec<_> = status.keys.iter().map(|key| key.to_vec()).collect();
                    let map = self.past.at(revision).ok_or("no such revision")?;
                    let expected = model::leased(map, lease);
                    ensure(expected.iter().copied().eq(&keys), || {
                        format!("lease {lease} has {keys:?}, expected {expected:?}")
                    })?;
                    let granted = status.granted_seconds;
                    ensure(granted == LEASE_SECONDS, || format!("lease {lease} of {granted} s"))?;
                    self.leases.settle(lease, true, now);
                }
                Err(WriteError::LeaseNotFound { .. }) => {
                    let alive = self.leases.is_surely_alive(lease, now, now);
                    ensure(!alive, || format!("lease {lease} is lost"))?;
                    self.leases.settle(lease, false, now);
                }
                Err(error) => return Err(format!("lease {lease}: {error}")),
            }
        }
        Ok(())
    }
}

fn leases_put(responses: &[OpResult]) -> Vec<i64> {
    let leases = responses.iter().flat_map(|response| match response {
        OpResult::Put { entry, .. } if entry.lease != 0 => vec![entry.lease],
        OpResult::Txn(inner) => leases_put(&inner.responses),
        _ => Vec::new(),
    });
    leases.collect()
}
