//! Owns the fence around the writes of an elected component: each of them holds only while no other master has taken the component over, as
//! the datastore itself decides in the write's own transaction. A write that an old leader sent and that arrives late changes nothing.
//!
//! `/flotilla/leaders/<lease>` is the leader's identity; each term writes it anew, and its writes compare the revision of that. Must not
//! elect anybody: the Lease does.

use std::future::Future;

use apimachinery::{object, status::ApiError};
use store::{Compare, KeyRange, Op, OpResult, Range, Revision, Txn};

use crate::{ApiServer, key, registry::write_error, stored};

const LEADERS: &str = "/flotilla/leaders/";
/// Where the leases of components are.
const NAMESPACE: &str = "kube-system";
/// The holder itself renews the lease meanwhile; each attempt reads it anew.
const ATTEMPTS: usize = 5;

tokio::task_local! {
    static CURRENT: Fence;
}

/// One term of one component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    key: Vec<u8>,
    revision: Revision,
}

/// Does a request's work inside a fence.
pub(crate) async fn within<F: Future>(fence: Fence, work: F) -> F::Output {
    CURRENT.scope(fence, work).await
}

/// The fence that the work at hand is inside of.
pub(crate) fn current() -> Option<Fence> {
    CURRENT.try_with(Fence::clone).ok()
}

impl Fence {
    /// Makes a write depend on the term.
    pub(crate) fn guard(&self, txn: &mut Txn) {
        txn.compare.push(Compare::unchanged(self.key.clone(), self.revision));
        txn.failure.push(Op::Range(Range::all(KeyRange::Key(self.key.clone()))));
    }

    /// Whether it was the term's end that refused a guarded write.
    pub(crate) fn broken(&self, responses: &[OpResult]) -> Option<ApiError> {
        let stands = responses.iter().any(|response| match response {
            OpResult::Range(found) => {
                found.entries.iter().any(|entry| entry.mod_revision == self.revision)
            }
            _ => false,
        });
        (!stands).then(|| ApiError::service_unavailable("another master leads by now"))
    }
}

impl ApiServer {
    /// Begins the term of whoever holds a Lease of `kube-system`: writes of earlier terms are refused from now on.
    ///
    /// # Errors
    /// `identity` does not hold the Lease, or the datastore refuses.
    pub async fn fence(&self, lease: &str, identity: &str) -> Result<Fence, ApiError> {
        let row = self.row("coordination.k8s.io", "leases")?;
        let key = format!("{LEADERS}{lease}").into_bytes();
        for _ in 0..ATTEMPTS {
            self.registry().store().fresh().await.map_err(write_error)?;
            let entry = self.registry().get(&row, NAMESPACE, lease)?;
            let held = stored::decode(&entry)?;
            let holder = object::text(&held, &["spec", "holderIdentity"]);
            if holder != identity {
                let message =
                    format!("lease {lease} is held by \"{holder}\", not by \"{identity}\"");
                return Err(ApiError::service_unavailable(message));
            }
            let lease_key = key::object(&row, NAMESPACE, lease);
            let txn = Txn {
                compare: vec![Compare::unchanged(lease_key, entry.mod_revision)],
                success: vec![Op::put(key.clone(), identity.to_owned())],
                failure: Vec::new(),
            };
            let result = self.registry().store().txn(txn).await.map_err(write_error)?;
            if result.succeeded {
                return Ok(Fence { key, revision: result.revision });
            }
        }
        Err(ApiError::service_unavailable(format!("lease {lease} changes too often")))
    }
}
