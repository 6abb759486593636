//! The command line: flags to values, values to one room's call, errors to people. Nothing else in
//! the crate writes to standard output or error.

use std::ffi::OsString;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::CONFIG_DIR;
use crate::node::status::KUBELET_VERSION;

#[derive(Debug, Parser)]
#[command(name = "agent", version, about = "The node of a Flotilla cluster", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args, Clone)]
pub(crate) struct ConfigArg {
    /// Configuration file
    #[arg(long, env = "FLOTILLA_AGENT_CONFIG", default_value_os_t = PathBuf::from(CONFIG_DIR).join("agent.toml"))]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

#[derive(Debug, Args, Clone)]
pub(crate) struct LocalArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// How to print
    #[arg(long, short, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent in the foreground
    Run(ConfigArg),
    /// Make this device a node of a cluster
    Join(JoinArgs),
    /// Leave the cluster and remove every trace of the agent
    Leave(LeaveArgs),
    /// Show the pods and containers of this device
    Ps(LocalArgs),
    /// Print a container's log
    Logs(LogsArgs),
    /// Run a command in a container
    Exec(ExecArgs),
    /// Show the images on this device
    Images(LocalArgs),
    /// Manage images
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Show how the agent fares
    Status(LocalArgs),
    /// Print the version
    Version,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Import an image from a docker or OCI archive
    Import {
        /// The archive, possibly compressed
        file: PathBuf,
        #[command(flatten)]
        config: ConfigArg,
    },
}

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// The master: https://HOST[:6443]; several masters of one cluster: separated by commas
    #[arg(value_name = "SERVER", value_delimiter = ',', required = true)]
    pub(crate) servers: Vec<String>,
    /// Token from `controlplane token create`
    #[arg(long, env = "FLOTILLA_TOKEN", hide_env_values = true)]
    pub(crate) token: String,
    /// Name of the node (default: the hostname)
    #[arg(long)]
    pub(crate) node_name: Option<String>,
    /// Labels of the node: key=value, comma-separated or repeated
    #[arg(long, value_delimiter = ',')]
    pub(crate) labels: Vec<String>,
    /// Taints of the node: key=value:Effect, comma-separated or repeated
    #[arg(long, value_delimiter = ',')]
    pub(crate) taints: Vec<String>,
    /// Addresses of the node (default: the one the master is reached from)
    #[arg(long, value_delimiter = ',')]
    pub(crate) node_ip: Vec<IpAddr>,
    /// Only write the configuration; don't start anything
    #[arg(long)]
    pub(crate) no_service: bool,
    /// Folder of the configuration
    #[arg(long, default_value = CONFIG_DIR)]
    pub(crate) config_dir: PathBuf,
    /// Folder of the agent's state
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Folder of sockets and namespaces
    #[arg(long)]
    pub(crate) run_dir: Option<PathBuf>,
    /// Folder of the containers' logs
    #[arg(long)]
    pub(crate) log_dir: Option<PathBuf>,
    /// Cgroup that all pods live below
    #[arg(long)]
    pub(crate) cgroup_parent: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LeaveArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// Seconds the pods get to move elsewhere
    #[arg(long, default_value_t = 60)]
    pub(crate) drain_seconds: u64,
    /// Don't ask the master at all
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// [NAMESPACE/]POD
    pub(crate) pod: String,
    /// Container (default: the first)
    #[arg(long, short)]
    pub(crate) container: Option<String>,
    /// Go on with what is written later
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// The container before the current one
    #[arg(long, short)]
    pub(crate) previous: bool,
    /// Only the last lines
    #[arg(long)]
    pub(crate) tail: Option<i64>,
    /// With time stamps
    #[arg(long)]
    pub(crate) timestamps: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// Container (default: the first)
    #[arg(long, short)]
    pub(crate) container: Option<String>,
    /// Pass standard input
    #[arg(long, short = 'i')]
    pub(crate) stdin: bool,
    /// With a terminal
    #[arg(long, short = 't')]
    pub(crate) tty: bool,
    /// [NAMESPACE/]POD
    pub(crate) pod: String,
    /// The command
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<String>,
}

/// Writes a line to standard output; a closed pipe is the reader's wish.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody reads any more, so there is nobody to tell.
    writeln!(out, "{text}").and_then(|()| out.flush()).ok();
}

/// Writes a line to standard error.
pub(crate) fn complain(text: &str) {
    // The last resort has no further one.
    writeln!(std::io::stderr().lock(), "{text}").ok();
}

pub(crate) fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // Before any thread or runtime exists, and before clap: containers are made in this process.
    if arguments.get(1).is_some_and(|word| word == "monitor") {
        return finish(run_monitor(&arguments[2..]).map(|()| ExitCode::SUCCESS));
    }
    let cli = Cli::parse_from(arguments);
    finish(dispatch(cli.command))
}

fn run_monitor(arguments: &[OsString]) -> anyhow::Result<()> {
    let config = monitor::MonitorConfig::from_arguments(arguments.iter().cloned())?;
    init_log();
    monitor::run(config)
}

fn finish(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Run(args) => {
            init_log();
            crate::run::run(&args.config).map(done)
        }
        Command::Join(args) => crate::join::join(&args).map(done),
        Command::Leave(args) => crate::leave::leave(&args).map(done),
        Command::Ps(args) => crate::local::ps(&args).map(done),
        Command::Logs(args) => crate::local::logs(&args).map(done),
        Command::Exec(args) => crate::local::exec(&args),
        Command::Images(args) => crate::local::images(&args).map(done),
        Command::Image { command: ImageCommand::Import { file, config } } => {
            crate::local::import(&config, &file).map(done)
        }
        Command::Status(args) => crate::local::status(&args).map(done),
        Command::Version => {
            say(&format!("agent {} (kubelet {KUBELET_VERSION})", env!("CARGO_PKG_VERSION")));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn init_log() {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::prelude::*;
    // Not `EnvFilter`: it brings a megabyte of regular expressions.
    let given = std::env::var("FLOTILLA_LOG").ok();
    let filter = given.and_then(|text| text.parse::<Targets>().ok());
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(lines).with(filter).init();
}
