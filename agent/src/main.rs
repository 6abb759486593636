//! The node's binary. It only calls the library: everything else, the early dispatch of the
//! monitor included, lives there so that tests can reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    agent::main()
}
