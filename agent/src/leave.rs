//! `agent leave`: not built yet, and says so.

use crate::cli::LeaveArgs;

pub(crate) fn leave(_: &LeaveArgs) -> anyhow::Result<()> {
    anyhow::bail!("this build of the agent cannot leave a cluster yet")
}
