//! What is in a table now: a fingerprint of its chains, rules and maps, and the elements themselves.
//!
//! The fingerprint is compared with the one taken right after our own transaction, so it needn't be understood. Must not change
//! anything.

use std::collections::BTreeMap;
use std::io;

use super::netfilter::{Message, Socket, attribute, attributes, push_attribute, text};
use crate::link::fnv1a;
use crate::rules::{Data, Elements, Family, Key, Leads, Shape, Verdict};

const SUBSYSTEM: u8 = 10;
const GET_TABLE: u8 = 1;
const GET_CHAIN: u8 = 4;
const GET_RULE: u8 = 7;
const GET_SET: u8 = 10;
const GET_ELEMENTS: u8 = 13;
const GET_GENERATION: u8 = 16;
const GENERATION_ID: u16 = 1;
/// Attribute 1 is the table's name in chains, rules, sets and element lists.
const TABLE: u16 = 1;
/// Of a chain: handle, name, hook, policy, type. Not: counters and uses, which elements change.
const CHAIN_FACTS: [u16; 5] = [2, 3, 4, 5, 7];
/// Of a rule: chain, handle, expressions.
const RULE_FACTS: [u16; 3] = [2, 3, 4];
/// Of a set: name, flags, key type and length, data type and length, handle.
const SET_FACTS: [u16; 7] = [2, 3, 4, 5, 6, 7, 16];
const SET_NAME: u16 = 2;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// A table as it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) fingerprint: u64,
    pub(crate) elements: BTreeMap<String, Elements>,
}

fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// Number of the namespace's ruleset: any change by anybody makes it another.
pub(crate) fn generation() -> io::Result<u32> {
    let answer = Socket::open()?.ask(SUBSYSTEM, GET_GENERATION, 0, &[])?;
    let id = answer.as_ref().and_then(|answer| attribute(&answer.attributes, GENERATION_ID));
    let four = id.and_then(<[u8]>::first_chunk::<4>);
    four.map(|four| u32::from_be_bytes(*four))
        .ok_or_else(|| io::Error::other("no generation in the answer"))
}

/// Whether the table exists.
pub(crate) fn exists(family: Family, table: &str) -> io::Result<bool> {
    let tables = Socket::open()?.dump(SUBSYSTEM, GET_TABLE, number(family), &[])?;
    let named = |message: &Message| attribute(&message.attributes, TABLE).map(text) == Some(table);
    Ok(tables.iter().any(named))
}

/// Reads a table; the shapes say how its maps' elements are to be understood.
pub(crate) fn observe(
    family: Family,
    table: &str,
    shapes: &BTreeMap<&'static str, Shape>,
) -> io::Result<Observed> {
    let mut socket = Socket::open()?;
    let mut filter = Vec::new();
    push_attribute(&mut filter, TABLE, &terminated(table));
    let mut facts = Vec::new();
    let mut elements = BTreeMap::new();
    for (message, wanted) in
        [(GET_CHAIN, &CHAIN_FACTS[..]), (GET_RULE, &RULE_FACTS), (GET_SET, &SET_FACTS)]
    {
        for found in socket.dump(SUBSYSTEM, message, number(family), &filter)? {
            if attribute(&found.attributes, TABLE).map(text) != Some(table) {
                continue;
            }
            for (kind, value) in attributes(&found.attributes) {
                if wanted.contains(&kind) {
                    push_attribute(&mut facts, kind, value);
                }
            }
            if message == GET_SET
                && let Some(name) = attribute(&found.attributes, SET_NAME).map(text)
            {
                elements.insert(name.to_owned(), Elements::new());
            }
        }
    }
    for (name, place) in &mut elements {
        if let Some(shape) = shapes.get(name.as_str()) {
            *place = list(&mut socket, family, table, (name, shape))?;
        }
    }
    Ok(Observed { fingerprint: fnv1a(&facts), elements })
}

fn terminated(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn list(
    socket: &mut Socket,
    family: Family,
    table: &str,
    (name, shape): (&str, &Shape),
) -> io::Result<Elements> {
    let mut filter = Vec::new();
    push_attribute(&mut filter, TABLE, &terminated(table));
    push_attribute(&mut filter, ELEMENTS_SET, &terminated(name));
    let mut elements = Elements::new();
    for message in socket.dump(SUBSYSTEM, GET_ELEMENTS, number(family), &filter)? {
        let Some(list) = attribute(&message.attributes, ELEMENTS_LIST) else { continue };
        elements.extend(attributes(list).filter_map(|(_, element)| parse(shape, element)));
    }
    elements.sort_by_key(|(key, _)| *key);
    Ok(elements)
}

fn parse(shape: &Shape, element: &[u8]) -> Option<(Key, Data)> {
    let key = Key::from_bytes(attribute(attribute(element, ELEMENT_KEY)?, DATA_VALUE)?);
    let data = || attribute(element, ELEMENT_DATA);
    let data = match shape.leads {
        Leads::Member => Data::Member,
        Leads::Target => Data::from_target_bytes(attribute(data()?, DATA_VALUE)?),
        Leads::Verdict => Data::Verdict(verdict(attribute(data()?, DATA_VERDICT)?)?),
    };
    Some((key, data))
}

fn verdict(bytes: &[u8]) -> Option<Verdict> {
    let code = i32::from_be_bytes(*attribute(bytes, VERDICT_CODE)?.first_chunk::<4>()?);
    let chain = || attribute(bytes, VERDICT_CHAIN).map(text).map(Into::into);
    match code {
        libc::NF_ACCEPT => Some(Verdict::Accept),
        libc::NF_DROP => Some(Verdict::Drop),
        libc::NFT_GOTO => Some(Verdict::Goto(chain()?)),
        libc::NFT_JUMP => Some(Verdict::Jump(chain()?)),
        _ => None,
    }
}
