//! What every controller stands on: one reflector per kind, work queues, guarded writes, events.
//! Knows no controller.

pub(crate) mod cache;
pub(crate) mod discovery;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod object;
pub(crate) mod queue;
pub(crate) mod selector;
pub(crate) mod template;
pub(crate) mod write;

pub(crate) use cache::Cache;
pub(crate) use error::Error;
pub(crate) use events::Recorder;
pub(crate) use object::Key;
pub(crate) use queue::{Next, WorkQueue, run_workers};
