//! The graph of owners and dependents. Pure: events in, keys to look at out.
//!
//! A node is an object seen on a watch. Owners that were never seen are not nodes; objects that name such an owner are
//! looked at, and only a live read decides that the owner is absent.

use kube::core::ObjectMeta;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

/// Finalizer of an object that waits for its dependents.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an object whose dependents are to be released.
pub(super) const ORPHAN: &str = "orphan";

pub(super) type Uid = Arc<str>;

/// What an owner reference says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: Uid,
    pub(super) api_version: Arc<str>,
    pub(super) kind: Arc<str>,
    pub(super) name: Box<str>,
    pub(super) blocks: bool,
}

/// An object.
#[derive(Debug, Clone)]
pub(super) struct Object {
    /// Index of its kind in the collector's table.
    pub(super) kind: usize,
    pub(super) namespace: Box<str>,
    pub(super) name: Box<str>,
    pub(super) owners: Vec<Owner>,
    pub(super) deleting: bool,
    pub(super) waits_for_dependents: bool,
    pub(super) orphans_dependents: bool,
}

/// Something to look at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Task {
    /// Whether the object still has an owner.
    Attempt(Uid),
    /// The object wants its dependents released.
    Orphan(Uid),
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Attempt(uid) => write!(f, "{uid}"),
            Self::Orphan(uid) => write!(f, "orphan {uid}"),
        }
    }
}

/// All objects and who depends on whom.
#[derive(Debug, Default)]
pub(super) struct Graph {
    objects: HashMap<Uid, Object>,
    dependents: HashMap<Uid, BTreeSet<Uid>>,
}

fn has(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|f| f == finalizer)
}

impl Object {
    pub(super) fn read(kind: usize, meta: &ObjectMeta) -> Self {
        let owner = |o: &k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| Owner {
            uid: o.uid.as_str().into(),
            api_version: o.api_version.as_str().into(),
            kind: o.kind.as_str().into(),
            name: o.name.as_str().into(),
            blocks: o.block_owner_deletion == Some(true),
        };
        let deleting = meta.deletion_timestamp.is_some();
        Self {
            kind,
            namespace: meta.namespace.as_deref().unwrap_or_default().into(),
            name: meta.name.as_deref().unwrap_or_default().into(),
            owners: meta.owner_references.iter().flatten().map(owner).collect(),
            deleting,
            waits_for_dependents: deleting && has(meta, FOREGROUND),
            orphans_dependents: deleting && has(meta, ORPHAN),
        }
    }
}

impl Graph {
    pub(super) fn get(&self, uid: &str) -> Option<&Object> {
        self.objects.get(uid)
    }

    pub(super) fn dependents(&self, uid: &str) -> Vec<(Uid, Object)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|u| Some((Arc::clone(u), self.objects.get(u)?.clone()))).collect()
    }

    /// UIDs of all objects of a kind, to find what a relist lacks.
    pub(super) fn of_kind(&self, kind: usize) -> HashSet<Uid> {
        let mine = self.objects.iter().filter(|(_, o)| o.kind == kind);
        mine.map(|(uid, _)| Arc::clone(uid)).collect()
    }

    /// An object appeared or changed.
    pub(super) fn put(&mut self, uid: &Uid, object: Object) -> Vec<Task> {
        let mut tasks = Vec::new();
        let old = self.objects.remove(uid);
        let unseen = |o: &Owner| !self.objects.contains_key(&o.uid) && o.uid != *uid;
        let owners_changed = old.as_ref().is_none_or(|old| old.owners != object.owners);
        if owners_changed && object.owners.iter().any(unseen) {
            tasks.push(Task::Attempt(Arc::clone(uid)));
        }
        if let Some(old) = &old {
            self.unlink(uid, old);
            // A reference that went may have been the last one that held a waiting owner back.
            let lost = old.owners.iter().filter(|o| o.blocks && !object.owners.contains(o));
            tasks.extend(lost.map(|o| Task::Attempt(Arc::clone(&o.uid))));
            let removed = old.owners.len() > object.owners.len();
            if removed && !object.owners.is_empty() {
                tasks.push(Task::Attempt(Arc::clone(uid)));
            }
        }
        for owner in &object.owners {
            self.dependents.entry(Arc::clone(&owner.uid)).or_default().insert(Arc::clone(uid));
            let waits = self.objects.get(&owner.uid).is_some_and(|o| o.waits_for_dependents);
            if waits && !object.deleting {
                tasks.push(Task::Attempt(Arc::clone(uid)));
            }
        }
        if object.orphans_dependents && !old.as_ref().is_some_and(|o| o.orphans_dependents) {
            tasks.push(Task::Orphan(Arc::clone(uid)));
        }
        if object.waits_for_dependents && !old.as_ref().is_some_and(|o| o.waits_for_dependents) {
            tasks.push(Task::Attempt(Arc::clone(uid)));
            let mine = self.dependents.get(uid).into_iter().flatten();
            tasks.extend(mine.map(|d| Task::Attempt(Arc::clone(d))));
        }
        self.objects.insert(Arc::clone(uid), object);
        tasks
    }

    /// An object is gone: what depended on it has to be looked at, and owners that waited for it.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<Task> {
        let Some((uid, object)) = self.objects.remove_entry(uid) else { return Vec::new() };
        self.unlink(&uid, &object);
        let dependents = self.dependents.get(&uid).into_iter().flatten();
        let mut tasks: Vec<Task> = dependents.map(|d| Task::Attempt(Arc::clone(d))).collect();
        for owner in object.owners {
            if self.objects.get(&owner.uid).is_some_and(|o| o.waits_for_dependents) {
                tasks.push(Task::Attempt(owner.uid));
            }
        }
        tasks
    }

    fn unlink(&mut self, uid: &Uid, object: &Object) {
        for owner in &object.owners {
            if let Some(set) = self.dependents.get_mut(&owner.uid) {
                set.remove(uid);
                if set.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn object(owners: &[&str], state: &str) -> Object {
        let owner = |uid: &&str| Owner {
            uid: (*uid).into(),
            api_version: "v1".into(),
            kind: "X".into(),
            name: (*uid).into(),
            blocks: true,
        };
        Object {
            kind: 0,
            namespace: "d".into(),
            name: "x".into(),
            owners: owners.iter().map(owner).collect(),
            deleting: !state.is_empty(),
            waits_for_dependents: state == "foreground",
            orphans_dependents: state == "orphan",
        }
    }

    fn show(tasks: &[Task]) -> String {
        tasks.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_an_event_makes_worth_looking_at() {
        let mut g = Graph::default();
        let uid = |u: &str| Uid::from(u);
        assert_eq!(show(&g.put(&uid("rs"), object(&[], ""))), "");
        assert_eq!(show(&g.put(&uid("pod"), object(&["rs"], ""))), "");
        assert_eq!(show(&g.put(&uid("stray"), object(&["ghost"], ""))), "stray");
        assert_eq!(show(&g.put(&uid("rs"), object(&[], "foreground"))), "rs pod");
        assert_eq!(show(&g.put(&uid("late"), object(&["rs"], ""))), "late");
        assert_eq!(show(&g.remove("pod")), "rs");
        assert_eq!(show(&g.put(&uid("rs"), object(&[], "orphan"))), "orphan rs");
        assert_eq!(show(&g.remove("rs")), "late");
        assert_eq!(show(&g.remove("rs")), "");
    }

    proptest! {
        /// The reverse index is exactly the reverse of the references.
        #[test]
        fn dependents_mirror_owners(steps in prop::collection::vec((0u8..6, prop::collection::vec(0u8..6, 0..3), any::<bool>()), 0..40)) {
            let mut g = Graph::default();
            for (who, owners, gone) in steps {
                let uid = Uid::from(who.to_string());
                if gone {
                    g.remove(&uid);
                } else {
                    let names: Vec<String> = owners.iter().map(ToString::to_string).collect();
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    g.put(&uid, object(&names, ""));
                }
                let mut expected: HashMap<Uid, BTreeSet<Uid>> = HashMap::new();
                for (uid, o) in &g.objects {
                    for owner in &o.owners {
                        expected.entry(owner.uid.clone()).or_default().insert(uid.clone());
                    }
                }
                prop_assert_eq!(&g.dependents, &expected);
            }
        }
    }
}
