//! Probes: one task each, so that a hung one starves no other. A task counts results against its
//! thresholds and tells the pod's worker when the verdict changes; it acts on nothing.

pub(crate) mod grpc;
pub(crate) mod http;

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ExecAction, GRPCAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::sync::{Semaphore, mpsc};

use crate::engine::Engine;

/// Kubernetes' defaults of a probe.
const PERIOD_DEFAULT_SECONDS: i32 = 10;
const TIMEOUT_DEFAULT_SECONDS: i32 = 1;
const FAILURES_DEFAULT: i32 = 3;
/// Names looked up at once: a dead DNS server must leave blocking threads to others.
const LOOKUPS_MAX: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    /// As in events: "Readiness probe failed: …".
    pub(crate) fn title(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }

    /// As in "failed liveness probe".
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Startup => "startup",
            Kind::Liveness => "liveness",
            Kind::Readiness => "readiness",
        }
    }

    fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Kind::Startup => container.startup_probe.as_ref(),
            Kind::Liveness => container.liveness_probe.as_ref(),
            Kind::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// What a probe tells the worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) container: String,
    pub(crate) id: String,
    pub(crate) kind: Kind,
    /// The verdict, when this result made one.
    pub(crate) verdict: Option<bool>,
    /// Why a single try failed.
    pub(crate) failure: Option<String>,
    /// What is to be said of one that didn't.
    pub(crate) warning: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    /// The thing probed says no.
    #[error("{0}")]
    Failed(String),
}

/// Where handlers of one container go.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) engine: Arc<Engine>,
    pub(crate) id: String,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) container: Container,
}

/// Consecutive results against thresholds; verdicts change only at a threshold.
#[derive(Debug)]
struct Counter {
    successes_needed: i32,
    failures_needed: i32,
    last: Option<bool>,
    run: i32,
}

impl Counter {
    fn add(&mut self, success: bool) -> Option<bool> {
        self.run = if self.last == Some(success) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let needed = if success { self.successes_needed } else { self.failures_needed };
        (self.run >= needed).then_some(success)
    }
}

/// What is left of the time that a container has before its first probe.
fn initial_wait(delay: Duration, started_at: Timestamp, now: Timestamp) -> Duration {
    // A clock set back counts as none of it gone.
    let passed = Duration::try_from(now.duration_since(started_at)).unwrap_or_default();
    delay.saturating_sub(passed)
}

/// Starts one probe of a container, if it has that kind. The task ends when `tell` is closed or with
/// its handle.
pub(crate) fn spawn<T: Send + 'static>(
    kind: Kind,
    target: Target,
    started_at: Timestamp,
    tell: mpsc::Sender<T>,
    wrap: fn(Report) -> T,
) -> Option<tokio::task::AbortHandle> {
    let probe = kind.of(&target.container)?.clone();
    let task = tokio::spawn(async move {
        let seconds = |value: Option<i32>, default: i32| {
            Duration::from_secs(u64::try_from(value.unwrap_or(default)).unwrap_or(1))
        };
        let period = seconds(probe.period_seconds.filter(|p| *p > 0), PERIOD_DEFAULT_SECONDS);
        let timeout = seconds(probe.timeout_seconds.filter(|t| *t > 0), TIMEOUT_DEFAULT_SECONDS);
        let mut counter = Counter {
            successes_needed: probe.success_threshold.unwrap_or(1).max(1),
            failures_needed: probe.failure_threshold.filter(|f| *f > 0).unwrap_or(FAILURES_DEFAULT),
            last: None,
            run: 0,
        };
        let delay = seconds(probe.initial_delay_seconds, 0);
        tokio::time::sleep(initial_wait(delay, started_at, Timestamp::now())).await;
        let mut tick = tokio::time::interval(period);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = None;
        loop {
            tick.tick().await;
            let result = once(&probe, &target, timeout).await;
            let verdict = counter.add(result.is_ok()).filter(|verdict| told != Some(*verdict));
            told = verdict.or(told);
            let (warning, failure) = match result {
                Ok(warning) => (warning, None),
                Err(error) => (None, Some(error.to_string())),
            };
            if verdict.is_none() && failure.is_none() && warning.is_none() {
                continue;
            }
            let report = Report {
                container: target.container.name.clone(),
                id: target.id.clone(),
                kind,
                verdict,
                failure,
                warning,
            };
            if tell.send(wrap(report)).await.is_err() {
                return;
            }
        }
    });
    Some(task.abort_handle())
}

/// A success may come with a warning.
async fn once(
    probe: &Probe,
    target: &Target,
    timeout: Duration,
) -> Result<Option<String>, ProbeError> {
    if let Some(action) = &probe.exec {
        return exec(action, target, timeout).await.map(|()| None);
    }
    if let Some(action) = &probe.http_get {
        return http_get(action, target, timeout).await.map(|answer| match answer {
            http::Answer::Success => None,
            http::Answer::Redirect => Some("Probe terminated redirects".to_owned()),
        });
    }
    if let Some(action) = &probe.tcp_socket {
        return tcp(action, target, timeout).await.map(|()| None);
    }
    if let Some(action) = &probe.grpc {
        return check_grpc(action, target, timeout).await.map(|()| None);
    }
    Err(ProbeError::Failed("missing probe handler".into()))
}

/// Runs a lifecycle hook once.
pub(crate) async fn run_hook(
    hook: &LifecycleHandler,
    target: &Target,
    timeout: Duration,
) -> Result<(), ProbeError> {
    if let Some(action) = &hook.exec {
        return exec(action, target, timeout).await;
    }
    if let Some(action) = &hook.http_get {
        return http_get(action, target, timeout).await.map(|_| ());
    }
    if let Some(action) = &hook.sleep {
        let wanted = Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0));
        tokio::time::sleep(wanted.min(timeout)).await;
        return Ok(());
    }
    Err(ProbeError::Failed("invalid handler: none of exec, httpGet, sleep".into()))
}

async fn exec(action: &ExecAction, target: &Target, timeout: Duration) -> Result<(), ProbeError> {
    let command = action.command.clone().unwrap_or_default();
    let text = command.join(" ");
    let run = target.engine.exec_capture(&target.id, command);
    match tokio::time::timeout(timeout, run).await {
        Err(_) => Err(ProbeError::Failed(format!(
            "command timed out: {text:?} timed out after {}s",
            timeout.as_secs()
        ))),
        Ok(Err(error)) => Err(ProbeError::Failed(error.to_string())),
        Ok(Ok(captured)) if captured.code == 0 => Ok(()),
        Ok(Ok(captured)) => Err(ProbeError::Failed(captured.output)),
    }
}

/// Where a handler goes: the pod, or the host it names.
async fn address(
    host: Option<&str>,
    port: u16,
    pod: Option<IpAddr>,
    timeout: Duration,
) -> Result<(String, SocketAddr), ProbeError> {
    let failed = |why: String| ProbeError::Failed(why);
    let Some(host) = host.filter(|host| !host.is_empty()) else {
        let ip = pod.ok_or_else(|| failed("the pod has no address".into()))?;
        return Ok((ip.to_string(), SocketAddr::new(ip, port)));
    };
    if let Ok(ip) = host.trim_matches(['[', ']']).parse() {
        return Ok((host.to_owned(), SocketAddr::new(ip, port)));
    }
    match tokio::time::timeout(timeout, lookup(host.to_owned(), port)).await {
        Ok(Some(address)) => Ok((host.to_owned(), address)),
        Ok(None) => Err(failed(format!("lookup {host}: no such host"))),
        Err(_) => Err(failed(format!("lookup {host}: i/o timeout"))),
    }
}

/// Takes a thread for as long as the resolver does, whoever still waits.
async fn lookup(host: String, port: u16) -> Option<SocketAddr> {
    static PLACES: Semaphore = Semaphore::const_new(LOOKUPS_MAX);
    let place = PLACES.acquire().await.ok()?;
    let found = tokio::task::spawn_blocking(move || {
        let found = (host, port).to_socket_addrs().ok().and_then(|mut found| found.next());
        drop(place);
        found
    });
    found.await.ok().flatten()
}

/// A number, or the name of one of the container's ports.
fn port(value: &IntOrString, container: &Container) -> Result<u16, ProbeError> {
    let number = match value {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let ports = container.ports.iter().flatten();
            let mut named = ports.filter(|port| port.name.as_deref() == Some(name.as_str()));
            named.next().map(|port| port.container_port).or_else(|| name.parse().ok())
        }
    };
    number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|port| *port > 0)
        .ok_or_else(|| ProbeError::Failed(format!("invalid port number: {value:?}")))
}

async fn http_get(
    action: &HTTPGetAction,
    target: &Target,
    timeout: Duration,
) -> Result<http::Answer, ProbeError> {
    let port = port(&action.port, &target.container)?;
    let begun = Instant::now();
    let (host, address) = address(action.host.as_deref(), port, target.ip, timeout).await?;
    let request = http::Get {
        secure: action.scheme.as_deref() == Some("HTTPS"),
        host,
        address,
        path: action.path.clone().unwrap_or_else(|| "/".into()),
        headers: action
            .http_headers
            .iter()
            .flatten()
            .map(|header| (header.name.clone(), header.value.clone()))
            .collect(),
    };
    let left = timeout.saturating_sub(begun.elapsed());
    http::get(request, left).await.map_err(ProbeError::Failed)
}

async fn tcp(
    action: &TCPSocketAction,
    target: &Target,
    timeout: Duration,
) -> Result<(), ProbeError> {
    let port = port(&action.port, &target.container)?;
    let begun = Instant::now();
    let (_, address) = address(action.host.as_deref(), port, target.ip, timeout).await?;
    let left = timeout.saturating_sub(begun.elapsed());
    let failed = |why: String| Err(ProbeError::Failed(why));
    match tokio::time::timeout(left, tokio::net::TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => failed(format!("dial tcp {address}: connect: {}", go_error(&error))),
        Err(_) => failed(format!("dial tcp {address}: i/o timeout")),
    }
}

/// An I/O error in Go's words.
pub(crate) fn go_error(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_lowercase(),
        None => error.to_string(),
    }
}

async fn check_grpc(
    action: &GRPCAction,
    target: &Target,
    timeout: Duration,
) -> Result<(), ProbeError> {
    let port = u16::try_from(action.port)
        .map_err(|_| ProbeError::Failed(format!("invalid port number: {}", action.port)))?;
    let (_, address) = address(None, port, target.ip, timeout).await?;
    let service = action.service.as_deref().unwrap_or_default();
    match tokio::time::timeout(timeout, grpc::check(address, service)).await {
        Ok(result) => result.map_err(ProbeError::Failed),
        Err(_) => {
            let why = format!("timeout: failed to connect service {address:?} within {timeout:?}");
            Err(ProbeError::Failed(why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_come_at_the_threshold() {
        let mut counter = Counter { successes_needed: 2, failures_needed: 3, last: None, run: 0 };
        let results = [false, false, true, false, false, false, true, true, true];
        let verdicts: Vec<_> = results.into_iter().map(|result| counter.add(result)).collect();
        assert_eq!(
            verdicts,
            [None, None, None, None, None, Some(false), None, Some(true), Some(true)]
        );
    }

    #[test]
    fn the_initial_delay_counts_from_the_start_of_the_container() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let wait = |now| initial_wait(Duration::from_secs(30), at(100), at(now)).as_secs();
        assert_eq!([wait(100), wait(110), wait(130), wait(500), wait(90)], [30, 20, 0, 0, 30]);
    }

    #[tokio::test]
    async fn addresses_of_handlers() {
        let pod: Option<IpAddr> = Some("10.1.0.2".parse().unwrap());
        let long = Duration::from_secs(5);
        let find = |host, pod| address(host, 80, pod, long);
        for (host, expected) in [
            (None, ("10.1.0.2", "10.1.0.2:80")),
            (Some(""), ("10.1.0.2", "10.1.0.2:80")),
            (Some("[::1]"), ("[::1]", "[::1]:80")),
        ] {
            let (name, address) = find(host, pod).await.unwrap();
            assert_eq!((name.as_str(), address.to_string().as_str()), expected);
        }
        assert!(find(Some("localhost"), pod).await.unwrap().1.ip().is_loopback());
        assert!(find(None, None).await.is_err());
        let late = address(Some("name.invalid"), 80, pod, Duration::ZERO).await;
        // What is said depends on how soon the resolver gives up.
        assert!(late.unwrap_err().to_string().starts_with("lookup name.invalid: "));
    }

    #[test]
    fn ports_by_number_and_name() {
        let container: Container = serde_json::from_value(serde_json::json!({
            "name": "c", "ports": [{"name": "web", "containerPort": 8080}]
        }))
        .unwrap();
        let run = |value| port(&value, &container).ok();
        assert_eq!(run(IntOrString::Int(80)), Some(80));
        assert_eq!(run(IntOrString::String("web".into())), Some(8080));
        assert_eq!(run(IntOrString::String("none".into())), None);
        assert_eq!(run(IntOrString::Int(70_000)), None);
    }
}
