//! Entries of a tar stream, none of which may take more memory than a bound.
//!
//! The tar crate keeps what describes an entry (long names, PAX records, maps of holes) whole, as long
//! as the stream says it is. Here the stream ends with an error when too much comes between the end of
//! one entry and the beginning of the next.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use tar::{Archive, Entry, EntryType};

/// What may describe one entry: a name, a link's target and PAX records, each of up to 1 MiB as in Go's
/// `archive/tar`, and their headers.
const DESCRIPTION_BYTES_MAX: u64 = (3 << 20) + (64 << 10);
const BLOCK_BYTES: u64 = 512;

/// A tar stream.
pub(super) struct Tar<R: Read> {
    archive: Archive<Metered<R>>,
    meter: Rc<Meter>,
}

/// How far a stream was read and may be.
#[derive(Debug)]
struct Meter {
    position: Cell<u64>,
    end: Cell<u64>,
}

/// A stream that fails at its meter's end.
pub(super) struct Metered<R> {
    inner: R,
    meter: Rc<Meter>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.meter.end.get().saturating_sub(self.meter.position.get());
        if left == 0 && !buffer.is_empty() {
            let reason = "an entry's name, link or attributes are too long";
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..wanted])?;
        self.meter.position.set(self.meter.position.get() + count as u64);
        Ok(count)
    }
}

impl<R: Read> Tar<R> {
    pub(super) fn new(source: R) -> Tar<R> {
        let meter = Rc::new(Meter { position: Cell::new(0), end: Cell::new(u64::MAX) });
        let archive = Archive::new(Metered { inner: source, meter: Rc::clone(&meter) });
        Tar { archive, meter }
    }

    pub(super) fn entries(&mut self) -> io::Result<Entries<'_, R>> {
        Ok(Entries { inner: self.archive.entries()?, meter: &self.meter, body_end: 0 })
    }
}

/// See [`Tar::entries`].
pub(super) struct Entries<'a, R: Read> {
    inner: tar::Entries<'a, Metered<R>>,
    meter: &'a Meter,
    /// Of the entry before, whose body may be left to skip.
    body_end: u64,
}

impl<'a, R: Read> Iterator for Entries<'a, R> {
    type Item = io::Result<Entry<'a, Metered<R>>>;

    fn next(&mut self) -> Option<Self::Item> {
        let begin = self.body_end.max(self.meter.position.get());
        self.meter.end.set(begin.saturating_add(DESCRIPTION_BYTES_MAX));
        let next = self.inner.next();
        self.meter.end.set(u64::MAX);
        if let Some(Ok(entry)) = &next {
            // A sparse entry's size is that of the file, holes included.
            let size = match entry.header().entry_type() {
                EntryType::GNUSparse => entry.header().entry_size().unwrap_or(0),
                _ => entry.size(),
            };
            let end = entry.raw_file_position().saturating_add(size);
            self.body_end = end.checked_next_multiple_of(BLOCK_BYTES).unwrap_or(u64::MAX);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: EntryType, name: &str, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        header
    }

    /// Sizes of the entries of an archive of one described file of `size` bytes and a last one.
    fn sizes(kind: EntryType, description: u64, size: u64) -> io::Result<Vec<u64>> {
        let padded = |size: u64| io::repeat(b'n').take(size.next_multiple_of(BLOCK_BYTES));
        let first = header(kind, "././@LongLink", description);
        let file = header(EntryType::Regular, "file", size);
        let last = header(EntryType::Regular, "last", 0);
        let stream = (first.as_bytes().chain(padded(description)))
            .chain(file.as_bytes().chain(padded(size)))
            .chain(last.as_bytes().chain(io::repeat(0).take(2 * BLOCK_BYTES)));
        let mut tar = Tar::new(stream);
        tar.entries()?.map(|entry| Ok(entry?.size())).collect()
    }

    #[test]
    fn what_describes_an_entry_is_bounded_its_body_is_not() {
        use EntryType::{GNULongLink, GNULongName, XHeader};
        let body = 2 * DESCRIPTION_BYTES_MAX + 1;
        for kind in [GNULongName, GNULongLink, XHeader] {
            assert_eq!(sizes(kind, 4096, body).unwrap(), [body, 0], "{kind:?}");
            let error = sizes(kind, 1 << 40, body).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{kind:?}: {error}");
        }
    }
}
