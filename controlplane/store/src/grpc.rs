//! Owns the gRPC face of the store, which is etcd's v3 API. Must not decide what a request means: `txn`, `state`, `watch` and
//! `lease` do; here requests become theirs and answers become messages.
//!
//! gRPC is spoken over hyper by ourselves (`wire`): a call costs one decoding, one future and one encoding.

mod authority;
mod cluster;
mod kv;
mod lease;
mod maintenance;
pub(crate) mod messages;
mod refusal;
mod route;
mod serve;
#[cfg(test)]
mod suite;
mod watching;
mod wire;

use std::sync::Arc;

use tokio::sync::watch;

use crate::grpc::messages::ResponseHeader;
pub use crate::grpc::serve::bind_unix;
use crate::{Revision, Store};

/// Which etcd this is to its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The same for every master of a cluster.
    pub cluster_id: u64,
    /// This master.
    pub member_id: u64,
    /// Its name in the list of members.
    pub name: String,
    /// Where clients reach it, as etcd writes it: `unix:///var/lib/…/etcd.sock`.
    pub client_urls: Vec<String>,
}

/// The services over one store. Clones are handles of the same services.
#[derive(Debug, Clone)]
pub struct Services {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    identity: Identity,
}

/// Elections don't happen: one term.
const RAFT_TERM: u64 = 1;

impl Services {
    /// The services over `store`.
    pub fn new(store: Store, identity: Identity) -> Self {
        Self { inner: Arc::new(Inner { store, identity }) }
    }

    fn store(&self) -> &Store {
        &self.inner.store
    }

    fn header(&self, revision: Revision) -> Option<ResponseHeader> {
        let Identity { cluster_id, member_id, .. } = self.inner.identity;
        Some(ResponseHeader { cluster_id, member_id, revision, raft_term: RAFT_TERM })
    }

    fn header_now(&self) -> Option<ResponseHeader> {
        self.header(self.store().revision())
    }
}

/// Until it is time to stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone says the same.
    drop(stop.wait_for(|stop| *stop).await);
}
