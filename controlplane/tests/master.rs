//! The binary as an administrator sees it: a master that is started, killed, started again and stopped, on loopback.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);

fn controlplane(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_controlplane"));
    command.args(arguments).arg("--data-dir").arg(dir).stdin(Stdio::null());
    command
}

fn told(output: Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Kills the master when a test fails.
struct Master(Child);

impl Drop for Master {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Master {
    fn start(dir: &Path, port: &str) -> Self {
        let arguments = ["run", "--bind-address", "127.0.0.1", "--secure-port", port];
        let child = controlplane(dir, &arguments).stderr(Stdio::null()).spawn().unwrap();
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

    fn terminate(&mut self) -> bool {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.0.wait().unwrap().success()
    }
}

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

#[test]
fn a_master_survives_a_kill_and_ends_well() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, port) = (dir.path().join("data"), free_port());
    let mut master = Master::start(&dir, &port);
    let create = ["token", "create", "--uses", "2", "--output", "json"];
    let token = told(controlplane(&dir, &create).output().unwrap());
    let token: serde_json::Value = serde_json::from_str(&token).unwrap();
    let whole = token["token"].as_str().unwrap();
    let lengths: Vec<_> = whole.split('.').map(str::len).collect();
    assert_eq!(lengths, [6, 16, 64], "{whole}");
    let id = token["id"].as_str().unwrap();

    // Another process with another port must find the folder taken, and leave the kubeconfig as it is.
    let other = free_port();
    let arguments = ["run", "--bind-address", "127.0.0.1", "--secure-port", &other];
    let second = controlplane(&dir, &arguments).output().unwrap();
    let error = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && error.contains("is in use by another process"), "{error}");

    master.0.kill().unwrap();
    master.0.wait().unwrap();
    let mut master = Master::start(&dir, &port);
    let list = told(controlplane(&dir, &["token", "list"]).output().unwrap());
    let line = list.lines().find(|line| line.starts_with(id)).unwrap();
    assert!(line.contains("valid") && line.contains(" 2"), "{line}");
    told(controlplane(&dir, &["token", "revoke", whole]).output().unwrap());
    let again = controlplane(&dir, &["token", "revoke", id]).output().unwrap();
    let error = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(error.contains(&format!("token {id}: there is none")), "{error}");

    let url = "https://m.example:6443";
    let kubeconfig = told(controlplane(&dir, &["kubeconfig", "--server", url]).output().unwrap());
    assert!(kubeconfig.contains("server: https://m.example:6443"), "{kubeconfig}");
    assert!(master.terminate(), "SIGTERM is a good end");
    let status = controlplane(&dir, &["status"]).output().unwrap();
    let error = String::from_utf8_lossy(&status.stderr).into_owned();
    assert!(!status.status.success() && error.contains("does not answer"), "{error}");
}
