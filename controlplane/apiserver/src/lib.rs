//! The Kubernetes API over HTTP: authentication, authorization, admission, resources and streams toward nodes.

pub mod body;
pub mod config;
pub mod resource;
pub mod user;

pub use body::{Body, BodyError};
pub use config::{Config, NodeTls};
pub use resource::{Resource, ResourceTable, Scope, Subresource};
pub use user::{Caller, User};
