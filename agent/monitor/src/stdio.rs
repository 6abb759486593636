//! A container's standard streams: FIFOs that outlive the monitor, or a pty.
//!
//! Owns their making and opening. The container's end of stdout and stderr is opened for reading
//! and writing, so that it never sees a broken pipe when a monitor dies; that of stdin is read-only,
//! so that it sees the end of file.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::termios::Winsize;

use crate::protocol::{TerminalSize, User};
use crate::wire;

/// The container's ends.
#[derive(Debug)]
pub(crate) struct ContainerEnds {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// The monitor's ends.
#[derive(Debug, Default)]
pub(crate) struct MonitorEnds {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// Makes the FIFOs of a container in its folder and opens both sides. They belong to the
/// container's user, who may open `/dev/stdout` again.
pub(crate) fn create(
    folder: &Path,
    user: &User,
    has_stdin: bool,
) -> io::Result<(ContainerEnds, MonitorEnds)> {
    let fifo = |name: &str| -> io::Result<()> {
        let path = folder.join(name);
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        rustix::fs::chown(&path, Some(uid), Some(gid))?;
        Ok(())
    };
    fifo("stdout")?;
    fifo("stderr")?;
    let mut ends = MonitorEnds::default();
    let stdin = if has_stdin {
        fifo("stdin")?;
        let path = folder.join("stdin");
        // A FIFO opens for one side only when the other is there: the first opening is both.
        let both = open(&path, OFlags::RDWR)?;
        let reader = open(&path, OFlags::RDONLY)?;
        ends.stdin = Some(open(&path, OFlags::WRONLY | OFlags::NONBLOCK)?);
        drop(both);
        reader
    } else {
        open(Path::new("/dev/null"), OFlags::RDONLY)?
    };
    let stdout = open(&folder.join("stdout"), OFlags::RDWR)?;
    let stderr = open(&folder.join("stderr"), OFlags::RDWR)?;
    ends.stdout = Some(reader(folder, "stdout")?);
    ends.stderr = Some(reader(folder, "stderr")?);
    Ok((ContainerEnds { stdin, stdout, stderr }, ends))
}

/// Opens the monitor's ends again, after another monitor died.
pub(crate) fn reopen(folder: &Path) -> MonitorEnds {
    MonitorEnds {
        // Fails when the container has closed its stdin, which is as it should be.
        stdin: open(&folder.join("stdin"), OFlags::WRONLY | OFlags::NONBLOCK).ok(),
        stdout: reader(folder, "stdout").ok(),
        stderr: reader(folder, "stderr").ok(),
    }
}

fn reader(folder: &Path, name: &str) -> io::Result<OwnedFd> {
    open(&folder.join(name), OFlags::RDONLY | OFlags::NONBLOCK)
}

fn open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?)
}

/// `/dev/null` for all three.
pub(crate) fn null() -> io::Result<ContainerEnds> {
    let null = || open(Path::new("/dev/null"), OFlags::RDWR);
    Ok(ContainerEnds { stdin: null()?, stdout: null()?, stderr: null()? })
}

/// Binds a socket whose path may be longer than a socket address: through the open folder.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let folder = open(folder, OFlags::PATH | OFlags::DIRECTORY)?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(short)
}

/// Takes the pty master that libcontainer's init sent to the console socket.
pub(crate) fn accept_console(listener: &UnixListener) -> io::Result<OwnedFd> {
    listener.set_nonblocking(true)?;
    let (stream, _): (UnixStream, _) = listener.accept()?;
    stream.set_nonblocking(true)?;
    let (mut buffer, mut fds) = ([0; 64], Vec::new());
    wire::receive(stream.as_fd(), &mut buffer, &mut fds)?;
    let master = fds.pop().ok_or(io::ErrorKind::UnexpectedEof)?;
    rustix::io::ioctl_fionbio(&master, true)?;
    Ok(master)
}

/// Sets the size of a terminal.
pub(crate) fn resize(terminal: BorrowedFd<'_>, size: TerminalSize) -> io::Result<()> {
    let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}
