//! Layers as they come (gzip, zstd, plain), told apart by their first bytes, with digests of both
//! what is read and what comes out.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ring::digest::{Context, SHA256};
use ruzstd::decoding::StreamingDecoder;

use super::reference::Digest;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const BUFFER_BYTES: usize = 64 << 10;
/// Memory a zstd layer may ask for; compressors use 8 MiB unless told to go "ultra".
const WINDOW_BYTES_MAX: u64 = 64 << 20;

/// Hashes what passes through.
pub(crate) struct Hashing<R> {
    inner: R,
    context: Context,
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(inner: R) -> Hashing<R> {
        Hashing { inner, context: Context::new(&SHA256) }
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::from_hash(self.context.clone().finish().as_ref())
    }

    pub(crate) fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.context.update(&buffer[..count]);
        Ok(count)
    }
}

/// Decompresses one gzip, several in a row, zstd frames, or nothing.
pub(crate) enum Decompressor<R: Read> {
    Plain(BufReader<R>),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(Box<ZstdFrames<R>>),
}

impl<R: Read> Decompressor<R> {
    pub(crate) fn new(source: R) -> io::Result<Decompressor<R>> {
        let mut source = BufReader::with_capacity(BUFFER_BYTES, source);
        // A first read may bring less than four bytes; two tell gzip, and a tar's first block is 512.
        let start = source.fill_buf()?;
        if start.starts_with(GZIP) {
            return Ok(Decompressor::Gzip(Box::new(MultiGzDecoder::new(source))));
        }
        if start.starts_with(ZSTD) {
            let decoder = StreamingDecoder::new_with_max_window_size(source, WINDOW_BYTES_MAX)
                .map_err(io::Error::other)?;
            return Ok(Decompressor::Zstd(Box::new(ZstdFrames { decoder: Some(decoder) })));
        }
        Ok(Decompressor::Plain(source))
    }

    /// The source, when all has been read.
    pub(crate) fn into_source(self) -> Option<R> {
        match self {
            Decompressor::Plain(source) => Some(source.into_inner()),
            Decompressor::Gzip(decoder) => Some(decoder.into_inner().into_inner()),
            Decompressor::Zstd(frames) => {
                frames.decoder.map(|decoder| decoder.into_inner().into_inner())
            }
        }
    }
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decompressor::Plain(source) => source.read(buffer),
            Decompressor::Gzip(decoder) => decoder.read(buffer),
            Decompressor::Zstd(frames) => frames.read(buffer),
        }
    }
}

type Decoder<R> = StreamingDecoder<BufReader<R>, ruzstd::decoding::FrameDecoder>;

/// Zstd files may be several frames in a row.
pub(crate) struct ZstdFrames<R: Read> {
    decoder: Option<Decoder<R>>,
}

impl<R: Read> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(decoder) = &mut self.decoder else { return Ok(0) };
            let count = decoder.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            if decoder.get_mut().fill_buf()?.is_empty() {
                return Ok(0);
            }
            if let Some(decoder) = self.decoder.take() {
                let (source, frames) = decoder.into_parts();
                self.decoder = Some(
                    StreamingDecoder::new_with_decoder(source, frames).map_err(io::Error::other)?,
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn through(bytes: &[u8]) -> (Vec<u8>, Digest) {
        let mut decompressor = Decompressor::new(Hashing::new(bytes)).unwrap();
        let mut out = Vec::new();
        decompressor.read_to_end(&mut out).unwrap();
        (out, decompressor.into_source().unwrap().digest())
    }

    #[test]
    fn three_formats_and_several_members() {
        let text = b"layer ".repeat(50_000);
        let gzip = |text: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        };
        let zstd = |text: &[u8]| {
            ruzstd::encoding::compress_to_vec(text, ruzstd::encoding::CompressionLevel::Fastest)
        };
        let twice = [text.clone(), text.clone()].concat();
        for (compressed, plain) in [
            (text.clone(), &text),
            (gzip(&text), &text),
            (zstd(&text), &text),
            ([gzip(&text), gzip(&text)].concat(), &twice),
            ([zstd(&text), zstd(&text)].concat(), &twice),
        ] {
            let (out, digest) = through(&compressed);
            assert!(out == *plain);
            assert_eq!(digest, Digest::of(&compressed));
        }
        assert!(through(b"").0.is_empty());
    }
}
