//! What is known to have happened in a history: the map at every revision, found from what clients were told and, for writes that
//! nobody was told about, from what is there. Pure.

use std::collections::BTreeMap;

use store::{OpResult, Revision, Txn, TxnResult};

use super::model::{self, Applied, Change, Map};

/// Longer explanations are cut.
const EXPLANATION_CHARS_MAX: usize = 6000;

/// A write that was answered, or may have been done.
#[derive(Debug, Clone)]
pub enum Write {
    /// A transaction.
    Txn(Txn),
    /// The end of a lease.
    Revoke(i64),
}

impl Write {
    fn apply(&self, map: &Map, revision: Revision) -> Applied {
        match self {
            Self::Txn(txn) => model::apply(map, revision, txn),
            Self::Revoke(lease) => model::revoke(map, revision, *lease),
        }
    }
}

/// A write whose answer is known.
#[derive(Debug, Clone)]
pub struct Acknowledged {
    /// The write.
    pub write: Write,
    /// Everything up to here had been seen when it was asked for.
    pub floor: Revision,
    /// What was answered; of a revoke only the revision is.
    pub answer: TxnResult,
}

/// A write without an answer: done, or not.
#[derive(Debug, Clone)]
pub struct Unknown {
    /// The write.
    pub write: Write,
    /// As of [`Acknowledged`].
    pub floor: Revision,
}

/// What is to be explained.
#[derive(Debug, Default)]
pub struct Evidence {
    /// Writes with answers.
    pub acknowledged: Vec<Acknowledged>,
    /// Writes without.
    pub unknown: Vec<Unknown>,
    /// All changes of some revisions, as watched.
    pub events: BTreeMap<Revision, Vec<Change>>,
    /// What is there at the end.
    pub end: Option<Map>,
}

/// Every revision so far.
#[derive(Debug, Clone)]
pub struct Past {
    maps: BTreeMap<Revision, Map>,
    changes: Vec<Change>,
    last: Revision,
}

struct Step {
    map: Map,
    changes: Vec<Change>,
}

impl Default for Past {
    fn default() -> Self {
        let first = store::FIRST_REVISION;
        Self { maps: BTreeMap::from([(first, Map::new())]), changes: Vec::new(), last: first }
    }
}

/// Whether a transaction's answer says that it changed something.
fn has_changed(responses: &[OpResult]) -> bool {
    responses.iter().any(|response| match response {
        OpResult::Put { .. } => true,
        OpResult::Delete { deleted } => !deleted.is_empty(),
        OpResult::Range(_) => false,
        OpResult::Txn(inner) => has_changed(&inner.responses),
    })
}

impl Past {
    /// The last revision that is explained.
    #[must_use]
    pub fn last(&self) -> Revision {
        self.last
    }

    /// All changes so far.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// The map at a revision.
    #[must_use]
    pub fn at(&self, revision: Revision) -> Option<&Map> {
        self.maps.get(&revision)
    }

    /// Explains every revision up to `until`, and holds every answer against it. Returns which unknown writes were done.
    ///
    /// # Errors
    /// There is no explanation.
    pub fn explain(&mut self, until: Revision, evidence: &Evidence) -> Result<Vec<usize>, String> {
        let mut claims: BTreeMap<Revision, &Acknowledged> = BTreeMap::new();
        for acknowledged in &evidence.acknowledged {
            let Acknowledged { answer, floor, .. } = acknowledged;
            let revision = answer.revision;
            let changed = has_changed(&answer.responses);
            if revision < *floor || (changed && revision == *floor) {
                return Err(format!("{acknowledged:?} is older than what had been seen"));
            }
            if changed && revision <= self.last {
                return Err(format!("{acknowledged:?} has a revision of the past"));
            }
            if revision > until {
                return Err(format!("the store is at {until}, but answered {acknowledged:?}"));
            }
            if changed && claims.insert(revision, acknowledged).is_some() {
                return Err(format!("revision {revision} was given twice: {acknowledged:?}"));
            }
        }
        let start = self.at(self.last).cloned().unwrap_or_default();
        let search = Search { evidence, claims, until };
        let mut used = Vec::new();
        let mut steps = Vec::new();
        search.from(self.last, &start, &mut used, &mut steps)?;
        for Step { map, changes } in steps {
            self.last += 1;
            self.maps.insert(self.last, map);
            self.changes.extend(changes);
        }
        self.check_answers(evidence)?;
        Ok(used)
    }

    fn check_answers(&self, evidence: &Evidence) -> Result<(), String> {
        for acknowledged in &evidence.acknowledged {
            let Acknowledged { write: Write::Txn(txn), answer, .. } = acknowledged else {
                continue;
            };
            let changed = has_changed(&answer.responses);
            let base = if changed { answer.revision - 1 } else { answer.revision };
            let map = self.at(base).ok_or_else(|| format!("there is no {base}: {answer:?}"))?;
            let expected = model::answer(map, base, txn);
            if expected != *answer {
                return Err(format!("{txn:?} was answered {answer:?}, expected {expected:?}"));
            }
        }
        Ok(())
    }
}

struct Search<'a> {
    evidence: &'a Evidence,
    claims: BTreeMap<Revision, &'a Acknowledged>,
    until: Revision,
}

impl Search<'_> {
    /// Depth first over the unknown writes; they are few.
    fn from(
        &self,
        revision: Revision,
        map: &Map,
        used: &mut Vec<usize>,
        steps: &mut Vec<Step>,
    ) -> Result<(), String> {
        if revision >= self.until {
            let end = self.evidence.end.as_ref();
            return match end.filter(|end| *end != map) {
                Some(end) => Err(format!("at {revision} there is {end:?}, expected {map:?}")),
                None => Ok(()),
            };
        }
        let next = revision + 1;
        if let Some(claim) = self.claims.get(&next) {
            let applied = self.fits(claim.write.apply(map, revision), next)?;
            return self.further(applied, next, used, steps);
        }
        let revokes = self.evidence.acknowledged.iter().filter(|acknowledged| {
            matches!(acknowledged.write, Write::Revoke(_)) && acknowledged.answer.revision == next
        });
        for revoke in revokes {
            if let Ok(applied) = self.fits(revoke.write.apply(map, revision), next) {
                return self.further(applied, next, used, steps);
            }
        }
        let mut why = format!("nobody asked for what happened at {next}");
        for (at, unknown) in self.evidence.unknown.iter().enumerate() {
            if used.contains(&at) || unknown.floor > revision {
                continue;
            }
            let found = self.fits(unknown.write.apply(map, revision), next).and_then(|applied| {
                used.push(at);
                let found = self.further(applied, next, used, steps);
                if found.is_err() {
                    used.pop();
                }
                found
            });
            match found {
                Ok(()) => return Ok(()),
                Err(error) => why = format!("{why}; not {unknown:?}: {error}"),
            }
        }
        Err(why.chars().take(EXPLANATION_CHARS_MAX).collect())
    }

    fn further(
        &self,
        applied: Applied,
        revision: Revision,
        used: &mut Vec<usize>,
        steps: &mut Vec<Step>,
    ) -> Result<(), String> {
        let Applied { map, changes } = applied;
        let at = steps.len();
        steps.push(Step { map: map.clone(), changes });
        let found = self.from(revision, &map, used, steps);
        if found.is_err() {
            steps.truncate(at);
        }
        found
    }

    fn fits(&self, applied: Applied, revision: Revision) -> Result<Applied, String> {
        if applied.changes.is_empty() {
            return Err("it changes nothing".to_owned());
        }
        match self.evidence.events.get(&revision) {
            Some(seen) if *seen != applied.changes => {
                let changes = &applied.changes;
                Err(format!("{revision} was watched as {seen:?}, expected {changes:?}"))
            }
            _ => Ok(applied),
        }
    }
}
