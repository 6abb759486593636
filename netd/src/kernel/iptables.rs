//! Accept rules in the iptables tables of hosts that filter through them, by the `iptables` command.
//!
//! The command is never run where there is no such table: it would make one. The full service ruleset in iptables, for kernels without
//! nf_tables, has its seam here too: it would render `Desired` as `render` does.

use std::fs;
use std::io;
use std::process::Command;

use crate::accepts::{Accept, COMMENT, Way};
use crate::kernel::nft_dump;
use crate::rules::Family;

const TABLE: &str = "filter";

fn chain(way: Way) -> &'static str {
    match way {
        Way::Input => "INPUT",
        Way::Forward => "FORWARD",
    }
}

/// Which of the kernel's two packet filters the command speaks to; a host can have rules in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    Nft,
    Legacy,
}

/// Whether the kernel has tables of iptables-legacy, about which it sends no notifications.
pub(crate) fn has_legacy_tables() -> bool {
    Family::BOTH.into_iter().any(has_legacy_table)
}

fn has_legacy_table(family: Family) -> bool {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    fs::read_to_string(path).is_ok_and(|names| names.lines().any(|name| name == TABLE))
}

fn backends(family: Family) -> io::Result<Vec<Backend>> {
    let mut backends = Vec::new();
    if nft_dump::exists(family, TABLE)? {
        backends.push(Backend::Nft);
    }
    if has_legacy_table(family) {
        backends.push(Backend::Legacy);
    }
    Ok(backends)
}

/// The command for a backend: by its own name, else by the common one where that is the same.
fn command(family: Family, backend: Backend) -> Option<&'static str> {
    let (own, common) = match (family, backend) {
        (Family::V4, Backend::Nft) => ("iptables-nft", "iptables"),
        (Family::V4, Backend::Legacy) => ("iptables-legacy", "iptables"),
        (Family::V6, Backend::Nft) => ("ip6tables-nft", "ip6tables"),
        (Family::V6, Backend::Legacy) => ("ip6tables-legacy", "ip6tables"),
    };
    let version = |command: &str| {
        let output = Command::new(command).arg("--version").output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    if version(own).is_some() {
        return Some(own);
    }
    let is_nft = version(common)?.contains("nf_tables");
    (is_nft == (backend == Backend::Nft)).then_some(common)
}

/// Whether packets that no rule is about are dropped, by the chain's text of `iptables -S`.
fn drops_by_default(rules: &[String], chain: &str) -> bool {
    let policy = format!("-P {chain} DROP");
    let ends = [format!("-A {chain} -j DROP"), format!("-A {chain} -j REJECT")];
    rules
        .iter()
        .any(|rule| *rule == policy || ends.iter().any(|end| rule.starts_with(end.as_str())))
}

/// What to take out and what to put in, for one chain; both empty when all is as it shall be.
fn plan_chain<'a>(
    rules: &'a [String],
    chain: &str,
    accepts: &[String],
) -> (Vec<&'a str>, Vec<String>) {
    let prefix = format!("-A {chain} ");
    let comment = format!("--comment {COMMENT} ");
    let of_chain: Vec<&str> =
        rules.iter().filter_map(|rule| rule.strip_prefix(prefix.as_str())).collect();
    let ours: Vec<&str> =
        of_chain.iter().filter(|rule| rule.contains(comment.as_str())).copied().collect();
    let wanted: &[String] = if drops_by_default(rules, chain) { accepts } else { &[] };
    // They were put first; what the host's owner puts before them later is meant to win.
    let in_place = ours.len() == wanted.len()
        && ours.iter().zip(wanted).all(|(rule, wanted)| *rule == wanted.as_str());
    if in_place { (Vec::new(), Vec::new()) } else { (ours, wanted.to_vec()) }
}

/// Makes our rules in INPUT and FORWARD what they shall be.
pub(crate) fn apply(family: Family, accepts: &[Accept]) -> io::Result<()> {
    for backend in backends(family)? {
        match command(family, backend) {
            Some(command) => apply_by(command, family, accepts)?,
            None if accepts.is_empty() => {}
            None => {
                return Err(io::Error::other(format!(
                    "there are rules of iptables ({backend:?}) and no command to look; install iptables"
                )));
            }
        }
    }
    Ok(())
}

fn apply_by(command: &'static str, family: Family, accepts: &[Accept]) -> io::Result<()> {
    let failed =
        |error: Box<dyn std::error::Error>| io::Error::other(format!("{command}: {error}"));
    let mut tables = iptables::new(family == Family::V6).map_err(failed)?;
    tables.cmd = command;
    for way in [Way::Input, Way::Forward] {
        let chain = chain(way);
        let rules = tables.list(TABLE, chain).map_err(failed)?;
        let wanted: Vec<String> =
            accepts.iter().filter(|accept| accept.way == way).map(Accept::iptables).collect();
        let (delete, insert) = plan_chain(&rules, chain, &wanted);
        if delete.is_empty() && insert.is_empty() {
            continue;
        }
        tracing::info!(
            command,
            chain,
            rules = insert.len(),
            "accept rules where packets are dropped by default"
        );
        // Out before in: of two alike, `-D` would take the new one.
        for rule in delete {
            tables.delete(TABLE, chain, rule).map_err(failed)?;
        }
        for rule in insert.iter().rev() {
            tables.insert(TABLE, chain, rule, 1).map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn only_chains_that_drop_get_rules_and_each_once() {
        let ours = "-s 10.244.0.0/16 -m comment --comment flotilla -j ACCEPT".to_owned();
        let in_chain = format!("-A FORWARD {ours}");
        let cases = [
            ("-P FORWARD ACCEPT".to_owned(), 0, 0),
            ("-P FORWARD DROP".to_owned(), 0, 1),
            (
                "-P FORWARD ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-port-unreachable"
                    .to_owned(),
                0,
                1,
            ),
            ("-P FORWARD ACCEPT\n-A FORWARD -s 192.0.2.0/24 -j DROP".to_owned(), 0, 0),
            (format!("-P FORWARD DROP\n{in_chain}"), 0, 0),
            (format!("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n{in_chain}"), 0, 0),
            (format!("-P FORWARD DROP\n{in_chain}\n{in_chain}"), 2, 1),
            (format!("-P FORWARD ACCEPT\n{in_chain}"), 1, 0),
        ];
        for (rules, delete, insert) in cases {
            let rules = lines(&rules);
            let (out, put) = plan_chain(&rules, "FORWARD", std::slice::from_ref(&ours));
            assert_eq!((out.len(), put.len()), (delete, insert), "{rules:?}");
        }
    }
}
