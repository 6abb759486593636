//! Owns the command line: commands, flags and their help. Must not act.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

/// Where a master keeps its state.
pub const DATA_DIR: &str = "/var/lib/flotilla/controlplane";
/// The optional configuration.
pub const CONFIG_FILE: &str = "/etc/flotilla/controlplane.toml";

const FILES: &str = "\
Files:
  /etc/flotilla/controlplane.toml            optional configuration; flags override it
  /var/lib/flotilla/controlplane/cluster-secret
                                             opens what is sealed in the state and in snapshots of it (0600): keep
                                             a copy with your backups
  /var/lib/flotilla/controlplane/pki         certificates and keys (0700); those of the cluster stand in the state, too
  /var/lib/flotilla/controlplane/store       the cluster's state
  /var/lib/flotilla/controlplane/etcd.sock   the store as etcd, for etcdctl (0600)
  /var/lib/flotilla/controlplane/admin.kubeconfig
                                             the administrator's kubeconfig (0600)

Examples:
  controlplane run
  controlplane run --data-dir ./master --advertise-address 192.168.1.10
  export KUBECONFIG=/var/lib/flotilla/controlplane/admin.kubeconfig; kubectl get nodes
  agent join https://192.168.1.10:6443 --token \"$(controlplane token create)\"";

/// The master of a Flotilla cluster: API server, scheduler, controllers and their store in one process.
#[derive(Debug, Parser)]
#[command(name = "controlplane", version, about, after_help = FILES, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the master in the foreground, until SIGTERM or SIGINT
    ///
    /// The first start makes the cluster: its CA, certificates, service-account key and administrator's kubeconfig. Every
    /// flag but --config and --data-dir can stand in the configuration file as well, under the same name.
    Run(Box<RunArgs>),
    /// Make, list and revoke the tokens that nodes join with
    #[command(subcommand)]
    Token(TokenCommand),
    /// Save, check and restore snapshots of the cluster's state
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Change the key that Secrets are encrypted with
    #[command(subcommand)]
    Encryption(EncryptionCommand),
    /// Move the cluster's state to a real etcd cluster, or back
    #[command(subcommand)]
    Datastore(DatastoreCommand),
    /// Print the administrator's kubeconfig
    ///
    /// Whoever has it may do everything in the cluster.
    Kubeconfig(KubeconfigArgs),
    /// Show how the master and its cluster are
    ///
    /// Ends with 1 when the master does not answer or is not ready.
    Status(StatusArgs),
    /// Print the version
    Version,
}

/// Flags of `run`. What is not given comes from the file, then from the defaults.
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// Configuration file (TOML); unknown keys are errors [default: /etc/flotilla/controlplane.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder of all state
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// File of the cluster secret, for a further master or after a restore [default: cluster-secret in the data folder; made
    /// at the first start]
    #[arg(long, value_name = "FILE")]
    pub cluster_secret_file: Option<PathBuf>,
    /// Where the state is held.
    #[command(flatten)]
    pub datastore: DatastoreArgs,
    /// Snapshots that the master takes.
    #[command(flatten)]
    pub snapshots: ScheduleArgs,
    /// Address to listen on [default: every address]
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<IpAddr>,
    /// Port of the API [default: 6443]
    #[arg(long, value_name = "PORT")]
    pub secure_port: Option<u16>,
    /// Address and port at which the store is served as etcd (v3), over TLS; who has `pki/etcd-client.crt` gets in, and may do
    /// everything [default: none; the Unix socket etcd.sock in --data-dir is always there, for its owner]
    #[arg(long, value_name = "IP:PORT")]
    pub etcd_listen_address: Option<SocketAddr>,
    /// Address at which nodes and pods reach this master [default: that of the default route's interface]
    #[arg(long, value_name = "IP")]
    pub advertise_address: Option<IpAddr>,
    /// Range of the services' addresses; one per family, separated by a comma [default: 10.96.0.0/12]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub service_cluster_ip_range: Option<Vec<IpNet>>,
    /// Range of the pods' addresses; one per family, separated by a comma [default: 10.244.0.0/16]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub cluster_cidr: Option<Vec<IpNet>>,
    /// Length of the prefix that each node gets out of the (IPv4) cluster CIDR [default: 24]
    #[arg(long, value_name = "BITS")]
    pub node_cidr_mask_size: Option<u8>,
    /// Ports that NodePort services get [default: 30000-32767]
    #[arg(long, value_name = "FIRST-LAST")]
    pub service_node_port_range: Option<String>,
    /// Address of the cluster's DNS, inside the service range [default: 10.96.0.10, or the range's tenth]
    #[arg(long, value_name = "IP")]
    pub cluster_dns: Option<IpAddr>,
    /// Domain of the cluster's DNS [default: cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,
    /// Further name or address in the API's certificate; may be repeated
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub tls_san: Option<Vec<String>>,
    /// How long a node may be silent before it counts as lost [default: 40s]
    #[arg(long, value_name = "DURATION")]
    pub node_monitor_grace_period: Option<String>,
    /// How long an event is kept after it was last seen [default: 1h]
    #[arg(long, value_name = "DURATION")]
    pub event_ttl: Option<String>,
    /// Keep events in memory only: they never wear out flash, and a restart of the master forgets them [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub volatile_events: Option<bool>,
    /// What is logged: error, warn, info, debug, trace, or a filter such as `info,store=debug` [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log_level: Option<String>,
}

/// Flags that name a real etcd cluster.
#[derive(Debug, Clone, Default, Args)]
pub struct DatastoreArgs {
    /// Client URLs of a real etcd cluster that holds the state, separated by commas; masters with the same ones are one
    /// cluster [default: a log of this master's own]
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub datastore_endpoints: Option<Vec<String>>,
    /// CA that the certificates of that etcd are checked with (PEM)
    #[arg(long, value_name = "FILE")]
    pub datastore_cafile: Option<PathBuf>,
    /// Certificate shown to that etcd (PEM)
    #[arg(long, value_name = "FILE")]
    pub datastore_certfile: Option<PathBuf>,
    /// Key of that certificate (PEM)
    #[arg(long, value_name = "FILE")]
    pub datastore_keyfile: Option<PathBuf>,
}

/// Flags about snapshots that the master takes by itself.
#[derive(Debug, Clone, Default, Args)]
pub struct ScheduleArgs {
    /// Take a snapshot of the state that often, such as 12h [default: never]
    #[arg(long, value_name = "DURATION")]
    pub snapshot_schedule: Option<String>,
    /// How many of these snapshots are kept [default: 5]
    #[arg(long, value_name = "N")]
    pub snapshot_retention: Option<usize>,
    /// Folder that they are kept in [default: snapshots in the data folder]
    #[arg(long, value_name = "DIR")]
    pub snapshot_dir: Option<PathBuf>,
}

/// Commands about the datastore.
#[derive(Debug, Subcommand)]
pub enum DatastoreCommand {
    /// Move the state, while every master is stopped
    ///
    /// The etcd cluster is named by the same flags, or keys of the configuration file, as for `run`. Nodes and clients go on where
    /// they were: no resource version ever goes down. Afterwards start the masters with --datastore-endpoints (or without, when
    /// the state was moved back); what was left behind is kept, but opened by no master.
    Migrate(DatastoreMigrateArgs),
}

/// Which way the state is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// From the log in the data folder to the etcd cluster.
    Etcd,
    /// From the etcd cluster to a log in the data folder.
    Embedded,
}

/// Flags of `datastore migrate`.
#[derive(Debug, Args)]
pub struct DatastoreMigrateArgs {
    /// Where the state goes: to the etcd cluster, or to a log in the data folder
    #[arg(long, value_name = "WHERE", value_enum)]
    pub to: Direction,
    /// Folder of the master's state
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// Configuration file (TOML) that names the etcd cluster [default: /etc/flotilla/controlplane.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The etcd cluster.
    #[command(flatten)]
    pub datastore: DatastoreArgs,
    /// Replace the state of a cluster that is already there: keys in etcd are deleted, a log is moved aside
    #[arg(long)]
    pub force: bool,
    /// How to print what was moved
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Output,
}

/// Commands about tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it
    ///
    /// The token is one string, ID.SECRET.FINGERPRINT; the fingerprint lets a node recognise this cluster. Give it to
    /// `agent join URL --token TOKEN`.
    Create(TokenCreateArgs),
    /// List the tokens, without their secrets
    List(TokenListArgs),
    /// Revoke tokens; nodes that have joined stay
    Revoke(TokenRevokeArgs),
}

/// Commands about snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Save the cluster's state as one file, while the master runs or while it is stopped
    ///
    /// The file has what is in the API, encrypted where it is encrypted in the master's own files, and the cluster's keys sealed
    /// with the cluster secret: that secret and the file are a whole backup. It has its name only when it is complete.
    Save(SnapshotSaveArgs),
    /// Make a stopped master's state that of a snapshot
    ///
    /// The master's folder must hold no state yet, and the cluster secret must be there or be named. Nodes come back by
    /// themselves; no resourceVersion that anybody saw comes again.
    Restore(SnapshotRestoreArgs),
    /// Check a snapshot from the first byte to the last
    Verify(SnapshotVerifyArgs),
}

/// Flags of `snapshot save`.
#[derive(Debug, Args)]
pub struct SnapshotSaveArgs {
    /// Where to save it; a file that is there is replaced
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Folder of the master's state
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// File of the cluster secret, for a stopped master [default: cluster-secret in the folder]
    #[arg(long, value_name = "FILE")]
    pub cluster_secret_file: Option<PathBuf>,
    /// How to print what was saved
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Output,
}

/// Flags of `snapshot restore`.
#[derive(Debug, Args)]
pub struct SnapshotRestoreArgs {
    /// The snapshot
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Folder of the master's state
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// File of the cluster secret, which is copied into the folder [default: the one that is there]
    #[arg(long, value_name = "FILE")]
    pub cluster_secret_file: Option<PathBuf>,
    /// Move what the folder holds aside, instead of refusing
    #[arg(long)]
    pub force: bool,
    /// How to print what was restored
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Output,
}

/// Flags of `snapshot verify`.
#[derive(Debug, Args)]
pub struct SnapshotVerifyArgs {
    /// The snapshot
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// How to print what it holds
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Output,
}

/// Commands about encryption.
#[derive(Debug, Subcommand)]
pub enum EncryptionCommand {
    /// Make a new key, and wait until every Secret is encrypted with it
    ///
    /// The running master writes each Secret again, some hundred in a second. When this command is ended early, or the master
    /// restarts, it goes on. The old key is removed when nothing has needed it for an hour.
    Rotate(EncryptionRotateArgs),
}

/// Flags of `encryption rotate`.
#[derive(Debug, Args)]
pub struct EncryptionRotateArgs {
    /// Folder of the master's state
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// File of the cluster secret [default: cluster-secret in the folder]
    #[arg(long, value_name = "FILE")]
    pub cluster_secret_file: Option<PathBuf>,
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Flags of `token create`.
#[derive(Debug, Args)]
pub struct TokenCreateArgs {
    /// Folder of the master's state
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// How long the token is good for; 0 is for ever
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    pub ttl: String,
    /// How many nodes may join with it [default: any number]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub uses: Option<u32>,
    /// What it is for
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub description: String,
    /// How to print it
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Output,
}

/// Flags of `token list`.
#[derive(Debug, Args)]
pub struct TokenListArgs {
    /// Folder of the master's state
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// How to print them
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Output,
}

/// Flags of `token revoke`.
#[derive(Debug, Args)]
pub struct TokenRevokeArgs {
    /// Token ids, or whole tokens
    #[arg(value_name = "TOKEN", required = true)]
    pub tokens: Vec<String>,
    /// Folder of the master's state
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
}

/// Flags of `kubeconfig`.
#[derive(Debug, Args)]
pub struct KubeconfigArgs {
    /// Folder of the master's state
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// Address of the API as its reader sees it, such as https://192.168.1.10:6443
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
    /// Write it there (0600) instead of printing it
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Flags of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Folder of the master's state
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// How to print it
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Output,
}
