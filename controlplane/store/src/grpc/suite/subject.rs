//! Owns how one call is made of each subject, and what of an answer is compared: all but who answered.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::Message;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::grpc::messages::ResponseHeader;
use crate::grpc::messages::kv::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};
use crate::grpc::messages::lease::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseLeasesRequest, LeaseLeasesResponse,
    LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use crate::grpc::messages::watch::{WatchCreateRequest, WatchRequest, WatchResponse, WatchUnion};
use crate::grpc::refusal::Refusal;
use crate::grpc::{Identity, Services, bind_unix};
use crate::{Config, Store};

const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// A store of ours with its socket.
#[derive(Debug)]
pub(super) struct Ours {
    pub(super) services: Services,
    pub(super) channel: Channel,
    _stop: watch::Sender<bool>,
    pub(super) dir: TempDir,
}

impl Ours {
    pub(super) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path().join("store"));
        config.history_bytes_max = 256 << 20;
        let store = Store::open(config).unwrap();
        Self::serve(store, dir).await
    }

    pub(super) async fn serve(store: Store, dir: TempDir) -> Self {
        let (name, client_urls) = ("ours".to_owned(), Vec::new());
        let identity = Identity { cluster_id: 1, member_id: 2, name, client_urls };
        let services = Services::new(store, identity);
        let path = dir.path().join("etcd.sock");
        let listener = bind_unix(&path).unwrap();
        let (stop, stopping) = watch::channel(false);
        let serving = services.clone();
        tokio::spawn(async move { serving.serve_unix(listener, stopping).await });
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connector).await.unwrap();
        Self { services, channel, _stop: stop, dir }
    }
}

#[derive(Debug, Clone)]
pub(super) enum Call {
    Range(RangeRequest),
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(i64),
    Grant(i64, i64),
    Revoke(i64),
    TimeToLive(i64),
    Leases,
}

#[derive(Debug, Clone)]
pub(super) enum Subject {
    InProcess(Services),
    Remote(Channel),
}

/// An answer without who gave it.
trait Anonymous {
    fn anonymous(self) -> String;
}

fn revision(header: Option<ResponseHeader>) -> i64 {
    header.unwrap().revision
}

macro_rules! anonymous {
    ($($kind:ty),*) => {
        $(impl Anonymous for $kind {
            fn anonymous(mut self) -> String {
                let reached = revision(self.header.take());
                format!("revision: {reached}, {self:?}")
            }
        })*
    };
}

anonymous!(
    RangeResponse,
    PutResponse,
    DeleteRangeResponse,
    TxnResponse,
    CompactionResponse,
    LeaseGrantResponse,
    LeaseRevokeResponse
);

impl Anonymous for LeaseTimeToLiveResponse {
    fn anonymous(mut self) -> String {
        self.keys.sort();
        let (lives, reached) = (self.ttl > 0, revision(self.header));
        let Self { id, granted_ttl, keys, .. } = self;
        format!("revision: {reached}, id: {id}, lives: {lives}, of {granted_ttl}, keys: {keys:?}")
    }
}

impl Anonymous for LeaseLeasesResponse {
    fn anonymous(self) -> String {
        let mut ids: Vec<_> = self.leases.iter().map(|lease| lease.id).collect();
        ids.sort_unstable();
        format!("revision: {}, {ids:?}", revision(self.header))
    }
}

fn told<R: Anonymous>(answer: Result<R, Refusal>) -> Result<String, String> {
    answer.map(R::anonymous).map_err(|refusal| format!("{:?}: {}", refusal.code, refusal.message))
}

async fn remote<Q, R>(channel: &Channel, path: &'static str, request: Q) -> Result<String, String>
where
    Q: Message + 'static,
    R: Message + Default + Anonymous + 'static,
{
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(usize::MAX);
    grpc.ready().await.unwrap();
    let codec = ProstCodec::<Q, R>::default();
    let path = http::uri::PathAndQuery::from_static(path);
    let answer = grpc.unary(Request::new(request), path, codec).await;
    let answer = answer.map(|answer| answer.into_inner().anonymous());
    answer.map_err(|status: Status| format!("{:?}: {}", status.code(), status.message()))
}

impl Subject {
    pub(super) async fn call(&self, call: &Call) -> Result<String, String> {
        match self {
            Self::InProcess(services) => in_process(services, call.clone()).await,
            Self::Remote(channel) => over_grpc(channel, call.clone()).await,
        }
    }

    /// What a watch tells: its creation, each event, its cancellation; up to a revision.
    pub(super) async fn watch(&self, request: &WatchCreateRequest, until: i64) -> Vec<String> {
        let channel = match self {
            Self::Remote(channel) => channel.clone(),
            // A watch is a stream: in process there is no other way to it than the native one.
            Self::InProcess(services) => return native_watch(services, request, until).await,
        };
        let mut grpc = Grpc::new(channel);
        grpc.ready().await.unwrap();
        let (sender, receiver) = mpsc::channel(1);
        let union = Some(WatchUnion::Create(request.clone()));
        sender.send(WatchRequest { request_union: union }).await.unwrap();
        let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
        let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let requests = Request::new(ReceiverStream::new(receiver));
        let answers = grpc.streaming(requests, path, codec).await.unwrap();
        let mut answers = answers.into_inner();
        let mut all = Vec::new();
        loop {
            let answer = tokio::time::timeout(ANSWER_WITHIN, answers.message()).await;
            let answer = answer.expect("the watch tells something").unwrap().unwrap();
            if take(answer, &mut all, until) {
                return all;
            }
        }
    }
}

/// Whether that was all.
fn take(answer: WatchResponse, all: &mut Vec<String>, until: i64) -> bool {
    let WatchResponse { created, canceled, compact_revision, cancel_reason, events, .. } = answer;
    if created || canceled {
        all.push(format!(
            "created: {created}, canceled: {canceled}, compact_revision: {compact_revision}, {cancel_reason}"
        ));
    }
    let last = events.last().and_then(|event| Some(event.kv.as_ref()?.mod_revision));
    all.extend(events.iter().map(|event| format!("{event:?}")));
    canceled || last.is_some_and(|last| last >= until)
}

async fn native_watch(
    services: &Services,
    request: &WatchCreateRequest,
    until: i64,
) -> Vec<String> {
    let (outlet, mut messages) = super::super::watching::for_suite(services.clone(), request).await;
    let mut all = Vec::new();
    loop {
        let bytes = tokio::time::timeout(ANSWER_WITHIN, messages.recv()).await.unwrap().unwrap();
        let answer = WatchResponse::decode(bytes).unwrap();
        if take(answer, &mut all, until) {
            drop(outlet);
            return all;
        }
    }
}

async fn in_process(services: &Services, call: Call) -> Result<String, String> {
    match call {
        Call::Range(request) => told(services.range(request).await),
        Call::Put(request) => told(services.put(request).await),
        Call::DeleteRange(request) => told(services.delete_range(request).await),
        Call::Txn(request) => told(services.txn(request).await),
        Call::Compact(revision) => {
            told(services.compact(CompactionRequest { revision, physical: true }).await)
        }
        Call::Grant(id, ttl) => told(services.lease_grant(LeaseGrantRequest { ttl, id }).await),
        Call::Revoke(id) => told(services.lease_revoke(LeaseRevokeRequest { id }).await),
        Call::TimeToLive(id) => {
            told(services.time_to_live(LeaseTimeToLiveRequest { id, keys: true }).await)
        }
        Call::Leases => told(services.lease_leases(LeaseLeasesRequest {}).await),
    }
}

async fn over_grpc(channel: &Channel, call: Call) -> Result<String, String> {
    match call {
        Call::Range(request) => {
            remote::<_, RangeResponse>(channel, "/etcdserverpb.KV/Range", request).await
        }
        Call::Put(request) => {
            remote::<_, PutResponse>(channel, "/etcdserverpb.KV/Put", request).await
        }
        Call::DeleteRange(request) => {
            remote::<_, DeleteRangeResponse>(channel, "/etcdserverpb.KV/DeleteRange", request).await
        }
        Call::Txn(request) => {
            remote::<_, TxnResponse>(channel, "/etcdserverpb.KV/Txn", request).await
        }
        Call::Compact(revision) => {
            let request = CompactionRequest { revision, physical: true };
            remote::<_, CompactionResponse>(channel, "/etcdserverpb.KV/Compact", request).await
        }
        Call::Grant(id, ttl) => {
            let (path, request) = ("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest { ttl, id });
            remote::<_, LeaseGrantResponse>(channel, path, request).await
        }
        Call::Revoke(id) => {
            let (path, request) = ("/etcdserverpb.Lease/LeaseRevoke", LeaseRevokeRequest { id });
            remote::<_, LeaseRevokeResponse>(channel, path, request).await
        }
        Call::TimeToLive(id) => {
            let request = LeaseTimeToLiveRequest { id, keys: true };
            let path = "/etcdserverpb.Lease/LeaseTimeToLive";
            remote::<_, LeaseTimeToLiveResponse>(channel, path, request).await
        }
        Call::Leases => {
            let path = "/etcdserverpb.Lease/LeaseLeases";
            remote::<_, LeaseLeasesResponse>(channel, path, LeaseLeasesRequest {}).await
        }
    }
}
