//! Accept rules in the iptables tables of hosts that filter through them, by the `iptables` command.
//!
//! The command is never run where there is no such table: it would make one. The full service ruleset in iptables, for kernels without
//! nf_tables, has its seam here too: it would render `Desired` as `render` does.

use std::fs;
use std::io;

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

/// Whether the kernel has tables of iptables-legacy, about which it sends no notifications.
pub(crate) fn has_legacy_tables() -> bool {
    ["/proc/self/net/ip_tables_names", "/proc/self/net/ip6_tables_names"]
        .iter()
        .any(|path| fs::read_to_string(path).is_ok_and(|names| names.lines().any(|n| n == TABLE)))
}

fn has_table(family: Family) -> io::Result<bool> {
    Ok(has_legacy_tables() || nft_dump::exists(family, TABLE)?)
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
    // First in the chain, and nothing else of ours: a drop that somebody put before them would win.
    let in_place = ours.len() == wanted.len()
        && of_chain.iter().zip(wanted).all(|(rule, wanted)| *rule == wanted.as_str());
    if in_place { (Vec::new(), Vec::new()) } else { (ours, wanted.to_vec()) }
}

/// Makes our rules in INPUT and FORWARD what they shall be.
pub(crate) fn apply(family: Family, accepts: &[Accept]) -> io::Result<()> {
    if !has_table(family)? {
        return Ok(());
    }
    let failed = |error: Box<dyn std::error::Error>| io::Error::other(format!("iptables: {error}"));
    let tables = match iptables::new(family == Family::V6) {
        Ok(tables) => tables,
        Err(error) if accepts.is_empty() => {
            tracing::debug!(%error, "no iptables command, so no rules of ours by it");
            return Ok(());
        }
        Err(error) => return Err(failed(error)),
    };
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
            chain,
            rules = insert.len(),
            "accept rules in a chain that drops by default"
        );
        // In before out: no packet of ours meets the chain without.
        for rule in insert.iter().rev() {
            tables.insert(TABLE, chain, rule, 1).map_err(failed)?;
        }
        for rule in delete {
            // `-D` takes the first that matches; of two alike that is the new one, and the old one stays in its stead.
            tables.delete(TABLE, chain, rule).map_err(failed)?;
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
    fn only_chains_that_drop_get_rules_and_they_come_first() {
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
            (format!("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n{in_chain}"), 1, 1),
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
