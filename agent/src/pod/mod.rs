//! Pods: what they ask for, what is planned for them, and the workers that do it.

pub(crate) mod env;
pub(crate) mod field;
pub(crate) mod plan;
pub(crate) mod spec;
pub(crate) mod state;
pub(crate) mod status;
