//! Constant load on a service: one connection per request, back to back, every failure kept.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
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

/// Requests that went well, and why the others did not.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Answered with 200.
    pub good: usize,
    /// What went wrong, and how long after the beginning.
    pub bad: Vec<String>,
}

impl Outcome {
    /// An error with the first failures when a request failed or too few were made.
    pub fn judge(&self, least: usize) -> Result<()> {
        let (good, bad) = (self.good, self.bad.len());
        let first = &self.bad[..bad.min(5)];
        ensure!(bad == 0, "{bad} of {} requests failed: {first:?}", good + bad);
        ensure!(good >= least, "only {good} requests were made");
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
    let begin = Instant::now();
    let mut outcome = Outcome::default();
    while !stop.load(Ordering::Relaxed) {
        match ask(address) {
            Ok(()) => outcome.good += 1,
            Err(error) => outcome.bad.push(format!("after {:.2?}: {error:#}", begin.elapsed())),
        }
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
