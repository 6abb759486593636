//! Sizes of a Deployment's ReplicaSets: rolling update, recreate, proportional scaling. Pure, as upstream.

use super::plan::{DESIRED, Fleet, MAX};
use crate::{
    kinds::{Deployment, ReplicaSet},
    runtime::object::Kind,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::sync::Arc;

/// New sizes of ReplicaSets.
pub(super) type Sizes = Vec<(Arc<ReplicaSet>, i32)>;

fn of_total(value: Option<&IntOrString>, total: i32, up: bool) -> i32 {
    match value {
        None => of_total(Some(&IntOrString::String("25%".into())), total, up),
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let hundredfold = i64::from(total) * percent;
            let n =
                if up { (hundredfold + 99).div_euclid(100) } else { hundredfold.div_euclid(100) };
            i32::try_from(n).unwrap_or(i32::MAX)
        }
    }
}

/// Surge (rounded up) and unavailability (rounded down); not both zero, or nothing could move.
fn fenceposts(d: &Deployment) -> (i32, i32) {
    let wanted = d.spec.replicas.unwrap_or(1);
    let rolling = d.spec.strategy.rolling_update.as_ref();
    let surge = of_total(rolling.and_then(|r| r.max_surge.as_ref()), wanted, true);
    let down = of_total(rolling.and_then(|r| r.max_unavailable.as_ref()), wanted, false);
    if surge == 0 && down == 0 { (0, 1) } else { (surge, down) }
}

fn is_rolling(d: &Deployment) -> bool {
    d.spec.strategy.kind.as_deref() != Some("Recreate")
}

/// Pods allowed above the wanted number.
pub(super) fn max_surge(d: &Deployment) -> i32 {
    if is_rolling(d) { fenceposts(d).0 } else { 0 }
}

/// Pods allowed to be missing from the wanted number.
pub(super) fn max_unavailable(d: &Deployment) -> i32 {
    let wanted = d.spec.replicas.unwrap_or(1);
    if !is_rolling(d) || wanted == 0 {
        return 0;
    }
    fenceposts(d).1.min(wanted)
}

/// Size of the new ReplicaSet as far as the surge allows.
pub(super) fn new_replicas(fleet: &Fleet) -> i32 {
    let wanted = fleet.wanted();
    if fleet.is_recreate() {
        return wanted;
    }
    let current = fleet.new.as_ref().map_or(0, |n| n.wanted());
    let total: i32 = fleet.all().map(|s| s.wanted()).sum();
    let room = wanted + max_surge(&fleet.deployment) - total;
    if room <= 0 { current } else { current + room.min(wanted - current) }
}

/// Grow the new one, then shrink the old ones.
pub(super) fn rolling(fleet: &Fleet) -> Sizes {
    let wanted = fleet.wanted();
    if let Some(new) = &fleet.new {
        let to = if new.wanted() > wanted { wanted } else { new_replicas(fleet) };
        if to != new.wanted() {
            return vec![(Arc::clone(new), to)];
        }
    }
    shrink_old(fleet)
}

fn shrink_old(fleet: &Fleet) -> Sizes {
    let mut sizes: Sizes = fleet.old.iter().map(|s| (Arc::clone(s), s.wanted())).collect();
    let Some(new) = &fleet.new else { return Vec::new() };
    let total: i32 = fleet.all().map(|s| s.wanted()).sum();
    let min_available = fleet.wanted() - max_unavailable(&fleet.deployment);
    let new_unavailable = new.wanted() - new.status.available_replicas;
    let budget = total - min_available - new_unavailable;
    if budget <= 0 {
        return Vec::new();
    }
    // Pods that don't work are no loss, and a rollout must not wait for them.
    let mut cleaned = 0;
    for (set, size) in &mut sizes {
        let unhealthy = *size - set.status.available_replicas;
        let down = unhealthy.min(budget - cleaned).min(*size);
        if down > 0 {
            *size -= down;
            cleaned += down;
        }
    }
    let available: i32 = fleet.all().map(|s| s.status.available_replicas).sum();
    let mut left = available - min_available;
    for (_, size) in &mut sizes {
        let down = left.min(*size).max(0);
        *size -= down;
        left -= down;
    }
    sizes.retain(|(set, size)| set.wanted() != *size);
    sizes
}

/// All old ones to zero; when their pods are gone, the new one to its size.
pub(super) fn recreate(fleet: &Fleet) -> Sizes {
    let shrink: Sizes =
        fleet.old.iter().filter(|s| s.wanted() > 0).map(|s| (Arc::clone(s), 0)).collect();
    if !shrink.is_empty() || fleet.old_pods_run {
        return shrink;
    }
    let new = fleet.new.iter().filter(|n| n.wanted() != fleet.wanted());
    new.map(|n| (Arc::clone(n), fleet.wanted())).collect()
}

fn annotation(set: &ReplicaSet, key: &str) -> Option<i32> {
    set.annotations().get(key)?.parse().ok()
}

/// Whether the Deployment's size changed since its ReplicaSets were sized.
pub(super) fn is_scaling_event(fleet: &Fleet) -> bool {
    fleet
        .all()
        .filter(|s| s.wanted() > 0)
        .any(|s| annotation(s, DESIRED).is_some_and(|n| n != fleet.wanted()))
}

/// Changes sizes without progress of the rollout: in proportion, when several ReplicaSets have pods.
pub(super) fn proportional(fleet: &Fleet) -> Sizes {
    let wanted = fleet.wanted();
    let active: Vec<_> = fleet.all().filter(|s| s.wanted() > 0).collect();
    if active.len() <= 1 {
        let latest = active.first().copied().or(fleet.new.as_ref()).or(fleet.old.last());
        let stale = |s: &&Arc<ReplicaSet>| {
            s.wanted() != wanted || annotation(s, DESIRED).is_some_and(|n| n != wanted)
        };
        return latest.into_iter().filter(stale).map(|s| (Arc::clone(s), wanted)).collect();
    }
    let saturated = fleet.new.as_ref().is_some_and(|n| {
        n.wanted() == wanted
            && annotation(n, DESIRED) == Some(wanted)
            && n.status.available_replicas == wanted
    });
    if saturated {
        return fleet.old.iter().filter(|s| s.wanted() > 0).map(|s| (Arc::clone(s), 0)).collect();
    }
    if fleet.is_recreate() {
        return Vec::new();
    }
    in_proportion(fleet, active.into_iter().cloned().collect())
}

fn in_proportion(fleet: &Fleet, mut active: Vec<Arc<ReplicaSet>>) -> Sizes {
    let wanted = fleet.wanted();
    let total: i32 = active.iter().map(|s| s.wanted()).sum();
    let allowed = if wanted > 0 { wanted + max_surge(&fleet.deployment) } else { 0 };
    let change = allowed - total;
    // The largest first; among equals the newest grows and the oldest shrinks first.
    active.sort_by_key(|s| {
        let created = s.metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second());
        (-s.wanted(), if change > 0 { -created } else { created })
    });
    let mut done = 0;
    let mut sizes: Sizes = Vec::new();
    for set in &active {
        let share = if change == 0 { 0 } else { share(fleet, set, change, done) };
        done += share;
        sizes.push((Arc::clone(set), set.wanted() + share));
    }
    if let Some((_, first)) = sizes.first_mut() {
        *first = (*first + change - done).max(0);
    }
    sizes.retain(|(set, size)| set.wanted() != *size || annotation(set, DESIRED) != Some(wanted));
    sizes
}

fn share(fleet: &Fleet, set: &ReplicaSet, change: i32, done: i32) -> i32 {
    if set.wanted() == 0 || change == done {
        return 0;
    }
    let wanted = fleet.wanted();
    let fraction = if wanted == 0 {
        -set.wanted()
    } else {
        let status = fleet.deployment.status.replicas;
        let before = annotation(set, MAX).filter(|m| *m > 0).unwrap_or(status).max(1);
        let size = f64::from(set.wanted()) * f64::from(wanted + max_surge(&fleet.deployment))
            / f64::from(before);
        round(size) - set.wanted()
    };
    let allowed = change - done;
    if change > 0 { fraction.min(allowed) } else { fraction.max(allowed) }
}

#[allow(clippy::cast_possible_truncation, reason = "saturates, and sizes are far smaller")]
fn round(size: f64) -> i32 {
    size.round() as i32
}
