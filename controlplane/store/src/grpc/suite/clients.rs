//! Owns what clients see on the socket: etcdctl with its own idea of a socket's name, and the alarm of a full disk.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;

use crate::grpc::messages::maintenance::AlarmRequest;
use crate::grpc::suite::put;
use crate::grpc::suite::subject::{Call, Ours, Subject};
use crate::{Config, FaultyDisk, Store};

const ETCDCTL: &str = "/usr/bin/etcdctl";

#[tokio::test]
#[allow(clippy::print_stderr, reason = "a test says what it skips")]
async fn etcdctl_works_on_the_socket() {
    if !std::path::Path::new(ETCDCTL).exists() {
        eprintln!("SKIPPED  {ETCDCTL} is not installed");
        return;
    }
    let ours = Ours::start().await;
    let socket = ours.dir.path().join("etcd.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let file = ours.dir.path().join("snapshot");
    let etcdctl = async |words: &str| {
        let mut command = Command::new(ETCDCTL);
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &format!("unix://{}", socket.display())]);
        command.args(words.split(' '));
        // The server is on this thread.
        let told = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let error = String::from_utf8_lossy(&told.stderr).into_owned();
        assert!(told.status.success(), "etcdctl {words}: {error}");
        String::from_utf8_lossy(&told.stdout).trim().to_owned()
    };
    assert_eq!(etcdctl("put a 1").await, "OK");
    assert_eq!(etcdctl("get a").await, "a\n1");
    assert_eq!(etcdctl("del a").await, "1");
    assert!(etcdctl("lease grant 60").await.contains("granted with TTL(60s)"));
    assert!(etcdctl("lease list").await.starts_with("found 1 leases"));
    assert_eq!(etcdctl("compact 2").await, "compacted revision 2");
    assert!(etcdctl("endpoint status").await.contains("3.5."));
    assert!(etcdctl("member list").await.contains("ours"));
    assert_eq!(etcdctl("alarm list").await, "");
    assert!(etcdctl("defrag").await.starts_with("Finished defragmenting"));
    etcdctl(&format!("snapshot save {}", file.display())).await;
    // What etcdctl saved is a snapshot of ours.
    let info = crate::snapshot::verify(&file).unwrap();
    assert_eq!((info.revision, info.keys), (3, 0));
}

#[tokio::test]
async fn a_full_disk_is_an_alarm_that_goes_by_itself() {
    let disk = FaultyDisk::new();
    let store = Store::open_on(Arc::new(disk.clone()), Config::new("")).unwrap();
    let ours = Ours::serve(store, tempfile::tempdir().unwrap()).await;
    let subject = Subject::Remote(ours.channel.clone());
    disk.set_full(true);
    let mut refused = None;
    // What was allocated before is used up first.
    for _ in 0..100_000 {
        if let Err(error) = subject.call(&Call::Put(put("a", "1"))).await {
            refused = Some(error);
            break;
        }
    }
    let full = "ResourceExhausted: etcdserver: mvcc: database space exceeded";
    assert_eq!(refused.as_deref(), Some(full));
    let alarms = async || ours.services.alarm(AlarmRequest::default()).await.unwrap().alarms.len();
    assert_eq!(alarms().await, 1);
    disk.set_full(false);
    subject.call(&Call::Put(put("a", "2"))).await.unwrap();
    assert_eq!(alarms().await, 0);
}
