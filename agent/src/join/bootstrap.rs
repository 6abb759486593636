//! The way from a token to a certificate: the cluster's CA fetched without trust and checked against
//! the token's fingerprint, then a signing request answered by a controller. Blocking, over ureq.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::connection::parse_server;
use crate::identity::{DeviceKey, IdentityError, certificates, hex, validity};
use crate::join::token::Token;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the signing controller may take.
const APPROVAL_DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
/// Certificates and tokens are no good with a clock further off than this.
const CLOCK_OFF_MAX: Duration = Duration::from_secs(300);
const ANSWER_BYTES_MAX: u64 = 1 << 20;
const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

/// Every message names the cause and what to do about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    #[error(
        "cannot reach the master at {server} ({why}); check the address, that `controlplane run` is running there, and that no firewall is in between"
    )]
    NoMaster { server: String, why: String },
    #[error(
        "what answers at {server} is no Flotilla master ({why}); check the address and port (6443 unless changed)"
    )]
    NotAMaster { server: String, why: String },
    #[error(
        "the master at {server} is not the one the token was made for: the fingerprint of its CA is {found}, the token's {expected}; check the address, or make a new token on this master with `controlplane token create`. If both are right, somebody may be in between: don't join"
    )]
    Fingerprint { server: String, found: String, expected: String },
    #[error(
        "the clock of this device is wrong: it says {local}, the master {master}; set it (for example `timedatectl set-ntp true`, or `date -s '{master}'`) and join again"
    )]
    Clock { local: String, master: String },
    #[error(
        "the master does not accept the token {id}: it is wrong, revoked, used up or expired{detail}; list tokens with `controlplane token list`, make a new one with `controlplane token create`"
    )]
    Token { id: String, detail: String },
    #[error(
        "the token {id} must not be used to join nodes ({message}); make one with `controlplane token create`"
    )]
    Forbidden { id: String, message: String },
    #[error("the master refused this node: {0}")]
    Denied(String),
    #[error("the master did not sign the node's certificate within {} s; look at its log (controllers running?) and join again", APPROVAL_DEADLINE.as_secs())]
    NotSigned,
    #[error("the connection to the master at {server} is not secure: {why}")]
    Tls { server: String, why: String },
    #[error("the master answered {status}: {message}")]
    Status { status: u16, message: String },
    #[error("the master's answer can't be understood: {0}")]
    Answer(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the server address {0:?} is not https://HOST[:PORT]")]
    Address(String),
}

/// The master, its CA checked against the token.
#[derive(Debug)]
pub(crate) struct Master {
    server: String,
    agent: ureq::Agent,
    pub(crate) ca_pem: String,
}

struct Answer {
    status: u16,
    body: String,
    date: Option<SystemTime>,
}

fn agent(tls: TlsConfig) -> ureq::Agent {
    ureq::Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .timeout_global(Some(REQUEST_TIMEOUT))
        .proxy(None)
        .build()
        .into()
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn take(result: Result<http::Response<ureq::Body>, ureq::Error>) -> Result<Answer, ureq::Error> {
    let mut response = result?;
    let date = response.headers().get("date").and_then(|value| value.to_str().ok());
    let date = date.and_then(parse_date);
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string()?;
    Ok(Answer { status, body, date })
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
fn parse_date(text: &str) -> Option<SystemTime> {
    let parsed = jiff::fmt::rfc2822::parse(text).ok()?;
    let seconds = u64::try_from(parsed.timestamp().as_second()).ok()?;
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// `https://HOST:PORT`, the port filled in.
pub(crate) fn complete_server(server: &str) -> Result<String, JoinError> {
    let bad = || JoinError::Address(server.to_owned());
    let full = if server.contains("://") { server.to_owned() } else { format!("https://{server}") };
    let (_, authority) = parse_server(full.trim_end_matches('/')).map_err(|_| bad())?;
    match authority.port_u16() {
        Some(_) => Ok(format!("https://{authority}")),
        None => Ok(format!("https://{authority}:6443")),
    }
}

/// Connects once, to tell an unreachable master from one that refuses.
fn reach(server: &str) -> Result<(), JoinError> {
    let no = |why: String| JoinError::NoMaster { server: server.to_owned(), why };
    let (host, authority) =
        parse_server(server).map_err(|_| JoinError::Address(server.to_owned()))?;
    let port = authority.port_u16().unwrap_or(6443);
    let addresses: Vec<SocketAddr> = (host.as_str(), port)
        .to_socket_addrs()
        .map_err(|error| no(format!("cannot resolve {host:?}: {error}")))?
        .collect();
    let mut last = format!("{host:?} has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(_) => return Ok(()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(no(last))
}

impl Master {
    /// Fetches the CA without trust and believes it only if the token knows it.
    pub(crate) fn find(server: &str, token: &Token) -> Result<Master, JoinError> {
        reach(server)?;
        let not_a_master = |why: String| JoinError::NotAMaster { server: server.to_owned(), why };
        let blind = TlsConfig::builder()
            .disable_verification(true)
            .unversioned_rustls_crypto_provider(provider())
            .build();
        let answer = take(agent(blind).get(format!("{server}/cacerts")).call())
            .map_err(|error| not_a_master(error.to_string()))?;
        if answer.status != 200 {
            return Err(not_a_master(format!("/cacerts answers {}", answer.status)));
        }
        let chain = certificates(&answer.body, Path::new("/cacerts"))
            .map_err(|error| not_a_master(error.to_string()))?;
        let known = chain.iter().find(|ca| fingerprint(ca) == token.fingerprint);
        let Some(ca) = known else {
            return Err(JoinError::Fingerprint {
                server: server.to_owned(),
                found: fingerprint(&chain[0]),
                expected: token.fingerprint.clone(),
            });
        };
        check_clock(SystemTime::now(), answer.date, &answer.body)?;
        let trusting = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&[Certificate::from_der(ca).to_owned()]))
            .unversioned_rustls_crypto_provider(provider())
            .build();
        Ok(Master { server: server.to_owned(), agent: agent(trusting), ca_pem: answer.body })
    }

    fn failed(&self, error: &ureq::Error) -> JoinError {
        JoinError::Tls { server: self.server.clone(), why: error.to_string() }
    }

    /// A certificate for the device key, from the token.
    pub(crate) fn enroll(
        &self,
        token: &Token,
        key: &DeviceKey,
        node_name: &str,
    ) -> Result<String, JoinError> {
        let pem = key.certificate_request(node_name)?;
        let request = json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"generateName": "node-csr-"},
            "spec": {
                "request": base64::engine::general_purpose::STANDARD.encode(pem),
                "signerName": SIGNER,
                "usages": ["digital signature", "client auth"],
            }
        });
        let url = format!("{}{REQUESTS}", self.server);
        let sent = self
            .agent
            .post(&url)
            .header("authorization", token.bearer())
            .header("content-type", "application/json")
            .send(request.to_string());
        let answer = take(sent).map_err(|error| self.failed(&error))?;
        let created = judge(answer, token)?;
        let name = created["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if name.is_empty() {
            return Err(JoinError::Answer("the request has no name".into()));
        }
        self.await_certificate(token, &format!("{url}/{name}"))
    }

    fn await_certificate(&self, token: &Token, url: &str) -> Result<String, JoinError> {
        let deadline = Instant::now() + APPROVAL_DEADLINE;
        while Instant::now() < deadline {
            let asked = self.agent.get(url).header("authorization", token.bearer()).call();
            let answer = take(asked).map_err(|error| self.failed(&error))?;
            let request = judge(answer, token)?;
            let status = &request["status"];
            for condition in status["conditions"].as_array().into_iter().flatten() {
                if matches!(condition["type"].as_str(), Some("Denied" | "Failed")) {
                    let message = condition["message"].as_str().unwrap_or("no reason given");
                    return Err(JoinError::Denied(message.to_owned()));
                }
            }
            if let Some(encoded) = status["certificate"].as_str() {
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(encoded)
                    .map_err(|error| JoinError::Answer(error.to_string()))?;
                return String::from_utf8(bytes)
                    .map_err(|error| JoinError::Answer(error.to_string()));
            }
            std::thread::park_timeout(POLL);
        }
        Err(JoinError::NotSigned)
    }

    /// The master as the node's own certificate sees it.
    pub(crate) fn as_node(&self, node_pem: &str, key: &DeviceKey) -> Result<Master, JoinError> {
        let tls = TlsConfig::builder()
            .root_certs(self.roots()?)
            .client_cert(Some(key.client_certificate(node_pem)?))
            .unversioned_rustls_crypto_provider(provider())
            .build();
        let (server, ca_pem) = (self.server.clone(), self.ca_pem.clone());
        Ok(Master { server, agent: agent(tls), ca_pem })
    }

    fn get(&self, path: &str) -> Result<Option<Value>, JoinError> {
        let asked = self.agent.get(format!("{}{path}", self.server)).call();
        let answer = take(asked).map_err(|error| self.failed(&error))?;
        if answer.status == 404 { Ok(None) } else { parse(&answer).map(Some) }
    }

    /// The Node's `Ready` condition as the master has it.
    pub(crate) fn node_ready(&self, name: &str) -> Result<Option<(bool, String)>, JoinError> {
        let node = self.get(&format!("/api/v1/nodes/{name}"))?;
        let conditions = node.as_ref().and_then(|node| node["status"]["conditions"].as_array());
        let ready = conditions.into_iter().flatten().find(|c| c["type"] == "Ready");
        Ok(ready.map(|condition| {
            let message = condition["message"].as_str().unwrap_or_default();
            (condition["status"] == "True", message.to_owned())
        }))
    }

    /// When the node's lease was renewed last.
    pub(crate) fn lease_renewed(&self, name: &str) -> Result<Option<SystemTime>, JoinError> {
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}");
        let lease = self.get(&path)?;
        let time = lease.as_ref().and_then(|lease| lease["spec"]["renewTime"].as_str());
        Ok(time.and_then(|time| time.parse::<jiff::Timestamp>().ok()).map(SystemTime::from))
    }

    /// The documents that the cluster tells its nodes, by key: `null` where it tells nothing.
    pub(crate) fn settings(&self) -> Result<Value, JoinError> {
        let map = self.get("/api/v1/namespaces/kube-system/configmaps/kubelet-config")?;
        Ok(map.map(|mut map| map["data"].take()).unwrap_or_default())
    }

    fn roots(&self) -> Result<RootCerts, JoinError> {
        let chain = certificates(&self.ca_pem, Path::new("/cacerts"))?;
        let all: Vec<Certificate<'static>> =
            chain.iter().map(|ca| Certificate::from_der(ca).to_owned()).collect();
        Ok(RootCerts::new_with_certs(&all))
    }
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, certificate).as_ref())
}

/// Compares with the master's Date, or else with the beginning of its CA's validity.
fn check_clock(
    local: SystemTime,
    master: Option<SystemTime>,
    ca_pem: &str,
) -> Result<(), JoinError> {
    let (not_before, _) = validity(ca_pem)?;
    let master = master.unwrap_or_else(|| not_before.max(local));
    let off = local.duration_since(master).or_else(|_| master.duration_since(local));
    if off.is_ok_and(|off| off <= CLOCK_OFF_MAX) {
        return Ok(());
    }
    let text = |time: SystemTime| {
        jiff::Timestamp::try_from(time).map(|t| t.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
    };
    Err(JoinError::Clock {
        local: text(local).unwrap_or_default(),
        master: text(master).unwrap_or_default(),
    })
}

fn parse(answer: &Answer) -> Result<Value, JoinError> {
    let value: Value = serde_json::from_str(&answer.body)
        .map_err(|error| JoinError::Answer(format!("status {}: {error}", answer.status)))?;
    if (200..300).contains(&answer.status) {
        return Ok(value);
    }
    let message = value["message"].as_str().unwrap_or_default().to_owned();
    Err(JoinError::Status { status: answer.status, message })
}

fn judge(answer: Answer, token: &Token) -> Result<Value, JoinError> {
    match parse(&answer) {
        Err(JoinError::Status { status: 401, message }) => {
            let detail = if message.is_empty() || message == "Unauthorized" {
                String::new()
            } else {
                format!(" ({message})")
            };
            Err(JoinError::Token { id: token.id.clone(), detail })
        }
        Err(JoinError::Status { status: 403, message }) => {
            Err(JoinError::Forbidden { id: token.id.clone(), message })
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_completed() {
        for (given, full) in [
            ("https://m", "https://m:6443"),
            ("m", "https://m:6443"),
            ("https://10.0.0.1:7443/", "https://10.0.0.1:7443"),
            ("https://[fd00::1]", "https://[fd00::1]:6443"),
        ] {
            assert_eq!(complete_server(given).unwrap(), full, "{given}");
        }
        assert!(complete_server("http://m").is_err());
    }

    #[test]
    fn a_wrong_clock_is_named() {
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(check_clock(at(2_000_000_000), Some(at(2_000_000_200)), &pem).is_ok());
        assert!(check_clock(at(2_000_000_000), None, &pem).is_ok());
        let error = check_clock(at(0), Some(at(2_000_000_000)), &pem).unwrap_err().to_string();
        assert!(error.contains("says 1970-01-01 00:00:00 UTC, the master 2033-05-18"), "{error}");
    }

    #[test]
    fn dates() {
        let date = parse_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(date.duration_since(UNIX_EPOCH).unwrap().as_secs(), 784_111_777);
    }
}
