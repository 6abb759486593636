//! Create, start, signal, exit, delete; and what goes wrong on the way.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use monitor::protocol::{FailureKind, NamespaceMode, Phase, Request, SignalTarget};

use crate::harness::lab;

#[test]
fn exit_codes_and_signals_are_told() {
    let mut lab = lab!();
    assert_eq!(lab.run(lab.spec("code", "exit 42")).code, 42);
    let spec = lab.spec("loop", "trap 'exit 7' TERM; while :; do sleep 0.05; done");
    lab.client.create(spec).unwrap();
    lab.client.start("loop").unwrap();
    let term = Request::Signal { id: "loop".into(), signal: 15, target: SignalTarget::Init };
    crate::harness::until(
        || lab.client.exec("loop", &["cat", "/proc/1/status"]).unwrap().1,
        |status| {
            // Bit 14 of the caught signals: the trap is set.
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
            u64::from_str_radix(caught.trim(), 16).unwrap() & (1 << 14) != 0
        },
    );
    lab.client.call(term).unwrap();
    assert_eq!(lab.client.wait("loop").code, 7);
    lab.client.create(lab.spec("kill", "sleep 1000")).unwrap();
    lab.client.start("kill").unwrap();
    let kill = Request::Signal { id: "kill".into(), signal: 9, target: SignalTarget::All };
    lab.client.call(kill).unwrap();
    let exit = lab.client.wait("kill");
    assert_eq!((exit.code, exit.signal, exit.lost), (137, Some(9), false));
    let state = lab.client.list().into_iter().find(|state| state.id == "kill").unwrap();
    assert_eq!(state.phase, Phase::Exited);
}

#[test]
fn delete_leaves_nothing() {
    let mut lab = lab!();
    lab.client.create(lab.spec("a", "sleep 1000")).unwrap();
    lab.client.start("a").unwrap();
    lab.client.create(lab.spec("never-started", "true")).unwrap();
    lab.client.delete("a").unwrap();
    lab.client.delete("never-started").unwrap();
    lab.client.delete("a").unwrap();
    assert!(lab.client.list().is_empty());
    for folder in ["containers", "runtime"] {
        assert_eq!(fs::read_dir(lab.config.run_dir.join(folder)).unwrap().count(), 0);
    }
    for mount in fs::read_to_string("/proc/self/mounts").unwrap().lines() {
        let point = mount.split(' ').nth(1).unwrap();
        assert!(!Path::new(point).join(&lab.name).join("a").exists(), "{point}");
    }
}

#[test]
fn failures_say_what_is_wrong() {
    let mut lab = lab!();
    let mut spec = lab.spec("nope", "true");
    spec.args = vec!["/bin/nope".into()];
    let failure = lab.client.create(spec.clone()).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Executable, "{failure}");
    assert!(failure.message.contains("exec: \"/bin/nope\": no such file"), "{failure}");
    spec.args = vec!["nope".into()];
    let failure = lab.client.create(spec.clone()).unwrap_err();
    assert!(failure.message.contains("\"nope\": executable file not found in $PATH"), "{failure}");

    let bad = lab.dir.path().join("rootfs/bin/bad");
    fs::write(&bad, "no interpreter, no ELF").unwrap();
    fs::set_permissions(&bad, fs::Permissions::from_mode(0o755)).unwrap();
    spec.args = vec!["/bin/bad".into()];
    lab.client.create(spec).unwrap();
    let failure = lab.client.start("nope").unwrap_err();
    assert!(failure.message.contains("exec format error"), "{failure}");
    assert_eq!(lab.client.wait("nope").code, 128);
    lab.client.delete("nope").unwrap();

    let mut spec = lab.spec("mem", "true");
    spec.resources.memory_limit = Some(1000);
    let failure = lab.client.create(spec).unwrap_err();
    assert!(failure.message.contains("memory"), "{failure}");
    let mut spec = lab.spec("sysctl", "true");
    spec.sysctls.insert("net.nope".into(), "1".into());
    let failure = lab.client.create(spec).unwrap_err();
    assert!(failure.message.contains("nope"), "{failure}");
    let duplicate = lab.spec("twice", "sleep 1000");
    lab.client.create(duplicate.clone()).unwrap();
    assert_eq!(lab.client.create(duplicate).unwrap_err().kind, FailureKind::Exists);
    assert_eq!(lab.client.start("other").unwrap_err().kind, FailureKind::NotFound);
    let failure = lab.client.exec("twice", &["true"]).unwrap_err();
    assert_eq!(failure.kind, FailureKind::State);
}

#[test]
fn fifty_containers_and_failures_leak_nothing() {
    let mut lab = lab!();
    lab.run(lab.spec("warm", "true"));
    lab.client.delete("warm").unwrap();
    let before = lab.descriptors();
    for round in 0..50 {
        let id = format!("c{round}");
        let mut spec = lab.spec(&id, "exit 3");
        if round % 5 == 0 {
            spec.args = vec!["nope".into()];
            lab.client.create(spec).unwrap_err();
            continue;
        }
        assert_eq!(lab.run(spec).code, 3);
        if round % 3 == 0 {
            lab.client.exec(&id, &["true"]).unwrap_err();
        }
        lab.client.delete(&id).unwrap();
    }
    assert_eq!(lab.descriptors(), before);
    let zombies = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
        .filter(|stat| {
            let rest = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
            rest.starts_with("Z ") && rest.split(' ').nth(1) == Some(&lab.pid().to_string())
        })
        .count();
    assert_eq!(zombies, 0);
    let status = fs::read_to_string(format!("/proc/{}/status", lab.pid())).unwrap();
    for name in ["VmRSS", "RssAnon"] {
        println!("monitor: {}", status.lines().find(|line| line.starts_with(name)).unwrap());
    }
}

#[test]
fn a_pods_init_holds_its_pid_namespace_and_reaps() {
    let mut lab = lab!();
    let init = Request::CreateInit {
        id: "init".into(),
        pod_uid: "uid".into(),
        cgroup: format!("/{}/init", lab.name),
        namespaces: Default::default(),
    };
    let monitor::protocol::Answer::State(state) = lab.client.call(init).unwrap() else {
        panic!("no state")
    };
    let mut spec = lab.spec("member", "(sleep 0.1 &); sleep 1000");
    spec.namespaces.pid = NamespaceMode::Path(format!("/proc/{}/ns/pid", state.pid).into());
    lab.client.create(spec).unwrap();
    lab.client.start("member").unwrap();
    let (_, text) = lab.client.exec("member", &["cat", "/proc/1/comm"]).unwrap();
    assert_eq!(text.trim(), "pod-init");
    crate::harness::until(
        || lab.client.exec("member", &["sh", "-c", "cat /proc/[0-9]*/stat"]).unwrap().1,
        |stats| !stats.contains("(sleep) Z") && stats.matches("(sleep)").count() == 1,
    );
    lab.client.delete("member").unwrap();
    let term = Request::Signal { id: "init".into(), signal: 15, target: SignalTarget::Init };
    lab.client.call(term).unwrap();
    assert_eq!(lab.client.wait("init").code, 0);
}
