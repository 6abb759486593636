//! A transaction in nft's own language: for logs, golden files, and to hand to `nft -f`.
//!
//! Pure. Holds nothing that the kernel isn't told too.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::rules::{
    Data, Elements, Family, Field, Hook, Key, Leads, MASQUERADE_BIT, Op, Pick, Rule, Shape,
    Statement, Transaction, Verdict,
};

/// The whole transaction as a script.
pub(crate) fn render(transaction: &Transaction) -> String {
    let mut text = String::new();
    for op in &transaction.ops {
        text.push_str(&line(transaction, op));
        text.push('\n');
    }
    text
}

fn line(transaction: &Transaction, op: &Op) -> String {
    let family = transaction.family;
    let table = format!("{} {}", word(family), transaction.table);
    match op {
        Op::AddTable => format!("add table {table}"),
        Op::DeleteTable => format!("delete table {table}"),
        Op::AddChain(name, None) => format!("add chain {table} {name}"),
        Op::AddChain(name, Some(hook)) => {
            format!("add chain {table} {name} {{ {} }}", hooked(*hook))
        }
        Op::FlushChain(name) => format!("flush chain {table} {name}"),
        Op::DeleteChain(name) => format!("delete chain {table} {name}"),
        Op::AddRule(name, rule) => format!("add rule {table} {name} {}", self::rule(family, rule)),
        Op::AddMap(name, shape) => {
            let kind = if shape.leads == Leads::Member { "set" } else { "map" };
            format!("add {kind} {table} {name} {{ typeof {} ; }}", self::shape(family, shape))
        }
        Op::AddElements(name, shape, elements) => {
            format!("add element {table} {name} {{ {} }}", self::elements(family, shape, elements))
        }
        Op::DeleteElements(name, shape, elements) => {
            let keys: Vec<_> = elements.iter().map(|(k, _)| key(family, &shape.key, k)).collect();
            format!("delete element {table} {name} {{ {} }}", keys.join(" , "))
        }
    }
}

fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn hooked(hook: Hook) -> &'static str {
    match hook {
        Hook::PreroutingNat => "type nat hook prerouting priority -100 ; policy accept ;",
        Hook::OutputNat => "type nat hook output priority -100 ; policy accept ;",
        Hook::PostroutingNat => "type nat hook postrouting priority 100 ; policy accept ;",
        Hook::PreroutingFilter => "type filter hook prerouting priority -110 ; policy accept ;",
        Hook::OutputFilterFirst => "type filter hook output priority -110 ; policy accept ;",
        Hook::InputFilter => "type filter hook input priority 0 ; policy accept ;",
        Hook::ForwardFilter => "type filter hook forward priority 0 ; policy accept ;",
        Hook::OutputFilter => "type filter hook output priority 0 ; policy accept ;",
    }
}

fn field(family: Family, field: Field) -> String {
    let ip = word(family);
    match field {
        Field::Source => format!("{ip} saddr"),
        Field::Destination => format!("{ip} daddr"),
        Field::Protocol => "meta l4proto".to_owned(),
        Field::Port => "th dport".to_owned(),
        Field::Index => "numgen random mod 2".to_owned(),
    }
}

fn fields(family: Family, fields: &[Field], pick: Option<Pick>) -> String {
    let part = |part: &Field| match (part, pick) {
        (Field::Index, Some(Pick::Random(count))) => format!("numgen random mod {count}"),
        (Field::Index, Some(Pick::BySource(count))) => {
            format!("jhash {} saddr mod {count} seed 0x1", word(family))
        }
        _ => field(family, *part),
    };
    fields.iter().map(part).collect::<Vec<_>>().join(" . ")
}

fn shape(family: Family, shape: &Shape) -> String {
    let key = fields(family, &shape.key, None);
    match shape.leads {
        Leads::Member => key,
        Leads::Verdict => format!("{key} : verdict"),
        Leads::Target => format!("{key} : {} daddr . th dport", word(family)),
    }
}

fn rule(family: Family, rule: &Rule) -> String {
    rule.iter().map(|part| statement(family, part)).collect::<Vec<_>>().join(" ")
}

fn statement(family: Family, statement: &Statement) -> String {
    let ip = word(family);
    match statement {
        Statement::In(part, net) => format!("{} {net}", field(family, *part)),
        Statement::NotIn(part, net) => format!("{} != {net}", field(family, *part)),
        Statement::Local(Field::Source) => "fib saddr type local".to_owned(),
        Statement::Local(_) => "fib daddr type local".to_owned(),
        Statement::NotLocal(Field::Source) => "fib saddr type != local".to_owned(),
        Statement::NotLocal(_) => "fib daddr type != local".to_owned(),
        Statement::OutBy(link) => format!("oifname \"{link}\""),
        Statement::NewConnection => "ct state new".to_owned(),
        Statement::MarkIsSet => format!("meta mark and {MASQUERADE_BIT:#x} != 0"),
        Statement::SetMark => format!("meta mark set meta mark or {MASQUERADE_BIT:#x}"),
        Statement::ClearMark => format!("meta mark set meta mark and {:#x}", !MASQUERADE_BIT),
        Statement::InSet(key, set) => format!("{} @{set}", fields(family, key, None)),
        Statement::VerdictMap(key, map) => format!("{} vmap @{map}", fields(family, key, None)),
        Statement::Dnat(key, pick, map) => {
            format!("dnat {ip} to {} map @{map}", fields(family, key, *pick))
        }
        Statement::Masquerade => "masquerade".to_owned(),
        Statement::ResetTcp => "meta l4proto tcp reject with tcp reset".to_owned(),
        Statement::Reject => "reject".to_owned(),
        Statement::Verdict(verdict) => self::verdict(verdict),
    }
}

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Goto(name) => format!("goto {name}"),
        Verdict::Jump(name) => format!("jump {name}"),
    }
}

fn elements(family: Family, shape: &Shape, elements: &Elements) -> String {
    let element = |(k, data): &(Key, Data)| {
        let key = key(family, &shape.key, k);
        match data {
            Data::Member => key,
            Data::Verdict(verdict) => format!("{key} : {}", self::verdict(verdict)),
            Data::Target { .. } => {
                let mut bytes = data.target_bytes();
                let address = take_address(family, &mut bytes);
                format!("{key} : {address} . {}", take_port(&mut bytes))
            }
        }
    };
    elements.iter().map(element).collect::<Vec<_>>().join(" , ")
}

fn key(family: Family, fields: &[Field], key: &Key) -> String {
    let mut bytes = key.bytes();
    let mut text = String::new();
    for part in fields {
        if !text.is_empty() {
            text.push_str(" . ");
        }
        // Writing to a String can't fail.
        let written = match part {
            Field::Source | Field::Destination => {
                write!(text, "{}", take_address(family, &mut bytes))
            }
            Field::Protocol => write!(text, "{}", protocol(take(&mut bytes, 4))),
            Field::Port => write!(text, "{}", take_port(&mut bytes)),
            Field::Index => {
                let four: [u8; 4] = take(&mut bytes, 4).try_into().unwrap_or_default();
                write!(text, "{}", u32::from_ne_bytes(four))
            }
        };
        debug_assert!(written.is_ok());
    }
    text
}

fn protocol(bytes: &[u8]) -> String {
    match bytes.first() {
        Some(6) => "tcp".to_owned(),
        Some(17) => "udp".to_owned(),
        Some(132) => "sctp".to_owned(),
        other => other.map(u8::to_string).unwrap_or_default(),
    }
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (head, tail) = bytes.split_at_checked(count).unwrap_or((bytes, &[]));
    *bytes = tail;
    head
}

fn take_address(family: Family, bytes: &mut &[u8]) -> IpAddr {
    match family {
        Family::V4 => {
            let four: [u8; 4] = take(bytes, 4).try_into().unwrap_or_default();
            IpAddr::V4(Ipv4Addr::from(four))
        }
        Family::V6 => {
            let sixteen: [u8; 16] = take(bytes, 16).try_into().unwrap_or_default();
            IpAddr::V6(Ipv6Addr::from(sixteen))
        }
    }
}

fn take_port(bytes: &mut &[u8]) -> u16 {
    match take(bytes, 4) {
        [high, low, ..] => u16::from_be_bytes([*high, *low]),
        _ => 0,
    }
}
