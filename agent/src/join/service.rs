//! Keeping the agent running: a systemd unit where there is systemd, a detached process with a pid
//! file and a log elsewhere. It starts and stops what it installed, nothing else.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::config::{Config, write_atomic};

pub(crate) const UNIT: &str = "flotilla-agent.service";
const UNIT_DIR: &str = "/etc/systemd/system";
const STOP_DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

/// Whether systemd runs this host.
pub(crate) fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

pub(crate) fn unit_path() -> PathBuf {
    Path::new(UNIT_DIR).join(UNIT)
}

/// `KillMode=process`: the monitor and the pods, in cgroups of their own, outlive the agent.
fn unit(executable: &Path, config_path: &Path) -> String {
    format!(
        "[Unit]\n\
         Description=Flotilla agent\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         \n\
         [Service]\n\
         ExecStart={} run --config {}\n\
         Restart=always\n\
         RestartSec=1\n\
         KillMode=process\n\
         Delegate=yes\n\
         OOMScoreAdjust=-999\n\
         LimitNOFILE=1048576\n\
         TasksMax=infinity\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        executable.display(),
        config_path.display()
    )
}

fn systemctl(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("systemctl").args(arguments).output().context("systemctl")?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("systemctl {}: {}", arguments.join(" "), why.trim());
    }
    Ok(())
}

pub(crate) fn log_file(config: &Config) -> PathBuf {
    config.run_dir.join("agent.log")
}

/// Installs and (re)starts the agent; says how it was done.
pub(crate) fn start(config: &Config, config_path: &Path) -> anyhow::Result<String> {
    let executable = std::env::current_exe().context("where is this program?")?;
    if has_systemd() {
        write_atomic(&unit_path(), unit(&executable, config_path).as_bytes(), 0o644)
            .with_context(|| format!("cannot write {}", unit_path().display()))?;
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", UNIT])?;
        systemctl(&["restart", UNIT])?;
        return Ok(format!("started {UNIT}; its log: journalctl -u {UNIT}"));
    }
    stop_process(config)?;
    std::fs::create_dir_all(&config.run_dir)?;
    let log = log_file(config);
    let out = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
    let mut command = Command::new(executable);
    command.arg("run").arg("--config").arg(config_path);
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).process_group(0);
    let child = command.spawn().context("cannot start the agent")?;
    Ok(format!(
        "started the agent (process {}, no systemd here); its log: {}",
        child.id(),
        log.display()
    ))
}

/// Stops the agent and, with systemd, removes its unit.
pub(crate) fn stop(config: &Config) -> anyhow::Result<()> {
    if has_systemd() && unit_path().exists() {
        systemctl(&["disable", "--now", UNIT])?;
        std::fs::remove_file(unit_path())?;
        systemctl(&["daemon-reload"])?;
    }
    stop_process(config)
}

/// The agent that the pid file names, if it still is one.
pub(crate) fn running(config: &Config) -> Option<nix::unistd::Pid> {
    let text = std::fs::read_to_string(config.pid_file()).ok()?;
    let pid: i32 = text.trim().parse().ok()?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = command.split(|byte| *byte == 0);
    let is_agent = words.next().is_some_and(|program| program.ends_with(b"agent"));
    (is_agent && words.next() == Some(b"run")).then(|| nix::unistd::Pid::from_raw(pid))
}

fn stop_process(config: &Config) -> anyhow::Result<()> {
    use nix::sys::signal::{Signal, kill};
    let Some(pid) = running(config) else { return Ok(()) };
    kill(pid, Signal::SIGTERM).with_context(|| format!("cannot stop the agent (process {pid})"))?;
    let deadline = Instant::now() + STOP_DEADLINE;
    while running(config).is_some() {
        if Instant::now() > deadline {
            kill(pid, Signal::SIGKILL)?;
        }
        std::thread::park_timeout(POLL);
    }
    Ok(())
}
