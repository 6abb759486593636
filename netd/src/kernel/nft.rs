//! Carries transactions to nf_tables in one datagram, and reads back what is there.
//!
//! Statements are encoded as nft encodes them, so that `nft list` shows the script's own text. Must not compare or decide.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, NulError};
use std::io::{self, IoSlice};

use ipnet::IpNet;
use nftnl::{Batch, ChainType, MsgType, Policy, ProtoFamily, Table};
use nftnl_sys as sys;

use super::netfilter::Socket;
use super::nft_sys::{
    ELEMENTS_MAX, ElementData, ElementsMessage, Expr, Set, SetMessage, SetShape, Value,
};
use crate::Protocol;
use crate::rules::{
    ChainName, Data, Elements, Family, Field, Hook, Leads, MASQUERADE_BIT, Op, Pick, Rule, Shape,
    Statement, Transaction, Verdict, protocol_number,
};

/// `NFT_SET_MAP`.
pub(super) const SET_IS_MAP: u32 = 0x8;
/// Data type of verdicts.
const TYPE_VERDICT: u32 = 0xffff_ff00;
const VERDICT_BYTES: u32 = 16;
/// First 32-bit register, and the one where a hash finds the source address.
const REG: u32 = 8;
const REG_HASHED: u32 = 16;
/// Register of verdicts.
const REG_VERDICT: u32 = 0;
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_SOURCE: u32 = 1;
const FIB_DESTINATION: u32 = 2;
const ADDRESS_TYPE_LOCAL: u32 = 2;
const CONNTRACK_NEW: u32 = 8;
const HASH_SEED: u32 = 1;
const CMP_EQUAL: u32 = 0;
const CMP_UNEQUAL: u32 = 1;

/// Why a transaction was not applied; nothing of it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NftError {
    #[error("netfilter socket")]
    Socket(#[source] io::Error),
    #[error("{operation}")]
    Refused {
        operation: String,
        #[source]
        source: io::Error,
    },
    #[error("the kernel didn't answer the transaction")]
    Unanswered,
    #[error("a name with a zero byte")]
    Name(#[from] NulError),
}

fn family(family: Family) -> ProtoFamily {
    match family {
        Family::V4 => ProtoFamily::Ipv4,
        Family::V6 => ProtoFamily::Ipv6,
    }
}

/// A batch in the making, with what each message was for.
struct Draft<'a> {
    batch: Batch,
    table: &'a Table,
    table_name: CString,
    family: Family,
    purposes: Vec<String>,
    sets: u32,
}

impl Draft<'_> {
    fn add<T: nftnl::NlMsg>(&mut self, message: &T, kind: MsgType, purpose: impl Into<String>) {
        self.batch.add(message, kind);
        self.purposes.push(purpose.into());
    }

    fn op(&mut self, op: &Op) -> Result<(), NftError> {
        match op {
            Op::AddTable => self.add(self.table, MsgType::Add, "add table"),
            Op::DeleteTable => self.add(self.table, MsgType::Del, "delete table"),
            Op::AddChain(name, hook) => {
                let name_c = CString::new(&**name)?;
                let mut chain = nftnl::Chain::new(&name_c, self.table);
                if let Some(hook) = hook {
                    let (point, priority, kind) = hooked(*hook);
                    chain.set_hook(point, priority);
                    chain.set_type(kind);
                    chain.set_policy(Policy::Accept);
                }
                self.add(&chain, MsgType::Add, format!("add chain {name}"));
            }
            Op::DeleteChain(name) => {
                let name_c = CString::new(&**name)?;
                let chain = nftnl::Chain::new(&name_c, self.table);
                self.add(&chain, MsgType::Del, format!("delete chain {name}"));
            }
            Op::FlushChain(name) => {
                let name_c = CString::new(&**name)?;
                let chain = nftnl::Chain::new(&name_c, self.table);
                // A rule without a handle: all of the chain's.
                let rule = nftnl::Rule::new(&chain);
                self.add(&rule, MsgType::Del, format!("flush chain {name}"));
            }
            Op::AddRule(name, rule) => self.rule(name, rule)?,
            Op::AddMap(name, shape) => self.map(name, shape)?,
            Op::AddElements(name, shape, elements) => {
                self.elements(name, shape, elements, MsgType::Add)?;
            }
            Op::DeleteElements(name, shape, elements) => {
                self.elements(name, shape, elements, MsgType::Del)?;
            }
        }
        Ok(())
    }

    fn rule(&mut self, name: &ChainName, rule: &Rule) -> Result<(), NftError> {
        let name_c = CString::new(&**name)?;
        let chain = nftnl::Chain::new(&name_c, self.table);
        let mut encoded = nftnl::Rule::new(&chain);
        for statement in rule {
            for expr in encode(self.family, statement)? {
                encoded.add_expr(&expr);
            }
        }
        self.add(&encoded, MsgType::Add, format!("add rule to {name}: {rule:?}"));
        Ok(())
    }

    fn map(&mut self, name: &str, shape: &Shape) -> Result<(), NftError> {
        self.sets += 1;
        let mut set = Set::new(&self.table_name, &CString::new(name)?, family(self.family));
        set.shape(set_shape(self.family, shape), self.sets);
        self.add(&SetMessage(&set), MsgType::Add, format!("add map {name}"));
        Ok(())
    }

    fn elements(
        &mut self,
        name: &str,
        shape: &Shape,
        elements: &Elements,
        kind: MsgType,
    ) -> Result<(), NftError> {
        let name_c = CString::new(name)?;
        let verb = if kind == MsgType::Add { "add" } else { "delete" };
        let mut chains: BTreeMap<ChainName, CString> = BTreeMap::new();
        for (_, data) in elements {
            if let Data::Verdict(Verdict::Goto(to) | Verdict::Jump(to)) = data
                && !chains.contains_key(to)
            {
                chains.insert(to.clone(), CString::new(&**to)?);
            }
        }
        for chunk in elements.chunks(ELEMENTS_MAX) {
            let mut set = Set::new(&self.table_name, &name_c, family(self.family));
            for (key, data) in chunk {
                let data = match (kind, data) {
                    (MsgType::Del, _) | (_, Data::Member) => ElementData::None,
                    (_, Data::Target { .. }) => ElementData::Bytes(data.target_bytes()),
                    (_, Data::Verdict(verdict)) => element_verdict(verdict, &chains),
                };
                set.push(key.bytes(), &data);
            }
            let purpose = format!("{verb} {} elements of {name} ({:?})", chunk.len(), shape.leads);
            self.add(&ElementsMessage(&set), kind, purpose);
        }
        Ok(())
    }
}

fn element_verdict<'a>(
    verdict: &Verdict,
    chains: &'a BTreeMap<ChainName, CString>,
) -> ElementData<'a> {
    match verdict {
        Verdict::Accept => ElementData::Verdict(libc::NF_ACCEPT, None),
        Verdict::Drop => ElementData::Verdict(libc::NF_DROP, None),
        Verdict::Goto(to) => {
            ElementData::Verdict(libc::NFT_GOTO, chains.get(to).map(CString::as_c_str))
        }
        Verdict::Jump(to) => {
            ElementData::Verdict(libc::NFT_JUMP, chains.get(to).map(CString::as_c_str))
        }
    }
}

fn hooked(hook: Hook) -> (nftnl::Hook, i32, ChainType) {
    match hook {
        Hook::PreroutingNat => (nftnl::Hook::PreRouting, -100, ChainType::Nat),
        Hook::OutputNat => (nftnl::Hook::Out, -100, ChainType::Nat),
        Hook::PostroutingNat => (nftnl::Hook::PostRouting, 100, ChainType::Nat),
        Hook::PreroutingFilter => (nftnl::Hook::PreRouting, -110, ChainType::Filter),
        Hook::OutputFilterFirst => (nftnl::Hook::Out, -110, ChainType::Filter),
        Hook::InputFilter => (nftnl::Hook::In, 0, ChainType::Filter),
        Hook::ForwardFilter => (nftnl::Hook::Forward, 0, ChainType::Filter),
        Hook::OutputFilter => (nftnl::Hook::Out, 0, ChainType::Filter),
    }
}

/// nft's number of a field's type, and the bytes it takes in a key.
fn field_type(family: Family, field: Field) -> (u32, u32) {
    match (field, family) {
        (Field::Source | Field::Destination, Family::V4) => (7, 4),
        (Field::Source | Field::Destination, Family::V6) => (8, 16),
        (Field::Protocol, _) => (12, 4),
        (Field::Port, _) => (13, 4),
        (Field::Index, _) => (19, 4),
    }
}

fn concatenation(family: Family, fields: &[Field]) -> (u32, u32) {
    fields.iter().fold((0, 0), |(number, bytes), field| {
        let (field_number, field_bytes) = field_type(family, *field);
        (number << 6 | field_number, bytes + field_bytes)
    })
}

fn set_shape(family: Family, shape: &Shape) -> SetShape {
    let (key_type, key_bytes) = concatenation(family, &shape.key);
    let data = match shape.leads {
        Leads::Member => None,
        Leads::Verdict => Some((TYPE_VERDICT, VERDICT_BYTES)),
        Leads::Target => Some(concatenation(family, &[Field::Destination, Field::Port])),
    };
    SetShape { key_type, key_bytes, data }
}

fn numbers(name: &'static CStr, attributes: &[(u32, u32)]) -> Expr {
    let attributes = attributes.iter().map(|(number, value)| (*number, Value::Number(*value)));
    Expr { name, attributes: attributes.collect() }
}

fn payload(base: u32, offset: u32, length: u32, register: u32) -> Expr {
    numbers(
        c"payload",
        &[
            (sys::NFTNL_EXPR_PAYLOAD_DREG, register),
            (sys::NFTNL_EXPR_PAYLOAD_BASE, base),
            (sys::NFTNL_EXPR_PAYLOAD_OFFSET, offset),
            (sys::NFTNL_EXPR_PAYLOAD_LEN, length),
        ],
    )
}

fn meta(key: i32, register: u32) -> Expr {
    numbers(
        c"meta",
        &[(sys::NFTNL_EXPR_META_KEY, key.cast_unsigned()), (sys::NFTNL_EXPR_META_DREG, register)],
    )
}

fn compare(operation: u32, register: u32, bytes: &[u8]) -> Expr {
    let mut expr = numbers(
        c"cmp",
        &[(sys::NFTNL_EXPR_CMP_SREG, register), (sys::NFTNL_EXPR_CMP_OP, operation)],
    );
    expr.attributes.push((sys::NFTNL_EXPR_CMP_DATA, Value::Bytes(bytes.to_vec())));
    expr
}

fn bitwise(register: u32, mask: &[u8], xor: &[u8]) -> Expr {
    let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
    let mut expr = numbers(
        c"bitwise",
        &[
            (sys::NFTNL_EXPR_BITWISE_SREG, register),
            (sys::NFTNL_EXPR_BITWISE_DREG, register),
            (sys::NFTNL_EXPR_BITWISE_LEN, length),
        ],
    );
    expr.attributes.push((sys::NFTNL_EXPR_BITWISE_MASK, Value::Bytes(mask.to_vec())));
    expr.attributes.push((sys::NFTNL_EXPR_BITWISE_XOR, Value::Bytes(xor.to_vec())));
    expr
}

/// Offset of an address in the IP header.
fn address_offset(family: Family, field: Field) -> u32 {
    match (family, field) {
        (Family::V4, Field::Source) => 12,
        (Family::V4, _) => 16,
        (Family::V6, Field::Source) => 8,
        (Family::V6, _) => 24,
    }
}

fn address(family: Family, field: Field, register: u32) -> Expr {
    let length = u32::from(family.address_bytes());
    payload(
        libc::NFT_PAYLOAD_NETWORK_HEADER.cast_unsigned(),
        address_offset(family, field),
        length,
        register,
    )
}

/// Loads a key's fields into consecutive registers.
fn load(family: Family, fields: &[Field], pick: Option<Pick>) -> Vec<Expr> {
    let mut exprs = Vec::new();
    let mut register = REG;
    for field in fields {
        match field {
            Field::Source | Field::Destination => exprs.push(address(family, *field, register)),
            Field::Protocol => exprs.push(meta(libc::NFT_META_L4PROTO, register)),
            Field::Port => {
                let base = libc::NFT_PAYLOAD_TRANSPORT_HEADER.cast_unsigned();
                exprs.push(payload(base, 2, 2, register));
            }
            Field::Index => exprs.extend(draw(family, pick, register)),
        }
        let (_, bytes) = field_type(family, *field);
        register += bytes / 4;
    }
    exprs
}

fn draw(family: Family, pick: Option<Pick>, register: u32) -> Vec<Expr> {
    match pick {
        None => Vec::new(),
        Some(Pick::Random(count)) => vec![numbers(
            c"numgen",
            &[
                (sys::NFTNL_EXPR_NG_DREG, register),
                (sys::NFTNL_EXPR_NG_MODULUS, count),
                (sys::NFTNL_EXPR_NG_TYPE, libc::NFT_NG_RANDOM.cast_unsigned()),
            ],
        )],
        Some(Pick::BySource(count)) => vec![
            address(family, Field::Source, REG_HASHED),
            numbers(
                c"hash",
                &[
                    (sys::NFTNL_EXPR_HASH_SREG, REG_HASHED),
                    (sys::NFTNL_EXPR_HASH_DREG, register),
                    (sys::NFTNL_EXPR_HASH_LEN, u32::from(family.address_bytes())),
                    (sys::NFTNL_EXPR_HASH_MODULUS, count),
                    (sys::NFTNL_EXPR_HASH_SEED, HASH_SEED),
                    (sys::NFTNL_EXPR_HASH_TYPE, 0),
                ],
            ),
        ],
    }
}

fn lookup(set: &str, destination: Option<u32>) -> Result<Expr, NulError> {
    let mut expr = numbers(c"lookup", &[(sys::NFTNL_EXPR_LOOKUP_SREG, REG)]);
    if let Some(register) = destination {
        expr.attributes.push((sys::NFTNL_EXPR_LOOKUP_DREG, Value::Number(register)));
    }
    expr.attributes.push((sys::NFTNL_EXPR_LOOKUP_SET, Value::Text(CString::new(set)?)));
    Ok(expr)
}

/// As nft does it: whole bytes are compared alone, others are masked.
fn in_net(family: Family, field: Field, net: &IpNet, operation: u32) -> Vec<Expr> {
    let bytes = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (network, mask) = (bytes(net.network()), bytes(net.netmask()));
    let whole = usize::from(net.prefix_len() / 8);
    if net.prefix_len().is_multiple_of(8) && whole > 0 {
        let base = libc::NFT_PAYLOAD_NETWORK_HEADER.cast_unsigned();
        let length = u32::from(net.prefix_len() / 8);
        let prefix = network.get(..whole).unwrap_or(&network);
        return vec![
            payload(base, address_offset(family, field), length, REG),
            compare(operation, REG, prefix),
        ];
    }
    let zeros = vec![0; mask.len()];
    vec![
        address(family, field, REG),
        bitwise(REG, &mask, &zeros),
        compare(operation, REG, &network),
    ]
}

fn encode(family: Family, statement: &Statement) -> Result<Vec<Expr>, NulError> {
    let bit = MASQUERADE_BIT.to_ne_bytes();
    let without = (!MASQUERADE_BIT).to_ne_bytes();
    let zero = [0; 4];
    let set_mark = || {
        let key = libc::NFT_META_MARK.cast_unsigned();
        let mark = [(sys::NFTNL_EXPR_META_KEY, key), (sys::NFTNL_EXPR_META_SREG, REG)];
        numbers(c"meta", &mark)
    };
    let mark = meta(libc::NFT_META_MARK, REG);
    Ok(match statement {
        Statement::In(field, net) => in_net(family, *field, net, CMP_EQUAL),
        Statement::NotIn(field, net) => in_net(family, *field, net, CMP_UNEQUAL),
        Statement::Local(field) => local(*field, CMP_EQUAL),
        Statement::NotLocal(field) => local(*field, CMP_UNEQUAL),
        Statement::OutBy(link) => {
            let mut name = link.as_bytes().to_vec();
            name.resize(libc::IFNAMSIZ, 0);
            vec![meta(libc::NFT_META_OIFNAME, REG), compare(CMP_EQUAL, REG, &name)]
        }
        Statement::NewConnection => vec![
            numbers(
                c"ct",
                &[
                    (sys::NFTNL_EXPR_CT_KEY, libc::NFT_CT_STATE.cast_unsigned()),
                    (sys::NFTNL_EXPR_CT_DREG, REG),
                ],
            ),
            bitwise(REG, &CONNTRACK_NEW.to_ne_bytes(), &zero),
            compare(CMP_UNEQUAL, REG, &zero),
        ],
        Statement::MarkIsSet => {
            vec![mark, bitwise(REG, &bit, &zero), compare(CMP_UNEQUAL, REG, &zero)]
        }
        Statement::SetMark => vec![mark, bitwise(REG, &without, &bit), set_mark()],
        Statement::ClearMark => vec![mark, bitwise(REG, &without, &zero), set_mark()],
        Statement::InSet(key, set) => {
            let mut exprs = load(family, key, None);
            exprs.push(lookup(set, None)?);
            exprs
        }
        Statement::VerdictMap(key, map) => {
            let mut exprs = load(family, key, None);
            exprs.push(lookup(map, Some(REG_VERDICT))?);
            exprs
        }
        Statement::Dnat(key, pick, map) => dnat(family, key, *pick, map)?,
        Statement::Masquerade => vec![numbers(c"masq", &[])],
        Statement::ResetTcp => vec![
            meta(libc::NFT_META_L4PROTO, REG),
            compare(CMP_EQUAL, REG, &[protocol_number(Protocol::Tcp)]),
            reject(libc::NFT_REJECT_TCP_RST, 0),
        ],
        // Port unreachable, in each family's own number.
        Statement::Reject => {
            let code = if family == Family::V4 { 3 } else { 4 };
            vec![reject(libc::NFT_REJECT_ICMP_UNREACH, code)]
        }
        Statement::Verdict(verdict) => vec![immediate(verdict)?],
    })
}

/// Whether an address is this host's, by its routing tables.
fn local(field: Field, operation: u32) -> Vec<Expr> {
    let which = if field == Field::Source { FIB_SOURCE } else { FIB_DESTINATION };
    let look_up = numbers(
        c"fib",
        &[
            (sys::NFTNL_EXPR_FIB_DREG, REG),
            (sys::NFTNL_EXPR_FIB_RESULT, FIB_ADDRESS_TYPE),
            (sys::NFTNL_EXPR_FIB_FLAGS, which),
        ],
    );
    vec![look_up, compare(operation, REG, &ADDRESS_TYPE_LOCAL.to_ne_bytes())]
}

fn dnat(
    family: Family,
    key: &[Field],
    pick: Option<Pick>,
    map: &str,
) -> Result<Vec<Expr>, NulError> {
    let mut exprs = load(family, key, pick);
    exprs.push(lookup(map, Some(REG))?);
    let port = REG + u32::from(family.address_bytes()) / 4;
    exprs.push(numbers(
        c"nat",
        &[
            (sys::NFTNL_EXPR_NAT_TYPE, libc::NFT_NAT_DNAT.cast_unsigned()),
            (sys::NFTNL_EXPR_NAT_FAMILY, u32::from(self::family(family) as u16)),
            (sys::NFTNL_EXPR_NAT_REG_ADDR_MIN, REG),
            (sys::NFTNL_EXPR_NAT_REG_PROTO_MIN, port),
        ],
    ));
    Ok(exprs)
}

fn reject(kind: i32, code: u32) -> Expr {
    let kind = kind.cast_unsigned();
    let numbered = [(sys::NFTNL_EXPR_REJECT_TYPE, kind), (sys::NFTNL_EXPR_REJECT_CODE, code)];
    numbers(c"reject", &numbered)
}

fn immediate(verdict: &Verdict) -> Result<Expr, NulError> {
    let (number, chain) = match verdict {
        Verdict::Accept => (libc::NF_ACCEPT, None),
        Verdict::Drop => (libc::NF_DROP, None),
        Verdict::Goto(name) => (libc::NFT_GOTO, Some(name)),
        Verdict::Jump(name) => (libc::NFT_JUMP, Some(name)),
    };
    let mut expr = numbers(
        c"immediate",
        &[
            (sys::NFTNL_EXPR_IMM_DREG, REG_VERDICT),
            (sys::NFTNL_EXPR_IMM_VERDICT, number.cast_unsigned()),
        ],
    );
    if let Some(name) = chain {
        expr.attributes.push((sys::NFTNL_EXPR_IMM_CHAIN, Value::Text(CString::new(&**name)?)));
    }
    Ok(expr)
}

/// Applies all of a transaction or nothing.
pub(crate) fn apply(transaction: &Transaction) -> Result<(), NftError> {
    let table_name = CString::new(&*transaction.table)?;
    let table = Table::new(&table_name, family(transaction.family));
    let mut draft = Draft {
        batch: Batch::new(),
        table: &table,
        table_name,
        family: transaction.family,
        purposes: Vec::new(),
        sets: 0,
    };
    for op in &transaction.ops {
        draft.op(op)?;
    }
    let Draft { batch, purposes, .. } = draft;
    let batch = batch.finalize();
    let sequences = batch.sequence_numbers();
    // Kernels since 6.10 number (and acknowledge) the batch's begin and end too.
    let first = sequences.start + u32::from(sequences.len() > purposes.len());
    let pages: Vec<&[u8]> = batch.iter().collect();
    let parts: Vec<IoSlice<'_>> = pages.iter().map(|page| IoSlice::new(page)).collect();
    let socket = Socket::open().map_err(NftError::Socket)?;
    let answers = socket.send_batch(&parts).map_err(NftError::Socket)?;
    if let Some(refused) = answers.iter().find(|answer| answer.errno != 0) {
        let index = refused.sequence.checked_sub(first).and_then(|i| usize::try_from(i).ok());
        let purpose = index.and_then(|index| purposes.get(index));
        return Err(NftError::Refused {
            operation: purpose.cloned().unwrap_or_else(|| "transaction".to_owned()),
            source: io::Error::from_raw_os_error(refused.errno),
        });
    }
    if answers.is_empty() && !purposes.is_empty() {
        return Err(NftError::Unanswered);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::process::Command;

    use super::*;
    use crate::diff::plan_transaction;
    use crate::kernel::nft_dump;
    use crate::render::render_ruleset;
    use crate::render::services::tests::desired;
    use crate::rules::Ruleset;
    use crate::script;

    /// Runs a test in a namespace of its own; says so when it can't.
    fn in_own_netns(test: &str, run: impl FnOnce() + Send + 'static) {
        if !nix::unistd::geteuid().is_root() || Command::new("nft").arg("-v").output().is_err() {
            eprintln!("SKIPPED {test}: needs root and nft");
            return;
        }
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            run();
        });
        thread.join().unwrap();
    }

    /// The table as nft shows it, without the lines on types: `typeof` is nft's own annotation.
    fn list() -> String {
        let output = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let kept = text.lines().filter(|line| {
            let line = line.trim_start();
            let declares = line.starts_with("typeof ") || line.starts_with("type ");
            !declares || line.contains("hook")
        });
        let mut words: Vec<String> = Vec::new();
        for line in kept {
            words.push(line.trim().to_owned());
        }
        sorted_elements(&decimal(&words.join("\n")))
    }

    /// The kernel's hash order of elements is by chance.
    fn sorted_elements(text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("elements = {") {
            let (inside, after) = after.split_once('}').unwrap();
            let mut elements: Vec<&str> = inside.split(',').map(str::trim).collect();
            elements.sort_unstable();
            out += before;
            out += &elements.join("\n");
            rest = after;
        }
        out + rest
    }

    /// An index is a number to nft's `typeof` and a mark, in hexadecimal, to its plain types.
    fn decimal(text: &str) -> String {
        let word = |word: &str| match word.strip_prefix("0x").filter(|digits| digits.len() == 8) {
            Some(digits) => u32::from_str_radix(digits, 16).unwrap().to_string(),
            None => word.to_owned(),
        };
        let line = |line: &str| line.split(' ').map(word).collect::<Vec<_>>().join(" ");
        text.lines().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_kernel_holds_what_the_script_says() {
        in_own_netns("the_kernel_holds_what_the_script_says", || {
            for family in Family::BOTH {
                let ruleset = render_ruleset(&desired(), family, "flotilla");
                let path = tempfile::NamedTempFile::new().unwrap();
                std::fs::write(path.path(), script::render(&ruleset.install())).unwrap();
                let nft = Command::new("nft").arg("-f").arg(path.path()).output().unwrap();
                assert!(nft.status.success(), "{}", String::from_utf8_lossy(&nft.stderr));
                let by_nft = list();
                assert!(by_nft.contains("goto ports-of-host") && by_nft.contains(". 0 : "));
                apply(&Ruleset::uninstall(family, "flotilla")).unwrap();
                assert_eq!(list(), "");
                apply(&ruleset.install()).unwrap();
                assert_eq!(list(), by_nft);
                apply(&Ruleset::uninstall(family, "flotilla")).unwrap();
            }
        });
    }

    #[test]
    fn what_is_there_is_read_back_and_changes_are_seen() {
        in_own_netns("what_is_there_is_read_back_and_changes_are_seen", || {
            let old = render_ruleset(&desired(), Family::V4, "flotilla");
            let mut next = desired();
            next.vips.pop_first();
            let new = render_ruleset(&next, Family::V4, "flotilla");
            let shapes = |ruleset: &Ruleset| -> BTreeMap<_, _> {
                ruleset.maps.iter().map(|(name, map)| (*name, map.shape.clone())).collect()
            };
            apply(&old.install()).unwrap();
            apply(&plan_transaction(&old, &new)).unwrap();
            let seen = nft_dump::observe(Family::V4, "flotilla", &shapes(&new)).unwrap();
            for (name, map) in &new.maps {
                assert_eq!(seen.elements[*name], map.elements, "{name}");
            }
            let generation = nft_dump::generation().unwrap();
            let flush = "nft flush chain ip flotilla refuse";
            assert!(Command::new("sh").args(["-c", flush]).status().unwrap().success());
            assert_ne!(nft_dump::generation().unwrap(), generation);
            let after = nft_dump::observe(Family::V4, "flotilla", &shapes(&new)).unwrap();
            assert_ne!(after.fingerprint, seen.fingerprint);
            // A refused transaction changes nothing and is named.
            let error = apply(&plan_transaction(&old, &new)).unwrap_err();
            assert!(matches!(error, NftError::Refused { .. }), "{error:?}");
            let unchanged = nft_dump::observe(Family::V4, "flotilla", &shapes(&new)).unwrap();
            assert_eq!(unchanged, after);
        });
    }

    #[test]
    fn ten_thousand_services_are_one_batch() {
        in_own_netns("ten_thousand_services_are_one_batch", || {
            let mut many = desired();
            let (vip, target) = many.vips.pop_first().unwrap();
            for index in 0..10_000u32 {
                let address = std::net::Ipv4Addr::from(0x0a60_0000 + index).into();
                many.vips.insert(crate::desired::Vip { address, ..vip }, target.clone());
            }
            let ruleset = render_ruleset(&many, Family::V4, "flotilla");
            let start = std::time::Instant::now();
            apply(&ruleset.install()).unwrap();
            eprintln!("10,000 services x 2 endpoints: {:?}", start.elapsed());
            let shapes: BTreeMap<_, _> =
                ruleset.maps.iter().map(|(name, map)| (*name, map.shape.clone())).collect();
            let seen = nft_dump::observe(Family::V4, "flotilla", &shapes).unwrap();
            assert_eq!(seen.elements["services"], ruleset.maps["services"].elements);
            assert_eq!(seen.elements["endpoints"], ruleset.maps["endpoints"].elements);
        });
    }
}
