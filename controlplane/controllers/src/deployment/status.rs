//! The status of a Deployment: counts, Available, Progressing with its deadline, ReplicaFailure. Pure.

use super::{plan::Fleet, scale::max_unavailable};
use crate::{
    kinds::{Condition, DeploymentStatus, condition as find},
    runtime::object::Kind,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::time::Duration;

/// The status to write, and when its deadline has to be looked at again.
pub(super) struct Outcome {
    pub(super) status: DeploymentStatus,
    pub(super) look_again: Option<Duration>,
}

/// A condition without times; [`stamped`] sets them.
pub(super) fn condition(kind: &str, status: &str, reason: &str, message: String) -> Condition {
    Condition {
        kind: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        ..Condition::default()
    }
}

/// The list with the condition set. Equal status and reason leave it alone; an equal status keeps its transition time.
pub(super) fn with_condition(all: &[Condition], mut new: Condition) -> Vec<Condition> {
    let old = find(all, &new.kind);
    if old.is_some_and(|o| o.status == new.status && o.reason == new.reason) {
        return all.to_vec();
    }
    if let Some(old) = old.filter(|o| o.status == new.status) {
        new.last_transition_time.clone_from(&old.last_transition_time);
    }
    let mut out = without(all, &new.kind);
    out.push(new);
    out
}

fn without(all: &[Condition], kind: &str) -> Vec<Condition> {
    all.iter().filter(|c| c.kind != kind).cloned().collect()
}

/// Gives new conditions their times.
pub(super) fn stamped(mut all: Vec<Condition>, now: Timestamp) -> Vec<Condition> {
    for c in &mut all {
        c.last_transition_time.get_or_insert(Time(now));
        c.last_update_time.get_or_insert(Time(now));
    }
    all
}

/// Whether the rollout is done, by the ReplicaSets of now.
pub(super) fn is_complete(fleet: &Fleet) -> bool {
    complete(fleet, &counts(fleet))
}

fn complete(fleet: &Fleet, status: &DeploymentStatus) -> bool {
    let wanted = fleet.wanted();
    status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
        && status.observed_generation >= fleet.deployment.generation()
}

fn counts(fleet: &Fleet) -> DeploymentStatus {
    let replicas = fleet.all().map(|s| s.status.replicas).sum();
    let available = fleet.all().map(|s| s.status.available_replicas).sum();
    let terminating: Vec<i32> = fleet.all().filter_map(|s| s.status.terminating_replicas).collect();
    // Before the ReplicaSet controller counted, the number is unknown.
    let all_known = terminating.len() == fleet.all().count();
    DeploymentStatus {
        observed_generation: fleet.deployment.generation(),
        replicas,
        updated_replicas: fleet.new.as_ref().map_or(0, |n| n.status.replicas),
        ready_replicas: fleet.all().map(|s| s.status.ready_replicas).sum(),
        available_replicas: available,
        unavailable_replicas: {
            let total: i32 = fleet.all().map(|s| s.wanted()).sum();
            (total - available).max(0)
        },
        terminating_replicas: all_known.then(|| terminating.iter().sum()),
        collision_count: fleet.deployment.status.collision_count,
        conditions: Vec::new(),
    }
}

/// The status that the ReplicaSets make.
pub(super) fn plan(fleet: &Fleet, now: Timestamp) -> Outcome {
    let d = &fleet.deployment;
    let mut status = counts(fleet);
    let enough = status.available_replicas >= fleet.wanted() - max_unavailable(d);
    let available = if enough {
        let message = "Deployment has minimum availability.".to_owned();
        condition("Available", "True", "MinimumReplicasAvailable", message)
    } else {
        let message = "Deployment does not have minimum availability.".to_owned();
        condition("Available", "False", "MinimumReplicasUnavailable", message)
    };
    let conditions = with_condition(&d.status.conditions, available);
    let conditions = progressing(fleet, &status, conditions, now);
    let failed = fleet
        .new
        .iter()
        .chain(&fleet.old)
        .find_map(|s| find(&s.status.conditions, "ReplicaFailure"));
    let conditions = match failed {
        Some(failed) => {
            let reason = failed.reason.clone().unwrap_or_default();
            let message = failed.message.clone().unwrap_or_default();
            with_condition(
                &conditions,
                condition("ReplicaFailure", &failed.status, &reason, message),
            )
        }
        None => without(&conditions, "ReplicaFailure"),
    };
    status.conditions = stamped(conditions, now);
    let look_again = until_deadline(fleet, &status, now);
    Outcome { status, look_again }
}

fn progressing(
    fleet: &Fleet,
    status: &DeploymentStatus,
    conditions: Vec<Condition>,
    now: Timestamp,
) -> Vec<Condition> {
    let Some(deadline) = fleet.progress_deadline() else {
        return without(&conditions, "Progressing");
    };
    let current = find(&conditions, "Progressing");
    let said_done = current.is_some_and(|c| c.reason.as_deref() == Some("NewReplicaSetAvailable"));
    if fleet.deployment.is_deleting() || said_done && status.replicas == status.updated_replicas {
        return conditions;
    }
    let subject = match &fleet.new {
        Some(new) => format!("ReplicaSet \"{}\"", new.name()),
        None => format!("Deployment \"{}\"", fleet.deployment.name()),
    };
    if complete(fleet, status) {
        let message = format!("{subject} has successfully progressed.");
        let done = condition("Progressing", "True", "NewReplicaSetAvailable", message);
        return with_condition(&conditions, done);
    }
    if has_progressed(&fleet.deployment.status, status) {
        let message = format!("{subject} is progressing.");
        let mut fresh = condition("Progressing", "True", "ReplicaSetUpdated", message);
        // Progress restarts the deadline, so the condition is renewed even when it says the same.
        if let Some(old) = current.filter(|c| c.status == "True") {
            fresh.last_transition_time.clone_from(&old.last_transition_time);
        }
        let mut out = without(&conditions, "Progressing");
        out.push(fresh);
        return out;
    }
    if current.is_some_and(|c| is_late(c, deadline, now)) {
        let message = format!("{subject} has timed out progressing.");
        let late = condition("Progressing", "False", "ProgressDeadlineExceeded", message);
        return with_condition(&conditions, late);
    }
    conditions
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let outdated = |s: &DeploymentStatus| s.replicas - s.updated_replicas;
    new.updated_replicas > old.updated_replicas
        || outdated(new) < outdated(old)
        || new.ready_replicas > old.ready_replicas
        || new.available_replicas > old.available_replicas
}

/// Reasons of Progressing from which on nothing is waited for.
fn is_settled(c: &Condition) -> bool {
    matches!(c.reason.as_deref(), Some("NewReplicaSetAvailable" | "DeploymentPaused"))
}

fn is_late(c: &Condition, deadline: i32, now: Timestamp) -> bool {
    if c.reason.as_deref() == Some("ProgressDeadlineExceeded") {
        return true;
    }
    let since = c.last_update_time.as_ref().map_or(now, |t| t.0);
    !is_settled(c) && since.as_second() + i64::from(deadline) < now.as_second()
}

fn until_deadline(fleet: &Fleet, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let deadline = fleet.progress_deadline()?;
    let c = find(&status.conditions, "Progressing")?;
    if is_settled(c) || c.reason.as_deref() == Some("ProgressDeadlineExceeded") {
        return None;
    }
    let due = c.last_update_time.as_ref()?.0.as_second() + i64::from(deadline) + 1;
    Some(Duration::from_secs(u64::try_from(due - now.as_second()).unwrap_or(0).max(1)))
}
