//! One registry endpoint over HTTP: manifests, blobs, and its ways of asking who we are.
//!
//! Owns requests, tokens and resuming a broken download. Blocking: it is used on threads of a pull.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, RANGE, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use serde::Deserialize;
use ureq::Body;
use ureq::config::RedirectAuthHeaders;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use super::credentials::Credentials;
use super::reference::Digest;
use super::registries::Endpoint;

/// Longest manifest or configuration read.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
const TOKEN_BYTES_MAX: u64 = 1 << 20;
const ERROR_BYTES_MAX: u64 = 4 << 10;
const CONNECT_SECONDS_MAX: u64 = 15;
const ANSWER_SECONDS_MAX: u64 = 60;
/// A download that brings nothing for so long is broken off and resumed.
const STALLED_SECONDS_MAX: u64 = 60;
/// Resumptions without a byte between them.
const RESUMES_MAX: u32 = 5;
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("not found")]
    NotFound,
    #[error("{0}")]
    Unauthorized(String),
    #[error("unexpected status {status}: {text}")]
    Status { status: u16, text: String },
    #[error("{0}")]
    Transport(String),
    #[error("certificate authority {path}: {reason}")]
    Certificates { path: String, reason: String },
    #[error("{what} of digest {found}, not {wanted}")]
    Digest { what: &'static str, wanted: String, found: String },
}

/// An endpoint and who we are to it.
#[derive(Debug)]
pub(crate) struct Client {
    agent: ureq::Agent,
    endpoint: Endpoint,
    /// Registry of the image: told to mirrors that serve several.
    namespace: String,
    credentials: Option<Credentials>,
    /// Authorization header by repository.
    tokens: Mutex<HashMap<String, String>>,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl Client {
    pub(crate) fn new(
        endpoint: Endpoint,
        namespace: &str,
        credentials: Option<Credentials>,
        ca_file: Option<&std::path::Path>,
    ) -> Result<Client, RegistryError> {
        let tls = TlsConfig::builder().root_certs(root_certificates(ca_file)?).build();
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("flotilla/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(CONNECT_SECONDS_MAX)))
            .timeout_recv_response(Some(Duration::from_secs(ANSWER_SECONDS_MAX)))
            .timeout_per_read(Some(Duration::from_secs(STALLED_SECONDS_MAX)))
            // Blobs are redirected to storage elsewhere, which must not see our token.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .max_idle_connections(4)
            .build()
            .new_agent();
        Ok(Client {
            agent,
            endpoint,
            namespace: namespace.to_owned(),
            credentials,
            tokens: Mutex::new(HashMap::new()),
        })
    }

    /// A manifest or index by tag or digest, with its digest.
    pub(crate) fn manifest(
        &self,
        repository: &str,
        selector: &str,
    ) -> Result<(Vec<u8>, Digest), RegistryError> {
        let path = format!("/v2/{repository}/manifests/{selector}");
        let response = self.get(repository, &path, &[(ACCEPT.as_str(), MANIFEST_TYPES)])?;
        let bytes = document(response)?;
        let digest = Digest::of(&bytes);
        if selector.contains(':') {
            check("manifest", selector, &digest)?;
        }
        Ok((bytes, digest))
    }

    /// A small blob, whole.
    pub(crate) fn document(
        &self,
        repository: &str,
        digest: &Digest,
    ) -> Result<Vec<u8>, RegistryError> {
        let bytes = document(self.get(repository, &blob_path(repository, digest), &[])?)?;
        check("blob", digest.as_str(), &Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// A blob as a stream that resumes where its connection breaks.
    pub(crate) fn blob<'a>(
        &'a self,
        repository: &'a str,
        digest: &'a Digest,
        size: u64,
    ) -> Result<Download<'a>, RegistryError> {
        let response = self.get(repository, &blob_path(repository, digest), &[])?;
        let body = reader(response);
        Ok(Download { client: self, repository, digest, size, body, offset: 0, resumes: 0 })
    }

    fn get(
        &self,
        repository: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response<Body>, RegistryError> {
        let response = self.attempt(repository, path, headers)?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return accept(response);
        }
        let challenge = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .find_map(Challenge::parse);
        let Some(challenge) = challenge else {
            return Err(RegistryError::Unauthorized(text_of(response)));
        };
        let authorization = self.answer(&challenge, repository)?;
        self.tokens
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(repository.to_owned(), authorization);
        accept(self.attempt(repository, path, headers)?)
    }

    fn attempt(
        &self,
        repository: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response<Body>, RegistryError> {
        let mut url = format!("{}{path}", self.endpoint.url);
        if self.endpoint.is_mirror {
            url = format!("{url}?ns={}", self.namespace);
        }
        let mut request = self.agent.get(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let token =
            self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(repository).cloned();
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token);
        }
        request
            .call()
            .map_err(|error| RegistryError::Transport(format!("{}: {error}", self.endpoint.url)))
    }

    /// The header that answers a challenge.
    fn answer(&self, challenge: &Challenge, repository: &str) -> Result<String, RegistryError> {
        let basic = self.credentials.as_ref().filter(|credentials| {
            !credentials.username.is_empty() && credentials.identity_token.is_empty()
        });
        let basic = basic.map(|credentials| {
            let pair = format!("{}:{}", credentials.username, credentials.password);
            format!("Basic {}", STANDARD.encode(pair))
        });
        let Challenge::Bearer { realm, service, scope } = challenge else {
            return basic.ok_or_else(|| RegistryError::Unauthorized("no credentials".to_owned()));
        };
        let scope = match scope.as_str() {
            "" => format!("repository:{repository}:pull"),
            given => given.to_owned(),
        };
        let identity =
            self.credentials.as_ref().filter(|credentials| !credentials.identity_token.is_empty());
        let response = match identity {
            Some(credentials) => {
                let form = [
                    ("grant_type", "refresh_token"),
                    ("service", service),
                    ("client_id", "flotilla"),
                    ("scope", &scope),
                    ("refresh_token", &credentials.identity_token),
                ];
                self.agent.post(realm).send_form(form)
            }
            None => {
                let mut request = self.agent.get(realm).query("scope", &scope);
                if !service.is_empty() {
                    request = request.query("service", service);
                }
                if let Some(basic) = &basic {
                    request = request.header(AUTHORIZATION, basic);
                }
                request.call()
            }
        };
        let response =
            response.map_err(|error| RegistryError::Transport(format!("{realm}: {error}")))?;
        token_of(response)
    }
}

fn token_of(mut response: Response<Body>) -> Result<String, RegistryError> {
    if !response.status().is_success() {
        let status = response.status();
        let text = format!("failed to fetch a token: {status}: {}", text_of(response));
        return Err(RegistryError::Unauthorized(text));
    }
    let failed = |reason: String| RegistryError::Transport(format!("token: {reason}"));
    let body = response.body_mut().with_config().limit(TOKEN_BYTES_MAX).read_to_vec();
    let body = body.map_err(|error| failed(error.to_string()))?;
    let token: Token = serde_json::from_slice(&body).map_err(|error| failed(error.to_string()))?;
    let token = if token.token.is_empty() { token.access_token } else { token.token };
    Ok(format!("Bearer {token}"))
}

/// How a registry asks.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: String, scope: String },
}

impl Challenge {
    fn parse(header: &str) -> Option<Challenge> {
        let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = HashMap::new();
        let mut rest = rest.trim();
        while let Some((name, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_at(after.find(',').unwrap_or(after.len())),
            };
            parameters.insert(name.trim().to_ascii_lowercase(), value.to_owned());
            rest = after.trim_start_matches([',', ' ']);
        }
        let mut take = |name: &str| parameters.remove(name).unwrap_or_default();
        let realm = take("realm");
        let is_url = realm.starts_with("http://") || realm.starts_with("https://");
        is_url.then(|| Challenge::Bearer { realm, service: take("service"), scope: take("scope") })
    }
}

fn accept(response: Response<Body>) -> Result<Response<Body>, RegistryError> {
    match response.status() {
        status if status.is_success() => Ok(response),
        StatusCode::NOT_FOUND => Err(RegistryError::NotFound),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Err(RegistryError::Unauthorized(text_of(response)))
        }
        status => Err(RegistryError::Status { status: status.as_u16(), text: text_of(response) }),
    }
}

/// What a registry says of an error, on one line.
fn text_of(mut response: Response<Body>) -> String {
    let read = response.body_mut().with_config().limit(ERROR_BYTES_MAX).lossy_utf8(true);
    let text = read.read_to_string().unwrap_or_default();
    let errors: Option<serde_json::Value> = serde_json::from_str(&text).ok();
    let first = errors.as_ref().and_then(|errors| errors["errors"].get(0));
    match first.map(|error| (error["code"].as_str(), error["message"].as_str())) {
        Some((Some(code), message)) => format!("{code}: {}", message.unwrap_or_default()),
        _ => text.split_whitespace().collect::<Vec<_>>().join(" "),
    }
}

fn document(mut response: Response<Body>) -> Result<Vec<u8>, RegistryError> {
    response
        .body_mut()
        .with_config()
        .limit(DOCUMENT_BYTES_MAX)
        .read_to_vec()
        .map_err(|error| RegistryError::Transport(error.to_string()))
}

fn reader(response: Response<Body>) -> Box<dyn Read + Send> {
    Box::new(response.into_body().into_with_config().limit(u64::MAX).reader())
}

fn check(what: &'static str, wanted: &str, found: &Digest) -> Result<(), RegistryError> {
    if wanted == found.as_str() {
        return Ok(());
    }
    let (wanted, found) = (wanted.to_owned(), found.to_string());
    Err(RegistryError::Digest { what, wanted, found })
}

fn blob_path(repository: &str, digest: &Digest) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

fn root_certificates(ca_file: Option<&std::path::Path>) -> Result<RootCerts, RegistryError> {
    let mut certificates: Vec<Certificate<'static>> = Vec::new();
    if let Some(path) = ca_file {
        let failed = |reason: String| RegistryError::Certificates {
            path: path.display().to_string(),
            reason,
        };
        let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        collect(&pem, &mut certificates).map_err(failed)?;
    }
    if let Ok(pem) = std::fs::read(SYSTEM_ROOTS)
        && let Err(reason) = collect(&pem, &mut certificates)
    {
        tracing::warn!(path = SYSTEM_ROOTS, reason, "not all of the system's roots are used");
    }
    if certificates.is_empty() {
        return Ok(RootCerts::WebPki);
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

fn collect(pem: &[u8], certificates: &mut Vec<Certificate<'static>>) -> Result<(), String> {
    for item in parse_pem(pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| error.to_string())? {
            certificates.push(certificate);
        }
    }
    Ok(())
}

/// A blob on its way. A broken connection is replaced by another that begins where it broke; the
/// reader doesn't notice, its hash goes on.
pub(crate) struct Download<'a> {
    client: &'a Client,
    repository: &'a str,
    digest: &'a Digest,
    size: u64,
    body: Box<dyn Read + Send>,
    offset: u64,
    resumes: u32,
}

impl std::fmt::Debug for Download<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Download")
            .field("digest", &self.digest)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

impl Download<'_> {
    fn resume(&mut self) -> Result<(), RegistryError> {
        let range = format!("bytes={}-", self.offset);
        let path = blob_path(self.repository, self.digest);
        let headers = [(RANGE.as_str(), range.as_str())];
        let response = self.client.get(self.repository, &path, &headers)?;
        let begins =
            response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).and_then(
                |range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok(),
            );
        let skip = match (response.status(), begins) {
            (StatusCode::PARTIAL_CONTENT, Some(at)) if at == self.offset => 0,
            // No ranges here: what is known already is read again and dropped.
            (StatusCode::OK, _) => self.offset,
            (status, _) => {
                let text = "no such range".to_owned();
                return Err(RegistryError::Status { status: status.as_u16(), text });
            }
        };
        self.body = reader(response);
        let skipped = io::copy(&mut self.body.by_ref().take(skip), &mut io::sink())
            .map_err(|error| RegistryError::Transport(error.to_string()))?;
        if skipped < skip {
            return Err(RegistryError::Transport("shorter than before".to_owned()));
        }
        Ok(())
    }
}

impl Read for Download<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let broken = match self.body.read(buffer) {
                Ok(0) if self.offset >= self.size => return Ok(0),
                Ok(0) => io::Error::from(io::ErrorKind::UnexpectedEof),
                Ok(count) => {
                    self.offset += count as u64;
                    if self.offset > self.size {
                        let text = format!("longer than its {} bytes", self.size);
                        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                    }
                    self.resumes = 0;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            if buffer.is_empty() {
                return Ok(0);
            }
            loop {
                self.resumes += 1;
                if self.resumes > RESUMES_MAX {
                    return Err(broken);
                }
                tracing::info!(digest = %self.digest, offset = self.offset, error = %broken,
                    "resuming a download");
                match self.resume() {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::warn!(digest = %self.digest, %error, "can't resume yet");
                        let pause = Duration::from_millis(200 << self.resumes);
                        std::thread::park_timeout(pause);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let bearer = r#"Bearer realm="https://auth.q.io/token",service="registry",scope="repository:a/b:pull,push""#;
        assert_eq!(
            Challenge::parse(bearer),
            Some(Challenge::Bearer {
                realm: "https://auth.q.io/token".into(),
                service: "registry".into(),
                scope: "repository:a/b:pull,push".into(),
            })
        );
        assert_eq!(Challenge::parse("Basic realm=\"x\""), Some(Challenge::Basic));
        for bad in
            ["Bearer", "Bearer realm=\"file:///etc/passwd\"", "Digest x=y", "Bearer realm=\""]
        {
            assert_eq!(Challenge::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_blob_ends_where_its_descriptor_says() {
        let endpoint = Endpoint {
            url: "http://127.0.0.1:1".into(),
            host: "127.0.0.1:1".into(),
            is_mirror: false,
        };
        let client = Client::new(endpoint, "q.io", None, None).unwrap();
        let digest = Digest::of(b"");
        let read = |size: u64| {
            let body = Box::new(&[0; 4096][..]);
            let (client, digest) = (&client, &digest);
            let mut download =
                Download { client, repository: "app", digest, size, body, offset: 0, resumes: 0 };
            io::copy(&mut download, &mut io::sink()).map_err(|error| error.kind())
        };
        assert_eq!(read(4096), Ok(4096));
        assert_eq!(read(4095), Err(io::ErrorKind::InvalidData));
    }
}
