//! The binary as an administrator sees it: a master that is started, killed, started again and stopped, on loopback.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod running;

use running::{Master, controlplane, free_port, told};

#[test]
fn a_master_survives_a_kill_and_ends_well() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, port) = (dir.path().join("data"), free_port());
    let mut master = Master::start(&dir, &port, &[]);
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
    let mut master = Master::start(&dir, &port, &[]);
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
