//! Owns the bytes of a record and of a file's head. Pure.
//!
//! Every file begins with a head of 32 bytes, little-endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 7 | `FLOTLOG` (segment), `FLOTCKP` (checkpoint) or `FLOTSNP` (snapshot) |
//! | 7 | 1 | format version, 1 |
//! | 8 | 8 | sequence: of the segment's first record; the last that the checkpoint holds; a snapshot's revision |
//! | 16 | 4 | salt, random; seeds the CRC of the file's records, so that no value can look like one |
//! | 20 | 4 | CRC-32C of bytes 0–19 |
//! | 24 | 8 | zero |
//!
//! Records follow, each at a multiple of 8:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | format version, 1; 0 behind the last record |
//! | 1 | 1 | kind |
//! | 2 | 2 | zero |
//! | 4 | 4 | length of the payload |
//! | 8 | 8 | sequence: 1, 2, 3, … without a gap, over all segments |
//! | 16 | 8 | durable: the highest sequence that was durable when this was written |
//! | 24 | 8 | revision of the store with this record applied |
//! | 32 | 4 | CRC-32C over bytes 0–31 and the payload |
//! | 36 | 4 | zero |
//! | 40 | | payload, then zeros up to a multiple of 8 |
//!
//! Why `durable` decides what a bad record is. Several batches may be on their way to the disk at once, and arrive whole, torn or not at
//! all, in any order; but what is acknowledged is acknowledged in order, after every record up to it was flushed, and only then does
//! `durable` of later records reach it. So when some later, good record says that a sequence at or above the bad one's was
//! durable, the bad record was flushed: corruption, to be refused. When none says so, nothing from the bad record on was
//! known to be flushed by a record that is there; it is the end of the log, to be cut: nothing behind it was acknowledged before a crash
//! unless it is the very last that was. A new segment's head is written only after every record before it was flushed,
//! so its sequence is such a mark too. Sequences, not revisions, since leases and reservations have records and no revision of their own.
//!
//! What stands behind the last record may be anything that is not a record of a higher sequence: zeros, or records of a segment that the
//! file was before, whose sequences are lower, as every sequence is used once. Records of a higher sequence are zeroed before the log goes on.

use crc32c::{crc32c, crc32c_append};

use crate::revision::Revision;

/// The format that this program writes.
pub(crate) const FORMAT_VERSION: u8 = 1;
pub(crate) const FILE_HEAD_BYTES: usize = 32;
const HEADER_BYTES: usize = 40;
const ALIGNMENT: usize = 8;
/// Above what any record of a checkpoint has: one entry.
const ENTRY_BYTES_MAX: usize = 64 << 20;

/// What kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Segment,
    Checkpoint,
    Snapshot,
}

impl FileKind {
    /// Whether the first bytes of a file say that it is of this kind.
    pub(crate) fn begins(self, bytes: &[u8]) -> bool {
        bytes.starts_with(self.magic())
    }

    fn magic(self) -> &'static [u8; 7] {
        match self {
            Self::Segment => b"FLOTLOG",
            Self::Checkpoint => b"FLOTCKP",
            Self::Snapshot => b"FLOTSNP",
        }
    }
}

/// The head of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileHead {
    pub(crate) sequence: u64,
    pub(crate) salt: u32,
}

/// Why a head can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadHead {
    Damaged,
    Newer(u8),
}

impl FileHead {
    pub(crate) fn encode(self, kind: FileKind) -> [u8; FILE_HEAD_BYTES] {
        let mut head = [0; FILE_HEAD_BYTES];
        head[..7].copy_from_slice(kind.magic());
        head[7] = FORMAT_VERSION;
        head[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        head[16..20].copy_from_slice(&self.salt.to_le_bytes());
        let crc = crc32c(&head[..20]);
        head[20..24].copy_from_slice(&crc.to_le_bytes());
        head
    }

    pub(crate) fn parse(bytes: &[u8], kind: FileKind) -> Result<Self, BadHead> {
        let head = bytes.get(..FILE_HEAD_BYTES).ok_or(BadHead::Damaged)?;
        if head[..7] != kind.magic()[..] || u32_at(head, 20) != crc32c(&head[..20]) {
            return Err(BadHead::Damaged);
        }
        if head[7] > FORMAT_VERSION {
            return Err(BadHead::Newer(head[7]));
        }
        Ok(Self { sequence: u64_at(head, 8), salt: u32_at(head, 16) })
    }
}

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Operations of one transaction (`payload`).
    Change = 1,
    /// In a checkpoint: what the whole store is at.
    Begin = 2,
    /// In a checkpoint: one entry.
    Entry = 3,
    /// In a checkpoint: one lease.
    Lease = 4,
    /// In a checkpoint: its last record.
    End = 5,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Change,
            2 => Self::Begin,
            3 => Self::Entry,
            4 => Self::Lease,
            5 => Self::End,
            _ => return None,
        })
    }
}

/// The header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) sequence: u64,
    pub(crate) durable: u64,
    pub(crate) revision: Revision,
}

/// What stands at an offset.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed<'a> {
    /// A whole record; the next one begins `bytes` further on.
    Record { header: Header, payload: &'a [u8], bytes: usize },
    /// Zeros, or the end of the buffer: nothing was written here.
    Blank,
    /// Something else: torn or damaged, or cut off in what fills up its last 8 bytes.
    Bad,
    /// A whole record of a newer format.
    Newer(u8),
}

/// Appends a record whose payload `write` appends.
pub(crate) fn encode(
    buffer: &mut Vec<u8>,
    salt: u32,
    header: Header,
    write: impl FnOnce(&mut Vec<u8>),
) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; HEADER_BYTES]);
    write(buffer);
    let length = buffer.len() - start - HEADER_BYTES;
    let record = &mut buffer[start..];
    record[0] = FORMAT_VERSION;
    record[1] = header.kind as u8;
    // LOGGED_BYTES_MAX keeps every transaction far below 4 GiB, and a lease's end logs keys only.
    record[4..8].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    record[8..16].copy_from_slice(&header.sequence.to_le_bytes());
    record[16..24].copy_from_slice(&header.durable.to_le_bytes());
    record[24..32].copy_from_slice(&header.revision.to_le_bytes());
    let crc = checksum(record, salt);
    record[32..36].copy_from_slice(&crc.to_le_bytes());
    buffer.resize(start + padded(length), 0);
}

/// Reads the record at the beginning of `bytes`.
pub(crate) fn parse(bytes: &[u8], salt: u32) -> Parsed<'_> {
    let Some(header) = bytes.get(..HEADER_BYTES) else {
        return if bytes.iter().all(|byte| *byte == 0) { Parsed::Blank } else { Parsed::Bad };
    };
    if header.iter().all(|byte| *byte == 0) {
        return Parsed::Blank;
    }
    let length = u32_at(header, 4) as usize;
    let whole = padded(length);
    let Some(record) = bytes.get(..whole).and_then(|whole| whole.get(..HEADER_BYTES + length))
    else {
        return Parsed::Bad;
    };
    if header[0] == 0 || checksum(record, salt) != u32_at(header, 32) {
        return Parsed::Bad;
    }
    let Some(kind) = Kind::from_byte(header[1]).filter(|_| header[0] <= FORMAT_VERSION) else {
        return Parsed::Newer(header[0]);
    };
    let (sequence, durable) = (u64_at(header, 8), u64_at(header, 16));
    let revision = u64_at(header, 24).cast_signed();
    let header = Header { kind, sequence, durable, revision };
    Parsed::Record { header, payload: &record[HEADER_BYTES..], bytes: whole }
}

/// How many bytes the record of a checkpoint at the beginning of `bytes` has if its header is right.
pub(crate) fn claimed_bytes(bytes: &[u8]) -> Option<usize> {
    let length = u32_at(bytes.get(..HEADER_BYTES)?, 4) as usize;
    (length <= ENTRY_BYTES_MAX).then(|| padded(length))
}

/// Whether what stands at the beginning of `bytes` has the form of a record's header with a sequence above this one. Cheap, for
/// looking at every place where a record could begin.
pub(crate) fn claims_sequence_above(bytes: &[u8], sequence: u64) -> bool {
    let Some(header) = bytes.get(..HEADER_BYTES) else { return false };
    header[0] != 0
        && header[2..4] == [0, 0]
        && u64_at(header, 8) > sequence
        && u64_at(header, 16) < u64_at(header, 8)
        && u32_at(header, 4) as usize <= bytes.len() - HEADER_BYTES
}

/// Offsets from `from` on at which a record could begin.
pub(crate) fn offsets(from: usize, bytes: usize) -> impl Iterator<Item = usize> {
    (from.next_multiple_of(ALIGNMENT)..bytes).step_by(ALIGNMENT)
}

fn padded(length: usize) -> usize {
    HEADER_BYTES.saturating_add(length).checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX)
}

fn checksum(record: &[u8], salt: u32) -> u32 {
    crc32c_append(crc32c_append(salt, &record[..32]), &record[HEADER_BYTES..])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut own = [0; 4];
    own.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(own)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut own = [0; 8];
    own.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(own)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: Header = Header { kind: Kind::Change, sequence: 7, durable: 6, revision: 9 };

    proptest! {
        #[test]
        fn a_record_comes_back_and_no_flipped_bit_passes(
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            salt in any::<u32>(),
            at in any::<prop::sample::Index>(),
            bit in 0..8,
        ) {
            let mut bytes = Vec::new();
            encode(&mut bytes, salt, HEADER, |out| out.extend_from_slice(&payload));
            prop_assert_eq!(bytes.len() % 8, 0);
            let whole = bytes.len();
            let expected = Parsed::Record { header: HEADER, payload: &payload, bytes: whole };
            prop_assert_eq!(parse(&bytes, salt), expected);
            // Padding carries nothing.
            let at = at.index(HEADER_BYTES + payload.len());
            if !(36..40).contains(&at) {
                bytes[at] ^= 1_u8 << bit;
                let passed = matches!(parse(&bytes, salt), Parsed::Record { .. });
                prop_assert!(!passed);
            }
        }

        #[test]
        fn any_bytes_are_judged_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(&bytes, 0);
            prop_assert!(FileHead::parse(&bytes, FileKind::Segment).is_err());
        }
    }

    #[test]
    fn a_record_of_any_size_is_read_and_one_cut_in_its_padding_is_bad() {
        for payload in [vec![1; 3], vec![1; ENTRY_BYTES_MAX + 3]] {
            let mut bytes = Vec::new();
            encode(&mut bytes, 5, HEADER, |out| out.extend_from_slice(&payload));
            assert!(matches!(parse(&bytes, 5), Parsed::Record { .. }));
            bytes.pop();
            assert_eq!(parse(&bytes, 5), Parsed::Bad);
        }
    }

    #[test]
    fn a_newer_head_is_named() {
        let mut head = FileHead { sequence: 1, salt: 2 }.encode(FileKind::Segment);
        head[7] = 9;
        let crc = crc32c(&head[..20]);
        head[20..24].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(FileHead::parse(&head, FileKind::Segment), Err(BadHead::Newer(9)));
    }
}
