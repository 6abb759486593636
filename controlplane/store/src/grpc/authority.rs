//! Owns what clients on a Unix socket say of the host: clients of gRPC in Go send the socket's path as `:authority`, which is none,
//! and HTTP/2 of ours resets such streams. Nobody reads it here, so it is overwritten before HTTP/2 sees it. Knows nothing else of
//! what goes through.
//!
//! The value is overwritten where it stands (HPACK, RFC 7541): the text has as many characters afterwards, so that the tables of both
//! sides stay the same, and the encoding as many bytes, so that frames do. A value behind the first frame of a header block (16 KiB)
//! is left as it is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE_BYTES: usize = 24;
const FRAME_HEAD_BYTES: usize = 9;
/// Longer ones are not allowed unless we ask for them.
const FRAME_BYTES_MAX: usize = 16 << 10;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;
/// `:authority` in HPACK's static table.
const AUTHORITY: usize = 1;
/// Read at once while something is held back.
const READ_BYTES: usize = 4 << 10;

/// A connection whose `:authority` is always an acceptable one.
#[derive(Debug)]
pub(super) struct Overwritten<T> {
    inner: T,
    scanner: Scanner,
    /// Seen, and to be given.
    ready: BytesMut,
    /// The beginning of a header frame of which more has to come.
    held: BytesMut,
}

impl<T> Overwritten<T> {
    pub(super) fn new(inner: T) -> Self {
        let (ready, held) = (BytesMut::new(), BytesMut::new());
        Self { inner, scanner: Scanner { passing: PREFACE_BYTES }, ready, held }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Overwritten<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { inner, scanner, ready: waiting, held } = &mut *self;
        loop {
            if !waiting.is_empty() {
                let length = waiting.len().min(buffer.remaining());
                buffer.put_slice(&waiting[..length]);
                waiting.advance(length);
                return Poll::Ready(Ok(()));
            }
            if held.is_empty() {
                let before = buffer.filled().len();
                ready!(Pin::new(&mut *inner).poll_read(context, buffer))?;
                let fresh = &mut buffer.filled_mut()[before..];
                let seen = scanner.scan(fresh);
                held.extend_from_slice(&fresh[seen..]);
                buffer.set_filled(before + seen);
                if seen > 0 || held.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            } else {
                let mut more = [0; READ_BYTES];
                let mut more = ReadBuf::new(&mut more);
                ready!(Pin::new(&mut *inner).poll_read(context, &mut more))?;
                let ended = more.filled().is_empty();
                held.extend_from_slice(more.filled());
                let seen = if ended { held.len() } else { scanner.scan(held) };
                waiting.unsplit(held.split_to(seen));
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Overwritten<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// Where in the stream of frames we are.
#[derive(Debug)]
struct Scanner {
    /// So many bytes are none of ours.
    passing: usize,
}

impl Scanner {
    /// Overwrites what is whole, and says how much that is; the rest is to come again with more behind it.
    fn scan(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            if self.passing > 0 {
                let passed = self.passing.min(bytes.len() - at);
                self.passing -= passed;
                at += passed;
                continue;
            }
            let rest = &mut bytes[at..];
            let Some((head, payload)) = rest.split_first_chunk_mut::<FRAME_HEAD_BYTES>() else {
                return at;
            };
            let length = head[..3].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            let (kind, flags) = (head[3], head[4]);
            if kind == HEADERS && length <= FRAME_BYTES_MAX {
                let Some(payload) = payload.get_mut(..length) else { return at };
                // A block that can't be read is for HTTP/2 to refuse.
                overwrite(payload, flags);
            }
            self.passing = FRAME_HEAD_BYTES + length;
        }
        at
    }
}

/// Overwrites the authority in the payload of a HEADERS frame.
fn overwrite(payload: &mut [u8], flags: u8) -> Option<()> {
    let (mut at, mut end) = (0, payload.len());
    if flags & PADDED != 0 {
        end = end.checked_sub(usize::from(*payload.first()?))?;
        at += 1;
    }
    if flags & PRIORITY != 0 {
        at += PRIORITY_BYTES;
    }
    let block = payload.get_mut(at..end)?;
    let mut at = 0;
    while at < block.len() {
        at = field(block, at)?;
    }
    Some(())
}

/// Passes one field of a block, and says where the next begins.
fn field(block: &mut [u8], at: usize) -> Option<usize> {
    let (bits, named) = match *block.get(at)? {
        0x80.. => (7, false),
        0x40..=0x7f => (6, true),
        0x20..=0x3f => (5, false),
        0x00..=0x1f => (4, true),
    };
    let (index, mut at) = integer(block, at, bits)?;
    if !named {
        return Some(at);
    }
    if index == 0 {
        let (length, text) = integer(block, at, 7)?;
        at = text + length;
    }
    let plain = *block.get(at)? & 0x80 == 0;
    let (length, text) = integer(block, at, 7)?;
    let end = text.checked_add(length)?;
    let value = block.get_mut(text..end)?;
    if index == AUTHORITY {
        if plain { value.fill(b'0') } else { fill_coded(value) }
    }
    Some(end)
}

/// HPACK's integers: the bits of the first byte, and sevens behind it when those are all ones.
fn integer(block: &[u8], at: usize, bits: u32) -> Option<(usize, usize)> {
    /// More than any length here.
    const SHIFT_MAX: u32 = 21;
    let mask = (1 << bits) - 1;
    let mut value = usize::from(*block.get(at)?) & mask;
    let mut at = at + 1;
    if value < mask {
        return Some((value, at));
    }
    for shift in (0..=SHIFT_MAX).step_by(7) {
        let byte = usize::from(*block.get(at)?);
        at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

/// How many codes of HPACK's Huffman code have 1, 2, … bits. It is canonical, so this is enough to tell where each ends.
const CODES: [u32; 30] = [
    0, 0, 0, 0, 10, 26, 32, 6, 0, 5, 3, 2, 6, 2, 3, 0, 0, 0, 3, 8, 13, 26, 29, 12, 4, 15, 19, 29,
    0, 4,
];

/// Codes of 5, 6, 7 and 8 bits: `0`, `b`, `B`, `X`.
const FILLING: [(u32, usize); 4] =
    [(0b0_0000, 5), (0b10_0011, 6), (0b101_1101, 7), (0b1111_1100, 8)];

/// Writes as many characters into as many bytes.
fn fill_coded(value: &mut [u8]) {
    let characters = characters(value);
    // The last byte holds one bit of the text at least.
    let bits = (characters * 5).max((value.len() * 8).saturating_sub(7));
    let mut more = bits - characters * 5;
    if more > characters * 3 {
        // Worse than no code at all: no encoder does that.
        return;
    }
    let (mut at, mut put) = (0, |bit: bool, at: usize| {
        let mask = 0x80 >> (at % 8);
        if bit { value[at / 8] |= mask } else { value[at / 8] &= !mask }
    });
    for _ in 0..characters {
        let extra = more.min(3);
        more -= extra;
        let (code, length) = FILLING[extra];
        for bit in (0..length).rev() {
            put(code >> bit & 1 == 1, at);
            at += 1;
        }
    }
    while !at.is_multiple_of(8) {
        put(true, at);
        at += 1;
    }
}

fn characters(value: &[u8]) -> usize {
    let (mut count, mut code, mut first, mut bits) = (0, 0, 0, 0);
    for at in 0..value.len() * 8 {
        let bit = u32::from(value[at / 8] >> (7 - at % 8) & 1);
        (code, first) = (code << 1 | bit, first << 1);
        let codes = CODES.get(bits).copied().unwrap_or_default();
        bits += 1;
        if code < first + codes {
            (count, code, first, bits) = (count + 1, 0, 0, 0);
        } else {
            first += codes;
        }
        if bits >= CODES.len() {
            break;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What etcdctl 3.4 sends for `/tmp/grpc-auth.sock`, and a field behind it.
    const CODED: &[u8] = b"\x83\x86A\x8ea4\xd6\xc4\xd6VE\x87jg]\x07'__\x8b\x1du\xd0b\r&=LMed";

    fn frames(block: &[u8]) -> Vec<u8> {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(b"\0\0\0\x04\0\0\0\0\0");
        bytes.extend([0, 0, u8::try_from(block.len()).unwrap(), HEADERS, 4, 0, 0, 0, 1]);
        bytes.extend(block);
        bytes.extend(b"\0\0\x02\0\x01\0\0\0\x01/:");
        bytes
    }

    #[test]
    fn characters_are_counted() {
        assert_eq!(characters(&CODED[4..18]), "/tmp/grpc-auth.sock".len());
    }

    #[test]
    fn the_authority_is_overwritten_in_its_place_however_it_comes() {
        let sent = frames(CODED);
        let mut expected = sent.clone();
        assert_eq!(Scanner { passing: PREFACE_BYTES }.scan(&mut expected), sent.len());
        let differing = (0..sent.len()).filter(|at| sent[*at] != expected[*at]);
        let value = 24 + 9 + 9 + 4..24 + 9 + 9 + 18;
        assert!(differing.clone().count() > 0 && differing.clone().all(|at| value.contains(&at)));
        assert_eq!(characters(&expected[value]), "/tmp/grpc-auth.sock".len());
        for cut in 1..sent.len() {
            let (mut scanner, mut bytes) = (Scanner { passing: PREFACE_BYTES }, sent.clone());
            let seen = scanner.scan(&mut bytes[..cut]);
            scanner.scan(&mut bytes[seen..]);
            assert_eq!(bytes, expected, "cut at {cut}");
        }
    }

    #[test]
    fn plain_values_and_indices_are_passed_rightly() {
        let block = b"\x83\x41\x05/a/b/\x40\x01x\x01/\x3f\xe1\x1f\x0f\x20\x02//";
        let mut bytes = block.to_vec();
        assert_eq!(overwrite(&mut bytes, 0), Some(()));
        assert_eq!(bytes, b"\x83\x41\x0500000\x40\x01x\x01/\x3f\xe1\x1f\x0f\x20\x02//");
    }
}
