//! Questions about others' names: asked upstream, remembered for as long as the answer allows.
//!
//! Upstream is the host's resolv.conf, read again when it changes; addresses of our own in it are left out, so a question never comes
//! back to us. Cache, time and tries are bounded.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::RData;
use hickory_proto::serialize::binary::DecodeError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// Port of DNS.
const PORT: u16 = 53;
/// Name servers used, as in glibc.
const SERVERS_MAX: usize = 3;
/// One try's patience; clients themselves wait five seconds for all.
const TRY: Duration = Duration::from_millis(1500);
/// Tries over all servers.
const TRIES_MAX: usize = 3;
/// Answers kept.
const CACHE_ENTRIES_MAX: usize = 2048;
/// Bytes of answers kept, as they came.
const CACHE_BYTES_MAX: usize = 1 << 20;
/// Longest that an answer is kept.
const KEEP_LONGEST: Duration = Duration::from_secs(300);
/// Longest that "no such name" is kept.
const KEEP_NEGATIVE_LONGEST: Duration = Duration::from_secs(30);
/// Longest datagram that upstream is asked for.
const PAYLOAD_BYTES: u16 = 1232;
/// Longest datagram there is: some servers send more than was asked for.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// Why nobody answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("no name server in {}", .0.display())]
    NoServers(PathBuf),
    #[error("name servers")]
    Network(#[from] io::Error),
    #[error("a name server's answer")]
    Answer(#[from] DecodeError),
    #[error("the question")]
    Question(#[from] ProtoError),
}

#[derive(Debug)]
struct Kept {
    message: Message,
    bytes: usize,
    since: Instant,
    until: Instant,
}

#[derive(Debug, Default)]
struct Cache {
    entries: HashMap<Query, Kept>,
    bytes: usize,
}

/// A name server as resolv.conf has it: `fe80::1%eth0` is one on that link.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Server {
    address: IpAddr,
    link: Option<String>,
}

impl Server {
    fn parse(word: &str) -> Option<Server> {
        let (address, link) = match word.split_once('%') {
            Some((address, link)) => (address, Some(link.to_owned())),
            None => (word, None),
        };
        Some(Server { address: address.parse().ok()?, link })
    }

    /// Looked up each time: a link can come after the file, and anew with another number.
    fn socket_address(&self) -> io::Result<SocketAddr> {
        match (self.address, self.link.as_deref()) {
            (IpAddr::V6(address), Some(link)) => {
                let scope = link.parse().or_else(|_| nix::net::if_::if_nametoindex(link))?;
                Ok(SocketAddrV6::new(address, PORT, 0, scope).into())
            }
            (address, _) => Ok(SocketAddr::new(address, PORT)),
        }
    }
}

#[derive(Debug, Default)]
struct Servers {
    read_at: Option<SystemTime>,
    found: Vec<Server>,
}

/// The resolver of others' names.
#[derive(Debug)]
pub(crate) struct Forwarder {
    resolv_conf: PathBuf,
    own: Vec<IpAddr>,
    servers: Mutex<Servers>,
    cache: Mutex<Cache>,
}

impl Forwarder {
    /// `own` are addresses that lead back to this resolver.
    pub(crate) fn new(resolv_conf: PathBuf, own: Vec<IpAddr>) -> Forwarder {
        Forwarder { resolv_conf, own, servers: Mutex::default(), cache: Mutex::default() }
    }

    /// Asks, or remembers.
    pub(crate) async fn resolve(&self, query: &Query) -> Result<Message, ForwardError> {
        if let Some(kept) = self.recall(query, Instant::now()) {
            return Ok(kept);
        }
        let servers = self.servers()?;
        if servers.is_empty() {
            return Err(ForwardError::NoServers(self.resolv_conf.clone()));
        }
        let mut last = ForwardError::NoServers(self.resolv_conf.clone());
        for server in servers.iter().cycle().take(TRIES_MAX) {
            let asked = match server.socket_address() {
                Ok(address) => ask(address, query).await,
                Err(error) => Err(error.into()),
            };
            match asked {
                // The next one may know.
                Ok(answer) if is_failure(&answer) => last = answered(answer),
                Ok(answer) => {
                    self.remember(query, &answer, Instant::now());
                    return Ok(answer);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn servers(&self) -> io::Result<Vec<Server>> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let changed_at = std::fs::metadata(&self.resolv_conf)?.modified()?;
        if servers.read_at != Some(changed_at) {
            let text = std::fs::read_to_string(&self.resolv_conf)?;
            servers.found = parse_resolv_conf(&text, &self.own);
            servers.read_at = Some(changed_at);
        }
        Ok(servers.found.clone())
    }

    fn recall(&self, query: &Query, now: Instant) -> Option<Message> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = cache.entries.get(query).filter(|kept| now < kept.until)?;
        let age = now.duration_since(kept.since).as_secs();
        let age = u32::try_from(age).unwrap_or(u32::MAX);
        let mut message = kept.message.clone();
        let records = message.answers.iter_mut().chain(&mut message.authorities);
        for record in records {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(message)
    }

    fn remember(&self, query: &Query, answer: &Message, now: Instant) {
        let Some(keep) = keep_for(answer) else { return };
        let Ok(bytes) = answer.to_vec() else { return };
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let kept =
            Kept { message: answer.clone(), bytes: bytes.len(), since: now, until: now + keep };
        cache.insert(query.clone(), kept, now);
    }
}

impl Cache {
    fn insert(&mut self, query: Query, kept: Kept, now: Instant) {
        self.remove(&query);
        let is_full = |cache: &Cache| {
            cache.entries.len() >= CACHE_ENTRIES_MAX || cache.bytes + kept.bytes > CACHE_BYTES_MAX
        };
        if is_full(self) {
            self.entries.retain(|_, kept| now < kept.until);
            self.bytes = self.entries.values().map(|kept| kept.bytes).sum();
        }
        while is_full(self) {
            // What ends first is lost with the least.
            let first = self.entries.iter().min_by_key(|(_, kept)| kept.until);
            let Some(first) = first.map(|(query, _)| query.clone()) else { return };
            self.remove(&first);
        }
        self.bytes += kept.bytes;
        self.entries.insert(query, kept);
    }

    fn remove(&mut self, query: &Query) {
        if let Some(kept) = self.entries.remove(query) {
            self.bytes -= kept.bytes;
        }
    }
}

async fn ask(server: SocketAddr, query: &Query) -> Result<Message, ForwardError> {
    let mut question = Message::new(random_id(), MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD_BYTES);
    question.set_edns(edns);
    let answer = ask_once(server, &question).await?;
    if answer.metadata.response_code == ResponseCode::FormErr {
        // A server that knows no EDNS (RFC 6891, 7).
        question.edns = None;
        return ask_once(server, &question).await;
    }
    Ok(answer)
}

async fn ask_once(server: SocketAddr, question: &Message) -> Result<Message, ForwardError> {
    let bytes = question.to_vec()?;
    let answer = within(over_udp(server, question, &bytes)).await?;
    match answer.metadata.truncation {
        true => within(over_tcp(server, question, &bytes)).await,
        false => Ok(answer),
    }
}

fn is_failure(answer: &Message) -> bool {
    !matches!(answer.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
}

fn answered(answer: Message) -> ForwardError {
    ForwardError::Network(io::Error::other(answer.metadata.response_code.to_string()))
}

/// For how long an answer holds; none for one that doesn't.
fn keep_for(answer: &Message) -> Option<Duration> {
    let seconds = |ttl: u32| Duration::from_secs(u64::from(ttl));
    if answer.metadata.response_code == ResponseCode::NoError && !answer.answers.is_empty() {
        let shortest = answer.answers.iter().map(|record| record.ttl).min()?;
        return Some(seconds(shortest).min(KEEP_LONGEST)).filter(|keep| !keep.is_zero());
    }
    // RFC 2308: the smaller of the SOA's own TTL and its minimum.
    let soa = answer.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
        _ => None,
    })?;
    Some(seconds(soa).min(KEEP_NEGATIVE_LONGEST)).filter(|keep| !keep.is_zero())
}

/// The name servers, without those that are ourselves.
fn parse_resolv_conf(text: &str, own: &[IpAddr]) -> Vec<Server> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()).flatten()
        })
        .filter_map(Server::parse)
        .filter(|server| !own.contains(&server.address))
        .take(SERVERS_MAX)
        .collect()
}

/// From the standard library's keyed hash, which an outsider can't predict.
fn random_id() -> u16 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let [a, b, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    u16::from_ne_bytes([a, b])
}

async fn within(
    work: impl Future<Output = Result<Message, ForwardError>>,
) -> Result<Message, ForwardError> {
    match tokio::time::timeout(TRY, work).await {
        Ok(result) => result,
        Err(_) => Err(ForwardError::Network(io::ErrorKind::TimedOut.into())),
    }
}

fn matches(question: &Message, answer: &Message) -> bool {
    answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && (answer.queries == question.queries
            // What can't be read isn't repeated.
            || answer.metadata.response_code == ResponseCode::FormErr && answer.queries.is_empty())
}

async fn over_udp(
    server: SocketAddr,
    question: &Message,
    bytes: &[u8],
) -> Result<Message, ForwardError> {
    let any: IpAddr = match server.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // A datagram that isn't the answer is somebody's guess: wait on.
        if let Ok(answer) = Message::from_vec(buffer.get(..length).unwrap_or_default())
            && matches(question, &answer)
        {
            return Ok(answer);
        }
    }
}

async fn over_tcp(
    server: SocketAddr,
    question: &Message,
    bytes: &[u8],
) -> Result<Message, ForwardError> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    let answer = Message::from_vec(&buffer)?;
    match matches(question, &answer) {
        true => Ok(answer),
        false => Err(ForwardError::Network(io::Error::other("an answer to another question"))),
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::{A, SOA};
    use hickory_proto::rr::{Name, Record, RecordType};

    use super::*;

    #[test]
    fn own_addresses_are_left_out() {
        let own = ["10.96.0.10".parse().unwrap()];
        let text = "# a comment\nnameserver 10.96.0.10\nsearch x\nnameserver 192.0.2.53\n\
                    nameserver fe80::1%eth0\nnameserver nonsense\n";
        let want = ["192.0.2.53", "fe80::1%eth0"].map(|word| Server::parse(word).unwrap());
        assert_eq!(parse_resolv_conf(text, &own), want);
    }

    #[test]
    fn a_servers_link_is_part_of_its_address() {
        for (word, want) in [
            ("192.0.2.53", Some("192.0.2.53:53")),
            ("2001:db8::1", Some("[2001:db8::1]:53")),
            ("fe80::1%7", Some("[fe80::1%7]:53")),
            ("fe80::1%lo", Some("[fe80::1%1]:53")),
            ("fe80::1%no-such-link", None),
        ] {
            let address = Server::parse(word).unwrap().socket_address();
            assert_eq!(address.ok(), want.map(|text| text.parse().unwrap()), "{word}");
        }
    }

    /// A server that knows no EDNS, and answers with a datagram longer than was asked for.
    #[tokio::test]
    async fn old_servers_and_long_answers_are_understood() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = server.local_addr().unwrap();
        let serve = async {
            let mut buffer = [0; 512];
            loop {
                let (length, from) = server.recv_from(&mut buffer).await.unwrap();
                let question = Message::from_vec(&buffer[..length]).unwrap();
                let id = question.metadata.id;
                let mut reply = Message::new(id, MessageType::Response, OpCode::Query);
                if question.edns.is_some() {
                    reply.metadata.response_code = ResponseCode::FormErr;
                } else {
                    reply.add_query(question.queries[0].clone());
                    for last in 0..200 {
                        let data = RData::A(A(Ipv4Addr::new(192, 0, 2, last)));
                        let name = question.queries[0].name().clone();
                        reply.add_answer(Record::from_rdata(name, 60, data));
                    }
                }
                server.send_to(&reply.to_vec().unwrap(), from).await.unwrap();
            }
        };
        let query = query("example.org.");
        let answer = tokio::select! {
            answer = ask(address, &query) => answer.unwrap(),
            () = serve => unreachable!(),
        };
        assert_eq!(answer.answers.len(), 200);
    }

    fn query(name: &str) -> Query {
        Query::query(Name::from_ascii(name).unwrap(), RecordType::A)
    }

    fn answer(query: &Query, ttl: u32) -> Message {
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
        message.add_answer(Record::from_rdata(query.name().clone(), ttl, data));
        message
    }

    #[test]
    fn answers_are_kept_for_their_time_and_no_longer() {
        let forwarder = Forwarder::new(PathBuf::new(), Vec::new());
        let (query, start) = (query("example.org."), Instant::now());
        forwarder.remember(&query, &answer(&query, 60), start);
        let later = forwarder.recall(&query, start + Duration::from_secs(20)).unwrap();
        assert_eq!(later.answers[0].ttl, 40);
        assert!(forwarder.recall(&query, start + Duration::from_secs(60)).is_none());
        forwarder.remember(&query, &answer(&query, 0), start);
        let mut missing = Message::new(1, MessageType::Response, OpCode::Query);
        missing.metadata.response_code = ResponseCode::NXDomain;
        assert_eq!(keep_for(&missing), None, "without an SOA nothing says for how long");
        let root = Name::root();
        let soa = SOA::new(root.clone(), root.clone(), 1, 1, 1, 1, 7);
        missing.add_authority(Record::from_rdata(root, 900, RData::SOA(soa)));
        assert_eq!(keep_for(&missing), Some(Duration::from_secs(7)));
    }

    #[test]
    fn the_cache_is_bounded() {
        let forwarder = Forwarder::new(PathBuf::new(), Vec::new());
        let start = Instant::now();
        for number in 0..CACHE_ENTRIES_MAX + 10 {
            let query = query(&format!("n{number}.example.org."));
            forwarder.remember(&query, &answer(&query, 60), start + Duration::from_micros(1));
        }
        let cache = forwarder.cache.lock().unwrap();
        assert_eq!(cache.entries.len(), CACHE_ENTRIES_MAX);
        assert_eq!(cache.bytes, cache.entries.values().map(|kept| kept.bytes).sum::<usize>());
    }
}
