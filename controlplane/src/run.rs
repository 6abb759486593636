//! Owns the wiring and life of a master: parts are made in the order of their needs, run, and drained in the other order. No part's
//! behaviour is decided here.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use apiserver::ApiServer;
use jiff::Timestamp;
use store::Store;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cli::RunArgs;
use crate::config::Config;
use crate::etcd_api::{EtcdApi, Place};
use crate::in_process;
use crate::pki::{self, Pair, Pki, Wanted};
use crate::secrets::{Loaded, Secrets};
use crate::tls::{self, Shown};
use crate::upkeep::Upkeep;
use crate::{
    addresses, components, datastore, dns_service, kubeconfig, kubelet_config, status, takeover,
    tokens,
};

/// Enough for a small master: everything is asynchronous, and each thread costs memory.
const WORKERS: usize = 2;
const BACKLOG: u32 = 1024;
/// How long open requests may go on after a signal.
const DRAIN: Duration = Duration::from_secs(5);
/// Length of the random part of a master's name.
const MASTER_ID_LENGTH: usize = 10;
/// How often certificates and the machine's addresses are looked at.
const RENEWAL_PERIOD: Duration = Duration::from_secs(60);

/// The command `run`.
///
/// # Errors
/// A part can't be made, or ended by itself.
pub fn run(args: &RunArgs) -> anyhow::Result<()> {
    let config = Config::load(args)?;
    start_log(&config.log_filter)?;
    status::install_cryptography()?;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime =
        builder.worker_threads(WORKERS).thread_name("controlplane").enable_all().build()?;
    let result = runtime.block_on(Box::pin(master(config)));
    runtime.shutdown_timeout(DRAIN);
    result
}

fn start_log(filter: &str) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .with_context(|| format!("--log-level: {filter:?} is no filter"))?;
    let terminal = io::IsTerminal::is_terminal(&io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = log.with_ansi(terminal).try_init();
    started.map_err(|error| anyhow::anyhow!("the log can't be started: {error}"))
}

async fn master(config: Config) -> anyhow::Result<()> {
    let mut stop = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    let listener = listen(config.bind_address, config.secure_port)?;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.data_dir);
    made.with_context(|| config.data_dir.display().to_string())?;
    // First the store: its lock says that no other process has the folder.
    let (store, secrets) = Box::pin(open_store(&config)).await?;
    let identity = Identity::open(config, &secrets, Timestamp::now()).await?;
    let upkeep = Upkeep {
        store: store.clone(),
        ring: secrets.ring().clone(),
        datastore: if identity.config.datastore.is_some() { "etcd" } else { "embedded" },
        schedule: identity.config.snapshots.clone(),
    };
    let etcd = EtcdApi::open(&identity.place(), &secrets, store.clone()).await?;
    let parts = Parts::start(identity, listener, upkeep, etcd).await?;
    let result = parts.run(&mut stop).await;
    store.close().await;
    tracing::info!("stopped");
    result
}

/// The store, opened with the cluster secret, and what the masters share in it.
async fn open_store(config: &Config) -> anyhow::Result<(Store, Secrets)> {
    let opened = async || {
        let loaded = Loaded::read(&config.data_dir, config.cluster_secret_file.as_deref())?;
        let store = Box::pin(datastore::open(config, &loaded)).await?;
        anyhow::Ok((store.clone(), Secrets::open(store, loaded).await?))
    };
    let (store, secrets) = opened().await?;
    if let Err(error) = takeover::remove(&config.data_dir) {
        let error = format!("{error:#}");
        tracing::error!(%error, "what an interrupted renewal of the log left holds Secrets that are not encrypted, and can't be removed");
    }
    if config.datastore.is_some() || !secrets.ring().met_plain() {
        return Ok((store, secrets));
    }
    drop(secrets);
    match takeover::renew(&config.data_dir, store).await {
        Ok(()) => tracing::info!("wrote the log anew: it held Secrets that were not encrypted"),
        Err(error) => {
            let error = format!("{error:#}");
            tracing::error!(%error, "the log could not be written anew: it holds Secrets that are not encrypted until it is written over");
        }
    }
    opened().await
}

fn listen(address: Option<IpAddr>, port: u16) -> anyhow::Result<TcpListener> {
    let every: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
    let candidates = address.map_or_else(|| every.to_vec(), |address| vec![address]);
    let mut failed = None;
    for address in candidates {
        match bind(SocketAddr::new(address, port)) {
            Ok(listener) => return Ok(listener),
            // A machine without IPv6 listens on IPv4 alone.
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) if error.kind() == io::ErrorKind::AddrInUse => {
            bail!("port {port} is in use; is another master running? --secure-port chooses another")
        }
        Some(error) => Err(error).with_context(|| format!("listening on port {port}")),
        None => bail!("no address to listen on"),
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The keys and certificates of this master, and what stands in them.
#[derive(Debug)]
struct Identity {
    config: Config,
    advertise: IpAddr,
    pki: Pki,
    service_account_key: String,
    shown: Arc<Shown>,
    serving: Pair,
    admin: Pair,
    /// What this master shows to a kubelet, and to other masters.
    node_client: Pair,
    /// Its name among those that share the datastore; `None`: it is alone.
    master_id: Option<String>,
}

fn client(name: &'static str, common_name: &str, organization: &'static str) -> Wanted {
    let common_name = common_name.to_owned();
    Wanted { name, common_name, organization: Some(organization), names: BTreeSet::new() }
}

fn wanted_admin() -> Wanted {
    client("admin", "kubernetes-admin", "system:masters")
}

fn wanted_node_client() -> Wanted {
    client("apiserver-kubelet-client", "kube-apiserver-kubelet-client", "system:masters")
}

fn wanted_serving(config: &Config, advertise: IpAddr) -> anyhow::Result<Wanted> {
    let domain = &config.cluster_domain;
    let mut names: BTreeSet<String> = [
        "localhost".to_owned(),
        "kubernetes".to_owned(),
        "kubernetes.default".to_owned(),
        "kubernetes.default.svc".to_owned(),
        format!("kubernetes.default.svc.{domain}"),
    ]
    .into();
    names.extend(addresses::host_name());
    names.extend(addresses::all()?.iter().map(IpAddr::to_string));
    names.insert(advertise.to_string());
    names.extend(config.kubernetes_service_address().map(|address| address.to_string()));
    names.extend(config.tls_sans.iter().cloned());
    let (name, common_name) = ("apiserver", "kube-apiserver".to_owned());
    Ok(Wanted { name, common_name, organization: None, names })
}

/// A name that no other process has, or had, as client-go's leader election makes them.
fn master_id() -> anyhow::Result<String> {
    let host = addresses::host_name().unwrap_or_else(|| "master".to_owned());
    Ok(format!("{host}_{}", tokens::random_text(MASTER_ID_LENGTH)?))
}

impl Identity {
    async fn open(config: Config, secrets: &Secrets, now: Timestamp) -> anyhow::Result<Self> {
        let advertise = config.advertise_address.or_else(addresses::default_address);
        let advertise = advertise.unwrap_or_else(|| {
            tracing::warn!("the machine has no address but loopback; restart the master when it has one, or give --advertise-address, so that nodes can join");
            Ipv4Addr::LOCALHOST.into()
        });
        let dir = config.data_dir.join("pki");
        let ca = secrets.shared(&dir, &pki::CA, now).await?.try_into();
        let pki = Pki::open(&dir, ca.map_err(|_| anyhow::anyhow!("a CA has two parts"))?)?;
        let service_account_key =
            secrets.shared(&dir, &pki::SERVICE_ACCOUNT_KEY, now).await?.concat();
        pki.publish_service_account_key(&service_account_key)?;
        let serving = pki.ensure(&wanted_serving(&config, advertise)?, now)?;
        let shared = config.datastore.is_some();
        let identity = Self {
            master_id: shared.then(master_id).transpose()?,
            service_account_key,
            shown: Shown::new(&serving)?,
            admin: pki.ensure(&wanted_admin(), now)?,
            node_client: pki.ensure(&wanted_node_client(), now)?,
            serving,
            advertise,
            pki,
            config,
        };
        identity.save_kubeconfig()?;
        Ok(identity)
    }

    fn place(&self) -> Place<'_> {
        let (config, advertise) = (&self.config, self.advertise);
        Place { config, ca_pem: &self.pki.ca().certificate_pem, advertise }
    }

    fn save_kubeconfig(&self) -> anyhow::Result<()> {
        let own = self.config.bind_address.unwrap_or(Ipv4Addr::LOCALHOST.into());
        let own = if own.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { own };
        let server = format!("https://{}", SocketAddr::new(own, self.config.secure_port));
        let text = kubeconfig::render(&server, &self.pki.ca().certificate_pem, &self.admin);
        let path = kubeconfig::path(&self.config.data_dir);
        if std::fs::read_to_string(&path).is_ok_and(|found| found == text) {
            return Ok(());
        }
        kubeconfig::save(&path, &text).with_context(|| path.display().to_string())
    }

    /// Renews what is about to end or lacks an address.
    fn renew(&mut self, now: Timestamp) -> anyhow::Result<()> {
        let wanted = wanted_serving(&self.config, self.advertise)?;
        if !self.pki.is_good(&self.serving, &wanted, now) {
            self.serving = self.pki.ensure(&wanted, now)?;
            self.shown.replace(&self.serving)?;
        }
        if !self.pki.is_good(&self.admin, &wanted_admin(), now) {
            self.admin = self.pki.ensure(&wanted_admin(), now)?;
            self.save_kubeconfig()?;
        }
        Ok(())
    }

    fn apiserver_config(&self) -> apiserver::Config {
        let config = &self.config;
        let issuer = format!("https://kubernetes.default.svc.{}", config.cluster_domain);
        apiserver::Config {
            advertise_address: self.advertise,
            advertise_port: config.secure_port,
            service_cidrs: config.service_cidrs.clone(),
            node_ports: config.node_ports,
            cluster_domain: config.cluster_domain.clone(),
            ca_pem: self.pki.ca().certificate_pem.clone(),
            service_account_key_pem: self.service_account_key.clone(),
            service_account_public_keys_pem: Vec::new(),
            api_audiences: vec![issuer.clone()],
            service_account_issuer: issuer,
            anonymous_auth: true,
            node_tls: apiserver::NodeTls {
                certificate_pem: Some(self.node_client.certificate_pem.clone()),
                key_pem: Some(self.node_client.key_pem.clone()),
                ca_pem: None,
            },
            master_id: self.master_id.clone(),
            event_ttl: config.event_ttl,
            drain: DRAIN,
        }
    }

    fn controllers_config(&self) -> controllers::Config {
        let Pair { certificate_pem, key_pem } = self.pki.ca().clone();
        let mut own = controllers::Config::new(certificate_pem.clone(), key_pem, certificate_pem);
        own.cluster_cidrs = self.config.cluster_cidrs.clone();
        own.node_mask_ipv4 = self.config.node_mask_ipv4;
        own.node_monitor_grace = self.config.node_monitor_grace;
        own
    }
}

/// What runs. Components stop ahead of the API server that they write through.
struct Parts {
    components: JoinSet<anyhow::Result<&'static str>>,
    serving: JoinSet<anyhow::Result<&'static str>>,
    stop_components: watch::Sender<bool>,
    stop_serving: watch::Sender<bool>,
}

impl Parts {
    async fn start(
        identity: Identity,
        listener: TcpListener,
        upkeep: Upkeep,
        etcd: EtcdApi,
    ) -> anyhow::Result<Self> {
        let store = upkeep.store.clone();
        let server = Box::pin(ApiServer::new(identity.apiserver_config(), store)).await?;
        let (user, groups) = in_process::MASTER;
        let own = in_process::client(server.clone(), user, groups);
        Box::pin(dns_service::ensure(own.clone(), &identity.config)).await?;
        Box::pin(kubelet_config::ensure(own, &identity.config)).await?;
        let tls = tls::server_config(&identity.pki.ca().certificate_pem, identity.shown.clone())?;
        let (stop_components, stopping) = watch::channel(false);
        let (stop_serving, stopping_serving) = watch::channel(false);
        let address = listener.local_addr()?;
        tracing::info!(%address, advertise = %identity.advertise, "serving the API");
        let (mut components, mut serving) = (JoinSet::new(), JoinSet::new());
        upkeep.start(&server, &mut components, &stopping);
        etcd.spawn(&mut serving, &stopping_serving);
        let api = server.clone();
        serving.spawn(async move {
            api.serve(listener, tls, stopping_serving).await.context("the API server")?;
            Ok("the API server")
        });
        let (config, candidate) = (identity.controllers_config(), identity.master_id.as_deref());
        components::spawn(&mut components, &server, candidate, config, &stopping);
        components.spawn(renew(identity, stopping.clone()));
        components.spawn(async move {
            server.keep(stopping).await;
            Ok("the keeping of the masters' addresses")
        });
        Ok(Self { components, serving, stop_components, stop_serving })
    }

    /// Runs until a signal comes or a part ends, then drains.
    async fn run(mut self, stop: &mut [Signal; 2]) -> anyhow::Result<()> {
        let [terminate, interrupt] = stop;
        let ended = tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            Some(ended) = self.components.join_next() => Some(ended),
            Some(ended) = self.serving.join_next() => Some(ended),
        };
        tracing::info!("stopping");
        self.stop_components.send_replace(true);
        drained("components", &mut self.components, DRAIN).await;
        self.stop_serving.send_replace(true);
        // The API server has its own bound; this one is for its failure to keep it.
        drained("the API server", &mut self.serving, DRAIN * 2).await;
        match ended {
            None => Ok(()),
            Some(Ok(Ok(what))) => bail!("{what} ended by itself"),
            Some(Ok(Err(error))) => Err(error),
            Some(Err(error)) => Err(error).context("a part of the master died"),
        }
    }
}

async fn drained(what: &str, tasks: &mut JoinSet<anyhow::Result<&'static str>>, within: Duration) {
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            match ended {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::error!(%error, "a part ended badly"),
                Err(error) => tracing::error!(%error, "a part died"),
            }
        }
    };
    if tokio::time::timeout(within, all).await.is_err() {
        tracing::warn!(what, "not stopped in time; cut off");
        tasks.abort_all();
    }
}

async fn renew(
    mut identity: Identity,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<&'static str> {
    loop {
        tokio::select! {
            () = tokio::time::sleep(RENEWAL_PERIOD) => {
                if let Err(error) = identity.renew(Timestamp::now()) {
                    tracing::error!(%error, "certificates could not be renewed; trying again");
                }
            }
            stopped = stop.wait_for(|stopped| *stopped) => {
                drop(stopped);
                return Ok("the renewal of certificates");
            }
        }
    }
}
