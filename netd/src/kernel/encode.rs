//! Statements as nf_tables' expressions, encoded as nft encodes them, so that `nft list` shows the script's own text.
//!
//! Pure. Keys and data lie in the 32-bit registers from the first on, each part padded to one.

use std::ffi::{CStr, CString, NulError};

use ipnet::IpNet;
use nftnl::ProtoFamily;
use nftnl_sys as sys;

use super::nft_sys::{Expr, Value};
use crate::Protocol;
use crate::rules::{Family, Field, MASQUERADE_BIT, Pick, Statement, Verdict, protocol_number};

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

/// nftnl's word for a family.
pub(super) fn family(family: Family) -> ProtoFamily {
    match family {
        Family::V4 => ProtoFamily::Ipv4,
        Family::V6 => ProtoFamily::Ipv6,
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

/// The same of several fields, one behind the other.
pub(super) fn concatenation(family: Family, fields: &[Field]) -> (u32, u32) {
    fields.iter().fold((0, 0), |(number, bytes), field| {
        let (field_number, field_bytes) = field_type(family, *field);
        (number << 6 | field_number, bytes + field_bytes)
    })
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

/// A statement's expressions.
pub(super) fn encode(family: Family, statement: &Statement) -> Result<Vec<Expr>, NulError> {
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
