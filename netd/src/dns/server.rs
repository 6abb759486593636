//! The sockets of the resolver: UDP and TCP, bounded in questions, connections, sizes and time.
//!
//! Answers only pods and this host: an open resolver would be a weapon in others' hands.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::Record;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::forward::Forwarder;
use super::message::{
    Received, begin, datagram_limit, encode, from_alias, from_zone, read_question, refuse,
};
use super::zone::{Answer, Zone};
use crate::tracker::Tracker;
use crate::{Config, DNS_ADDRESS};

/// Questions being answered at once; more are dropped, the client asks again.
const QUESTIONS_MAX: usize = 512;
/// TCP connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// A TCP client that says nothing for so long is hung up on.
const IDLE: Duration = Duration::from_secs(10);
/// Longest question taken.
const QUESTION_BYTES_MAX: usize = 4096;
/// Aliases followed in one answer.
const ALIASES_MAX: usize = 8;
/// Between attempts to listen: the address comes with the node's other addresses.
const LISTEN_RETRY: Duration = Duration::from_millis(100);
/// After an error of a socket.
const SOCKET_RETRY: Duration = Duration::from_millis(100);

/// What all questions share.
#[derive(Debug)]
struct Resolver {
    config: Config,
    tracker: Tracker,
    zone: Zone,
    forwarder: Forwarder,
    questions: Arc<Semaphore>,
}

/// Addresses to listen on: one per family of cluster DNS addresses.
fn listen_addresses(config: &Config) -> Vec<SocketAddr> {
    let mut addresses = BTreeMap::new();
    for address in &config.cluster_dns {
        let own = match address {
            IpAddr::V4(_) => Some(IpAddr::V4(DNS_ADDRESS)),
            IpAddr::V6(_) => config.node_ips.iter().find(|ip| ip.is_ipv6()).copied(),
        };
        if let Some(own) = own {
            addresses.insert(own.is_ipv4(), SocketAddr::new(own, config.dns_port));
        }
    }
    addresses.into_values().collect()
}

/// Serves until it is dropped.
pub(crate) async fn run(config: Config, tracker: Tracker) {
    let ranges = config.service_cidrs.iter().chain(&config.cluster_cidrs).copied().collect();
    let zone = match Zone::new(&config.cluster_domain, ranges) {
        Ok(zone) => zone,
        Err(error) => {
            tracing::error!(domain = config.cluster_domain, %error, "no DNS: bad cluster domain");
            return;
        }
    };
    let mut own = config.cluster_dns.clone();
    own.push(DNS_ADDRESS.into());
    let forwarder = Forwarder::new(config.upstream_resolv_conf.clone(), own);
    let questions = Arc::new(Semaphore::new(QUESTIONS_MAX));
    let addresses = listen_addresses(&config);
    let resolver = Arc::new(Resolver { config, tracker, zone, forwarder, questions });
    let mut sockets = JoinSet::new();
    for address in addresses {
        sockets.spawn(serve(resolver.clone(), address));
    }
    while sockets.join_next().await.is_some() {}
}

async fn serve(resolver: Arc<Resolver>, address: SocketAddr) {
    let mut told = false;
    let (udp, tcp) = loop {
        let bound = async {
            io::Result::Ok((UdpSocket::bind(address).await?, TcpListener::bind(address).await?))
        };
        match bound.await {
            Ok(sockets) => break sockets,
            Err(error) => {
                if !std::mem::replace(&mut told, error.kind() != io::ErrorKind::AddrNotAvailable)
                    && told
                {
                    tracing::warn!(%address, %error, "DNS can't listen; retrying");
                }
                tokio::time::sleep(LISTEN_RETRY).await;
            }
        }
    };
    tracing::debug!(%address, "DNS listens");
    tokio::join!(serve_udp(resolver.clone(), Arc::new(udp)), serve_tcp(resolver, tcp));
}

async fn serve_udp(resolver: Arc<Resolver>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; QUESTION_BYTES_MAX];
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "DNS socket");
                tokio::time::sleep(SOCKET_RETRY).await;
                continue;
            }
        };
        if !resolver.serves(from.ip()) {
            continue;
        }
        let question = match read_question(buffer.get(..length).unwrap_or_default()) {
            Received::Question(question) => question,
            Received::Refused(refusal) => {
                send(&socket, from, encode(*refusal, None)).await;
                continue;
            }
            Received::Noise => continue,
        };
        let limit = datagram_limit(&question);
        if let Some(answer) = resolver.at_once(&question) {
            send(&socket, from, encode(answer, Some(limit))).await;
            continue;
        }
        let Ok(permit) = resolver.questions.clone().try_acquire_owned() else { continue };
        let (resolver, socket) = (resolver.clone(), socket.clone());
        tasks.spawn(async move {
            let answer = resolver.answer(&question).await;
            send(&socket, from, encode(answer, Some(limit))).await;
            drop(permit);
        });
    }
}

async fn send(socket: &UdpSocket, to: SocketAddr, bytes: Option<Vec<u8>>) {
    if let Some(bytes) = bytes
        && let Err(error) = socket.send_to(&bytes, to).await
    {
        tracing::debug!(%to, %error, "DNS answer not sent");
    }
}

async fn serve_tcp(resolver: Arc<Resolver>, listener: TcpListener) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "DNS listener");
                tokio::time::sleep(SOCKET_RETRY).await;
                continue;
            }
        };
        if !resolver.serves(from.ip()) {
            continue;
        }
        let resolver = resolver.clone();
        tasks.spawn(async move {
            if let Err(error) = serve_connection(&resolver, stream).await {
                tracing::trace!(%from, %error, "DNS connection");
            }
            drop(permit);
        });
    }
}

async fn serve_connection(resolver: &Resolver, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let read = async {
            let length = usize::from(stream.read_u16().await?);
            if length > QUESTION_BYTES_MAX {
                return Err(io::Error::other("question too long"));
            }
            let mut buffer = vec![0; length];
            stream.read_exact(&mut buffer).await?;
            Ok(buffer)
        };
        let buffer = tokio::time::timeout(IDLE, read).await??;
        let answer = match read_question(&buffer) {
            Received::Question(question) => resolver.answer(&question).await,
            Received::Refused(refusal) => *refusal,
            Received::Noise => return Ok(()),
        };
        let Some(bytes) = encode(answer, None) else { return Ok(()) };
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &bytes].concat();
        tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

impl Resolver {
    /// Pods, and this host itself.
    fn serves(&self, from: IpAddr) -> bool {
        let from = from.to_canonical();
        from.is_loopback()
            || from == IpAddr::V4(DNS_ADDRESS)
            || self.config.node_ips.contains(&from)
            || self.config.cluster_cidrs.iter().any(|cidr| cidr.contains(&from))
    }

    fn look_up(&self, query: &Query) -> Answer {
        self.zone.answer(&self.tracker.read(), query.name(), query.query_type())
    }

    /// The answer where nobody has to be asked.
    fn at_once(&self, question: &Message) -> Option<Message> {
        let answer = self.look_up(question.queries.first()?);
        from_zone(question, &self.zone, &answer)
    }

    async fn answer(&self, question: &Message) -> Message {
        let Some(mut query) = question.queries.first().cloned() else {
            return refuse(question, ResponseCode::FormErr);
        };
        let mut aliases: Vec<Record> = Vec::new();
        for _ in 0..ALIASES_MAX {
            match self.look_up(&query) {
                Answer::Alias(alias) => {
                    let (record, target) = *alias;
                    aliases.push(record);
                    query.set_name(target);
                }
                Answer::NotOurs => return self.forward(question, &query, aliases).await,
                own => {
                    let message = from_zone(question, &self.zone, &own);
                    return match (message, aliases.is_empty()) {
                        (Some(message), true) => message,
                        (message, _) => from_alias(question, aliases, message.as_ref()),
                    };
                }
            }
        }
        refuse(question, ResponseCode::ServFail)
    }

    async fn forward(&self, question: &Message, query: &Query, aliases: Vec<Record>) -> Message {
        match self.forwarder.resolve(query).await {
            Ok(rest) if aliases.is_empty() => {
                let mut answer = begin(question);
                answer.metadata.response_code = rest.metadata.response_code;
                answer.answers = rest.answers;
                answer.authorities = rest.authorities;
                answer
            }
            Ok(rest) => from_alias(question, aliases, Some(&rest)),
            Err(error) => {
                tracing::debug!(name = %query.name(), %error, "not resolved upstream");
                refuse(question, ResponseCode::ServFail)
            }
        }
    }
}
