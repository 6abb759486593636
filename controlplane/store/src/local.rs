//! Owns the other end of a running master's socket: the few requests of etcd's v3 protocol that its own commands ask there. Not a client of
//! etcd for others: they take any of the usual ones.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

use crate::grpc::messages::kv::{
    Compare, CompareResult, CompareTarget, PutRequest, RangeRequest, RangeResponse, RequestOp,
    TargetUnion, TxnRequest, TxnResponse,
};
use crate::grpc::messages::maintenance::{
    DefragmentRequest, DefragmentResponse, SnapshotRequest, SnapshotResponse,
};
use crate::revision::Revision;

/// A master on the same machine answers at once, or is busy with its disk.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Above one piece of a snapshot, and above a page of keys.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Any address will do: the connector goes to the socket.
const NOWHERE: &str = "http://localhost";

/// Why a master's socket gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Nobody listens there.
    #[error("{socket}: nobody answers there")]
    NotRunning {
        /// The socket.
        socket: String,
        /// Why.
        source: std::io::Error,
    },
    /// The connection failed.
    #[error("{socket}: {reason}")]
    Connection {
        /// The socket.
        socket: String,
        /// Why.
        reason: String,
    },
    /// It was refused, or broke off.
    #[error("{0}")]
    Refused(String),
}

impl From<tonic::Status> for LocalError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(status.message().to_owned())
    }
}

/// A connection to a running master.
#[derive(Debug, Clone)]
pub struct Local {
    channel: Channel,
}

impl Local {
    /// Connects to a master's socket.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(socket: &Path) -> Result<Self, LocalError> {
        let name = socket.display().to_string();
        let connected = UnixStream::connect(socket).await;
        let connected =
            connected.map_err(|source| LocalError::NotRunning { socket: name.clone(), source })?;
        let mut first = Some(connected);
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let (first, path) = (first.take(), path.clone());
            async move {
                let stream = match first {
                    Some(stream) => stream,
                    None => UnixStream::connect(path).await?,
                };
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        let endpoint = Endpoint::from_static(NOWHERE);
        let channel = endpoint.connect_with_connector(connector).await;
        let reason = |error: tonic::transport::Error| error.to_string();
        let channel = channel
            .map_err(|error| LocalError::Connection { socket: name, reason: reason(error) })?;
        Ok(Self { channel })
    }

    async fn ask<Q, A>(&self, path: &'static str, message: Q) -> Result<A, LocalError>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut grpc = self.grpc().await?;
        let mut request = Request::new(message);
        request.set_timeout(REQUEST_TIMEOUT);
        let codec = ProstCodec::<Q, A>::default();
        Ok(grpc.unary(request, PathAndQuery::from_static(path), codec).await?.into_inner())
    }

    async fn grpc(&self) -> Result<Grpc<Channel>, LocalError> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        let ready = grpc.ready().await;
        ready.map_err(|error| LocalError::Refused(error.to_string()))?;
        Ok(grpc)
    }

    /// A snapshot of the master's store.
    ///
    /// # Errors
    /// It is refused.
    pub async fn snapshot(&self) -> Result<Pieces, LocalError> {
        let path = PathAndQuery::from_static("/etcdserverpb.Maintenance/Snapshot");
        let codec = ProstCodec::<SnapshotRequest, SnapshotResponse>::default();
        let mut grpc = self.grpc().await?;
        let stream = grpc.server_streaming(Request::new(SnapshotRequest {}), path, codec).await?;
        Ok(Pieces { stream: stream.into_inner() })
    }

    /// The keys under a prefix and the revisions that made them.
    ///
    /// # Errors
    /// It is refused.
    pub async fn keys(&self, prefix: &str) -> Result<Vec<(Bytes, Revision)>, LocalError> {
        let request = RangeRequest { keys_only: true, ..under(prefix) };
        let answer: RangeResponse = self.ask("/etcdserverpb.KV/Range", request).await?;
        Ok(answer.kvs.into_iter().map(|kv| (kv.key, kv.create_revision)).collect())
    }

    /// The values under a prefix, with their keys.
    ///
    /// # Errors
    /// It is refused.
    pub async fn values(&self, prefix: &str) -> Result<Vec<(Bytes, Bytes)>, LocalError> {
        let answer: RangeResponse = self.ask("/etcdserverpb.KV/Range", under(prefix)).await?;
        Ok(answer.kvs.into_iter().map(|kv| (kv.key, kv.value)).collect())
    }

    /// How many keys under a prefix were last written up to a revision.
    ///
    /// # Errors
    /// It is refused.
    pub async fn written_up_to(&self, prefix: &str, last: Revision) -> Result<usize, LocalError> {
        let request = RangeRequest { keys_only: true, max_mod_revision: last, ..under(prefix) };
        let answer: RangeResponse = self.ask("/etcdserverpb.KV/Range", request).await?;
        Ok(answer.kvs.len())
    }

    /// Writes a key that isn't there. `false`: it is.
    ///
    /// # Errors
    /// It is refused.
    pub async fn create(&self, key: &str, value: Vec<u8>) -> Result<bool, LocalError> {
        use crate::grpc::messages::kv::Request as Op;
        let key = Bytes::copy_from_slice(key.as_bytes());
        let compare = Compare {
            result: CompareResult::Equal as i32,
            target: CompareTarget::Mod as i32,
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(0)),
            range_end: Bytes::new(),
        };
        let put = PutRequest { key, value: value.into(), ..PutRequest::default() };
        let success = vec![RequestOp { request: Some(Op::Put(put)) }];
        let request = TxnRequest { compare: vec![compare], success, failure: Vec::new() };
        let answer: TxnResponse = self.ask("/etcdserverpb.KV/Txn", request).await?;
        Ok(answer.succeeded)
    }

    /// Has the files written anew, without what is no longer needed.
    ///
    /// # Errors
    /// It is refused.
    pub async fn defragment(&self) -> Result<(), LocalError> {
        let request = DefragmentRequest {};
        let _answer: DefragmentResponse =
            self.ask("/etcdserverpb.Maintenance/Defragment", request).await?;
        Ok(())
    }
}

fn under(prefix: &str) -> RangeRequest {
    let key = Bytes::copy_from_slice(prefix.as_bytes());
    let end = crate::KeyRange::prefix_end(prefix.as_bytes());
    RangeRequest { key, range_end: end.into(), ..RangeRequest::default() }
}

/// A snapshot on its way.
#[derive(Debug)]
pub struct Pieces {
    stream: Streaming<SnapshotResponse>,
}

impl Pieces {
    /// The next piece, and about how many bytes come behind it; `None`: that was all.
    ///
    /// # Errors
    /// The stream broke off: what came is not a snapshot.
    pub async fn next(&mut self) -> Result<Option<(Bytes, u64)>, LocalError> {
        let piece = self.stream.message().await?;
        Ok(piece.map(|piece| (piece.blob, piece.remaining_bytes)))
    }
}
