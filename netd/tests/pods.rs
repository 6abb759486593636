//! Pods' links and routes on the real kernel.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking and prints what it skips"
)]

mod lab;

use std::net::IpAddr;

use lab::{Api, Host, attach, config, eventually, is_root, node, sh_in, start};
use netd::{Netd, PodNetwork};

fn ping(from: &PodNetwork, to: IpAddr) -> Result<(), String> {
    let (ok, output) = sh_in(&from.netns, &format!("busybox ping -c1 -W1 {to}"));
    if ok { Ok(()) } else { Err(output) }
}

#[test]
fn pods_reach_each_other_and_leave_nothing() {
    if !is_root("pods_reach_each_other_and_leave_nothing") {
        return;
    }
    let (host, outside) = (Host::new("n1"), Host::new("out"));
    host.cable("up0", "192.0.2.1/24", (&outside, "192.0.2.9/24"));
    let snapshot = "ip -o link | grep -v '^1:'; ip -o -4 addr; ip -4 route show table all; ip neigh; nft list ruleset; sysctl -a 2>/dev/null | grep -E 'forward|redirects'";
    let before = host.sh(snapshot);
    let api = Api::new();
    api.apply("nodes", node("n1", "192.0.2.1", "10.244.1.0/24"));
    let netd = start(&host, "192.0.2.1", &api);
    let a = attach(&host, &netd, "pod-a");
    let b = attach(&host, &netd, "pod-b");
    assert_eq!(a.ips, ["10.244.1.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(b.ips, ["10.244.1.2".parse::<IpAddr>().unwrap()]);
    ping(&a, b.ips[0]).unwrap();
    let (ok, output) = host.try_sh("busybox ping -c1 -W1 10.244.1.1");
    assert!(ok, "the host reaches its pods: {output}");
    assert_eq!(attach(&host, &netd, "pod-a"), a, "a second attachment changes nothing");

    // A crash: another netd over the same folders knows both pods and gives no address twice.
    drop(netd);
    let (ok, output) = sh_in(&b.netns, "ip link set eth0 down; ip addr flush dev eth0");
    assert!(ok, "as if killed before the pod's end was made: {output}");
    let netd = start(&host, "192.0.2.1", &api);
    assert_eq!(netd.attached(), ["pod-a", "pod-b"]);
    assert_eq!(attach(&host, &netd, "pod-b"), b);
    ping(&b, a.ips[0]).unwrap();
    let c = attach(&host, &netd, "pod-c");
    assert_eq!(c.ips, ["10.244.1.3".parse::<IpAddr>().unwrap()]);
    ping(&c, a.ips[0]).unwrap();

    // Somebody removes a route: it comes back.
    host.sh("ip route del 10.244.1.2");
    eventually("the route is repaired", || ping(&a, b.ips[0]));

    // Somebody removes a pod's link: the running pod gets it back, with its address.
    let link = host.sh("ip -o route get 10.244.1.2 | grep -o 'flt[0-9a-f]*'");
    host.sh(&format!("ip link del {link}"));
    eventually("the link is repaired", || ping(&a, b.ips[0]));

    for uid in ["pod-a", "pod-b", "pod-c"] {
        let netd = netd.clone();
        host.run(move || async move { netd.detach(uid).await.unwrap() });
    }
    eventually("links are gone", || {
        let links = host.sh("ip -o link");
        if links.contains("flt") { Err(links) } else { Ok(()) }
    });
    let netd = std::sync::Arc::into_inner(netd).unwrap();
    let config = config(&host, "192.0.2.1");
    host.run(move || async move {
        netd.stop().await;
        Netd::remove(config).await.unwrap();
    });
    let after = host.sh(snapshot);
    let lost: Vec<_> = before.lines().filter(|line| !after.contains(line)).collect();
    let left: Vec<_> = after.lines().filter(|line| !before.contains(line)).collect();
    assert!(after == before, "lost {lost:#?}, left {left:#?}");
}

#[test]
fn nodes_on_a_segment_directly_others_through_the_overlay() {
    if !is_root("nodes_on_a_segment_directly_others_through_the_overlay") {
        return;
    }
    let (n1, n2, n3, router) =
        (Host::new("n1"), Host::new("n2"), Host::new("n3"), Host::new("router"));
    router.sh("ip link add br0 type bridge; ip link set br0 up; ip addr add 192.0.2.254/24 dev br0; sysctl -qw net.ipv4.ip_forward=1");
    for (host, address) in [(&n1, "192.0.2.1/24"), (&n2, "192.0.2.2/24")] {
        let port = format!("p-{}", host.name);
        host.sh(&format!("ip link add up0 type veth peer name {port} netns {}", router.tid));
        host.sh(&format!("ip addr add {address} dev up0; ip link set up0 up; ip route add default via 192.0.2.254"));
        router.sh(&format!("ip link set {port} master br0 up"));
    }
    n3.cable("up0", "198.51.100.3/24", (&router, "198.51.100.254/24"));
    n3.sh("ip route add default via 198.51.100.254");
    let api = Api::new();
    let addresses = [(&n1, "192.0.2.1"), (&n2, "192.0.2.2"), (&n3, "198.51.100.3")];
    for (index, (host, ip)) in addresses.iter().enumerate() {
        api.apply("nodes", node(&host.name, ip, &format!("10.244.{}.0/24", index + 1)));
    }
    let running: Vec<_> = addresses.iter().map(|(host, ip)| start(host, ip, &api)).collect();
    let pods: Vec<_> = addresses
        .iter()
        .zip(&running)
        .map(|((host, _), netd)| attach(host, netd, &format!("pod-{}", host.name)))
        .collect();
    for from in &pods {
        for to in &pods {
            eventually("each pod reaches each pod", || ping(from, to.ips[0]));
        }
    }
    assert!(n1.sh("ip route get 10.244.2.1").contains("via 192.0.2.2 dev up0"));
    assert!(n1.sh("ip route get 10.244.3.1").contains("dev flt.vxlan"));
    let (ok, output) = n1.try_sh("busybox ping -c1 -W1 10.244.3.1");
    assert!(ok, "host to a pod behind the overlay: {output}");
    let (ok, output) = sh_in(&pods[0].netns, "busybox ping -c1 -W1 -s 1422 10.244.3.1");
    assert!(ok, "a full packet of the overlay's MTU passes: {output}");

    // Full segments of the pods' own MTU don't fit the overlay: the path's is found out.
    let arrived = lab::transfer(&pods[0].netns, &pods[2].netns, "10.244.3.1:9000", 1 << 20);
    assert_eq!(arrived, 1 << 20);

    // The host itself, too, reaches a service whose endpoint is behind the overlay.
    api.apply("services", lab::service("10.96.0.80", &serde_json::json!({})));
    api.apply("endpointslices", lab::slice(&[("10.244.3.1".to_owned(), "n3")]));
    let _server = lab::Server::new(&pods[2].netns, 8080, "c");
    for (from, seen) in [(n1.netns(), "c 10.244.1.0"), (pods[1].netns.clone(), "c 10.244.2.1")] {
        eventually("a service behind the overlay answers", || {
            match lab::request(&from, "10.96.0.80:80") {
                Ok(text) if text == seen => Ok(()),
                other => Err(other),
            }
        });
    }

    // A node leaves: its route, its peers and the overlay link go.
    api.delete("nodes", "", "n3");
    eventually("the overlay is gone", || {
        let state = n1.sh("ip -o link; ip route");
        if state.contains("flt.vxlan") || state.contains("10.244.3.0") {
            Err(state)
        } else {
            Ok(())
        }
    });
    let (ok, _) = sh_in(&pods[0].netns, "busybox ping -c1 -W1 10.244.3.1");
    assert!(!ok);
}

#[test]
fn pods_with_both_families() {
    if !is_root("pods_with_both_families") {
        return;
    }
    let (n1, n2) = (Host::new("n1"), Host::new("n2"));
    n1.cable("up0", "192.0.2.1/24", (&n2, "192.0.2.2/24"));
    n1.sh("ip addr add fd00:2::1/64 dev up0 nodad");
    n2.sh("ip addr add fd00:2::2/64 dev up0 nodad");
    let api = Api::new();
    let hosts = [(&n1, "1"), (&n2, "2")];
    for (host, number) in hosts {
        let mut object = node(&host.name, &format!("192.0.2.{number}"), "");
        let cidrs = [format!("10.244.{number}.0/24"), format!("fd00:244:0:{number}::/64")];
        object["spec"] = serde_json::json!({"podCIDR": cidrs[0], "podCIDRs": cidrs});
        let v6 = serde_json::json!({"type": "InternalIP", "address": format!("fd00:2::{number}")});
        object["status"]["addresses"].as_array_mut().unwrap().push(v6);
        api.apply("nodes", object);
    }
    let mut web = lab::service("fd00:96::80", &serde_json::json!({"type": "ClusterIP"}));
    web["spec"]["ports"] = serde_json::json!([{"name": "tcp", "protocol": "TCP", "port": 80}]);
    api.apply("services", web);
    let running: Vec<_> = hosts
        .iter()
        .map(|(host, number)| {
            let mut config = config(host, &format!("192.0.2.{number}"));
            config.node_ips.push(format!("fd00:2::{number}").parse().unwrap());
            config.cluster_cidrs.push("fd00:244::/48".parse().unwrap());
            config.service_cidrs.push("fd00:96::/112".parse().unwrap());
            lab::start_with(host, config, &api)
        })
        .collect();
    let a = attach(&n1, &running[0], "a");
    let b = attach(&n2, &running[1], "b");
    assert_eq!(a.ips, ["10.244.1.1", "fd00:244:0:1::1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    for ip in &b.ips {
        eventually("both families cross the segment", || ping(&a, *ip));
    }
    let mut slice = lab::slice(&[(b.ips[1].to_string(), "n2")]);
    slice["addressType"] = serde_json::json!("IPv6");
    api.apply("endpointslices", slice);
    let _server = lab::Server::new(&b.netns, 8080, "b");
    for from in [&a.netns, &b.netns, &n1.netns()] {
        eventually("an IPv6 service answers", || match lab::request(from, "[fd00:96::80]:80") {
            Ok(text) if text.starts_with("b ") => Ok(()),
            other => Err((other, n1.sh("ip -6 route; nft list table ip6 flotilla"))),
        });
    }
}
