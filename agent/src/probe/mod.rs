//! Probes: one task each, so that a hung one starves no other. A task counts results against its
//! thresholds and tells the pod's worker when the verdict changes; it acts on nothing.

pub(crate) mod grpc;
pub(crate) mod http;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Container, ExecAction, GRPCAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::sync::mpsc;

use crate::engine::Engine;

/// Kubernetes' defaults of a probe.
const PERIOD_DEFAULT_SECONDS: i32 = 10;
const TIMEOUT_DEFAULT_SECONDS: i32 = 1;
const FAILURES_DEFAULT: i32 = 3;

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

/// Starts one probe of a container, if it has that kind. The task ends when `tell` is closed or with
/// its handle.
pub(crate) fn spawn<T: Send + 'static>(
    kind: Kind,
    target: Target,
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
        tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
        let mut tick = tokio::time::interval(period);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = None;
        loop {
            tick.tick().await;
            let result = once(&probe, &target, timeout).await;
            let verdict = counter.add(result.is_ok()).filter(|verdict| told != Some(*verdict));
            told = verdict.or(told);
            let failure = result.err().map(|error| error.to_string());
            if verdict.is_none() && failure.is_none() {
                continue;
            }
            let report = Report {
                container: target.container.name.clone(),
                id: target.id.clone(),
                kind,
                verdict,
                failure,
            };
            if tell.send(wrap(report)).await.is_err() {
                return;
            }
        }
    });
    Some(task.abort_handle())
}

async fn once(probe: &Probe, target: &Target, timeout: Duration) -> Result<(), ProbeError> {
    if let Some(action) = &probe.exec {
        return exec(action, target, timeout).await;
    }
    if let Some(action) = &probe.http_get {
        return http_get(action, target, timeout).await;
    }
    if let Some(action) = &probe.tcp_socket {
        return tcp(action, target, timeout).await;
    }
    if let Some(action) = &probe.grpc {
        return check_grpc(action, target, timeout).await;
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
        return http_get(action, target, timeout).await;
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

fn address(
    host: Option<&str>,
    port: u16,
    target: &Target,
) -> Result<(String, SocketAddr), ProbeError> {
    let failed = |why: String| ProbeError::Failed(why);
    match host.filter(|host| !host.is_empty()) {
        Some(host) => {
            let ip: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
            let resolved = ip.or_else(|| {
                use std::net::ToSocketAddrs;
                (host, port).to_socket_addrs().ok()?.next().map(|address| address.ip())
            });
            let ip = resolved.ok_or_else(|| failed(format!("lookup {host}: no such host")))?;
            Ok((host.to_owned(), SocketAddr::new(ip, port)))
        }
        None => {
            let ip = target.ip.ok_or_else(|| failed("the pod has no address".into()))?;
            Ok((ip.to_string(), SocketAddr::new(ip, port)))
        }
    }
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
) -> Result<(), ProbeError> {
    let port = port(&action.port, &target.container)?;
    let (host, address) = address(action.host.as_deref(), port, target)?;
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
    http::get(&request, timeout).await.map_err(ProbeError::Failed)
}

async fn tcp(
    action: &TCPSocketAction,
    target: &Target,
    timeout: Duration,
) -> Result<(), ProbeError> {
    let port = port(&action.port, &target.container)?;
    let (_, address) = address(action.host.as_deref(), port, target)?;
    let failed = |why: String| Err(ProbeError::Failed(why));
    match tokio::time::timeout(timeout, tokio::net::TcpStream::connect(address)).await {
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
    let (_, address) = address(None, port, target)?;
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
