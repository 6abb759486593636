//! Hosts whose own firewall drops by default: the cluster's traffic passes, and afterwards the firewall is what it was.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking and prints what it skips"
)]

mod lab;

use std::sync::Arc;

use lab::{Api, Host, Server, attach, config, eventually, is_root, node, request, sh_in, start};
use netd::Netd;

/// ufw's and Docker's effect: policies that drop, with answers let in.
const IPTABLES: &str = "iptables -P INPUT DROP; iptables -P FORWARD DROP; \
    iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
    iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER";
/// The same in the kernel's older packet filter.
const LEGACY: &str = "iptables-legacy -P INPUT DROP; iptables-legacy -P FORWARD DROP; \
    iptables-legacy -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
/// firewalld's: a table of its own whose chains end with a reject.
const FIREWALLD: &str = "nft -f - <<'END'
table inet firewalld {
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        reject with icmpx type admin-prohibited
    }
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        reject with icmpx type admin-prohibited
    }
}
END";

fn resolves(netns: &std::path::Path) -> Result<(), String> {
    let (ok, output) =
        sh_in(netns, "timeout 3 busybox nslookup kubernetes.default.svc.cluster.local 10.96.0.10");
    // An answer of any kind came through; a dropped question says that no server could be reached.
    if ok || output.contains("NXDOMAIN") { Ok(()) } else { Err(output) }
}

fn finish(host: &Host, netd: Arc<Netd>) {
    let netd = Arc::into_inner(netd).unwrap();
    let config = config(host, "192.0.2.1");
    host.run(move || async move {
        netd.stop().await;
        Netd::remove(config).await.unwrap();
    });
}

#[test]
fn a_host_that_drops_by_default_lets_the_cluster_through() {
    if !is_root("a_host_that_drops_by_default_lets_the_cluster_through") {
        return;
    }
    for firewall in [IPTABLES, FIREWALLD, LEGACY] {
        let (host, outside) = (Host::new("n1"), Host::new("out"));
        host.cable("up0", "192.0.2.1/24", (&outside, "192.0.2.9/24"));
        let (ok, output) = host.try_sh(firewall);
        if !ok && firewall == LEGACY {
            eprintln!("SKIPPED a host with iptables-legacy: {output}");
            continue;
        }
        assert!(ok, "{firewall}: {output}");
        let list = match firewall {
            LEGACY => "iptables-legacy -S; nft -s list ruleset",
            _ => "nft -s list ruleset",
        };
        let before = host.sh(list);
        let api = Api::new();
        api.apply("nodes", node("n1", "192.0.2.1", "10.244.1.0/24"));
        let netd = start(&host, "192.0.2.1", &api);
        let (a, b) = (attach(&host, &netd, "a"), attach(&host, &netd, "b"));
        let _server = Server::new(&b.netns, 8080, "b");
        let to_b = format!("{}:8080", b.ips[0]);
        let passes = || match request(&a.netns, &to_b) {
            Ok(_) => Ok(()),
            Err(kind) => Err(format!("{kind:?}\n{}", host.sh(list))),
        };
        eventually("pods reach each other", passes);
        eventually("pods reach DNS", || resolves(&a.netns));

        if firewall == LEGACY {
            // The kernel tells nobody of changes here; the next look is a minute away.
            finish(&host, netd);
            assert_eq!(host.sh(list), before);
            continue;
        }

        // Reloaded: rules of ours are gone, and come back.
        match firewall {
            IPTABLES => host.sh("iptables -F INPUT; iptables -F FORWARD; iptables -X; iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER"),
            _ => host.sh(&format!("nft delete table inet firewalld; {FIREWALLD}")),
        };
        eventually("after a reload too", passes);

        finish(&host, netd);
        assert_eq!(host.sh(list), before);
    }
}

#[test]
fn a_host_without_a_firewall_gets_no_foreign_rules() {
    if !is_root("a_host_without_a_firewall_gets_no_foreign_rules") {
        return;
    }
    let (host, outside) = (Host::new("n1"), Host::new("out"));
    host.cable("up0", "192.0.2.1/24", (&outside, "192.0.2.9/24"));
    host.sh("nft add table inet mine; nft add chain inet mine in '{ type filter hook input priority 0; }'");
    let before = host.sh("nft list ruleset");
    let api = Api::new();
    api.apply("nodes", node("n1", "192.0.2.1", "10.244.1.0/24"));
    let netd = start(&host, "192.0.2.1", &api);
    attach(&host, &netd, "a");
    let tables = host.sh("nft list tables");
    assert_eq!(tables.lines().collect::<Vec<_>>(), ["table inet mine", "table ip flotilla"]);
    assert_eq!(host.sh("nft list table inet mine"), before);
}
