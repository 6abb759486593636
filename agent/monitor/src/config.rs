//! What the monitor is started with.

use std::ffi::OsString;
use std::path::PathBuf;

/// Bytes after which a container's log is rotated (kubelet's `containerLogMaxSize`).
pub const LOG_BYTES_MAX: u64 = 10 << 20;
/// Files kept per container's log, the current one included (kubelet's `containerLogMaxFiles`).
pub const LOG_FILES_MAX: usize = 5;

/// How a monitor runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitorConfig {
    /// Where sockets, FIFOs and states live; on a tmpfs, so that nothing outlives a reboot.
    pub run_dir: PathBuf,
    /// Cgroup it moves itself to, absolute below each hierarchy's mount point.
    pub cgroup: Option<PathBuf>,
    /// Bytes after which a log is rotated.
    pub log_bytes_max: u64,
    /// Files kept per log.
    pub log_files_max: usize,
}

/// Why the arguments make no configuration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArgumentError {
    /// Unknown flag.
    #[error("unknown argument {0:?}")]
    Unknown(OsString),
    /// A flag without its value, or with a bad one.
    #[error("argument {0} needs a value")]
    Value(&'static str),
}

impl MonitorConfig {
    /// A monitor below this directory.
    #[must_use]
    pub fn new(run_dir: impl Into<PathBuf>) -> MonitorConfig {
        MonitorConfig {
            run_dir: run_dir.into(),
            cgroup: None,
            log_bytes_max: LOG_BYTES_MAX,
            log_files_max: LOG_FILES_MAX,
        }
    }

    /// Reads what [`MonitorConfig::to_arguments`] wrote.
    ///
    /// # Errors
    /// On a flag that isn't the monitor's.
    pub fn from_arguments(
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<MonitorConfig, ArgumentError> {
        let mut config = MonitorConfig::new("/run/flotilla/monitor");
        let mut arguments = arguments.into_iter();
        while let Some(flag) = arguments.next() {
            let mut value = |flag| arguments.next().ok_or(ArgumentError::Value(flag));
            match flag.to_str() {
                Some("--run-dir") => config.run_dir = value("--run-dir")?.into(),
                Some("--cgroup") => config.cgroup = Some(value("--cgroup")?.into()),
                Some("--log-bytes-max") => {
                    config.log_bytes_max = number(&value("--log-bytes-max")?, "--log-bytes-max")?;
                }
                Some("--log-files-max") => {
                    let count = number(&value("--log-files-max")?, "--log-files-max")?;
                    config.log_files_max = usize::try_from(count)
                        .map_err(|_| ArgumentError::Value("--log-files-max"))?;
                }
                _ => return Err(ArgumentError::Unknown(flag)),
            }
        }
        Ok(config)
    }

    /// The arguments of the hidden subcommand.
    #[must_use]
    pub fn to_arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["--run-dir".into(), self.run_dir.clone().into()];
        if let Some(cgroup) = &self.cgroup {
            arguments.extend(["--cgroup".into(), cgroup.clone().into()]);
        }
        arguments.extend(["--log-bytes-max".into(), self.log_bytes_max.to_string().into()]);
        arguments.extend(["--log-files-max".into(), self.log_files_max.to_string().into()]);
        arguments
    }

    /// The control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("socket")
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.run_dir.join("containers")
    }

    pub(crate) fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    pub(crate) fn runtime_root(&self) -> PathBuf {
        self.run_dir.join("runtime")
    }
}

fn number(text: &OsString, flag: &'static str) -> Result<u64, ArgumentError> {
    text.to_str().and_then(|text| text.parse().ok()).ok_or(ArgumentError::Value(flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_round_trip() {
        let config = MonitorConfig {
            cgroup: Some("/flotilla/monitor".into()),
            log_files_max: 2,
            ..MonitorConfig::new("/run/x")
        };
        assert_eq!(MonitorConfig::from_arguments(config.to_arguments()).unwrap(), config);
        assert!(MonitorConfig::from_arguments([OsString::from("--color")]).is_err());
    }
}
