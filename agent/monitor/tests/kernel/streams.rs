//! Logs, exec, attach, stdin and terminals.

use std::fs;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;

use monitor::protocol::{Answer, Event, ExecSpec, Request, TerminalSize};

use crate::harness::lab;
use crate::harness::{Lab, until};

/// Reads until the text is there; our ends don't block.
fn read_until(file: &mut File, text: &str) -> String {
    let mut seen = String::new();
    until(
        || {
            let mut buffer = [0; 4096];
            if let Ok(count) = file.read(&mut buffer) {
                seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
            seen.clone()
        },
        |seen| seen.contains(text),
    )
}

fn attach(lab: &mut Lab, id: &str, stdin: bool) -> Vec<File> {
    let request = Request::Attach { id: id.into(), stdin };
    let (answer, fds) = lab.client.call_fds(request, &[]).unwrap();
    answer.unwrap();
    fds.into_iter().map(File::from).collect()
}

#[test]
fn logs_are_in_the_cri_format() {
    let mut lab = lab!();
    let script = "echo out; echo err >&2; head -c 20000 /dev/zero | yes x | head -c 1 > /dev/null; echo -n end";
    lab.run(lab.spec("a", script));
    let text = lab.log_text("a");
    let mut lines: Vec<Vec<&str>> =
        text.lines().map(|line| line.splitn(4, ' ').collect()).collect();
    lines.sort_by_key(|line| line[1..].to_vec());
    let tails: Vec<String> = lines.iter().map(|line| line[1..].join(" ")).collect();
    assert_eq!(tails, ["stderr F err", "stdout F end", "stdout F out"]);
    assert!(lines.iter().all(|line| line[0].len() == 30 && line[0].ends_with('Z')), "{text}");
}

#[test]
fn nothing_is_lost_of_a_flood_and_logs_rotate() {
    if let Some(reason) = crate::harness::missing() {
        println!("SKIPPED: {reason}");
        return;
    }
    let mut lab = Lab::with(|config| {
        config.log_bytes_max = 100_000;
        config.log_files_max = 100;
    });
    lab.run(lab.spec("a", "seq 1 30000"));
    let folder = lab.log("a");
    let folder = folder.parent().unwrap();
    let mut numbers = Vec::new();
    let files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(files.len() > 5, "{files:?}");
    for file in files {
        for line in fs::read_to_string(file).unwrap().lines() {
            numbers.push(line.rsplit(' ').next().unwrap().parse::<u32>().unwrap());
        }
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=30_000).collect::<Vec<_>>());
}

#[test]
fn exec_has_the_containers_view_and_its_own_code() {
    let mut lab = lab!();
    let mut spec = lab.spec("a", "sleep 1000");
    spec.env = vec!["NAME=value".into()];
    spec.user.uid = 1234;
    lab.client.create(spec).unwrap();
    lab.client.start("a").unwrap();
    let (code, text) =
        lab.client.exec("a", &["sh", "-c", "echo $NAME; id -u; echo oops >&2; exit 9"]).unwrap();
    assert_eq!((code, text.as_str()), (9, "value\n1234\noops\n"));
    let failure = lab.client.exec("a", &["nope"]).unwrap_err();
    assert!(failure.message.contains("\"nope\": executable file not found in $PATH"), "{failure}");
    assert_eq!(lab.client.exec("a", &["true"]).unwrap().0, 0);
}

#[test]
fn exec_with_stdin_and_with_a_terminal() {
    let mut lab = lab!();
    lab.client.create(lab.spec("a", "sleep 1000")).unwrap();
    lab.client.start("a").unwrap();
    let (stdin, mut into) = std::io::pipe().unwrap();
    let (mut from, stdout) = std::io::pipe().unwrap();
    let spec = ExecSpec {
        id: "a".into(),
        args: vec!["cat".into()],
        stdin: true,
        stdout: true,
        ..ExecSpec::default()
    };
    let fds = [stdin.as_fd(), stdout.as_fd()];
    lab.client.call_fds(Request::Exec(Box::new(spec)), &fds).unwrap().0.unwrap();
    drop((stdin, stdout));
    into.write_all(b"through").unwrap();
    drop(into);
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");

    let spec = ExecSpec {
        id: "a".into(),
        args: vec!["sh".into(), "-c".into(), "stty size; read x; echo got $x; stty size".into()],
        terminal: true,
        size: Some(TerminalSize { width: 77, height: 33 }),
        ..ExecSpec::default()
    };
    let (answer, mut fds) = lab.client.call_fds(Request::Exec(Box::new(spec)), &[]).unwrap();
    let Ok(Answer::Exec { exec, .. }) = answer else { panic!("{answer:?}") };
    let mut master = File::from(fds.remove(0));
    read_until(&mut master, "33 77");
    master.write_all(b"word\n").unwrap();
    read_until(&mut master, "got word");
    lab.client.event(|event| {
        matches!(event, Event::ExecExited { exec: ended, .. } if *ended == exec).then_some(())
    });
}

#[test]
fn stdin_stays_open_unless_once() {
    let mut lab = lab!();
    let mut spec = lab.spec("a", "cat; echo end of stdin");
    (spec.stdin, spec.stdin_once) = (true, true);
    lab.client.create(spec).unwrap();
    lab.client.start("a").unwrap();
    let mut attached = attach(&mut lab, "a", true);
    attached[0].write_all(b"hello\n").unwrap();
    read_until(&mut attached[1], "hello");
    let mut again = attach(&mut lab, "a", true);
    again[0].write_all(b"again\n").unwrap();
    read_until(&mut attached[1], "again");
    drop(attached.remove(0));
    drop(again.remove(0));
    lab.client.call(Request::CloseStdin { id: "a".into() }).unwrap();
    read_until(&mut attached[0], "end of stdin");
    assert_eq!(lab.client.wait("a").code, 0);
    let mut rest = Vec::new();
    until(|| attached[0].read_to_end(&mut rest).is_ok(), |ended| *ended);
}

#[test]
fn terminal_containers() {
    let mut lab = lab!();
    let mut spec = lab.spec("a", "stty size; read x; echo got $x; stty size");
    (spec.terminal, spec.stdin) = (true, true);
    lab.client.create(spec).unwrap();
    let size = TerminalSize { width: 100, height: 40 };
    lab.client.call(Request::Resize { id: "a".into(), size }).unwrap();
    let mut attached = attach(&mut lab, "a", true);
    lab.client.start("a").unwrap();
    read_until(&mut attached[1], "40 100");
    attached[0].write_all(b"word\n").unwrap();
    assert_eq!(lab.client.wait("a").code, 0);
    assert!(lab.output("a").contains("got word"), "{}", lab.output("a"));
}

#[test]
fn a_follower_that_does_not_read_loses_its_place_not_the_container() {
    let mut lab = lab!();
    lab.client.create(lab.spec("a", "seq 1 200000; echo finished")).unwrap();
    let deaf = attach(&mut lab, "a", false);
    lab.client.start("a").unwrap();
    assert_eq!(lab.client.wait("a").code, 0);
    assert!(lab.output("a").ends_with("finished\n"));
    drop(deaf);
}
