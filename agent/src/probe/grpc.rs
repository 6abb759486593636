//! The gRPC health check (`grpc.health.v1.Health/Check`): two tiny messages, written and read by
//! hand.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::probe::go_error;

const PATH: &str = "/grpc.health.v1.Health/Check";
/// A health answer has a handful of bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
const SERVING: u8 = 1;

pub(crate) async fn check(address: SocketAddr, service: &str) -> Result<(), String> {
    let stream = tokio::net::TcpStream::connect(address)
        .await
        .map_err(|error| format!("failed to connect service {address:?}: {}", go_error(&error)))?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("http://{address}{PATH}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(Full::new(Bytes::from(frame(service))))
        .map_err(|error| error.to_string())?;
    let result = async {
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let early = answer.headers().get("grpc-status").cloned();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| error.to_string())?;
        let status = body.trailers().and_then(|t| t.get("grpc-status")).cloned().or(early);
        let status = status.and_then(|value| value.to_str().ok().map(ToOwned::to_owned));
        judge(status.as_deref(), &body.to_bytes())
    }
    .await;
    connection.abort();
    result
}

/// Uncompressed message: flag, length, and field 1 (the service's name) if there is one.
fn frame(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
            length >>= 7;
        }
        message.push(u8::try_from(length).unwrap_or(0));
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    frame.append(&mut message);
    frame
}

fn judge(grpc_status: Option<&str>, body: &[u8]) -> Result<(), String> {
    match grpc_status {
        Some("0") | None => {}
        Some("12") => return Err("this server does not implement the grpc health protocol".into()),
        Some(other) => return Err(format!("service unhealthy (grpc status {other})")),
    }
    // Field 1, a varint: 0 unknown (left out), 1 serving, 2 not serving, 3 service unknown.
    match body.get(5..) {
        Some([0x08, SERVING, ..]) => Ok(()),
        Some([0x08, 2, ..]) => Err("service unhealthy (responded with \"NOT_SERVING\")".into()),
        Some([0x08, 3, ..]) => Err("service unhealthy (responded with \"SERVICE_UNKNOWN\")".into()),
        _ => Err("service unhealthy (responded with \"UNKNOWN\")".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(frame(""), [0, 0, 0, 0, 0]);
        assert_eq!(frame("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(frame(&"x".repeat(200))[5..8], [0x0a, 0xc8, 1]);
        assert!(judge(Some("0"), &[0, 0, 0, 0, 2, 8, 1]).is_ok());
        assert!(judge(Some("0"), &[0, 0, 0, 0, 2, 8, 2]).is_err());
        assert!(judge(Some("0"), &[0, 0, 0, 0, 0]).is_err());
        assert!(judge(Some("5"), &[]).is_err());
        assert!(judge(None, &[]).is_err());
    }
}
