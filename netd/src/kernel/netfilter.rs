//! A netlink socket to the netfilter subsystems, and the attributes of its messages.
//!
//! Requests are answered before `send` returns to the caller, so answers are read without waiting. Nothing here trusts lengths in what
//! the kernel sends: a short message is an error, never a panic.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendmsg,
    setsockopt, socket, sockopt,
};

/// Receive buffer: acknowledgements of a big batch, one per message.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// Room beside a batch in the send buffer, for the kernel's own accounting.
const SEND_BUFFER_SLACK: usize = 64 << 10;
/// Longest datagram that the kernel makes of a dump.
const DATAGRAM_BYTES: usize = 64 << 10;
/// `struct nlmsghdr` and `struct nfgenmsg`.
const HEADER_BYTES: usize = 16;
const GENERIC_BYTES: usize = 4;

/// Type of a message that ends a dump.
const DONE: u16 = 3;
/// Type of an acknowledgement or error.
const ERROR: u16 = 2;
/// Attribute types without the nested and byte-order bits.
const TYPE_MASK: u16 = 0x3fff;

/// One message: its type without the subsystem, and its attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) attributes: Vec<u8>,
}

/// An answer to one request of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) sequence: u32,
    /// Zero: done.
    pub(crate) errno: i32,
}

/// The socket.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    pub(crate) fn open() -> io::Result<Socket> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // Without the right to force it, the limit for everybody holds.
        if setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
            setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES)?;
        }
        Ok(Socket { fd, sequence: 1 })
    }

    /// Sends all parts as one datagram: a batch that comes in pieces is never begun.
    pub(crate) fn send_batch(&self, parts: &[IoSlice<'_>]) -> io::Result<Vec<Answer>> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let buffer = 2 * bytes + SEND_BUFFER_SLACK;
        if setsockopt(&self.fd, sockopt::SndBufForce, &buffer).is_err() {
            setsockopt(&self.fd, sockopt::SndBuf, &buffer)?;
        }
        let kernel = NetlinkAddr::new(0, 0);
        let sent = sendmsg(self.fd.as_raw_fd(), parts, &[], MsgFlags::empty(), Some(&kernel))?;
        if sent != bytes {
            return Err(io::Error::other(format!("{sent} of {bytes} bytes sent")));
        }
        let mut answers = Vec::new();
        while let Some(datagram) = self.receive()? {
            for (kind, sequence, payload) in messages(&datagram) {
                if kind == ERROR {
                    answers.push(Answer { sequence, errno: errno(payload)? });
                }
            }
        }
        Ok(answers)
    }

    /// Asks for a list; `attributes` narrow it.
    pub(crate) fn dump(
        &mut self,
        subsystem: u8,
        message: u8,
        family: u8,
        attributes: &[u8],
    ) -> io::Result<Vec<Message>> {
        const FLAGS: u16 = 0x301; // NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
        self.request(subsystem, message, (family, FLAGS), attributes)?;
        let mut found = Vec::new();
        loop {
            let Some(datagram) = self.receive()? else {
                return Err(io::Error::other("the list ended early"));
            };
            for (kind, sequence, payload) in messages(&datagram) {
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    DONE => return Ok(found),
                    ERROR => match errno(payload)? {
                        0 => {}
                        errno => return Err(io::Error::from_raw_os_error(errno)),
                    },
                    kind => found.push(Message {
                        kind: kind & 0xff,
                        attributes: payload.get(GENERIC_BYTES..).unwrap_or_default().to_vec(),
                    }),
                }
            }
        }
    }

    /// Sends one request and returns what comes back first besides acknowledgements.
    pub(crate) fn ask(
        &mut self,
        subsystem: u8,
        message: u8,
        family: u8,
        attributes: &[u8],
    ) -> io::Result<Option<Message>> {
        const FLAGS: u16 = 0x5; // NLM_F_REQUEST | NLM_F_ACK
        self.request(subsystem, message, (family, FLAGS), attributes)?;
        let mut found = None;
        while let Some(datagram) = self.receive()? {
            for (kind, sequence, payload) in messages(&datagram) {
                if sequence != self.sequence {
                    continue;
                }
                if kind == ERROR {
                    match errno(payload)? {
                        0 => {}
                        errno => return Err(io::Error::from_raw_os_error(errno)),
                    }
                } else if found.is_none() {
                    let attributes = payload.get(GENERIC_BYTES..).unwrap_or_default().to_vec();
                    found = Some(Message { kind: kind & 0xff, attributes });
                }
            }
        }
        Ok(found)
    }

    fn request(
        &mut self,
        subsystem: u8,
        message: u8,
        (family, flags): (u8, u16),
        attributes: &[u8],
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let length = u32::try_from(HEADER_BYTES + GENERIC_BYTES + attributes.len())
            .map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + GENERIC_BYTES + attributes.len());
        bytes.extend(length.to_ne_bytes());
        bytes.extend((u16::from(subsystem) << 8 | u16::from(message)).to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend([family, 0, 0, 0]);
        bytes.extend(attributes);
        let kernel = NetlinkAddr::new(0, 0);
        let parts = [IoSlice::new(&bytes)];
        sendmsg(self.fd.as_raw_fd(), &parts, &[], MsgFlags::empty(), Some(&kernel))?;
        Ok(())
    }

    fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; DATAGRAM_BYTES];
        match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => {
                buffer.truncate(length);
                Ok(Some(buffer))
            }
            Err(nix::Error::EAGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn errno(payload: &[u8]) -> io::Result<i32> {
    let four = payload.first_chunk::<4>().ok_or_else(|| io::Error::other("short netlink error"))?;
    Ok(-i32::from_ne_bytes(*four))
}

/// The messages of a datagram: type, sequence number, payload.
fn messages(datagram: &[u8]) -> Vec<(u16, u32, &[u8])> {
    let mut found = Vec::new();
    let mut rest = datagram;
    while let Some(header) = rest.first_chunk::<HEADER_BYTES>() {
        let [l0, l1, l2, l3, t0, t1, _, _, s0, s1, s2, s3, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let Some(payload) = rest.get(HEADER_BYTES..length) else { break };
        found.push((u16::from_ne_bytes([t0, t1]), u32::from_ne_bytes([s0, s1, s2, s3]), payload));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// Walks attributes: type and value.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let [l0, l1, t0, t1] = *rest.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([t0, t1]) & TYPE_MASK, value))
    })
}

/// The value of an attribute.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Appends an attribute.
pub(crate) fn push_attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A string attribute's text, without the kernel's closing zero.
pub(crate) fn text(value: &[u8]) -> &str {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    std::str::from_utf8(value.get(..end).unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for (_, _, payload) in messages(&bytes) {
                drop(errno(payload));
            }
            prop_assert!(attributes(&bytes).count() <= bytes.len());
        }

        #[test]
        fn attributes_come_back(values in prop::collection::vec((0u16..0x3fff, prop::collection::vec(any::<u8>(), 0..9)), 0..6)) {
            let mut bytes = Vec::new();
            for (kind, value) in &values {
                push_attribute(&mut bytes, *kind, value);
            }
            let back: Vec<_> = attributes(&bytes).map(|(kind, value)| (kind, value.to_vec())).collect();
            prop_assert_eq!(back, values);
        }
    }
}
