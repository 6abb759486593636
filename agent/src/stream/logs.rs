//! Container logs in the CRI format: the tail, the time range, following across rotations. It reads
//! files; which file is somebody else's decision.
//!
//! A line is `<RFC 3339 time> stdout|stderr F|P <text>`; `P` is a part of a longer line.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::mpsc;

/// How often a followed log is looked at; a log is read by people.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);
const READ_BYTES: usize = 64 * 1024;
const TAIL_BLOCK_BYTES: u64 = 64 * 1024;
/// The longest line kept together; the writer cuts at 16 KiB.
const LINE_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Source {
    #[default]
    All,
    Stdout,
    Stderr,
}

/// kubelet's query, read.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Options {
    pub(crate) follow: bool,
    pub(crate) tail_lines: Option<usize>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) timestamps: bool,
    pub(crate) limit_bytes: Option<usize>,
    pub(crate) source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line<'a> {
    time: &'a str,
    stderr: bool,
    partial: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stderr = parts.next()? == b"stderr";
    let partial = parts.next()?.starts_with(b"P");
    Some(Line { time, stderr, partial, text: parts.next().unwrap_or_default() })
}

/// Turns raw lines into what the client sees, up to its limit.
struct Renderer {
    options: Options,
    left: usize,
    /// The line before was a part: the next one goes on with it.
    open: bool,
}

impl Renderer {
    fn new(options: Options) -> Renderer {
        let left = options.limit_bytes.unwrap_or(usize::MAX);
        Renderer { options, left, open: false }
    }

    fn add(&mut self, raw: &[u8], out: &mut Vec<u8>) {
        let Some(line) = parse(raw) else { return };
        let wanted = match self.options.source {
            Source::All => true,
            Source::Stdout => !line.stderr,
            Source::Stderr => line.stderr,
        };
        let late_enough = self
            .options
            .since
            .is_none_or(|since| line.time.parse::<Timestamp>().is_ok_and(|time| time >= since));
        if !wanted || !late_enough {
            return;
        }
        let begin = out.len();
        if self.options.timestamps && !self.open {
            out.extend_from_slice(line.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line.text);
        if !line.partial {
            out.push(b'\n');
        }
        self.open = line.partial;
        let added = out.len() - begin;
        if added > self.left {
            out.truncate(begin + self.left);
        }
        self.left = self.left.saturating_sub(added);
    }
}

/// Sends the log to `out`; follows while `running` says that more may come.
pub(crate) async fn read(
    path: PathBuf,
    options: Options,
    out: mpsc::Sender<Bytes>,
    running: impl Fn() -> bool,
) -> std::io::Result<()> {
    let mut file = std::fs::File::open(&path)?;
    let start = match options.tail_lines {
        Some(lines) => tail_offset(&mut file, lines)?,
        None => 0,
    };
    file.seek(SeekFrom::Start(start))?;
    let follow = options.follow;
    let mut renderer = Renderer::new(options);
    let mut rest = Vec::new();
    loop {
        // Asked before reading, so that the last lines of one that has just ended are not missed.
        let more = follow && running();
        if !drain(&mut file, &mut rest, &mut renderer, &out).await? {
            return Ok(());
        }
        if rotated(&file, &path) {
            // What was written to the old file until it was moved has been read above; once more,
            // since the move may have come in between.
            drain(&mut file, &mut rest, &mut renderer, &out).await?;
            file = std::fs::File::open(&path)?;
            continue;
        }
        if !more {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(FOLLOW_INTERVAL) => {}
            () = out.closed() => return Ok(()),
        }
    }
}

/// Sends all that the file has now. False when the client has enough or has gone.
async fn drain(
    file: &mut std::fs::File,
    rest: &mut Vec<u8>,
    renderer: &mut Renderer,
    out: &mpsc::Sender<Bytes>,
) -> std::io::Result<bool> {
    let mut buffer = vec![0u8; READ_BYTES];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(true);
        }
        rest.extend_from_slice(&buffer[..count]);
        let mut rendered = Vec::new();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            renderer.add(&line[..end], &mut rendered);
        }
        if rest.len() > LINE_BYTES_MAX {
            rest.clear();
        }
        if !rendered.is_empty() && out.send(rendered.into()).await.is_err() {
            return Ok(false);
        }
        if renderer.left == 0 {
            return Ok(false);
        }
    }
}

fn rotated(file: &std::fs::File, path: &Path) -> bool {
    let id = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(there)) => id(open) != id(there),
        _ => false,
    }
}

/// Where the last `lines` lines begin.
fn tail_offset(file: &mut std::fs::File, lines: usize) -> std::io::Result<u64> {
    let mut end = file.metadata()?.len();
    if lines == 0 {
        return Ok(end);
    }
    let mut left = lines;
    let mut last = true;
    while end > 0 {
        let begin = end.saturating_sub(TAIL_BLOCK_BYTES);
        let mut block = vec![0u8; usize::try_from(end - begin).unwrap_or(0)];
        file.seek(SeekFrom::Start(begin))?;
        file.read_exact(&mut block)?;
        for (at, byte) in block.iter().enumerate().rev() {
            // The very last byte ends the last line and begins none.
            if *byte == b'\n' && !std::mem::take(&mut last) {
                left -= 1;
                if left == 0 {
                    return Ok(begin + u64::try_from(at + 1).unwrap_or(0));
                }
            }
            last = false;
        }
        end = begin;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const LOG: &str = "2026-01-01T00:00:01.5Z stdout F one\n\
        2026-01-01T00:00:02Z stderr F two\n\
        2026-01-01T00:00:03Z stdout P thr\n\
        2026-01-01T00:00:03Z stdout F ee\n\
        2026-01-01T00:00:04Z stdout F four\n";

    async fn run(options: Options) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let (out, mut got) = mpsc::channel(100);
        read(path, options, out, || false).await.unwrap();
        let mut all = Vec::new();
        while let Some(bytes) = got.recv().await {
            all.extend_from_slice(&bytes);
        }
        String::from_utf8(all).unwrap()
    }

    #[tokio::test]
    async fn options_choose_lines() {
        let since = Some("2026-01-01T00:00:03Z".parse().unwrap());
        let cases = [
            (Options::default(), "one\ntwo\nthree\nfour\n"),
            (Options { tail_lines: Some(1), ..Options::default() }, "four\n"),
            (Options { tail_lines: Some(2), ..Options::default() }, "ee\nfour\n"),
            (Options { tail_lines: Some(0), ..Options::default() }, ""),
            (Options { tail_lines: Some(99), ..Options::default() }, "one\ntwo\nthree\nfour\n"),
            (Options { since, ..Options::default() }, "three\nfour\n"),
            (Options { source: Source::Stderr, ..Options::default() }, "two\n"),
            (Options { limit_bytes: Some(6), ..Options::default() }, "one\ntw"),
            (
                Options { timestamps: true, since, ..Options::default() },
                "2026-01-01T00:00:03Z three\n2026-01-01T00:00:04Z four\n",
            ),
        ];
        for (options, expected) in cases {
            assert_eq!(run(options.clone()).await, expected, "{options:?}");
        }
    }

    #[tokio::test]
    async fn following_goes_across_a_rotation_and_ends_with_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, "t stdout F a\n").unwrap();
        let running = Arc::new(AtomicBool::new(true));
        let (out, mut got) = mpsc::channel(100);
        let flag = running.clone();
        let options = Options { follow: true, ..Options::default() };
        let task =
            tokio::spawn(read(path.clone(), options, out, move || flag.load(Ordering::SeqCst)));
        assert_eq!(got.recv().await.unwrap(), "a\n");
        let mut old = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        old.write_all(b"t stdout F b\n").unwrap();
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        std::fs::write(&path, "t stdout F c\n").unwrap();
        let mut text = Vec::new();
        while text.len() < 4 {
            text.extend_from_slice(&got.recv().await.unwrap());
        }
        assert_eq!(text, b"b\nc\n");
        running.store(false, Ordering::SeqCst);
        assert!(got.recv().await.is_none());
        task.await.unwrap().unwrap();
    }
}
