//! `agent run`: configuration to parts, parts wired together, run until told to end. Containers and
//! the monitor stay; only the agent goes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use monitor::MonitorConfig;
use netd::{Netd, Readiness};
use tokio::sync::{Notify, mpsc, watch};
use tracing::info;

use crate::checkpoint::Checkpoint;
use crate::config::{Config, make_private_folder, write_atomic};
use crate::connection::Link;
use crate::context::Context;
use crate::engine::Engine;
use crate::events::{Kind, Recorder};
use crate::identity::Identity;
use crate::image::{ImageStore, ImageStoreConfig};
use crate::masters::Masters;
use crate::node::{NodeReporter, Reported, address, host};
use crate::objects::ObjectStore;
use crate::pod::dispatch::Dispatcher;
use crate::pod::registry::Registry;
use crate::renewal;
use crate::rest;
use crate::runtime::{Runtime, RuntimeConfig};
use crate::server::Server;
use crate::services::Services;
use crate::source;
use crate::tunnel;
use crate::upkeep::Upkeep;
use crate::volume::token::Tokens;

/// How long the network may take before the node says that it isn't ready.
const SETTLE_WAIT: Duration = Duration::from_secs(5);

/// Where the monitor keeps its sockets and states.
pub(crate) fn monitor_config(config: &Config) -> MonitorConfig {
    let mut monitor = MonitorConfig::new(config.run_dir.join("monitor"));
    let parent = config.cgroup_parent.trim_end_matches('/');
    monitor.cgroup = Some(format!("{parent}/monitor").into());
    monitor
}

pub(crate) fn netd_config(config: &Config, node_ips: Vec<std::net::IpAddr>) -> netd::Config {
    let mut netd = netd::Config::new(config.node_name.clone(), node_ips);
    netd.run_dir.clone_from(&config.run_dir);
    netd.state_dir = config.data_dir.join("network");
    netd.cluster_domain.clone_from(&config.cluster_domain);
    netd.cluster_dns.clone_from(&config.cluster_dns);
    netd.cluster_cidrs.clone_from(&config.cluster_cidrs);
    netd.service_cidrs.clone_from(&config.service_cidrs);
    netd.upstream_resolv_conf.clone_from(&config.resolv_conf);
    netd
}

/// Runs the agent in the foreground until SIGTERM or SIGINT.
pub(crate) fn run(config_path: &Path) -> anyhow::Result<()> {
    let config = Arc::new(Config::load(config_path)?);
    let cannot_make = |dir: &Path| format!("cannot make {}", dir.display());
    // Below it are Secrets, and images' files with whatever rights they bear. Containers get there
    // by mounts that root makes before it becomes their user.
    make_private_folder(&config.data_dir).with_context(|| cannot_make(&config.data_dir))?;
    for dir in [&config.run_dir, &config.log_dir] {
        std::fs::create_dir_all(dir).with_context(|| cannot_make(dir))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Files and name look-ups; each thread costs memory.
        .max_blocking_threads(4)
        .thread_keep_alive(Duration::from_secs(2))
        .build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: Arc<Config>) -> anyhow::Result<()> {
    write_atomic(&config.pid_file(), format!("{}\n", std::process::id()).as_bytes(), 0o644)?;
    let identity = Arc::new(Identity::load(&config.identity_dir())?);
    let link = Link::new();
    let client = link.client();
    let masters = Masters::load(&config);
    spawn_link(&link, &masters, &identity);
    tokio::spawn(masters.clone().follow(client.clone()));
    tokio::spawn(renewal::run(client.clone(), identity.clone(), config.node_name.clone()));
    let runtime = Runtime::connect_or_start(RuntimeConfig::new(monitor_config(&config)))
        .await
        .context("the monitor did not come up")?;
    let addresses = address::observe(&config);
    let mut network = netd_config(&config, addresses.clone());
    network.accept_tcp_ports = address::served_here(&config.servers);
    let netd =
        Netd::start(network, client.clone()).await.context("the pod network did not come up")?;
    let images = ImageStore::open(ImageStoreConfig {
        dir: config.data_dir.join("images"),
        registries: config.registries_file.clone(),
    })
    .context("the image store can't be opened")?;
    let (recorder, events) = Recorder::new(client.clone(), config.node_name.clone());
    tokio::spawn(events);
    tokio::spawn(rest::run());
    let checkpoint = Arc::new(Checkpoint::new(config.checkpoint_dir(), identity.clone()));
    let (services, follow) = Services::new(client.clone(), checkpoint.clone());
    tokio::spawn(follow);
    let context = Arc::new(Context {
        objects: ObjectStore::new(client.clone(), link.clone(), checkpoint.clone()),
        tokens: Tokens::new(client.clone(), link.clone(), checkpoint.clone()),
        host: host::observe_host(&config.data_dir),
        addresses,
        engine: Arc::new(Engine::new(runtime, images)),
        netd: Arc::new(netd),
        config,
        client,
        link,
        masters,
        recorder,
        services,
        checkpoint,
    });
    let registry = Arc::new(Registry::default());
    spawn_node(&context, &registry, &identity);
    spawn_sources(&context, &registry);
    spawn_server(&context, &registry);
    let name = &context.config.node_name;
    context.recorder.node(name, Kind::Normal, "Starting", "Starting kubelet.".to_owned());
    info!(node = %name, version = env!("CARGO_PKG_VERSION"), "the agent runs");
    ended().await?;
    info!("the agent ends; containers go on");
    Ok(())
}

fn spawn_link(link: &Arc<Link>, masters: &Arc<Masters>, identity: &Arc<Identity>) {
    let (link, masters, identity) = (link.clone(), masters.clone(), identity.clone());
    tokio::spawn(async move { link.run(masters, identity).await });
}

fn spawn_node(context: &Arc<Context>, registry: &Arc<Registry>, identity: &Identity) {
    let starting = Some("the pod network is starting".to_owned());
    let (report, reported) =
        watch::channel(Reported { network_problem: starting, ..Reported::default() });
    let upkeep = Upkeep::new(context.clone(), registry.clone(), report.clone());
    tokio::spawn(upkeep.run());
    let mut readiness = context.netd.readiness();
    tokio::spawn(async move {
        let ready = readiness.wait_for(|state| *state == Readiness::Ready);
        // Whether it is ready or still isn't: from now on it is told.
        tokio::time::timeout(SETTLE_WAIT, ready).await.ok();
        loop {
            let network_problem = match &*readiness.borrow_and_update() {
                Readiness::Ready => None,
                Readiness::NoPodCidr => Some("the node has no pod CIDR yet".to_owned()),
                Readiness::Failing(why) => Some(why.clone()),
            };
            report.send_modify(|reported| {
                reported.settled = true;
                reported.network_problem = network_problem;
            });
            if readiness.changed().await.is_err() {
                return;
            }
        }
    });
    let reporter = NodeReporter {
        config: context.config.clone(),
        host: context.host.clone(),
        link: context.link.clone(),
        client: context.client.clone(),
        device_key: identity.key.fingerprint(),
        addresses: context.addresses.clone(),
        reported,
        doubt: Arc::new(Notify::new()),
    };
    tokio::spawn(reporter.run());
}

fn spawn_sources(context: &Arc<Context>, registry: &Arc<Registry>) {
    let (tell, updates) = mpsc::channel(source::UPDATES_MAX);
    let name = context.config.node_name.clone();
    tokio::spawn(source::api::run(context.client.clone(), name.clone(), tell.clone()));
    tokio::spawn(source::manifests::run(context.config.manifests_dir.clone(), name, tell.clone()));
    tokio::spawn(Dispatcher::run(context.clone(), registry.clone(), (tell, updates)));
}

fn spawn_server(context: &Arc<Context>, registry: &Arc<Registry>) {
    let server = Server::new(context.clone(), registry.clone());
    tokio::spawn(tunnel::run(context.link.clone(), server.clone()));
    let socket = context.config.local_socket();
    tokio::spawn(async move {
        if let Err(error) = server.listen(&socket).await {
            tracing::error!(socket = %socket.display(), %error, "no commands on this device");
        }
    });
}

async fn ended() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
