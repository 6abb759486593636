//! Owns the bytes inside a record: operations of a change, entries and leases of a checkpoint. Pure.
//!
//! Numbers are LEB128 (signed ones as their 64 bits), byte strings a length and the bytes. A change is its operations one behind the other: a tag
//! byte (1 put, 2 delete, 3 lease granted, 4 lease revoked, 5 compacted, 6 revisions reserved) and its parts in the order of [`Op`].

use crate::revision::{Entry, Revision};

/// One operation of a change. Not an `etcd` operation: what a transaction came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op<'a> {
    Put { key: &'a [u8], value: &'a [u8], lease: i64 },
    Delete { key: &'a [u8] },
    Granted { lease: i64, ttl_seconds: u64 },
    Revoked { lease: i64 },
    Compacted { revision: Revision },
    Reserved { revision: Revision },
}

impl Op<'_> {
    pub(crate) fn encode(self, out: &mut Vec<u8>) {
        match self {
            Self::Put { key, value, lease } => {
                out.push(1);
                bytes(out, key);
                bytes(out, value);
                signed(out, lease);
            }
            Self::Delete { key } => {
                out.push(2);
                bytes(out, key);
            }
            Self::Granted { lease, ttl_seconds } => {
                out.push(3);
                signed(out, lease);
                number(out, ttl_seconds);
            }
            Self::Revoked { lease } => {
                out.push(4);
                signed(out, lease);
            }
            Self::Compacted { revision } => {
                out.push(5);
                signed(out, revision);
            }
            Self::Reserved { revision } => {
                out.push(6);
                signed(out, revision);
            }
        }
    }
}

/// Appends an entry.
pub(crate) fn encode_entry(out: &mut Vec<u8>, entry: RawEntry<'_>) {
    bytes(out, entry.key);
    bytes(out, entry.value);
    for own in [entry.create_revision, entry.mod_revision, entry.version, entry.lease] {
        signed(out, own);
    }
}

/// An entry of a checkpoint; its value is as files hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RawEntry<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    pub(crate) create_revision: Revision,
    pub(crate) mod_revision: Revision,
    pub(crate) version: i64,
    pub(crate) lease: i64,
}

impl<'a> RawEntry<'a> {
    pub(crate) fn of(entry: &'a Entry, value: &'a [u8]) -> Self {
        let Entry { key, create_revision, mod_revision, version, lease, .. } = entry;
        let (create_revision, mod_revision) = (*create_revision, *mod_revision);
        Self { key, value, create_revision, mod_revision, version: *version, lease: *lease }
    }
}

pub(crate) fn number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push((number & 0x7f) as u8);
}

pub(crate) fn signed(out: &mut Vec<u8>, signed: i64) {
    number(out, signed.cast_unsigned());
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads a payload. `None` from any part: the payload is not of this format, though its checksum was right.
#[derive(Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(first & 0x7f).checked_shl(shift)?;
            if first & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    pub(crate) fn signed(&mut self) -> Option<i64> {
        Some(self.number()?.cast_signed())
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (own, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(own)
    }

    pub(crate) fn op(&mut self) -> Option<Op<'a>> {
        let (tag, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(match tag {
            1 => Op::Put { key: self.bytes()?, value: self.bytes()?, lease: self.signed()? },
            2 => Op::Delete { key: self.bytes()? },
            3 => Op::Granted { lease: self.signed()?, ttl_seconds: self.number()? },
            4 => Op::Revoked { lease: self.signed()? },
            5 => Op::Compacted { revision: self.signed()? },
            6 => Op::Reserved { revision: self.signed()? },
            _ => return None,
        })
    }

    pub(crate) fn entry(&mut self) -> Option<RawEntry<'a>> {
        Some(RawEntry {
            key: self.bytes()?,
            value: self.bytes()?,
            create_revision: self.signed()?,
            mod_revision: self.signed()?,
            version: self.signed()?,
            lease: self.signed()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_come_back() {
        let ops = [
            Op::Put { key: b"a", value: &[0; 300], lease: -3 },
            Op::Delete { key: b"" },
            Op::Granted { lease: i64::MAX, ttl_seconds: u64::MAX },
            Op::Revoked { lease: i64::MIN },
            Op::Compacted { revision: 1 << 40 },
            Op::Reserved { revision: 0 },
        ];
        let mut out = Vec::new();
        ops.iter().for_each(|op| op.encode(&mut out));
        let mut reader = Reader(&out);
        let back: Vec<_> = std::iter::from_fn(|| reader.op()).collect();
        assert_eq!(back, ops);
        assert!(reader.is_empty());
        for cut in 0..out.len() {
            let mut reader = Reader(&out[..cut]);
            while reader.op().is_some() {}
        }
    }
}
