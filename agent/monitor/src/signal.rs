//! Sending signals by number, real-time ones among them, which images use to stop (`SIGRTMIN+3`).

#![allow(unsafe_code, reason = "kill and pidfd_send_signal take any number; the safe ones don't")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Signals one process; never a group, never all.
pub(crate) fn send(pid: i32, signal: i32) -> io::Result<()> {
    if pid <= 0 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: takes two numbers.
    check(unsafe { libc::kill(pid, signal) }.into())
}

/// Signals the process behind a pidfd.
pub(crate) fn send_pidfd(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open, and no siginfo is passed.
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0)
    })
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
