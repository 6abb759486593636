//! What a container may and may not do.

use std::fs;

use monitor::protocol::{Mount, MountKind, NamespaceMode, Seccomp, User};

use crate::harness::lab;

fn bind(source: &std::path::Path, destination: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        kind: MountKind::Bind { source: source.into() },
        options: options.iter().map(|option| (*option).into()).collect(),
    }
}

#[test]
fn user_directory_environment_and_root() {
    let mut lab = lab!();
    let mut spec =
        lab.spec("a", "id -u; id -g; id -G; pwd; echo $A:$PATH; touch /x 2>/dev/null || echo ro");
    spec.user = User { uid: 1000, gid: 1001, additional_gids: vec![7] };
    spec.cwd = "/work/dir".into();
    spec.env = vec!["A=b".into()];
    spec.read_only_rootfs = true;
    let (_, text) = lab.script(spec);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(&lines[..4], ["1000", "1001", "1001 7", "/work/dir"], "{text}");
    assert!(lines[4].starts_with("b:/usr/local/sbin"), "{text}");
    assert!(text.ends_with("ro\n"), "{text}");
}

#[test]
fn rights_are_dropped_in_exec_too() {
    let mut lab = lab!();
    let script = "grep -E 'Cap(Eff|Bnd)|NoNew|Seccomp:' /proc/self/status; unshare -m true; \
                  mknod /dev/x b 254 0 && dd if=/dev/x of=/dev/null count=1; echo 1 > /proc/sys/kernel/panic";
    for no_new_privileges in [false, true] {
        let id = format!("nnp-{no_new_privileges}");
        let mut spec = lab.spec(&id, &format!("{script}; sleep 1000"));
        spec.seccomp = Seccomp::RuntimeDefault;
        spec.no_new_privileges = no_new_privileges;
        spec.capabilities.drop = vec!["NET_RAW".into()];
        lab.client.create(spec).unwrap();
        lab.client.start(&id).unwrap();
        let (_, of_exec) = lab.client.exec(&id, &["sh", "-c", script]).unwrap();
        let of_init = crate::harness::until(|| lab.output(&id), |text| text.contains("panic"));
        for text in [of_exec, of_init] {
            let line = |name: &str| {
                let line = text.lines().find(|line| line.starts_with(name));
                line.unwrap_or_else(|| panic!("{name} in {text}"))
                    .split_whitespace()
                    .nth(1)
                    .unwrap()
            };
            assert_eq!(line("CapEff:"), "00000000a80405fb", "{text}");
            assert_eq!(line("CapBnd:"), "00000000a80405fb", "{text}");
            assert_eq!(line("NoNewPrivs:"), if no_new_privileges { "1" } else { "0" }, "{text}");
            assert_eq!(line("Seccomp:"), "2", "{text}");
            assert!(text.contains("unshare: ") && text.contains("not permitted"), "{text}");
            assert!(!text.contains("1+0 records"), "the node's disk was read: {text}");
            assert!(text.contains("Read-only file system"), "{text}");
        }
        lab.client.delete(&id).unwrap();
    }
}

#[test]
fn local_profile_and_privileged() {
    let mut lab = lab!();
    let mut spec = lab.spec("local", "mkdir /tmp/a 2>/dev/null || echo refused");
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW",
        "syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#;
    spec.seccomp = Seccomp::Localhost(profile.into());
    assert!(lab.script(spec).1.ends_with("refused\n"));
    let mut spec = lab.spec(
        "privileged",
        "mount -t tmpfs x /tmp && echo mounted; ls /dev/null /dev/kmsg; cat /proc/sys/kernel/panic > /proc/sys/kernel/panic && echo written",
    );
    spec.privileged = true;
    let (code, text) = lab.script(spec);
    assert!(code == 0 && text.contains("mounted") && text.contains("kmsg"), "{code} {text}");
    assert!(text.ends_with("written\n"), "{text}");
}

#[test]
fn limits_hold_and_ooms_are_told() {
    let mut lab = lab!();
    let mut spec = lab.spec("oom", "dd if=/dev/zero of=/dev/null bs=200M count=1; echo survived");
    spec.args = vec!["dd".into(), "if=/dev/zero".into(), "of=/dev/null".into(), "bs=200M".into()];
    spec.resources.memory_limit = Some(32 << 20);
    let exit = lab.run(spec);
    assert_eq!((exit.code, exit.oom_killed), (137, true));
    let mut spec = lab.spec("pids", "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo done");
    spec.resources.pids_limit = Some(5);
    let (code, text) = lab.script(spec);
    assert!(code != 0 || text.contains("can't fork"), "{code} {text}");
    let mut spec = lab.spec("score", "cat /proc/self/oom_score_adj");
    spec.resources.oom_score_adj = Some(321);
    assert_eq!(lab.script(spec).1, "321\n");
    assert_eq!(lab.script(lab.spec("plain", "cat /proc/self/oom_score_adj")).1, "0\n");
    let own = fs::read_to_string(format!("/proc/{}/oom_score_adj", lab.pid())).unwrap();
    if own.trim() != "-999" {
        println!("SKIPPED: this machine lets nobody lower its oom_score_adj");
    }
}

#[test]
fn mounts_devices_hostname_and_sysctls() {
    let mut lab = lab!();
    let volume = lab.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "text").unwrap();
    let mut spec = lab.spec(
        "a",
        "exec 2>&1; cat /v/file; echo; echo x 2> /dev/null > /v/new || echo ro; cat /one; echo; hostname; \
         cat /proc/sys/kernel/shm_rmid_forced; ls /proc/kcore -l | head -c 1; echo; ls -d /sys/fs/cgroup/memory /sys/fs/cgroup; ls /dev/fuse2",
    );
    spec.mounts = vec![bind(&volume, "/v", &["ro"]), bind(&volume.join("file"), "/one", &["ro"])];
    spec.hostname = Some("pod-a".into());
    spec.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    spec.devices = vec![monitor::protocol::Device {
        host_path: "/dev/null".into(),
        container_path: "/dev/fuse2".into(),
        permissions: "rwm".into(),
    }];
    let (_, text) = lab.script(spec);
    let has = |part: &str| assert!(text.contains(part), "{part:?} in {text}");
    has("text\nro\ntext\npod-a\n1\n");
    has("/dev/fuse2");
    assert!(!volume.join("new").exists());
}

#[test]
fn namespaces_are_private_shared_or_the_nodes() {
    let mut lab = lab!();
    let of = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    let script = "for n in net ipc uts pid; do readlink /proc/self/ns/$n; done";
    let private = lab.script(lab.spec("private", script)).1;
    let mut spec = lab.spec("host", script);
    for mode in [
        &mut spec.namespaces.network,
        &mut spec.namespaces.ipc,
        &mut spec.namespaces.uts,
        &mut spec.namespaces.pid,
    ] {
        *mode = NamespaceMode::Host;
    }
    let host = lab.script(spec).1;
    for kind in ["net", "ipc", "uts", "pid"] {
        let ours = of(kind).to_string_lossy().into_owned();
        assert!(host.contains(&ours), "{kind}: {host}");
        assert!(!private.contains(&ours), "{kind}: {private}");
    }
    lab.client.create(lab.spec("first", "sleep 1000")).unwrap();
    let pid = lab.client.list().into_iter().find(|state| state.id == "first").unwrap().pid;
    let mut spec = lab.spec("second", "readlink /proc/self/ns/net");
    spec.namespaces.network = NamespaceMode::Path(format!("/proc/{pid}/ns/net").into());
    let shared = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(lab.script(spec).1.trim(), shared.to_string_lossy());
}
