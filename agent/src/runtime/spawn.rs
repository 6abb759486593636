//! Finding the monitor, or starting it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::UnixStream;

use super::RuntimeConfig;

/// A monitor is up within milliseconds; a loaded device may take longer.
const START_MILLIS_MAX: u64 = 10_000;
const POLL_MILLIS: u64 = 5;
/// The monitor's own log begins anew above this size.
const LOG_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Spawner {
    config: RuntimeConfig,
    /// A monitor started by this agent, to be reaped.
    child: Option<Child>,
}

impl Spawner {
    pub(super) fn new(config: RuntimeConfig) -> Spawner {
        Spawner { config, child: None }
    }

    /// Connects, starting a monitor when none listens. Two agents that start one at once end up at
    /// the same: the second finds the run directory locked.
    pub(super) async fn connect(&mut self) -> io::Result<UnixStream> {
        let socket = self.config.monitor.socket();
        if let Ok(stream) = UnixStream::connect(&socket).await {
            return Ok(stream);
        }
        self.reap()?;
        if self.child.is_none() {
            self.child = Some(self.spawn()?);
        }
        let deadline = tokio::time::Instant::now() + Duration::from_millis(START_MILLIS_MAX);
        loop {
            match UnixStream::connect(&socket).await {
                Ok(stream) => return Ok(stream),
                Err(error) if tokio::time::Instant::now() >= deadline => return Err(error),
                Err(_) => {}
            }
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
                && !status.success()
            {
                self.child = None;
                let log = self.config.monitor.run_dir.join("monitor.log");
                let text = format!("monitor ended with {status}; see {}", log.display());
                return Err(io::Error::other(text));
            }
            tokio::time::sleep(Duration::from_millis(POLL_MILLIS)).await;
        }
    }

    /// Where our program is, when a monitor runs another file.
    pub(super) fn newer_than(&self, monitor: i32) -> Option<PathBuf> {
        let file = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
        let theirs = file(&PathBuf::from(format!("/proc/{monitor}/exe")))?;
        if file(&self.config.executable)? == theirs {
            return None;
        }
        // "self" would be the monitor there.
        let own = format!("/proc/{}/exe", std::process::id());
        let is_own = self.config.executable == Path::new("/proc/self/exe");
        Some(if is_own { own.into() } else { self.config.executable.clone() })
    }

    fn reap(&mut self) -> io::Result<()> {
        if let Some(child) = &mut self.child
            && child.try_wait()?.is_some()
        {
            self.child = None;
        }
        Ok(())
    }

    fn spawn(&self) -> io::Result<Child> {
        let run_dir = &self.config.monitor.run_dir;
        fs::create_dir_all(run_dir)?;
        let path = run_dir.join("monitor.log");
        let is_long = fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX);
        if is_long {
            fs::remove_file(&path)?;
        }
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        // Its own session, so that a signal to the agent's terminal or group doesn't reach it; the
        // monitor makes it itself. Its environment is empty but for the log filter.
        let mut command = Command::new(&self.config.executable);
        command
            .arg0("agent")
            .args(&self.config.subcommand)
            .args(self.config.monitor.to_arguments())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Ok(filter) = std::env::var("FLOTILLA_LOG") {
            command.env("FLOTILLA_LOG", filter);
        }
        command.spawn()
    }
}
