//! Container logs in the CRI format: `<RFC 3339 time> <stdout|stderr> <F|P> <text>`.
//!
//! Owns the cutting into lines, the file and its rotation. A full disk loses lines, never the
//! container; must not block on anything but the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::clock;

/// Longest text on one line; a longer one is cut into partial lines, as containerd does.
pub(crate) const LINE_BYTES_MAX: usize = 16 << 10;

/// As containerd's and CRI-O's: what containers print may be secret.
const LOG_MODE: u32 = 0o640;

/// Which output a line is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn tag(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Bytes of one output that are no whole line yet.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: Stream,
    rest: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(stream: Stream) -> Lines {
        Lines { stream, rest: Vec::new() }
    }

    /// Appends the log lines that this chunk completes to `out`.
    pub(crate) fn push(&mut self, chunk: &[u8], time: &str, out: &mut Vec<u8>) {
        let mut pieces = chunk.split(|byte| *byte == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            let is_whole = pieces.peek().is_some();
            self.rest.extend_from_slice(piece);
            let mut start = 0;
            while self.rest.len() - start > LINE_BYTES_MAX {
                let end = start + LINE_BYTES_MAX;
                line(out, time, (self.stream, "P"), &self.rest[start..end]);
                start = end;
            }
            if is_whole {
                line(out, time, (self.stream, "F"), &self.rest[start..]);
                self.rest.clear();
            } else {
                self.rest.drain(..start);
            }
        }
    }

    /// What was left when the output ended.
    pub(crate) fn finish(&mut self, time: &str, out: &mut Vec<u8>) {
        if !self.rest.is_empty() {
            line(out, time, (self.stream, "F"), &self.rest);
            self.rest = Vec::new();
        }
    }
}

fn line(out: &mut Vec<u8>, time: &str, (stream, tag): (Stream, &str), text: &[u8]) {
    for part in [time, " ", stream.tag(), " ", tag, " "] {
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// Bounds of a log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) bytes_max: u64,
    pub(crate) files_max: usize,
}

/// The file of one container.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
    bounds: Bounds,
    failing: bool,
}

impl LogFile {
    pub(crate) fn open(path: &Path, bounds: Bounds) -> io::Result<LogFile> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut log =
            LogFile { path: path.to_owned(), file: None, bytes: 0, bounds, failing: false };
        log.reopen()?;
        Ok(log)
    }

    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        let file = OpenOptions::new().create(true).append(true).mode(LOG_MODE).open(&self.path)?;
        self.bytes = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Writes whole lines, rotating where the bound falls between them.
    pub(crate) fn write(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        match self.try_write(lines) {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::warn!(path = %self.path.display(), %error, "log lines are lost");
            }
            Err(_) => {}
        }
    }

    fn try_write(&mut self, mut lines: &[u8]) -> io::Result<()> {
        while !lines.is_empty() {
            let room = self.bounds.bytes_max.saturating_sub(self.bytes);
            let fitting = whole_lines(lines, usize::try_from(room).unwrap_or(usize::MAX));
            if fitting == 0 && self.bytes > 0 {
                self.rotate()?;
                continue;
            }
            // A line longer than a file gets one of its own.
            let count = if fitting == 0 { first_line(lines) } else { fitting };
            if self.file.is_none() {
                self.reopen()?;
            }
            if let Some(file) = &mut self.file {
                file.write_all(&lines[..count])?;
            }
            self.bytes += count as u64;
            lines = &lines[count..];
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut target = rotated(&self.path, &clock::compact(clock::now()));
        let mut number = 1;
        while target.exists() {
            target = rotated(&self.path, &format!("{}.{number}", clock::compact(clock::now())));
            number += 1;
        }
        match fs::rename(&self.path, target) {
            // Somebody removed the file; a new one takes its place.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        self.reopen()?;
        prune(&self.path, self.bounds.files_max)
    }
}

/// Length of the lines at the beginning that fit.
fn whole_lines(lines: &[u8], room: usize) -> usize {
    let window = &lines[..lines.len().min(room)];
    window.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
}

fn first_line(lines: &[u8]) -> usize {
    lines.iter().position(|byte| *byte == b'\n').map_or(lines.len(), |at| at + 1)
}

fn rotated(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

fn prune(path: &Path, files_max: usize) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut old: Vec<(std::time::SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            old.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    old.sort();
    let surplus = (old.len() + 1).saturating_sub(files_max.max(1));
    for (_, path) in old.into_iter().take(surplus) {
        fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_partial_lines_and_the_rest() {
        let mut lines = Lines::new(Stream::Stdout);
        let mut out = Vec::new();
        lines.push(b"a\nb", "T", &mut out);
        lines.push(b"c\n\nd", "T", &mut out);
        lines.finish("T", &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "T stdout F a\nT stdout F bc\nT stdout F \nT stdout F d\n"
        );
    }

    proptest! {
        #[test]
        fn nothing_is_lost_however_it_is_cut(text in "[ab\n]{0,200}", cut in 1usize..50, long in 0usize..3) {
            let text = format!("{}{text}", "x".repeat(long * (LINE_BYTES_MAX + 1)));
            let (mut lines, mut out) = (Lines::new(Stream::Stderr), Vec::new());
            for chunk in text.as_bytes().chunks(cut * 1000) {
                lines.push(chunk, "T", &mut out);
            }
            lines.finish("T", &mut out);
            let mut joined = String::new();
            for line in String::from_utf8(out).unwrap().lines() {
                let text = line.strip_prefix("T stderr ").unwrap();
                prop_assert!(text.len() <= LINE_BYTES_MAX + 2);
                joined.push_str(&text[2..]);
                if text.starts_with('F') {
                    joined.push('\n');
                }
            }
            prop_assert_eq!(joined.trim_end_matches('\n'), text.trim_end_matches('\n'));
        }
    }

    #[test]
    fn rotates_within_its_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod/c/0.log");
        let mut log = LogFile::open(&path, Bounds { bytes_max: 100, files_max: 3 }).unwrap();
        for _ in 0..10 {
            log.write(&b"0123456789012345678901234567890123456789\n".repeat(5));
        }
        let files: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(files.len(), 3);
        for file in files {
            assert!(file.unwrap().metadata().unwrap().len() <= 100);
        }
    }

    #[test]
    fn a_log_that_was_removed_begins_anew_at_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(&path, Bounds { bytes_max: 20, files_max: 2 }).unwrap();
        log.write(b"0123456789012345678\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, LOG_MODE);
        fs::remove_file(&path).unwrap();
        log.write(b"next\n");
        assert_eq!(fs::read(&path).unwrap(), b"next\n");
    }
}
