//! Accept rules in nftables tables of others (firewalld's, a hand-written `inet filter`), by the `nft` command.
//!
//! Looks at base chains of type filter at input and forward, outside of our tables and of those that iptables keeps. Where such a chain
//! drops by default, our rules stand first in it. Must not run the command where there is no such chain.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use super::netfilter::{Socket, attribute, attributes, push_attribute, text};
use crate::accepts::{Accept, COMMENT, Way};
use crate::link::fnv1a;
use crate::rules::Family;

const SUBSYSTEM: u8 = 10;
const GET_CHAIN: u8 = 4;
const GET_RULE: u8 = 7;
/// Table, handle, name, hook, policy, type: what no packet changes.
const CHAIN_FACTS: [u16; 6] = [1, 2, 3, 4, 5, 7];
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_INPUT: u32 = 1;
const HOOK_FORWARD: u32 = 2;
/// Families of tables: word and number.
const FAMILIES: [(&str, u8); 3] = [("inet", 1), ("ip", 2), ("ip6", 10)];
/// Chains that iptables-nft keeps; native rules in them would blind it.
const IPTABLES_CHAINS: [&str; 3] = ["INPUT", "FORWARD", "OUTPUT"];

/// Words of statements behind which a rule goes on for every packet: `counter` and `log`.
const PASSING: [&str; 20] = [
    "counter",
    "packets",
    "bytes",
    "name",
    "log",
    "prefix",
    "level",
    "emerg",
    "alert",
    "crit",
    "err",
    "warn",
    "notice",
    "info",
    "debug",
    "flags",
    "all",
    "group",
    "snaplen",
    "queue-threshold",
];

/// Somebody's base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    family: &'static str,
    table: String,
    chain: String,
    way: Way,
}

/// The chains that could drop; read without the command.
fn places(own_table: &str) -> io::Result<Vec<Place>> {
    let mut found = Vec::new();
    let mut socket = Socket::open()?;
    for (family, number) in FAMILIES {
        for message in socket.dump(SUBSYSTEM, GET_CHAIN, number, &[])? {
            let field = |kind| attribute(&message.attributes, kind);
            let (Some(table), Some(chain)) = (field(CHAIN_TABLE), field(CHAIN_NAME)) else {
                continue;
            };
            let (table, chain) = (text(table).to_owned(), text(chain).to_owned());
            let hook = field(CHAIN_HOOK)
                .and_then(|hook| attribute(hook, HOOK_NUMBER))
                .and_then(<[u8]>::first_chunk::<4>)
                .map(|number| u32::from_be_bytes(*number));
            let way = match hook {
                Some(HOOK_INPUT) => Way::Input,
                Some(HOOK_FORWARD) => Way::Forward,
                _ => continue,
            };
            let is_filter = field(CHAIN_TYPE).map(text) == Some("filter");
            let of_iptables = family != "inet" && IPTABLES_CHAINS.contains(&chain.as_str());
            if is_filter && table != own_table && !of_iptables {
                found.push(Place { family, table, chain, way });
            }
        }
    }
    Ok(found)
}

/// A number for all chains and rules of others: while it is the same, nobody changed them.
pub(crate) fn fingerprint(own_table: &str) -> io::Result<u64> {
    let mut facts = Vec::new();
    let mut socket = Socket::open()?;
    for message in [GET_CHAIN, GET_RULE] {
        for (_, number) in FAMILIES {
            for found in socket.dump(SUBSYSTEM, message, number, &[])? {
                // The first attribute of both is the table's name; counters in rules count as changes, which costs a look.
                let table = attribute(&found.attributes, CHAIN_TABLE).map(text);
                if table == Some(own_table) {
                    continue;
                }
                let kept = attributes(&found.attributes)
                    .filter(|(kind, _)| message == GET_RULE || CHAIN_FACTS.contains(kind));
                for (kind, value) in kept {
                    push_attribute(&mut facts, kind, value);
                }
            }
        }
    }
    Ok(fnv1a(&facts))
}

/// Whether packets that no rule is about are dropped, by the chain's text of `nft list chain`.
fn drops_by_default(listing: &str) -> bool {
    let rules: Vec<&str> = listing
        .lines()
        .map(|line| line.split(" # handle").next().unwrap_or(line).trim())
        .filter(|line| !line.is_empty() && *line != "}")
        .collect();
    let policy = rules.iter().any(|line| line.contains(" hook ") && line.contains("policy drop"));
    policy || rules.last().is_some_and(|rule| closes(rule))
}

/// Whether a rule drops all that reaches it: it may count and log before, but not look at the packet.
fn closes(rule: &str) -> bool {
    // Every other part is in quotes.
    let unquoted: String = rule.split('"').step_by(2).collect();
    let mut words = unquoted.split_whitespace();
    let looks = |word: &str| !PASSING.contains(&word) && word.parse::<u64>().is_err();
    words.find(|word| looks(word)).is_some_and(|word| matches!(word, "drop" | "reject"))
}

/// Our rules of a listing: handle and text.
fn ours(listing: &str) -> Vec<(u64, &str)> {
    let comment = format!("comment \"{COMMENT}\"");
    listing
        .lines()
        .filter(|line| line.contains(&comment))
        .filter_map(|line| {
            let (rule, handle) = line.trim().split_once(" # handle ")?;
            Some((handle.trim().parse().ok()?, rule))
        })
        .collect()
}

/// The script that makes our rules of one chain what they shall be; none when they are.
fn plan_script(place: &Place, listing: &str, wanted: &[String]) -> Option<String> {
    let wanted: &[String] = if drops_by_default(listing) { wanted } else { &[] };
    let present = ours(listing);
    // They were put first; what the host's owner puts before them later is meant to win.
    if present.iter().map(|(_, rule)| rule).eq(wanted) {
        return None;
    }
    let Place { family, table, chain, .. } = place;
    let delete = present
        .iter()
        .map(|(handle, _)| format!("delete rule {family} {table} {chain} handle {handle}\n"));
    let insert =
        wanted.iter().rev().map(|rule| format!("insert rule {family} {table} {chain} {rule}\n"));
    Some(delete.chain(insert).collect())
}

/// Makes our rules in others' chains what they shall be; without any wanted, takes them all away.
pub(crate) fn apply(own_table: &str, accepts: &[(Family, Vec<Accept>)]) -> io::Result<()> {
    for place in places(own_table)? {
        let rules: Vec<String> = accepts
            .iter()
            .filter(|(family, _)| match place.family {
                "ip" => *family == Family::V4,
                "ip6" => *family == Family::V6,
                _ => true,
            })
            .flat_map(|(family, accepts)| {
                let here = accepts.iter().filter(|accept| accept.way == place.way);
                here.map(|accept| accept.nft(*family, place.family))
            })
            .collect();
        let chain = [place.family, &place.table, &place.chain];
        let listing = match nft(&[&["-a", "list", "chain"][..], &chain].concat(), "") {
            Err(error) if error.kind() == io::ErrorKind::NotFound && accepts.is_empty() => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let chain = chain.join(" ");
                return Err(io::Error::other(format!(
                    "chain {chain} may drop, and there is no nft command to look; install nftables"
                )));
            }
            result => result?,
        };
        if let Some(script) = plan_script(&place, &listing, &rules) {
            tracing::info!(
                chain = chain.join(" "),
                script,
                "accept rules in a chain that drops by default"
            );
            nft(&["-f", "-"], &script)?;
        }
    }
    Ok(())
}

fn nft(arguments: &[&str], input: &str) -> io::Result<String> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("nft {}: {}", arguments.join(" "), said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIREWALLD: &str = "table inet firewalld {
	chain filter_INPUT { # handle 10
		type filter hook input priority filter + 10; policy accept;
		ct state { established, related } accept # handle 11
		reject with icmpx admin-prohibited # handle 12
	}
}
";

    #[test]
    fn rules_come_where_a_chain_drops_and_once() {
        let place = Place {
            family: "inet",
            table: "firewalld".to_owned(),
            chain: "filter_INPUT".to_owned(),
            way: Way::Input,
        };
        let wanted = vec!["udp dport 4789 accept comment \"flotilla\"".to_owned()];
        let script = plan_script(&place, FIREWALLD, &wanted).unwrap();
        assert_eq!(
            script,
            "insert rule inet firewalld filter_INPUT udp dport 4789 accept comment \"flotilla\"\n"
        );
        let with = FIREWALLD.replace(
            "\t\tct state",
            "\t\tudp dport 4789 accept comment \"flotilla\" # handle 77\n\t\tct state",
        );
        assert_eq!(plan_script(&place, &with, &wanted), None);
        let other = vec!["udp dport 8472 accept comment \"flotilla\"".to_owned()];
        assert_eq!(
            plan_script(&place, &with, &other).unwrap(),
            "delete rule inet firewalld filter_INPUT handle 77\n\
             insert rule inet firewalld filter_INPUT udp dport 8472 accept comment \"flotilla\"\n"
        );
        let opened = with.replace("reject with icmpx admin-prohibited", "counter");
        assert_eq!(
            plan_script(&place, &opened, &wanted).unwrap(),
            "delete rule inet firewalld filter_INPUT handle 77\n"
        );
        assert!(drops_by_default(
            "chain input {\n type filter hook input priority 0; policy drop;\n}"
        ));
        assert!(!drops_by_default(
            "chain input {\n type filter hook input priority 0; policy accept;\n}"
        ));
    }

    #[test]
    fn a_closing_rule_may_count_and_log() {
        for (rule, want) in [
            ("drop", true),
            ("counter packets 7 bytes 420 drop", true),
            ("log prefix \"tcp dport 1 \" drop", true),
            ("log prefix \"a\" level info flags all counter packets 0 bytes 0 reject", true),
            ("counter packets 7 bytes 420 reject with icmpx admin-prohibited", true),
            ("drop comment \"the rest\"", true),
            ("tcp dport 23 drop", false),
            ("limit rate 3/minute drop", false),
            ("counter packets 7 bytes 420", false),
            ("log prefix \"drop\" accept", false),
        ] {
            assert_eq!(closes(rule), want, "{rule}");
        }
    }
}
