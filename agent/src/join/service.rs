//! Keeping the agent running: a systemd unit where there is systemd, a detached process with a pid
//! file and a log elsewhere. It starts and stops what it installed, nothing else.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

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

/// An agent that was started.
pub(crate) struct Started {
    pub(crate) what: String,
    /// Where its log is to be read.
    pub(crate) logs: String,
    pub(crate) at: SystemTime,
    child: Option<Child>,
}

impl Started {
    /// How it ended, if it did and nobody starts it again.
    pub(crate) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.as_mut().map_or(Ok(None), |child| Ok(child.try_wait()?))
    }
}

/// Installs and (re)starts the agent.
pub(crate) fn start(config: &Config, config_path: &Path) -> anyhow::Result<Started> {
    let executable = std::env::current_exe().context("where is this program?")?;
    if has_systemd() {
        write_atomic(&unit_path(), unit(&executable, config_path).as_bytes(), 0o644)
            .with_context(|| format!("cannot write {}", unit_path().display()))?;
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", UNIT])?;
        let at = SystemTime::now();
        systemctl(&["restart", UNIT])?;
        let logs = format!("journalctl -u {UNIT}");
        return Ok(Started { what: UNIT.to_owned(), logs, at, child: None });
    }
    stop_process(config)?;
    std::fs::create_dir_all(&config.run_dir)?;
    let log = log_file(config);
    let out = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
    // A session of its own, so that it outlives the terminal.
    let mut command = Command::new("setsid");
    command.arg(executable).arg("run").arg("--config").arg(config_path);
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    let at = SystemTime::now();
    let child = command.spawn().context("cannot run setsid (package util-linux)")?;
    let what = format!("the agent in the background (process {}, no systemd here)", child.id());
    Ok(Started { what, logs: log.display().to_string(), at, child: Some(child) })
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
