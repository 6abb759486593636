//! One agent's connection: frames in, frames out, never waiting.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::protocol::{Hello, Message, PROTOCOL_VERSION, Request};
use crate::wire::{self, Decoder, WireError};

/// Bytes waiting for an agent that doesn't read; more and it is dropped, to list again.
const OUT_BYTES_MAX: usize = 16 << 20;
const READ_BYTES: usize = 16 << 10;

#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    out: VecDeque<Frame>,
    out_bytes: usize,
    greeted: bool,
    pub(crate) subscribed: bool,
}

#[derive(Debug)]
struct Frame {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// A call as it came; a request that this monitor doesn't know is answered as such.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) id: u64,
    pub(crate) request: Result<Request, serde_json::Error>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// [`crate::protocol::Call`] with its request unread.
#[derive(Deserialize)]
struct Envelope {
    id: u64,
    request: Box<RawValue>,
    #[serde(default)]
    fds: u32,
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("closed by the agent")]
    Closed,
    #[error("the agent doesn't read")]
    Slow,
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> Result<Connection, Ended> {
        stream.set_nonblocking(true).map_err(WireError::Io)?;
        let mut connection = Connection {
            stream,
            decoder: Decoder::default(),
            out: VecDeque::new(),
            out_bytes: 0,
            greeted: false,
            subscribed: false,
        };
        let hello = Hello {
            version: PROTOCOL_VERSION,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            pid: i32::try_from(std::process::id()).unwrap_or(0),
        };
        connection.queue(wire::encode(&hello)?, Vec::new())?;
        Ok(connection)
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub(crate) fn wants_to_write(&self) -> bool {
        !self.out.is_empty()
    }

    /// Reads what is there; the calls that are whole.
    pub(crate) fn read(&mut self) -> Result<Vec<Received>, Ended> {
        let (mut buffer, mut fds) = ([0; READ_BYTES], Vec::new());
        match wire::receive(self.stream.as_fd(), &mut buffer, &mut fds) {
            Ok(0) => return Err(Ended::Closed),
            Ok(count) => self.decoder.push(&buffer[..count], fds),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Vec::new()),
            Err(error) => return Err(WireError::Io(error).into()),
        }
        let mut calls = Vec::new();
        if !self.greeted {
            let Some(hello) = self.decoder.next_frame::<Hello>()? else { return Ok(calls) };
            // A newer agent knows from our greeting what it talks to; it can at least upgrade us.
            if hello.version != PROTOCOL_VERSION {
                tracing::warn!(theirs = hello.version, ours = PROTOCOL_VERSION, "another protocol");
            }
            self.greeted = true;
        }
        while let Some(call) = self.decoder.next_frame::<Envelope>()? {
            let fds = self.decoder.take_fds(call.fds)?;
            let request = serde_json::from_str(call.request.get());
            calls.push(Received { id: call.id, request, fds });
        }
        Ok(calls)
    }

    pub(crate) fn send(&mut self, message: &Message, fds: Vec<OwnedFd>) -> Result<(), Ended> {
        self.queue(wire::encode(message)?, fds)
    }

    fn queue(&mut self, bytes: Vec<u8>, fds: Vec<OwnedFd>) -> Result<(), Ended> {
        self.out_bytes += bytes.len();
        if self.out_bytes > OUT_BYTES_MAX {
            return Err(Ended::Slow);
        }
        self.out.push_back(Frame { bytes, sent: 0, fds });
        self.flush()
    }

    /// Writes what the socket takes.
    pub(crate) fn flush(&mut self) -> Result<(), Ended> {
        while let Some(frame) = self.out.front_mut() {
            let fds: Vec<BorrowedFd<'_>> = frame.fds.iter().map(AsFd::as_fd).collect();
            match wire::send(self.stream.as_fd(), &frame.bytes[frame.sent..], &fds) {
                Ok(count) => {
                    frame.sent += count;
                    frame.fds.clear();
                    self.out_bytes -= count;
                    if frame.sent == frame.bytes.len() {
                        self.out.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(WireError::Io(error).into()),
            }
        }
        Ok(())
    }
}
