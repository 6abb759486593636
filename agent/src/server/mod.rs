//! The agent's own HTTP/1.1 server, with kubelet's paths: on streams of the tunnel for the master, on
//! a Unix socket (root only) for commands on the device. It finds the pod and hands the stream on.

mod answer;
mod query;
mod streams;
pub(crate) mod summary;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use crate::context::Context;
use crate::pod::registry::Registry;
use crate::server::answer::{Body, Refusal, json, text};
use crate::tunnel::ServeHttp;

const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// After an accept that failed, as without descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Commands on the device at once.
const LOCAL_CONNECTIONS_MAX: usize = 32;

pub(crate) struct Server {
    context: Arc<Context>,
    registry: Arc<Registry>,
}

/// Who asks: the master, or root on this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    Master,
    Device,
}

impl Server {
    pub(crate) fn new(context: Arc<Context>, registry: Arc<Registry>) -> Arc<Server> {
        Arc::new(Server { context, registry })
    }

    /// Serves the device's own commands for ever.
    pub(crate) async fn listen(self: Arc<Self>, path: &Path) -> std::io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let places = Arc::new(Semaphore::new(LOCAL_CONNECTIONS_MAX));
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection on the device was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
            let server = self.clone();
            tokio::spawn(async move {
                server.converse(stream, Asker::Device).await;
                drop(place);
            });
        }
    }

    async fn converse<S>(&self, stream: S, asker: Asker)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request| async move {
            Ok::<_, std::convert::Infallible>(self.handle(request, asker).await)
        });
        let result = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
        if let Err(error) = result {
            tracing::debug!(%error, "a connection to the agent's server ended");
        }
    }

    async fn handle(&self, request: Request<Incoming>, asker: Asker) -> Response<Body> {
        tracing::debug!(method = %request.method(), uri = %request.uri(), "served");
        match self.route(request, asker).await {
            Ok(response) => response,
            Err(refusal) => refusal.respond(),
        }
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        asker: Asker,
    ) -> Result<Response<Body>, Refusal> {
        let path = request.uri().path().to_owned();
        let parts: Vec<String> =
            path.split('/').filter(|part| !part.is_empty()).map(query::decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let get = request.method() == Method::GET;
        match parts.as_slice() {
            ["healthz" | "livez" | "readyz"] => Ok(text(StatusCode::OK, "ok")),
            ["pods"] => Ok(json(&self.pods())),
            ["metrics"] => Ok(text(StatusCode::OK, &summary::metrics(&self.registry))),
            ["stats", "summary"] => Ok(json(&summary::summary(&self.context, &self.registry))),
            ["containerLogs", namespace, pod, container] if get => {
                self.logs((namespace, pod, container), request.uri())
            }
            ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
                self.exec((namespace, pod, container), request).await
            }
            ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
                self.attach((namespace, pod, container), request).await
            }
            ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
                self.port_forward((namespace, pod), request).await
            }
            ["flotilla", "status"] if asker == Asker::Device => {
                Ok(json(&summary::status(&self.context, &self.registry)))
            }
            ["flotilla", "images"] if asker == Asker::Device => {
                Ok(json(&summary::images(&self.context)))
            }
            ["flotilla", "import"] if asker == Asker::Device => self.import(request.uri()).await,
            _ => Err(Refusal::new(StatusCode::NOT_FOUND, "404 page not found")),
        }
    }

    fn pods(&self) -> serde_json::Value {
        let items: Vec<serde_json::Value> = self
            .registry
            .all()
            .iter()
            .map(|view| {
                let mut pod = (*view.pod).clone();
                pod.status = Some(view.status.clone());
                serde_json::to_value(&pod).unwrap_or_default()
            })
            .collect();
        serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
    }

    async fn import(&self, uri: &http::Uri) -> Result<Response<Body>, Refusal> {
        let query = query::Query::parse(uri.query().unwrap_or_default());
        let path = std::path::PathBuf::from(query.one("path").unwrap_or_default());
        let images = self.context.engine.images.clone();
        let result = tokio::task::spawn_blocking(move || images.import(&path)).await;
        let failed = |why: String| Refusal::new(StatusCode::BAD_REQUEST, why);
        let images = result
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(crate::connection::chain(&error)))?;
        let names: Vec<String> = images
            .into_iter()
            .flat_map(|image| if image.tags.is_empty() { vec![image.id] } else { image.tags })
            .collect();
        Ok(json(&serde_json::json!({"imported": names})))
    }
}

impl ServeHttp for Server {
    async fn serve<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.converse(stream, Asker::Master).await;
    }
}
