//! Owns the service `KV`: requests as the store's words, and the store's results as etcd's answers.

mod range;
mod request;

use bytes::Bytes;

use crate::grpc::Services;
pub(super) use crate::grpc::kv::request::keys;
use crate::grpc::messages::kv::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, Request, RequestOp, Response, ResponseOp, TxnRequest,
    TxnResponse,
};
use crate::grpc::messages::{KeyValue, ResponseHeader};
use crate::grpc::refusal::{NO_SPACE, Refusal};
use crate::revision::{Entry, Revision};
use crate::txn::{OpResult, Txn, TxnResult, WriteError};

impl From<&Entry> for KeyValue {
    fn from(entry: &Entry) -> Self {
        Self {
            key: entry.key.clone(),
            create_revision: entry.create_revision,
            mod_revision: entry.mod_revision,
            version: entry.version,
            value: entry.value.clone(),
            lease: entry.lease,
        }
    }
}

impl Services {
    pub(super) async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Refusal> {
        let mut range = request::range(&request)?;
        // Outside of a transaction etcd takes every revision below 1 for "now".
        range.revision = range.revision.filter(|revision| *revision > 0);
        let asked_for = range.revision.is_some();
        if !request.serializable {
            self.store().fresh().await?;
        }
        let result = self.store().range(&range)?;
        let revision = if asked_for { self.store().revision() } else { result.revision };
        Ok(range::answer(&request, result, self.header(revision)))
    }

    pub(super) async fn put(&self, request: PutRequest) -> Result<PutResponse, Refusal> {
        request::check_put(&request)?;
        let result = match self.store().txn(Txn::of(vec![request::put(&request)])).await {
            Ok(result) => result,
            Err(error) => return Err(self.put_refusal(&request, error).await),
        };
        let header = self.header(result.revision);
        let previous = result.responses.into_iter().next();
        Ok(PutResponse { header, prev_kv: previous_of(&request, previous.as_ref()) })
    }

    /// Alone a put that lacks both its key and its lease lacks the lease; inside a transaction it lacks the key.
    async fn put_refusal(&self, request: &PutRequest, error: WriteError) -> Refusal {
        let lacks_key = matches!(error, WriteError::KeyNotFound { .. });
        if lacks_key && request.lease != 0 {
            let lease = self.store().lease_time_to_live(request.lease).await;
            return lease.err().unwrap_or(error).into();
        }
        self.refusal(error)
    }

    /// A write that found no room says so in etcd's words.
    fn refusal(&self, error: WriteError) -> Refusal {
        if matches!(error, WriteError::Refused { .. }) && self.store().is_full() {
            return NO_SPACE;
        }
        error.into()
    }

    pub(super) async fn delete_range(
        &self,
        request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Refusal> {
        request::check_key(&request.key)?;
        let txn = Txn::of(vec![request::delete(&request)]);
        let result = self.store().txn(txn).await.map_err(|error| self.refusal(error))?;
        let header = self.header(result.revision);
        let deleted = result.responses.into_iter().next();
        Ok(delete_answer(&request, deleted.as_ref(), header))
    }

    pub(super) async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Refusal> {
        let txn = request::txn(&request)?;
        let result = self.store().txn(txn).await.map_err(|error| self.refusal(error))?;
        let header = self.header(result.revision);
        let mut reached = Reached::new(&result);
        let mut answer = reached.answer(&request, result);
        answer.header = header;
        Ok(answer)
    }

    pub(super) async fn compact(
        &self,
        request: CompactionRequest,
    ) -> Result<CompactionResponse, Refusal> {
        // `physical` asks to wait until the space is free; here it is with the answer.
        self.store().compact(request.revision).await?;
        Ok(CompactionResponse { header: self.header_now() })
    }
}

fn previous_of(request: &PutRequest, result: Option<&OpResult>) -> Option<KeyValue> {
    match result {
        Some(OpResult::Put { previous: Some(previous), .. }) if request.prev_kv => {
            Some(KeyValue::from(&**previous))
        }
        _ => None,
    }
}

fn delete_answer(
    request: &DeleteRangeRequest,
    result: Option<&OpResult>,
    header: Option<ResponseHeader>,
) -> DeleteRangeResponse {
    let deleted = match result {
        Some(OpResult::Delete { deleted }) => deleted.as_slice(),
        _ => &[],
    };
    let previous = if request.prev_kv { deleted } else { &[] };
    DeleteRangeResponse {
        header,
        deleted: i64::try_from(deleted.len()).unwrap_or(i64::MAX),
        prev_kvs: previous.iter().map(|entry| KeyValue::from(&**entry)).collect(),
    }
}

/// How far a transaction is: answers inside it carry the revision reached by then, and nothing else of the header.
struct Reached {
    before: Revision,
    changed: bool,
}

impl Reached {
    fn new(result: &TxnResult) -> Self {
        Self { before: result.revision - i64::from(changed(result)), changed: false }
    }

    fn header(&self) -> Option<ResponseHeader> {
        let revision = self.before + i64::from(self.changed);
        Some(ResponseHeader { revision, ..ResponseHeader::default() })
    }

    fn answer(&mut self, request: &TxnRequest, result: TxnResult) -> TxnResponse {
        let ops = if result.succeeded { &request.success } else { &request.failure };
        let pairs = ops.iter().zip(result.responses);
        let responses = pairs.map(|(op, result)| self.op(op, result)).collect();
        let header = Some(ResponseHeader::default());
        TxnResponse { header, succeeded: result.succeeded, responses }
    }

    fn op(&mut self, op: &RequestOp, result: OpResult) -> ResponseOp {
        let response = match (&op.request, result) {
            (Some(Request::Range(request)), OpResult::Range(result)) => {
                Some(Response::Range(range::answer(request, result, self.header())))
            }
            (Some(Request::Put(request)), result @ OpResult::Put { .. }) => {
                self.changed = true;
                let prev_kv = previous_of(request, Some(&result));
                Some(Response::Put(PutResponse { header: self.header(), prev_kv }))
            }
            (Some(Request::DeleteRange(request)), result @ OpResult::Delete { .. }) => {
                self.changed |= changes(&result);
                let answer = delete_answer(request, Some(&result), self.header());
                Some(Response::DeleteRange(answer))
            }
            (Some(Request::Txn(request)), OpResult::Txn(result)) => {
                Some(Response::Txn(self.answer(request, result)))
            }
            _ => None,
        };
        ResponseOp { response }
    }
}

fn changed(result: &TxnResult) -> bool {
    result.responses.iter().any(changes)
}

fn changes(result: &OpResult) -> bool {
    match result {
        OpResult::Put { .. } => true,
        OpResult::Delete { deleted } => !deleted.is_empty(),
        OpResult::Range(_) => false,
        OpResult::Txn(inner) => changed(inner),
    }
}

/// Values are not wanted, and take no room.
fn without_value(kv: KeyValue) -> KeyValue {
    KeyValue { value: Bytes::new(), ..kv }
}
