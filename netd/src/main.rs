//! `netd`: the service proxy of a node of any Kubernetes cluster, in kube-proxy's place.
//!
//! Flags to `Config`, run, drain. Must not hold any behaviour of its own.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};
use ipnet::IpNet;
use kube::config::{KubeConfigOptions, Kubeconfig};
use netd::{Config, Mode, Netd};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Programs the services of a Kubernetes cluster into this node's nftables.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run as this node's service proxy until SIGTERM or SIGINT; the rules stay in the kernel.
    ///
    /// Serves ClusterIPs, node ports, external and load balancer addresses with their traffic policies, over TCP, UDP and SCTP.
    /// Follows services, endpoint slices and nodes; needs the rights of `system:node-proxier`. Don't run it beside kube-proxy.
    Proxy(Proxy),
    /// Remove all rules and state that `netd proxy` made on this node.
    Cleanup(Place),
}

#[derive(Debug, clap::Args)]
struct Proxy {
    /// Kubeconfig of the cluster; without it KUBECONFIG, ~/.kube/config or the pod's service account.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Name of this node's Node object, when it isn't the host name.
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// Address range of the pods, once per family: traffic to ClusterIPs from elsewhere is masqueraded.
    #[arg(long, value_name = "CIDR")]
    cluster_cidr: Vec<IpNet>,
    /// Address range of the ClusterIPs, once per family: what no service has is rejected.
    #[arg(long, value_name = "CIDR")]
    service_cidr: Vec<IpNet>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
struct Place {
    /// Name of the nftables tables.
    #[arg(long, value_name = "NAME", default_value = netd::TABLE)]
    table: String,
    /// Folder of the saved services, served after a boot without the API server.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/flotilla/netd")]
    state_dir: PathBuf,
}

fn config(place: &Place, node_name: String) -> Config {
    let mut config = Config::new(node_name, Vec::<IpAddr>::new());
    config.mode = Mode::Proxy;
    config.table.clone_from(&place.table);
    config.state_dir.clone_from(&place.state_dir);
    config.run_dir = place.state_dir.join("run");
    config.cluster_dns.clear();
    config.cluster_cidrs.clear();
    config.service_cidrs.clear();
    config
}

async fn client(kubeconfig: Option<&PathBuf>) -> anyhow::Result<kube::Client> {
    let config = match kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?
        }
        None => kube::Config::infer().await.context("no cluster; name one with --kubeconfig")?,
    };
    Ok(kube::Client::try_from(config)?)
}

async fn proxy(arguments: Proxy) -> anyhow::Result<()> {
    let node_name = match arguments.hostname_override {
        Some(name) => name,
        None => nix::unistd::gethostname()?.to_string_lossy().to_lowercase(),
    };
    let mut config = config(&arguments.place, node_name);
    config.cluster_cidrs = arguments.cluster_cidr;
    config.service_cidrs = arguments.service_cidr;
    let client = client(arguments.kubeconfig.as_ref()).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let netd = Netd::start(config, client).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; the rules stay");
    netd.stop().await;
    Ok(())
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!("netd changes the kernel's packet filter: run it as root");
    }
    match arguments.command {
        Command::Proxy(arguments) => proxy(arguments).await,
        Command::Cleanup(place) => Ok(Netd::remove(config(&place, String::new())).await?),
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(arguments))
}
