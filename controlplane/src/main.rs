//! The `controlplane` command: flags in, parts out. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser;
use controlplane::cli::{
    Cli, Command, DatastoreCommand, EncryptionCommand, SnapshotCommand, TokenCommand,
};
use controlplane::{kubeconfig, migrate, rotate, run, snapshot, status, tokens};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Token(TokenCommand::Create(args)) => tokens::create(&args),
        Command::Token(TokenCommand::List(args)) => tokens::list(&args),
        Command::Token(TokenCommand::Revoke(args)) => tokens::revoke(&args),
        Command::Snapshot(SnapshotCommand::Save(args)) => snapshot::save(&args),
        Command::Snapshot(SnapshotCommand::Restore(args)) => snapshot::restore(&args),
        Command::Snapshot(SnapshotCommand::Verify(args)) => snapshot::verify(&args),
        Command::Encryption(EncryptionCommand::Rotate(args)) => rotate::rotate(&args),
        Command::Datastore(DatastoreCommand::Migrate(args)) => migrate::migrate(&args),
        Command::Kubeconfig(args) => kubeconfig::print(&args),
        Command::Status(args) => status::status(&args),
        Command::Version => status::version(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            // Nowhere is left to say that standard error is gone.
            writeln!(std::io::stderr(), "controlplane: {error:#}").ok();
            ExitCode::FAILURE
        }
    }
}
