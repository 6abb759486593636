//! Owns what a resource does differently on writes, as plain data and pure functions over the object.
//! Must not touch the store: what needs it (addresses, ports) is `allocate`.

use serde_json::Value;

/// What a resource's `metadata.generation` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// Nothing: the resource has none.
    None,
    /// Changes outside metadata and status.
    Content,
    /// These and changes of annotations (Deployment, as upstream).
    ContentAndAnnotations,
}

/// How writes of one resource differ from the ordinary.
#[derive(Debug, Clone, Copy)]
pub struct Strategy {
    /// What `metadata.generation` counts.
    pub generation: Generation,
    /// An update without `resourceVersion` overwrites whatever is there.
    pub unconditional_update: bool,
    /// PUT of an object that doesn't exist creates it.
    pub create_on_update: bool,
    /// The status a new object begins with, whatever the client sent; `None`: the client's is kept.
    pub empty_status: Option<fn() -> Value>,
    /// Sets what only the server sets, before admission's last word and validation.
    pub prepare_create: fn(&mut Value),
    /// The same for an update; the second is the object as stored.
    pub prepare_update: fn(&mut Value, &Value),
    /// What becomes of dependents when a delete doesn't say: orphaned, or collected in the background.
    pub orphans_dependents: bool,
    /// A delete answers with the object instead of a `Status`.
    pub returns_deleted: bool,
    /// The grace in seconds that a delete without `gracePeriodSeconds` gets; `None`: deleted at once.
    pub grace_seconds: Option<fn(&Value) -> i64>,
    /// Objects go away by themselves, [`crate::Config::event_ttl`] after their last write.
    pub expires: bool,
}

impl Strategy {
    /// The ordinary strategy.
    pub const PLAIN: Self = Self {
        generation: Generation::None,
        unconditional_update: true,
        create_on_update: false,
        empty_status: None,
        prepare_create: |_| {},
        prepare_update: |_, _| {},
        orphans_dependents: false,
        returns_deleted: false,
        grace_seconds: None,
        expires: false,
    };
}

impl Default for Strategy {
    fn default() -> Self {
        Self::PLAIN
    }
}

/// Conversions between a version that is served and the one that is stored.
#[derive(Debug, Clone, Copy)]
pub struct Convert {
    /// From the served version into the stored one.
    pub to_stored: fn(&mut Value),
    /// From the stored version into the served one.
    pub from_stored: fn(&mut Value),
}
