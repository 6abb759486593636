//! What is known of the leases of a history. Each id is granted once; what is asked for without an answer may or may not have
//! happened. Pure.

use std::collections::BTreeMap;

/// A moment of the harness; later ones are larger.
pub type Moment = u64;

#[derive(Debug, Clone, Copy, Default)]
struct Life {
    grant: Option<(Moment, Option<Moment>)>,
    revoke: Option<(Moment, Option<Moment>)>,
}

/// Every lease.
#[derive(Debug, Default)]
pub struct LeaseBook {
    lives: BTreeMap<i64, Life>,
}

impl LeaseBook {
    /// How many there were.
    #[must_use]
    pub fn known(&self) -> Vec<i64> {
        self.lives.keys().copied().collect()
    }

    /// A grant was asked for.
    pub fn granting(&mut self, lease: i64, at: Moment) {
        let life = self.lives.entry(lease).or_default();
        life.grant = Some((at, None));
        // What was over before is not this lease's end.
        life.revoke = life.revoke.filter(|(_, done)| done.is_none());
    }

    /// A grant was answered.
    pub fn granted(&mut self, lease: i64, at: Moment) {
        if let Some((_, done)) = &mut self.lives.entry(lease).or_default().grant {
            *done = Some(at);
        }
    }

    /// A revoke was asked for.
    pub fn revoking(&mut self, lease: i64, at: Moment) {
        self.lives.entry(lease).or_default().revoke.get_or_insert((at, None));
    }

    /// A revoke was answered.
    pub fn revoked(&mut self, lease: i64, at: Moment) {
        let first = self.lives.entry(lease).or_default().revoke.get_or_insert((at, None));
        first.1.get_or_insert(at);
    }

    /// Whether the lease was there all the time between two moments.
    #[must_use]
    pub fn is_surely_alive(&self, lease: i64, from: Moment, to: Moment) -> bool {
        self.lives.get(&lease).is_some_and(|life| {
            matches!(life.grant, Some((_, Some(granted))) if granted < from)
                && life.revoke.is_none_or(|(asked, _)| asked > to)
        })
    }

    /// Whether the lease was never there between two moments.
    #[must_use]
    pub fn is_surely_dead(&self, lease: i64, from: Moment, to: Moment) -> bool {
        self.lives.get(&lease).is_none_or(|life| {
            life.grant.is_none_or(|(asked, _)| asked > to)
                || matches!(life.revoke, Some((_, Some(revoked))) if revoked < from)
        })
    }

    /// What was in doubt is seen: the process that was asked is gone.
    pub fn settle(&mut self, lease: i64, alive: bool, at: Moment) {
        let life = self.lives.entry(lease).or_default();
        if alive {
            life.grant = Some((0, Some(at)));
            life.revoke = None;
        } else {
            life.revoke = Some((0, Some(at)));
        }
    }
}
