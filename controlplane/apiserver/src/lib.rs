//! The Kubernetes API over HTTP: authentication, authorization, admission, resources and streams toward nodes.

pub mod authn;
pub mod authz;
pub mod body;
pub mod bootstrap;
pub mod config;
pub mod discovery;
mod lookup;
pub mod print;
pub mod resource;
pub mod user;

pub use body::{Body, BodyError};
pub use config::{Config, NodeTls};
pub use resource::{Resource, ResourceTable, Scope, Subresource};
pub use user::{Caller, User};
