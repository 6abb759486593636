//! One connection to the monitor at a time, kept up: calls out, answers and events in.
//!
//! Owns what is held for a dead monitor (pty masters, stdin writers) and hands it to the next one.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use monitor::protocol::{Answer, Call, Event, Exit, Hello, Message, PROTOCOL_VERSION, Request};
use monitor::wire::{self, Decoder, WireError};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::spawn::Spawner;
use super::{RuntimeConfig, RuntimeError, RuntimeEvent, borrow};

const READ_BYTES: usize = 16 << 10;
const GREETING_SECONDS_MAX: u64 = 10;
const RETRY_MILLIS_MIN: u64 = 50;
const RETRY_MILLIS_MAX: u64 = 5_000;

type AnswerResult = Result<(Answer, Vec<OwnedFd>), RuntimeError>;
/// The answer to come.
pub(super) type Answered = oneshot::Receiver<AnswerResult>;

/// A call on its way.
#[derive(Debug)]
pub(super) struct Outgoing {
    request: Request,
    pub(super) fds: Vec<OwnedFd>,
    /// Told when the process of an exec has ended.
    pub(super) exited: Option<oneshot::Sender<Exit>>,
    answer: oneshot::Sender<AnswerResult>,
}

impl Outgoing {
    pub(super) fn new(request: Request) -> (Outgoing, Answered) {
        let (answer, answered) = oneshot::channel();
        (Outgoing { request, fds: Vec::new(), exited: None, answer }, answered)
    }
}

#[derive(Debug)]
struct Waiting {
    answer: oneshot::Sender<AnswerResult>,
    exited: Option<oneshot::Sender<Exit>>,
    /// A create: what comes with the answer is held.
    holds: bool,
}

#[derive(Debug)]
pub(super) struct Link {
    spawner: Spawner,
    events: broadcast::Sender<RuntimeEvent>,
    stream: UnixStream,
    decoder: Decoder,
    monitor_pid: i32,
    monitor_version: u32,
    next: u64,
    waiting: HashMap<u64, Waiting>,
    execs: HashMap<u64, oneshot::Sender<Exit>>,
    held: HashMap<String, OwnedFd>,
    /// Execs whose callers went before the answer came: nobody else would end them.
    abandoned: Vec<u64>,
}

impl Link {
    pub(super) async fn connect(
        config: RuntimeConfig,
        events: broadcast::Sender<RuntimeEvent>,
    ) -> Result<Link, RuntimeError> {
        let mut spawner = Spawner::new(config);
        let stream = spawner.connect().await.map_err(RuntimeError::Start)?;
        let mut link = Link {
            spawner,
            events,
            stream,
            decoder: Decoder::default(),
            monitor_pid: 0,
            monitor_version: 0,
            next: 1,
            waiting: HashMap::new(),
            execs: HashMap::new(),
            held: HashMap::new(),
            abandoned: Vec::new(),
        };
        link.greet().await?;
        if let Err(error) = link.upgrade_outdated().await {
            tracing::warn!(%error, "the monitor stays what it is");
        }
        link.check_version()?;
        link.hold_all().await?;
        Ok(link)
    }

    /// A monitor of another program than this agent's becomes this one; containers don't notice.
    async fn upgrade_outdated(&mut self) -> Result<(), RuntimeError> {
        let Some(executable) = self.spawner.newer_than(self.monitor_pid) else { return Ok(()) };
        tracing::info!(pid = self.monitor_pid, "upgrading the monitor");
        match self.ask(Request::Upgrade { executable }, Vec::new()).await {
            Err(RuntimeError::Disconnected) => {}
            Err(RuntimeError::Wire(WireError::Io(_))) => {}
            Ok(_) => return Err(RuntimeError::Unexpected),
            Err(error) => return Err(error),
        }
        self.stream = self.spawner.connect().await.map_err(RuntimeError::Start)?;
        self.decoder = Decoder::default();
        self.waiting.clear();
        self.greet().await
    }

    /// Serves until the last [`super::Runtime`] is gone.
    pub(super) async fn run(mut self, mut outgoing: mpsc::Receiver<Outgoing>) {
        loop {
            let result = tokio::select! {
                call = outgoing.recv() => match call {
                    Some(call) => self.send(call).await,
                    None => return,
                },
                message = self.receive() => match message {
                    Ok((message, fds)) => { self.take(message, fds); self.kill_abandoned().await }
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = result {
                tracing::warn!(%error, "lost the monitor");
                self.reconnect().await;
            }
        }
    }

    async fn greet(&mut self) -> Result<(), RuntimeError> {
        let hello = Hello {
            version: PROTOCOL_VERSION,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            pid: i32::try_from(std::process::id()).unwrap_or(0),
        };
        self.write(&wire::encode(&hello)?, &[]).await?;
        let limit = Duration::from_secs(GREETING_SECONDS_MAX);
        let greeted = tokio::time::timeout(limit, self.read_frame::<Hello>()).await;
        let theirs = greeted.map_err(|_| RuntimeError::TimedOut)??;
        self.monitor_version = theirs.version;
        if theirs.pid != self.monitor_pid {
            // Ends of execs are known to the monitor that ran them alone.
            self.execs.clear();
            self.abandoned.clear();
        }
        self.monitor_pid = theirs.pid;
        self.ask(Request::Subscribe, Vec::new()).await.map(|_| ())
    }

    /// Duplicates of what an agent before this one held.
    async fn hold_all(&mut self) -> Result<(), RuntimeError> {
        let (Answer::List(states), _) = self.ask(Request::List, Vec::new()).await? else {
            return Err(RuntimeError::Unexpected);
        };
        for state in states.into_iter().filter(|state| state.exit.is_none()) {
            let request = Request::Hold { id: state.id.clone() };
            if let Ok((_, mut fds)) = self.ask(request, Vec::new()).await
                && let Some(fd) = fds.pop()
            {
                self.held.insert(state.id, fd);
            }
        }
        Ok(())
    }

    async fn restore_all(&mut self) -> Result<(), RuntimeError> {
        let ids: Vec<String> = self.held.keys().cloned().collect();
        for id in ids {
            let Some(fd) = self.held.get(&id) else { continue };
            let fd = fd.try_clone().map_err(RuntimeError::Local)?;
            match self.ask(Request::Restore { id: id.clone() }, vec![fd]).await {
                Ok(_) => {}
                Err(RuntimeError::Refused(_)) => {
                    self.held.remove(&id);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// One call before others are served; events that come meanwhile are passed on.
    async fn ask(&mut self, request: Request, fds: Vec<OwnedFd>) -> AnswerResult {
        let (mut call, mut answered) = Outgoing::new(request);
        call.fds = fds;
        self.send(call).await?;
        let limit = Duration::from_secs(GREETING_SECONDS_MAX);
        let exchange = async {
            loop {
                let (message, fds) = self.receive().await?;
                self.take(message, fds);
                if let Ok(result) = answered.try_recv() {
                    return result;
                }
            }
        };
        tokio::time::timeout(limit, exchange).await.map_err(|_| RuntimeError::TimedOut)?
    }

    async fn reconnect(&mut self) {
        self.waiting.clear();
        let mut pause = RETRY_MILLIS_MIN;
        loop {
            match self.try_reconnect().await {
                Ok(()) => break,
                Err(error) => tracing::error!(%error, "no monitor"),
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
            pause = (pause * 2).min(RETRY_MILLIS_MAX);
        }
        tracing::info!(pid = self.monitor_pid, "connected to the monitor");
        // Nobody may be listening yet.
        let _listeners = self.events.send(RuntimeEvent::Reconnected);
    }

    async fn try_reconnect(&mut self) -> Result<(), RuntimeError> {
        self.stream = self.spawner.connect().await.map_err(RuntimeError::Start)?;
        self.decoder = Decoder::default();
        self.greet().await?;
        self.check_version()?;
        self.restore_all().await
    }

    fn check_version(&self) -> Result<(), RuntimeError> {
        match self.monitor_version {
            version if version > PROTOCOL_VERSION => Err(RuntimeError::Newer(version)),
            _ => Ok(()),
        }
    }

    async fn send(&mut self, call: Outgoing) -> Result<(), RuntimeError> {
        let Outgoing { request, fds, exited, answer } = call;
        let id = self.next;
        self.next += 1;
        let holds = matches!(request, Request::Create(_));
        let count = u32::try_from(fds.len()).unwrap_or(0);
        let frame = match wire::encode(&Call { id, request, fds: count }) {
            Ok(frame) => frame,
            Err(error) => {
                // The caller may have gone; the link is fine.
                let _gone = answer.send(Err(error.into()));
                return Ok(());
            }
        };
        self.waiting.insert(id, Waiting { answer, exited, holds });
        self.write(&frame, &fds).await
    }

    async fn kill_abandoned(&mut self) -> Result<(), RuntimeError> {
        while let Some(exec) = self.abandoned.pop() {
            let request = Request::SignalExec { exec, signal: libc::SIGKILL };
            let (call, _unheard) = Outgoing::new(request);
            self.send(call).await?;
        }
        Ok(())
    }

    fn take(&mut self, message: Message, fds: Vec<OwnedFd>) {
        match message {
            Message::Answer { id, result, .. } => self.take_answer(id, result, fds),
            Message::Event(Event::Exited(state)) => {
                self.held.remove(&state.id);
                let _listeners = self.events.send(RuntimeEvent::Exited(state));
            }
            Message::Event(Event::ExecExited { exec, exit }) => {
                if let Some(exited) = self.execs.remove(&exec) {
                    let _gone = exited.send(exit);
                }
            }
            Message::Event(Event::StdinClosed { id }) => {
                self.held.remove(&id);
            }
        }
    }

    fn take_answer(
        &mut self,
        id: u64,
        result: Result<Answer, monitor::protocol::Failure>,
        mut fds: Vec<OwnedFd>,
    ) {
        let Some(waiting) = self.waiting.remove(&id) else { return };
        if let (Ok(Answer::Exec { exec, .. }), Some(exited)) = (&result, waiting.exited) {
            if waiting.answer.is_closed() {
                self.abandoned.push(*exec);
                return;
            }
            self.execs.insert(*exec, exited);
        }
        if let (Ok(Answer::State(state)), true) = (&result, waiting.holds)
            && let Some(fd) = fds.pop()
        {
            self.held.insert(state.id.clone(), fd);
        }
        let answer = result.map(|answer| (answer, fds)).map_err(RuntimeError::Refused);
        let _gone = waiting.answer.send(answer);
    }

    async fn receive(&mut self) -> Result<(Message, Vec<OwnedFd>), RuntimeError> {
        let message = self.read_frame::<Message>().await?;
        let count = match &message {
            Message::Answer { fds, .. } => *fds,
            Message::Event(_) => 0,
        };
        Ok((message, self.decoder.take_fds(count)?))
    }

    /// Safe to be dropped half-way: what was read is in the decoder.
    async fn read_frame<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, RuntimeError> {
        loop {
            if let Some(value) = self.decoder.next_frame()? {
                return Ok(value);
            }
            let mut buffer = vec![0; READ_BYTES];
            let mut fds = Vec::new();
            let stream = &self.stream;
            let read = stream.async_io(Interest::READABLE, || {
                wire::receive(stream.as_fd(), &mut buffer, &mut fds)
            });
            match read.await.map_err(WireError::Io)? {
                0 => return Err(RuntimeError::Disconnected),
                count => self.decoder.push(&buffer[..count], fds),
            }
        }
    }

    async fn write(&mut self, frame: &[u8], fds: &[OwnedFd]) -> Result<(), RuntimeError> {
        let mut sent = 0;
        while sent < frame.len() {
            let stream = &self.stream;
            let fds = if sent == 0 { borrow(fds) } else { Vec::new() };
            let write = stream
                .async_io(Interest::WRITABLE, || wire::send(stream.as_fd(), &frame[sent..], &fds));
            sent += write.await.map_err(lost)?;
        }
        Ok(())
    }
}

fn lost(error: io::Error) -> RuntimeError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => RuntimeError::Disconnected,
        _ => WireError::Io(error).into(),
    }
}
