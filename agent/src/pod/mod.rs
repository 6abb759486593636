//! Pods: what they ask for, what is planned for them, and the workers that do it.

pub(crate) mod clean;
pub(crate) mod container;
pub(crate) mod dispatch;
pub(crate) mod dns;
pub(crate) mod ended;
pub(crate) mod env;
pub(crate) mod field;
pub(crate) mod memory;
pub(crate) mod mirror;
pub(crate) mod plan;
pub(crate) mod registry;
pub(crate) mod report;
pub(crate) mod rootfs;
pub(crate) mod sandbox;
pub(crate) mod spec;
pub(crate) mod start;
pub(crate) mod state;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod watch;
pub(crate) mod work;
pub(crate) mod worker;
