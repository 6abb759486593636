//! Agents and monitors die; containers don't notice.

use std::fs::File;
use std::io::{Read, Write};

use monitor::protocol::{Phase, Request};

use crate::harness::lab;
use crate::harness::{Client, until};

#[test]
fn an_agent_that_comes_back_hears_what_it_missed() {
    let mut lab = lab!();
    lab.client.create(lab.spec("a", "sleep 0.2; exit 5")).unwrap();
    lab.client.start("a").unwrap();
    lab.client = Client::connect(&lab.config);
    assert_eq!(lab.client.wait("a").code, 5);
    lab.client = Client::connect(&lab.config);
    assert_eq!(lab.client.wait("a").code, 5);
}

#[test]
fn containers_outlive_a_killed_monitor() {
    let mut lab = lab!();
    let script = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done";
    lab.client.create(lab.spec("writer", script)).unwrap();
    lab.client.start("writer").unwrap();
    lab.client.create(lab.spec("short", "sleep 1000")).unwrap();
    lab.client.start("short").unwrap();
    assert_eq!(lab.run(lab.spec("done", "exit 3")).code, 3);
    let mut spec = lab.spec("tty", "while read x; do echo got $x; done");
    (spec.terminal, spec.stdin) = (true, true);
    let (_, mut held) = lab.client.call_fds(Request::Create(Box::new(spec)), &[]).unwrap();
    lab.client.start("tty").unwrap();
    until(|| lab.output("writer"), |text| text.contains("line 3"));
    let pid = |lab: &mut crate::harness::Lab, id: &str| {
        lab.client.list().into_iter().find(|state| state.id == id).unwrap().pid
    };
    let before = pid(&mut lab, "writer");
    let short = pid(&mut lab, "short");
    lab.kill_monitor();
    let victim = nix::unistd::Pid::from_raw(short);
    nix::sys::signal::kill(victim, nix::sys::signal::Signal::SIGKILL).unwrap();
    until(|| std::path::Path::new(&format!("/proc/{short}")).exists(), |exists| !exists);
    lab.restart_monitor();
    assert_eq!(pid(&mut lab, "writer"), before);
    let seen = lab.output("writer").lines().count();
    until(|| lab.output("writer").lines().count(), |count| *count > seen + 3);
    let lost = lab.client.wait("short");
    assert_eq!((lost.code, lost.lost), (137, true));
    let done = lab.client.list().into_iter().find(|state| state.id == "done").unwrap();
    assert_eq!(done.exit.unwrap().code, 3);
    assert_eq!(lab.client.exec("writer", &["echo", "exec"]).unwrap(), (0, "exec\n".into()));

    let master = held.remove(0);
    let fds = [std::os::fd::AsFd::as_fd(&master)];
    lab.client.call_fds(Request::Restore { id: "tty".into() }, &fds).unwrap().0.unwrap();
    File::from(master).write_all(b"after\n").unwrap();
    until(|| lab.output("tty"), |text| text.contains("got after"));

    lab.client.delete("writer").unwrap();
    let kill = Request::Delete { id: "tty".into() };
    lab.client.call(kill).unwrap();
}

#[test]
fn a_created_container_can_be_started_by_the_next_monitor() {
    let mut lab = lab!();
    lab.client.create(lab.spec("a", "echo started; sleep 1000")).unwrap();
    lab.kill_monitor();
    lab.restart_monitor();
    assert_eq!(lab.client.list()[0].phase, Phase::Created);
    lab.client.start("a").unwrap();
    until(|| lab.output("a"), |text| text == "started\n");
}

#[test]
fn an_upgrade_in_place_keeps_children_terminals_and_exit_codes() {
    let mut lab = lab!();
    let mut spec = lab.spec("tty", "read x; echo got $x; exit 6");
    (spec.terminal, spec.stdin) = (true, true);
    lab.client.create(spec).unwrap();
    lab.client.start("tty").unwrap();
    lab.client.create(lab.spec("plain", "sleep 1; echo still here; exit 4")).unwrap();
    lab.client.start("plain").unwrap();
    let pid = lab.pid();
    let executable = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    let nowhere = Request::Upgrade { executable: "/nowhere".into() };
    assert!(lab.client.call(nowhere).is_err());
    assert!(lab.client.try_call(Request::Upgrade { executable }).is_none());
    lab.client = Client::connect(&lab.config);
    let second = std::process::Command::new(format!("/proc/{pid}/exe"))
        .args(lab.config.to_arguments())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(text.contains("another monitor has this run directory"), "{text}");
    let (_, mut fds) =
        lab.client.call_fds(Request::Attach { id: "tty".into(), stdin: true }, &[]).unwrap();
    let mut output = File::from(fds.remove(1));
    File::from(fds.remove(0)).write_all(b"word\n").unwrap();
    assert_eq!(lab.client.wait("tty").code, 6);
    let mut text = String::new();
    until(|| output.read_to_string(&mut text).is_ok(), |ended| *ended);
    assert!(text.contains("got word"), "{text}");
    let exit = lab.client.wait("plain");
    assert_eq!((exit.code, exit.lost), (4, false));
    assert_eq!(lab.output("plain"), "still here\n");
}

#[test]
fn a_request_of_a_later_release_is_refused_and_nothing_else() {
    use std::os::fd::AsFd;
    let mut lab = lab!();
    let call = serde_json::json!({ "id": 1_u64 << 40, "request": { "levitate": { "id": "a" } } });
    let frame = monitor::wire::encode(&call).unwrap();
    monitor::wire::send(lab.client.socket().as_fd(), &frame, &[]).unwrap();
    let failure = lab.client.answer(1 << 40).unwrap_err();
    assert_eq!(failure.kind, monitor::protocol::FailureKind::Unsupported);
    assert!(lab.client.list().is_empty());
}
