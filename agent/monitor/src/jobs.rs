//! Creates and execs: what is prepared before a creator is forked, and what follows its report.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libcontainer::oci_spec::runtime::LinuxCapabilities;
use rustix::event::epoll::EventFlags;
use rustix::pipe::PipeFlags;
use serde_json::json;

use crate::cgroup;
use crate::container::{self, Container, Reply, Starting};
use crate::creator::{self, Job, Order, Work};
use crate::executor::{self, ExecRights};
use crate::init::PodInit;
use crate::log::{Bounds, LogFile, Stream};
use crate::monitor::{Child, Handled, Monitor, failure};
use crate::poll::Source;
use crate::protocol::{Answer, ContainerSpec, ExecSpec, Failure, FailureKind, Phase};
use crate::requests::system;
use crate::spec::{self, Host, HostDevice};
use crate::stdio::{self, ContainerEnds, MonitorEnds};
use crate::validate;

/// A creator that takes longer is killed: mounts of a dead server hang for good.
const CREATE_SECONDS_MAX: u64 = 120;
/// As runc says it, whose text people search for.
const OOM_AT_START: &str = "container init was OOM-killed (memory limit too low?)";
/// Device nodes below `/dev` given to a privileged container.
const DEVICES_MAX: usize = 4096;

/// A creator at work.
#[derive(Debug)]
pub(crate) struct Pending {
    job: Job,
    reply: Reply,
    pub(crate) deadline: Instant,
    console: Option<Console>,
    what: What,
}

#[derive(Debug)]
enum What {
    Container(Box<Container>, MonitorEnds, Option<OwnedFd>),
    Exec { id: String, process: PathBuf },
}

/// A socket that a pty's master comes through; its file goes with it.
#[derive(Debug)]
struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "can't remove a console socket");
        }
    }
}

impl Console {
    fn listen(path: PathBuf) -> Result<Console, Failure> {
        let listener = stdio::listen(&path).map_err(system)?;
        Ok(Console { path, listener })
    }
}

impl Monitor {
    pub(crate) fn create(&mut self, spec: ContainerSpec, reply: Reply) -> Result<Handled, Failure> {
        let invalid = |message: String| failure(FailureKind::Invalid, message);
        validate::validate(&spec).map_err(invalid)?;
        validate::ensure_cwd(&spec).map_err(invalid)?;
        self.check_free(&spec.id)?;
        let config = spec::render(&spec, &observe_host(&spec))
            .map_err(|error| failure(FailureKind::Invalid, error))?;
        let folder = self.make_folder(&spec.id)?;
        let started = self.spawn_container(&spec, &config, &folder, reply);
        if started.is_err() {
            self.discard(&spec.id, Path::new(&spec.cgroup));
        }
        started
    }

    fn spawn_container(
        &mut self,
        spec: &ContainerSpec,
        config: &serde_json::Value,
        folder: &Path,
        reply: Reply,
    ) -> Result<Handled, Failure> {
        container::save_spec(folder, spec).map_err(system)?;
        let text = serde_json::to_vec(config).map_err(system)?;
        fs::write(folder.join("config.json"), text).map_err(system)?;
        let mut container = Box::new(Container::new(spec, false));
        if let Some(path) = &spec.log_path {
            let log = LogFile::open(path, self.log_bounds()).map_err(|error| {
                failure(FailureKind::System, format!("log {}: {error}", path.display()))
            })?;
            container.log = Some(log);
        }
        let (ends, ours, console) = if spec.terminal {
            let console = Console::listen(folder.join("console.sock"))?;
            (stdio::null().map_err(system)?, MonitorEnds::default(), Some(console))
        } else {
            let (ends, ours) = stdio::create(folder, &spec.user, spec.stdin).map_err(system)?;
            (ends, ours, None)
        };
        let (status, writer) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(system)?;
        let order = Order {
            id: spec.id.clone(),
            root: self.config.runtime_root(),
            work: Work::Create { bundle: folder.to_owned() },
            stdio: ends,
            console: console.as_ref().map(|console| console.path.clone()),
            status: Some(writer),
        };
        let what = What::Container(container, ours, Some(status));
        self.spawn(order, what, console, reply)
    }

    pub(crate) fn create_init(
        &mut self,
        (id, pod_uid): (String, String),
        init: PodInit,
        reply: Reply,
    ) -> Result<Handled, Failure> {
        validate::validate_id(&id).map_err(|error| failure(FailureKind::Invalid, error))?;
        self.check_free(&id)?;
        let spec = ContainerSpec {
            id: id.clone(),
            pod_uid,
            cgroup: init.cgroup.to_string_lossy().into_owned(),
            ..ContainerSpec::default()
        };
        let folder = self.make_folder(&id)?;
        container::save_spec(&folder, &spec).map_err(system)?;
        let order = Order {
            id,
            root: self.config.runtime_root(),
            work: Work::Init(init),
            stdio: stdio::null().map_err(system)?,
            console: None,
            status: None,
        };
        let container = Box::new(Container::new(&spec, true));
        self.spawn(order, What::Container(container, MonitorEnds::default(), None), None, reply)
    }

    pub(crate) fn exec(
        &mut self,
        exec: ExecSpec,
        fds: Vec<OwnedFd>,
        reply: Reply,
    ) -> Result<Handled, Failure> {
        let container = self.container(&exec.id)?;
        if container.state.phase != Phase::Running || container.is_init {
            let message = format!("container {:?} is not running", exec.id);
            return Err(failure(FailureKind::State, message));
        }
        if exec.args.is_empty() {
            return Err(failure(FailureKind::Invalid, "no command specified"));
        }
        let folder = self.config.container(&exec.id);
        let spec = container::load_spec(&folder).map_err(system)?;
        let number = self.next_exec;
        self.next_exec += 1;
        let (process, rights) = render_exec(&spec, &exec.args, exec.terminal)?;
        let path = folder.join(format!("exec-{number}.json"));
        fs::write(&path, serde_json::to_vec(&process).map_err(system)?).map_err(system)?;
        let console = match exec.terminal {
            true => Some(Console::listen(folder.join(format!("exec-{number}.sock")))?),
            false => None,
        };
        let order = Order {
            id: exec.id.clone(),
            root: self.config.runtime_root(),
            work: Work::Exec {
                process: path.clone(),
                rights: rights.map(Box::new),
                size: exec.size,
            },
            stdio: exec_stdio(&exec, fds)?,
            console: console.as_ref().map(|console| console.path.clone()),
            status: None,
        };
        let what = What::Exec { id: exec.id, process: path };
        self.spawn(order, what, console, reply)
    }

    fn spawn(
        &mut self,
        order: Order,
        what: What,
        console: Option<Console>,
        reply: Reply,
    ) -> Result<Handled, Failure> {
        let job = creator::spawn(order).map_err(system)?;
        let pid = job.pid.as_raw();
        let token =
            self.poller.add(job.descriptor(), EventFlags::IN, Source::Job).map_err(system)?;
        self.children.insert(pid, Child::Creator(token));
        let deadline = Instant::now() + Duration::from_secs(CREATE_SECONDS_MAX);
        self.jobs.insert(token, Pending { job, reply, deadline, console, what });
        Ok(Handled::Later)
    }

    pub(crate) fn job_ready(&mut self, token: u64) {
        let report = self.jobs.get_mut(&token).and_then(|pending| pending.job.read());
        if let Some(result) = report {
            self.finish_job(token, result);
        }
    }

    /// The creator is gone: whatever it said is there to be read.
    pub(crate) fn creator_exited(&mut self, token: u64) {
        let report = self.jobs.get_mut(&token).map(|pending| pending.job.read());
        if let Some(result) = report {
            self.finish_job(token, result.unwrap_or(Err("the creator died".to_owned())));
        }
    }

    pub(crate) fn job_timed_out(&mut self, token: u64) {
        if let Some(pending) = self.jobs.get(&token) {
            let pid = pending.job.pid.as_raw();
            if let Err(error) = crate::signal::send(pid, libc::SIGKILL) {
                tracing::warn!(pid, %error, "can't kill a creator");
            }
            self.finish_job(token, Err(format!("not done after {CREATE_SECONDS_MAX} seconds")));
        }
    }

    fn finish_job(&mut self, token: u64, result: Result<i32, String>) {
        let Some(pending) = self.jobs.remove(&token) else { return };
        self.poller.remove(pending.job.descriptor(), token);
        let Pending { reply, console, what, .. } = pending;
        let console = console.as_ref();
        let answer = match (what, result) {
            (What::Container(container, ends, status), Ok(pid)) => {
                self.made_container(*container, (ends, status), pid, console)
            }
            (What::Container(container, ..), Err(mut message)) => {
                if cgroup::oom_kills(&container.cgroup) > 0 {
                    message = format!("{OOM_AT_START}: {message}");
                }
                self.discard(&container.state.id, &container.cgroup);
                Err(classify(message))
            }
            (What::Exec { id, process }, result) => {
                remove_file(&process);
                self.made_exec(&id, result, console)
            }
        };
        match answer {
            Ok((answer, fds)) => self.reply(reply, Ok(answer), fds),
            Err(failure) => self.reply(reply, Err(failure), Vec::new()),
        }
        self.settle_early();
    }

    fn made_container(
        &mut self,
        mut container: Container,
        (ends, status): (MonitorEnds, Option<OwnedFd>),
        pid: i32,
        console: Option<&Console>,
    ) -> Result<(Answer, Vec<OwnedFd>), Failure> {
        let id = container.state.id.clone();
        container.state.pid = pid;
        container.state.pid_start_time = container::start_time(pid).unwrap_or(0);
        container.stdin = ends.stdin;
        if container.is_init {
            container.state.phase = Phase::Running;
            container.state.started_at = Some(crate::clock::now());
        }
        if let Some(status) = status {
            let source = Source::Status(id.clone());
            let token = self.poller.add(&status, EventFlags::IN, source).map_err(system)?;
            container.starting = Some(Starting { status: Some((status, token)), reply: None });
        }
        container.save(&self.config.container(&id));
        self.children.insert(pid, Child::Container(id.clone()));
        self.containers.insert(id.clone(), container);
        let outputs = [(ends.stdout, Stream::Stdout), (ends.stderr, Stream::Stderr)];
        for (fd, stream) in outputs {
            if let Some(fd) = fd {
                self.add_output(&id, fd, stream).map_err(system)?;
            }
        }
        if let Some(console) = console {
            let master = stdio::accept_console(&console.listener).map_err(system)?;
            self.add_output(&id, master, Stream::Stdout).map_err(system)?;
        }
        let container = self.container(&id)?;
        let held = container.to_hold().map_err(system)?;
        Ok((Answer::State(Box::new(container.state.clone())), held))
    }

    fn made_exec(
        &mut self,
        id: &str,
        result: Result<i32, String>,
        console: Option<&Console>,
    ) -> Result<(Answer, Vec<OwnedFd>), Failure> {
        let pid = result.map_err(classify)?;
        let exec = self.next_exec;
        self.next_exec += 1;
        self.execs.insert(exec, pid);
        self.children.insert(pid, Child::Exec(exec));
        let mut fds = Vec::new();
        if let Some(console) = console {
            fds.push(stdio::accept_console(&console.listener).map_err(system)?);
        }
        tracing::debug!(id, exec, pid, "exec");
        Ok((Answer::Exec { exec, pid }, fds))
    }

    fn check_free(&self, id: &str) -> Result<(), Failure> {
        let is_coming = self.jobs.values().any(|pending| match &pending.what {
            What::Container(container, ..) => container.state.id == id,
            What::Exec { .. } => false,
        });
        if is_coming || self.containers.contains_key(id) {
            return Err(failure(FailureKind::Exists, format!("container {id:?} exists")));
        }
        Ok(())
    }

    fn make_folder(&self, id: &str) -> Result<PathBuf, Failure> {
        let folder = self.config.container(id);
        // What a creator left that died with its monitor.
        for left in [&folder, &self.config.runtime_root().join(id)] {
            match fs::remove_dir_all(left) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(system(error));
                }
                _ => {}
            }
        }
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(system)?;
        Ok(folder)
    }

    /// Removes what a failed create left.
    fn discard(&mut self, id: &str, cgroup: &Path) {
        cgroup::signal_all(cgroup, libc::SIGKILL);
        if let Err(error) = cgroup::remove(cgroup) {
            tracing::warn!(id, %error, "a failed container's cgroup stays");
        }
        for folder in [self.config.runtime_root().join(id), self.config.container(id)] {
            if let Err(error) = fs::remove_dir_all(&folder)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(id, %error, "a failed container's folder stays");
            }
        }
    }

    pub(crate) fn log_bounds(&self) -> Bounds {
        Bounds { bytes_max: self.config.log_bytes_max, files_max: self.config.log_files_max }
    }
}

fn remove_file(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "can't remove");
    }
}

fn classify(message: String) -> Failure {
    match message.find(executor::PROGRAM) {
        Some(at) => failure(FailureKind::Executable, &message[at..]),
        None => failure(FailureKind::System, message),
    }
}

/// An exec'd process has the container's filter, which libcontainer leaves out: our executor loads
/// it. Without `noNewPrivileges` that needs rights, which are dropped again behind it.
fn render_exec(
    spec: &ContainerSpec,
    args: &[String],
    terminal: bool,
) -> Result<(serde_json::Value, Option<ExecRights>), Failure> {
    let invalid = |error: spec::SpecError| failure(FailureKind::Invalid, error);
    let names = spec::effective_capabilities(spec, available_capabilities()).map_err(invalid)?;
    let Some(filter) = spec::seccomp(spec, &names).map_err(invalid)? else {
        return Ok((spec::exec_process(spec, &names, args, terminal), None));
    };
    let filter = serde_json::from_value(filter).map_err(system)?;
    let mut wider = names.clone();
    let mut keep = None;
    if !spec.no_new_privileges {
        wider.extend(["CAP_SYS_ADMIN", "CAP_SETPCAP"]);
        wider.sort_unstable();
        wider.dedup();
        let sets = json!({
            "bounding": names, "effective": names, "permitted": names,
            "inheritable": [], "ambient": [],
        });
        keep = Some(serde_json::from_value::<LinuxCapabilities>(sets).map_err(system)?);
    }
    let process = spec::exec_process(spec, &wider, args, terminal);
    Ok((process, Some(ExecRights { filter, keep })))
}

fn exec_stdio(exec: &ExecSpec, fds: Vec<OwnedFd>) -> Result<ContainerEnds, Failure> {
    let mut ends = stdio::null().map_err(system)?;
    if exec.terminal {
        return Ok(ends);
    }
    let mut fds = fds.into_iter();
    let missing = || failure(FailureKind::Invalid, "a descriptor is missing");
    if exec.stdin {
        ends.stdin = fds.next().ok_or_else(missing)?;
    }
    if exec.stdout {
        ends.stdout = fds.next().ok_or_else(missing)?;
    }
    if exec.stderr {
        ends.stderr = fds.next().ok_or_else(missing)?;
    }
    Ok(ends)
}

/// The monitor's own effective capabilities.
fn available_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn observe_host(spec: &ContainerSpec) -> Host {
    let mut devices = Vec::new();
    if spec.privileged {
        observe_devices(Path::new("/dev"), &mut devices);
    }
    for device in &spec.devices {
        devices.extend(observe_device(&device.host_path));
    }
    Host {
        capabilities: available_capabilities(),
        cgroup_v2: cgroup::is_unified(),
        devices,
        swap_limit: cgroup::limits_swap(),
    }
}

/// All device nodes but ptys and what the container gets anyway.
fn observe_devices(folder: &Path, devices: &mut Vec<HostDevice>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let path = entry.path();
        let is_own = ["/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/console"]
            .iter()
            .any(|own| path == Path::new(own));
        if is_own || devices.len() >= DEVICES_MAX {
            continue;
        }
        if kind.is_dir() {
            observe_devices(&path, devices);
        } else if kind.is_char_device() || kind.is_block_device() {
            devices.extend(observe_device(&path));
        }
    }
}

fn observe_device(path: &Path) -> Option<HostDevice> {
    let metadata = path.metadata().ok()?;
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => 'c',
        kind if kind.is_block_device() => 'b',
        _ => return None,
    };
    Some(HostDevice {
        path: path.to_owned(),
        kind,
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}
