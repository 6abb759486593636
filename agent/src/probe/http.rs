//! An HTTP GET of a probe or hook: any answer from 200 to 399 is success; redirects to the same host
//! are followed, and one that leads elsewhere is an answer. As with kubelet, certificates are not verified.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::probe::go_error;

const USER_AGENT: &str = "kube-probe/1.36";

/// Kubernetes 1.36, `RedirectChecker`.
const REQUESTS_MAX: usize = 10;

/// An answer that is no failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Success,
    /// A redirect that is not followed.
    Redirect,
}

#[derive(Debug, Clone)]
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

impl Get {
    /// Where a redirect leads, if that is the same host.
    fn redirected(&self, location: &str) -> Option<Get> {
        let location = location.split('#').next().unwrap_or_default();
        let mut next = self.clone();
        let is_absolute = location.starts_with("//") || location.contains("://");
        if !is_absolute {
            let path = self.path.split('?').next().unwrap_or_default();
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            next.path = match location.chars().next()? {
                '/' => location.to_owned(),
                '?' => format!("{path}{location}"),
                _ => format!("{folder}/{location}"),
            };
            return Some(next);
        }
        let scheme = if self.secure { "https:" } else { "http:" };
        let scheme = if location.starts_with("//") { scheme } else { "" };
        let uri: http::Uri = format!("{scheme}{location}").parse().ok()?;
        next.secure = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
        let brackets = ['[', ']'];
        if uri.host()?.trim_matches(brackets) != self.host.trim_matches(brackets) {
            return None;
        }
        next.address.set_port(uri.port_u16().unwrap_or(if next.secure { 443 } else { 80 }));
        next.path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
        // Names that the handler gives its host are for that address alone.
        next.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("host"));
        Some(next)
    }
}

pub(crate) async fn get(get: Get, timeout: Duration) -> Result<Answer, String> {
    let url = get.url();
    match tokio::time::timeout(timeout, follow(get)).await {
        Ok(result) => result,
        Err(_) => Err(format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

async fn follow(mut get: Get) -> Result<Answer, String> {
    for _ in 0..REQUESTS_MAX {
        let (status, location) = run(&get, &get.url()).await?;
        match (status.as_u16(), location) {
            (200..300, _) => return Ok(Answer::Success),
            (301 | 302 | 303 | 307 | 308, Some(location)) => match get.redirected(&location) {
                Some(next) => get = next,
                None => return Ok(Answer::Redirect),
            },
            (300..400, _) => return Ok(Answer::Redirect),
            (code, _) => return Err(format!("HTTP probe failed with statuscode: {code}")),
        }
    }
    Err(format!("Get {:?}: stopped after {REQUESTS_MAX} redirects", get.url()))
}

/// The status of an answer and where it sends us.
type Head = (http::StatusCode, Option<String>);

async fn run(get: &Get, url: &str) -> Result<Head, String> {
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

async fn exchange<S>(get: &Get, url: &str, stream: S) -> Result<Head, String>
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
    let answer = answer?;
    let location = answer.headers().get(http::header::LOCATION);
    let location = location.and_then(|value| value.to_str().ok()).map(str::to_owned);
    Ok((answer.status(), location))
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

    fn request(address: SocketAddr, path: &str) -> Get {
        Get {
            secure: false,
            host: address.ip().to_string(),
            address,
            path: path.into(),
            headers: vec![("X-A".into(), "b".into())],
        }
    }

    /// Answers one connection each; gives back the heads of the requests.
    async fn server(answers: Vec<String>) -> (SocketAddr, tokio::task::JoinHandle<Vec<String>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut heads = Vec::new();
            for answer in answers {
                let (mut peer, _) = listener.accept().await.unwrap();
                let mut head = vec![0u8; 1024];
                let length = peer.read(&mut head).await.unwrap();
                let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n");
                peer.write_all(answer.as_bytes()).await.unwrap();
                heads.push(String::from_utf8_lossy(&head[..length]).into_owned());
            }
            heads
        });
        (address, task)
    }

    const LONG: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn the_status_decides() {
        for (status, expected) in [
            ("200 OK", Ok(Answer::Success)),
            ("302 Found", Ok(Answer::Redirect)),
            ("304 Not Modified", Ok(Answer::Redirect)),
            ("302 Found\r\nlocation: http://example.com/", Ok(Answer::Redirect)),
            ("500 Oops", Err("HTTP probe failed with statuscode: 500".to_owned())),
        ] {
            let (address, server) = server(vec![status.to_owned()]).await;
            assert_eq!(get(request(address, "healthz?x=1"), LONG).await, expected);
            let head = server.await.unwrap().remove(0);
            assert!(head.starts_with("GET /healthz?x=1 HTTP/1.1\r\n"), "{head}");
            assert!(head.contains("user-agent: kube-probe/1.36"), "{head}");
        }
        let nobody = request("127.0.0.1:1".parse().unwrap(), "/");
        assert_eq!(
            get(nobody, LONG).await.unwrap_err(),
            "Get \"http://127.0.0.1:1/\": dial tcp 127.0.0.1:1: connect: connection refused"
        );
    }

    #[tokio::test]
    async fn redirects_within_the_host_are_followed_to_their_end() {
        let to = |path: &str| format!("302 Found\r\nlocation: {path}");
        let (address, task) = server(vec![to("/login"), "503 No".into()]).await;
        let failed = get(request(address, "/"), LONG).await.unwrap_err();
        assert_eq!(failed, "HTTP probe failed with statuscode: 503");
        assert!(task.await.unwrap()[1].starts_with("GET /login HTTP/1.1\r\n"));
        let (address, task) = server(vec![to("/"); REQUESTS_MAX]).await;
        let failed = get(request(address, "/"), LONG).await.unwrap_err();
        assert_eq!(failed, format!("Get \"http://{address}/\": stopped after 10 redirects"));
        assert_eq!(task.await.unwrap().len(), REQUESTS_MAX);
    }

    #[test]
    fn where_redirects_lead() {
        let mut from = request("10.1.0.2:8080".parse().unwrap(), "/a/b?c");
        from.headers.push(("Host".into(), "web".into()));
        for (location, url) in [
            ("/x?y#z", "http://10.1.0.2:8080/x?y"),
            ("x", "http://10.1.0.2:8080/a/x"),
            ("?d", "http://10.1.0.2:8080/a/b?d"),
            ("http://10.1.0.2", "http://10.1.0.2:80/"),
            ("https://10.1.0.2/x", "https://10.1.0.2:443/x"),
            ("//10.1.0.2:81/x", "http://10.1.0.2:81/x"),
        ] {
            let next = from.redirected(location).unwrap();
            assert_eq!(next.url(), url, "{location}");
            let is_relative = url.contains(":8080");
            assert_eq!(next.headers.iter().any(|(name, _)| name == "Host"), is_relative);
        }
        for elsewhere in ["http://10.1.0.3/", "//example.com", "https://[::1]/", ""] {
            assert!(from.redirected(elsewhere).is_none(), "{elsewhere}");
        }
    }
}
