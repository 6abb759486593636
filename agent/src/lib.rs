//! The node: pods, images, volumes, probes, streams, and the way in and out of a cluster.
//!
//! `main` takes the command line apart and calls one room: `run` (the agent itself), `join`,
//! `leave` or `local` (commands on the device). The hidden `monitor` subcommand is dispatched
//! before any thread or runtime exists.

mod cgroup;
mod checkpoint;
mod cli;
mod config;
mod connection;
mod context;
mod engine;
mod events;
mod identity;
#[allow(dead_code, reason = "pinning, removal and verification have no caller on the device yet")]
mod image;
mod join;
mod leave;
mod local;
mod masters;
mod node;
mod objects;
mod pod;
mod probe;
mod renewal;
mod rest;
mod run;
#[allow(dead_code, reason = "upgrade in place and log reopening have no caller on the device yet")]
mod runtime;
mod server;
mod services;
mod source;
mod stream;
mod tunnel;
mod upkeep;
mod volume;

use std::process::ExitCode;

/// The binary's main function.
#[must_use]
pub fn main() -> ExitCode {
    cli::main()
}
