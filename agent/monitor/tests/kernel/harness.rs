//! A monitor of its own per test, and a blocking client to it.

use std::collections::VecDeque;
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use monitor::MonitorConfig;
use monitor::protocol::{
    Answer, Call, ContainerSpec, ContainerState, Event, ExecSpec, Exit, Failure, Hello, Message,
    PROTOCOL_VERSION, Request,
};
use monitor::wire::{self, Decoder};

const PATIENCE: Duration = Duration::from_secs(20);
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Why this machine can't run containers; printed by whoever skips.
pub(crate) fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root");
    }
    if !Path::new("/bin/busybox").exists() {
        return Some("no /bin/busybox");
    }
    None
}

macro_rules! lab {
    () => {
        match $crate::harness::missing() {
            None => $crate::harness::Lab::new(),
            Some(reason) => {
                println!("SKIPPED: {reason}");
                return;
            }
        }
    };
}
pub(crate) use lab;

pub(crate) struct Lab {
    pub(crate) config: MonitorConfig,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) name: String,
    process: Child,
    pub(crate) client: Client,
}

impl Lab {
    pub(crate) fn new() -> Lab {
        Lab::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut MonitorConfig)) -> Lab {
        let dir = tempfile::Builder::new().prefix("monitor-").tempdir().unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("mt-{}-{number}", std::process::id());
        make_rootfs(&dir.path().join("rootfs"));
        let mut config = MonitorConfig::new(dir.path().join("run"));
        change(&mut config);
        let process = start(&config);
        let client = Client::connect(&config);
        Lab { config, dir, name, process, client }
    }

    pub(crate) fn spec(&self, id: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            id: id.into(),
            pod_uid: "uid".into(),
            name: id.into(),
            args: vec!["sh".into(), "-c".into(), script.into()],
            rootfs: self.dir.path().join("rootfs"),
            cgroup: format!("/{}/{id}", self.name),
            log_path: Some(self.log(id)),
            ..ContainerSpec::default()
        }
    }

    pub(crate) fn log(&self, id: &str) -> PathBuf {
        self.dir.path().join(format!("logs/{id}/0.log"))
    }

    pub(crate) fn log_text(&self, id: &str) -> String {
        fs::read_to_string(self.log(id)).unwrap_or_default()
    }

    pub(crate) fn output(&self, id: &str) -> String {
        let text = self.log_text(id);
        text.lines().map(|line| format!("{}\n", &line.splitn(4, ' ').last().unwrap())).collect()
    }

    pub(crate) fn run(&mut self, spec: ContainerSpec) -> Exit {
        let id = spec.id.clone();
        self.client.create(spec).unwrap();
        self.client.start(&id).unwrap();
        self.client.wait(&id)
    }

    /// Runs a script in a container of its own and answers its code and output.
    pub(crate) fn script(&mut self, spec: ContainerSpec) -> (i32, String) {
        let id = spec.id.clone();
        let exit = self.run(spec);
        (exit.code, self.output(&id))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn kill_monitor(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) fn restart_monitor(&mut self) {
        self.process = start(&self.config);
        self.client = Client::connect(&self.config);
    }

    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let ids: Vec<String> = match self.client.try_call(Request::List) {
            Some(Ok(Answer::List(list))) => list.into_iter().map(|state| state.id).collect(),
            _ => Vec::new(),
        };
        for id in ids {
            self.client.try_call(Request::Delete { id });
        }
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        for mount in fs::read_to_string("/proc/self/mounts").unwrap().lines() {
            let mut fields = mount.split(' ').skip(1);
            let (point, kind) = (fields.next().unwrap(), fields.next().unwrap());
            if kind.starts_with("cgroup") {
                let ours = Path::new(point).join(&self.name);
                if ours.exists() {
                    fs::remove_dir(ours).unwrap();
                }
            }
        }
    }
}

fn make_rootfs(root: &Path) {
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "sleep", "cat", "echo", "id", "true", "false", "ls", "dd", "mknod", "ps", "kill",
        "hostname", "stty", "grep", "touch", "mkdir", "mount", "chroot", "unshare", "seq", "head",
        "tail", "yes", "trap", "readlink", "stat", "od", "wc",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
}

/// A monitor built otherwise than the tests, for benchmarks.
pub(crate) const PROGRAM: &str = "MONITOR_PROGRAM";

fn start(config: &MonitorConfig) -> Child {
    let program = std::env::current_exe().unwrap();
    let program = program.parent().unwrap().parent().unwrap().join("examples/monitor");
    let program = std::env::var_os(PROGRAM).map_or(program, PathBuf::from);
    assert!(program.exists(), "{} is not built", program.display());
    Command::new(program).args(config.to_arguments()).stdin(Stdio::null()).spawn().unwrap()
}

pub(crate) struct Client {
    stream: UnixStream,
    decoder: Decoder,
    next: u64,
    pub(crate) events: VecDeque<Event>,
}

impl Client {
    pub(crate) fn connect(config: &MonitorConfig) -> Client {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(config.socket()) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "no monitor: {error}"),
            }
            std::thread::yield_now();
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client =
            Client { stream, decoder: Decoder::default(), next: 1, events: VecDeque::new() };
        let hello = Hello { version: PROTOCOL_VERSION, release: "test".into(), pid: 0 };
        wire::send(client.stream.as_fd(), &wire::encode(&hello).unwrap(), &[]).unwrap();
        let theirs: Hello = client.receive().expect("hello");
        assert_eq!(theirs.version, PROTOCOL_VERSION);
        client.call(Request::Subscribe).unwrap();
        client
    }

    fn receive<T: serde::de::DeserializeOwned>(&mut self) -> Option<T> {
        loop {
            if let Some(value) = self.decoder.next_frame().unwrap() {
                return Some(value);
            }
            let (mut buffer, mut fds) = ([0; 4096], Vec::new());
            match wire::receive(self.stream.as_fd(), &mut buffer, &mut fds) {
                Ok(count) if count > 0 => self.decoder.push(&buffer[..count], fds),
                _ => return None,
            }
        }
    }

    pub(crate) fn call_fds(
        &mut self,
        request: Request,
        fds: &[BorrowedFd<'_>],
    ) -> Option<(Result<Answer, Failure>, Vec<OwnedFd>)> {
        let call = Call { id: self.next, request, fds: fds.len() as u32 };
        self.next += 1;
        wire::send(self.stream.as_fd(), &wire::encode(&call).unwrap(), fds).ok()?;
        loop {
            match self.receive()? {
                Message::Answer { id, result, fds } if id == call.id => {
                    return Some((result, self.decoder.take_fds(fds).unwrap()));
                }
                Message::Answer { .. } => panic!("an answer nobody waits for"),
                Message::Event(event) => self.events.push_back(event),
            }
        }
    }

    pub(crate) fn socket(&self) -> &UnixStream {
        &self.stream
    }

    pub(crate) fn answer(&mut self, wanted: u64) -> Result<Answer, Failure> {
        loop {
            match self.receive().expect("an answer") {
                Message::Answer { id, result, .. } if id == wanted => return result,
                Message::Answer { .. } => {}
                Message::Event(event) => self.events.push_back(event),
            }
        }
    }

    pub(crate) fn try_call(&mut self, request: Request) -> Option<Result<Answer, Failure>> {
        self.call_fds(request, &[]).map(|(answer, _)| answer)
    }

    pub(crate) fn call(&mut self, request: Request) -> Result<Answer, Failure> {
        self.try_call(request).expect("the monitor's answer")
    }

    pub(crate) fn create(&mut self, spec: ContainerSpec) -> Result<ContainerState, Failure> {
        match self.call(Request::Create(Box::new(spec)))? {
            Answer::State(state) => Ok(*state),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn start(&mut self, id: &str) -> Result<Answer, Failure> {
        self.call(Request::Start { id: id.into() })
    }

    pub(crate) fn delete(&mut self, id: &str) -> Result<Answer, Failure> {
        self.call(Request::Delete { id: id.into() })
    }

    pub(crate) fn list(&mut self) -> Vec<ContainerState> {
        match self.call(Request::List).unwrap() {
            Answer::List(list) => list,
            other => panic!("{other:?}"),
        }
    }

    /// The next event that `pick` wants; the others are kept.
    pub(crate) fn event<T>(&mut self, pick: impl Fn(&Event) -> Option<T>) -> T {
        let mut at = 0;
        loop {
            if let Some(event) = self.events.get(at) {
                if let Some(picked) = pick(event) {
                    self.events.remove(at);
                    return picked;
                }
                at += 1;
                continue;
            }
            match self.receive().unwrap_or_else(|| panic!("no event; had {:?}", self.events)) {
                Message::Event(event) => self.events.push_back(event),
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn wait(&mut self, id: &str) -> Exit {
        self.event(|event| match event {
            Event::Exited(state) if state.id == id => state.exit.clone(),
            _ => None,
        })
    }

    /// Runs a command in a container: code and output.
    pub(crate) fn exec(&mut self, id: &str, args: &[&str]) -> Result<(i32, String), Failure> {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let spec = ExecSpec {
            id: id.into(),
            args: args.iter().map(|arg| (*arg).into()).collect(),
            stdout: true,
            stderr: true,
            ..ExecSpec::default()
        };
        let fds = [writer.as_fd(), writer.as_fd()];
        let (answer, _) = self.call_fds(Request::Exec(Box::new(spec)), &fds).unwrap();
        let Answer::Exec { exec, .. } = answer? else { panic!("no exec") };
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let code = self.event(|event| match event {
            Event::ExecExited { exec: ended, exit } if *ended == exec => Some(exit.code),
            _ => None,
        });
        Ok((code, text))
    }
}

/// Waits for a condition, with a deadline; `state` is printed when it does not come true.
pub(crate) fn until<T: std::fmt::Debug>(
    mut state: impl FnMut() -> T,
    done: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = state();
        if done(&now) {
            return now;
        }
        assert!(Instant::now() < deadline, "still {now:?}");
        std::thread::yield_now();
    }
}
