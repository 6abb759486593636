//! Owns the question how far the datastore is: whoever asks waits until everything that anybody was told before is published here. One
//! question to etcd serves all who asked before it was sent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::backend::etcd::Shared;
use crate::backend::etcd::client::Repeat;
use crate::backend::etcd::commit::unreadable;
use crate::backend::etcd::load::RANGE;
use crate::backend::etcd::wire::OFFSET_KEY;
use crate::grpc::messages::kv::{RangeRequest, RangeResponse};
use crate::txn::WriteError;

type Waiting = Vec<oneshot::Sender<Result<(), WriteError>>>;

#[derive(Debug, Default)]
struct State {
    asking: bool,
    /// Who asked since the last question was sent.
    waiting: Waiting,
}

#[derive(Debug, Default)]
pub(crate) struct Barrier {
    state: Mutex<State>,
}

impl Barrier {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Waiting> {
        let mut state = self.lock();
        let waiting = std::mem::take(&mut state.waiting);
        state.asking = !waiting.is_empty();
        state.asking.then_some(waiting)
    }
}

/// Asks, or joins those who wait for the next question.
pub(crate) fn ask(
    shared: &Arc<Shared>,
    runtime: &Handle,
) -> oneshot::Receiver<Result<(), WriteError>> {
    let (sender, receiver) = oneshot::channel();
    let mut state = shared.barrier.lock();
    state.waiting.push(sender);
    if !std::mem::replace(&mut state.asking, true) {
        let shared = shared.clone();
        runtime.spawn(async move {
            while let Some(waiting) = shared.barrier.take() {
                let answer = question(&shared).await;
                for waiter in waiting {
                    // Nobody may wait any more.
                    drop(waiter.send(answer.clone()));
                }
            }
        });
    }
    receiver
}

async fn question(shared: &Shared) -> Result<(), WriteError> {
    if let Some(reason) = shared.failed.get() {
        return Err(WriteError::Refused { reason: reason.clone() });
    }
    let unavailable = |reason: String| WriteError::Unavailable { reason: reason.into() };
    let key = Bytes::from_static(OFFSET_KEY);
    let request = RangeRequest { key, count_only: true, ..RangeRequest::default() };
    let asked = shared.client.unary::<_, RangeResponse>(RANGE, request, Repeat::Always).await;
    let answer = asked.map_err(|failure| unavailable(failure.to_string()))?;
    shared.client.note(answer.header.as_ref());
    let header = answer.header.ok_or_else(|| unreadable("no header"))?;
    shared.published_at(header.revision).await.map_err(|error| unavailable(error.to_string()))?;
    Ok(())
}
