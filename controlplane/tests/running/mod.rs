//! Owns a master under test: started on loopback, killed when the test ends however it ends.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn controlplane(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_controlplane"));
    command.args(arguments).arg("--data-dir").arg(dir).stdin(Stdio::null());
    command
}

pub(crate) fn told(output: Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Kills the master when a test fails.
pub(crate) struct Master(pub(crate) Child);

impl Drop for Master {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Master {
    pub(crate) fn start(dir: &Path, port: &str, further: &[&str]) -> Self {
        // Not the configuration of a master on this machine.
        let arguments =
            ["run", "--config", "/dev/null", "--bind-address", "127.0.0.1", "--secure-port", port];
        let mut command = controlplane(dir, &arguments);
        let child = command.args(further).stderr(Stdio::null()).spawn().unwrap();
        let mut master = Self(child);
        let begin = Instant::now();
        loop {
            let status = controlplane(dir, &["status"]).output().unwrap();
            if status.status.success() {
                return master;
            }
            assert_eq!(master.0.try_wait().unwrap(), None, "the master ended");
            let error = String::from_utf8_lossy(&status.stderr);
            assert!(begin.elapsed() < DEADLINE, "the master does not get ready: {error}");
        }
    }

    pub(crate) fn terminate(&mut self) -> bool {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.0.wait().unwrap().success()
    }
}

pub(crate) fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}
