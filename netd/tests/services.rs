//! What packets do: services on the real kernel, judged from the client's side.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking and prints what it skips"
)]

mod lab;

use std::sync::Arc;

use lab::{
    Api, Host, Server, UdpClient, answering, attach, attach_with_ports, config, eventually,
    is_root, node, request, service, slice, start,
};
use netd::{HostPort, Mode, Netd, PodNetwork, Protocol};
use serde_json::json;

/// Two nodes on a segment with a machine outside; a pod on the first, two servers, one on each.
struct Setup {
    n1: Host,
    n2: Host,
    outside: Host,
    api: Api,
    netd: Vec<Arc<Netd>>,
    client: PodNetwork,
    a: PodNetwork,
    b: PodNetwork,
    _servers: Vec<Server>,
}

fn setup() -> Setup {
    let (n1, n2, outside) = (Host::new("n1"), Host::new("n2"), Host::new("out"));
    outside.sh("ip link add br0 type bridge; ip link set br0 up; ip addr add 192.0.2.9/24 dev br0");
    for (host, ip) in [(&n1, "192.0.2.1/24"), (&n2, "192.0.2.2/24")] {
        let port = format!("p-{}", host.name);
        host.sh(&format!("ip link add up0 type veth peer name {port} netns {}", outside.tid));
        host.sh(&format!("ip addr add {ip} dev up0; ip link set up0 up"));
        outside.sh(&format!("ip link set {port} master br0 up"));
    }
    let api = Api::new();
    api.apply("nodes", node("n1", "192.0.2.1", "10.244.1.0/24"));
    api.apply("nodes", node("n2", "192.0.2.2", "10.244.2.0/24"));
    let netd = vec![start(&n1, "192.0.2.1", &api), start(&n2, "192.0.2.2", &api)];
    let client = attach(&n1, &netd[0], "client");
    let port =
        HostPort { host_ip: None, host_port: 9090, container_port: 8080, protocol: Protocol::Tcp };
    let a = attach_with_ports(&n1, &netd[0], "a", vec![port]);
    let b = attach(&n2, &netd[1], "b");
    let servers = vec![
        Server::new(&a.netns, 8080, "a"),
        Server::new(&b.netns, 8080, "b"),
        Server::new(&outside.netns(), 8080, "outside"),
    ];
    Setup { n1, n2, outside, api, netd, client, a, b, _servers: servers }
}

impl Setup {
    fn endpoints(&self, names: &str) {
        let all = [("a", &self.a, "n1"), ("b", &self.b, "n2")];
        let chosen = all.iter().filter(|(name, _, _)| names.contains(name));
        let endpoints: Vec<_> =
            chosen.map(|(_, pod, node)| (pod.ips[0].to_string(), *node)).collect();
        self.api.apply("endpointslices", slice(&endpoints));
    }
}

/// Waits until exactly these answer.
fn expect(netns: &std::path::Path, to: &str, names: &[&str]) {
    eventually(&format!("{to} is answered by {names:?}"), || {
        let got = answering(netns, to, 12);
        if got == names { Ok(()) } else { Err(got) }
    });
}

#[test]
fn cluster_ips_node_ports_and_policies() {
    if !is_root("cluster_ips_node_ports_and_policies") {
        return;
    }
    let setup = setup();
    let (client, outside) = (setup.client.netns.clone(), setup.outside.netns());
    setup.api.apply("services", service("10.96.0.80", &json!({})));
    setup.endpoints("ab");
    expect(&client, "10.96.0.80:80", &["a", "b"]);
    expect(&setup.n1.netns(), "10.96.0.80:80", &["a", "b"]);
    expect(&setup.a.netns, "10.96.0.80:80", &["a", "b"]);
    expect(&outside, "192.0.2.1:30080", &["a", "b"]);
    expect(&setup.n2.netns(), "192.0.2.1:30080", &["a", "b"]);
    expect(&outside, "192.0.2.1:9090", &["a"]);
    assert_eq!(request(&client, "10.96.0.81:80"), Err(std::io::ErrorKind::ConnectionRefused));
    assert_eq!(request(&client, "192.0.2.9:8080").unwrap(), "outside 192.0.2.1");
    let pod = setup.client.ips[0].to_string();
    let seen = request(&client, "10.96.0.80:80").unwrap();
    assert!(seen.ends_with(&pod), "a pod's own address is seen: {seen}");

    setup.endpoints("b");
    expect(&client, "10.96.0.80:80", &["b"]);
    setup.endpoints("");
    expect(&client, "10.96.0.80:80", &["ConnectionRefused"]);
    expect(&outside, "192.0.2.1:30080", &["ConnectionRefused"]);

    // Local: the source stays, and only the node's own endpoints answer.
    setup.endpoints("ab");
    let local = json!({"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
        "externalIPs": ["203.0.113.7"]});
    setup.api.apply("services", service("10.96.0.80", &local));
    expect(&client, "10.96.0.80:80", &["a"]);
    eventually("the source stays", || match request(&outside, "192.0.2.1:30080") {
        Ok(text) if text == "a 192.0.2.9" => Ok(()),
        other => Err(other),
    });
    expect(&client, "203.0.113.7:80", &["a", "b"]);
    setup.endpoints("b");
    eventually("nobody else answers", || match request(&outside, "192.0.2.1:30080") {
        Err(std::io::ErrorKind::TimedOut) => Ok(()),
        other => Err(other),
    });
    expect(&outside, "192.0.2.2:30080", &["b"]);

    // A load balancer's address answers only the sources it was given.
    let balanced = |range: &str| {
        let mut service = service(
            "10.96.0.80",
            &json!({"type": "LoadBalancer",
            "loadBalancerSourceRanges": [range]}),
        );
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.8"}]}});
        service
    };
    setup.outside.sh("ip route add 203.0.113.8 via 192.0.2.1");
    setup.api.apply("services", balanced("192.0.2.9/32"));
    expect(&outside, "203.0.113.8:80", &["b"]);
    setup.api.apply("services", balanced("198.51.100.0/24"));
    eventually("others are dropped", || match request(&outside, "203.0.113.8:80") {
        Err(std::io::ErrorKind::TimedOut) => Ok(()),
        other => Err(other),
    });

    let sticky = json!({"sessionAffinity": "ClientIP"});
    setup.endpoints("ab");
    setup.api.apply("services", service("10.96.0.80", &sticky));
    eventually("one endpoint per client", || {
        let got = answering(&client, "10.96.0.80:80", 20);
        if got.len() == 1 && got[0].len() == 1 { Ok(()) } else { Err(got) }
    });
}

#[test]
fn rules_are_repaired_flows_forgotten_and_state_outlives_the_master() {
    if !is_root("rules_are_repaired_flows_forgotten_and_state_outlives_the_master") {
        return;
    }
    let mut setup = setup();
    let client = setup.client.netns.clone();
    setup.api.apply("services", service("10.96.0.80", &json!({})));
    setup.endpoints("a");
    expect(&client, "10.96.0.80:80", &["a"]);
    let udp = UdpClient::new(&client, "10.96.0.80:80");
    eventually("the flow leads to the first", || match udp.ask() {
        Ok(text) if text.starts_with("a ") => Ok(()),
        other => Err(other),
    });
    setup.endpoints("b");
    eventually("the flow moves", || match udp.ask() {
        Ok(text) if text.starts_with("b ") => Ok(()),
        other => Err(other),
    });

    for damage in [
        "nft delete table ip flotilla",
        "nft flush chain ip flotilla services-first",
        "nft delete element ip flotilla services '{ 10.96.0.80 . tcp . 80 }'",
    ] {
        setup.n1.sh(damage);
        expect(&client, "10.96.0.80:80", &["b"]);
        let rules = setup.n1.sh("nft list table ip flotilla");
        assert!(rules.contains("10.96.0.80 . tcp . 80"), "{damage}: {rules}");
    }

    // The master goes, the node restarts without its rules: they come from the saved state.
    let saved = setup.n1.dir.join("state/cluster.json");
    eventually("the state is saved", || {
        let text = std::fs::read_to_string(&saved).unwrap_or_default();
        if text.contains("10.96.0.80") && text.contains(&setup.b.ips[0].to_string()) {
            Ok(())
        } else {
            Err(text)
        }
    });
    setup.api.cut();
    let netd = Arc::into_inner(setup.netd.remove(0)).unwrap();
    setup.n1.run(move || async move { netd.stop().await });
    assert_eq!(answering(&client, "10.96.0.80:80", 3), ["b"], "rules stay without netd");
    setup.n1.sh("nft delete table ip flotilla");
    let again = start(&setup.n1, "192.0.2.1", &setup.api);
    expect(&client, "10.96.0.80:80", &["b"]);
    assert_eq!(again.attached(), ["a", "client"]);
}

#[test]
fn a_proxy_serves_beside_anybodys_pod_network() {
    if !is_root("a_proxy_serves_beside_anybodys_pod_network") {
        return;
    }
    let (n1, pod) = (Host::new("n1"), Host::new("pod"));
    n1.cable("up0", "10.9.1.1/24", (&pod, "10.9.1.2/24"));
    n1.sh("ip route add 10.96.0.0/12 dev up0; sysctl -qw net.ipv4.ip_forward=1");
    pod.sh("ip route add default via 10.9.1.1");
    let before = n1.sh("ip route; ip addr; sysctl net.ipv4.ip_forward; nft list ruleset");
    let _server = Server::new(&pod.netns(), 8080, "pod");
    let api = Api::new();
    api.apply("services", service("10.96.0.80", &json!({})));
    api.apply("endpointslices", slice(&[("10.9.1.2".to_owned(), "n1")]));
    let mut config = config(&n1, "10.9.1.1");
    config.mode = Mode::Proxy;
    config.cluster_dns.clear();
    let (cleanup, client) = (config.clone(), api.clone());
    let netd = n1.run(move || async move {
        let netd = Netd::start(config, client.client()).await.unwrap();
        netd.programmed().wait_for(|programmed| *programmed).await.unwrap();
        netd
    });
    expect(&n1.netns(), "10.96.0.80:80", &["pod"]);
    expect(&pod.netns(), "10.96.0.80:80", &["pod"]);
    n1.run(move || async move {
        netd.stop().await;
        Netd::remove(cleanup).await.unwrap();
    });
    let after = n1.sh("ip route; ip addr; sysctl net.ipv4.ip_forward; nft list ruleset");
    assert_eq!(after, before);
}
