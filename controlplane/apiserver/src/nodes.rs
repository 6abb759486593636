//! Owns how a node is reached: through its tunnel, or at its address where it has none. Must not know what is asked of it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use apimachinery::{
    object,
    status::{ApiError, Reason},
};
use http::StatusCode;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{ApiServer, Config, forward, peers::Holder, stored, tunnel::Tunnels};

/// A real kubelet's port where its node doesn't say.
const KUBELET_PORT: u16 = 10250;
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes both ways.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection toward a node.
pub(crate) type Stream = Box<dyn Duplex>;

/// Reaches nodes.
#[derive(Clone)]
pub(crate) struct Nodes {
    pub(crate) tunnels: Tunnels,
    tls: Arc<ClientConfig>,
    masters_tls: Arc<ClientConfig>,
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nodes").field("tunnels", &self.tunnels.len()).finish_non_exhaustive()
    }
}

/// How a node's own server is called.
pub(crate) struct NodeConnection {
    pub(crate) stream: Stream,
    /// `Host` of requests.
    pub(crate) host: String,
}

impl Nodes {
    pub(crate) fn new(config: &Config) -> Result<Self, String> {
        let nodes_ca = config.node_tls.ca_pem.as_ref().unwrap_or(&config.ca_pem);
        let tls = Arc::new(client_config(config, nodes_ca)?);
        let masters_tls = Arc::new(client_config(config, &config.ca_pem)?);
        Ok(Self { tunnels: Tunnels::default(), tls, masters_tls })
    }

    /// A connection to the node's own server.
    pub(crate) async fn dial(
        &self,
        server: &ApiServer,
        node: &str,
    ) -> Result<NodeConnection, ApiError> {
        if let Some(stream) = self.dial_tunnel(server, (node, None)).await? {
            return Ok(NodeConnection { stream, host: node.to_owned() });
        }
        let row = server.row("", "nodes")?;
        let node = stored::decode(&*server.registry().get(&row, "", node)?)?;
        let address = kubelet_address(&node)?;
        let stream = self.dial_tls(address).await.map_err(|e| unreachable(address, &e))?;
        Ok(NodeConnection { stream, host: address.to_string() })
    }

    /// A stream through the node's tunnel, wherever it ends; `None`: the node has none.
    async fn dial_tunnel(
        &self,
        server: &ApiServer,
        (node, address): (&str, Option<SocketAddr>),
    ) -> Result<Option<Stream>, ApiError> {
        let here = self.tunnels.has(node);
        match server.peers().holder(node) {
            // What this master holds is older, and may be dead without knowing it.
            Holder::Other(master) => {
                let forwarded = forward::dial(&self.masters_tls, master, (node, address)).await;
                match forwarded {
                    Err(_) if here => {}
                    other => return other.map(Some),
                }
            }
            Holder::Gone if !here => {
                let message = format!(
                    "error dialing backend: node \"{node}\": the master that held its tunnel is gone"
                );
                let code = StatusCode::BAD_GATEWAY.as_u16();
                return Err(ApiError::new(code, Reason::ServiceUnavailable, message));
            }
            Holder::Own | Holder::Gone if !here => return Ok(None),
            Holder::Own | Holder::Gone => {}
        }
        let stream: Stream = match address {
            None => Box::new(self.tunnels.dial_http(node).await?),
            Some(address) => Box::new(self.tunnels.dial_tcp(node, address).await?),
        };
        Ok(Some(stream))
    }

    async fn dial_tls(&self, address: SocketAddr) -> std::io::Result<Stream> {
        let connect = async {
            let stream = TcpStream::connect(address).await?;
            let connector = TlsConnector::from(Arc::clone(&self.tls));
            connector.connect(ServerName::IpAddress(address.ip().into()), stream).await
        };
        let stream = timeout(DIAL_TIMEOUT, connect).await.map_err(std::io::Error::from)??;
        Ok(Box::new(stream))
    }

    /// A TCP connection to an address in the pod network, made by the node that has it where that is known.
    pub(crate) async fn dial_tcp(
        &self,
        server: &ApiServer,
        (node, address): (&str, SocketAddr),
    ) -> Result<Stream, ApiError> {
        if let Some(stream) = self.dial_tunnel(server, (node, Some(address))).await? {
            return Ok(stream);
        }
        match timeout(DIAL_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(unreachable(address, &error)),
            Err(error) => Err(unreachable(address, &error.into())),
        }
    }
}

fn unreachable(address: SocketAddr, error: &std::io::Error) -> ApiError {
    let message = format!("error dialing backend: dial tcp {address}: {error}");
    ApiError::new(502, Reason::ServiceUnavailable, message)
}

/// Where a kubelet says that it listens (Kubernetes 1.36: InternalIP first).
fn kubelet_address(node: &Value) -> Result<SocketAddr, ApiError> {
    let of = |kind: &str| -> Option<IpAddr> {
        object::list(node, &["status", "addresses"])
            .find(|a| a["type"] == kind)
            .and_then(|a| a["address"].as_str()?.parse().ok())
    };
    let address =
        ["InternalIP", "ExternalIP"].iter().find_map(|kind| of(kind)).ok_or_else(|| {
            let name = object::name(node);
            let message = format!("node \"{name}\" has no tunnel to this master and no address");
            ApiError::service_unavailable(message)
        })?;
    let port = object::at(node, &["status", "daemonEndpoints", "kubeletEndpoint", "Port"])
        .and_then(Value::as_u64)
        .and_then(|p| u16::try_from(p).ok())
        .unwrap_or(KUBELET_PORT);
    Ok(SocketAddr::new(address, port))
}

fn client_config(config: &Config, pem: &str) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|e| format!("CA of nodes: {e}"))?;
        roots.add(certificate).map_err(|e| format!("CA of nodes: {e}"))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS toward nodes: {e}"))?
        .with_root_certificates(roots);
    let (Some(chain), Some(key)) = (&config.node_tls.certificate_pem, &config.node_tls.key_pem)
    else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| format!("client certificate toward nodes: {e}"))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|e| format!("client key toward nodes: {e}"))?;
    builder.with_client_auth_cert(chain, key).map_err(|e| format!("client key toward nodes: {e}"))
}
