//! What a request does, one file per verb. Each takes a [`Call`] that is already authenticated, authorized and routed.
//! Must not know sockets.

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod delete_collection;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod patch;
pub(crate) mod stream;
pub(crate) mod subresource;
pub(crate) mod update;
pub(crate) mod watch;
mod write;

use std::sync::Arc;

use apimachinery::{negotiate::Answer, request_info::RequestInfo};
use http::HeaderMap;

use crate::{ApiServer, Resource, User, query::Query, view::Form};

/// One request for a resource, ready to be done.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) server: ApiServer,
    pub(crate) info: RequestInfo,
    pub(crate) user: User,
    pub(crate) resource: Arc<Resource>,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    /// How the answer is written.
    pub(crate) answer: Answer,
    pub(crate) form: Form,
}

impl Call {
    pub(crate) fn namespace(&self) -> &str {
        if self.resource.is_namespaced() { &self.info.namespace } else { "" }
    }

    pub(crate) fn name(&self) -> &str {
        &self.info.name
    }
}
