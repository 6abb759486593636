//! Owns the API server as a value: its parts, wired once. Must not do a request's work.

use std::{fmt, sync::Arc};

use apimachinery::status::ApiError;
use http::{Request, Response};
use store::Store;
use tokio::sync::watch;

use crate::{
    Body, Caller, Config, Resource, ResourceTable,
    admission::Chain,
    authn::{
        Authenticator,
        token_issuer::{IssuerConfig, TokenIssuer},
    },
    authz::Authorizer,
    expiry::Expiry,
    fence, handler,
    metrics::{Metrics, MetricsSource},
    nodes::Nodes,
    openapi::OpenApi,
    peers::Peers,
    registry::Registry,
    tunnel::Tunnels,
};

/// Why the API server could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The configuration can't work.
    #[error("configuration: {0}")]
    Config(String),
    /// An object that every cluster has could not be made.
    #[error("ensure {what}: {message}")]
    Ensure {
        /// The object.
        what: String,
        /// What the API said.
        message: String,
    },
}

pub(crate) struct Inner {
    config: Config,
    registry: Registry,
    expiry: Expiry,
    table: Arc<ResourceTable>,
    metrics: Metrics,
    authenticator: Authenticator,
    authorizer: Authorizer,
    admission: Chain,
    openapi: OpenApi,
    nodes: Nodes,
    peers: Peers,
    closing: watch::Sender<bool>,
}

/// The API server. Clones share everything.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer").finish_non_exhaustive()
    }
}

impl ApiServer {
    /// An API server over a store that was opened with [`crate::extract::ObjectExtract`], with the objects that every
    /// cluster has.
    ///
    /// # Errors
    /// The configuration can't work, or the store refuses to be written.
    pub async fn new(config: Config, store: Store) -> Result<Self, SetupError> {
        if config.event_ttl.as_secs() == 0 {
            return Err(SetupError::Config("events are kept for at least a second".into()));
        }
        if config.service_cidrs.is_empty() {
            return Err(SetupError::Config("no service CIDR".into()));
        }
        let issuer = TokenIssuer::new(IssuerConfig {
            key_pem: config.service_account_key_pem.clone(),
            public_keys_pem: config.service_account_public_keys_pem.clone(),
            issuer: config.service_account_issuer.clone(),
            audiences: config.api_audiences.clone(),
        })
        .map_err(|e| SetupError::Config(format!("service-account keys: {e}")))?;
        let authorizer = Authorizer::new(store.clone());
        let peers = Peers::new(store.clone(), &config);
        let nodes = Nodes::new(&config).map_err(SetupError::Config)?;
        let server = Self {
            inner: Arc::new(Inner {
                expiry: Expiry::new(store.clone(), config.event_ttl),
                config,
                authenticator: Authenticator::new(store.clone(), Arc::new(issuer)),
                admission: Chain::new(store.clone(), authorizer.clone()),
                authorizer,
                openapi: OpenApi::default(),
                peers,
                nodes,
                registry: Registry::new(store),
                table: Arc::new(ResourceTable::builtin()),
                metrics: Metrics::default(),
                closing: watch::Sender::new(false),
            }),
        };
        Box::pin(crate::ensure::ensure(&server)).await?;
        Ok(server)
    }

    /// Answers one request: what both the socket and an in-process client call. The body of a watch streams.
    pub async fn handle(&self, request: Request<Body>, caller: Caller) -> Response<Body> {
        match caller.fence.clone() {
            Some(fence) => fence::within(fence, handler::handle(self, request, caller)).await,
            None => handler::handle(self, request, caller).await,
        }
    }

    /// Keeps the `kubernetes` Service right, and the other masters told of this one, until `stop` turns true.
    pub async fn keep(&self, stop: watch::Receiver<bool>) {
        let telling = self.peers().keep(self.tunnels(), stop.clone());
        futures::future::join(crate::endpoints::keep(self, stop), telling).await;
    }

    /// Ends every watch, so that connections can drain.
    pub fn close(&self) {
        self.inner.closing.send_replace(true);
    }

    /// Turns true when watches are to end.
    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.inner.closing.subscribe()
    }

    /// Has `/metrics` tell the figures of another part of the program, too.
    pub fn add_metrics(&self, source: Arc<dyn MetricsSource>) {
        self.inner.metrics.add(source);
    }

    /// The tunnels of the nodes.
    pub fn tunnels(&self) -> &Tunnels {
        &self.inner.nodes.tunnels
    }

    pub(crate) fn nodes(&self) -> &Nodes {
        &self.inner.nodes
    }

    pub(crate) fn peers(&self) -> &Peers {
        &self.inner.peers
    }

    pub(crate) fn config(&self) -> &Config {
        &self.inner.config
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    pub(crate) fn expiry(&self) -> &Expiry {
        &self.inner.expiry
    }

    pub(crate) fn table(&self) -> &ResourceTable {
        &self.inner.table
    }

    /// Who calls, by credentials.
    pub fn authenticator(&self) -> &Authenticator {
        &self.inner.authenticator
    }

    /// Who may do what.
    pub fn authorizer(&self) -> &Authorizer {
        &self.inner.authorizer
    }

    pub(crate) fn admission(&self) -> &Chain {
        &self.inner.admission
    }

    pub(crate) fn openapi(&self) -> &OpenApi {
        &self.inner.openapi
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// A built-in row.
    pub(crate) fn row(&self, group: &str, plural: &str) -> Result<Arc<Resource>, ApiError> {
        self.table()
            .find(group, plural)
            .cloned()
            .ok_or_else(|| ApiError::internal(format!("no resource {plural} in group \"{group}\"")))
    }
}
