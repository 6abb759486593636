//! Names as pods see them: through the cluster DNS address, on the real kernel.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking and prints what it skips"
)]

mod lab;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use lab::{Api, Host, attach, config, eventually, inside, is_root, node, service, slice, start};
use serde_json::json;

const VIP: &str = "10.96.0.10:53";

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn over_udp(from: &Path, to: &str, name: &str, kind: RecordType) -> Result<Message, String> {
    let (to, bytes): (SocketAddr, _) = (to.parse().unwrap(), question(name, kind));
    inside(from, move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket.connect(to).unwrap();
        socket.send(&bytes).unwrap();
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).map_err(|error| error.to_string())?;
        Message::from_vec(&buffer[..length]).map_err(|error| error.to_string())
    })
}

fn over_tcp(from: &Path, name: &str, kind: RecordType) -> Result<Message, String> {
    let bytes = question(name, kind);
    inside(from, move || {
        let run = || -> std::io::Result<Vec<u8>> {
            let mut stream = TcpStream::connect(VIP)?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.write_all(&u16::try_from(bytes.len()).unwrap().to_be_bytes())?;
            stream.write_all(&bytes)?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer)?;
            Ok(answer)
        };
        let answer = run().map_err(|error| error.to_string())?;
        Message::from_vec(&answer).map_err(|error| error.to_string())
    })
}

fn texts(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

/// An upstream name server: each name has one address; `big.` has so many that they need TCP.
fn upstream(host: &Host) {
    let answer = |bytes: &[u8]| {
        let question = Message::from_vec(bytes).unwrap();
        let name = question.queries[0].name().clone();
        let mut answer = Message::response(question.metadata.id, OpCode::Query);
        answer.queries.clone_from(&question.queries);
        let count = if name.to_ascii().starts_with("big.") { 200 } else { 1 };
        for number in 0..count {
            let data = RData::A(A(Ipv4Addr::new(198, 51, 100, number)));
            answer.add_answer(Record::from_rdata(name.clone(), 60, data));
        }
        answer
    };
    host.run(move || async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let udp = tokio::net::UdpSocket::bind("0.0.0.0:53").await.unwrap();
        let tcp = tokio::net::TcpListener::bind("0.0.0.0:53").await.unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                let mut message = answer(&buffer[..length]);
                if message.answers.len() > 1 {
                    message.answers.clear();
                    message.metadata.truncation = true;
                }
                udp.send_to(&message.to_vec().unwrap(), from).await.unwrap();
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let length = stream.read_u16().await.unwrap();
                let mut buffer = vec![0; usize::from(length)];
                stream.read_exact(&mut buffer).await.unwrap();
                let bytes = answer(&buffer).to_vec().unwrap();
                stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
                stream.write_all(&bytes).await.unwrap();
            }
        });
    });
}

#[test]
fn names_are_answered_without_the_master() {
    if !is_root("names_are_answered_without_the_master") {
        return;
    }
    let (host, outside) = (Host::new("n1"), Host::new("out"));
    host.cable("up0", "192.0.2.1/24", (&outside, "192.0.2.9/24"));
    upstream(&outside);
    let api = Api::new();
    api.apply("nodes", node("n1", "192.0.2.1", "10.244.1.0/24"));
    api.apply("services", service("10.96.0.80", &json!({})));
    let mut db = service("None", &json!({"type": "ClusterIP"}));
    db["metadata"]["name"] = json!("db");
    api.apply("services", db);
    let mut alias = json!({"metadata": {"name": "alias", "namespace": "default"}});
    alias["spec"] = json!({"type": "ExternalName", "externalName": "www.example.org"});
    api.apply("services", alias);
    let many: Vec<_> = (1..120).map(|n| (format!("10.244.7.{n}"), "n7")).collect();
    let mut db_slice = slice(&many);
    db_slice["metadata"]["labels"]["kubernetes.io/service-name"] = json!("db");
    api.apply("endpointslices", db_slice);
    // Our own address in resolv.conf must not lead back to us.
    let resolv_conf = config(&host, "192.0.2.1").upstream_resolv_conf;
    std::fs::write(resolv_conf, "nameserver 10.96.0.10\nnameserver 192.0.2.9\n").unwrap();
    let netd = start(&host, "192.0.2.1", &api);
    let pod = attach(&host, &netd, "client").netns;
    api.cut();

    let web = "web.default.svc.cluster.local.";
    eventually("DNS answers", || over_udp(&pod, VIP, web, RecordType::A).map(drop));
    let answer = over_udp(&pod, VIP, web, RecordType::A).unwrap();
    assert_eq!(texts(&answer), ["10.96.0.80"]);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    assert_eq!(texts(&over_tcp(&pod, web, RecordType::A).unwrap()), ["10.96.0.80"]);
    assert_eq!(texts(&over_udp(&host.netns(), VIP, web, RecordType::A).unwrap()), ["10.96.0.80"]);
    let answer = over_udp(&pod, VIP, web, RecordType::AAAA).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    assert!(answer.answers.is_empty());
    assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
    let answer = over_udp(&pod, VIP, "nope.default.svc.cluster.local.", RecordType::A).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);

    // Too many for a datagram: cut and marked; all of them over TCP.
    let db = "db.default.svc.cluster.local.";
    let cut = over_udp(&pod, VIP, db, RecordType::A).unwrap();
    assert!(cut.metadata.truncation && !cut.answers.is_empty());
    assert_eq!(over_tcp(&pod, db, RecordType::A).unwrap().answers.len(), 119);

    // Others' names, directly, over an alias, and with a long answer that needs TCP upstream.
    let www = "www.example.org.";
    assert_eq!(texts(&over_udp(&pod, VIP, www, RecordType::A).unwrap()), ["198.51.100.0"]);
    let answer = over_udp(&pod, VIP, "alias.default.svc.cluster.local.", RecordType::A).unwrap();
    assert_eq!(texts(&answer), ["www.example.org.", "198.51.100.0"]);
    assert_eq!(over_tcp(&pod, "big.example.org.", RecordType::A).unwrap().answers.len(), 200);

    // Nobody else is served: the machine outside gets no answer, even with a route.
    outside.sh("ip route add 169.254.0.53 via 192.0.2.1");
    let stranger = over_udp(&outside.netns(), "169.254.0.53:10053", www, RecordType::A);
    assert!(stranger.is_err(), "{stranger:?}");
}
