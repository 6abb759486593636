//! Commands on the device: not built yet, and say so.

use std::path::Path;
use std::process::ExitCode;

use crate::cli::{ConfigArg, ExecArgs, LocalArgs, LogsArgs};

fn not_yet() -> anyhow::Error {
    anyhow::anyhow!("this build of the agent has no local commands yet")
}

pub(crate) fn ps(_: &LocalArgs) -> anyhow::Result<()> {
    Err(not_yet())
}

pub(crate) fn images(_: &LocalArgs) -> anyhow::Result<()> {
    Err(not_yet())
}

pub(crate) fn status(_: &LocalArgs) -> anyhow::Result<()> {
    Err(not_yet())
}

pub(crate) fn logs(_: &LogsArgs) -> anyhow::Result<()> {
    Err(not_yet())
}

pub(crate) fn exec(_: &ExecArgs) -> anyhow::Result<ExitCode> {
    Err(not_yet())
}

pub(crate) fn import(_: &ConfigArg, _: &Path) -> anyhow::Result<()> {
    Err(not_yet())
}
