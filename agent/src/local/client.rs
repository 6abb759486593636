//! HTTP over the agent's Unix socket.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use base64::Engine as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::stream::websocket;

/// All pods of a node as JSON stay well below.
const ANSWER_BYTES_MAX: usize = 64 << 20;

pub(crate) struct Client {
    socket: PathBuf,
}

/// For one part of a path or a query.
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

impl Client {
    pub(crate) fn new(socket: PathBuf) -> Client {
        Client { socket }
    }

    async fn send(&self, request: Request<Empty<Bytes>>) -> anyhow::Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket).await.with_context(|| {
            format!("the agent does not answer at {} (is it running?)", self.socket.display())
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Its errors show as errors of the request.
        tokio::spawn(connection.with_upgrades());
        Ok(sender.send_request(request).await?)
    }

    async fn get(&self, path: &str) -> anyhow::Result<Response<Incoming>> {
        let request = Request::get(path).header("host", "agent").body(Empty::new())?;
        let response = self.send(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        bail!("{}", message(response).await)
    }

    pub(crate) async fn json(&self, path: &str) -> anyhow::Result<Value> {
        let response = self.get(path).await?;
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
        Ok(serde_json::from_slice(&body)?)
    }

    /// Copies an answer to standard output as it comes.
    pub(crate) async fn copy(&self, path: &str) -> anyhow::Result<()> {
        let mut body = self.get(path).await?.into_body();
        let mut out = std::io::stdout().lock();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data()
                && out.write_all(&data).and_then(|()| out.flush()).is_err()
            {
                // Whoever read has gone.
                return Ok(());
            }
        }
        Ok(())
    }

    pub(crate) async fn websocket(
        &self,
        path: &str,
    ) -> anyhow::Result<WebSocketStream<TokioIo<Upgraded>>> {
        let key = base64::engine::general_purpose::STANDARD.encode([7u8; 16]);
        let request = Request::get(path)
            .header("host", "agent")
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", key)
            .header("sec-websocket-protocol", "v5.channel.k8s.io")
            .body(Empty::new())?;
        let response = self.send(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            bail!("{}", message(response).await);
        }
        let io = TokioIo::new(hyper::upgrade::on(response).await?);
        Ok(websocket::open(io, Role::Client).await)
    }
}

async fn message(response: Response<Incoming>) -> String {
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    match body {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(_) => format!("the agent answered {status}"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn encoding() {
        assert_eq!(super::encode("a b&c/ü"), "a%20b%26c%2F%C3%BC");
    }
}
