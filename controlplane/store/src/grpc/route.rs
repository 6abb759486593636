//! Owns which path leads to which function, and how a call's result becomes an HTTP answer. Decides nothing about the calls.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use prost::Message;
use tokio::sync::watch;
use tonic::Code;

use crate::grpc::refusal::Refusal;
use crate::grpc::wire::{Answer, framed, only};
use crate::grpc::{Services, lease, maintenance, watching};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// Answers one call.
pub(super) async fn call(
    services: Services,
    request: Request<Incoming>,
    stop: watch::Receiver<bool>,
) -> Response<Answer> {
    let is_grpc = |kind: &HeaderValue| kind.as_bytes().starts_with(GRPC.as_bytes());
    if !request.headers().get(CONTENT_TYPE).is_some_and(is_grpc) || request.method() != Method::POST
    {
        return unsupported();
    }
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let Some((service, method)) =
        path.strip_prefix("/etcdserverpb.").and_then(|p| p.split_once('/'))
    else {
        return refused(&unknown(path));
    };
    let answer = match (service, method) {
        ("KV", method) => kv(&services, method, body).await,
        ("Watch", "Watch") => Ok(watching::watch(services, body, stop)),
        ("Lease", "LeaseKeepAlive") => Ok(lease::keep_alive(services, body)),
        ("Lease", method) => leases(&services, method, body).await,
        ("Maintenance", "Snapshot") => maintenance::snapshot(services, body).await,
        ("Maintenance", method) => upkeep(&services, method, body).await,
        ("Cluster", "MemberList") => {
            unary(body, async |request| services.member_list(request).await).await
        }
        _ => Err(unknown(path)),
    };
    match answer {
        Ok(answer) => {
            let mut response = Response::new(answer);
            response.headers_mut().insert(CONTENT_TYPE, GRPC);
            response
        }
        Err(refusal) => refused(&refusal),
    }
}

async fn kv(services: &Services, method: &str, body: Incoming) -> Result<Answer, Refusal> {
    match method {
        "Range" => unary(body, async |request| services.range(request).await).await,
        "Put" => unary(body, async |request| services.put(request).await).await,
        "DeleteRange" => unary(body, async |request| services.delete_range(request).await).await,
        "Txn" => unary(body, async |request| services.txn(request).await).await,
        "Compact" => unary(body, async |request| services.compact(request).await).await,
        _ => Err(unknown(method)),
    }
}

async fn leases(services: &Services, method: &str, body: Incoming) -> Result<Answer, Refusal> {
    match method {
        "LeaseGrant" => unary(body, async |request| services.lease_grant(request).await).await,
        "LeaseRevoke" => unary(body, async |request| services.lease_revoke(request).await).await,
        "LeaseTimeToLive" => {
            unary(body, async |request| services.time_to_live(request).await).await
        }
        "LeaseLeases" => unary(body, async |request| services.lease_leases(request).await).await,
        _ => Err(unknown(method)),
    }
}

async fn upkeep(services: &Services, method: &str, body: Incoming) -> Result<Answer, Refusal> {
    match method {
        "Status" => unary(body, async |request| services.status(request).await).await,
        "Alarm" => unary(body, async |request| services.alarm(request).await).await,
        "Defragment" => unary(body, async |request| services.defragment(request).await).await,
        "Hash" => unary(body, async |request| services.hash(request).await).await,
        "HashKV" => unary(body, async |request| services.hash_kv(request).await).await,
        _ => Err(unknown(method)),
    }
}

async fn unary<M: Message + Default, R: Message>(
    body: Incoming,
    call: impl AsyncFnOnce(M) -> Result<R, Refusal>,
) -> Result<Answer, Refusal> {
    let answer = call(only(body).await?).await?;
    Ok(Answer::One(Some(framed(&answer)?)))
}

/// Users and roles, changes of the membership, and whatever came after: this is one master's store, not an etcd cluster.
fn unknown(path: &str) -> Refusal {
    let message = format!(
        "etcdserver: {path} is not offered: this store has no users and roles, and no members to change; \
         KV, Watch, Lease, Maintenance and the list of members are"
    );
    Refusal::new(Code::Unimplemented, message)
}

fn refused(refusal: &Refusal) -> Response<Answer> {
    let mut response = Response::new(Answer::Ended);
    *response.headers_mut() = refusal.headers();
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

fn unsupported() -> Response<Answer> {
    let text = Bytes::from_static(b"this is etcd's v3 API: gRPC alone is understood\n");
    let mut response = Response::new(Answer::One(Some(text)));
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}
