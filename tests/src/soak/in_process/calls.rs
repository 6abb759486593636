//! One call of a client: what it asks, and what it was answered.

use std::time::Duration;

use store::{LeaseStatus, Revision, Store, Txn, TxnResult, WriteError};

use super::leases::Moment;

/// How long an answer may take. A store that does not answer is broken.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// Leases outlive their history: nothing ends by itself while it is being checked.
pub const LEASE_SECONDS: i64 = 5000;

/// What a client asks.
#[derive(Debug, Clone)]
pub enum Call {
    /// A transaction.
    Txn(Txn),
    /// A lease of this id.
    Grant(i64),
    /// The end of a lease.
    Revoke(i64),
    /// More time for a lease.
    KeepAlive(i64),
    /// The state of a lease.
    TimeToLive(i64),
    /// To forget the past.
    Compact(Revision),
}

/// What it was answered.
#[derive(Debug, Clone)]
pub enum Answer {
    /// To [`Call::Txn`].
    Txn(Result<TxnResult, WriteError>),
    /// To [`Call::Grant`], [`Call::Revoke`], [`Call::KeepAlive`].
    Number(Result<i64, WriteError>),
    /// To [`Call::TimeToLive`].
    Lease(Result<LeaseStatus, WriteError>),
    /// To [`Call::Compact`].
    Unit(Result<(), WriteError>),
    /// None came in time.
    Silence,
}

/// A call that was made.
#[derive(Debug, Clone)]
pub struct Made {
    /// The call.
    pub call: Call,
    /// Everything up to here had been seen when it was made.
    pub floor: Revision,
    /// When it was made.
    pub at: Moment,
    /// Whether its caller went away before the answer.
    pub abandoned: bool,
    /// The answer, when it came, and what the store's revision was then.
    pub answered: Option<(Answer, Moment, Revision)>,
}

/// Makes a call.
pub async fn make(store: Store, call: Call) -> Answer {
    let answer = async {
        match call {
            Call::Txn(txn) => Answer::Txn(store.txn(txn).await),
            Call::Grant(lease) => Answer::Number(store.lease_grant(lease, LEASE_SECONDS).await),
            Call::Revoke(lease) => Answer::Number(store.lease_revoke(lease).await),
            Call::KeepAlive(lease) => Answer::Number(store.lease_keep_alive(lease).await),
            Call::TimeToLive(lease) => Answer::Lease(store.lease_time_to_live(lease).await),
            Call::Compact(revision) => Answer::Unit(store.compact(revision).await),
        }
    };
    tokio::time::timeout(ANSWER_DEADLINE, answer).await.unwrap_or(Answer::Silence)
}

impl Answer {
    /// The error that it is.
    #[must_use]
    pub fn error(&self) -> Option<&WriteError> {
        match self {
            Self::Txn(Err(error))
            | Self::Number(Err(error))
            | Self::Lease(Err(error))
            | Self::Unit(Err(error)) => Some(error),
            _ => None,
        }
    }

    /// Whether the write may have been done or not.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Silence)
            || matches!(self.error(), Some(WriteError::Refused { .. } | WriteError::Closed))
    }
}
