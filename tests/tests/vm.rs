//! One Debian 12 machine with systemd, udev, cgroup v2 and its stock kernel: quickstart, restart and
//! upgrade of the agent under running pods, reboot, removal.
#![allow(clippy::print_stdout, reason = "a test reports")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use tests::fixture::bin_dir;
use tests::scenario::{Tally, Verdict};
use tests::vm::{Machine, obstacle};

fn main() -> ExitCode {
    let mut tally = Tally::default();
    match tests::fixture::obstacle().or_else(obstacle) {
        Some(reason) => tally.skip_all("a Debian 12 machine", &reason),
        None => tally.run(&(), &[("a Debian 12 machine, from nothing to nothing", whole_life)]),
    }
    tally.close()
}

fn whole_life((): &()) -> Result<Verdict> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no root")?;
    let scratch = Scratch(std::env::temp_dir().join(format!("flotilla-vm-{}", std::process::id())));
    let machine = Machine::make(&source.join("target/vm"), &scratch.0)?;
    let bin = bin_dir()?;
    for name in ["agent", "controlplane", "lab", "testserver"] {
        machine.copy(&bin.join(name), &format!("/opt/flotilla-bin/{name}"))?;
    }
    machine.copy(&bin.join("agent"), "/opt/flotilla-bin/agent.next")?;
    for folder in ["scripts", "docs"] {
        machine.copy(&source.join(folder), &format!("/opt/flotilla/{folder}"))?;
    }
    machine.copy(&kubectl()?, "/usr/local/bin/kubectl")?;
    machine.run(include_str!("../vm/steps.sh"))?;
    Ok(Verdict::Passed)
}

fn kubectl() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").context("no PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join("kubectl"))
        .find(|file| file.exists())
        .context("no kubectl")
}

/// A folder that goes away with its owner.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            println!("cannot remove {}: {error}", self.0.display());
        }
    }
}
