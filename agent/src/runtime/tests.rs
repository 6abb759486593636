//! The client against a real monitor: a program of the monitor's own tests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use monitor::MonitorConfig;
use monitor::protocol::{ContainerSpec, ExecSpec, FailureKind, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use tokio::sync::mpsc;

use super::{AttachRequest, Runtime, RuntimeConfig, RuntimeEvent};
use crate::stream::{Client, Wanted, exec};

const PATIENCE: Duration = Duration::from_secs(20);

struct Lab {
    dir: tempfile::TempDir,
    config: RuntimeConfig,
    runtime: Runtime,
}

/// `None`, with the reason printed, where containers can't be run.
async fn lab() -> Option<Lab> {
    let program = std::env::current_exe().unwrap();
    let program = program.parent().unwrap().parent().unwrap().join("examples/monitor");
    let reason = if !rustix::process::geteuid().is_root() {
        "not root"
    } else if !Path::new("/bin/busybox").exists() {
        "no /bin/busybox"
    } else if !program.exists() {
        "the monitor's example is not built (cargo build -p monitor --examples)"
    } else {
        let dir = tempfile::Builder::new().prefix("runtime-").tempdir().unwrap();
        let root = dir.path().join("rootfs");
        for folder in ["bin", "dev", "proc", "sys", "tmp"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in ["sh", "sleep", "cat", "echo", "stty"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let monitor = MonitorConfig::new(dir.path().join("run"));
        let config = RuntimeConfig { executable: program, ..RuntimeConfig::new(monitor) };
        let runtime = Runtime::connect_or_start(config.clone()).await.unwrap();
        return Some(Lab { dir, config, runtime });
    };
    println!("SKIPPED: {reason}");
    None
}

impl Lab {
    fn spec(&self, id: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            id: id.into(),
            args: vec!["sh".into(), "-c".into(), script.into()],
            rootfs: self.dir.path().join("rootfs"),
            cgroup: format!("/{}/{id}", self.cgroup()),
            log_path: Some(self.dir.path().join(format!("{id}.log"))),
            ..ContainerSpec::default()
        }
    }

    /// Named as the temporary folder is, so that tests side by side keep apart.
    fn cgroup(&self) -> String {
        self.dir.path().file_name().unwrap().to_string_lossy().into_owned()
    }

    fn monitor_pid(&self) -> i32 {
        let run = self.config.monitor.run_dir.clone();
        let wanted = run.to_string_lossy().into_owned();
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let mut found = entries.filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            (line.contains(&wanted) && line.contains("--run-dir")).then_some(pid)
        });
        found.next().expect("a monitor")
    }

    async fn finish(self, ids: &[&str]) {
        for id in ids {
            self.runtime.delete(id).await.unwrap();
        }
        let pid = rustix::process::Pid::from_raw(self.monitor_pid()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        for mount in std::fs::read_to_string("/proc/self/mounts").unwrap().lines() {
            let point = PathBuf::from(mount.split(' ').nth(1).unwrap());
            let ours = point.join(self.cgroup());
            if mount.contains(" cgroup") && ours.exists() {
                std::fs::remove_dir(ours).unwrap();
            }
        }
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

#[tokio::test]
async fn runs_a_container_execs_and_hears_its_end() {
    let Some(lab) = lab().await else { return };
    let mut events = lab.runtime.events();
    lab.runtime.create(lab.spec("a", "echo hi; cat; exit 3")).await.unwrap();
    let refused = lab.runtime.create(lab.spec("a", "true")).await.unwrap_err();
    assert_eq!(refused.kind(), Some(FailureKind::Exists));
    lab.runtime.delete("a").await.unwrap();
    let mut spec = lab.spec("a", "cat; exit 3");
    (spec.stdin, spec.stdin_once) = (true, true);
    lab.runtime.create(spec).await.unwrap();
    lab.runtime.start("a").await.unwrap();

    let exec = ExecSpec {
        id: "a".into(),
        args: vec!["sh".into(), "-c".into(), "cat; echo err >&2; exit 4".into()],
        stdin: true,
        stdout: true,
        stderr: true,
        ..ExecSpec::default()
    };
    let mut session = lab.runtime.exec(exec).await.unwrap();
    session.stdin.take().unwrap().write_all(b"through").await.unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    session.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
    session.stderr.take().unwrap().read_to_string(&mut err).await.unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("through", "err\n"));
    assert_eq!(within(session.wait()).await.unwrap().code, 4);

    let mut attached = lab.runtime.attach("a", AttachRequest { stdin: true }).await.unwrap();
    attached.stdin.as_mut().unwrap().write_all(b"attached").await.unwrap();
    attached.finish_stdin().await.unwrap();
    let mut out = String::new();
    within(attached.stdout.take().unwrap().read_to_string(&mut out)).await.unwrap();
    assert_eq!(out, "attached");
    let state = within(async {
        loop {
            if let RuntimeEvent::Exited(state) = events.recv().await.unwrap()
                && state.exit.as_ref().unwrap().code == 3
            {
                return state;
            }
        }
    });
    assert_eq!(state.await.id, "a");
    lab.finish(&["a"]).await;
}

#[tokio::test]
async fn terminals_and_what_is_held_outlive_the_monitor() {
    let Some(lab) = lab().await else { return };
    let mut events = lab.runtime.events();
    let mut spec = lab.spec("tty", "while read x; do echo got $x; done");
    (spec.terminal, spec.stdin) = (true, true);
    lab.runtime.create(spec).await.unwrap();
    lab.runtime.start("tty").await.unwrap();
    let exec = ExecSpec {
        id: "tty".into(),
        args: vec!["sh".into(), "-c".into(), "stty size; read x; stty size".into()],
        terminal: true,
        size: Some(TerminalSize { width: 70, height: 20 }),
        ..ExecSpec::default()
    };
    let mut session = lab.runtime.exec(exec).await.unwrap();
    let mut text = String::new();
    let mut output = session.stdout.take().unwrap();
    let mut buffer = [0; 256];
    while !text.contains("20 70") {
        let count = within(output.read(&mut buffer)).await.unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    session.resize(TerminalSize { width: 71, height: 21 }).unwrap();
    session.stdin.as_mut().unwrap().write_all(b"\n").await.unwrap();
    within(output.read_to_string(&mut text)).await.unwrap();
    assert!(text.contains("21 71"), "{text}");

    let pid = rustix::process::Pid::from_raw(lab.monitor_pid()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    within(async { while !matches!(events.recv().await.unwrap(), RuntimeEvent::Reconnected) {} })
        .await;
    let mut attached = lab.runtime.attach("tty", AttachRequest { stdin: true }).await.unwrap();
    attached.stdin.as_mut().unwrap().write_all(b"word\n").await.unwrap();
    let mut output = attached.stdout.take().unwrap();
    let mut text = String::new();
    while !text.contains("got word") {
        let count = within(output.read(&mut buffer)).await.unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    drop((attached, output));
    lab.finish(&["tty"]).await;
}

#[tokio::test]
async fn an_agent_of_another_build_upgrades_the_monitor() {
    let Some(lab) = lab().await else { return };
    let mut spec = lab.spec("a", "read word; exit 9");
    spec.stdin = true;
    lab.runtime.create(spec).await.unwrap();
    lab.runtime.start("a").await.unwrap();
    let before = lab.monitor_pid();
    let newer = lab.dir.path().join("newer");
    std::fs::copy(&lab.config.executable, &newer).unwrap();
    let config = RuntimeConfig { executable: newer.clone(), ..lab.config.clone() };
    let next = Runtime::connect_or_start(config).await.unwrap();
    let mut events = next.events();
    assert_eq!(lab.monitor_pid(), before);
    assert_eq!(std::fs::read_link(format!("/proc/{before}/exe")).unwrap(), newer);
    let mut attached = next.attach("a", AttachRequest { stdin: true }).await.unwrap();
    attached.stdin.as_mut().unwrap().write_all(b"word\n").await.unwrap();
    let exit = within(async {
        loop {
            if let RuntimeEvent::Exited(state) = events.recv().await.unwrap() {
                return state.exit.unwrap();
            }
        }
    })
    .await;
    assert_eq!((exit.code, exit.lost), (9, false));
    lab.finish(&["a"]).await;
}

#[tokio::test]
async fn who_attaches_without_stdin_leaves_it_open() {
    let Some(lab) = lab().await else { return };
    let mut spec = lab.spec("a", "while sleep 0.1; do echo tick; done & cat");
    (spec.stdin, spec.stdin_once) = (true, true);
    lab.runtime.create(spec).await.unwrap();
    lab.runtime.start("a").await.unwrap();
    let ((_stdin, stdin), (_resize, resize)) = (mpsc::channel(1), mpsc::channel(1));
    let (out, mut got) = mpsc::channel(1);
    let runtime = lab.runtime.clone();
    let watcher = tokio::spawn(async move {
        let wanted = Wanted { stdout: true, ..Wanted::default() };
        exec::attach(&runtime, "a".into(), wanted, Client { stdin, resize, out }).await;
    });
    within(got.recv()).await.unwrap();
    within(got.recv()).await.unwrap();
    let mut attached = lab.runtime.attach("a", AttachRequest { stdin: true }).await.unwrap();
    attached.stdin.as_mut().unwrap().write_all(b"word\n").await.unwrap();
    let mut text = String::new();
    while !text.contains("word") {
        let (_, bytes) = within(got.recv()).await.unwrap();
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    drop((attached, got));
    within(watcher).await.unwrap();
    lab.finish(&["a"]).await;
}

#[tokio::test]
async fn an_exec_that_nobody_waits_for_is_killed() {
    let Some(lab) = lab().await else { return };
    lab.runtime.create(lab.spec("a", "sleep 1000")).await.unwrap();
    lab.runtime.start("a").await.unwrap();
    let exec = |script: &str| ExecSpec {
        id: "a".into(),
        args: vec!["sh".into(), "-c".into(), script.into()],
        ..ExecSpec::default()
    };
    let mark = format!("exec sleep 98765; {}", lab.cgroup());
    let abandoned = lab.runtime.exec(exec(&mark));
    assert!(tokio::time::timeout(Duration::from_micros(100), abandoned).await.is_err());
    let mut next = lab.runtime.exec(exec("true")).await.unwrap();
    within(next.wait()).await.unwrap();
    let runs = || {
        let lines = std::fs::read_dir("/proc").unwrap().flatten();
        let mut lines = lines.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        lines.any(|line| String::from_utf8_lossy(&line).contains("98765"))
    };
    within(async {
        while runs() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    lab.finish(&["a"]).await;
}
