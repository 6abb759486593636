//! SPDY/3.1 framing, the server's side, as far as Kubernetes' clients use it: streams with headers,
//! data, half-close, reset, ping, goaway. No flow control, as in spdystream on the other side: a
//! slow reader holds the whole connection back, and every queue here is bounded. What a connection may
//! hold in memory does not grow with its streams.
//!
//! ```text
//! control  1 | version 3 (15) | type (16) | flags (8) | length (24) | data
//! data     0 | stream id (31)             | flags (8) | length (24) | data
//! headers  zlib stream of the connection, with SPDY's dictionary:
//!          count (32), then count times: length (32), name, length (32), value
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FLAG_FIN: u8 = 1;
/// Bits of a stream id.
const ID_MASK: u32 = 0x7fff_ffff;
/// Kubernetes' clients open streams with three short headers.
const CONTROL_BYTES_MAX: usize = 16 * 1024;
const HEADERS_BYTES_MAX: usize = 8 * 1024;
const HEADERS_MAX: u32 = 32;
/// Streams whose readers live.
const STREAMS_MAX: usize = 256;
/// Pieces of data waiting for the reader of one stream.
const STREAM_PIECES_MAX: usize = 16;
/// Bytes waiting for the readers of a connection's streams, all together.
const WAITING_BYTES_MAX: usize = STREAM_PIECES_MAX * DATA_BYTES_MAX;
/// Frames waiting to be written.
const WRITE_FRAMES_MAX: usize = 32;
/// Largest data frame sent, and largest piece of a received one.
pub(crate) const DATA_BYTES_MAX: usize = 32 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SpdyError {
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    #[error("a frame of {0} bytes is longer than allowed")]
    TooLong(usize),
    #[error("{0} headers are more than allowed")]
    TooManyHeaders(u32),
    #[error("SPDY version {0} instead of 3")]
    Version(u16),
    #[error("a malformed frame")]
    Malformed,
    #[error("more than {STREAMS_MAX} streams at once")]
    TooManyStreams,
}

/// A stream that the client opened.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: u32,
    pub(crate) headers: HashMap<String, String>,
    /// What the client sends; ends with its half-close.
    pub(crate) data: mpsc::Receiver<Piece>,
    _place: OwnedSemaphorePermit,
}

/// A part of what a stream carries; its room is free again once it is dropped.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl Stream {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_default()
    }
}

/// What is written to the client. A ping with an even id is ours; the answer to one has its odd id.
#[derive(Debug)]
pub(crate) enum Frame {
    Reply { id: u32 },
    Data { id: u32, bytes: Bytes, fin: bool },
    Ping { id: u32 },
}

/// The sending half, shared by all streams.
pub(crate) type Sender = mpsc::Sender<Frame>;

/// Begins to serve a connection: streams come out of the first, frames go into the second. Both
/// directions end together with the connection.
pub(crate) fn serve<S>(io: S) -> (mpsc::Receiver<Stream>, Sender)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reader, writer) = tokio::io::split(io);
    let (opened, streams) = mpsc::channel(STREAM_PIECES_MAX);
    let (sender, frames) = mpsc::channel(WRITE_FRAMES_MAX);
    let replies = sender.downgrade();
    tokio::spawn(async move {
        if let Err(error) = read(reader, opened, replies).await {
            tracing::debug!(error = %crate::connection::chain(&error), "a SPDY connection ended");
        }
    });
    tokio::spawn(async move {
        if let Err(error) = write(writer, frames).await {
            tracing::debug!(error = %crate::connection::chain(&error), "a SPDY connection ended");
        }
    });
    (streams, sender)
}

/// The client's streams as far as it has not closed them, and the bounds of all of them.
struct Streams {
    open: HashMap<u32, mpsc::Sender<Piece>>,
    places: Arc<Semaphore>,
    room: Arc<Semaphore>,
}

async fn read(
    mut io: impl AsyncRead + Unpin,
    opened: mpsc::Sender<Stream>,
    replies: mpsc::WeakSender<Frame>,
) -> Result<(), SpdyError> {
    let mut headers = Inflater::new();
    let mut streams = Streams {
        open: HashMap::new(),
        places: Arc::new(Semaphore::new(STREAMS_MAX)),
        room: Arc::new(Semaphore::new(WAITING_BYTES_MAX)),
    };
    loop {
        let mut head = [0u8; 8];
        match io.read_exact(&mut head).await {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            other => drop(other?),
        }
        let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = head[4];
        let length = usize::try_from(u32::from_be_bytes([0, head[5], head[6], head[7]]))
            .map_err(|_| SpdyError::Malformed)?;
        if word & !ID_MASK == 0 {
            streams.take_data(&mut io, (word, flags, length)).await?;
            continue;
        }
        if length > CONTROL_BYTES_MAX {
            return Err(SpdyError::TooLong(length));
        }
        let mut body = vec![0u8; length];
        io.read_exact(&mut body).await?;
        let version = u16::try_from((word >> 16) & 0x7fff).map_err(|_| SpdyError::Malformed)?;
        if version != VERSION {
            return Err(SpdyError::Version(version));
        }
        match u16::try_from(word & 0xffff).map_err(|_| SpdyError::Malformed)? {
            SYN_STREAM => {
                let id = be32(&body, 0)? & ID_MASK;
                let fields = headers.read(body.get(10..).ok_or(SpdyError::Malformed)?)?;
                let stream = streams.begin(id, flags, fields)?;
                reply(&replies, Frame::Reply { id }).await;
                if opened.send(stream).await.is_err() {
                    return Ok(());
                }
            }
            RST_STREAM => {
                streams.open.remove(&(be32(&body, 0)? & ID_MASK));
            }
            PING => {
                let id = be32(&body, 0)?;
                if id % 2 == 1 {
                    reply(&replies, Frame::Ping { id }).await;
                }
            }
            GOAWAY => return Ok(()),
            // SETTINGS, HEADERS, WINDOW_UPDATE and later ones change nothing here.
            _ => {}
        }
    }
}

impl Streams {
    fn begin(
        &mut self,
        id: u32,
        flags: u8,
        headers: HashMap<String, String>,
    ) -> Result<Stream, SpdyError> {
        self.open.retain(|_, stream| !stream.is_closed());
        let place =
            self.places.clone().try_acquire_owned().map_err(|_| SpdyError::TooManyStreams)?;
        let (sender, data) = mpsc::channel(STREAM_PIECES_MAX);
        if flags & FLAG_FIN == 0 {
            self.open.insert(id, sender);
        }
        Ok(Stream { id, headers, data, _place: place })
    }

    /// Passes a data frame on, piece by piece as there is room.
    async fn take_data(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
        (id, flags, mut left): (u32, u8, usize),
    ) -> Result<(), SpdyError> {
        while left > 0 {
            let mut bytes = vec![0u8; left.min(DATA_BYTES_MAX)];
            io.read_exact(&mut bytes).await?;
            left -= bytes.len();
            let Some(stream) = self.open.get(&id) else { continue };
            let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            // The semaphore is never closed.
            let Ok(room) = self.room.clone().acquire_many_owned(count).await else { continue };
            if stream.send(Piece { bytes: bytes.into(), _room: room }).await.is_err() {
                // Nobody reads this stream any more.
                self.open.remove(&id);
            }
        }
        if flags & FLAG_FIN != 0 {
            self.open.remove(&id);
        }
        Ok(())
    }
}

async fn reply(replies: &mpsc::WeakSender<Frame>, frame: Frame) {
    if let Some(sender) = replies.upgrade() {
        // A closed queue means that the connection ends.
        sender.send(frame).await.ok();
    }
}

async fn write(
    mut io: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Frame>,
) -> Result<(), SpdyError> {
    let mut headers = Deflater::new();
    while let Some(frame) = frames.recv().await {
        let bytes = render(&frame, &mut headers)?;
        io.write_all(&bytes).await?;
        if frames.is_empty() {
            io.flush().await?;
        }
    }
    io.shutdown().await?;
    Ok(())
}

fn render(frame: &Frame, headers: &mut Deflater) -> Result<Vec<u8>, SpdyError> {
    Ok(match frame {
        Frame::Reply { id } => {
            let mut body = id.to_be_bytes().to_vec();
            body.extend(headers.write(&[])?);
            control(SYN_REPLY, &body)
        }
        Frame::Ping { id } => control(PING, &id.to_be_bytes()),
        Frame::Data { id, bytes, fin } => {
            let mut out = id.to_be_bytes().to_vec();
            out.extend(flagged_length(if *fin { FLAG_FIN } else { 0 }, bytes.len()));
            out.extend_from_slice(bytes);
            out
        }
    })
}

fn flagged_length(flags: u8, length: usize) -> [u8; 4] {
    let [_, a, b, c] = u32::try_from(length).unwrap_or(0).to_be_bytes();
    [flags, a, b, c]
}

fn control(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut out = (0x8000 | VERSION).to_be_bytes().to_vec();
    out.extend(kind.to_be_bytes());
    out.extend(flagged_length(0, body.len()));
    out.extend_from_slice(body);
    out
}

fn be32(bytes: &[u8], at: usize) -> Result<u32, SpdyError> {
    let word = bytes.get(at..at + 4).ok_or(SpdyError::Malformed)?;
    Ok(u32::from_be_bytes([word[0], word[1], word[2], word[3]]))
}

/// SPDY/3's dictionary; its Adler-32 is 0xe3c6a7c2.
fn dictionary() -> Vec<u8> {
    const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding \
        accept-language accept-ranges age allow authorization cache-control connection \
        content-base content-encoding content-language content-length content-location \
        content-md5 content-range content-type date etag expect expires from host if-match \
        if-modified-since if-none-match if-range if-unmodified-since last-modified location \
        max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after \
        server te trailer transfer-encoding upgrade user-agent vary via warning \
        www-authenticate method get status";
    const MORE: [&str; 8] =
        ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"];
    const TAIL: &str = "10010120120220520630030230330430530630740240540640740840941041141241341\
        4415416417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently\
        400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not \
        Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec \
        00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,\
        image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivate\
        max-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut dictionary = Vec::new();
    for word in WORDS.split_whitespace().chain(MORE) {
        dictionary.extend(u32::try_from(word.len()).unwrap_or(0).to_be_bytes());
        dictionary.extend_from_slice(word.as_bytes());
    }
    dictionary.extend_from_slice(TAIL.as_bytes());
    dictionary
}

/// The client's header stream.
struct Inflater {
    zlib: Decompress,
}

impl Inflater {
    fn new() -> Inflater {
        Inflater { zlib: Decompress::new(true) }
    }

    fn read(&mut self, mut block: &[u8]) -> Result<HashMap<String, String>, SpdyError> {
        let mut plain = Vec::with_capacity(1024);
        while !block.is_empty() {
            if plain.len() > HEADERS_BYTES_MAX {
                return Err(SpdyError::TooLong(plain.len()));
            }
            plain.reserve(1024);
            let before = self.zlib.total_in();
            let length = plain.len();
            let result = self.zlib.decompress_vec(block, &mut plain, FlushDecompress::Sync);
            let used =
                usize::try_from(self.zlib.total_in() - before).map_err(|_| SpdyError::Malformed)?;
            block = block.get(used..).ok_or(SpdyError::Malformed)?;
            match result {
                Ok(_) if used == 0 && plain.len() == length => return Err(SpdyError::Malformed),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.zlib.set_dictionary(&dictionary()).map_err(|_| SpdyError::Malformed)?;
                }
                Err(_) => return Err(SpdyError::Malformed),
            }
        }
        self.drain(&mut plain)?;
        parse_headers(&plain)
    }

    /// All input is taken in; some output may still be inside.
    fn drain(&mut self, plain: &mut Vec<u8>) -> Result<(), SpdyError> {
        loop {
            let length = plain.len();
            plain.reserve(1024);
            if self.zlib.decompress_vec(&[], plain, FlushDecompress::Sync).is_err()
                || plain.len() == length
            {
                return Ok(());
            }
            if plain.len() > HEADERS_BYTES_MAX {
                return Err(SpdyError::TooLong(plain.len()));
            }
        }
    }
}

fn parse_headers(plain: &[u8]) -> Result<HashMap<String, String>, SpdyError> {
    let mut at = 4;
    let mut next = || -> Result<String, SpdyError> {
        let length = usize::try_from(be32(plain, at)?).map_err(|_| SpdyError::Malformed)?;
        let end = at.checked_add(4 + length).ok_or(SpdyError::Malformed)?;
        let text = plain.get(at + 4..end).ok_or(SpdyError::Malformed)?;
        at = end;
        Ok(String::from_utf8_lossy(text).into_owned())
    };
    let count = be32(plain, 0)?;
    if count > HEADERS_MAX {
        return Err(SpdyError::TooManyHeaders(count));
    }
    let mut headers = HashMap::new();
    for _ in 0..count {
        let name = next()?.to_ascii_lowercase();
        headers.insert(name, next()?);
    }
    Ok(headers)
}

/// Our header stream.
struct Deflater {
    zlib: Compress,
    begun: bool,
}

impl Deflater {
    fn new() -> Deflater {
        Deflater { zlib: Compress::new(Compression::fast(), true), begun: false }
    }

    fn write(&mut self, headers: &[(&str, &str)]) -> Result<Vec<u8>, SpdyError> {
        if !std::mem::replace(&mut self.begun, true) {
            self.zlib.set_dictionary(&dictionary()).map_err(|_| SpdyError::Malformed)?;
        }
        let mut plain = u32::try_from(headers.len()).unwrap_or(0).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend(u32::try_from(text.len()).unwrap_or(0).to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        // Room for what doesn't compress: nine bits for a byte, and the flush.
        let mut block = Vec::with_capacity(plain.len() * 2 + 128);
        self.zlib
            .compress_vec(&plain, &mut block, FlushCompress::Sync)
            .map_err(|_| SpdyError::Malformed)?;
        Ok(block)
    }
}

#[cfg(test)]
#[path = "spdy_tests.rs"]
mod tests;
