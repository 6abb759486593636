//! One HTTP GET of a probe or hook: any answer from 200 to 399 is success; certificates are not
//! verified, as kubelet doesn't; redirects to the same host are not followed either.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::probe::go_error;

const USER_AGENT: &str = "kube-probe/1.36";

#[derive(Debug)]
pub(crate) struct Get {
    pub(crate) secure: bool,
    pub(crate) host: String,
    pub(crate) address: SocketAddr,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Get {
    fn url(&self) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let slash = if self.path.starts_with('/') { "" } else { "/" };
        format!("{scheme}://{host}:{}{slash}{}", self.address.port(), self.path)
    }
}

pub(crate) async fn get(get: &Get, timeout: Duration) -> Result<(), String> {
    let url = get.url();
    match tokio::time::timeout(timeout, run(get, &url)).await {
        Ok(result) => result,
        Err(_) => Err(format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

async fn run(get: &Get, url: &str) -> Result<(), String> {
    let failed = |why: &dyn std::fmt::Display| format!("Get {url:?}: {why}");
    let stream = TcpStream::connect(get.address).await.map_err(|error| {
        failed(&format!("dial tcp {}: connect: {}", get.address, go_error(&error)))
    })?;
    if !get.secure {
        return exchange(get, url, stream).await;
    }
    let name = ServerName::try_from(get.host.clone()).map_err(|error| failed(&error))?;
    let connector = tokio_rustls::TlsConnector::from(tls().map_err(|error| failed(&error))?);
    let stream = connector.connect(name, stream).await.map_err(|error| failed(&error))?;
    exchange(get, url, stream).await
}

async fn exchange<S>(get: &Get, url: &str, stream: S) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |why: &dyn std::fmt::Display| format!("Get {url:?}: {why}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    let connection = tokio::spawn(connection);
    let path = url.splitn(4, '/').nth(3).unwrap_or_default();
    let mut request = http::Request::get(format!("/{path}"));
    let own = |name: &str| get.headers.iter().any(|(have, _)| have.eq_ignore_ascii_case(name));
    if !own("host") {
        let authority = url.split('/').nth(2).unwrap_or_default();
        request = request.header("host", authority);
    }
    if !own("user-agent") {
        request = request.header("user-agent", USER_AGENT);
    }
    if !own("accept") {
        request = request.header("accept", "*/*");
    }
    for (name, value) in get.headers.iter().filter(|(_, value)| !value.is_empty()) {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| failed(&error));
    connection.abort();
    let status = answer?.map(|body| drop(body.into_data_stream())).status();
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
}

fn tls() -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// A probe asks whether something answers, not who it is (Kubernetes 1.36, `httpGet` scheme HTTPS).
#[derive(Debug)]
pub(crate) struct AnyCertificate(pub(crate) Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn the_status_decides() {
        for (status, expected) in [
            ("200 OK", Ok(())),
            ("302 Found", Ok(())),
            ("500 Oops", Err("HTTP probe failed with statuscode: 500".to_owned())),
        ] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = tokio::spawn(async move {
                let (mut peer, _) = listener.accept().await.unwrap();
                let mut head = vec![0u8; 1024];
                let length = peer.read(&mut head).await.unwrap();
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                peer.write_all(answer.as_bytes()).await.unwrap();
                String::from_utf8_lossy(&head[..length]).into_owned()
            });
            let request = Get {
                secure: false,
                host: address.ip().to_string(),
                address,
                path: "healthz?x=1".into(),
                headers: vec![("X-A".into(), "b".into())],
            };
            assert_eq!(get(&request, Duration::from_secs(5)).await, expected);
            let head = server.await.unwrap();
            assert!(head.starts_with("GET /healthz?x=1 HTTP/1.1\r\n"), "{head}");
            assert!(head.contains("user-agent: kube-probe/1.36"), "{head}");
        }
        let nobody = Get {
            secure: false,
            host: "127.0.0.1".into(),
            address: "127.0.0.1:1".parse().unwrap(),
            path: "/".into(),
            headers: Vec::new(),
        };
        assert_eq!(
            get(&nobody, Duration::from_secs(5)).await.unwrap_err(),
            "Get \"http://127.0.0.1:1/\": dial tcp 127.0.0.1:1: connect: connection refused"
        );
    }
}
