//! The monitor against the real kernel: containers of busybox, started, signalled, limited, lost and
//! adopted. Needs root and a static busybox; says SKIPPED otherwise.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a test ends where something unexpected happens"
)]

mod harness;
mod isolation;
mod latency;
mod lifecycle;
mod streams;
mod survival;
