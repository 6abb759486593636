//! The harnesses that run the real binaries: the lab of several hosts on one machine, the scenario
//! runner of the end-to-end tests, and what they share. It must not be linked into a product binary.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "harnesses talk to a person and wait between polls of a condition with a deadline"
)]

pub mod audit;
pub mod bench;
pub mod fixture;
pub mod idle;
pub mod lab;
pub mod load;
pub mod scenario;
pub mod shell;
pub mod soak;
pub mod vm;
