//! The steps of a rollout: create, annotate, scale, clean up. Pure.
//!
//! A plan holds the steps of one phase only; the reconcile looks again after them. Phases in upstream's order: pause
//! condition, revision, scaling event (or pause), strategy, history.

use super::{
    scale,
    status::{self, condition},
};
use crate::{
    kinds::{Condition, Deployment, ReplicaSet, condition as find},
    runtime::{
        object::Kind,
        template::{self, HASH_LABEL},
    },
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(super) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of the Deployment that its ReplicaSets don't get.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

/// A deadline of this many seconds means none.
const NO_DEADLINE: i32 = i32::MAX;
/// Old ReplicaSets kept where the Deployment does not say (Kubernetes: 10).
const HISTORY_DEFAULT: i32 = 10;

/// A Deployment with its ReplicaSets, sorted out.
pub(super) struct Fleet {
    pub(super) deployment: Arc<Deployment>,
    /// The one of the current template.
    pub(super) new: Option<Arc<ReplicaSet>>,
    /// All others, oldest first.
    pub(super) old: Vec<Arc<ReplicaSet>>,
    /// Some pod of an old one is not finished yet.
    pub(super) old_pods_run: bool,
}

/// One effect.
#[derive(Debug)]
pub(super) enum Step {
    Create { name: String, body: Value },
    Annotate { set: Arc<ReplicaSet>, patch: Value },
    AnnotateDeployment(Value),
    Condition(Condition),
    Scale { set: Arc<ReplicaSet>, to: i32 },
    Delete { set: Arc<ReplicaSet> },
}

impl Fleet {
    pub(super) fn new(
        deployment: &Arc<Deployment>,
        mut sets: Vec<Arc<ReplicaSet>>,
        pods_run: &dyn Fn(&ReplicaSet) -> bool,
    ) -> Self {
        sets.sort_by_key(|s| {
            let created = s.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (created, s.name().to_owned())
        });
        // The oldest of several equal ones: a rollout never jumps between them.
        let at =
            sets.iter().position(|s| template::same(&s.spec.template, &deployment.spec.template));
        let new = at.map(|at| sets.remove(at));
        let old_pods_run = sets.iter().any(|s| pods_run(s));
        Self { deployment: Arc::clone(deployment), new, old: sets, old_pods_run }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new)
    }

    pub(super) fn wanted(&self) -> i32 {
        self.deployment.spec.replicas.unwrap_or(1)
    }

    pub(super) fn is_recreate(&self) -> bool {
        self.deployment.spec.strategy.kind.as_deref() == Some("Recreate")
    }

    pub(super) fn progress_deadline(&self) -> Option<i32> {
        self.deployment.spec.progress_deadline_seconds.filter(|s| *s != NO_DEADLINE)
    }
}

/// What to do next; empty when only the status is left to write.
pub(super) fn steps(fleet: &Fleet) -> Vec<Step> {
    let phases: [fn(&Fleet) -> Vec<Step>; 4] = [pause_condition, revision, resize, clean_up];
    phases.iter().map(|phase| phase(fleet)).find(|steps| !steps.is_empty()).unwrap_or_default()
}

/// A paused Deployment must not run into its deadline.
fn pause_condition(fleet: &Fleet) -> Vec<Step> {
    if fleet.progress_deadline().is_none() {
        return Vec::new();
    }
    let progressing = find(&fleet.deployment.status.conditions, "Progressing");
    let reason = progressing.and_then(|c| c.reason.as_deref());
    if reason == Some("ProgressDeadlineExceeded") {
        return Vec::new();
    }
    let said_paused = reason == Some("DeploymentPaused");
    let (reason, message) = match (fleet.deployment.spec.paused, said_paused) {
        (true, false) => ("DeploymentPaused", "Deployment is paused"),
        (false, true) => ("DeploymentResumed", "Deployment is resumed"),
        _ => return Vec::new(),
    };
    vec![Step::Condition(condition("Progressing", "Unknown", reason, message.into()))]
}

fn number(annotations: &BTreeMap<String, String>, key: &str) -> Option<i64> {
    annotations.get(key)?.parse().ok()
}

/// Sees to it that the current template has its ReplicaSet and all revisions are written down.
fn revision(fleet: &Fleet) -> Vec<Step> {
    let revisions = fleet.old.iter().filter_map(|s| number(s.annotations(), REVISION));
    let revision = revisions.max().unwrap_or(0) + 1;
    let Some(new) = &fleet.new else {
        let waits = fleet.deployment.spec.paused || fleet.is_recreate() && recreate_waits(fleet);
        return if waits { Vec::new() } else { vec![create(fleet, revision)] };
    };
    let wanted = new_annotations(fleet, Some(new), revision);
    let mut steps = Vec::new();
    let min_ready = fleet.deployment.spec.min_ready_seconds;
    if wanted != *new.annotations() || new.spec.min_ready_seconds != min_ready {
        // Annotations that the Deployment no longer has stay, as upstream.
        let patch = json!({
            "metadata": {"annotations": wanted}, "spec": {"minReadySeconds": min_ready},
        });
        steps.push(Step::Annotate { set: Arc::clone(new), patch });
    }
    let current = wanted.get(REVISION);
    if fleet.deployment.annotations().get(REVISION) != current {
        let patch = json!({"metadata": {"annotations": {REVISION: current}}});
        steps.push(Step::AnnotateDeployment(patch));
    }
    if steps.is_empty()
        && fleet.progress_deadline().is_some()
        && find(&fleet.deployment.status.conditions, "Progressing").is_none()
    {
        let message = format!("Found new replica set \"{}\"", new.name());
        steps.push(Step::Condition(condition(
            "Progressing",
            "True",
            "FoundNewReplicaSet",
            message,
        )));
    }
    steps
}

/// Recreate makes the new set only when the old pods are gone.
fn recreate_waits(fleet: &Fleet) -> bool {
    fleet.old_pods_run || fleet.old.iter().any(|s| s.wanted() > 0)
}

/// Annotations of the current ReplicaSet: the Deployment's and its revision.
fn new_annotations(
    fleet: &Fleet,
    set: Option<&Arc<ReplicaSet>>,
    revision: i64,
) -> BTreeMap<String, String> {
    let mut all = set.map(|s| s.annotations().clone()).unwrap_or_default();
    for (key, value) in fleet.deployment.annotations() {
        if !NOT_COPIED.contains(&key.as_str()) {
            all.insert(key.clone(), value.clone());
        }
    }
    let before = number(&all, REVISION).unwrap_or(0);
    if before < revision {
        let old = all.insert(REVISION.into(), revision.to_string());
        if let Some(old) = old.filter(|o| !o.is_empty()) {
            let history = all.entry(REVISION_HISTORY.into()).or_default();
            if !history.is_empty() {
                history.push(',');
            }
            history.push_str(&old);
        }
    }
    all
}

fn create(fleet: &Fleet, revision: i64) -> Step {
    let d = &fleet.deployment;
    let collisions = d.status.collision_count.unwrap_or(0);
    let hash = template::hash(&d.spec.template, collisions);
    let name = format!("{}-{hash}", d.name());
    let replicas = scale::new_replicas(fleet);
    let mut annotations = new_annotations(fleet, None, revision);
    annotations.extend(size_annotations(d));
    let mut template = d.spec.template.clone();
    template["metadata"]["labels"][HASH_LABEL] = json!(hash);
    let mut selector = json!(d.spec.selector);
    selector["matchLabels"][HASH_LABEL] = json!(hash);
    let body = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {
            "name": name, "labels": template["metadata"]["labels"], "annotations": annotations,
            "ownerReferences": [d.as_controller()],
        },
        "spec": {
            "replicas": replicas, "minReadySeconds": d.spec.min_ready_seconds,
            "selector": selector, "template": template,
        },
    });
    Step::Create { name, body }
}

/// What the sizes of ReplicaSets refer to; a difference tells that the Deployment was scaled.
fn size_annotations(d: &Deployment) -> BTreeMap<String, String> {
    let wanted = d.spec.replicas.unwrap_or(1);
    let max = wanted + scale::max_surge(d);
    [(DESIRED.into(), wanted.to_string()), (MAX.into(), max.to_string())].into()
}

/// The patch that scales a ReplicaSet.
pub(super) fn scale_patch(d: &Deployment, to: i32) -> Value {
    json!({"metadata": {"annotations": size_annotations(d)}, "spec": {"replicas": to}})
}

fn resize(fleet: &Fleet) -> Vec<Step> {
    let sizes = if fleet.deployment.spec.paused || scale::is_scaling_event(fleet) {
        scale::proportional(fleet)
    } else if fleet.is_recreate() {
        scale::recreate(fleet)
    } else {
        scale::rolling(fleet)
    };
    sizes.into_iter().map(|(set, to)| Step::Scale { set, to }).collect()
}

/// Deletes the oldest empty ReplicaSets beyond the history limit, once a rollout is complete or while it is paused.
fn clean_up(fleet: &Fleet) -> Vec<Step> {
    if !fleet.deployment.spec.paused && !status::is_complete(fleet) {
        return Vec::new();
    }
    let limit = fleet.deployment.spec.revision_history_limit.unwrap_or(HISTORY_DEFAULT);
    let mut old: Vec<_> = fleet.old.iter().filter(|s| !s.is_deleting()).cloned().collect();
    let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    old.sort_by_key(|s| number(s.annotations(), REVISION).unwrap_or(0));
    let idle = |s: &Arc<ReplicaSet>| {
        s.status.replicas == 0 && s.wanted() == 0 && s.generation() <= s.status.observed_generation
    };
    old.into_iter().take(surplus).filter(idle).map(|set| Step::Delete { set }).collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
