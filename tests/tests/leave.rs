//! `agent leave` gives the device back exactly as it was, other programs' rules untouched.
#![allow(clippy::print_stdout, reason = "a test reports")]

use std::process::ExitCode;

use anyhow::{Result, ensure};
use tests::fixture::{CONVERGE, Fixture, run_suite, text, web};
use tests::lab::{Host, snapshot};
use tests::scenario::{Scenario, Verdict};
use tests::shell::wait_for;

const SCENARIOS: &[Scenario<Fixture>] = &[
    ("a device with Docker's and ufw's rules joins, works, leaves without a trace", traceless),
    ("leave works with the master gone", without_master),
];

/// What Docker and ufw leave in the kernel: chains, policies that drop, marks of their own.
const OTHERS: &str = "
iptables -P FORWARD DROP
iptables -P INPUT DROP
iptables -A INPUT -i lo -j ACCEPT
iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -N DOCKER-USER
iptables -A FORWARD -j DOCKER-USER
iptables -A DOCKER-USER -j RETURN
iptables -t nat -N DOCKER
iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
iptables -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE
iptables -N ufw-before-input
iptables -A INPUT -j ufw-before-input
iptables -A ufw-before-input -p tcp --dport 22 -j ACCEPT
nft add table inet elsewhere
nft add chain inet elsewhere c '{ type filter hook input priority 10; }'
";

fn main() -> ExitCode {
    run_suite("leave", 2, SCENARIOS)
}

fn leave(f: &Fixture, host: &Host) -> Result<String> {
    host.run(&[&f.lab.bin_dir.join("agent").to_string_lossy(), "leave"])
}

fn traceless(f: &Fixture) -> Result<Verdict> {
    let host = f.lab.host("node2")?;
    leave(f, &host)?;
    host.power_off()?;
    host.power_on()?;
    std::fs::remove_dir_all(host.dir.join("etc/flotilla")).ok();
    host.run(&["sh", "-ec", OTHERS])?;
    let before = snapshot::of_host(&host)?;
    f.lab.join("node2", &[])?;
    f.lab.start_agent("node2")?;
    wait_for("Ready", CONVERGE, || f.lab.node_ready("node2"))?;
    f.kubectl(&["create", "namespace", "guest"])?;
    f.kubectl_with(&["apply", "-n", "guest", "-f", "-"], &web("web", 4, "x"))?.success()?;
    let pods = f.wait_ready("guest", "app=web", 4)?;
    ensure!(pods.iter().any(|pod| text(pod, "/spec/nodeName") == "node2"), "no pod on node2");
    works_behind_drop_policies(f, &host)?;
    let told = leave(f, &host)?;
    println!("         {}", told.lines().last().unwrap_or_default());
    std::fs::remove_dir_all(host.dir.join("etc/flotilla")).ok(); // the lab's registries file
    let after = snapshot::of_host(&host)?;
    let changed = snapshot::diff(&before, &after);
    ensure!(changed.is_empty(), "the device is not as it was:\n{}", changed.join("\n"));
    f.kubectl_fails(&["get", "node", "node2"])?;
    Ok(Verdict::Passed)
}

/// Pods, node port and DNS work although INPUT and FORWARD drop.
fn works_behind_drop_policies(f: &Fixture, host: &Host) -> Result<()> {
    let pods = f.pods("guest", "app=web")?;
    let on = |node: &str| pods.iter().find(|pod| text(pod, "/spec/nodeName") == node);
    let (Some(here), Some(there)) = (on("node2"), on("node1")) else {
        anyhow::bail!("replicas are not on both nodes");
    };
    let name = text(here, "/metadata/name");
    let url = format!("http://{}:8080/hostname", text(there, "/status/podIP"));
    f.exec("guest", name, &["testserver", "get", &url])?;
    let back = format!("http://{}:8080/hostname", text(here, "/status/podIP"));
    f.exec("guest", text(there, "/metadata/name"), &["testserver", "get", &back])?;
    wait_for("the service's address", CONVERGE, || {
        f.exec("guest", name, &["testserver", "get", "http://web.guest/hostname"])
    })?;
    let path = "jsonpath={.spec.ports[0].nodePort}";
    let port = f.kubectl(&["get", "svc", "web", "-n", "guest", "-o", path])?;
    let url = format!("http://{}:{port}/hostname", host.ip);
    wait_for("the node port", CONVERGE, || {
        tests::shell::run(&["curl", "-sS", "--fail", "--max-time", "5", &url]).map(drop)
    })
}

fn without_master(f: &Fixture) -> Result<Verdict> {
    let host = f.lab.host("node1")?;
    f.lab.host("master")?.power_off()?;
    leave(f, &host)?;
    let left = host.run(&[
        "sh",
        "-c",
        "nft list tables; ip -o link; ls /etc/flotilla /var/lib/flotilla 2>&1; ps -e",
    ])?;
    for word in ["flotilla\n", "table ip flotilla", "flt", "agent", "monitor"] {
        ensure!(!left.contains(word), "{word:?} is left: {left}");
    }
    f.lab.start("master")?;
    Ok(Verdict::Passed)
}
