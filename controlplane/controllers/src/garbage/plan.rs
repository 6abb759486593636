//! What to do with an object, given what became of its owners. Pure.

use super::graph::Owner;

/// What a live look at an owner said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// It is there.
    Solid,
    /// It is there and waits in foreground deletion for its dependents.
    Waiting,
    /// It is gone or another object has its name.
    Absent,
    /// The reference can't hold: a namespaced owner in another namespace.
    Impossible,
}

/// The decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// Keep the object, drop the references to these owners.
    Unlink(Vec<String>),
    /// Delete it in the foreground, because its owner waits and it has dependents itself.
    DeleteForeground,
    /// Delete it as its own finalizers say, in the background by default.
    Delete,
}

/// Decides by all owners. `has_dependents`: the object is an owner itself.
pub(super) fn verdict(owners: &[(Owner, Found)], has_dependents: bool) -> Verdict {
    let of = |wanted: Found| owners.iter().filter(move |(_, f)| *f == wanted);
    if owners.is_empty() || of(Found::Impossible).next().is_some() {
        return Verdict::Keep;
    }
    if of(Found::Solid).next().is_some() {
        let useless: Vec<String> =
            of(Found::Absent).chain(of(Found::Waiting)).map(|(o, _)| o.uid.to_string()).collect();
        return if useless.is_empty() { Verdict::Keep } else { Verdict::Unlink(useless) };
    }
    if of(Found::Waiting).next().is_some() && has_dependents {
        return Verdict::DeleteForeground;
    }
    Verdict::Delete
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        use Found::{Absent, Impossible, Solid, Waiting};
        for (found, has_dependents, expected) in [
            (vec![], false, Verdict::Keep),
            (vec![Solid], true, Verdict::Keep),
            (vec![Absent], true, Verdict::Delete),
            (vec![Waiting], false, Verdict::Delete),
            (vec![Waiting], true, Verdict::DeleteForeground),
            (vec![Solid, Absent, Waiting], false, Verdict::Unlink(vec!["1".into(), "2".into()])),
            (vec![Absent, Impossible], false, Verdict::Keep),
        ] {
            let owner = |(i, f): (usize, &Found)| {
                let uid = i.to_string();
                let owner = Owner {
                    uid: uid.as_str().into(),
                    api_version: "v1".into(),
                    kind: "X".into(),
                    name: "x".into(),
                    blocks: false,
                };
                (owner, *f)
            };
            let owners: Vec<_> = found.iter().enumerate().map(owner).collect();
            assert_eq!(verdict(&owners, has_dependents), expected, "{found:?}");
        }
    }
}
