//! Constant load on a service: one connection per request, back to back, every failure kept.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::fixture::Fixture;

/// How long one request may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Pause between two requests, so that the load leaves the machine to what it tests.
const PACE: Duration = Duration::from_millis(5);

/// A request, by when it was begun, and why it failed if it did.
#[derive(Debug)]
pub struct Request {
    begun: Instant,
    failure: Option<String>,
}

/// What became of every request, in the order in which they were begun.
#[derive(Debug)]
pub struct Outcome {
    begin: Instant,
    requests: Vec<Request>,
}

impl Outcome {
    /// How many were answered with 200.
    #[must_use]
    pub fn good(&self) -> usize {
        self.requests.iter().filter(|request| request.failure.is_none()).count()
    }

    /// An error with the first failures when a request failed or too few were made.
    pub fn judge(&self, least: usize) -> Result<()> {
        let now = Instant::now();
        self.judge_outside(least, now..now)
    }

    /// The same, but for requests that were begun in `disturbed`: some of those must have been answered, others
    /// may have failed.
    pub fn judge_outside(&self, least: usize, disturbed: Range<Instant>) -> Result<()> {
        let (inside, outside): (Vec<&Request>, Vec<&Request>) =
            self.requests.iter().partition(|request| disturbed.contains(&request.begun));
        let bad: Vec<String> = outside
            .iter()
            .filter_map(|request| {
                let failure = request.failure.as_ref()?;
                Some(format!("after {:.2?}: {failure}", request.begun - self.begin))
            })
            .collect();
        let first = &bad[..bad.len().min(5)];
        ensure!(bad.is_empty(), "{} of {} requests failed: {first:?}", bad.len(), outside.len());
        ensure!(outside.len() >= least, "only {} requests were made", outside.len());
        let answered = inside.iter().filter(|request| request.failure.is_none()).count();
        ensure!(inside.is_empty() || answered > 0, "no request of {} was answered", inside.len());
        Ok(())
    }
}

/// Requests to a service's node port until it is told to stop.
#[derive(Debug)]
pub struct Requests {
    stop: Arc<AtomicBool>,
    worker: JoinHandle<Outcome>,
}

impl Requests {
    /// Starts to ask the first node port of a service (namespace and name) on `node`.
    pub fn start(f: &Fixture, (namespace, service): (&str, &str), node: &str) -> Result<Requests> {
        let path = "jsonpath={.spec.ports[0].nodePort}";
        let port = f.kubectl(&["get", "svc", service, "-n", namespace, "-o", path])?;
        let address = SocketAddr::new(f.lab.host(node)?.ip.into(), port.parse()?);
        let stop = Arc::new(AtomicBool::new(false));
        let worker = thread::spawn({
            let stop = Arc::clone(&stop);
            move || ask_until(address, &stop)
        });
        Ok(Requests { stop, worker })
    }

    /// Stops, and tells how it went.
    pub fn finish(self) -> Result<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        self.worker.join().map_err(|_| anyhow!("the load panicked"))
    }
}

fn ask_until(address: SocketAddr, stop: &AtomicBool) -> Outcome {
    let mut outcome = Outcome { begin: Instant::now(), requests: Vec::new() };
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let failure = ask(address).err().map(|error| format!("{error:#}"));
        outcome.requests.push(Request { begun, failure });
        thread::sleep(PACE);
    }
    outcome
}

fn ask(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE).context("connecting")?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    write!(stream, "GET /hostname HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading the answer")?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    Ok(())
}
