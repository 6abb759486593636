//! The kernel's word that somebody changed a ruleset of this namespace, as a wake-up and no more.

#![allow(unsafe_code, reason = "tokio wants a promise about the descriptor it waits for")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
    socket, sockopt,
};
use tokio::io::unix::AsyncFd;

/// `NFNLGRP_NFTABLES` as a bit of the bind mask.
const GROUP_NFTABLES: u32 = 1 << 6;
/// Receive buffer: the content doesn't matter, so losing some is no loss.
const NOTIFY_BUFFER_BYTES: usize = 32 << 10;

/// The kernel's notifications about rulesets of this namespace, as a wake-up.
#[derive(Debug)]
pub(crate) struct Notifications(AsyncFd<OwnedFd>);

impl Notifications {
    pub(crate) fn open() -> io::Result<Notifications> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkNetFilter;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        setsockopt(&fd, sockopt::RcvBuf, &NOTIFY_BUFFER_BYTES)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUP_NFTABLES))?;
        // SAFETY: the descriptor is owned, open, and moves into the `AsyncFd`, which closes it when it is dropped.
        let registered = unsafe { AsyncFd::register(fd) };
        Ok(Notifications(registered.map_err(|error| io::Error::other(error.to_string()))?))
    }

    /// Returns after at least one notification; those that came with it are gone.
    pub(crate) async fn next(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut buffer = [0u8; 512];
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
                Ok(_) | Err(nix::Error::ENOBUFS) => {}
                Err(nix::Error::EAGAIN) => {
                    ready.clear_ready();
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
