//! The streaming paths: which container is meant, which protocol the client speaks, and the upgrade.

use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderMap, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ContainerStatus;
use tokio::sync::mpsc;

use crate::pod::registry::{PodView, Registry};
use crate::pod::{container, spec, status};
use crate::server::Server;
use crate::server::answer::{Body, Refusal, streamed, switching};
use crate::server::query::Query;
use crate::stream::channels::{from_spdy, from_websocket};
use crate::stream::{Client, OUT_PIECES_MAX, Wanted, exec, logs, port_forward, websocket};

const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
const SPDY: &str = "SPDY/3.1";

type Place<'a> = (&'a str, &'a str, &'a str);

/// How a client wants to be spoken to.
enum Upgrade {
    WebSocket { protocol: String },
    Spdy { protocol: String },
}

impl Server {
    fn pod(&self, namespace: &str, pod: &str) -> Result<Arc<PodView>, Refusal> {
        self.registry.find(namespace, pod).ok_or_else(|| {
            Refusal::new(StatusCode::NOT_FOUND, format!("pod {pod:?} not found on this node"))
        })
    }

    /// The id of a running container.
    fn running(&self, (namespace, pod, name): Place<'_>) -> Result<String, Refusal> {
        let view = self.pod(namespace, pod)?;
        let found = find_status(&view, name);
        let running = found
            .filter(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()));
        running.and_then(container_id).ok_or_else(|| {
            let known = found.is_some();
            let message = if known {
                format!("container {name:?} in pod {pod:?} is not running")
            } else {
                format!("container not found (\"{name}\")")
            };
            Refusal::new(StatusCode::NOT_FOUND, message)
        })
    }

    pub(super) fn logs(
        &self,
        (namespace, pod, name): Place<'_>,
        uri: &Uri,
    ) -> Result<Response<Body>, Refusal> {
        let bad = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message);
        let query = Query::parse(uri.query().unwrap_or_default());
        let (options, previous) = query.logs(Timestamp::now()).map_err(bad)?;
        let view = self.pod(namespace, pod)?;
        let (path, id) = self.log_file(&view, name, previous)?;
        let (out, pieces) = mpsc::channel(OUT_PIECES_MAX);
        let (registry, namespace) = (self.registry.clone(), namespace.to_owned());
        let (pod, name) = (pod.to_owned(), name.to_owned());
        tokio::spawn(async move {
            let running = || still_running(&registry, (&namespace, &pod, &name), id.as_deref());
            if let Err(error) = logs::read(path, options, out, running).await {
                tracing::debug!(%error, "a log was not read to its end");
            }
        });
        Ok(streamed(pieces))
    }

    /// The file of a container's log and the id of the container that still writes to it.
    fn log_file(
        &self,
        view: &PodView,
        name: &str,
        previous: bool,
    ) -> Result<(PathBuf, Option<String>), Refusal> {
        let bad = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message);
        let pod = spec::name(&view.pod);
        let status = find_status(view, name)
            .ok_or_else(|| bad(format!("container {name} is not valid for pod {pod}")))?;
        let attempt = u32::try_from(status.restart_count).unwrap_or(0);
        let file = |attempt| container::log_path(&self.context.config, &view.pod, name, attempt);
        if previous {
            let before = attempt.checked_sub(1).map(file).filter(|path| path.exists());
            return before.map(|path| (path, None)).ok_or_else(|| {
                bad(format!("previous terminated container {name:?} in pod {pod:?} not found"))
            });
        }
        let candidates = [Some(attempt), attempt.checked_sub(1)];
        let found = candidates.into_iter().flatten().map(file).find(|path| path.exists());
        found.map(|path| (path, container_id(status))).ok_or_else(|| {
            let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
            let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
            let why = match reason {
                Some("ErrImagePull") => "image can't be pulled",
                Some("ImagePullBackOff") => "trying and failing to pull image",
                Some(other) => other,
                None => "ContainerCreating",
            };
            bad(format!("container {name:?} in pod {pod:?} is waiting to start: {why}"))
        })
    }

    pub(super) async fn exec(
        &self,
        place: Place<'_>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let command = query.all("command");
        if command.is_empty() {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "you must specify a command"));
        }
        let id = self.running(place)?;
        let wanted = query.wanted();
        let runtime = self.context.engine.runtime.clone();
        converse(request, wanted, move |client| async move {
            exec::exec(&runtime, (id, command), wanted, client).await;
        })
    }

    pub(super) async fn attach(
        &self,
        place: Place<'_>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let id = self.running(place)?;
        let wanted = query.wanted();
        let runtime = self.context.engine.runtime.clone();
        converse(request, wanted, move |client| async move {
            exec::attach(&runtime, id, wanted, client).await;
        })
    }

    pub(super) async fn port_forward(
        &self,
        (namespace, pod): (&str, &str),
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        let view = self.pod(namespace, pod)?;
        let name = spec::describe(&view.pod);
        let netns = view.netns.clone();
        let headers = request.headers().clone();
        let upgrade = hyper::upgrade::on(&mut request);
        if websocket::is_upgrade(&headers) {
            let offered = websocket::offered(&headers);
            if !offered.iter().any(|protocol| protocol == port_forward::TUNNELLED) {
                let message = format!(
                    "none of the protocols {offered:?} is supported; use {}",
                    port_forward::TUNNELLED
                );
                return Err(Refusal::new(StatusCode::BAD_REQUEST, message));
            }
            tokio::spawn(async move {
                let Some(io) = upgraded(upgrade).await else { return };
                let socket =
                    websocket::open(io, tokio_tungstenite::tungstenite::protocol::Role::Server)
                        .await;
                port_forward::serve(websocket::ByteStream::new(socket), netns, name).await;
            });
            return websocket_answer(&headers, port_forward::TUNNELLED);
        }
        expect_spdy(&headers)?;
        tokio::spawn(async move {
            if let Some(io) = upgraded(upgrade).await {
                port_forward::serve(io, netns, name).await;
            }
        });
        spdy_answer(port_forward::PROTOCOL)
    }
}

/// Answers the upgrade and, once the client has its channels, has `work` done with them.
fn converse<F, W>(
    mut request: Request<Incoming>,
    wanted: Wanted,
    work: W,
) -> Result<Response<Body>, Refusal>
where
    W: FnOnce(Client) -> F + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let headers = request.headers().clone();
    let kind = negotiate(&headers)?;
    let upgrade = hyper::upgrade::on(&mut request);
    let response = match &kind {
        Upgrade::WebSocket { protocol } => websocket_answer(&headers, protocol)?,
        Upgrade::Spdy { protocol } => spdy_answer(protocol)?,
    };
    tokio::spawn(async move {
        let Some(io) = upgraded(upgrade).await else { return };
        let client = match kind {
            Upgrade::WebSocket { .. } => Some(from_websocket(io).await),
            Upgrade::Spdy { .. } => from_spdy(io, wanted).await,
        };
        match client {
            Some(client) => work(client).await,
            None => tracing::debug!("a client did not open its streams"),
        }
    });
    Ok(response)
}

async fn upgraded(upgrade: hyper::upgrade::OnUpgrade) -> Option<TokioIo<Upgraded>> {
    match upgrade.await {
        Ok(io) => Some(TokioIo::new(io)),
        Err(error) => {
            tracing::debug!(%error, "an upgrade failed");
            None
        }
    }
}

fn negotiate(headers: &HeaderMap) -> Result<Upgrade, Refusal> {
    if websocket::is_upgrade(headers) {
        let offered = websocket::offered(headers);
        let chosen = PROTOCOLS.iter().find(|known| offered.iter().any(|name| name == *known));
        return chosen.map(|name| Upgrade::WebSocket { protocol: (*name).to_owned() }).ok_or_else(
            || {
                let message = format!(
                    "none of the protocols {offered:?} is supported; use one of {PROTOCOLS:?}"
                );
                Refusal::new(StatusCode::BAD_REQUEST, message)
            },
        );
    }
    expect_spdy(headers)?;
    let offered: Vec<String> = headers
        .get_all(STREAM_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_owned())
        .collect();
    let chosen = PROTOCOLS.iter().rev().find(|known| offered.iter().any(|name| name == *known));
    chosen.map(|name| Upgrade::Spdy { protocol: (*name).to_owned() }).ok_or_else(|| {
        let message = format!("unable to negotiate protocol: client supports {offered:?}, server supports {PROTOCOLS:?}");
        Refusal::new(StatusCode::FORBIDDEN, message)
    })
}

fn expect_spdy(headers: &HeaderMap) -> Result<(), Refusal> {
    let upgrade = headers.get(http::header::UPGRADE).and_then(|value| value.to_str().ok());
    if upgrade.is_some_and(|value| value.eq_ignore_ascii_case(SPDY)) {
        return Ok(());
    }
    Err(Refusal::new(
        StatusCode::BAD_REQUEST,
        "unable to upgrade: missing upgrade headers in request",
    ))
}

fn websocket_answer(headers: &HeaderMap, protocol: &str) -> Result<Response<Body>, Refusal> {
    let accept = websocket::accept_key(headers);
    switching(&[
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-accept", &accept),
        ("sec-websocket-protocol", protocol),
    ])
}

fn spdy_answer(protocol: &str) -> Result<Response<Body>, Refusal> {
    switching(&[("connection", "Upgrade"), ("upgrade", SPDY), (STREAM_PROTOCOL, protocol)])
}

fn find_status<'a>(view: &'a PodView, name: &str) -> Option<&'a ContainerStatus> {
    let status = &view.status;
    let all = [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ];
    all.into_iter().flatten().flatten().find(|status| status.name == name)
}

fn container_id(status: &ContainerStatus) -> Option<String> {
    let id = status.container_id.as_deref()?;
    let prefix = format!("{}://", status::RUNTIME_NAME);
    id.strip_prefix(&prefix).map(ToOwned::to_owned)
}

/// Whether the container with that id runs still (or is on its way).
fn still_running(registry: &Registry, place: Place<'_>, id: Option<&str>) -> bool {
    let (namespace, pod, name) = place;
    let Some(view) = registry.find(namespace, pod) else { return false };
    let Some(status) = find_status(&view, name) else { return false };
    let running = status.state.as_ref().is_some_and(|state| state.running.is_some());
    running && container_id(status).as_deref() == id
}
