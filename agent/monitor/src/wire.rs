//! Frames and file descriptors on a Unix stream, as bytes: shared by monitor and agent.
//!
//! Owns the framing; it must not know what a message means, nor wait.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::protocol::{FRAME_BYTES_MAX, FRAME_FDS_MAX};

const LENGTH_BYTES: usize = 4;

/// Why a connection can't go on.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The peer announces a frame above [`FRAME_BYTES_MAX`], or we would send one.
    #[error("frame of {0} bytes is longer than {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// A frame is not what it should be.
    #[error("malformed frame")]
    Malformed(#[from] serde_json::Error),
    /// A frame announces more file descriptors than came.
    #[error("{0} file descriptors are missing")]
    MissingFds(usize),
    /// The socket failed.
    #[error("socket")]
    Io(#[from] io::Error),
}

/// A value as one frame.
///
/// # Errors
/// Above the longest frame.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, WireError> {
    let mut frame = vec![0; LENGTH_BYTES];
    serde_json::to_writer(&mut frame, value)?;
    let length = frame.len() - LENGTH_BYTES;
    match u32::try_from(length) {
        Ok(prefix) if length <= FRAME_BYTES_MAX => {
            frame[..LENGTH_BYTES].copy_from_slice(&prefix.to_le_bytes());
            Ok(frame)
        }
        _ => Err(WireError::TooLong(length)),
    }
}

/// Puts frames together again.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Decoder {
    /// Takes what was read.
    pub fn push(&mut self, bytes: &[u8], fds: impl IntoIterator<Item = OwnedFd>) {
        self.buffer.extend_from_slice(bytes);
        self.fds.extend(fds);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// When the stream is not ours or of another time.
    pub fn next_frame<T: DeserializeOwned>(&mut self) -> Result<Option<T>, WireError> {
        let Some(prefix) = self.buffer.first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(WireError::TooLong(length));
        }
        let Some(body) = self.buffer.get(LENGTH_BYTES..LENGTH_BYTES + length) else {
            return Ok(None);
        };
        let value = serde_json::from_slice(body)?;
        self.buffer.drain(..LENGTH_BYTES + length);
        if self.buffer.is_empty() {
            self.buffer.shrink_to(LENGTH_BYTES);
        }
        Ok(Some(value))
    }

    /// The descriptors that rode on the frame just taken.
    ///
    /// # Errors
    /// When fewer came than the frame said.
    pub fn take_fds(&mut self, count: u32) -> Result<Vec<OwnedFd>, WireError> {
        let count = count as usize;
        let missing = count.saturating_sub(self.fds.len());
        if missing > 0 || count > FRAME_FDS_MAX {
            return Err(WireError::MissingFds(missing));
        }
        Ok(self.fds.drain(..count).collect())
    }
}

/// Sends as much as the socket takes; the descriptors go with the first byte.
///
/// # Errors
/// The socket's, `WouldBlock` among them.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FRAME_FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(sent)
}

/// Receives what is there: bytes (0 at the end) and descriptors.
///
/// # Errors
/// The socket's, `WouldBlock` among them; `InvalidData` when descriptors were cut off.
pub fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FRAME_FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message =
        recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = ancillary {
            fds.extend(received);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "descriptors were cut off"));
    }
    Ok(message.bytes)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{Call, Request};

    proptest! {
        #[test]
        fn frames_survive_any_cut(ids in proptest::collection::vec(any::<u64>(), 1..8), cut in 1usize..40) {
            let mut stream = Vec::new();
            for id in &ids {
                stream.extend(encode(&Call { id: *id, request: Request::List, fds: 0 }).unwrap());
            }
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in stream.chunks(cut) {
                decoder.push(piece, []);
                while let Some(call) = decoder.next_frame::<Call>().unwrap() {
                    seen.push(call.id);
                }
            }
            prop_assert_eq!(seen, ids);
        }
    }

    #[test]
    fn descriptors_ride_along() {
        let (left, right) = UnixStream::pair().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let frame = encode(&Call { id: 7, request: Request::List, fds: 1 }).unwrap();
        assert_eq!(send(left.as_fd(), &frame, &[writer.as_fd()]).unwrap(), frame.len());
        drop(writer);
        let (mut buffer, mut fds) = ([0; 512], Vec::new());
        let count = receive(right.as_fd(), &mut buffer, &mut fds).unwrap();
        let mut decoder = Decoder::default();
        decoder.push(&buffer[..count], fds);
        let call: Call = decoder.next_frame().unwrap().unwrap();
        let mut fds = decoder.take_fds(call.fds).unwrap();
        assert_eq!(rustix::io::write(fds.remove(0), b"x").unwrap(), 1);
        let mut byte = [0; 1];
        assert_eq!(rustix::io::read(&reader, &mut byte).unwrap(), 1);
        assert!(decoder.take_fds(1).is_err());
    }

    #[test]
    fn a_frame_too_long_is_refused() {
        let mut decoder = Decoder::default();
        decoder.push(&u32::MAX.to_le_bytes(), []);
        assert!(matches!(decoder.next_frame::<Call>(), Err(WireError::TooLong(_))));
    }
}
