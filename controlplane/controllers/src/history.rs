//! ControllerRevisions: the remembered templates of an owner, which `kubectl rollout history` and `undo` read.

use crate::{
    claim,
    cluster::Cluster,
    kinds::ControllerRevision,
    runtime::{Error, Key, object::Kind, template, write::Deletion},
};
use serde_json::{Value, json};
use std::{collections::HashSet, sync::Arc};

/// Label of pods and revisions that says which template made them.
pub(crate) const HASH: &str = "controller-revision-hash";
/// Templates whose hashes collide are told apart by a count up to this.
const COLLISIONS_MAX: i32 = 8;

/// What is stored of a template: a patch that brings it back.
fn data(template: &Value) -> Value {
    let mut template = template::normalized(template);
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// Sees to it that the template is the newest revision; gives its hash.
pub(crate) async fn ensure<K: Kind>(
    cluster: &Cluster,
    owner: &K,
    template: &Value,
) -> Result<String, Error> {
    let wanted = data(template);
    let all = cluster.revisions.owned_by(owner.uid());
    let newest = all.iter().map(|r| r.revision).max().unwrap_or(0);
    if let Some(same) = all.iter().find(|r| r.data == wanted) {
        if same.revision < newest {
            let patch = json!({ "revision": newest + 1 });
            cluster.revisions.patch_object(&same.metadata, patch).await?;
        }
        return Ok(hash_of(same));
    }
    for collisions in 0..COLLISIONS_MAX {
        let hash = template::hash(template, collisions);
        let name = format!("{}-{hash}", owner.name());
        let mut labels = template["metadata"]["labels"].clone();
        labels[HASH] = json!(hash);
        let body = json!({
            "apiVersion": "apps/v1", "kind": "ControllerRevision",
            "metadata": {"name": name, "labels": labels, "ownerReferences": [owner.as_controller()]},
            "data": wanted, "revision": newest + 1,
        });
        match cluster.revisions.create(owner.namespace(), &body).await {
            Ok(_) => return Ok(hash),
            Err(error) if error.is_already_exists() => {
                let there = cluster.revisions.live(&Key::new(owner.namespace(), &name)).await?;
                let Some(there) = there.filter(|r| r.data == wanted) else { continue };
                match there.controller().map(|o| o.uid == owner.uid()) {
                    Some(true) => cluster.revisions.observe_write(there),
                    Some(false) => continue,
                    // Left behind by an owner that orphaned it.
                    None => {
                        let patch = json!({"metadata": {"ownerReferences": claim::adopted(owner, &there)}, "revision": newest + 1});
                        cluster.revisions.patch_object(&there.metadata, patch).await?
                    }
                };
                return Ok(hash);
            }
            Err(error) => return Err(error),
        }
    }
    Err(Error::Malformed {
        kind: "ControllerRevision",
        name: owner.name().into(),
        what: "its names are taken by revisions of others".into(),
    })
}

fn hash_of(revision: &ControllerRevision) -> String {
    revision.labels().get(HASH).cloned().unwrap_or_default()
}

/// Deletes the oldest revisions beyond the limit that no pod is of.
pub(crate) async fn prune(
    cluster: &Cluster,
    owner_uid: &str,
    live: &HashSet<String>,
    limit: Option<i32>,
) -> Result<(), Error> {
    let mut unused: Vec<Arc<ControllerRevision>> = cluster
        .revisions
        .owned_by(owner_uid)
        .into_iter()
        .filter(|r| !live.contains(&hash_of(r)))
        .collect();
    unused.sort_by_key(|r| r.revision);
    let keep = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
    let surplus = unused.len().saturating_sub(keep);
    for revision in unused.into_iter().take(surplus) {
        let how = Deletion { same_version: true, ..Deletion::default() };
        cluster.revisions.delete(&revision.metadata, how).await?;
    }
    Ok(())
}
