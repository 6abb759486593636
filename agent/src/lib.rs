//! The node: pods, images, volumes, probes, streams, and the way in and out of a cluster.
//!
//! `main` takes the command line apart and calls one room: `run` (the agent itself), `join`,
//! `leave` or `local` (commands on the device). The hidden `monitor` subcommand is dispatched
//! before any thread or runtime exists.

#![allow(dead_code, reason = "rooms are built before the hall that connects them")]

mod cgroup;
mod config;
mod connection;
mod events;
mod identity;
mod node;
mod pod;
mod runtime;
mod tunnel;

use std::process::ExitCode;

/// The binary's main function.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
