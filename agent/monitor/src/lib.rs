//! The single-threaded process that calls libcontainer, holds stdio and reaps.

pub mod protocol;
