//! Owns the wiring of the store's etcd API: the Unix socket that is always there, the TLS port where it is asked for, and the
//! certificates of that port. Decides nothing about requests.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use rustls::ServerConfig;
use store::Store;
use store::grpc::{Identity, Services, bind_unix};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::addresses;
use crate::config::Config;
use crate::pki::{self, Pair, Pki, Wanted};
use crate::secrets::Secrets;
use crate::tls::{self, Shown};

/// The socket's name in the data folder.
pub const SOCKET: &str = "etcd.sock";
/// How often the port's certificates are looked at.
const RENEWAL_PERIOD: Duration = Duration::from_secs(60);
/// A Unix socket's path has at most so many bytes, in Linux.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The etcd API, ready to serve.
#[derive(Debug)]
pub struct EtcdApi {
    services: Services,
    unix: Option<UnixListener>,
    port: Option<Port>,
}

#[derive(Debug)]
struct Port {
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    certificates: Certificates,
}

/// Where the etcd API is served, and as whom.
#[derive(Debug)]
pub struct Place<'a> {
    /// The master's configuration.
    pub config: &'a Config,
    /// The cluster's CA: the cluster is known by it.
    pub ca_pem: &'a str,
    /// Where the API's own address is, for the certificate.
    pub advertise: IpAddr,
}

impl EtcdApi {
    /// Binds the socket and, where it is asked for, the port with its certificates.
    ///
    /// # Errors
    /// The socket or the port can't be had, or a certificate can't be made.
    pub async fn open(place: &Place<'_>, secrets: &Secrets, store: Store) -> anyhow::Result<Self> {
        let path = socket_path(&place.config.data_dir);
        let unix = socket(&path)?;
        let mut client_urls = Vec::new();
        if unix.is_some() {
            client_urls.push(format!("unix://{}", path.display()));
        }
        let port = match place.config.etcd_listen_address {
            Some(address) => Some(Port::open(place, address, secrets).await?),
            None => None,
        };
        if let Some(port) = &port {
            let own = port.listener.local_addr()?;
            let reached = if own.ip().is_unspecified() { place.advertise } else { own.ip() };
            client_urls.push(format!("https://{}", SocketAddr::new(reached, own.port())));
        }
        let identity = identity(place.ca_pem, client_urls);
        Ok(Self { services: Services::new(store, identity), unix, port })
    }

    /// Serves until `stop`; the port's certificates are renewed meanwhile.
    pub fn spawn(
        self,
        serving: &mut JoinSet<anyhow::Result<&'static str>>,
        stop: &watch::Receiver<bool>,
    ) {
        let Self { services, unix, port } = self;
        if let Some(listener) = unix {
            let (services, stop) = (services.clone(), stop.clone());
            serving.spawn(async move {
                services.serve_unix(listener, stop).await;
                Ok("the etcd API's socket")
            });
        }
        let Some(Port { listener, tls, certificates }) = port else { return };
        serving.spawn(certificates.renew(stop.clone()));
        let stop = stop.clone();
        serving.spawn(async move {
            services.serve_tls(listener, tls, stop).await;
            Ok("the etcd API's port")
        });
    }
}

/// A folder that is too deep for a socket is no reason for a cluster to stand still.
fn socket(path: &Path) -> anyhow::Result<Option<UnixListener>> {
    if path.as_os_str().len() + ".new".len() > SOCKET_PATH_BYTES_MAX {
        tracing::warn!(socket = %path.display(), "the path is too long for a socket: the etcd API is not served on one; a shorter --data-dir helps");
        return Ok(None);
    }
    bind_unix(path).map(Some).with_context(|| format!("the etcd API's socket {}", path.display()))
}

fn identity(ca_pem: &str, client_urls: Vec<String>) -> Identity {
    let name = addresses::host_name().unwrap_or_else(|| "master".to_owned());
    let number = |parts: &[&str]| {
        let digest = ring::digest::digest(&ring::digest::SHA256, parts.join("\n").as_bytes());
        let first = digest.as_ref().first_chunk().copied().unwrap_or_default();
        u64::from_be_bytes(first)
    };
    let (cluster_id, member_id) = (number(&[ca_pem]), number(&[ca_pem, &name]));
    Identity { cluster_id, member_id, name, client_urls }
}

impl Port {
    async fn open(
        place: &Place<'_>,
        address: SocketAddr,
        secrets: &Secrets,
    ) -> anyhow::Result<Self> {
        let now = Timestamp::now();
        let dir = place.config.data_dir.join("pki");
        let ca = secrets.shared(&dir, &pki::ETCD_CA, now).await?.try_into();
        let ca: Pair = ca.map_err(|_| anyhow::anyhow!("a CA has two parts"))?;
        // What a client gives to --cacert is no secret.
        let ca_path = dir.join("etcd-ca.crt");
        std::fs::set_permissions(&ca_path, Permissions::from_mode(0o644))
            .with_context(|| ca_path.display().to_string())?;
        let pki = Pki::open(&dir, ca.clone())?;
        let mut names = place.config.tls_sans.clone();
        names.extend([place.advertise.to_string(), address.ip().to_string()]);
        let certificates = Certificates::new(pki, names, now)?;
        let tls = tls::etcd_config(&ca.certificate_pem, certificates.shown.clone())?;
        let listener = TcpListener::bind(address).await;
        let listener =
            listener.with_context(|| format!("--etcd-listen-address: listening on {address}"))?;
        tracing::info!(address = %listener.local_addr()?, "serving the etcd API");
        Ok(Self { listener, tls, certificates })
    }
}

/// The server's certificate, and the one that a person gives to etcdctl.
#[derive(Debug)]
struct Certificates {
    pki: Pki,
    names: Vec<String>,
    server: Pair,
    shown: Arc<Shown>,
}

fn wanted_server(names: &[String]) -> anyhow::Result<Wanted> {
    let mut all: BTreeSet<String> = names.iter().cloned().collect();
    all.insert("localhost".to_owned());
    all.extend(addresses::host_name());
    all.extend(addresses::all()?.iter().map(IpAddr::to_string));
    let (name, common_name) = ("etcd-server", "etcd-server".to_owned());
    Ok(Wanted { name, common_name, organization: None, names: all })
}

fn wanted_client() -> Wanted {
    let (name, common_name) = ("etcd-client", "etcd-client".to_owned());
    Wanted { name, common_name, organization: None, names: BTreeSet::new() }
}

impl Certificates {
    fn new(pki: Pki, names: Vec<String>, now: Timestamp) -> anyhow::Result<Self> {
        let server = pki.ensure(&wanted_server(&names)?, now)?;
        pki.ensure(&wanted_client(), now)?;
        Ok(Self { shown: Shown::new(&server)?, pki, names, server })
    }

    async fn renew(mut self, mut stop: watch::Receiver<bool>) -> anyhow::Result<&'static str> {
        loop {
            tokio::select! {
                () = tokio::time::sleep(RENEWAL_PERIOD) => {
                    if let Err(error) = self.ensure(Timestamp::now()) {
                        tracing::error!(%error, "the etcd API's certificates could not be renewed; trying again");
                    }
                }
                stopped = stop.wait_for(|stopped| *stopped) => {
                    drop(stopped);
                    return Ok("the renewal of the etcd API's certificates");
                }
            }
        }
    }

    fn ensure(&mut self, now: Timestamp) -> anyhow::Result<()> {
        let server = self.pki.ensure(&wanted_server(&self.names)?, now)?;
        if server != self.server {
            self.shown.replace(&server)?;
            self.server = server;
        }
        self.pki.ensure(&wanted_client(), now)?;
        Ok(())
    }
}

/// The socket of a data folder.
pub fn socket_path(data_dir: &Path) -> PathBuf {
    data_dir.join(SOCKET)
}
