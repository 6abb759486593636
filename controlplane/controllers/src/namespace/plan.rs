//! What is left of a namespace in deletion, and the conditions that say so, in upstream's words. Pure.

use crate::kinds::Condition;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::{ApiResource, ObjectMeta};
use std::collections::BTreeMap;

/// What one pass of deletion found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) discovery_errors: Vec<String>,
    pub(super) deletion_errors: Vec<String>,
    /// Objects left, by `plural.group`.
    remaining: BTreeMap<String, usize>,
    /// Finalizers that objects wait for.
    finalizers: BTreeMap<String, usize>,
}

impl Findings {
    /// Notes objects that go on living.
    pub(super) fn note(&mut self, api: &ApiResource, left: &[ObjectMeta]) {
        if left.is_empty() {
            return;
        }
        let name = if api.group.is_empty() {
            format!("{}.", api.plural)
        } else {
            format!("{}.{}", api.plural, api.group)
        };
        *self.remaining.entry(name).or_default() += left.len();
        for finalizer in left.iter().filter_map(|m| m.finalizers.as_ref()).flatten() {
            *self.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
    }

    /// Whether the namespace may go.
    pub(super) fn is_empty(&self) -> bool {
        self.discovery_errors.is_empty()
            && self.deletion_errors.is_empty()
            && self.remaining.is_empty()
    }
}

fn listed(
    map: &BTreeMap<String, usize>,
    intro: &str,
    one: impl Fn(&str, usize) -> String,
) -> Option<String> {
    let parts: Vec<String> = map.iter().map(|(name, count)| one(name, *count)).collect();
    (!parts.is_empty()).then(|| format!("{intro}{}", parts.join(", ")))
}

/// The conditions after the pass; `None` when nothing changed.
pub(super) fn conditions(
    current: &[Condition],
    findings: &Findings,
    now: Timestamp,
) -> Option<Vec<Condition>> {
    let joined = |errors: &[String]| (!errors.is_empty()).then(|| errors.join(", "));
    let remaining = listed(&findings.remaining, "Some resources are remaining: ", |name, count| {
        format!("{name} has {count} resource instances")
    });
    let finalizers = listed(
        &findings.finalizers,
        "Some content in the namespace has finalizers remaining: ",
        |name, count| format!("{name} in {count} resource instances"),
    );
    let deletion = joined(&findings.deletion_errors).map(|e| {
        format!(
            "Failed to delete all resource types, {} remaining: {e}",
            findings.deletion_errors.len()
        )
    });
    let table = [
        (
            "NamespaceDeletionDiscoveryFailure",
            joined(&findings.discovery_errors),
            "DiscoveryFailed",
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            "GroupVersionParsingFailed",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            deletion,
            "ContentDeletionFailed",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            remaining,
            "SomeResourcesRemain",
            "ContentRemoved",
            "All content successfully removed",
        ),
        (
            "NamespaceFinalizersRemaining",
            finalizers,
            "SomeFinalizersRemain",
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ];
    let mut next = current.to_vec();
    for (kind, problem, bad, good, fine) in table {
        let condition = match problem {
            Some(problem) => ("True", bad, problem),
            None => ("False", good, fine.to_owned()),
        };
        set(&mut next, kind, condition, now);
    }
    (next != current).then_some(next)
}

fn set(
    all: &mut Vec<Condition>,
    kind: &str,
    (status, reason, message): (&str, &str, String),
    now: Timestamp,
) {
    let old = all.iter().position(|c| c.kind == kind);
    let old = old.map(|at| all.remove(at));
    let same = old.as_ref().is_some_and(|o| o.status == status);
    let since = old.filter(|_| same).and_then(|o| o.last_transition_time);
    all.push(Condition {
        kind: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_transition_time: since.or(Some(Time(now))),
        ..Condition::default()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_is_left() {
        let api = ApiResource {
            group: String::new(),
            version: "v1".into(),
            api_version: "v1".into(),
            kind: "Pod".into(),
            plural: "pods".into(),
        };
        let mut findings = Findings::default();
        let held = ObjectMeta { finalizers: Some(vec!["x.io/f".into()]), ..ObjectMeta::default() };
        findings.note(&api, &[held, ObjectMeta::default()]);
        let now = Timestamp::from_second(1).unwrap();
        let first = conditions(&[], &findings, now).unwrap();
        let text: Vec<String> = first
            .iter()
            .filter(|c| c.status == "True")
            .map(|c| format!("{}: {}", c.kind, c.message.as_deref().unwrap()))
            .collect();
        assert_eq!(
            text,
            [
                "NamespaceContentRemaining: Some resources are remaining: pods. has 2 resource instances",
                "NamespaceFinalizersRemaining: Some content in the namespace has finalizers remaining: \
                 x.io/f in 1 resource instances",
            ]
        );
        assert_eq!(conditions(&first, &findings, Timestamp::from_second(9).unwrap()), None);
        assert!(!findings.is_empty() && Findings::default().is_empty());
    }
}
