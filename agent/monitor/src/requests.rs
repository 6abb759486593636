//! What each request does.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use libcontainer::container::Container as Runtime;
use rustix::event::epoll::EventFlags;
use rustix::pipe::PipeFlags;

use crate::cgroup;
use crate::clock;
use crate::container::{Attacher, Reply, Starting};
use crate::log::{Lines, Stream};
use crate::monitor::{Handled, Monitor, failure};
use crate::poll::Source;
use crate::protocol::{
    Answer, ContainerState, Event, Failure, FailureKind, Message, Phase, Request, SignalTarget,
    TerminalSize,
};
use crate::signal;
use crate::stdio;

type Outcome = Result<Handled, Failure>;

/// Most who follow one output at once.
const ATTACHERS_MAX: usize = 16;

pub(crate) fn done() -> Outcome {
    Ok(Handled::Now(Answer::Done, Vec::new()))
}

impl Monitor {
    pub(crate) fn handle(&mut self, request: Request, fds: Vec<OwnedFd>, reply: Reply) -> Outcome {
        match request {
            Request::Subscribe => self.subscribe(reply),
            Request::Create(spec) => self.create(*spec, reply),
            Request::CreateInit { id, pod_uid, cgroup, namespaces } => {
                let init = crate::init::PodInit { cgroup: cgroup.into(), namespaces };
                self.create_init((id, pod_uid), init, reply)
            }
            Request::Start { id } => self.start(&id, reply),
            Request::Signal { id, signal, target } => self.signal(&id, signal, target),
            Request::Delete { id } => self.delete(&id, reply),
            Request::List => {
                let states =
                    self.containers.values().map(|container| container.state.clone()).collect();
                Ok(Handled::Now(Answer::List(states), Vec::new()))
            }
            Request::Exec(exec) => self.exec(*exec, fds, reply),
            Request::SignalExec { exec, signal } => self.signal_exec(exec, signal),
            Request::Attach { id, stdin } => self.attach(&id, stdin),
            Request::CloseStdin { id } => self.close_stdin(&id),
            Request::Resize { id, size } => self.resize(&id, size),
            Request::ReopenLog { id } => self.reopen_log(&id),
            Request::Restore { id } => self.restore(&id, fds),
            Request::Hold { id } => {
                let held = self.container(&id)?.to_hold().map_err(system)?;
                Ok(Handled::Now(Answer::Done, held))
            }
            Request::Upgrade { executable } => self.upgrade(&executable, reply),
        }
    }

    pub(crate) fn container(
        &mut self,
        id: &str,
    ) -> Result<&mut crate::container::Container, Failure> {
        self.containers
            .get_mut(id)
            .ok_or_else(|| failure(FailureKind::NotFound, format!("container {id:?} not found")))
    }

    fn subscribe(&mut self, reply: Reply) -> Outcome {
        if let Some(connection) = self.connections.get_mut(&reply.connection) {
            connection.subscribed = true;
        }
        let exited: Vec<ContainerState> = self
            .containers
            .values()
            .filter(|container| container.state.phase == Phase::Exited)
            .map(|container| container.state.clone())
            .collect();
        for state in exited {
            let event = Message::Event(Event::Exited(Box::new(state)));
            self.send(reply.connection, &event, Vec::new());
        }
        done()
    }

    fn start(&mut self, id: &str, reply: Reply) -> Outcome {
        let root = self.config.runtime_root().join(id);
        let container = self.container(id)?;
        if container.state.phase != Phase::Created {
            let message = format!("container {id:?} is {:?}, not Created", container.state.phase);
            return Err(failure(FailureKind::State, message));
        }
        Runtime::load(root)
            .and_then(|mut runtime| runtime.start())
            .map_err(|error| failure(FailureKind::System, error))?;
        match &mut container.starting {
            Some(starting) => starting.reply = Some(reply),
            None => {
                container.starting = Some(Starting { status: None, reply: Some(reply) });
                self.started(id, None);
            }
        }
        Ok(Handled::Later)
    }

    /// The program runs (its end of the status pipe was closed by running it) or says why not.
    pub(crate) fn status_ready(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some((fd, _)) =
            container.starting.as_ref().and_then(|starting| starting.status.as_ref())
        else {
            return;
        };
        let mut buffer = [0; 1024];
        match rustix::io::read(fd, &mut buffer) {
            Ok(0) => self.started(id, None),
            Ok(count) => {
                let message = String::from_utf8_lossy(&buffer[..count]).into_owned();
                self.started(id, Some(message));
            }
            Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => self.started(id, Some(error.to_string())),
        }
    }

    fn started(&mut self, id: &str, error: Option<String>) {
        let folder = self.config.container(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(starting) = container.starting.take() else { return };
        if let Some((fd, token)) = starting.status {
            self.poller.remove(&fd, token);
        }
        let Some(reply) = starting.reply else {
            // Killed before it was started.
            return;
        };
        let result = match error {
            None => {
                container.state.started_at = Some(clock::now());
                if container.state.phase == Phase::Created {
                    container.state.phase = Phase::Running;
                }
                container.save(&folder);
                Ok(Answer::State(Box::new(container.state.clone())))
            }
            Some(message) => {
                container.start_error = Some(message.clone());
                Err(failure(FailureKind::Executable, message))
            }
        };
        self.reply(reply, result, Vec::new());
    }

    fn signal(&mut self, id: &str, number: i32, target: SignalTarget) -> Outcome {
        let container = self.container(id)?;
        if container.state.phase == Phase::Exited {
            let message = format!("container {id:?} has exited");
            return Err(failure(FailureKind::State, message));
        }
        match target {
            // A process that this monitor has not reaped keeps its number; an adopted one is
            // reached through its pidfd.
            SignalTarget::Init => match &container.pidfd {
                Some((pidfd, _)) => signal::send_pidfd(pidfd.as_fd(), number),
                None => signal::send(container.state.pid, number),
            }
            .map_err(system)?,
            SignalTarget::All => cgroup::signal_all(&container.cgroup, number),
        }
        done()
    }

    fn signal_exec(&mut self, exec: u64, number: i32) -> Outcome {
        let pid = *self
            .execs
            .get(&exec)
            .ok_or_else(|| failure(FailureKind::NotFound, format!("exec {exec} is not running")))?;
        signal::send(pid, number).map_err(system)?;
        done()
    }

    fn attach(&mut self, id: &str, with_stdin: bool) -> Outcome {
        let container = self
            .containers
            .get_mut(id)
            .ok_or_else(|| failure(FailureKind::NotFound, format!("container {id:?} not found")))?;
        if container.state.phase == Phase::Exited {
            let message = format!("container {id:?} is not running");
            return Err(failure(FailureKind::State, message));
        }
        if container.attachers.len() >= ATTACHERS_MAX {
            return Err(failure(FailureKind::State, "too many attached"));
        }
        let mut fds = Vec::new();
        if with_stdin {
            fds.extend(container.to_hold().map_err(system)?);
        }
        let streams: Vec<Stream> = container.outputs.iter().map(|output| output.stream).collect();
        for stream in streams {
            let (reader, writer) =
                rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
                    .map_err(system)?;
            let source = Source::Attacher(id.to_owned());
            let token = self.poller.add(&writer, EventFlags::empty(), source).map_err(system)?;
            container.attachers.push(Attacher {
                fd: writer,
                token,
                stream,
                pending: Vec::new(),
                deadline: None,
            });
            fds.push(reader);
        }
        Ok(Handled::Now(Answer::Done, fds))
    }

    fn close_stdin(&mut self, id: &str) -> Outcome {
        let container = self.container(id)?;
        if container.stdin_once && container.stdin.take().is_some() {
            self.publish(Event::StdinClosed { id: id.to_owned() });
        }
        done()
    }

    fn resize(&mut self, id: &str, size: TerminalSize) -> Outcome {
        let container = self.container(id)?;
        match container.outputs.first() {
            Some(output) if container.terminal => {
                stdio::resize(output.fd.as_fd(), size).map_err(system)?;
                done()
            }
            _ => Err(failure(FailureKind::State, format!("container {id:?} has no terminal"))),
        }
    }

    fn reopen_log(&mut self, id: &str) -> Outcome {
        if let Some(log) = &mut self.container(id)?.log {
            log.reopen().map_err(system)?;
        }
        done()
    }

    fn restore(&mut self, id: &str, mut fds: Vec<OwnedFd>) -> Outcome {
        let container = self.container(id)?;
        let needs_master = container.terminal && container.outputs.is_empty();
        if let Some(master) = fds.pop()
            && needs_master
            && container.state.phase != Phase::Exited
        {
            self.add_output(id, master, Stream::Stdout).map_err(system)?;
        }
        done()
    }

    /// Follows one output of a container.
    pub(crate) fn add_output(
        &mut self,
        id: &str,
        fd: OwnedFd,
        stream: Stream,
    ) -> std::io::Result<()> {
        let Some(container) = self.containers.get_mut(id) else { return Ok(()) };
        let token = self.poller.add(&fd, EventFlags::IN, Source::Output(id.to_owned(), stream))?;
        container.outputs.push(crate::container::Output {
            fd,
            token,
            stream,
            lines: Lines::new(stream),
            paused: false,
        });
        Ok(())
    }

    fn delete(&mut self, id: &str, reply: Reply) -> Outcome {
        let Some(container) = self.containers.get_mut(id) else { return done() };
        container.deleting.push(reply);
        if container.state.phase == Phase::Exited {
            self.finish_delete(id);
        } else {
            cgroup::signal_all(&container.cgroup, libc::SIGKILL);
            let killed = match &container.pidfd {
                Some((pidfd, _)) => signal::send_pidfd(pidfd.as_fd(), libc::SIGKILL),
                None => signal::send(container.state.pid, libc::SIGKILL),
            };
            if let Err(error) = killed
                && error.raw_os_error() != Some(libc::ESRCH)
            {
                container.deleting.retain(|waiting| *waiting != reply);
                return Err(system(error));
            }
        }
        Ok(Handled::Later)
    }

    /// Removes what is left of an exited container, unless its cgroups still are to go.
    pub(crate) fn finish_delete(&mut self, id: &str) {
        let Some(container) = self.containers.get(id) else { return };
        if container.deleting.is_empty() || container.cleanup.is_some() {
            return;
        }
        let mut result = Ok(Answer::Done);
        for folder in [self.config.runtime_root().join(id), self.config.container(id)] {
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    result = Err(system(format!("{}: {error}", folder.display())));
                }
                _ => {}
            }
        }
        let Some(container) = self.containers.remove(id) else { return };
        for attacher in &container.attachers {
            self.poller.remove(&attacher.fd, attacher.token);
        }
        for reply in container.deleting {
            self.reply(reply, result.clone(), Vec::new());
        }
    }
}

pub(crate) fn system(error: impl ToString) -> Failure {
    failure(FailureKind::System, error)
}
