//! A packet-filter ruleset as a value: chains, maps and their elements; and the transactions that change one into another.
//!
//! Pure. Knows nothing of Kubernetes and nothing of netlink: `render` fills it, `kernel::nft` carries it to the kernel,
//! `script` prints it in nft's own language. Elements are kept as the kernel's bytes, sorted, without an allocation each.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::Protocol;

/// Bit of the packet mark that asks for masquerade at postrouting; kube-proxy's.
pub(crate) const MASQUERADE_BIT: u32 = 0x4000;
/// Longest key: two IPv6 addresses.
const KEY_BYTES: usize = 32;
/// Longest data: an IPv6 address and a port.
const TARGET_BYTES: usize = 20;

/// An address family; each has a table of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Family; 2] = [Family::V4, Family::V6];

    pub(crate) fn of(address: &IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    pub(crate) fn of_net(net: &IpNet) -> Family {
        Family::of(&net.addr())
    }

    /// Bytes of an address.
    pub(crate) fn address_bytes(self) -> u8 {
        match self {
            Family::V4 => 4,
            Family::V6 => 16,
        }
    }
}

/// One part of a key, read from the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    Source,
    Destination,
    Protocol,
    Port,
    /// Which endpoint: drawn by the rule's `Pick`.
    Index,
}

/// How an endpoint is drawn, among so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pick {
    Random(u32),
    /// By the client's address: the same for as long as the number of endpoints is.
    BySource(u32),
}

/// Name of a chain; shared, since thousands of elements lead to few chains.
pub(crate) type ChainName = Arc<str>;

/// Where a packet goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    Drop,
    Goto(ChainName),
    Jump(ChainName),
}

/// One statement of a rule; the next is reached only when this one matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Statement {
    /// Source or destination is in the range.
    In(Field, IpNet),
    /// Source or destination is not in the range.
    NotIn(Field, IpNet),
    /// Source or destination is an address of this host.
    Local(Field),
    /// Source or destination is not an address of this host.
    NotLocal(Field),
    /// Leaves by the link of this name.
    OutBy(&'static str),
    NewConnection,
    MarkIsSet,
    SetMark,
    ClearMark,
    InSet(Vec<Field>, &'static str),
    VerdictMap(Vec<Field>, &'static str),
    /// Destination address and port from a map.
    Dnat(Vec<Field>, Option<Pick>, &'static str),
    Masquerade,
    /// Resets TCP connections, lets other packets on.
    ResetTcp,
    /// Port unreachable; the kernel limits how many of these it sends.
    Reject,
    Verdict(Verdict),
}

/// A rule: all its statements in order.
pub(crate) type Rule = Vec<Statement>;

/// Where the kernel calls a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    PreroutingNat,
    OutputNat,
    PostroutingNat,
    /// Before destinations are translated.
    PreroutingFilter,
    /// Before destinations are translated.
    OutputFilterFirst,
    InputFilter,
    ForwardFilter,
    OutputFilter,
}

/// A chain and its rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<Rule>,
}

/// What a map leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leads {
    /// Nothing: a set.
    Member,
    Verdict,
    /// Address and port.
    Target,
}

/// Key and data of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) key: Vec<Field>,
    pub(crate) leads: Leads,
}

/// A key's bytes as the kernel has them: each part padded to four.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    bytes: [u8; KEY_BYTES],
    length: u8,
}

/// Data of an element.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Data {
    Member,
    Verdict(Verdict),
    Target { bytes: [u8; TARGET_BYTES], length: u8 },
}

/// Elements, sorted by key, each key once.
pub(crate) type Elements = Vec<(Key, Data)>;

/// A map (or set) with its elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Map {
    pub(crate) shape: Shape,
    pub(crate) elements: Elements,
}

/// The whole content of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ruleset {
    pub(crate) family: Family,
    pub(crate) table: Arc<str>,
    pub(crate) chains: BTreeMap<ChainName, Chain>,
    pub(crate) maps: BTreeMap<&'static str, Map>,
}

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    AddTable,
    DeleteTable,
    AddChain(ChainName, Option<Hook>),
    FlushChain(ChainName),
    DeleteChain(ChainName),
    AddRule(ChainName, Rule),
    AddMap(&'static str, Shape),
    AddElements(&'static str, Shape, Elements),
    DeleteElements(&'static str, Shape, Elements),
}

impl Op {
    /// Whether the step leaves chains, rules and maps as they are.
    pub(crate) fn is_about_elements(&self) -> bool {
        matches!(self, Op::AddElements(..) | Op::DeleteElements(..))
    }
}

/// Steps that the kernel takes all at once, or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transaction {
    pub(crate) family: Family,
    pub(crate) table: Arc<str>,
    pub(crate) ops: Vec<Op>,
}

impl Key {
    pub(crate) fn new() -> Key {
        Key { bytes: [0; KEY_BYTES], length: 0 }
    }

    fn push(mut self, part: &[u8]) -> Key {
        let start = usize::from(self.length);
        let padded = part.len().next_multiple_of(4);
        if let Some(place) = self.bytes.get_mut(start..start + part.len()) {
            place.copy_from_slice(part);
            self.length = u8::try_from(start + padded).unwrap_or(u8::MAX);
        }
        self
    }

    pub(crate) fn address(self, address: IpAddr) -> Key {
        match address {
            IpAddr::V4(address) => self.push(&address.octets()),
            IpAddr::V6(address) => self.push(&address.octets()),
        }
    }

    pub(crate) fn protocol(self, protocol: Protocol) -> Key {
        self.push(&[protocol_number(protocol)])
    }

    pub(crate) fn port(self, port: u16) -> Key {
        self.push(&port.to_be_bytes())
    }

    /// The drawn number is in the host's byte order.
    pub(crate) fn index(self, index: u32) -> Key {
        self.push(&index.to_ne_bytes())
    }

    /// A key as the kernel shows it.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Key {
        Key::new().push(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }
}

impl Data {
    pub(crate) fn target(address: IpAddr, port: u16) -> Data {
        Data::from_target_bytes(Key::new().address(address).port(port).bytes())
    }

    /// Data as the kernel shows it.
    pub(crate) fn from_target_bytes(source: &[u8]) -> Data {
        let mut bytes = [0; TARGET_BYTES];
        let length = source.len().min(TARGET_BYTES);
        if let (Some(place), Some(source)) = (bytes.get_mut(..length), source.get(..length)) {
            place.copy_from_slice(source);
        }
        Data::Target { bytes, length: u8::try_from(length).unwrap_or(u8::MAX) }
    }

    pub(crate) fn target_bytes(&self) -> &[u8] {
        match self {
            Data::Target { bytes, length } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            _ => &[],
        }
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02x?}", self.bytes())
    }
}

impl std::fmt::Debug for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Data::Member => f.write_str("member"),
            Data::Verdict(verdict) => write!(f, "{verdict:?}"),
            Data::Target { .. } => write!(f, "{:02x?}", self.target_bytes()),
        }
    }
}

/// IANA's number.
pub(crate) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

impl Ruleset {
    /// The transaction that makes the table exactly this, whatever it was.
    pub(crate) fn install(&self) -> Transaction {
        let mut ops = vec![Op::AddTable, Op::DeleteTable, Op::AddTable];
        ops.extend(self.chains.iter().map(|(name, chain)| Op::AddChain(name.clone(), chain.hook)));
        ops.extend(self.maps.iter().map(|(name, map)| Op::AddMap(name, map.shape.clone())));
        for (name, chain) in &self.chains {
            ops.extend(chain.rules.iter().map(|rule| Op::AddRule(name.clone(), rule.clone())));
        }
        for (name, map) in &self.maps {
            if !map.elements.is_empty() {
                ops.push(Op::AddElements(name, map.shape.clone(), map.elements.clone()));
            }
        }
        Transaction { family: self.family, table: self.table.clone(), ops }
    }

    /// The transaction that removes the table, if it exists.
    pub(crate) fn uninstall(family: Family, table: &str) -> Transaction {
        let ops = vec![Op::AddTable, Op::DeleteTable];
        Transaction { family, table: table.into(), ops }
    }
}
