//! Lets the cluster's traffic through on hosts that drop by default: Docker, ufw, firewalld.
//!
//! An accept in our own table can't override another table's drop, so where one drops by default, accept rules with the comment
//! `flotilla` stand first in that very chain; elsewhere nothing is added. Re-checked when somebody changes a ruleset. Must not change
//! any rule without our comment.

use std::io;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::watch;

use crate::kernel::notifications::Notifications;
use crate::kernel::{iptables, native};
use crate::rules::Family;
use crate::services::stopped;
use crate::{Config, DNS_ADDRESS, Protocol, worker};

/// The comment that makes a rule ours.
pub(crate) const COMMENT: &str = "flotilla";
/// A firewall that reloads changes its rules in many steps; they are looked at when it has been quiet for so long.
const QUIET: Duration = Duration::from_secs(1);
/// Between looks where the kernel doesn't tell of changes (iptables-legacy).
const LEGACY_PERIOD: Duration = Duration::from_secs(60);

/// A chain that packets pass on their way in or through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Input,
    Forward,
}

/// One kind of packets that must pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accept {
    pub(crate) way: Way,
    pub(crate) source: Option<IpNet>,
    pub(crate) destination: Option<IpNet>,
    pub(crate) port: Option<(Protocol, u16)>,
    /// Only what a service or host port led here.
    pub(crate) translated: bool,
}

impl Accept {
    fn any(way: Way) -> Accept {
        Accept { way, source: None, destination: None, port: None, translated: false }
    }

    /// As `iptables -S` prints it, behind the chain's name.
    pub(crate) fn iptables(&self) -> String {
        let mut text = String::new();
        let mut push = |part: String| text.push_str(&part);
        if let Some(net) = self.source {
            push(format!("-s {net} "));
        }
        if let Some(net) = self.destination {
            push(format!("-d {net} "));
        }
        if let Some((protocol, port)) = self.port {
            let word = word(protocol);
            push(format!("-p {word} -m {word} --dport {port} "));
        }
        if self.translated {
            push("-m conntrack --ctstate DNAT ".to_owned());
        }
        push(format!("-m comment --comment {COMMENT} -j ACCEPT"));
        text
    }

    /// As `nft list` prints it, for a table of that family ("inet", "ip", "ip6").
    pub(crate) fn nft(&self, family: Family, table: &str) -> String {
        let (ip, nfproto) = match family {
            Family::V4 => ("ip", "ipv4"),
            Family::V6 => ("ip6", "ipv6"),
        };
        let mut parts = Vec::new();
        if self.source.is_none() && self.destination.is_none() && table == "inet" {
            parts.push(format!("meta nfproto {nfproto}"));
        }
        parts.extend(self.source.map(|net| format!("{ip} saddr {}", short(net))));
        parts.extend(self.destination.map(|net| format!("{ip} daddr {}", short(net))));
        parts.extend(self.port.map(|(protocol, port)| format!("{} dport {port}", word(protocol))));
        parts.extend(self.translated.then(|| "ct status dnat".to_owned()));
        parts.push(format!("accept comment \"{COMMENT}\""));
        parts.join(" ")
    }
}

/// A network without the prefix length where it is one address.
fn short(net: IpNet) -> String {
    match net.prefix_len() == net.max_prefix_len() {
        true => net.addr().to_string(),
        false => net.to_string(),
    }
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// What must pass in one family.
pub(crate) fn plan_accepts(config: &Config, family: Family) -> Vec<Accept> {
    let cidrs: Vec<IpNet> =
        config.cluster_cidrs.iter().filter(|c| Family::of_net(c) == family).copied().collect();
    let mut accepts = Vec::new();
    let dns = (family == Family::V4 && !config.cluster_dns.is_empty())
        .then(|| IpNet::from(std::net::IpAddr::V4(DNS_ADDRESS)));
    for cidr in &cidrs {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let port = Some((protocol, config.dns_port));
            let pods = Accept { source: Some(*cidr), port, ..Accept::any(Way::Input) };
            accepts.extend(dns.map(|dns| Accept { destination: Some(dns), ..pods }));
        }
    }
    if !cidrs.is_empty() {
        let port = Some((Protocol::Udp, config.vxlan_port));
        accepts.push(Accept { port, ..Accept::any(Way::Input) });
        for port in &config.accept_tcp_ports {
            accepts.push(Accept { port: Some((Protocol::Tcp, *port)), ..Accept::any(Way::Input) });
        }
    }
    for way in [Way::Input, Way::Forward] {
        accepts.push(Accept { translated: true, ..Accept::any(way) });
    }
    for cidr in &cidrs {
        accepts.push(Accept { source: Some(*cidr), ..Accept::any(Way::Forward) });
        accepts.push(Accept { destination: Some(*cidr), ..Accept::any(Way::Forward) });
    }
    accepts
}

/// The families that the cluster uses.
fn families(config: &Config) -> Vec<Family> {
    let uses = |family: &Family| {
        config
            .cluster_cidrs
            .iter()
            .chain(&config.service_cidrs)
            .any(|c| Family::of_net(c) == *family)
    };
    Family::BOTH.into_iter().filter(uses).collect()
}

/// Puts the accepts where a chain drops by default, and takes them from where none does any more.
pub(crate) fn apply(config: &Config) -> io::Result<()> {
    for family in families(config) {
        let accepts = plan_accepts(config, family);
        iptables::apply(family, &accepts)?;
    }
    let accepts: Vec<_> =
        families(config).into_iter().map(|family| (family, plan_accepts(config, family))).collect();
    native::apply(&config.table, &accepts)
}

/// Does nothing while others' rules are those that were `seen`; returns what they are now.
fn apply_if_changed(config: &Config, seen: Option<u64>) -> io::Result<u64> {
    let now = native::fingerprint(&config.table)?;
    if seen == Some(now) && !iptables::has_legacy_tables() {
        return Ok(now);
    }
    apply(config)?;
    native::fingerprint(&config.table)
}

/// Takes all rules with our comment away.
pub(crate) fn remove(config: &Config) -> io::Result<()> {
    for family in Family::BOTH {
        iptables::apply(family, &[])?;
    }
    native::apply(&config.table, &[])
}

/// Checks now and whenever somebody changed a ruleset; ends when it is told to.
pub(crate) async fn run(config: Config, mut stop: watch::Receiver<bool>) {
    let notifications = Notifications::open().ok();
    let mut last_error = None;
    let mut seen = None;
    while !*stop.borrow() {
        let config = config.clone();
        let applied = worker::run("netd-accepts", move || apply_if_changed(&config, seen)).await;
        let error = match applied.and_then(|applied| applied) {
            Ok(now) => {
                seen = Some(now);
                None
            }
            Err(error) => Some(error.to_string()),
        };
        if error != last_error
            && let Some(error) = &error
        {
            tracing::warn!(error, "this host's firewall may drop the cluster's traffic");
        }
        last_error = error;
        let changed = async {
            match &notifications {
                Some(notifications) => notifications.next().await,
                None => std::future::pending().await,
            }
        };
        let period = async {
            match iptables::has_legacy_tables() {
                true => tokio::time::sleep(LEGACY_PERIOD).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changed => if let Err(error) = changed {
                tracing::debug!(%error, "notifications");
            },
            () = period => {}
            () = stopped(&mut stop) => return,
        }
        tokio::select! {
            () = tokio::time::sleep(QUIET) => {}
            () = stopped(&mut stop) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_pass() {
        let mut config = Config::new("n1", vec!["192.0.2.1".parse().unwrap()]);
        config.accept_tcp_ports = vec![6443];
        let accepts = plan_accepts(&config, Family::V4);
        let iptables: Vec<_> = accepts.iter().map(Accept::iptables).collect();
        let end = "-m comment --comment flotilla -j ACCEPT";
        assert_eq!(
            iptables,
            [
                format!("-s 10.244.0.0/16 -d 169.254.0.53/32 -p udp -m udp --dport 10053 {end}"),
                format!("-s 10.244.0.0/16 -d 169.254.0.53/32 -p tcp -m tcp --dport 10053 {end}"),
                format!("-p udp -m udp --dport 4789 {end}"),
                format!("-p tcp -m tcp --dport 6443 {end}"),
                format!("-m conntrack --ctstate DNAT {end}"),
                format!("-m conntrack --ctstate DNAT {end}"),
                format!("-s 10.244.0.0/16 {end}"),
                format!("-d 10.244.0.0/16 {end}"),
            ]
        );
        assert_eq!(
            accepts[0].nft(Family::V4, "inet"),
            "ip saddr 10.244.0.0/16 ip daddr 169.254.0.53 udp dport 10053 accept comment \"flotilla\""
        );
        assert_eq!(
            accepts[4].nft(Family::V4, "inet"),
            "meta nfproto ipv4 ct status dnat accept comment \"flotilla\""
        );
        assert_eq!(accepts[4].nft(Family::V4, "ip"), "ct status dnat accept comment \"flotilla\"");
    }
}
