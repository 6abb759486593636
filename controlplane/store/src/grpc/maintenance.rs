//! Owns the service `Maintenance`: how the store is, its hash, its snapshot, and its upkeep.

use hyper::body::Incoming;
use tokio::sync::mpsc;
use tonic::Code;

use crate::grpc::RAFT_TERM;
use crate::grpc::Services;
use crate::grpc::messages::maintenance::{
    AlarmAction, AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest,
    DefragmentResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, SnapshotRequest,
    SnapshotResponse, StatusRequest, StatusResponse,
};
use crate::grpc::refusal::Refusal;
use crate::grpc::wire::{Answer, Piece, framed, only};
use crate::revision::{Entry, Revision};
use crate::txn::{KeyRange, Range};

/// What clients compare: an etcd that has every feature Kubernetes asks for (ordered progress requests since 3.5.8).
const VERSION: &str = "3.5.21";
/// Pieces of a snapshot that may wait for the client.
const PIECES_MAX: usize = 4;

impl Services {
    pub(super) async fn status(&self, _: StatusRequest) -> Result<StatusResponse, Refusal> {
        let metrics = self.store().metrics();
        let index = metrics.revision.unsigned_abs();
        let bytes = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        let errors = self.alarms().iter().map(|alarm| alarm_text(*alarm)).collect();
        Ok(StatusResponse {
            header: self.header(metrics.revision),
            version: VERSION.to_owned(),
            db_size: bytes(metrics.bytes.saturating_add(metrics.history_bytes)),
            leader: self.inner.identity.member_id,
            raft_index: index,
            raft_term: RAFT_TERM,
            raft_applied_index: index,
            errors,
            db_size_in_use: bytes(metrics.bytes),
            ..StatusResponse::default()
        })
    }

    /// What is wrong now, as etcd's alarms.
    fn alarms(&self) -> Vec<AlarmMember> {
        let alarm = AlarmType::NoSpace.into();
        let member_id = self.inner.identity.member_id;
        if self.store().is_full() { vec![AlarmMember { member_id, alarm }] } else { Vec::new() }
    }

    pub(super) async fn alarm(&self, request: AlarmRequest) -> Result<AlarmResponse, Refusal> {
        let wanted = |alarm: &AlarmMember| {
            request.alarm() == AlarmType::None || alarm.alarm == request.alarm
        };
        let alarms = match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get | AlarmAction::Deactivate) => {
                self.alarms().into_iter().filter(wanted).collect()
            }
            Ok(AlarmAction::Activate) | Err(_) => {
                let message = "etcdserver: alarms are raised by the store itself";
                return Err(Refusal::of(Code::Unimplemented, message));
            }
        };
        Ok(AlarmResponse { header: self.header_now(), alarms })
    }

    pub(super) async fn defragment(
        &self,
        _: DefragmentRequest,
    ) -> Result<DefragmentResponse, Refusal> {
        self.store().checkpoint().await?;
        Ok(DefragmentResponse { header: self.header_now() })
    }

    pub(super) async fn hash(&self, _: HashRequest) -> Result<HashResponse, Refusal> {
        let revision = self.store().revision();
        let hash = self.hash_at(revision).await?;
        Ok(HashResponse { header: self.header(revision), hash })
    }

    pub(super) async fn hash_kv(&self, request: HashKvRequest) -> Result<HashKvResponse, Refusal> {
        let current = self.store().revision();
        let hash_revision = if request.revision > 0 { request.revision } else { current };
        let hash = self.hash_at(hash_revision).await?;
        let compact_revision = self.store().compact_revision();
        Ok(HashKvResponse { header: self.header(current), hash, compact_revision, hash_revision })
    }

    /// The same for the same keys at the same revision, whatever happened to the process or the history.
    async fn hash_at(&self, revision: Revision) -> Result<u32, Refusal> {
        let store = self.store().clone();
        let hashed = tokio::task::spawn_blocking(move || {
            let range =
                Range { revision: Some(revision), ..Range::all(KeyRange::Prefix(Vec::new())) };
            let found = store.range(&range)?;
            Ok(found.entries.iter().fold(0, |hash, entry| hashed(hash, entry)))
        });
        let stopped = |_| Refusal::of(Code::Internal, "etcdserver: hashing was interrupted");
        hashed.await.map_err(stopped)?
    }
}

fn hashed(hash: u32, entry: &Entry) -> u32 {
    let numbers = [entry.create_revision, entry.mod_revision, entry.version, entry.lease];
    let length = |bytes: &[u8]| (bytes.len() as u64).to_le_bytes();
    let hash = crc32c::crc32c_append(hash, &length(&entry.key));
    let hash = crc32c::crc32c_append(hash, &entry.key);
    let hash = numbers.iter().fold(hash, |hash, n| crc32c::crc32c_append(hash, &n.to_le_bytes()));
    crc32c::crc32c_append(crc32c::crc32c_append(hash, &length(&entry.value)), &entry.value)
}

fn alarm_text(alarm: AlarmMember) -> String {
    let name = match alarm.alarm() {
        AlarmType::None => "NONE",
        AlarmType::NoSpace => "NOSPACE",
        AlarmType::Corrupt => "CORRUPT",
    };
    format!("memberID:{} alarm:{name} ", alarm.member_id)
}

/// Brings a snapshot in pieces, as fast as the client takes them and the store gives them.
pub(super) async fn snapshot(services: Services, body: Incoming) -> Result<Answer, Refusal> {
    let SnapshotRequest {} = only(body).await?;
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    let mut reader = services.store().snapshot();
    tokio::spawn(async move {
        loop {
            let piece = match reader.next().await {
                Ok(Some(blob)) => framed(&SnapshotResponse {
                    header: services.header(reader.revision()),
                    remaining_bytes: reader.left_bytes(),
                    blob,
                    version: VERSION.to_owned(),
                }),
                Ok(None) => return,
                Err(error) => Err(Refusal::new(Code::Internal, format!("etcdserver: {error}"))),
            };
            let last = piece.is_err();
            let piece = piece.map_or_else(Piece::End, Piece::Message);
            if sender.send(piece).await.is_err() || last {
                return;
            }
        }
    });
    Ok(Answer::Many(receiver))
}
