//! Streams of exec'd and attached processes, as the async world wants them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use monitor::protocol::{ExecSpec, Exit, TerminalSize};
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::{AttachRequest, Runtime, RuntimeError};

/// Where a process's stdin is written; closed when dropped.
pub(crate) type Input = Box<dyn AsyncWrite + Send + Unpin>;
/// Where its output is read.
pub(crate) type Output = Box<dyn AsyncRead + Send + Unpin>;

/// Our ends of a process's streams.
#[derive(Default)]
pub(crate) struct Ends {
    pub(crate) stdin: Option<Input>,
    pub(crate) stdout: Option<Output>,
    pub(crate) stderr: Option<Output>,
}

/// A process beside a container's own.
pub(crate) struct ExecSession {
    runtime: Runtime,
    exec: u64,
    exit: oneshot::Receiver<Exit>,
    terminal: Option<OwnedFd>,
    /// Its stdin, when asked for.
    pub(crate) stdin: Option<Input>,
    /// Its stdout, or all of a terminal.
    pub(crate) stdout: Option<Output>,
    /// Its stderr.
    pub(crate) stderr: Option<Output>,
}

impl std::fmt::Debug for ExecSession {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ExecSession").field("exec", &self.exec).finish_non_exhaustive()
    }
}

impl ExecSession {
    pub(super) fn new(
        runtime: Runtime,
        (exec, exit): (u64, oneshot::Receiver<Exit>),
        ends: Ends,
        terminal: Option<OwnedFd>,
    ) -> ExecSession {
        let Ends { stdin, stdout, stderr } = ends;
        ExecSession { runtime, exec, exit, terminal, stdin, stdout, stderr }
    }

    /// How it ended. Safe to be dropped and called again.
    pub(crate) async fn wait(&mut self) -> Result<Exit, RuntimeError> {
        (&mut self.exit).await.map_err(|_| RuntimeError::Disconnected)
    }

    /// Signals it.
    pub(crate) async fn signal(&mut self, signal: i32) -> Result<(), RuntimeError> {
        self.runtime.signal_exec(self.exec, signal).await
    }

    /// Sets the size of its terminal; nothing without one.
    pub(crate) fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let Some(terminal) = &self.terminal else { return Ok(()) };
        let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(terminal, size)?)
    }
}

/// A container's streams from now on.
pub(crate) struct AttachSession {
    runtime: Runtime,
    id: String,
    /// Its stdin, when asked for and there is one.
    pub(crate) stdin: Option<Input>,
    /// Its stdout, or all of a terminal.
    pub(crate) stdout: Option<Output>,
    /// Its stderr.
    pub(crate) stderr: Option<Output>,
}

impl std::fmt::Debug for AttachSession {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AttachSession").field("id", &self.id).finish_non_exhaustive()
    }
}

impl AttachSession {
    /// The client's stdin has ended: a `stdinOnce` container sees the end of file.
    pub(crate) async fn finish_stdin(&mut self) -> Result<(), RuntimeError> {
        self.stdin = None;
        self.runtime.close_stdin(&self.id).await
    }

    /// Sets the size of the container's terminal.
    pub(crate) async fn resize(&mut self, size: TerminalSize) -> Result<(), RuntimeError> {
        self.runtime.resize(&self.id, size).await
    }
}

pub(super) fn attach(
    runtime: Runtime,
    id: &str,
    wanted: AttachRequest,
    fds: Vec<OwnedFd>,
) -> io::Result<AttachSession> {
    let mut fds = fds.into_iter().peekable();
    let mut session =
        AttachSession { runtime, id: id.to_owned(), stdin: None, stdout: None, stderr: None };
    // The stdin writer or pty master comes first, where there is one: it is the one to write to.
    let has_stdin = wanted.stdin && fds.peek().is_some_and(is_writable);
    if let Some(fd) = fds.next_if(|_| has_stdin) {
        session.stdin = Some(input(fd)?);
    }
    session.stdout = fds.next().map(output).transpose()?;
    session.stderr = fds.next().map(output).transpose()?;
    Ok(session)
}

fn is_writable(fd: &OwnedFd) -> bool {
    rustix::fs::fcntl_getfl(fd)
        .is_ok_and(|flags| flags.intersects(rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::RDWR))
}

fn input(fd: OwnedFd) -> io::Result<Input> {
    if rustix::termios::isatty(&fd) {
        return Ok(Box::new(Terminal::new(fd)?));
    }
    Ok(Box::new(pipe::Sender::from_owned_fd(fd)?))
}

fn output(fd: OwnedFd) -> io::Result<Output> {
    Ok(Box::new(pipe::Receiver::from_owned_fd(fd)?))
}

/// Both directions of a terminal.
pub(super) fn terminal_ends(master: &OwnedFd, with_stdin: bool) -> io::Result<Ends> {
    let terminal = || -> io::Result<Terminal> { Terminal::new(master.try_clone()?) };
    let stdin = if with_stdin { Some(Box::new(terminal()?) as Input) } else { None };
    Ok(Ends { stdin, stdout: Some(Box::new(terminal()?)), stderr: None })
}

/// Pipes of an exec: ours and the process's.
pub(super) struct Pipes {
    ours: Ends,
    theirs: Vec<OwnedFd>,
}

impl Pipes {
    pub(super) fn new(spec: &ExecSpec) -> Result<Pipes, RuntimeError> {
        Pipes::open(spec).map_err(RuntimeError::Local)
    }

    fn open(spec: &ExecSpec) -> io::Result<Pipes> {
        let mut pipes = Pipes { ours: Ends::default(), theirs: Vec::new() };
        if spec.stdin {
            let (reader, writer) = io::pipe()?;
            pipes.theirs.push(reader.into());
            pipes.ours.stdin = Some(input(writer.into())?);
        }
        for (wanted, end) in
            [(spec.stdout, &mut pipes.ours.stdout), (spec.stderr, &mut pipes.ours.stderr)]
        {
            if wanted {
                let (reader, writer) = io::pipe()?;
                pipes.theirs.push(writer.into());
                *end = Some(output(reader.into())?);
            }
        }
        Ok(pipes)
    }

    pub(super) fn split(self) -> (Ends, Vec<OwnedFd>) {
        (self.ours, self.theirs)
    }
}

/// A pty's master. The end of the last process on it is the end of file.
#[derive(Debug)]
struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    fn new(master: OwnedFd) -> io::Result<Terminal> {
        rustix::io::ioctl_fionbio(&master, true)?;
        #[allow(unsafe_code, reason = "the safe constructor is deprecated")]
        // SAFETY: an `OwnedFd` gives the same open descriptor for as long as it lives.
        let registered = unsafe { AsyncFd::register(master) }?;
        Ok(Terminal(registered))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let space = buffer.initialize_unfilled();
            let read = guard.try_io(|fd| Ok(rustix::io::read(fd.as_fd(), &mut *space)?));
            match read {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            match guard.try_io(|fd| Ok(rustix::io::write(fd.as_fd(), bytes)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
